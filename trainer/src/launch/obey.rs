//! A rank's side: signals come from `nepa launch` through standard input, as a terminal's would
//! reach it twice. Where the other end is gone, the rank stops, too.
use std::io::Read;

use signal_hook::consts::SIGTERM;
use signal_hook::low_level::raise;

/// Set for a process whose standard input is this.
pub(super) const LAUNCHED: &str = "NEPA_LAUNCHED";

/// Whether `nepa launch` has started this process.
pub(crate) fn is_launched() -> bool {
    std::env::var_os(LAUNCHED).is_some()
}

/// Begins to listen, where this process was started by `nepa launch`.
pub(crate) fn obey() {
    if !is_launched() {
        return;
    }
    let listen = || {
        let mut signal = [0];
        while let Ok(1) = std::io::stdin().read(&mut signal) {
            let _ = raise(i32::from(signal[0]));
        }
        let _ = raise(SIGTERM);
    };
    // Without a thread a rank goes on until it is done.
    let _ = std::thread::Builder::new()
        .name("nepa-obey".to_owned())
        .spawn(listen);
}
