//! NVIDIA's libraries played by the CPU, so that everything written for CUDA runs without a GPU. `tests/standins/*.cpp`, built by build.rs.
//!
//! [`load`] puts them before the real ones in this process; [`on_standins`] in another. `standins/standin.h` says what can be set.
#![expect(unsafe_code, reason = "the stand-ins are C++ libraries")]
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// The driver first: the others are linked with it.
const LIBRARIES: [&str; 6] = [
    "libcuda.so.1",
    "libcublasLt.so.13",
    "libcublas.so.13",
    "libcurand.so.10",
    "libnvjpeg.so.13",
    "libnccl.so.2",
];

/// Where the libraries lie.
pub fn folder() -> &'static Path {
    Path::new(env!("NEPA_STANDINS"))
}

/// Lets a program find the stand-ins where it looks for NVIDIA's libraries. `settings` are those of `standin.h`, "name=value,name=value".
pub fn on_standins<'a>(command: &'a mut Command, settings: &str) -> &'a mut Command {
    command
        .env("LD_LIBRARY_PATH", folder())
        .env("NEPA_STANDIN", settings)
}

/// The stand-ins in this process, for one test at a time. When it is dropped, all settings are as they were at the start.
#[derive(Debug)]
pub struct Standins {
    driver: &'static Driver,
    _one_at_a_time: MutexGuard<'static, ()>,
}

/// What the driver's stand-in exports beside NVIDIA's functions.
#[derive(Debug)]
struct Driver {
    set: unsafe extern "C" fn(*const c_char, *const c_char),
    count: unsafe extern "C" fn(*const c_char) -> u64,
    reset: unsafe extern "C" fn(u64),
}

unsafe extern "C" {
    fn dlopen(file: *const c_char, mode: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

/// Loads the libraries, once, and starts their random order from `seed`. Waits until no other test uses them.
///
/// # Panics
///
/// If they cannot be opened.
pub fn load(seed: u64) -> Standins {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed has left nothing that the next one needs.
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let standins = Standins {
        driver: DRIVER.get_or_init(open),
        _one_at_a_time: turn,
    };
    println!("stand-ins: seed {seed}");
    // SAFETY: takes a number, and may be called at any time.
    unsafe { (standins.driver.reset)(seed) };
    standins
}

fn open() -> Driver {
    const NOW: c_int = 2;
    const GLOBAL: c_int = 0x100;
    let libraries = LIBRARIES.map(|name| {
        let path = CString::new(folder().join(name).into_os_string().into_encoded_bytes());
        let path = path.expect("a path without a zero byte");
        // SAFETY: a path that ends in a zero byte; the libraries' initialisers only fill tables. A library that is already there by its
        // name is what `dlopen` of that name answers from now on.
        unsafe {
            let library = dlopen(path.as_ptr(), NOW | GLOBAL);
            assert!(
                !library.is_null(),
                "{}",
                CStr::from_ptr(dlerror()).to_string_lossy()
            );
            library
        }
    });
    // SAFETY: these are functions of the driver's stand-in, with the types that standin.h gives them.
    unsafe {
        let find = |name: &CStr| {
            let found = dlsym(libraries[0], name.as_ptr());
            assert!(!found.is_null(), "{name:?} is not in the driver's stand-in");
            found
        };
        Driver {
            set: std::mem::transmute::<
                *mut c_void,
                unsafe extern "C" fn(*const c_char, *const c_char),
            >(find(c"standin_set")),
            count: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_char) -> u64>(
                find(c"standin_count"),
            ),
            reset: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(u64)>(find(
                c"standin_reset",
            )),
        }
    }
}

fn text(value: &str) -> CString {
    CString::new(value).expect("a setting without a zero byte")
}

impl Standins {
    /// Changes a setting.
    pub fn set(&self, name: &str, value: &str) {
        // SAFETY: both are copied.
        unsafe { (self.driver.set)(text(name).as_ptr(), text(value).as_ptr()) }
    }

    /// Takes a setting back.
    pub fn unset(&self, name: &str) {
        // SAFETY: as above; null takes it back.
        unsafe { (self.driver.set)(text(name).as_ptr(), std::ptr::null()) }
    }

    /// Calls of a function of NVIDIA's since the stand-ins were loaded for this test, or another count of theirs.
    pub fn count(&self, name: &str) -> u64 {
        // SAFETY: the name is only read.
        unsafe { (self.driver.count)(text(name).as_ptr()) }
    }

    /// Forgets counts and settings and starts the random order anew.
    pub fn restart(&self, seed: u64) {
        // SAFETY: as in `load`.
        unsafe { (self.driver.reset)(seed) }
    }
}

impl Drop for Standins {
    fn drop(&mut self) {
        self.restart(0);
    }
}
