//! Keys that the store's crate cannot name (empty parts, `.`, `..`, control characters, a first
//! `/`): one of them would fail, or falsify, the listing of everything beside it. They are taken
//! out of the store's answer before it is read, and counted.
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use object_store::path::Path;
use quick_xml::Reader;
use quick_xml::events::Event;

use super::names::is_parquet;

/// Objects that were left out because their names cannot be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OddKeys {
    /// How many look like Parquet.
    pub count: usize,
    /// One of them.
    pub example: String,
}

impl OddKeys {
    /// Counts a name, if it looks like Parquet.
    pub(super) fn add(&mut self, key: &str) {
        if is_parquet(key) {
            if self.count == 0 {
                key.clone_into(&mut self.example);
            }
            self.count += 1;
        }
    }
}

impl fmt::Display for OddKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.count == 1 {
            "object is"
        } else {
            "objects are"
        };
        write!(
            f,
            "{} Parquet {verb} left out, such as {}: names with `//`, `.` or `..` as a part, a first `/` or control \
             characters cannot be read; copy them to other names",
            self.count,
            self.example.escape_debug()
        )
    }
}

/// A listing's answer (S3, Google or Azure) without such keys and without markers of folders, or
/// none where nothing has to change.
pub(super) fn without_odd_keys(body: &[u8], odd: &mut OddKeys) -> Option<Vec<u8>> {
    let cuts = cuts(body, odd)?;
    if cuts.is_empty() {
        return None;
    }
    let mut kept = Vec::with_capacity(body.len());
    let mut start = 0;
    for cut in cuts {
        kept.extend_from_slice(&body[start..cut.start]);
        start = cut.end;
    }
    kept.extend_from_slice(&body[start..]);
    Some(kept)
}

/// The entries to take out; none where the answer is no listing that we know.
fn cuts(body: &[u8], odd: &mut OddKeys) -> Option<Vec<Range<usize>>> {
    let mut reader = Reader::from_reader(body);
    let mut cuts = Vec::new();
    loop {
        let start = reader.buffer_position() as usize;
        let tag = match reader.read_event().ok()? {
            Event::Eof => return Some(cuts),
            Event::Start(tag) => tag,
            _ => continue,
        };
        let (name_tag, is_object) = match tag.name().as_ref() {
            b"Contents" => (&b"Key"[..], true),
            b"CommonPrefixes" => (&b"Prefix"[..], false),
            b"Blob" => (&b"Name"[..], true),
            b"BlobPrefix" => (&b"Name"[..], false),
            _ => continue,
        };
        let entry = reader.read_text(tag.name()).ok()?;
        let key = key_in(&entry, name_tag)?;
        let is_marker = is_object && key.ends_with('/');
        let named = !key.starts_with('/') && Path::parse(&*key).is_ok();
        if is_marker || !named {
            cuts.push(start..reader.buffer_position() as usize);
            if is_object && !is_marker {
                odd.add(&key);
            }
        }
    }
}

/// The text of the first element called `tag`; as it stands where it cannot be unescaped, or is
/// encoded in another way.
fn key_in<'a>(entry: &'a [u8], tag: &[u8]) -> Option<Cow<'a, str>> {
    let mut reader = Reader::from_reader(entry);
    loop {
        match reader.read_event().ok()? {
            Event::Eof => return None,
            Event::Start(start) if start.name().as_ref() == tag => {
                let raw = reader.read_text(start.name()).ok()?;
                let raw = std::str::from_utf8(&raw).ok()?.to_owned();
                // Azure percent-encodes a name that XML cannot hold.
                let encoded = start.attributes().flatten();
                if encoded.into_iter().any(|attribute| {
                    attribute.key.as_ref() == b"Encoded" && *attribute.value == *b"true"
                }) {
                    return Some(Cow::Owned(format!("/{raw}")));
                }
                let key = quick_xml::escape::unescape(&raw)
                    .map_or_else(|_| format!("/{raw}"), Cow::into_owned);
                return Some(Cow::Owned(key));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_keys_leave_a_listing_and_the_rest_stays_byte_for_byte() {
        let contents = |key: &str| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>");
        let page = |keys: &[&str]| {
            let all = keys.iter().map(|key| contents(key)).collect::<String>();
            format!(
                "<?xml version=\"1.0\"?><ListBucketResult><Prefix>a/</Prefix>{all}</ListBucketResult>"
            )
        };
        let mut odd = OddKeys::default();
        let whole = page(&["a/x.parquet", "a/b &amp; c.parquet"]);
        assert_eq!(without_odd_keys(whole.as_bytes(), &mut odd), None);
        let mixed = page(&[
            "a/x.parquet",
            "a//y.parquet",
            "a/./z.parquet",
            "a/../z.parquet",
            "a/\u{1}.parquet",
            "a/&#x1;.parquet",
            "/a/x.parquet",
            "a/notes//x.txt",
            "a/folder/",
            "a/b &amp; c.parquet",
        ]);
        let kept = without_odd_keys(mixed.as_bytes(), &mut odd).unwrap();
        assert_eq!(String::from_utf8(kept).unwrap(), whole);
        assert_eq!((odd.count, odd.example.as_str()), (6, "a//y.parquet"));
        let folders = "<R><CommonPrefixes><Prefix>a//</Prefix></CommonPrefixes>\
                       <CommonPrefixes><Prefix>b/</Prefix></CommonPrefixes></R>";
        let kept = without_odd_keys(folders.as_bytes(), &mut odd).unwrap();
        assert_eq!(
            kept,
            b"<R><CommonPrefixes><Prefix>b/</Prefix></CommonPrefixes></R>"
        );
        assert_eq!(without_odd_keys(b"{\"error\": 1}", &mut odd), None);
    }

    #[test]
    fn azure_names_its_entries_otherwise() {
        let blob = |name: &str| format!("<Blob>{name}<Properties/></Blob>");
        let page = format!(
            "<EnumerationResults><Blobs>{}{}{}</Blobs></EnumerationResults>",
            blob("<Name>a//x.parquet</Name>"),
            blob("<Name>a/x.parquet</Name>"),
            blob("<Name Encoded=\"true\">a%01.parquet</Name>"),
        );
        let mut odd = OddKeys::default();
        let kept = without_odd_keys(page.as_bytes(), &mut odd).unwrap();
        let kept = String::from_utf8(kept).unwrap();
        assert_eq!(odd.count, 2);
        assert!(kept.contains("<Name>a/x.parquet</Name>") && !kept.contains("//x"));
    }
}
