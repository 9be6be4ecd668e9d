//! How messages to people are put together: similar words, paths that can be pasted into a shell,
//! lists that fit on a screen, and an error with its causes, each said once.
use std::path::Path;

/// Columns of a list in a message.
const COLUMNS: usize = 78;
/// How alike a word must be to be proposed, from 0 to 1.
const ALIKE: f64 = 0.8;

/// The known word that was probably meant.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(&word, known), known))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, known)| known)
}

/// As a shell takes it: in single quotes where it holds anything that a shell reads otherwise.
pub(crate) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// A path as a shell takes it.
pub(crate) fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// Words separated by commas, on lines of at most 78 columns that begin with `indent` spaces; the
/// first line begins with `title`.
pub(crate) fn listed<'a>(
    title: &str,
    words: impl IntoIterator<Item = &'a str>,
    indent: usize,
) -> String {
    let mut text = String::new();
    let mut line = format!("{:indent$}{title}", "");
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        let comma = if words.peek().is_some() { "," } else { "" };
        if line.len() + 1 + word.len() + comma.len() > COLUMNS && line.trim().len() > title.len() {
            text.push_str(&line);
            text.push('\n');
            line = format!("{:1$}", "", indent.saturating_sub(1));
        }
        line.push(' ');
        line.push_str(word);
        line.push_str(comma);
    }
    text + &line
}

/// An error with its causes, for [`super::print::message`]. What a message has said already is not
/// said again by its cause, as some of them show theirs. What to do (lines that begin with `tip:`,
/// and those behind them) comes last.
pub(crate) fn with_causes(error: &anyhow::Error) -> String {
    all_of(error.chain())
}

/// The same of an error that is needed further.
pub(crate) fn all_causes(error: &(dyn std::error::Error + 'static)) -> String {
    all_of(anyhow::Chain::new(error))
}

fn all_of(chain: anyhow::Chain<'_>) -> String {
    let mut said: Vec<String> = Vec::new();
    let mut tips = String::new();
    for cause in chain {
        let text = cause.to_string();
        let (text, tip) = match text.find("\ntip:") {
            Some(at) => text.split_at(at),
            None => (text.as_str(), ""),
        };
        let text = text.trim_end();
        if !tips.contains(tip) {
            tips.push_str(tip);
        }
        if !said.iter().any(|before| before.contains(text)) {
            said.push(text.to_owned());
        }
    }
    said.join(": ") + &tips
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_probably_meant() {
        let keys = ["batch", "micro_batch", "steps", "epochs"];
        assert_eq!(nearest("batchsize", keys), Some("batch"));
        assert_eq!(nearest("epoch", keys), Some("epochs"));
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(nearest("fp16", ["f32", "bf16"]), Some("bf16"));
    }

    #[test]
    fn what_a_shell_reads_otherwise_is_quoted() {
        assert_eq!(
            quoted("s3://bucket/a_b-c.parquet"),
            "s3://bucket/a_b-c.parquet"
        );
        assert_eq!(quoted("train-*.parquet"), "'train-*.parquet'");
        assert_eq!(quoted("my data"), "'my data'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn lists_fit_on_a_screen() {
        let words = ["optimizer"; 20];
        let text = listed("known keys:", words, 2);
        assert!(text.lines().count() == 4, "{text}");
        assert!(
            text.lines()
                .all(|line| line.len() <= COLUMNS && line.starts_with("  "))
        );
        assert!(text.starts_with("  known keys: optimizer, "), "{text}");
    }

    #[test]
    fn a_cause_is_said_once_and_what_to_do_last() {
        let cause = || anyhow::anyhow!("No such file (os error 2)");
        let error = cause().context("cannot read x: No such file (os error 2)");
        assert_eq!(
            with_causes(&error),
            "cannot read x: No such file (os error 2)"
        );
        let error = cause().context("cannot read x\ntip: give another");
        assert_eq!(
            with_causes(&error),
            "cannot read x: No such file (os error 2)\ntip: give another"
        );
    }
}
