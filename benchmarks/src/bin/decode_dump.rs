//! Decodes images for `scripts/check-pillow.py`, which compares them whole with Pillow's.
//!
//! Reads frames from standard input (length as u32, little-endian, then the encoded image) and
//! answers each on standard output with one JSON line: width and height, then that many RGB pixels;
//! or the error, with its causes.
use std::error::Error;
use std::io::{BufWriter, Read, Write};

use nepa_pipeline::{decode_rgb, full_text, read_header};

fn main() -> Result<(), Box<dyn Error>> {
    let mut input = std::io::stdin().lock();
    let mut output = BufWriter::new(std::io::stdout().lock());
    let mut encoded = Vec::new();
    let mut length = [0; 4];
    while input.read_exact(&mut length).is_ok() {
        encoded.resize(u32::from_le_bytes(length) as usize, 0);
        input.read_exact(&mut encoded)?;
        let decoded = read_header(&encoded).and_then(|header| {
            let image = decode_rgb(&encoded, true)?;
            assert_eq!((header.width, header.height), (image.width, image.height));
            Ok(image)
        });
        let answer = match &decoded {
            Ok(image) => serde_json::json!({ "width": image.width, "height": image.height }),
            Err(error) => serde_json::json!({ "error": full_text(error) }),
        };
        writeln!(output, "{answer}")?;
        if let Ok(image) = decoded {
            output.write_all(&image.data)?;
        }
        output.flush()?;
    }
    Ok(())
}
