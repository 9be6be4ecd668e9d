//! `nepa man`.
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap_mangen::Man;

use super::help::with_exit_codes;

/// Write the manual pages: one of nepa, and one of each command.
///
/// They say what --help says. Pages that are there already are replaced.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    after_long_help = with_exit_codes(
        EXAMPLES,
        "  0          all pages are written\n  1          they cannot be written"
    )
)]
pub(crate) struct Args {
    /// The folder; it is made where there is none.
    pub folder: PathBuf,
}

const EXAMPLES: &str = "Examples:
  nepa man ~/.local/share/man/man1 # then: man nepa-eval
  nepa man pages      # then: man -l pages/nepa-eval.1";

/// Runs the command for the command line `nepa`.
pub(crate) fn run(args: Args, nepa: clap::Command) -> anyhow::Result<ExitCode> {
    let folder = args.folder;
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let pages = pages(nepa);
    for (name, page) in &pages {
        let path = folder.join(name);
        std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{} pages in {}", pages.len(), folder.display());
    Ok(ExitCode::SUCCESS)
}

/// File names and texts of all pages.
fn pages(nepa: clap::Command) -> Vec<(String, Vec<u8>)> {
    // A page on `help` would say nothing.
    let mut nepa = nepa.disable_help_subcommand(true);
    nepa.build();
    let mut pages = Vec::new();
    let mut waiting = vec![nepa];
    while let Some(command) = waiting.pop() {
        let shown = command.get_subcommands().filter(|one| !one.is_hide_set());
        waiting.extend(shown.cloned());
        let source = concat!("nepa ", env!("CARGO_PKG_VERSION"));
        let man = Man::new(command.clone()).source(source);
        let page = page(&man, &command).expect("writing to memory");
        pages.push((man.get_filename(), page));
    }
    pages.sort();
    pages
}

/// A page, with the sections of the help that clap knows as one text: the library runs their lines
/// together.
fn page(man: &Man, command: &clap::Command) -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command
        .get_arguments()
        .any(|argument| !argument.is_hide_set())
    {
        man.render_options_section(&mut page)?;
    }
    if command.get_subcommands().any(|one| !one.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    let more = command.get_after_long_help().or(command.get_after_help());
    if let Some(text) = more {
        page.extend_from_slice(as_it_stands(&text.to_string()).as_bytes());
    }
    Ok(page)
}

/// Text in roff, line by line. What stands at the margin and ends in a colon is the title of a
/// section.
fn as_it_stands(text: &str) -> String {
    let mut roff = String::new();
    let mut block = Vec::new();
    let end_block = |roff: &mut String, block: &mut Vec<String>| {
        while block.last().is_some_and(String::is_empty) {
            block.pop();
        }
        if !block.is_empty() {
            let _ = write!(roff, ".nf\n{}\n.fi\n", block.join("\n"));
        }
        block.clear();
    };
    for line in text.lines() {
        let is_title = !line.starts_with(' ') && line.ends_with(':') && line.len() < 40;
        if is_title {
            end_block(&mut roff, &mut block);
            let title = line.trim_end_matches(':').to_uppercase();
            let _ = writeln!(roff, ".SH \"{}\"", escaped(&title));
        } else if !(block.is_empty() && line.is_empty()) {
            block.push(escaped(line.strip_prefix("  ").unwrap_or(line)));
        }
    }
    end_block(&mut roff, &mut block);
    roff
}

/// A line that roff prints as it is: no request, dashes and quotes that can be pasted.
fn escaped(line: &str) -> String {
    let mut safe = String::new();
    if line.starts_with(['.', '\'']) {
        safe.push_str("\\&");
    }
    for character in line.chars() {
        match character {
            '\\' => safe.push_str("\\e"),
            '-' => safe.push_str("\\-"),
            '\'' => safe.push_str("\\(aq"),
            '"' => safe.push_str("\\(dq"),
            '`' => safe.push_str("\\(ga"),
            '^' => safe.push_str("\\(ha"),
            '~' => safe.push_str("\\(ti"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_stay_as_they_are() {
        let text =
            "Examples:\n  nepa a --b 'c*' \\\n    --d\n\n  .hidden\n\nExit codes:\n  0   done";
        let expected = ".SH \"EXAMPLES\"\n.nf\nnepa a \\-\\-b \\(aqc*\\(aq \\e\n  \\-\\-d\n\n\\&.hidden\n.fi\n\
             .SH \"EXIT CODES\"\n.nf\n0   done\n.fi\n";
        assert_eq!(as_it_stands(text), expected);
    }
}
