//! Pixels of a micro-batch by its plan: in place, or from images that lie anywhere.
use super::{ImageMix, MixPlan};

impl MixPlan {
    /// Values of one image, `3 * S * S`.
    fn image_len(&self) -> usize {
        3 * (self.side as usize).pow(2)
    }

    /// Mixes a micro-batch of normalised pixels, `[B, 3, S, S]`, in place.
    ///
    /// # Panics
    /// If `pixels` has another length.
    pub fn apply(&self, pixels: &mut [f32]) {
        let (images, len) = (self.images.len(), self.image_len());
        assert_eq!(pixels.len(), images * len, "pixels are not [B, 3, S, S]");
        let (before, after) = pixels.split_at_mut(images / 2 * len);
        let pairs = before
            .chunks_exact_mut(len)
            .zip(after.chunks_exact_mut(len).rev());
        let side = self.side as usize;
        let mut own = vec![0.0; side];
        for (i, (first, second)) in pairs.enumerate() {
            let [mix, other] = [self.images[i], self.images[self.partner(i)]];
            // Row by row, so that only one row needs to be kept as it was.
            let rows = first.chunks_exact_mut(side);
            for (row, (first, second)) in rows.zip(second.chunks_exact_mut(side)).enumerate() {
                own.copy_from_slice(first);
                mix.mix_row(row % side, first, second);
                other.mix_row(row % side, second, &own);
            }
        }
    }

    /// Mixes images of a micro-batch that lie anywhere, `[3, S, S]` each, into `output`, `[B, 3, S,
    /// S]`.
    ///
    /// # Panics
    /// If there are more or fewer images, or pixels of one, than the plan has.
    pub fn gather(&self, images: &[&[f32]], output: &mut [f32]) {
        let len = self.image_len();
        assert_eq!(images.len(), self.images.len(), "another number of images");
        assert_eq!(output.len(), images.len() * len, "not [B, 3, S, S]");
        for (i, output) in output.chunks_exact_mut(len).enumerate() {
            self.mix_image(i, images[i], images[self.partner(i)], output);
        }
    }

    /// What image `i` becomes, from its own pixels and its partner's ([`Self::partner`]), each `[3,
    /// S, S]`. Images are independent of one another: threads may make them side by side.
    ///
    /// # Panics
    /// If there is no image `i`, or a length is not `3 * S * S`.
    pub fn mix_image(&self, i: usize, own: &[f32], partner: &[f32], output: &mut [f32]) {
        let len = self.image_len();
        assert!(
            own.len() == len && partner.len() == len && output.len() == len,
            "an image is not [3, S, S]"
        );
        let side = self.side as usize;
        let mix = self.images[i];
        let rows = own.chunks_exact(side).zip(partner.chunks_exact(side));
        for (row, (output, (own, partner))) in output.chunks_exact_mut(side).zip(rows).enumerate() {
            output.copy_from_slice(own);
            mix.mix_row(row % side, output, partner);
        }
    }
}

impl ImageMix {
    /// Mixes a row of the partner, row `y` of a channel, into one of the image.
    #[inline]
    fn mix_row(self, y: usize, own: &mut [f32], partner: &[f32]) {
        match self {
            Self::Alone => {}
            Self::Mixup { lambda } => {
                let (share, rest) = (lambda as f32, (1.0 - lambda) as f32);
                for (own, partner) in own.iter_mut().zip(partner) {
                    *own = *own * share + *partner * rest;
                }
            }
            Self::CutMix(cut) => {
                if (cut.top as usize..cut.bottom as usize).contains(&y) {
                    let columns = cut.left as usize..cut.right as usize;
                    own[columns.clone()].copy_from_slice(&partner[columns]);
                }
            }
        }
    }
}
