//! What `nepa completions` and `nepa man` write is understood by shells and by roff.
use std::process::Command;

use nepa_tests::program::{assert_says, nepa, succeed, text};

fn is_there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output();
    found.is_ok_and(|output| output.status.success())
}

#[test]
fn bash_completes_commands_and_flags() {
    if !is_there("bash") {
        println!("SKIPPED: bash is not there");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("nepa.bash");
    let output = succeed(nepa().args(["completions", "bash"]));
    std::fs::write(&script, &output.stdout).unwrap();
    // As readline calls it: the words of the line, then program, current and previous word.
    let complete = |words: &[&str]| {
        let [.., previous, current] = words else {
            unreachable!("a program and a word at least")
        };
        let line = format!(
            "source '{}' && complete -p nepa && COMP_WORDS=({}) COMP_CWORD={} && \
             $(complete -p nepa | sed 's/.*-F \\([^ ]*\\).*/\\1/') nepa '{current}' '{previous}' && \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display(),
            words.join(" "),
            words.len() - 1,
        );
        text(&succeed(Command::new("bash").args(["-c", &line])))
    };
    assert_says(&complete(&["nepa", "pre"]), &["pretrain"]);
    assert_says(&complete(&["nepa", "inspect", "--gr"]), &["--grid"]);
}

#[test]
fn every_shell_gets_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = succeed(nepa().args(["completions", shell]));
        let script = text(&output);
        assert_says(&script, &["pretrain", "sample-data", "completions"]);
    }
}

#[test]
fn manual_pages_of_all_commands_are_sound() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    succeed(nepa().arg("man").arg(&pages));
    for name in ["nepa.1", "nepa-pretrain.1", "nepa-man.1"] {
        assert!(pages.join(name).is_file(), "{name}");
    }
    if !is_there("groff") {
        println!("SKIPPED: groff is not there to read the pages");
        return;
    }
    for page in std::fs::read_dir(&pages).unwrap() {
        let page = page.unwrap().path();
        let options = ["-man", "-Tascii", "-ww", "-rLL=100n", "-P-cbou"];
        let output = succeed(Command::new("groff").args(options).arg(&page));
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert_eq!(complaints, "", "{}", page.display());
        let shown = String::from_utf8_lossy(&output.stdout);
        if page.ends_with("nepa-man.1") {
            let examples = shown.lines().filter(|line| line.contains("then: man"));
            assert_eq!(
                examples.count(),
                2,
                "the examples are lines of their own:\n{shown}"
            );
        }
    }
}
