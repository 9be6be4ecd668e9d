//! What a device's parts are busy with while a measurement runs: `nvidia-smi dmon`, once a second.
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::child::installed;

/// A running `nvidia-smi dmon`; none where there is no nvidia-smi.
pub(crate) struct Sampler(Option<(Child, tempfile::NamedTempFile)>);

impl Sampler {
    /// Begins; what nvidia-smi complains of goes to `log`.
    pub(crate) fn start(log: File) -> Self {
        let start = || {
            let program = installed("nvidia-smi")?;
            // Lines that come at once, where that can be asked for.
            let mut command = installed("stdbuf").map_or_else(
                || Command::new(&program),
                |stdbuf| {
                    let mut command = Command::new(stdbuf);
                    command.arg("-oL").arg(&program);
                    command
                },
            );
            let lines = tempfile::NamedTempFile::new().ok()?;
            let child = command
                .args(["dmon", "-s", "u", "-d", "1"])
                .stdin(Stdio::null())
                .stdout(lines.reopen().ok()?)
                .stderr(log)
                .spawn()
                .ok()?;
            Some((child, lines))
        };
        Self(start())
    }

    /// Ends it and says what it saw.
    pub(crate) fn stop(mut self) -> String {
        let path = self.0.as_ref().map(|(_, lines)| lines.path().to_owned());
        self.end();
        let read = |path: &Path| std::fs::read(path).ok();
        let bytes = path.as_deref().and_then(read).unwrap_or_default();
        of_samples(&String::from_utf8_lossy(&bytes))
    }

    fn end(&mut self) {
        if let Some((child, _)) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.end();
    }
}

/// Of each part in %: mean of the seconds in which any had work, and the most.
fn of_samples(text: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    let mut samples: Vec<Vec<f64>> = Vec::new();
    for line in text.lines() {
        let words = line.split_whitespace();
        if let Some(heads) = line.trim_start().strip_prefix('#') {
            let heads: Vec<_> = heads.split_whitespace().collect();
            if heads.contains(&"sm") {
                names = heads;
            }
        } else if line.trim() != "" {
            // A part that the device lacks is a dash.
            samples.push(words.map(|word| word.parse().unwrap_or(0.0)).collect());
        }
    }
    let column = |name: &str| names.iter().position(|head| *head == name);
    let value = |sample: &[f64], column: usize| sample.get(column).copied().unwrap_or(0.0);
    let device = column("gpu");
    let has_work = |sample: &&Vec<f64>| {
        let mut values = sample.iter().enumerate();
        values.any(|(column, value)| Some(column) != device && *value > 0.0)
    };
    let busy = samples.iter().filter(has_work).count().max(1);
    let parts = ["sm", "mem", "enc", "dec", "jpg"].into_iter();
    let parts = parts.filter_map(|name| {
        let column = column(name)?;
        let values = || samples.iter().map(|sample| value(sample, column));
        let (sum, most) = (values().sum::<f64>(), values().fold(0.0, f64::max));
        Some(format!("{name} {:.0}/{most:.0}", sum / busy as f64))
    });
    let parts: Vec<_> = parts.collect();
    if samples.is_empty() || parts.is_empty() {
        return "not sampled".to_owned();
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::of_samples;

    #[test]
    fn idle_seconds_are_not_in_the_mean() {
        let text = "# gpu     sm    mem    enc    dec    jpg    ofa\n\
                    # Idx      %      %      %      %      %      %\n    \
                        0      0      0      0      0      0      0\n    \
                        0     50     10      0      0     80      0\n    \
                        0     71     20      0      0     40      -\n\
                    # gpu     sm    mem    enc    dec    jpg    ofa\n    \
                        0      0      0      0      0      0      0\n";
        assert_eq!(
            of_samples(text),
            "sm 60/71, mem 15/20, enc 0/0, dec 0/0, jpg 60/80"
        );
    }

    #[test]
    fn a_part_that_is_not_listed_is_left_out() {
        assert_eq!(of_samples("# gpu sm mem\n 0 4 2\n"), "sm 4/4, mem 2/2");
        assert_eq!(of_samples("# gpu sm mem\n 1 - 0\n"), "sm 0/0, mem 0/0");
    }

    #[test]
    fn without_samples_it_says_so() {
        assert_eq!(of_samples(""), "not sampled");
        assert_eq!(of_samples("# gpu sm mem\n"), "not sampled");
        assert_eq!(of_samples("no devices were found\n"), "not sampled");
    }
}
