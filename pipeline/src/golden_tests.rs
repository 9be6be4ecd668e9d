//! Golden data of the tests: what the published code and its libraries made of the same input.
use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// A tensor's shape and bytes.
pub(crate) struct Tensor {
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn f32(&self) -> Vec<f32> {
        let values = self.bytes.as_chunks::<4>().0.iter();
        values.map(|value| f32::from_le_bytes(*value)).collect()
    }

    pub(crate) fn i64(&self) -> Vec<i64> {
        let values = self.bytes.as_chunks::<8>().0.iter();
        values.map(|value| i64::from_le_bytes(*value)).collect()
    }
}

/// A file of the augmentations' golden data; `None`, and said so, where there are none.
fn path(file: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("NEPA_GOLDEN") else {
        eprintln!("SKIPPED: golden {file}: NEPA_GOLDEN is not set");
        return None;
    };
    Some(PathBuf::from(root).join("augment").join(file))
}

/// A JSON file.
pub(crate) fn json(file: &str) -> Option<serde_json::Value> {
    let bytes = std::fs::read(path(file)?).expect("a golden file");
    Some(serde_json::from_slice(&bytes).expect("JSON"))
}

/// A safetensors file, by name.
pub(crate) fn tensors(file: &str) -> Option<BTreeMap<String, Tensor>> {
    #[derive(Deserialize)]
    struct Entry {
        shape: Vec<usize>,
        data_offsets: [usize; 2],
    }
    let bytes = std::fs::read(path(file)?).expect("a golden file");
    let (length, rest) = bytes.split_first_chunk::<8>().expect("a header");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut entries: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header).expect("a header of JSON");
    entries.remove("__metadata__");
    let tensor = |(name, entry)| {
        let entry: Entry = serde_json::from_value(entry).expect("an entry");
        let [start, end] = entry.data_offsets;
        let (shape, bytes) = (entry.shape, data[start..end].to_vec());
        (name, Tensor { shape, bytes })
    };
    Some(entries.into_iter().map(tensor).collect())
}
