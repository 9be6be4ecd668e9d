//! EXIF orientation: which of the eight ways a stored image is turned, read as Pillow's
//! `exif_transpose` reads it.
//!
//! The value comes from the EXIF block, else from `tiff:Orientation` in the XMP block; whatever
//! cannot be read counts as upright. Where a format keeps the two blocks: `metadata`.
use tiff::tags::Tag;

use super::tiff_directory::Directory;

/// Stands before an EXIF block in JPEG, sometimes twice, and sometimes in other formats.
pub(super) const EXIF_PREFIX: &[u8] = b"Exif\0\0";

/// How the stored image becomes the upright one: perhaps swap the axes, then perhaps mirror each
/// stored axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orientation(u8);

impl Orientation {
    /// Stored upright.
    pub const UPRIGHT: Self = Self(1);

    /// The orientation of an EXIF value; all but 2 to 8 mean upright, as in Pillow.
    pub fn from_exif(value: u32) -> Self {
        if (2..=8).contains(&value) {
            Self(value as u8)
        } else {
            Self::UPRIGHT
        }
    }

    /// The EXIF value, 1 to 8.
    pub fn exif_value(self) -> u8 {
        self.0
    }

    /// Whether rows of the upright image are columns of the stored one.
    pub fn swaps_axes(self) -> bool {
        self.0 >= 5
    }

    /// Whether the stored x runs against the upright axis that it belongs to.
    pub fn mirrors_x(self) -> bool {
        matches!(self.0, 2 | 3 | 7 | 8)
    }

    /// Whether the stored y runs against the upright axis that it belongs to.
    pub fn mirrors_y(self) -> bool {
        matches!(self.0, 3 | 4 | 6 | 7)
    }

    /// Width and height after applying it.
    pub fn upright_size(self, width: u32, height: u32) -> (u32, u32) {
        if self.swaps_axes() {
            (height, width)
        } else {
            (width, height)
        }
    }

    /// The stored pixel (x, y) behind pixel (`x`, `y`) of the upright image, for a stored image of
    /// `width` x `height`.
    pub fn stored_pixel(self, x: usize, y: usize, width: usize, height: usize) -> (usize, usize) {
        let (x, y) = if self.swaps_axes() { (y, x) } else { (x, y) };
        let x = if self.mirrors_x() { width - 1 - x } else { x };
        let y = if self.mirrors_y() { height - 1 - y } else { y };
        (x, y)
    }

    /// Reads it from an EXIF block (a TIFF structure, with or without `Exif\0\0` before it, once or
    /// twice); from an XMP packet where that has no such tag.
    pub(super) fn from_metadata(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Self {
        let directory = exif.and_then(|block| {
            let rest = block.strip_prefix(EXIF_PREFIX).unwrap_or(block);
            Directory::read(rest.strip_prefix(EXIF_PREFIX).unwrap_or(rest))
        });
        Self::from_directory(directory.as_ref(), xmp)
    }

    /// The same for a directory that was read already.
    pub(super) fn from_directory(directory: Option<&Directory>, xmp: Option<&[u8]>) -> Self {
        match directory.filter(|directory| directory.has(Tag::Orientation)) {
            // A tag of a strange type says nothing, and XMP is not asked then.
            Some(directory) => directory
                .number(Tag::Orientation)
                .filter(|value| value.fract() == 0.0)
                .map_or(Self::UPRIGHT, |value| Self::from_exif(value as u32)),
            None => xmp
                .and_then(xmp_orientation)
                .map_or(Self::UPRIGHT, Self::from_exif),
        }
    }
}

/// Pillow's pattern: `tiff:Orientation="6"` or `<tiff:Orientation>6`.
fn xmp_orientation(packet: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"tiff:Orientation";
    packet
        .windows(NAME.len())
        .enumerate()
        .filter(|(_, window)| *window == NAME)
        .find_map(|(start, _)| {
            let value = &packet[start + NAME.len()..];
            let digit = *value
                .strip_prefix(b"=\"")
                .or_else(|| value.strip_prefix(b">"))?
                .first()?;
            digit.is_ascii_digit().then(|| u32::from(digit - b'0'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TIFF structure with one IFD and the orientation in it.
    fn exif_block(value: u16) -> Vec<u8> {
        let mut block = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01".to_vec();
        block.extend(value.to_be_bytes());
        block.extend([0; 6]);
        block
    }

    #[test]
    fn reads_exif_then_xmp_and_ignores_what_is_broken() {
        for value in 0..12u16 {
            let expected = if (2..=8).contains(&value) {
                value as u8
            } else {
                1
            };
            assert_eq!(
                Orientation::from_metadata(Some(&exif_block(value)), None).exif_value(),
                expected
            );
        }
        let with_prefix = [b"Exif\0\0".as_slice(), &exif_block(6)].concat();
        assert_eq!(
            Orientation::from_metadata(Some(&with_prefix), None).exif_value(),
            6
        );
        let xmp: &[u8] = b"<rdf:Description tiff:Orientation=\"8\"/>";
        assert_eq!(Orientation::from_metadata(None, Some(xmp)).exif_value(), 8);
        assert_eq!(
            Orientation::from_metadata(Some(b"garbage"), Some(xmp)).exif_value(),
            8
        );
        assert_eq!(
            Orientation::from_metadata(Some(&exif_block(3)), Some(xmp)).exif_value(),
            3
        );
        assert_eq!(
            Orientation::from_metadata(Some(&exif_block(6)[..15]), None),
            Orientation::UPRIGHT
        );
        assert_eq!(
            Orientation::from_metadata(None, Some(b"<tiff:Orientation>5</tiff:Orientation>"))
                .exif_value(),
            5
        );
    }

    #[test]
    fn turns_pixels_as_the_exif_standard_says() {
        // The stored 2 x 3 image holds 0 1 / 2 3 / 4 5; expected are the upright rows, checked
        // against Pillow.
        let expected: [&[usize]; 8] = [
            &[0, 1, 2, 3, 4, 5],
            &[1, 0, 3, 2, 5, 4],
            &[5, 4, 3, 2, 1, 0],
            &[4, 5, 2, 3, 0, 1],
            &[0, 2, 4, 1, 3, 5],
            &[4, 2, 0, 5, 3, 1],
            &[5, 3, 1, 4, 2, 0],
            &[1, 3, 5, 0, 2, 4],
        ];
        for (value, expected) in (1u32..).zip(expected) {
            let orientation = Orientation::from_exif(value);
            let (width, height) = orientation.upright_size(2, 3);
            let mut upright = Vec::new();
            for y in 0..height as usize {
                for x in 0..width as usize {
                    let (stored_x, stored_y) = orientation.stored_pixel(x, y, 2, 3);
                    upright.push(stored_y * 2 + stored_x);
                }
            }
            assert_eq!(upright, expected, "orientation {value}");
        }
    }
}
