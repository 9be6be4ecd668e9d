//! What the program says on standard output and error, where whoever reads may go (`nepa inspect X | head`).
//!
//! The macros here stand before those of the standard library in all of this crate, which panic then. A command that does nothing but say ends like any Unix
//! tool; one that does something is not ended in the midst of it, and says no more.
use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use nepa_pipeline::store::redact;
use signal_hook::consts::SIGPIPE;

static ENDS_WITH_READER: AtomicBool = AtomicBool::new(false);

/// From now on the program ends once nobody reads its standard output. For commands that do nothing else.
pub fn end_with_reader() {
    ENDS_WITH_READER.store(true, Ordering::Relaxed);
}

/// Writes to standard output, without secrets.
pub fn out(text: Arguments) {
    let text = redact(&text.to_string());
    let Err(error) = std::io::stdout().lock().write_all(text.as_bytes()) else {
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
pub fn err(text: Arguments) {
    let text = redact(&text.to_string());
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// As in the standard library, but without a panic.
macro_rules! print {
    ($($argument:tt)*) => {
        $crate::print::out(format_args!($($argument)*))
    };
}

/// As in the standard library, but without a panic.
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::print::out(format_args!("{}\n", format_args!($($argument)*)))
    };
}

/// As in the standard library, but without a panic.
macro_rules! eprintln {
    ($($argument:tt)*) => {
        $crate::print::err(format_args!("{}\n", format_args!($($argument)*)))
    };
}
