//! How an object begins that should be Parquet and is something else: most are told at once.
use std::fmt;

/// The first bytes of an object that is no Parquet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning(Vec<u8>);

/// Bytes that are looked at.
pub(super) const LENGTH: u64 = 256;
/// Characters that are shown.
const SHOWN: usize = 60;

/// Formats by their first bytes, with what to do.
const FORMATS: [(&[u8], &str); 22] = [
    (
        b"version https://git-lfs.github.com/spec/",
        "is a Git LFS pointer, which stands for the file: run `git lfs pull` where it came from",
    ),
    (
        b"version https://hawser.github.com/spec/",
        "is a Git LFS pointer, which stands for the file: run `git lfs pull` where it came from",
    ),
    (b"/annex/objects/", ANNEX),
    (b"../.git/annex/", ANNEX),
    (b".git/annex/", ANNEX),
    (b"\x1f\x8b", "is gzip-compressed as a whole: decompress it"),
    (
        b"\x28\xb5\x2f\xfd",
        "is Zstandard-compressed as a whole: decompress it",
    ),
    (b"BZh", "is bzip2-compressed as a whole: decompress it"),
    (b"\xfd7zXZ\0", "is xz-compressed as a whole: decompress it"),
    (
        b"\x04\x22\x4d\x18",
        "is LZ4-compressed as a whole: decompress it",
    ),
    (b"PK\x03\x04", "is a zip archive: unpack it"),
    (
        b"ARROW1",
        "is an Arrow IPC (Feather) file: write it as Parquet",
    ),
    (
        b"\xff\xff\xff\xff",
        "looks like an Arrow IPC stream: write it as Parquet",
    ),
    (b"ORC", "is an ORC file: write it as Parquet"),
    (b"Obj\x01", "is an Avro file: write it as Parquet"),
    (b"\x89HDF", "is an HDF5 file: write it as Parquet"),
    (
        b"\xff\xd8\xff",
        "is a JPEG: pack images into Parquet (`nepa pack`)",
    ),
    (
        b"\x89PNG",
        "is a PNG: pack images into Parquet (`nepa pack`)",
    ),
    (b"<?xml", MARKUP),
    (b"<!DOCTYPE", MARKUP),
    (b"<html", MARKUP),
    (b"<Error", MARKUP),
];
const ANNEX: &str =
    "is a git-annex pointer, which stands for the file: run `git annex get` where it came from";
const MARKUP: &str = "is a web page or an error message that was saved in its place: download it again, and look at the answer's status";

impl Beginning {
    /// Of an object that begins so.
    pub fn new(start: &[u8]) -> Self {
        Self(start[..start.len().min(LENGTH as usize)].to_vec())
    }

    /// What it is, if that is known.
    fn known(&self) -> Option<&'static str> {
        let text = self
            .0
            .strip_prefix(b"\xef\xbb\xbf")
            .unwrap_or(&self.0)
            .trim_ascii_start();
        let is = |magic: &[u8]| match text.get(..magic.len()) {
            Some(start) if magic.starts_with(b"<") => start.eq_ignore_ascii_case(magic),
            start => start == Some(magic),
        };
        FORMATS
            .iter()
            .find(|(magic, _)| is(magic))
            .map(|(_, what)| *what)
    }
}

impl fmt::Display for Beginning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(known) = self.known() {
            return f.write_str(known);
        }
        if self.0.is_empty() {
            return f.write_str("is empty (0 bytes); write or upload it again");
        }
        if self.0.iter().all(|byte| *byte == 0) {
            return f.write_str("begins with zeros, as an upload or a download does that was not finished; copy it again");
        }
        let what = match self.0.trim_ascii_start().first() {
            Some(b'{' | b'[') => {
                "is JSON, perhaps an error message that was saved in its place, and "
            }
            _ => "",
        };
        let text = String::from_utf8_lossy(&self.0);
        let is_text =
            |c: char| c != char::REPLACEMENT_CHARACTER && (!c.is_control() || c.is_whitespace());
        if text.chars().take(SHOWN).all(is_text) {
            let shown = text
                .chars()
                .take(SHOWN)
                .map(|c| if c.is_control() { ' ' } else { c });
            let shown = shown.collect::<String>();
            write!(f, "{what}begins with the text \"{}\"", shown.trim())?;
        } else {
            let shown = self.0.iter().take(8).map(|byte| format!("{byte:02x}"));
            write!(
                f,
                "begins with the bytes {}",
                shown.collect::<Vec<_>>().join(" ")
            )?;
        }
        f.write_str(" instead of \"PAR1\"; name only Parquet objects")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_is_is_told_by_its_first_bytes() {
        let said = |start: &[u8]| Beginning::new(start).to_string();
        for (start, part) in [
            (
                &b"version https://git-lfs.github.com/spec/v1\noid sha256:ab"[..],
                "`git lfs pull`",
            ),
            (b"/annex/objects/SHA256E-s1--a.parquet\n", "`git annex get`"),
            (b"\n<!doctype html><html>", "web page"),
            (b"<?xml version=\"1.0\"?><Error>", "error message"),
            (b"{\"error\": \"not found\"}", "is JSON"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"\x28\xb5\x2f\xfd", "Zstandard"),
            (b"\0\0\0\0", "zeros"),
            (b"", "empty"),
            (b"id,label\n1,cat\n", "the text \"id,label 1,cat\""),
            (b"\x80\x02\xff\xfe}q", "the bytes 80 02 ff fe 7d 71"),
        ] {
            assert!(said(start).contains(part), "{start:?}: {}", said(start));
        }
    }
}
