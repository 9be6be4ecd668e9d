//! Lists a local folder: links are followed, what cannot be read is an error, and folders that hold
//! no data are not entered.
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicU64, Ordering};

use object_store::path::Path;

use super::listing::{Entry, Listing};
use super::names::is_parquet;
use crate::StoreError;

/// Lists the files below `key` (an absolute path without its first `/`) and all folders that
/// `enters`; of a flat listing only those of the folder itself. `count` is kept up to date.
pub(super) fn walk(
    key: &str,
    flat: bool,
    enters: &dyn Fn(&str) -> bool,
    count: &AtomicU64,
) -> Result<Listing, StoreError> {
    let mut listing = Listing::default();
    let mut folders = vec![key.trim_end_matches('/').to_owned()];
    while let Some(key) = folders.pop() {
        let folder = format!("/{key}");
        let fail = |source| StoreError::UnreadableFolder {
            folder: folder.clone(),
            source,
        };
        let names = match fs::read_dir(&folder) {
            Ok(names) => names,
            // What is no folder holds nothing; whether it is a file is asked elsewhere.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                continue;
            }
            Err(error) => return Err(fail(error)),
        };
        for name in names {
            let name = name.map_err(fail)?;
            let path = name.path();
            let name = name.file_name();
            let key = match name.to_str() {
                Some(name) => format!("{key}/{name}"),
                None => String::new(),
            };
            let (Some(name), Ok(location)) = (name.to_str(), Path::parse(&key)) else {
                listing.odd.add(&path.to_string_lossy());
                continue;
            };
            if !enters(name) {
                listing.entries.push(Entry {
                    path: location,
                    size: 0,
                });
                continue;
            }
            let facts = match fs::metadata(&path) {
                Ok(facts) => facts,
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    broken_link(&path, name)?;
                    continue;
                }
                Err(source) => {
                    let folder = path.display().to_string();
                    return Err(StoreError::UnreadableFolder { folder, source });
                }
            };
            if facts.is_dir() {
                listing.folders.push(location);
                if !flat {
                    if path.is_symlink() {
                        leads_down(&path).map_err(fail)??;
                    }
                    folders.push(key);
                }
            } else {
                listing.entries.push(Entry {
                    path: location,
                    size: facts.len(),
                });
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(listing)
}

/// A name that leads nowhere: an error where a shard is missing, else nothing (it may just have
/// been removed).
fn broken_link(path: &FilePath, name: &str) -> Result<(), StoreError> {
    match fs::read_link(path) {
        Ok(target) if is_parquet(name) => Err(StoreError::BrokenLink {
            link: path.display().to_string(),
            target: target.display().to_string(),
        }),
        _ => Ok(()),
    }
}

/// A link to a folder that holds the link would be followed for ever.
fn leads_down(link: &FilePath) -> io::Result<Result<(), StoreError>> {
    let target = fs::canonicalize(link)?;
    let parent = fs::canonicalize(link.parent().unwrap_or(link))?;
    Ok(if parent.starts_with(&target) {
        Err(link_loop(link))
    } else {
        Ok(())
    })
}

fn link_loop(link: &FilePath) -> StoreError {
    let target = fs::read_link(link).unwrap_or_default();
    StoreError::LinkLoop {
        link: link.display().to_string(),
        target: target.display().to_string(),
    }
}
