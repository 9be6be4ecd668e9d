//! A profile that was written as JSON. Called by what compares or computes with one.
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::console::messages::quoted_path;

/// Version of the JSON; it is raised where a key changes its meaning or goes.
pub(super) const VERSION: u32 = 3;

/// Reads a profile; what is none is refused in words.
pub(super) fn read(path: &Path) -> anyhow::Result<Value> {
    let place = quoted_path(path);
    let text = std::fs::read(path).with_context(|| format!("cannot read {place}"))?;
    let json: Value = serde_json::from_slice(&text)
        .with_context(|| format!("{place} is no profile: it is not JSON"))?;
    let version = json["version"].as_u64();
    let Some(version) = version.filter(|_| json["images_per_second"].is_object()) else {
        bail!("{place} is no profile; nepa profile URL --json FILE writes one");
    };
    if version != u64::from(VERSION) {
        bail!(
            "{place} is a profile of version {version}, and this program reads those of version \
             {VERSION}: measure it anew"
        );
    }
    Ok(json)
}
