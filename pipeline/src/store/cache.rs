//! Parts of shards on a local disk, so that later epochs and other processes do not fetch them
//! again.
//!
//! - An entry is one file, `KEY.part`: the bytes of one part's columns, then their length and
//!   checksum. The key is a digest of the object's URL, its version and the byte ranges, so an
//!   object that was replaced has other entries.
//! - Entries are written beside their place and renamed into it. After a crash or a power cut some
//!   may be torn; each is checked when it is read, and removed if it is damaged.
//! - The folder is marked. One that holds files and no mark is refused, and only files of our own
//!   names are ever removed.
//! - Several processes may share it: whatever vanishes under a reader is fetched.
//! - It is bounded: a new entry takes the place of those that nobody has used since this data set
//!   was opened; where all are in use, it is not kept. In a walk that reads everything once an
//!   epoch, that keeps as many hits as fit, where discarding the oldest would leave none. What
//!   other processes write is counted from time to time, so each may exceed the bound by a
//!   fiftieth.
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::StoreError;

/// Says whose folder it is; its content is for people.
const MARK: &str = "NEPA-CACHE";
const MARK_TEXT: &str = "Parts of Parquet shards, kept by nepa (io.cache_dir). The folder may be removed at any time.\n";
const ENDING: &str = ".part";
/// Length and checksum after the bytes.
const TRAILER_BYTES: usize = 12;

/// The folder is counted again when this process has written so large a share of the bound.
const UNCOUNTED_SHARE: u64 = 50;
/// Where no room could be made or a file not be written, nobody tries again for so long: to find
/// out, all entries are looked at.
const FULL_FOR: Duration = Duration::from_secs(10);

/// Numbers the files of this process that are being written, whatever cache they are of.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// A cache in one folder.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    most_bytes: u64,
    opened: SystemTime,
    room: Mutex<Room>,
    /// Said once that it cannot be written.
    warned: Once,
    pub(crate) hits: AtomicU64,
    pub(crate) hit_bytes: AtomicU64,
    pub(crate) damaged: AtomicU64,
}

/// What this process knows of the folder.
#[derive(Debug, Default)]
struct Room {
    /// Bytes in it, those of entries that are being written here included.
    held: u64,
    /// Files that are being written here, and the bytes that they will have. On the disk they may
    /// still be shorter, or not there at all.
    writing: HashMap<PathBuf, u64>,
    /// Bytes that this process has added since it counted.
    uncounted: u64,
    /// Since when all that is there is in use.
    full: Option<Instant>,
    /// When a file could last not be written.
    failed: Option<Instant>,
}

impl Cache {
    /// Opens the folder, or makes and marks it.
    pub(crate) fn open(folder: &Path, most_bytes: u64) -> Result<Self, StoreError> {
        let failed = |source| StoreError::CacheFolder {
            folder: folder.to_owned(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let mark = folder.join(MARK);
        if !mark.exists() {
            let mut entries = std::fs::read_dir(folder).map_err(failed)?;
            // Another process may have marked it meanwhile.
            if let Some(other) = entries.next().filter(|_| !mark.exists()) {
                return Err(StoreError::ForeignCache {
                    folder: folder.to_owned(),
                    found: other.map_err(failed)?.file_name().into(),
                });
            }
            std::fs::write(&mark, MARK_TEXT).map_err(failed)?;
        }
        let cache = Self {
            folder: folder.to_owned(),
            most_bytes,
            opened: SystemTime::now(),
            room: Mutex::default(),
            warned: Once::new(),
            hits: AtomicU64::new(0),
            hit_bytes: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
        };
        cache.room().held = cache.entries().iter().map(|entry| entry.num_bytes).sum();
        Ok(cache)
    }

    fn room(&self) -> std::sync::MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of a part.
    fn path(&self, url: &str, version: &str, ranges: &[Range<u64>]) -> PathBuf {
        let mut digest = Sha256::new();
        for text in [url, version] {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        }
        for range in ranges {
            digest.update(range.start.to_le_bytes());
            digest.update(range.end.to_le_bytes());
        }
        self.folder.join(format!("{:x}{ENDING}", digest.finalize()))
    }

    /// The bytes of a part by its ranges, if it is there and undamaged. Blocks.
    pub(crate) fn read(
        &self,
        url: &str,
        version: &str,
        ranges: &[Range<u64>],
    ) -> Option<Vec<(u64, Bytes)>> {
        let path = self.path(url, version, ranges);
        let mut file = std::fs::File::open(&path).ok()?;
        let num_bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let mut content = Vec::with_capacity(num_bytes as usize + TRAILER_BYTES);
        let whole = file.read_to_end(&mut content).is_ok()
            && content.len() == num_bytes as usize + TRAILER_BYTES;
        let body = num_bytes as usize;
        if !whole || content[body..] != trailer(&content[..body]) {
            self.damaged.fetch_add(1, Relaxed);
            // It may be gone already.
            let _ = std::fs::remove_file(&path);
            return None;
        }
        // Used: it is not the next to go. Where that cannot be written, it only goes earlier.
        let _ = file.set_modified(SystemTime::now());
        self.hits.fetch_add(1, Relaxed);
        self.hit_bytes.fetch_add(num_bytes, Relaxed);
        let content = Bytes::from(content);
        let mut from = 0;
        let pieces = ranges.iter().map(|range| {
            let length = (range.end - range.start) as usize;
            let piece = content.slice(from..from + length);
            from += length;
            (range.start, piece)
        });
        Some(pieces.collect())
    }

    /// Keeps the bytes of a part, if there is room. A disk that fails only means that they are
    /// fetched again. Blocks.
    pub(crate) fn write(&self, url: &str, version: &str, ranges: &[Range<u64>], bytes: &[u8]) {
        let num_bytes = (bytes.len() + TRAILER_BYTES) as u64;
        let path = self.path(url, version, ranges);
        let number = WRITTEN.fetch_add(1, Relaxed);
        let new = path.with_extension(format!("new-{}-{number}", std::process::id()));
        if !self.take_room(&new, num_bytes) {
            return;
        }
        let written = std::fs::File::create(&new).and_then(|mut file| {
            file.write_all(bytes)?;
            file.write_all(&trailer(bytes))
        });
        // Whoever counts meanwhile sees it either as being written or as an entry.
        let mut room = self.room();
        room.writing.remove(&new);
        if let Err(error) = written.and_then(|()| std::fs::rename(&new, &path)) {
            let _ = std::fs::remove_file(&new);
            room.held = room.held.saturating_sub(num_bytes);
            room.failed = Some(Instant::now());
            drop(room);
            self.warn(&error);
        }
    }

    /// Says once what keeps the cache from being written.
    fn warn(&self, error: &std::io::Error) {
        self.warned.call_once(|| {
            let what = match error.kind() {
                ErrorKind::StorageFull => "its disk is full: make room, or lower io.cache_bytes",
                ErrorKind::QuotaExceeded => "its quota is used up: make room, or lower io.cache_bytes",
                _ => &error.to_string(),
            };
            tracing::warn!(
                "io.cache_dir {} cannot be written ({what}); what is not kept there is fetched again",
                self.folder.display()
            );
        });
    }

    /// Takes room for the file `new` of `num_bytes`, if need be by removing what nobody has used
    /// since this cache was opened; whether there was any.
    fn take_room(&self, new: &Path, num_bytes: u64) -> bool {
        if num_bytes > self.most_bytes {
            return false;
        }
        let mut room = self.room();
        if room.failed.is_some_and(|at| at.elapsed() < FULL_FOR) {
            return false;
        }
        let fits = room.held + num_bytes <= self.most_bytes;
        let counted = room.uncounted <= self.most_bytes / UNCOUNTED_SHARE;
        if !(fits && counted) {
            if !fits && room.full.is_some_and(|since| since.elapsed() < FULL_FOR) {
                return false;
            }
            self.make_room(&mut room, num_bytes);
            if room.held + num_bytes > self.most_bytes {
                room.full = Some(Instant::now());
                return false;
            }
            room.full = None;
        }
        room.held += num_bytes;
        room.uncounted += num_bytes;
        room.writing.insert(new.to_owned(), num_bytes);
        true
    }

    /// Counts what is there, as other processes write and remove, too, and removes what is not in
    /// use until `num_bytes` fit.
    fn make_room(&self, room: &mut Room, num_bytes: u64) {
        let mut entries = self.entries();
        entries.retain(|entry| !room.writing.contains_key(&entry.path));
        room.held = entries.iter().map(|entry| entry.num_bytes).sum();
        room.held += room.writing.values().sum::<u64>();
        room.uncounted = 0;
        entries.sort_by_key(|entry| entry.used);
        for entry in entries {
            if room.held + num_bytes <= self.most_bytes || entry.used >= self.opened {
                break;
            }
            match std::fs::remove_file(&entry.path) {
                Ok(()) => room.held -= entry.num_bytes,
                Err(error) if error.kind() == ErrorKind::NotFound => room.held -= entry.num_bytes,
                Err(_) => {}
            }
        }
    }

    /// The files of our own names, those left by a killed writer included.
    fn entries(&self) -> Vec<Entry> {
        let Ok(folder) = std::fs::read_dir(&self.folder) else {
            return Vec::new();
        };
        folder
            .filter_map(|entry| {
                let entry = entry.ok()?;
                if !is_ours(entry.file_name().to_str()?) {
                    return None;
                }
                let meta = entry.metadata().ok()?;
                Some(Entry {
                    path: entry.path(),
                    num_bytes: meta.len(),
                    used: meta.modified().ok()?,
                })
            })
            .collect()
    }
}

struct Entry {
    path: PathBuf,
    num_bytes: u64,
    used: SystemTime,
}

/// A digest, then the ending of an entry or of one that is being written.
fn is_ours(name: &str) -> bool {
    name.split_once('.').is_some_and(|(digest, ending)| {
        digest.len() == 64
            && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
            && (ending == &ENDING[1..] || ending.starts_with("new-"))
    })
}

fn trailer(bytes: &[u8]) -> [u8; TRAILER_BYTES] {
    let mut trailer = [0; TRAILER_BYTES];
    trailer[..8].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    trailer[8..].copy_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    trailer
}

#[cfg(test)]
#[expect(
    clippy::single_range_in_vec_init,
    reason = "a part of one column has one range"
)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("nepa-cache-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn what_is_in_use_stays_and_what_is_not_makes_room() {
        let folder = folder("room");
        let entry = 100 + TRAILER_BYTES as u64;
        let cache = Cache::open(&folder, 2 * entry).unwrap();
        let ranges = [0..100];
        let write = |cache: &Cache, url: &str| cache.write(url, "v", &ranges, &[7; 100]);
        let reads = |cache: &Cache, url: &str| cache.read(url, "v", &ranges).is_some();
        write(&cache, "a");
        write(&cache, "b");
        write(&cache, "c");
        assert!(reads(&cache, "a") && reads(&cache, "b") && !reads(&cache, "c"));
        assert!(cache.read("a", "another version", &ranges).is_none());
        std::thread::sleep(std::time::Duration::from_millis(20));
        // The next run uses only one of the two.
        let cache = Cache::open(&folder, 2 * entry).unwrap();
        assert!(reads(&cache, "b"));
        write(&cache, "c");
        assert!(reads(&cache, "b") && reads(&cache, "c") && !reads(&cache, "a"));
        write(&cache, "d");
        assert!(!reads(&cache, "d"));
        // Limits below one entry, and none at all.
        for limit in [0, entry - 1] {
            let cache = Cache::open(&folder, limit).unwrap();
            write(&cache, "e");
            assert!(!reads(&cache, "e"));
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn files_that_are_being_written_count_in_full() {
        let folder = folder("writing");
        let entry = 100 + TRAILER_BYTES as u64;
        let cache = Cache::open(&folder, 3 * entry).unwrap();
        // One that has not come to the disk yet, and one of which half has.
        let ranges = [0..100];
        let begun = ["a", "b"].map(|url| cache.path(url, "v", &ranges).with_extension("new-1-2"));
        assert!(begun.iter().all(|new| cache.take_room(new, entry)));
        std::fs::write(&begun[1], [7; 50]).unwrap();
        for url in ["c", "d", "e"] {
            cache.write(url, "v", &ranges, &[7; 100]);
        }
        let kept = ["c", "d", "e"].map(|url| cache.read(url, "v", &ranges).is_some());
        assert_eq!(kept, [true, false, false]);
        assert_eq!(cache.room().held, 3 * entry);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn two_that_share_a_folder_keep_its_bound() {
        let folder = folder("shared");
        let entry = 1000 + TRAILER_BYTES as u64;
        let most_bytes = 100 * entry;
        let caches = [(); 2].map(|()| Cache::open(&folder, most_bytes).unwrap());
        for number in 0..200 {
            let url = number.to_string();
            caches[number % 2].write(&url, "v", &[0..1000], &[7; 1000]);
        }
        let held: u64 = caches[0]
            .entries()
            .iter()
            .map(|entry| entry.num_bytes)
            .sum();
        assert!(held > most_bytes * 9 / 10, "{held} of {most_bytes}");
        assert!(
            held <= most_bytes + most_bytes / 25,
            "{held} of {most_bytes}"
        );
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_disk_that_cannot_be_written_costs_nothing_but_the_cache() {
        let folder = folder("full");
        let cache = Cache::open(&folder, 10_000).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        cache.write("a", "v", &[0..100], &[7; 100]);
        assert!(cache.warned.is_completed());
        // Nobody tries again for a while, and nothing counts as held.
        std::fs::create_dir_all(&folder).unwrap();
        cache.write("a", "v", &[0..100], &[7; 100]);
        assert!(cache.read("a", "v", &[0..100]).is_none());
        assert_eq!(cache.room().held, 0);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_foreign_folder_is_refused_and_nothing_foreign_removed() {
        let folder = folder("foreign");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("thesis.txt"), "work").unwrap();
        let text = Cache::open(&folder, 10).unwrap_err().to_string();
        assert!(text.contains("thesis.txt"), "{text}");
        assert!(folder.join("thesis.txt").exists() && !folder.join(MARK).exists());
        assert!(!is_ours("thesis.txt") && !is_ours(MARK) && !is_ours("abc.part"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
