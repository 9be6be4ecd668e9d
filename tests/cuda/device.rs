//! Whether a device can be used: found out step by step, and told with what is missing.
use nepa_pipeline::{
    cuda::CudaError, cuda::check_device, cuda::find_device, cuda::libraries::Library,
};
use nepa_tests::standins;

#[track_caller]
fn says(error: &CudaError, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

#[test]
fn a_device_that_can_be_used_is_described() {
    let standins = standins::load(1);
    standins.set("memory", "2048");
    let facts = check_device(0).unwrap();
    assert_eq!(
        (
            facts.ordinal,
            facts.compute_capability,
            facts.driver_version
        ),
        (0, 90, 13_000)
    );
    assert_eq!(facts.memory_bytes, 2048 << 20);
    assert_eq!(facts.name, "stand-in for a GPU");
    for library in [
        Library::Driver,
        Library::Cublas,
        Library::Curand,
        Library::Nvjpeg,
        Library::Nccl,
    ] {
        assert_eq!(library.load_error(), None, "{}", library.name());
    }
}

#[test]
fn each_thing_that_is_missing_has_its_own_message() {
    let standins = standins::load(2);
    says(
        &check_device(3).unwrap_err(),
        &["cuda:3", "shows 1", "counted from 0"],
    );
    let with = |name: &str, value: &str| {
        standins.restart(2);
        standins.set(name, value);
        check_device(0).unwrap_err()
    };
    says(
        &with("driver", "12080"),
        &["CUDA 12.8", "CUDA 13.0", "update the driver"],
    );
    says(&with("devices", "0"), &["it counts 0", "nvidia-smi"]);
    says(
        &with("capability", "100"),
        &[
            "stand-in for a GPU has compute capability 10.0",
            "compiled for 9.0 alone",
            "CUDA_COMPUTE_CAP=100 make cuda",
        ],
    );
    says(&with("capability", "80"), &["8.0", "CUDA_COMPUTE_CAP=80"]);
    says(&with("fault", "cuInit:100:all"), &["cuInit", "--gpus all"]);
    // NVIDIA's library to link against, in place of the driver's.
    says(
        &with("fault", "cuInit:34:all"),
        &["Install the driver", "--gpus all"],
    );
    for (function, what) in [
        ("cuDriverGetVersion", "say its version"),
        ("cuDeviceGetCount", "count its devices"),
        ("cuDeviceGet", "give a handle"),
        ("cuDeviceGetAttribute", "compute capability"),
        ("cuDeviceTotalMem_v2", "how much memory"),
        ("cuDeviceGetName", "the device's name"),
    ] {
        let error = with("fault", &format!("{function}:999:all"));
        says(&error, &["the CUDA driver failed to", what]);
    }
}

/// Of machine code for 80 and 90, and of text that the driver compiles for newer devices.
#[test]
fn a_loader_runs_on_more_devices_than_a_model() {
    let standins = standins::load(3);
    for capability in ["80", "86", "90", "100"] {
        standins.set("capability", capability);
        find_device(0).unwrap();
        assert_eq!(check_device(0).is_ok(), capability == "90", "{capability}");
    }
    standins.set("capability", "75");
    says(&find_device(0).unwrap_err(), &["7.5", "8.0 or newer"]);
    standins.unset("capability");
    says(&find_device(3).unwrap_err(), &["cuda:3", "shows 1"]);
}
