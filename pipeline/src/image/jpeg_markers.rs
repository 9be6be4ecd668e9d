//! The markers of a JPEG: where its segments lie, and what they say of how it is coded, to choose
//! who may decode it. Decodes nothing.
//!
//! Markers and their contents: ITU-T T.81, annex B; the Adobe segment: T.872, 6.5.3.

const SOF0: u8 = 0xc0;
const SOF1: u8 = 0xc1;
const SOF2: u8 = 0xc2;
const SOF3: u8 = 0xc3;
const DHT: u8 = 0xc4;
const JPG: u8 = 0xc8;
const DAC: u8 = 0xcc;
const SOF15: u8 = 0xcf;
const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const APP1: u8 = 0xe1;
const APP14: u8 = 0xee;

/// A marker segment of the header.
struct Segment<'a> {
    marker: u8,
    /// Where its 0xff lies.
    start: usize,
    /// What follows its length.
    payload: &'a [u8],
    /// Whether bytes that are no marker lie before it.
    follows_garbage: bool,
}

/// The segments up to and including the first SOS, found as libjpeg finds them: garbage between
/// them is skipped.
fn segments(bytes: &[u8]) -> impl Iterator<Item = Segment<'_>> {
    let mut position = 2;
    let mut ended = false;
    std::iter::from_fn(move || {
        let mut follows_garbage = false;
        while !ended {
            let start = position
                + bytes
                    .get(position..)?
                    .windows(2)
                    .position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff))?;
            // Any number of fill bytes may come before a marker.
            follows_garbage |= bytes[position..start].iter().any(|&byte| byte != 0xff);
            let marker = bytes[start + 1];
            if matches!(marker, 0x01 | 0xd0..=0xd7) {
                position = start + 2;
                continue;
            }
            if matches!(marker, SOI | EOI) {
                return None;
            }
            let (_, rest) = bytes[start..].split_first_chunk::<2>()?;
            let length = usize::from(u16::from_be_bytes(*rest.first_chunk()?));
            let payload = rest.get(2..length)?;
            position = start + 2 + length;
            ended = marker == SOS;
            return Some(Segment {
                marker,
                start,
                payload,
                follows_garbage,
            });
        }
        None
    })
}

/// What the APP1 segments before the first scan hold.
pub(super) fn app1_segments(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    segments(bytes)
        .filter(|segment| segment.marker == APP1)
        .map(|segment| segment.payload)
}

/// Whether pixels are predicted from their neighbours (SOF3), of which libjpeg decodes no part
/// alone.
pub(super) fn is_lossless(bytes: &[u8]) -> bool {
    segments(bytes).any(|segment| segment.marker == SOF3)
}

/// Whether an end-of-image marker follows the first scan's header.
pub(super) fn has_end(bytes: &[u8]) -> bool {
    let scan = segments(bytes).find(|segment| segment.marker == SOS);
    scan.is_some_and(|scan| ends_after(bytes, scan.start))
}

/// Whether there is an end marker after `position`; looked for from the end, where it is as a rule.
fn ends_after(bytes: &[u8], position: usize) -> bool {
    let mut pairs = bytes[position..].windows(2).rev();
    pairs.any(|pair| pair == [0xff, EOI])
}

/// How the coefficients are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JpegProcess {
    /// SOF0: sequential, Huffman, 8 bits.
    Baseline,
    /// SOF1: sequential, Huffman.
    Extended,
    /// SOF2: progressive, Huffman.
    Progressive,
    /// Lossless, hierarchical or arithmetic.
    Other,
}

/// How a JPEG is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JpegFacts {
    /// Process.
    pub process: JpegProcess,
    /// Bits a sample.
    pub precision: u8,
    /// Stored width in pixels.
    pub width: u16,
    /// Stored height in pixels; 0 if it comes after the first scan.
    pub height: u16,
    /// Number of components.
    pub num_components: u8,
    /// Horizontal and vertical sampling factor of each of the first four components.
    pub sampling: [(u8, u8); 4],
    /// Whether the first scan holds all components.
    pub is_interleaved: bool,
    /// The Adobe segment's colour transform: 0 means that the components are RGB or CMYK.
    pub adobe_transform: Option<u8>,
    /// Whether there is an end marker after the first scan's start.
    pub has_end: bool,
}

impl JpegFacts {
    /// Reads the markers up to the first scan; `None` where they are not in order.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(&[0xff, SOI]) {
            return None;
        }
        let mut facts: Option<Self> = None;
        let mut adobe_transform = None;
        for segment in segments(bytes) {
            if segment.follows_garbage {
                return None;
            }
            let body = segment.payload;
            match segment.marker {
                DHT | JPG | DAC => {}
                SOF0..=SOF15 => facts = Some(Self::of_frame(segment.marker, body)?),
                APP14 if body.starts_with(b"Adobe") => adobe_transform = body.get(11).copied(),
                SOS => {
                    let mut facts = facts?;
                    facts.is_interleaved = *body.first()? == facts.num_components;
                    facts.adobe_transform = adobe_transform;
                    facts.has_end = ends_after(bytes, segment.start);
                    return Some(facts);
                }
                _ => {}
            }
        }
        None
    }

    /// What the start of a frame says.
    fn of_frame(marker: u8, body: &[u8]) -> Option<Self> {
        let &[precision, h1, h2, w1, w2, num_components] = body.first_chunk()?;
        let mut sampling = [(0, 0); 4];
        let components = sampling.iter_mut().enumerate();
        for (i, factors) in components.take(num_components.into()) {
            let both = *body.get(6 + 3 * i + 1)?;
            *factors = (both >> 4, both & 15);
        }
        Some(Self {
            process: match marker {
                SOF0 => JpegProcess::Baseline,
                SOF1 => JpegProcess::Extended,
                SOF2 => JpegProcess::Progressive,
                _ => JpegProcess::Other,
            },
            precision,
            width: u16::from_be_bytes([w1, w2]),
            height: u16::from_be_bytes([h1, h2]),
            num_components,
            sampling,
            is_interleaved: false,
            adobe_transform: None,
            has_end: false,
        })
    }

    /// Whether it is gray or YCbCr of 8 bits in whole, which all GPU decoders expect.
    fn is_plain(&self) -> bool {
        let (first, others) = (self.sampling[0], &self.sampling[1..3]);
        let chroma_is_coarser = match self.num_components {
            1 => true,
            3 => others.iter().all(|factors| *factors == (1, 1)) && matches!(first, (1..=2, 1..=2)),
            _ => false,
        };
        self.precision == 8
            && self.height > 0
            && self.has_end
            && chroma_is_coarser
            && self.adobe_transform.is_none_or(|transform| transform == 1)
    }

    /// Whether nvJPEG's hardware decoder takes it: one baseline scan of 4:4:4, 4:2:2, 4:4:0, 4:2:0
    /// or gray.
    pub fn suits_hardware(&self) -> bool {
        self.process == JpegProcess::Baseline && self.is_interleaved && self.is_plain()
    }

    /// Whether nvJPEG's decoders with Huffman decoding on the host take it: the same, and
    /// progressive or in several scans.
    pub fn suits_hybrid(&self) -> bool {
        self.process != JpegProcess::Other && self.is_plain()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(subsampling: turbojpeg::Subsamp, progressive: bool) -> Vec<u8> {
        let pixels = (0..40 * 30 * 3)
            .map(|i| (i * 7 % 251) as u8)
            .collect::<Vec<_>>();
        let mut compressor = turbojpeg::Compressor::new().unwrap();
        compressor.set_subsamp(subsampling).unwrap();
        compressor.set_progressive(progressive).unwrap();
        let image = turbojpeg::Image {
            pixels: pixels.as_slice(),
            width: 40,
            pitch: 120,
            height: 30,
            format: turbojpeg::PixelFormat::RGB,
        };
        compressor.compress_to_vec(image).unwrap()
    }

    #[test]
    fn the_markers_are_read() {
        use turbojpeg::Subsamp;
        for (subsampling, factors) in [
            (Subsamp::None, (1, 1)),
            (Subsamp::Sub2x1, (2, 1)),
            (Subsamp::Sub1x2, (1, 2)),
            (Subsamp::Sub2x2, (2, 2)),
        ] {
            let facts = JpegFacts::of(&encode(subsampling, false)).unwrap();
            assert_eq!((facts.width, facts.height, facts.precision), (40, 30, 8));
            assert_eq!((facts.num_components, facts.sampling[0]), (3, factors));
            assert!(facts.suits_hardware() && facts.suits_hybrid(), "{facts:?}");
        }
        let gray = JpegFacts::of(&encode(Subsamp::Gray, false)).unwrap();
        assert!(
            gray.num_components == 1 && gray.suits_hardware(),
            "{gray:?}"
        );
        let progressive = JpegFacts::of(&encode(Subsamp::Sub2x2, true)).unwrap();
        assert!(!progressive.suits_hardware() && progressive.suits_hybrid());
        let narrow = JpegFacts::of(&encode(Subsamp::Sub4x1, false)).unwrap();
        assert!(
            !narrow.suits_hardware() && !narrow.suits_hybrid(),
            "{narrow:?}"
        );
    }

    #[test]
    fn what_is_odd_stays_with_the_processor() {
        let whole = encode(turbojpeg::Subsamp::Sub2x2, false);
        let cut = JpegFacts::of(&whole[..whole.len() - 2]).unwrap();
        assert!(!cut.has_end && !cut.suits_hybrid());
        // An Adobe segment that says RGB.
        let adobe = |transform| {
            let segment = [
                0xff, 0xee, 0, 14, b'A', b'd', b'o', b'b', b'e', 0, 100, 0, 0, 0, 0, transform,
            ];
            [&whole[..2], &segment, &whole[2..]].concat()
        };
        assert!(!JpegFacts::of(&adobe(0)).unwrap().suits_hybrid());
        assert!(JpegFacts::of(&adobe(1)).unwrap().suits_hardware());
        // No prefix panics, and none is taken for a whole image.
        for length in 0..whole.len() {
            let facts = JpegFacts::of(&whole[..length]);
            assert!(facts.is_none_or(|facts| !facts.suits_hybrid()), "{length}");
        }
    }
}
