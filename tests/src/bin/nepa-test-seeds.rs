//! Writes small images and shards of every kind that the tests make, as a start for the fuzzer: `nepa-test-seeds FOLDER`.
use std::path::Path;

use anyhow::Context;
use nepa_tests::photos::photo;
use nepa_tests::shards::{flat_shard, hugging_face_shard, labelled_shard_in_pages};

fn main() -> anyhow::Result<()> {
    let folder = std::env::args()
        .nth(1)
        .context("usage: nepa-test-seeds FOLDER")?;
    let folder = Path::new(&folder);
    let rows = |count| {
        (0..count)
            .map(|row| (Some(photo(row)), Some(format!("{row}.jpg")), i64::from(row)))
            .collect::<Vec<_>>()
    };
    let shards = [
        ("flat", flat_shard(5)),
        ("hugging-face", hugging_face_shard(0, 2, 4)),
        ("pages", labelled_shard_in_pages([rows(12)], 3, true)),
        (
            "no-index",
            labelled_shard_in_pages([rows(3), rows(2)], 2, false),
        ),
    ];
    for (kind, files) in [
        (
            "shard",
            shards
                .map(|(name, bytes)| (name.to_owned(), bytes))
                .to_vec(),
        ),
        (
            "image",
            (0..8)
                .map(|number| (number.to_string(), photo(number)))
                .collect(),
        ),
    ] {
        let folder = folder.join(kind);
        std::fs::create_dir_all(&folder)?;
        for (name, bytes) in files {
            std::fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}
