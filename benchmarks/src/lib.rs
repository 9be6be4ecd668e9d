//! What the benchmarks share: processor time, memory, allocations and page faults, medians, and a
//! loader with the settings of the recipes.
use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, ensure};
use nepa_pipeline::{
    AugmentConfig, CropPlan, Dataset, DatasetConfig, Filter, IoConfig, IoRuntime, Loader,
    LoaderConfig, Normalize, PartId, SampleId,
};

mod allocations;
pub mod device_report;

pub use allocations::CountingAllocator;

/// Side of the crops in pixels.
pub const IMAGE_SIZE: u32 = 224;

/// The augmentation of the published recipe.
pub fn augment() -> AugmentConfig {
    AugmentConfig::RandomResizedCrop {
        size: IMAGE_SIZE,
        scale: [0.08, 1.0],
        ratio: [3.0 / 4.0, 4.0 / 3.0],
        flip: 0.5,
        filter: Filter::Bilinear,
        rand_augment: None,
        erase: None,
    }
}

/// Opens a data set with the default use of the store.
pub fn open(url: &str, runtime: &IoRuntime) -> anyhow::Result<Arc<Dataset>> {
    let config = DatasetConfig {
        urls: vec![url.to_owned()],
        ..DatasetConfig::default()
    };
    Ok(Dataset::open(&config, &IoConfig::default(), runtime)?)
}

/// A shuffling loader over `epochs` epochs of `dataset`.
pub fn loader(dataset: Arc<Dataset>, epochs: u64, decode_threads: usize) -> anyhow::Result<Loader> {
    let config = LoaderConfig {
        seed: 1337,
        global_batch: 32,
        rank: 0,
        world_size: 1,
        epochs: Some(epochs),
        shuffle: true,
        drop_last: false,
        augment: augment(),
        normalize: Normalize::default(),
        exif_orientation: true,
        decode_threads,
        prefetch_batches: 2,
        shuffle_window_bytes: 64 << 20,
        max_bad_fraction: 0.01,
        bad_samples_path: None,
        ..LoaderConfig::default()
    };
    Ok(Loader::new(dataset, config, None)?)
}

/// Encoded images with the crops that the loader draws for them in its first epoch.
pub fn samples(dataset: &Arc<Dataset>, limit: usize) -> anyhow::Result<Vec<(Vec<u8>, CropPlan)>> {
    let mut plans = HashMap::<SampleId, CropPlan>::new();
    let mut loader = loader(Arc::clone(dataset), 1, 2)?;
    while let Some(batch) = loader.next_batch()? {
        plans.extend(
            batch
                .samples()
                .iter()
                .map(|sample| (sample.id, sample.views[0].clone())),
        );
    }
    let mut found = Vec::new();
    for (shard, info) in (0..).zip(dataset.shards()) {
        for (part, info) in (0..).zip(&info.parts) {
            let mut fetched = dataset.fetch(&[PartId { shard, part }]);
            let (_, bytes) = fetched.next().context("the fetch gave nothing")?;
            let batch = bytes?.unpack()?;
            for row in 0..batch.num_rows() {
                // A sample without a plan was bad and is no part of the question.
                if let Some(plan) = plans.get(&SampleId {
                    shard,
                    row_group: info.row_group,
                    row: info.first_row + row as u32,
                }) {
                    found.push((batch.image(row)?.to_vec(), plan.clone()));
                }
                if found.len() == limit {
                    return Ok(found);
                }
            }
        }
    }
    Ok(found)
}

/// Seconds that this thread has been on a processor. The kernel brings it up to date at each tick
/// (1 to 10 ms): measure longer things.
pub fn thread_cpu_s() -> anyhow::Result<f64> {
    let path = "/proc/thread-self/schedstat";
    let text = std::fs::read_to_string(path)
        .context("processor time is read from /proc, on Linux only")?;
    let nanoseconds: u64 = text
        .split_whitespace()
        .next()
        .context(path)?
        .parse()
        .context(path)?;
    Ok(nanoseconds as f64 / 1e9)
}

/// Seconds that all threads of this process, ended ones included, have been on a processor; in
/// steps of 10 ms.
pub fn process_cpu_s() -> anyhow::Result<f64> {
    // utime and stime.
    let ticks = stat_fields(11, 2)?;
    Ok(ticks.iter().sum::<u64>() as f64 / 100.0)
}

/// Pages that this process got from the kernel without reading a disk (minor faults).
pub fn page_faults() -> anyhow::Result<u64> {
    Ok(stat_fields(7, 1)?[0])
}

/// `count` numbers of `/proc/self/stat`, from field `first` after the program's name, which may
/// hold spaces.
fn stat_fields(first: usize, count: usize) -> anyhow::Result<Vec<u64>> {
    let path = "/proc/self/stat";
    let text = std::fs::read_to_string(path).context("this is read from /proc, on Linux only")?;
    let (_, fields) = text.rsplit_once(')').context(path)?;
    let numbers: Vec<u64> = fields
        .split_whitespace()
        .skip(first)
        .take(count)
        .map(str::parse)
        .collect::<Result<_, _>>()
        .context(path)?;
    ensure!(numbers.len() == count, "{path} holds too few fields");
    Ok(numbers)
}

/// The greatest resident memory of this process so far (VmHWM), in MiB.
pub fn peak_memory_mib() -> anyhow::Result<f64> {
    status_mib("VmHWM")
}

/// The resident memory of this process now (VmRSS), in MiB.
pub fn memory_mib() -> anyhow::Result<f64> {
    status_mib("VmRSS")
}

fn status_mib(field: &str) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status")
        .context("memory is read from /proc, on Linux only")?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .with_context(|| format!("no {field} in /proc/self/status"))?;
    let kib: f64 = value
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .context(field.to_owned())?;
    Ok(kib / 1024.0)
}

/// The middle value; of an even number, the mean of the two in the middle.
///
/// # Panics
/// If there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(
            [median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])].map(f64::to_bits),
            [2.0, 2.5].map(f64::to_bits)
        );
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn processor_time_passes() {
        let (start, wall) = (process_cpu_s().unwrap(), std::time::Instant::now());
        while wall.elapsed().as_millis() < 200 {
            std::hint::black_box(0);
        }
        assert!(
            process_cpu_s().unwrap() > start
                && thread_cpu_s().unwrap() > 0.0
                && peak_memory_mib().unwrap() > 1.0
        );
    }
}
