//! SIGTERM, SIGUSR1 and Ctrl-C, the same for all commands. A command ends at once with 143, 138 or
//! 130, wherever it is or waits, after what it has registered with [`on_end`] (temporary folders,
//! the claim on an output). Who has something to bring to an end holds a [`SaveFirst`]: then the
//! first signal is a wish, see [`received`], and the second ends at once.
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

/// Most time for what is done before the end.
const END_WITHIN: Duration = Duration::from_millis(1_500);

type Task = Box<dyn FnOnce() + Send>;

/// What is done before a signal ends the program, by number.
static TASKS: Mutex<Vec<(u64, Task)>> = Mutex::new(Vec::new());
static NEXT_TASK: AtomicU64 = AtomicU64::new(0);
/// The first signal that came while a run could save.
static RECEIVED: AtomicUsize = AtomicUsize::new(0);
static SAVES_FIRST: Mutex<Option<SaveFirst>> = Mutex::new(None);

/// Begins to listen; called once, before anything else.
pub(crate) fn listen() -> std::io::Result<()> {
    static STARTED: OnceLock<()> = OnceLock::new();
    if STARTED.set(()).is_err() {
        return Ok(());
    }
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1])?;
    std::thread::Builder::new()
        .name("nepa-signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                let is_first = RECEIVED.swap(signal as usize, SeqCst) == 0;
                let Some(first) = saves_first().filter(|_| is_first) else {
                    end(128 + signal)
                };
                let name = match signal {
                    SIGTERM => "SIGTERM",
                    SIGUSR1 => "SIGUSR1",
                    _ => "Ctrl-C",
                };
                eprintln!("{name}: {}; a second one ends at once", first.says);
                if let Some(most) = first.most {
                    end_after(most, 128 + signal);
                }
            }
        })
        .map(drop)
}

/// What a first signal means while a [`Saving`] lives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SaveFirst {
    /// What is done first, for the line that says that the signal was heard.
    pub says: &'static str,
    /// The program ends after so long, even if that is not done.
    pub most: Option<Duration>,
}

/// While it lives, the first signal does not end the program.
#[derive(Debug)]
pub(crate) struct Saving(());

impl SaveFirst {
    /// From now on.
    pub(crate) fn begin(self) -> Saving {
        set_saves_first(Some(self));
        Saving(())
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        set_saves_first(None);
    }
}

fn saves_first() -> Option<SaveFirst> {
    *SAVES_FIRST.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set_saves_first(first: Option<SaveFirst>) {
    *SAVES_FIRST.lock().unwrap_or_else(PoisonError::into_inner) = first;
}

/// The signal that asks to stop, if one does.
pub(crate) fn received() -> Option<i32> {
    Some(RECEIVED.load(SeqCst) as i32).filter(|signal| *signal != 0)
}

/// Ends the program with this code after `most`, whatever else it is still doing or waiting for: a
/// store that hangs, a lookup of a name. Meanwhile it may end by itself.
pub(crate) fn end_after(most: Duration, code: i32) {
    // Without a thread it ends when all is put away.
    let _ = std::thread::Builder::new().spawn(move || {
        std::thread::sleep(most);
        end(code)
    });
}

/// Does what is registered, within its time, and ends the program.
fn end(code: i32) -> ! {
    let tasks = std::mem::take(&mut *tasks());
    let (done, all_done) = mpsc::channel();
    let started = std::thread::Builder::new().spawn(move || {
        for (_, task) in tasks {
            task();
        }
        let _ = done.send(());
    });
    if started.is_ok() {
        let _ = all_done.recv_timeout(END_WITHIN);
    }
    low_level::exit(code)
}

fn tasks() -> MutexGuard<'static, Vec<(u64, Task)>> {
    TASKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something that is done before a signal ends the program, until this is dropped.
#[derive(Debug)]
pub(crate) struct OnEnd(u64);

/// Has `task` done before a signal ends the program. It has to be short.
pub(crate) fn on_end(task: impl FnOnce() + Send + 'static) -> OnEnd {
    let number = NEXT_TASK.fetch_add(1, SeqCst);
    tasks().push((number, Box::new(task)));
    OnEnd(number)
}

impl Drop for OnEnd {
    fn drop(&mut self) {
        tasks().retain(|(number, _)| *number != self.0);
    }
}
