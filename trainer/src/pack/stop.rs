//! SIGTERM and Ctrl-C while packing: the shard in hand is given up, where that is quick, and the program ends.
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// A store that does not answer must not hold up the end.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Whether a signal came. The program ends soon after it in any case, with 128 and the signal's number.
#[derive(Debug, Clone)]
pub struct StopSignal(Arc<AtomicI32>);

impl StopSignal {
    /// Heeds the signals from now on.
    pub fn install() -> std::io::Result<Self> {
        let received = Arc::new(AtomicI32::new(0));
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        let told = Arc::clone(&received);
        let wait = move || {
            if let Some(signal) = signals.forever().next() {
                told.store(signal, Ordering::Relaxed);
                std::thread::sleep(PATIENCE);
                std::process::exit(128 + signal);
            }
        };
        let thread = std::thread::Builder::new().name("signals".to_owned());
        thread.spawn(wait).map(drop)?;
        Ok(Self(received))
    }

    /// The exit code that the signal asks for, if one came.
    pub fn exit_code(&self) -> Option<u8> {
        let signal = self.0.load(Ordering::Relaxed);
        (signal != 0).then_some(128 + signal as u8)
    }
}
