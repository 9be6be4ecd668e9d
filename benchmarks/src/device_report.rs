//! What the two programs of `scripts/gpu-check` share: rows of its report, and what is known of a
//! device by name.
//!
//! A row is printed as soon as it is known, and a question that fails says so in its row: whatever
//! happens later, the rows before are in the report.
use std::collections::BTreeMap;
use std::io::Write;

use nepa_tests::step_variants::norm;

/// NVIDIA's libraries that a process of ours may open; of the last one nvJPEG's hardware backend is
/// made.
pub const LIBRARIES: [&str; 6] = [
    "libcuda",
    "libcublasLt",
    "libcublas",
    "libcurand",
    "libnvjpeg",
    "libnvcuvid",
];

/// Text that stays one cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "/")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// Prints a row of a table at once.
///
/// # Panics
/// If nobody reads the output any more.
pub fn print_row(cells: &[&str]) {
    let cells = cells.iter().map(|text| cell(text)).collect::<Vec<_>>();
    let mut output = std::io::stdout().lock();
    writeln!(output, "| {} |", cells.join(" | ")).expect("somebody reads the report");
    output.flush().expect("somebody reads the report");
}

/// Prints the row of a question with a verdict and says whether it passed.
pub fn print_verdict(name: &str, result: &anyhow::Result<String>) -> bool {
    match result {
        Ok(text) => print_row(&[name, "ok", text]),
        Err(error) => print_row(&[name, "FAILED", &format!("{error:#}")]),
    }
    result.is_ok()
}

/// Prints a row of measurements, in so many cells after its name; where there are none, why. Says
/// whether there are.
pub fn print_measured<const N: usize>(name: &str, result: &anyhow::Result<[String; N]>) -> bool {
    let mut cells = vec![name.to_owned()];
    match result {
        Ok(measured) => cells.extend_from_slice(measured),
        Err(error) => {
            cells.push(format!("FAILED: {error:#}"));
            cells.resize(N + 1, String::new());
        }
    }
    print_row(&cells.iter().map(String::as_str).collect::<Vec<_>>());
    result.is_ok()
}

/// The files of NVIDIA's libraries in a process, by what they are, from its `/proc/self/maps`.
pub fn opened_libraries(maps: &str) -> BTreeMap<&'static str, String> {
    let mut opened = BTreeMap::new();
    for path in maps
        .lines()
        .filter_map(|line| Some(&line[line.find('/')?..]))
    {
        let file = path.rsplit('/').next().unwrap_or_default();
        let name = file.split(['.', '-']).next().unwrap_or_default();
        if let Some(library) = LIBRARIES.into_iter().find(|library| *library == name) {
            opened.insert(library, path.to_owned());
        }
    }
    opened
}

/// The norm of the difference over the norm, which counts as at least `least`: two values that
/// should be nothing differ by nothing, however they differ by their own size.
pub fn relative(found: &[f32], expected: &[f32], least: f64) -> f64 {
    let difference = norm(found.iter().zip(expected).map(|(a, b)| a - b));
    difference
        / norm(expected.iter().copied())
            .max(least)
            .max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_has_no_bar_and_no_line_break() {
        assert_eq!(cell("a | b\n  c"), "a / b c");
    }

    #[test]
    fn the_libraries_of_a_process_are_found_by_name() {
        let maps = "7f0-7f1 r-xp 0 08:01 1 /usr/lib/x86_64-linux-gnu/libcuda.so.580.65.06\n\
                    7f1-7f2 r--p 0 08:01 1 /usr/lib/x86_64-linux-gnu/libcuda.so.580.65.06\n\
                    7f2-7f3 r-xp 0 08:01 2 /site/torchvision.libs/libnvjpeg.4a0b5c81.so.13\n\
                    7f3-7f4 r-xp 00000000 08:01 3   /a folder/libcublasLt.so.13\n\
                    7f4-7f5 rw-p 00000000 00:00 0\n\
                    7f5-7f6 r-xp 00000000 08:01 4   /usr/lib/libcudadebugger.so.1\n\
                    7f6-7f7 rw-p 00000000 00:00 0   [heap]";
        let found = opened_libraries(maps).into_iter().collect::<Vec<_>>();
        let expected = [
            ("libcublasLt", "/a folder/libcublasLt.so.13"),
            ("libcuda", "/usr/lib/x86_64-linux-gnu/libcuda.so.580.65.06"),
            (
                "libnvjpeg",
                "/site/torchvision.libs/libnvjpeg.4a0b5c81.so.13",
            ),
        ];
        assert_eq!(found, expected.map(|(name, path)| (name, path.to_owned())));
    }

    #[test]
    fn a_difference_near_zero_is_small() {
        assert!((relative(&[1.1], &[1.0], 0.0) - 0.1).abs() < 1e-6);
        assert!(relative(&[1e-9], &[-1e-9], 1e-3) < 1e-5);
        assert!(relative(&[0.0], &[0.0], 0.0).abs() < 1e-12);
        assert!(relative(&[f32::NAN], &[1.0], 0.0).is_nan());
    }
}
