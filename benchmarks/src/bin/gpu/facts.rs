//! Device, driver, the files of the libraries that were opened, and JPEG engines.
use anyhow::{Context, ensure};
use nepa_benchmarks::device_report::{LIBRARIES, opened_libraries, print_verdict};
use nepa_pipeline::{
    cuda::Chroma, cuda::DeviceFacts, cuda::check_device, cuda::cudarc::driver::CudaContext,
    cuda::libraries, cuda::nvjpeg,
};
use nepa_trainer::device::peak_tflops;

fn device(facts: &DeviceFacts) -> String {
    let peak = peak_tflops(&facts.name).map_or_else(
        || "peak of bf16 products not known".to_owned(),
        |peak| format!("{peak:.0} TFLOP/s of bf16 products at most"),
    );
    format!(
        "{}, compute capability {}.{}, {:.1} GiB, {peak}",
        facts.name,
        facts.compute_capability / 10,
        facts.compute_capability % 10,
        facts.memory_bytes as f64 / f64::from(1 << 30),
    )
}

fn driver(facts: &DeviceFacts) -> String {
    let module = std::fs::read_to_string("/proc/driver/nvidia/version");
    let module = module.as_deref().ok().and_then(|text| text.lines().next());
    format!(
        "for CUDA {}.{}; {}",
        facts.driver_version / 1000,
        facts.driver_version % 1000 / 10,
        module.unwrap_or("no /proc/driver/nvidia/version")
    )
}

fn nvjpeg_version() -> anyhow::Result<String> {
    if let Some(tried) = libraries::Library::Nvjpeg.load_error() {
        anyhow::bail!("not opened: {tried}");
    }
    let (major, minor, patch) = nvjpeg::Library::version().context("it does not say")?;
    Ok(format!("{major}.{minor}.{patch}"))
}

fn engines(context: &std::sync::Arc<CudaContext>) -> anyhow::Result<String> {
    let library = nvjpeg::Library::new(context, nvjpeg::Backend::Hardware, Chroma::default())?;
    let (engines, cores) = library.hardware()?;
    ensure!(engines > 0, "nvJPEG counts none");
    Ok(format!("{engines} engines x {cores} cores"))
}

pub(crate) fn print() -> anyhow::Result<bool> {
    let facts = check_device(0)?;
    let context = CudaContext::new(0)?;
    let mut passed = print_verdict("device", &Ok(device(&facts)));
    print_verdict("driver", &Ok(driver(&facts)));
    passed &= print_verdict("nvJPEG", &nvjpeg_version());
    passed &= print_verdict("JPEG engines", &engines(&context));
    // After the engines were asked for: for them nvJPEG opens libnvcuvid.
    let maps = std::fs::read_to_string("/proc/self/maps").context("reading /proc/self/maps")?;
    let opened = opened_libraries(&maps);
    for library in LIBRARIES {
        let path = opened.get(library).map_or("not opened", String::as_str);
        print_verdict(library, &Ok(path.to_owned()));
    }
    Ok(passed)
}
