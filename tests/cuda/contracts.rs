//! The stand-ins notice what a driver would not forgive: each mistake ends the program with its name, or is answered as the driver answers it.
#![expect(
    unsafe_code,
    reason = "mistakes of the kind that the driver's C interface allows"
)]
use std::ffi::{CStr, c_void};
use std::process::Command;
use std::sync::Arc;

use nepa_pipeline::{
    cuda::cudarc::driver::CudaContext, cuda::cudarc::driver::CudaStream,
    cuda::cudarc::driver::result, cuda::cudarc::driver::sys,
};
use nepa_tests::standins;

/// Which mistake this process is to make.
const MISTAKE: &str = "NEPA_MISTAKE";

fn stream() -> Arc<CudaStream> {
    CudaContext::new(0).unwrap().new_stream().unwrap()
}

/// What is said of a mistake, and the mistake.
type Mistake = (&'static str, fn(&CudaStream));

const MISTAKES: [Mistake; 6] = [
    ("are in no allocation of device memory", |stream| {
        // SAFETY: none; the copy is longer than the memory.
        unsafe {
            let memory = result::malloc_sync(256).unwrap();
            result::memcpy_htod_async(memory, &[0u8; 257], stream.cu_stream()).unwrap();
        }
    }),
    ("page-locked memory was rewritten", |stream| {
        // SAFETY: none; what is copied is rewritten before the copy is waited for.
        unsafe {
            let memory = result::malloc_sync(256).unwrap();
            let pinned = result::malloc_host(256, 0).unwrap().cast::<u8>();
            pinned.write_bytes(1, 256);
            let bytes = std::slice::from_raw_parts(pinned, 256);
            result::memcpy_htod_async(memory, bytes, stream.cu_stream()).unwrap();
            pinned.write_bytes(2, 256);
        }
        stream.synchronize().unwrap();
    }),
    ("is freed already", |_| {
        // SAFETY: none; freed twice.
        unsafe {
            let memory = result::malloc_sync(256).unwrap();
            result::free_sync(memory).unwrap();
            result::free_sync(memory).unwrap();
        }
    }),
    ("something was written beside it", |_| {
        // SAFETY: none; device memory of the stand-in is the host's, and one byte too many is written.
        unsafe {
            let memory = result::malloc_sync(250).unwrap();
            (memory as *mut u8).add(250).write(0);
            result::free_sync(memory).unwrap();
        }
    }),
    ("an event that was never made or is destroyed", |stream| {
        // SAFETY: none; recorded after its end.
        unsafe {
            let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).unwrap();
            result::event::destroy(event).unwrap();
            result::event::record(event, stream.cu_stream()).unwrap();
        }
    }),
    ("a stream that was never made or is destroyed", |_| {
        // SAFETY: none; no stream at all.
        unsafe { result::stream::synchronize(16 as sys::CUstream).unwrap() }
    }),
];

#[test]
fn mistakes_end_the_program_with_their_names() {
    if let Ok(mistake) = std::env::var(MISTAKE) {
        let standins = standins::load(1);
        standins.set("schedule", "late");
        MISTAKES[mistake.parse::<usize>().unwrap()].1(&stream());
        return;
    }
    for (number, (name, _)) in MISTAKES.iter().enumerate() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "contracts::mistakes_end_the_program_with_their_names",
                "--exact",
                "--nocapture",
            ])
            .env(MISTAKE, number.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{name}: {said}");
        assert!(
            said.contains("stand-in violation") && said.contains(name),
            "{said}"
        );
    }
}

/// A module with the names of two kernels that the shim has.
const PTX: &CStr = c".version 8.0\n.target sm_80\n.visible .entry add_partials(\n)\n{\n}\n.visible .entry copy_to_bf16(\n)\n{\n}\n";

#[test]
fn what_the_driver_refuses_is_refused() {
    let standins = standins::load(2);
    let stream = stream();
    let status = |result: Result<(), result::DriverError>| result.map_err(|error| error.0 as u32);
    // SAFETY: the image ends in a zero byte; the kernel's argument is never read, as each launch is refused.
    unsafe {
        let load = || result::module::load_data(PTX.as_ptr().cast());
        let module = load().unwrap();
        let missing = result::module::get_function(module, c"column_sums".to_owned());
        assert_eq!(status(missing.map(drop)), Err(500));
        let kernel = result::module::get_function(module, c"add_partials".to_owned()).unwrap();
        let mut argument = [0u64; 8];
        let mut launch = |grid, block, shared_bytes| {
            let arguments: &mut [*mut c_void] = &mut [argument.as_mut_ptr().cast()];
            status(result::launch_kernel(
                kernel,
                grid,
                block,
                shared_bytes,
                stream.cu_stream(),
                arguments,
            ))
        };
        assert_eq!(launch((0, 1, 1), (32, 1, 1), 0), Err(1), "an empty grid");
        assert_eq!(launch((1, 70_000, 1), (32, 1, 1), 0), Err(1), "a high grid");
        assert_eq!(launch((1, 1, 1), (2048, 1, 1), 0), Err(1), "a large block");
        assert_eq!(launch((1, 1, 1), (32, 1, 1), 48 << 10), Ok(()), "48 KiB");
        assert_eq!(
            launch((1, 1, 1), (32, 1, 1), (48 << 10) + 1),
            Err(1),
            "more"
        );
        standins.set("capability", "75");
        assert_eq!(status(load().map(drop)), Err(209), "an older device");
        standins.unset("capability");
    }
    // A thread that nobody gave the context.
    let alone = std::thread::spawn(|| {
        // SAFETY: the length is not 0.
        unsafe { result::malloc_sync(256) }.map_err(|error| error.0 as u32)
    });
    assert_eq!(alone.join().unwrap().map(drop), Err(201));
}
