//! Starts the ranks of one machine and waits for them: one that fails ends all, a signal is passed
//! on, and what ranks other than 0 say is told with their names.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use signal_hook::consts::SIGTERM;

use super::obey::LAUNCHED;
use crate::console::print;
use crate::signals::{SaveFirst, on_end, received};

/// Ranks learn from each other that one has failed, and end by themselves within so long.
const ENDS_ALONE: Duration = Duration::from_secs(3);
/// Then they are asked to, and have so long to save; a store is given checkpoint.stop_s of it.
const GRACE: Duration = Duration::from_mins(1);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Pairs of ports that are tried.
const TRIES: usize = 64;
/// What others who start ranks have said to this process, and not to its children.
const OF_OTHERS: [&str; 5] = [
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "TORCHELASTIC_RUN_ID",
];

/// The ranks cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("cannot find two ports in a row that are free, for the ranks to meet at")]
    Port(#[source] std::io::Error),
    #[error("cannot start rank {rank}")]
    Start { rank: usize, source: std::io::Error },
}

/// The processes, by their ranks.
#[derive(Clone, Default)]
struct Children(Arc<Mutex<Vec<Child>>>);

impl Children {
    fn all(&self) -> MutexGuard<'_, Vec<Child>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kill(&self) {
        for child in self.all().iter_mut() {
            let _ = child.kill();
        }
    }

    /// Has a signal come to each.
    fn signal(&self, signal: i32) {
        for child in self.all().iter_mut() {
            if let Some(stdin) = &mut child.stdin {
                let _ = stdin.write_all(&[signal as u8]);
            }
        }
    }
}

/// Runs `nepa ARGUMENTS` as so many ranks on this machine; the exit code is 0, or that of the first
/// that failed.
pub(crate) fn launch(ranks: usize, arguments: &[String]) -> Result<u8, LaunchError> {
    let _passes_on = SaveFirst {
        says: "passed on to all ranks",
        most: None,
    }
    .begin();
    let children = Children::default();
    let _on_end = {
        let children = children.clone();
        on_end(move || children.kill())
    };
    let port = free_port().map_err(LaunchError::Port)?;
    let mut tellers = Vec::new();
    for rank in 0..ranks {
        let started = start(rank, ranks, port, arguments, &mut tellers);
        match started {
            Ok(child) => children.all().push(child),
            Err(source) => {
                children.kill();
                return Err(LaunchError::Start { rank, source });
            }
        }
    }
    let code = wait(&children);
    for teller in tellers {
        let _ = teller.join();
    }
    Ok(code)
}

/// Waits until all have ended.
fn wait(children: &Children) -> u8 {
    let mut ended: Vec<Option<ExitStatus>> = children.all().iter().map(|_| None).collect();
    let (mut code, mut passed) = (0, false);
    let (mut ask_at, mut kill_at) = (None::<Instant>, None::<Instant>);
    while ended.iter().any(Option::is_none) {
        std::thread::sleep(LOOK_EVERY);
        if let Some(signal) = received().filter(|_| !passed) {
            passed = true;
            children.signal(signal);
        }
        let mut failed: Option<(usize, ExitStatus)> = None;
        for (rank, child) in children.all().iter_mut().enumerate() {
            if ended[rank].is_some() {
                continue;
            }
            let Ok(Some(status)) = child.try_wait() else {
                continue;
            };
            ended[rank] = Some(status);
            // Of two that are seen together, the one that was killed is the reason of the other.
            let is_reason = failed.is_some() && status.signal().is_some();
            if !status.success() && (code == 0 || is_reason) {
                code = code_of(status);
                failed = Some((rank, status));
            }
        }
        // After a signal to all it is no failure that they end.
        if let Some((rank, status)) = failed.filter(|_| !passed) {
            ask_at = Some(Instant::now() + ENDS_ALONE);
            print::urgent(format_args!("rank {rank} {}\n", what_became(status)));
        }
        if ask_at.is_some_and(|at| Instant::now() >= at) {
            ask_at = None;
            kill_at = Some(Instant::now() + GRACE);
            // A second signal would be too much.
            if !std::mem::replace(&mut passed, true) {
                children.signal(SIGTERM);
            }
        }
        if kill_at.is_some_and(|at| Instant::now() >= at) {
            kill_at = None;
            print::urgent(format_args!(
                "ranks that have not ended after {} s are killed\n",
                GRACE.as_secs()
            ));
            children.kill();
        }
    }
    code
}

fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.map_or(1, |code| code as u8)
}

fn what_became(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("has ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "has ended".to_owned(),
    }
}

fn start(
    rank: usize,
    ranks: usize,
    port: u16,
    arguments: &[String],
    tellers: &mut Vec<JoinHandle<()>>,
) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    for name in OF_OTHERS {
        command.env_remove(name);
    }
    command
        .args(arguments)
        .env("RANK", rank.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("WORLD_SIZE", ranks.to_string())
        .env("LOCAL_WORLD_SIZE", ranks.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .env(LAUNCHED, "1")
        .stdin(Stdio::piped())
        // A terminal's Ctrl-C reaches this process alone, which passes it on.
        .process_group(0);
    if rank > 0 {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let mut child = command.spawn()?;
    if let Some(stdout) = child.stdout.take() {
        tellers.push(tell(rank, stdout)?);
    }
    if let Some(stderr) = child.stderr.take() {
        tellers.push(tell(rank, stderr)?);
    }
    Ok(child)
}

/// Passes lines on, each with the rank's name, where it does not begin with it.
fn tell(rank: usize, from: impl Read + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    let pass_on = move || {
        let name = format!("rank {rank}: ");
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            let line = line.strip_prefix(&name).unwrap_or(&line);
            print::urgent(format_args!("{name}{line}\n"));
        }
    };
    std::thread::Builder::new().spawn(pass_on)
}

/// A port that is free, as is the next one, where the ranks will meet.
fn free_port() -> std::io::Result<u16> {
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrInUse);
    for _ in 0..TRIES {
        let first = TcpListener::bind(("127.0.0.1", 0))?;
        let port = first.local_addr()?.port();
        let Some(next) = port.checked_add(1) else {
            continue;
        };
        match TcpListener::bind(("127.0.0.1", next)) {
            Ok(_) => return Ok(port),
            Err(error) => last = error,
        }
    }
    Err(last)
}
