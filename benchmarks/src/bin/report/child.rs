//! Processes with a time limit, and their ends. Which they are, the reports say; what becomes of
//! their rows, `sheet` says.
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use signal_hook::consts::{SIGINT, SIGTERM};

const TICK: Duration = Duration::from_millis(20);
/// From the request to end to the kill.
const GRACE: Duration = Duration::from_secs(2);

static STOPPED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on, Ctrl-C and SIGTERM end what runs here, and then this program.
pub(crate) fn heed_signals() -> anyhow::Result<()> {
    let flag = STOPPED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(flag))?;
    }
    Ok(())
}

/// Whether a signal asked this program to end.
pub(crate) fn stopped() -> bool {
    STOPPED
        .get()
        .is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// How a process ended.
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    /// It, or what it had started, did not end by its limit.
    pub(crate) overran: bool,
    pub(crate) took: Duration,
}

/// Runs a command, gives each of its lines away as it comes, and ends it and what it started at the
/// limit. Its stderr goes to `log`.
pub(crate) fn run(
    command: &mut Command,
    limit: Duration,
    log: File,
    mut on_line: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<End> {
    let program = command.get_program().to_owned();
    let (started, mut ending) = (Instant::now(), None);
    // In a group of its own, so that its workers can be ended with it.
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let output = child.stdout.take().context("no pipe from a process")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let status = loop {
        match lines.recv_timeout(TICK) {
            Ok(line) => on_line(&line)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => match child.try_wait()? {
                Some(status) => break status,
                None => std::thread::sleep(TICK),
            },
        }
        match ending {
            None if started.elapsed() >= limit || stopped() => {
                signal(child.id(), "TERM");
                ending = Some((Instant::now(), "KILL"));
            }
            Some((since, "KILL")) if since.elapsed() >= GRACE => {
                signal(child.id(), "KILL");
                ending = Some((Instant::now(), "none"));
            }
            // Something that left the group holds the pipe.
            Some((since, "none")) if since.elapsed() >= GRACE => break child.wait()?,
            _ => {}
        }
    };
    if stopped() {
        bail!("stopped by a signal");
    }
    Ok(End {
        status,
        overran: ending.is_some(),
        took: started.elapsed(),
    })
}

fn signal(group: u32, name: &str) {
    // The shell's own, as a machine may lack the program `kill`; a group that is gone is no error.
    let _ = Command::new("sh")
        .args(["-c", "kill -s \"$1\" -- \"-$0\" 2>/dev/null"])
        .args([&group.to_string(), name])
        .status();
}

/// What a short command prints, without spaces at its ends.
pub(crate) fn text_of(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = said.trim().lines().last().unwrap_or_default();
        bail!("{} ended with {}: {last}", program.display(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A command with arguments that hold no spaces; others are added by the caller.
pub(crate) fn command(program: impl AsRef<OsStr>, arguments: &str) -> Command {
    let mut command = Command::new(program);
    command.args(arguments.split_whitespace());
    command
}

/// Where a program of this name lies, if it is installed.
pub(crate) fn installed(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_shell(script: &str, limit: Duration) -> (End, Vec<String>) {
        let mut lines = Vec::new();
        let log = tempfile::tempfile().unwrap();
        let mut command = command("sh", "-c");
        let end = run(command.arg(script), limit, log, |line| {
            lines.push(line.to_owned());
            Ok(())
        });
        (end.unwrap(), lines)
    }

    #[test]
    fn lines_come_and_a_code_is_kept() {
        let (end, lines) = run_shell("echo a; echo b; exit 3", Duration::from_mins(1));
        assert_eq!((end.status.code(), end.overran), (Some(3), false));
        assert_eq!(lines, ["a", "b"]);
    }

    #[test]
    fn a_limit_ends_what_a_process_started() {
        let (end, lines) = run_shell("echo a; sleep 60 & exit 0", Duration::from_millis(200));
        assert!(end.overran && end.took < Duration::from_secs(20));
        assert_eq!(lines, ["a"]);
    }

    #[test]
    fn a_process_that_does_not_heed_is_killed() {
        let script = "trap '' TERM; while :; do sleep 1; done";
        let (end, _) = run_shell(script, Duration::from_millis(200));
        assert!(end.overran && !end.status.success() && end.took < Duration::from_secs(20));
    }
}
