//! No pixels at all: each batch holds its images as they are stored, for whoever decodes otherwise.
use bytes::Bytes;

use super::{BackendError, Decode, ImageBackend, ImageDecoder};
use crate::ImageError;
use crate::image::{Decoder, ImageHeader};

/// Decodes nothing. Headers are read, as crops are drawn from them; an image without a sound header
/// is bad.
#[derive(Debug, Clone, Copy)]
pub struct RawBackend {
    /// Whether the width and height that crops are drawn from are those after EXIF orientation.
    pub exif_orientation: bool,
}

struct Headers {
    decoder: Decoder,
    exif_orientation: bool,
}

impl ImageDecoder<Bytes> for Headers {
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        self.decoder.header(bytes, self.exif_orientation)
    }

    fn decode(&mut self, images: &mut [Decode<'_, Bytes>]) -> Result<(), BackendError> {
        for Decode { image, slot, .. } in images {
            **slot = image.bytes.clone();
        }
        Ok(())
    }
}

impl ImageBackend for RawBackend {
    type Memory = Vec<Bytes>;
    type Slot = Bytes;

    fn memory(&self, batch_size: usize, _sides: &[u32]) -> Result<Vec<Bytes>, BackendError> {
        Ok(vec![Bytes::new(); batch_size])
    }

    fn slots(&self, memory: Vec<Bytes>) -> Vec<Bytes> {
        memory
    }

    fn join(&self, slots: Vec<Bytes>) -> Vec<Bytes> {
        slots
    }

    fn takes_views(&self) -> bool {
        true
    }

    fn decoder(&self) -> Result<Box<dyn ImageDecoder<Bytes>>, BackendError> {
        Ok(Box::new(Headers {
            decoder: Decoder::default(),
            exif_orientation: self.exif_orientation,
        }))
    }

    fn take_back(&self, memory: &mut Vec<Bytes>) {
        // A slice keeps all bytes of its page in memory.
        memory.fill(Bytes::new());
    }
}
