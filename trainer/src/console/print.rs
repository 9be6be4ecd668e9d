//! What the program says on standard output and error, where whoever reads may go (`nepa inspect X
//! | head`).
//!
//! The macros here stand before those of the standard library in all of this crate, which panic
//! then. A command that does nothing but say ends like any Unix tool; one that does something is
//! not ended in the midst of it, and says no more. Of several ranks of a run only rank 0 speaks; the
//! others say their errors.
use std::fmt::Arguments;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nepa_pipeline::redact;
use signal_hook::consts::SIGPIPE;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::line::{columns, undisturbed};

/// The head of the message that ends a command.
pub(crate) const ERROR: &str = "error: ";
/// Columns of the labels of [`labelled`].
const LABEL: usize = 8;

static ENDS_WITH_READER: AtomicBool = AtomicBool::new(false);

/// The rank that says nothing but errors; 0 says all.
static QUIET_RANK: AtomicUsize = AtomicUsize::new(0);

/// From now on the program says nothing but errors, as those of this rank, which is not 0. Where
/// RUST_LOG asks for it, it logs all the same.
pub(crate) fn only_errors_of(rank: usize) {
    QUIET_RANK.store(rank, Ordering::Relaxed);
}

fn quiet_rank() -> Option<usize> {
    Some(QUIET_RANK.load(Ordering::Relaxed)).filter(|rank| *rank > 0)
}

/// From now on the program ends once nobody reads its standard output. For commands that do nothing
/// else.
pub(crate) fn end_with_reader() {
    ENDS_WITH_READER.store(true, Ordering::Relaxed);
}

/// Writes to standard output, without secrets.
pub(crate) fn out(text: Arguments) {
    if quiet_rank().is_some() {
        return;
    }
    let text = redact(&text.to_string());
    let written = undisturbed(|| std::io::stdout().lock().write_all(text.as_bytes()));
    let Err(error) = written else {
        return;
    };
    let ends = ENDS_WITH_READER.load(Ordering::Relaxed);
    if error.kind() != ErrorKind::BrokenPipe {
        err(format_args!(
            "error: cannot write to standard output: {error}\n"
        ));
        if ends {
            std::process::exit(1);
        }
    } else if ends {
        // As the system would, had Rust not asked it to ignore this signal.
        let _ = signal_hook::low_level::emulate_default_handler(SIGPIPE);
    }
}

/// Writes to standard error, where there is one, without secrets.
pub(crate) fn err(text: Arguments) {
    if quiet_rank().is_none() {
        urgent(text);
    }
}

/// The same for what a quiet rank says, too: each line with its name.
pub(crate) fn urgent(text: Arguments) {
    let mut text = redact(&text.to_string());
    if let Some(rank) = quiet_rank() {
        let lines = text.lines().map(|line| format!("rank {rank}: {line}\n"));
        text = lines.collect();
    }
    let _ = undisturbed(|| std::io::stderr().lock().write_all(text.as_bytes()));
}

/// Writes a message to standard error in lines that fit the terminal, of at most 120 columns where
/// there is none. `head` says what it is, as in `error: `; further lines are set in by two spaces.
pub(crate) fn message(head: &str, text: &str) {
    // Before it is broken into lines: a secret may not be cut in two.
    let text = redact(&format!("{head}{text}"));
    let lines = wrapped(&text, columns(), "  ");
    if head == ERROR {
        urgent(format_args!("{lines}\n"));
    } else {
        err(format_args!("{lines}\n"));
    }
}

/// Writes `label` and, in a column of its own, `text` to standard output, in lines that fit as
/// those of [`message`] do.
pub(crate) fn labelled(label: &str, text: &str) {
    let columns = columns().saturating_sub(LABEL).max(20);
    let text = wrapped(&redact(text), columns, "");
    for (number, line) in text.lines().enumerate() {
        let label = if number == 0 { label } else { "" };
        out(format_args!("{label:<LABEL$}{line}\n"));
    }
}

/// Breaks lines at spaces. A word that is longer than a line, such as a URL, stays whole, and so
/// does a line that is set in already. What is broken off begins with `inset`.
fn wrapped(text: &str, columns: usize, inset: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.starts_with(' ') {
            lines.push(line.to_owned());
            continue;
        }
        let mut current = if number == 0 { "" } else { inset }.to_owned();
        let mut is_empty = true;
        for word in line.split(' ') {
            let length = current.chars().count() + word.chars().count() + usize::from(!is_empty);
            if !is_empty && length > columns {
                lines.push(std::mem::replace(&mut current, inset.to_owned()));
                is_empty = true;
            }
            if !is_empty {
                current.push(' ');
            }
            current.push_str(word);
            is_empty = false;
        }
        lines.push(current);
    }
    lines.join("\n")
}

/// As in the standard library, but without a panic.
macro_rules! print {
    ($($argument:tt)*) => {
        $crate::console::print::out(format_args!($($argument)*))
    };
}

/// As in the standard library, but without a panic.
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::console::print::out(format_args!("{}\n", format_args!($($argument)*)))
    };
}

/// As in the standard library, but without a panic.
macro_rules! eprintln {
    ($($argument:tt)*) => {
        $crate::console::print::err(format_args!("{}\n", format_args!($($argument)*)))
    };
}

/// How log lines look: `warning: ...`, information without a head; with the time where standard
/// error is no terminal. Broken into lines as by [`message`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogLines {
    times: bool,
    colours: bool,
    /// Whether RUST_LOG says what is logged.
    asked_for: bool,
}

impl LogLines {
    /// For standard error as it is.
    pub(crate) fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            times: !terminal,
            colours: terminal && colours,
            asked_for: std::env::var_os("RUST_LOG").is_some_and(|value| !value.is_empty()),
        }
    }
}

impl Default for LogLines {
    fn default() -> Self {
        Self::new()
    }
}

impl<S, N> FormatEvent<S, N> for LogLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let (level, target) = (*event.metadata().level(), event.metadata().target());
        if quiet_rank().is_some() && level > Level::ERROR && !self.asked_for {
            return Ok(());
        }
        let mut line = String::new();
        if self.times {
            line += &chrono::Utc::now().format("%Y-%m-%d %H:%M:%SZ ").to_string();
        }
        line += &match level {
            Level::ERROR => "error: ".to_owned(),
            Level::WARN => "warning: ".to_owned(),
            Level::INFO => String::new(),
            _ => format!("{} {target}: ", level.as_str().to_lowercase()),
        };
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        let mut lines = wrapped(&redact(&(line + &text)), columns(), "  ");
        if self.colours && level <= Level::WARN {
            let (head, rest) = lines.split_once(':').unwrap_or(("", &lines));
            let colour = if level == Level::WARN { 33 } else { 31 };
            lines = format!("\x1b[1;{colour}m{head}\x1b[0m:{rest}");
        }
        writeln!(writer, "{lines}")
    }
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn messages_are_broken_between_words() {
        let text = "error: the recipe is wrong: there is no key train.batchsize";
        assert_eq!(
            wrapped(text, 30, "  "),
            "error: the recipe is wrong:\n  there is no key\n  train.batchsize"
        );
        assert_eq!(wrapped(text, 80, "  "), text);
        let url = "error: s3://bucket/a/very/long/prefix does not answer";
        assert_eq!(
            wrapped(url, 20, "  "),
            "error:\n  s3://bucket/a/very/long/prefix\n  does not answer"
        );
        let table = "error: wrong\n  | a table that is wider than the terminal\nand more";
        assert_eq!(
            wrapped(table, 20, "  "),
            "error: wrong\n  | a table that is wider than the terminal\n  and more"
        );
        assert_eq!(
            wrapped(text, 40, ""),
            "error: the recipe is wrong: there is no\nkey train.batchsize"
        );
    }
}
