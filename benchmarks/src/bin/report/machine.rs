//! The head of a report: on which machine, of which commit, by which command.
use std::fs;
use std::path::Path;

use chrono::Utc;

use crate::child::{command, text_of};

/// What stands at the top of a report; where and when is added.
#[derive(Default)]
pub(crate) struct Head<'a> {
    pub(crate) title: &'a str,
    /// Paragraphs below the title, each with an empty line at its end.
    pub(crate) notice: &'a str,
    /// A device beside the processor.
    pub(crate) device: Option<&'a str>,
    /// Of which commit and how it was compiled.
    pub(crate) program: &'a str,
    pub(crate) command: &'a str,
    pub(crate) data: &'a str,
    /// Further lines of the list.
    pub(crate) more: &'a str,
}

impl Head<'_> {
    pub(crate) fn text(&self) -> String {
        let device = self.device.map(|device| format!("- Device: {device}\n"));
        format!(
            "# {}, {}\n\n{}{}- Processor: {}\n- Program: {}\n- Command: `{}`, started at {} UTC\n\
             - Data: {}\n- Load average at the start: {}. Where other programs ran as well, wall \
             times are too long;\n  processor times and ratios suffer less.\n{}",
            self.title,
            date(),
            self.notice,
            device.unwrap_or_default(),
            processor(),
            self.program,
            self.command,
            Utc::now().format("%H:%M:%S"),
            self.data,
            first_words("/proc/loadavg", 3),
            self.more,
        )
    }
}

/// Today, in UTC.
pub(crate) fn date() -> String {
    Utc::now().format("%F").to_string()
}

/// Processor threads that this program may use.
pub(crate) fn num_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Processor, cores, memory and kernel.
fn processor() -> String {
    let of = |path, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
    };
    let kib = of("/proc/meminfo", "MemTotal")
        .and_then(|text| text.trim_end_matches(" kB").parse::<f64>().ok())
        .unwrap_or(0.0);
    format!(
        "{}, {} cores, {:.0} GiB; {} {}",
        of("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        num_cores(),
        kib / 1_048_576.0,
        first_words("/proc/sys/kernel/ostype", 1),
        first_words("/proc/sys/kernel/osrelease", 1),
    )
}

fn first_words(path: &str, count: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let words: Vec<_> = text.split_whitespace().take(count).collect();
    words.join(" ")
}

/// The commit of the tree and the compiler, as far as git and rustc are there to say so.
pub(crate) fn source() -> String {
    let git = |arguments| text_of(&mut command("git", arguments));
    let commit = git("rev-parse --short HEAD").map_or_else(
        |_| "commit not known".to_owned(),
        |commit| match git("status --porcelain --untracked-files=no") {
            Ok(changes) if changes.is_empty() => format!("commit {commit}"),
            _ => format!("commit {commit} with changes"),
        },
    );
    let rustc = text_of(&mut command("rustc", "--version"));
    format!(
        "{commit}, {}",
        rustc.unwrap_or_else(|_| "no rustc here".to_owned())
    )
}

/// The same with the profile, for programs that were just built from this tree.
pub(crate) fn program(programs: &Path) -> String {
    let profile = programs.file_name().unwrap_or_default().display();
    format!("{}, profile {profile}", source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_names_machine_and_command() {
        let head = Head {
            title: "GPU",
            notice: "**NO GPU**\n\n",
            device: Some("a device"),
            program: "commit 1",
            command: "report gpu light",
            data: "photos",
            more: "- Peers: none\n",
        };
        let text = head.text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], format!("# GPU, {}", date()));
        assert_eq!(lines[2], "**NO GPU**");
        assert_eq!(lines[4], "- Device: a device");
        assert!(lines[5].starts_with("- Processor: ") && lines[5].contains(" cores, "));
        assert_eq!(*lines.last().unwrap(), "- Peers: none");
    }
}
