//! A report as it grows: text, tables, and rows that processes print, each in the file at once. A
//! lease of a machine may end at any time, and what was measured by then must be there.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use crate::child::{self, End};
use crate::table;
use crate::utilisation::Sampler;

/// A process whose rows belong into a report.
pub(crate) struct Measurement {
    pub(crate) limit_s: u64,
    pub(crate) label: String,
    pub(crate) command: Command,
    pub(crate) printed: Printed,
    /// The device's utilisation comes behind each row, and the rows when the process has ended.
    pub(crate) sampled: bool,
}

/// What a process prints.
#[derive(Clone, Copy)]
pub(crate) enum Printed {
    /// Lines of Markdown.
    Lines,
    /// Lines of Markdown, of which only the last one belongs into the report.
    LastLine,
    /// JSON, from which this makes a row.
    Json(fn(&Value) -> anyhow::Result<String>),
}

impl Measurement {
    pub(crate) fn new(limit_s: u64, label: impl Into<String>, command: Command) -> Self {
        Self {
            limit_s,
            label: label.into(),
            command,
            printed: Printed::Lines,
            sampled: false,
        }
    }
}

/// A report, and the log beside it, which holds what the processes said on stderr.
pub(crate) struct Report {
    path: PathBuf,
    file: File,
    log: File,
    /// Of the table that is open; 0 where none is.
    columns: usize,
    failed: bool,
}

impl Report {
    /// Begins a report with its head; an earlier one at this place is gone.
    pub(crate) fn create(path: &Path, head: &str) -> anyhow::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let create = |path: &Path| {
            let mut options = OpenOptions::new();
            File::create(path)
                .and_then(|_| options.read(true).append(true).open(path))
                .with_context(|| format!("cannot write {}", path.display()))
        };
        let mut report = Self {
            path: path.to_owned(),
            file: create(path)?,
            log: create(&path.with_extension("log"))?,
            columns: 0,
            failed: false,
        };
        report.say(head)?;
        Ok(report)
    }

    pub(crate) fn failed(&self) -> bool {
        self.failed
    }

    /// Says where the report lies.
    pub(crate) fn announce(&self) {
        let log = self.path.with_extension("log");
        eprintln!("written: {}, {}", self.path.display(), log.display());
    }

    /// Appends text, and shows it.
    pub(crate) fn say(&mut self, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        if !cfg!(test) {
            // Whether anybody still looks does not matter to the file.
            let mut shown = io::stdout().lock();
            let _ = shown
                .write_all(text.as_bytes())
                .and_then(|()| shown.flush());
        }
        Ok(())
    }

    /// A heading with a text, and the head of a table of these columns, if there are any.
    pub(crate) fn section(&mut self, title: &str, text: &str, columns: &str) -> anyhow::Result<()> {
        self.say(&format!("\n## {title}\n\n{text}\n"))?;
        self.columns = 0;
        if !columns.is_empty() {
            self.columns = columns.split('|').count();
            let rule = "---|".repeat(self.columns);
            self.say(&format!("\n| {columns} |\n|{rule}\n"))?;
        }
        Ok(())
    }

    /// Lines of text or of a table, taken as if a process had printed them.
    pub(crate) fn text(&mut self, lines: &str) -> anyhow::Result<()> {
        lines.lines().try_for_each(|line| self.line(line, ""))
    }

    /// The row of something that was not even tried, which is no failure.
    pub(crate) fn not_run(&mut self, what: &str) -> anyhow::Result<()> {
        let row = table::without(what, "", self.columns);
        Ok(self.say(&format!("{row}\n"))?)
    }

    /// The row of a measurement that failed; the report goes on.
    pub(crate) fn fail(&mut self, label: &str, why: &str) -> anyhow::Result<()> {
        self.failed = true;
        let row = table::without(label, &format!("FAILED: {why}"), self.columns);
        Ok(self.say(&format!("{row}\n"))?)
    }

    /// A part's time and the sum of its limits, which should be at most `most_s`.
    pub(crate) fn end_part(
        &mut self,
        name: &str,
        took: Duration,
        limits_s: u64,
        most_s: u64,
    ) -> anyhow::Result<()> {
        let took = took.as_secs();
        self.columns = 0;
        self.say(&format!(
            "\n{name}: {took} s; the limits of its processes add up to {limits_s} s.\n"
        ))?;
        if limits_s > most_s {
            self.fail(name, &format!("that is more than {most_s} s"))?;
        }
        Ok(())
    }

    /// Runs one process. Its rows go to the report as they come; where it ends badly, or leaves no
    /// row, a row says so.
    pub(crate) fn measure(&mut self, measurement: Measurement) -> anyhow::Result<()> {
        let Measurement {
            limit_s,
            label,
            mut command,
            printed,
            sampled,
        } = measurement;
        writeln!(self.log, "\n== {label} (at most {limit_s} s): {command:?}")?;
        let begin = self.log.seek(SeekFrom::End(0))?;
        let (log, started) = (self.log.try_clone()?, Instant::now());
        let sampler = if sampled {
            Some(Sampler::start(self.log.try_clone()?))
        } else {
            None
        };
        let mut kept = Vec::new();
        let mut num_lines = 0;
        let limit = Duration::from_secs(limit_s);
        let ended = child::run(&mut command, limit, log, |line| {
            num_lines += usize::from(!line.trim().is_empty());
            if sampled || !matches!(printed, Printed::Lines) {
                kept.push(line.to_owned());
                return Ok(());
            }
            self.line(line, "")
        });
        let behind = sampler.map_or_else(String::new, |sampler| format!(" {} |", sampler.stop()));
        let kept = match printed {
            Printed::Lines => kept,
            Printed::LastLine => kept.into_iter().rev().take(1).collect(),
            Printed::Json(_) if num_lines == 0 => Vec::new(),
            Printed::Json(row) => match serde_json::from_str(&kept.join("\n"))
                .context("its output is no JSON")
                .and_then(|value| row(&value))
            {
                Ok(row) => vec![row],
                // Where it ended badly, that is what is told below.
                Err(_) if ended.as_ref().is_ok_and(|end| !end.status.success()) => Vec::new(),
                Err(error) => {
                    self.fail(&label, &format!("{error:#}"))?;
                    Vec::new()
                }
            },
        };
        for line in kept {
            self.line(&line, &behind)?;
        }
        let took = started.elapsed().as_secs();
        let how = match &ended {
            Ok(end) => end.status.to_string(),
            Err(error) => format!("{error:#}"),
        };
        writeln!(self.log, "== {label} ended after {took} s: {how}")?;
        if child::stopped() {
            self.fail(&label, "stopped by a signal")?;
            ended?;
        } else if let Some(why) = match ended {
            Ok(end) => self.fault(&end, limit_s, num_lines, begin)?,
            Err(error) => Some(format!("{error:#}")),
        } {
            self.fail(&label, &why)?;
        }
        Ok(())
    }

    /// Why an end was a bad one, where the rows do not say so.
    fn fault(
        &mut self,
        end: &End,
        limit_s: u64,
        num_lines: usize,
        begin: u64,
    ) -> anyhow::Result<Option<String>> {
        let took = end.took.as_secs();
        Ok(
            match (end.overran, end.status.code(), end.status.signal()) {
                (true, ..) => Some(format!("stopped at its limit of {limit_s} s")),
                (_, Some(0 | 3), _) if num_lines == 0 => Some("it said nothing".to_owned()),
                (_, Some(0), _) => None,
                (_, Some(3), _) => {
                    self.failed = true;
                    None
                }
                (_, _, Some(signal)) => Some(format!(
                    "killed by signal {signal} after {took} s of {limit_s}"
                )),
                (_, code, _) => {
                    let mut said = Vec::new();
                    self.log.seek(SeekFrom::Start(begin))?;
                    self.log.read_to_end(&mut said)?;
                    let said = String::from_utf8_lossy(&said);
                    let mut lines = said.lines().filter(|line| !line.starts_with("== "));
                    let last = lines.rfind(|line| !line.trim().is_empty());
                    Some(format!(
                        "ended with {}: {}",
                        code.unwrap_or_default(),
                        last.unwrap_or("without a word")
                    ))
                }
            },
        )
    }

    /// One line of a process, with a last cell behind it if it is a row.
    fn line(&mut self, line: &str, behind: &str) -> anyhow::Result<()> {
        let mut line = line.to_owned();
        if line.starts_with("|---") {
            self.columns = table::num_cells(&line);
        } else if !line.starts_with('|') {
            self.columns = 0;
        } else if self.columns > 0 {
            let columns = self.columns - usize::from(!behind.is_empty());
            let whole = table::filled(&line, columns);
            let cells = table::num_cells(&whole);
            self.failed |= whole != line.trim() || cells > columns;
            line = whole + behind;
            if cells > columns {
                self.say(&format!("{line}\n"))?;
                return self.fail("the row above", &format!("{cells} cells, not {columns}"));
            }
        }
        Ok(self.say(&format!("{line}\n"))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report_of(measurements: Vec<(&str, Printed)>) -> (String, String, bool) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.md");
        let mut report = Report::create(&path, "# Head\n").unwrap();
        report.section("Title", "Text.", "name | a | b").unwrap();
        for (script, printed) in measurements {
            let mut command = child::command("sh", "-c");
            command.arg(script);
            let mut measurement = Measurement::new(30, "it", command);
            measurement.printed = printed;
            report.measure(measurement).unwrap();
        }
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        let log = read(&path.with_extension("log"));
        (read(&path), log, report.failed())
    }

    fn rows_of(measurements: Vec<(&str, Printed)>) -> (Vec<String>, bool) {
        let (text, _, failed) = report_of(measurements);
        let rows = text.lines().skip_while(|line| !line.starts_with("|---"));
        (rows.skip(1).map(str::to_owned).collect(), failed)
    }

    #[test]
    fn rows_are_kept_and_a_failure_leaves_the_others() {
        let (text, log, failed) = report_of(vec![
            ("echo '| one | 1 | 2 |'", Printed::Lines),
            (
                "echo '| two | 1 | 2 |'; echo 'no | device' >&2; exit 1",
                Printed::Lines,
            ),
            ("true", Printed::Lines),
            ("kill -9 $$", Printed::Lines),
            ("echo '| three | 1 | 2 |'", Printed::Lines),
        ]);
        let expected = "# Head\n\n## Title\n\nText.\n\n| name | a | b |\n|---|---|---|\n\
                        | one | 1 | 2 |\n| two | 1 | 2 |\n\
                        | it | FAILED: ended with 1: no / device | |\n\
                        | it | FAILED: it said nothing | |\n\
                        | it | FAILED: killed by signal 9 after 0 s of 30 | |\n\
                        | three | 1 | 2 |\n";
        assert_eq!(text, expected);
        assert!(failed && log.contains("no | device"));
    }

    #[test]
    fn a_report_of_good_rows_did_not_fail() {
        let (rows, failed) = rows_of(vec![("echo '| one | 1 | 2 |'", Printed::Lines)]);
        assert_eq!((rows, failed), (vec!["| one | 1 | 2 |".to_owned()], false));
    }

    #[test]
    fn code_three_fails_with_the_rows_of_the_process_alone() {
        let script = "echo '| one | FAILED: x | |'; exit 3";
        let (rows, failed) = rows_of(vec![(script, Printed::Lines)]);
        assert_eq!((rows.len(), failed), (1, true));
    }

    #[test]
    fn rows_of_too_few_or_too_many_cells_fail() {
        let (rows, failed) = rows_of(vec![("echo '| one | 1 |'", Printed::Lines)]);
        assert_eq!(rows, ["| one | 1 | FAILED: 2 of 3 cells |"]);
        assert!(failed);
        let (rows, failed) = rows_of(vec![("echo '| one | 1 | 2 | 3 |'", Printed::Lines)]);
        assert_eq!(rows[1], "| the row above | FAILED: 4 cells, not 3 | |");
        assert!(failed);
    }

    #[test]
    fn a_process_may_print_a_table_of_its_own() {
        let script = "printf '\\n| x | y |\\n|---|---|\\n| 1 | 2 |\\n'";
        let (rows, failed) = rows_of(vec![(script, Printed::Lines)]);
        assert_eq!(
            (rows.last().unwrap().as_str(), failed),
            ("| 1 | 2 |", false)
        );
        let (rows, _) = rows_of(vec![(script, Printed::LastLine)]);
        assert_eq!(rows, ["| 1 | 2 | FAILED: 2 of 3 cells |"]);
    }

    #[test]
    fn json_becomes_a_row() {
        let row = |value: &Value| {
            let number = value["n"].as_f64().context("no n")?;
            Ok(format!("| json | {number:.1} | 2 |"))
        };
        let (rows, failed) = rows_of(vec![
            ("printf '{\\n\"n\": 3\\n}\\n'", Printed::Json(row)),
            ("echo '{}'", Printed::Json(row)),
            ("echo no", Printed::Json(row)),
            ("echo no; exit 1", Printed::Json(row)),
        ]);
        assert_eq!(rows[0], "| json | 3.0 | 2 |");
        assert_eq!(rows[1], "| it | FAILED: no n | |");
        assert!(rows[2].starts_with("| it | FAILED: its output is no JSON"));
        assert_eq!(rows[3], "| it | FAILED: ended with 1: without a word | |");
        assert!(failed);
    }
}
