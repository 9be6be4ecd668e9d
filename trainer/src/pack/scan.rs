//! What lies in a folder of images by class: one subfolder a class, sorted by name; or images
//! alone, without classes.
use crate::console::messages::quoted_path;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nepa_pipeline::ImageFormat;

use crate::console::progress::{Progress, Unit};

/// Folders below this depth are not read: a chain of links could have no end.
const MAX_DEPTH: usize = 16;

/// One image file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageFile {
    pub path: PathBuf,
    /// Its path in the folder, with `/`; goes into the shard.
    pub name: String,
    /// Index of its class.
    pub class: Option<usize>,
    pub num_bytes: u64,
}

/// The content of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FolderScan {
    /// Names of the classes, sorted; empty where the folder has no subfolders.
    pub classes: Vec<String>,
    /// The images, sorted by name.
    pub images: Vec<ImageFile>,
    /// Files that do not begin like an image, or lie outside every class.
    pub skipped: Vec<PathBuf>,
}

/// Reads the names, sizes and first bytes below `folder`.
pub(crate) fn scan(folder: &Path) -> anyhow::Result<FolderScan> {
    let progress = Progress::new("looking for images", None, Unit::Count("files"));
    let mut scan = FolderScan {
        classes: Vec::new(),
        images: Vec::new(),
        skipped: Vec::new(),
    };
    let entries = entries(folder)?;
    let is_folder = |path: &PathBuf| path.is_dir();
    let folders = entries
        .iter()
        .filter(|path| is_folder(path))
        .collect::<Vec<_>>();
    scan.classes = folders.iter().map(|path| file_name(path)).collect();
    let splits = ["train", "val", "validation", "test"];
    if !folders.is_empty()
        && scan
            .classes
            .iter()
            .all(|class| splits.contains(&class.as_str()))
    {
        bail!(
            "the subfolders of {} are called {}: these look like splits, not classes\ntip: pack \
             each by itself, for example `nepa pack {} URL --split {}`",
            quoted_path(folder),
            scan.classes.join(", "),
            quoted_path(folders[0]),
            scan.classes[0],
        );
    }
    for path in entries.iter().filter(|path| !is_folder(path)) {
        if folders.is_empty() {
            add(&mut scan, folder, path, None, &progress)?;
        } else {
            scan.skipped.push(path.clone());
        }
    }
    for (class, path) in folders.into_iter().enumerate() {
        descend(&mut scan, folder, path, (class, 1), &progress)?;
    }
    scan.images.sort_by(|a, b| a.name.cmp(&b.name));
    if scan.images.is_empty() {
        bail!(
            "no images in {}: {} other files were found",
            quoted_path(folder),
            scan.skipped.len()
        );
    }
    Ok(scan)
}

fn descend(
    scan: &mut FolderScan,
    root: &Path,
    folder: &Path,
    (class, depth): (usize, usize),
    progress: &Progress,
) -> anyhow::Result<()> {
    if depth > MAX_DEPTH {
        bail!(
            "{} lies more than {MAX_DEPTH} folders deep: a link that leads back?",
            folder.display()
        );
    }
    for path in entries(folder)? {
        if path.is_dir() {
            descend(scan, root, &path, (class, depth + 1), progress)?;
        } else {
            add(scan, root, &path, Some(class), progress)?;
        }
    }
    Ok(())
}

fn add(
    scan: &mut FolderScan,
    root: &Path,
    path: &Path,
    class: Option<usize>,
    progress: &Progress,
) -> anyhow::Result<()> {
    progress.add(1);
    let read = || -> std::io::Result<(u64, Vec<u8>)> {
        let file = std::fs::File::open(path)?;
        let num_bytes = file.metadata()?.len();
        let mut start = Vec::new();
        file.take(16).read_to_end(&mut start)?;
        Ok((num_bytes, start))
    };
    let (num_bytes, start) =
        read().with_context(|| format!("cannot read {}", quoted_path(path)))?;
    if ImageFormat::of(&start).is_none() {
        scan.skipped.push(path.to_owned());
        return Ok(());
    }
    let relative = path.strip_prefix(root).unwrap_or(path);
    let name = relative
        .iter()
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join("/");
    scan.images.push(ImageFile {
        path: path.to_owned(),
        name,
        class,
        num_bytes,
    });
    Ok(())
}

fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let context = || format!("cannot list the folder {}", quoted_path(folder));
    let entries = std::fs::read_dir(folder).with_context(context)?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(context)?;
    paths.retain(|path| !file_name(path).starts_with('.'));
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
