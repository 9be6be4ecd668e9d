//! Any bytes as a Parquet shard: it opens or not, each part is read or refused, without a panic and in bounded memory.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use nepa_pipeline::{Dataset, DatasetConfig, IoConfig, IoRuntime, PartId};

/// Claims of more rows than this would only take memory that a run of its own budget does not have.
const MAX_ROWS: u64 = 1 << 16;

fuzz_target!(|bytes: &[u8]| {
    static RUNTIME: OnceLock<IoRuntime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| IoRuntime::new(1).expect("a thread"));
    let path = std::env::temp_dir().join(format!("nepa-fuzz-{}.parquet", std::process::id()));
    std::fs::write(&path, bytes).expect("a file in the folder for temporary ones");
    let config = DatasetConfig {
        urls: vec![path.to_str().expect("a path in UTF-8").to_owned()],
        ..DatasetConfig::default()
    };
    let io = IoConfig {
        part_bytes: 4096,
        ..IoConfig::default()
    };
    let Ok(dataset) = Dataset::open(&config, &io, runtime) else {
        return;
    };
    if dataset.num_samples() > MAX_ROWS {
        return;
    }
    for part in 0..dataset.shards()[0].parts.len() as u32 {
        let mut fetched = dataset.fetch(&[PartId { shard: 0, part }]);
        let (_, fetched) = fetched.next().expect("each part is delivered");
        // The loader takes a panic of the Parquet reader for a damaged page, and so does this.
        let unpacked = fetched.map(|bytes| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bytes.unpack()))
        });
        if let Ok(Ok(Ok(batch))) = unpacked {
            for row in 0..batch.num_rows() {
                let _ = (batch.image(row), batch.label(row));
            }
        }
    }
});
