//! What a JPEG's markers say of how it is coded, to choose who may decode it. Decodes nothing.
//!
//! Markers and their contents: ITU-T T.81, annex B; the Adobe segment: T.872, 6.5.3.

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
        if !bytes.starts_with(&[0xff, 0xd8]) {
            return None;
        }
        let mut at = 2;
        let mut facts: Option<Self> = None;
        let mut adobe_transform = None;
        loop {
            // Any number of fill bytes may come before a marker.
            while bytes.get(at)? == &0xff && bytes.get(at + 1)? == &0xff {
                at += 1;
            }
            let (&[0xff, marker], rest) = bytes.get(at..)?.split_first_chunk()? else {
                return None;
            };
            at += 2;
            if matches!(marker, 0x01 | 0xd0..=0xd8) {
                continue;
            }
            let length = usize::from(u16::from_be_bytes(*rest.first_chunk()?));
            let body = rest.get(2..length)?;
            at += length;
            match marker {
                0xc4 | 0xc8 | 0xcc => {}
                0xc0..=0xcf => {
                    let &[precision, h1, h2, w1, w2, num_components] = body.first_chunk()?;
                    let mut sampling = [(0, 0); 4];
                    for (i, factors) in sampling.iter_mut().enumerate().take(num_components.into())
                    {
                        let both = *body.get(6 + 3 * i + 1)?;
                        *factors = (both >> 4, both & 15);
                    }
                    facts = Some(Self {
                        process: match marker {
                            0xc0 => JpegProcess::Baseline,
                            0xc1 => JpegProcess::Extended,
                            0xc2 => JpegProcess::Progressive,
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
                    });
                }
                0xee if body.starts_with(b"Adobe") => adobe_transform = body.get(11).copied(),
                0xda => {
                    let mut facts = facts?;
                    facts.is_interleaved = *body.first()? == facts.num_components;
                    facts.adobe_transform = adobe_transform;
                    // From the end, where it nearly always is.
                    facts.has_end = bytes[at..]
                        .windows(2)
                        .rev()
                        .any(|pair| pair == [0xff, 0xd9]);
                    return Some(facts);
                }
                _ => {}
            }
        }
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

    /// Whether nvJPEG's hardware decoder takes it: one baseline scan of 4:4:4, 4:2:2, 4:4:0, 4:2:0 or gray.
    pub fn suits_hardware(&self) -> bool {
        self.process == JpegProcess::Baseline && self.is_interleaved && self.is_plain()
    }

    /// Whether nvJPEG's decoders with Huffman decoding on the host take it: the same, and progressive or in several scans.
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
