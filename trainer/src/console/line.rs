//! The line at the bottom of a terminal that is drawn over, where wanted with more below it, and the
//! fields that lines are made of. What else is written to the console while it stands (see
//! [`super::print`]) goes above it.
use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};

/// Columns of a bar, on a terminal that is wide.
const BAR: usize = 20;
/// Widest line where there is no terminal.
pub(crate) const WIDEST: usize = 120;

/// The line at the bottom of the terminal.
static BOTTOM: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Writes to the console while the bottom line is away.
pub(crate) fn undisturbed<T>(write: impl FnOnce() -> T) -> T {
    let bottom = BOTTOM.lock().unwrap_or_else(PoisonError::into_inner);
    match &*bottom {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// Columns of the terminal on standard error, or those of a line where there is none.
pub(crate) fn columns() -> usize {
    if !std::io::stderr().is_terminal() {
        return WIDEST;
    }
    let size = terminal_size::terminal_size_of(std::io::stderr());
    size.map_or(80, |(columns, _)| usize::from(columns.0).max(20))
}

/// The line at the bottom of a terminal, as long as this value lives.
#[derive(Debug)]
pub(crate) struct BottomLine {
    bar: ProgressBar,
    /// Characters of each line, and the terminal's columns, when it was drawn last.
    drawn: RefCell<(Vec<usize>, usize)>,
}

impl BottomLine {
    /// `None` where standard error is no terminal that can draw over a line.
    pub(crate) fn new() -> Option<Self> {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if dumb || !std::io::stderr().is_terminal() {
            return None;
        }
        let style = ProgressStyle::with_template("{msg}").expect("the template is sound");
        let bar = ProgressBar::new_spinner().with_style(style);
        *BOTTOM.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        let drawn = RefCell::new((Vec::new(), usize::MAX));
        Some(Self { bar, drawn })
    }

    /// Draws the line anew, with as many of `fields` as fit.
    pub(crate) fn set(&self, fields: &[Field]) {
        self.set_with(fields, &[]);
    }

    /// The same, with more lines below it, as much of each as fits.
    pub(crate) fn set_with(&self, fields: &[Field], below: &[String]) {
        let columns = columns();
        let mut drawn = self.drawn.borrow_mut();
        if columns < drawn.1 {
            // A terminal that has become narrower has broken lines into several.
            let broken = drawn.0.iter();
            let above = broken
                .map(|length| length.saturating_sub(1) / columns)
                .sum();
            self.bar.suspend(|| clear_above(above));
        }
        // The last column stays free: some terminals wrap there.
        let first = fit(fields, columns - 1);
        let below = below
            .iter()
            .map(|line| line.chars().take(columns - 1).collect());
        let lines = std::iter::once(first).chain(below).collect::<Vec<String>>();
        *drawn = (
            lines.iter().map(|line| line.chars().count()).collect(),
            columns,
        );
        self.bar.set_message(lines.join("\n"));
    }
}

impl Drop for BottomLine {
    fn drop(&mut self) {
        BOTTOM.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.bar.finish_and_clear();
    }
}

/// Clears so many lines above the cursor, and all below.
fn clear_above(lines: usize) {
    if lines > 0 {
        let _ = write!(std::io::stderr(), "\x1b[{lines}A\r\x1b[J");
    }
}

/// A part of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    /// Where not all fit, those of the highest rank are left out first.
    pub rank: u8,
    pub text: String,
}

impl Field {
    /// A field; `rank` 0 stays longest.
    pub(crate) fn new(rank: u8, text: impl Into<String>) -> Self {
        Self {
            rank,
            text: text.into(),
        }
    }
}

/// As many of `fields`, in their order, as fit into so many columns, two spaces apart.
pub(crate) fn fit(fields: &[Field], columns: usize) -> String {
    let mut ranks = fields.iter().map(|field| field.rank).collect::<Vec<_>>();
    ranks.sort_unstable();
    ranks.dedup();
    while let Some(most) = ranks.pop() {
        let kept = fields.iter().filter(|field| field.rank <= most);
        let line = kept
            .map(|field| &*field.text)
            .collect::<Vec<_>>()
            .join("  ");
        if line.chars().count() <= columns {
            return line;
        }
    }
    let least = fields.iter().min_by_key(|field| field.rank);
    least.map_or_else(String::new, |field| {
        field.text.chars().take(columns).collect()
    })
}

/// `[======>             ]` for a share of 1.
pub(crate) fn bar(share: f64) -> String {
    let full = (share.clamp(0.0, 1.0) * BAR as f64) as usize;
    let head = if full < BAR { ">" } else { "" };
    format!("[{:<BAR$}]", "=".repeat(full) + head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_keeps_what_matters_most() {
        let fields = [
            Field::new(1, "step 7/9"),
            Field::new(3, "[==>   ]"),
            Field::new(0, "loss -0.5"),
            Field::new(2, "ETA 3 s"),
        ];
        assert_eq!(fit(&fields, 40), "step 7/9  [==>   ]  loss -0.5  ETA 3 s");
        assert_eq!(fit(&fields, 37), "step 7/9  loss -0.5  ETA 3 s");
        assert_eq!(fit(&fields, 20), "step 7/9  loss -0.5");
        assert_eq!(fit(&fields, 9), "loss -0.5");
        assert_eq!(fit(&fields, 4), "loss");
    }

    #[test]
    fn a_bar_is_as_long_at_every_share() {
        assert_eq!(bar(0.0), "[>                   ]");
        assert_eq!(bar(0.5), "[==========>         ]");
        assert_eq!(bar(1.0), "[====================]");
        assert_eq!(bar(7.0), bar(1.0));
    }
}
