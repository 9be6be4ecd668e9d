//! Any bytes: the header is read or refused, without a panic; a JPEG's markers agree with libjpeg's view of its size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nepa_pipeline::{JpegFacts, MAX_PIXELS, read_header};

fuzz_target!(|bytes: &[u8]| {
    let facts = JpegFacts::of(bytes);
    if let Ok(header) = read_header(bytes) {
        assert!(header.width > 0 && header.height > 0);
        assert!(u64::from(header.width) * u64::from(header.height) <= MAX_PIXELS);
        if let Some(facts) = facts.filter(JpegFacts::suits_hybrid) {
            let stored = (u32::from(facts.width), u32::from(facts.height));
            assert!(
                stored == (header.width, header.height) || stored == (header.height, header.width)
            );
        }
    }
});
