//! Numbers as a person reads them: bytes, times, counts, rates, shares. For the console and the
//! report; files for programs (`metrics.jsonl`, `--json`) hold whole numbers.
use std::time::Duration;

/// `512 B`, `1.4 KiB`, `123 MiB`, `1.9 GiB`: three digits and a binary unit.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be rounded to 1000 of a unit is 1 of the next one.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", digits(value), UNITS[unit])
}

/// Three significant digits, at most two decimals: `0.98`, `9.87`, `98.7`, `987`, `9,876`.
pub(crate) fn digits(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !size.is_finite() => format!("{value}"),
        _ if size >= 99.95 => signed_count(value.round()),
        _ if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn signed_count(value: f64) -> String {
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{}", count(value.abs() as u64))
}

/// `1,234,567`.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.char_indices() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count and its noun: `1 image`, `4,736 images`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(number))
}

/// A number of parameters or operations: `987`, `5.38 k`, `85.8 M`, `1.2 G`.
pub(crate) fn large(value: f64) -> String {
    let (value, unit) = match value {
        _ if value >= 999.5e9 => (value / 1e12, " T"),
        _ if value >= 999.5e6 => (value / 1e9, " G"),
        _ if value >= 999.5e3 => (value / 1e6, " M"),
        _ if value >= 999.5 => (value / 1e3, " k"),
        _ => return format!("{value:.0}"),
    };
    format!("{}{unit}", digits(value))
}

/// `0.4 s`, `42 s`, `1 min 24 s`, `2 h 05 min`, `3 d 4 h`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let seconds = seconds.round().min(1e15) as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if seconds < 60 {
        format!("{seconds} s")
    } else if minutes < 60 {
        format!("{minutes} min {:02} s", seconds % 60)
    } else if hours < 48 {
        format!("{hours} h {:02} min", minutes % 60)
    } else {
        format!("{days} d {} h", hours % 24)
    }
}

/// A share of 1 in per cent: `0 %`, `0.4 %`, `12 %`, `100 %`.
pub(crate) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent != 0.0 && percent.abs() < 0.95 {
        format!("{percent:.1} %")
    } else {
        format!("{percent:.0} %")
    }
}

/// A learning rate or norm in at most four significant digits: `0.002`, `1.25e-5`, `0.5213`, `12`.
pub(crate) fn small(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    if (1e-3..1e5).contains(&size) {
        let decimals = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
        let text = format!("{value:.decimals$}");
        return if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text
        };
    }
    let text = format!("{value:.2e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let mantissa = mantissa.trim_end_matches('0').trim_end_matches('.');
    format!("{mantissa}e{exponent}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_and_a_unit() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1_400_000, "1.34 MiB"),
            (999 * 1024 + 600, "0.98 MiB"),
            (129_000_000, "123 MiB"),
            (u64::MAX, "16,384 PiB"),
        ];
        for (number, text) in cases {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn counts_are_in_groups_of_three() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(counted(1, "image"), "1 image");
        assert_eq!(counted(4736, "image"), "4,736 images");
        assert_eq!(
            [987.0, 5380.0, 85_800_000.0, 1.2e9].map(large),
            ["987", "5.38 k", "85.8 M", "1.20 G"]
        );
    }

    #[test]
    fn times_are_in_two_units() {
        let cases = [
            (0.04, "0.0 s"),
            (9.96, "10 s"),
            (59.4, "59 s"),
            (59.6, "1 min 00 s"),
            (84.0, "1 min 24 s"),
            (7500.0, "2 h 05 min"),
            (300_000.0, "3 d 11 h"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(Duration::from_secs_f64(seconds)), text);
        }
    }

    #[test]
    fn shares_and_small_numbers_have_no_more_digits_than_they_mean() {
        assert_eq!(
            [0.0, 0.004, 0.0094, 0.123, 1.0].map(percent),
            ["0 %", "0.4 %", "0.9 %", "12 %", "100 %"]
        );
        assert_eq!(
            [0.0, 0.002, 1.25e-5, 0.521_345, 12.0, 123_456.0, -0.5].map(small),
            ["0", "0.002", "1.25e-5", "0.5213", "12", "1.23e5", "-0.5"]
        );
        assert_eq!(
            [0.984, 9.87, 98.66, 9876.0, -1234.5].map(digits),
            ["0.98", "9.87", "98.7", "9,876", "-1,235"]
        );
    }
}
