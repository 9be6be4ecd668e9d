//! The CPU's backend: each decode thread decodes and renders into ordinary memory.
use std::marker::PhantomData;

use bytes::BytesMut;

use super::{BackendError, Decode, ImageBackend, ImageDecoder, check_patches};
use crate::ImageError;
use crate::image::{CpuRenderer, ImageHeader, Normalize, Pixel};

/// Decodes on the decode threads into ordinary memory.
#[derive(Debug, Clone, Copy)]
pub struct CpuBackend<P: Pixel = f32> {
    normalize: Normalize,
    exif_orientation: bool,
    patch_size: Option<u32>,
    pixel: PhantomData<P>,
}

impl<P: Pixel> CpuBackend<P> {
    /// A backend that normalises and, if asked for, applies the EXIF orientation. With `Some(p)`
    /// each view is cut into patches: `[P, 3 * p * p]`, the P = (S / p)^2 patches row by row, each
    /// `[3, p, p]`.
    pub fn new(normalize: Normalize, exif_orientation: bool, patch_size: Option<u32>) -> Self {
        Self {
            normalize,
            exif_orientation,
            patch_size,
            pixel: PhantomData,
        }
    }
}

impl<P: Pixel> ImageDecoder<CpuSlot<P>> for CpuRenderer<P> {
    fn header(&mut self, bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        self.read_header(bytes)
    }

    fn decode(&mut self, images: &mut [Decode<'_, CpuSlot<P>>]) -> Result<(), BackendError> {
        for Decode {
            image,
            slot,
            result,
        } in images
        {
            *result = self.render(image.bytes, image.header, image.views, slot.views());
        }
        Ok(())
    }
}

/// The pixels of one batch: an array `[B, ...]` for each view.
#[derive(Debug)]
pub struct CpuMemory<P: Pixel = f32> {
    views: Vec<BytesMut>,
    num_samples: usize,
    pixel: PhantomData<P>,
}

/// The pixels of one sample: its part of the array of each view.
///
/// The parts of an array are handles into one allocation, which [`BytesMut`] splits and joins
/// without copying; so threads fill them side by side, without unsafe code of ours.
#[derive(Debug)]
pub struct CpuSlot<P: Pixel = f32> {
    first: BytesMut,
    more: Vec<BytesMut>,
    pixel: PhantomData<P>,
}

impl<P: Pixel> CpuMemory<P> {
    fn new(num_samples: usize, sides: &[u32]) -> Self {
        let array = |&side: &u32| {
            let num_bytes = num_samples * 3 * (side as usize).pow(2) * size_of::<P>();
            // An allocator aligns far beyond a pixel's needs, but nothing promises it for bytes.
            let mut bytes = BytesMut::zeroed(num_bytes + align_of::<P>());
            let _ = bytes.split_to(bytes.as_ptr().align_offset(align_of::<P>()));
            bytes.truncate(num_bytes);
            bytes
        };
        Self {
            views: sides.iter().map(array).collect(),
            num_samples,
            pixel: PhantomData,
        }
    }

    /// The pixels of a view of all samples, those of the batch's spare slots included.
    pub(crate) fn view(&self, view: usize) -> &[P] {
        bytemuck::cast_slice(&self.views[view])
    }
}

impl<P: Pixel> CpuSlot<P> {
    /// The pixels of each view.
    pub(crate) fn views(&mut self) -> impl Iterator<Item = &mut [P]> {
        let all = std::iter::once(&mut self.first).chain(&mut self.more);
        all.map(|bytes| bytemuck::cast_slice_mut(&mut bytes[..]))
    }
}

impl<P: Pixel> ImageBackend for CpuBackend<P> {
    type Memory = CpuMemory<P>;
    type Slot = CpuSlot<P>;

    fn memory(&self, batch_size: usize, sides: &[u32]) -> Result<CpuMemory<P>, BackendError> {
        if let Some(patch_size) = self.patch_size {
            check_patches(patch_size, sides)?;
        }
        Ok(CpuMemory::new(batch_size, sides))
    }

    fn slots(&self, memory: CpuMemory<P>) -> Vec<CpuSlot<P>> {
        let CpuMemory {
            mut views,
            num_samples,
            ..
        } = memory;
        let sizes = views.iter().map(|bytes| bytes.len() / num_samples.max(1));
        let sizes = sizes.collect::<Vec<_>>();
        let slot = |_| {
            let mut parts = views.iter_mut().zip(&sizes);
            let mut part = || parts.next().map(|(bytes, &size)| bytes.split_to(size));
            CpuSlot {
                first: part().unwrap_or_default(),
                more: std::iter::from_fn(part).collect(),
                pixel: PhantomData,
            }
        };
        (0..num_samples).map(slot).collect()
    }

    fn join(&self, slots: Vec<CpuSlot<P>>) -> CpuMemory<P> {
        let num_samples = slots.len();
        let mut views: Vec<BytesMut> = Vec::new();
        for slot in slots {
            for (view, part) in std::iter::once(slot.first).chain(slot.more).enumerate() {
                match views.get_mut(view) {
                    Some(joined) => joined.unsplit(part),
                    None => views.push(part),
                }
            }
        }
        CpuMemory {
            views,
            num_samples,
            pixel: PhantomData,
        }
    }

    fn takes_views(&self) -> bool {
        true
    }

    fn decoder(&self) -> Result<Box<dyn ImageDecoder<CpuSlot<P>>>, BackendError> {
        let renderer = CpuRenderer::new(self.normalize, self.exif_orientation);
        Ok(Box::new(renderer.in_patches(self.patch_size)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slots of a batch and its arrays are the same memory, whatever the order of filling.
    #[test]
    fn slots_are_parts_of_one_array() {
        let backend = CpuBackend::<f32>::new(Normalize::default(), true, None);
        let memory = backend.memory(3, &[2, 1]).unwrap();
        let start = memory.view(0).as_ptr();
        let mut memory = Some(memory);
        for round in 0..3u8 {
            let mut slots = backend.slots(memory.take().unwrap());
            for i in [2, 0, 1] {
                for (view, pixels) in (0..).zip(slots[i].views()) {
                    pixels.fill(f32::from(round) + i as f32 * 10.0 + f32::from(view as u8) * 100.0);
                }
            }
            let joined = backend.join(slots);
            assert_eq!(joined.view(0).as_ptr(), start, "nothing is copied");
            for (view, values) in [(0, 12), (1, 3)] {
                for i in 0..3 {
                    let expected = f32::from(round) + i as f32 * 10.0 + view as f32 * 100.0;
                    let pixels = &joined.view(view)[i * values..][..values];
                    assert!(
                        pixels
                            .iter()
                            .all(|value| value.to_bits() == expected.to_bits()),
                        "{pixels:?}"
                    );
                }
            }
            memory = Some(joined);
        }
    }
}
