//! Pixels to patches, embedding to stream and back. These kernels only move and round, so they agree bit for bit.
use nepa_model::step::tokens_of_patches;
use nepa_tests::engine_kernels::embed::{Layout, assemble, disassemble, patchify};
use nepa_tests::engine_kernels::norm::add_partials;
use nepa_tests::engine_kernels::{Bf16, bf16, twins, widen};

use super::{Random, Wide, assert_sums, launched};

#[test]
fn patches_hold_the_pixels_in_order_and_then_zeros() {
    let mut random = Random(21);
    for (batch, height, width, patch, columns) in [
        (1, 2, 2, 1, 8),
        (2, 12, 12, 4, 48),
        (3, 28, 28, 14, 592),
        (1, 15, 15, 5, 80),
        (2, 32, 32, 16, 768),
        (2, 8, 20, 4, 48),
        (1, 42, 14, 14, 592),
        (3, 5, 15, 5, 80),
    ] {
        let (down, across) = (height / patch, width / patch);
        let pixels = random.bf16s(batch * 3 * height * width, 1.0);
        let mut expected = Vec::new();
        let mut in_patches = Vec::new();
        for image in 0..batch {
            for number in 0..down * across {
                for channel in 0..3 {
                    for y in 0..patch {
                        for x in 0..patch {
                            let (y, x) = (number / across * patch + y, number % across * patch + x);
                            let line = (image * 3 + channel) * height + y;
                            in_patches.push(pixels[line * width + x]);
                        }
                    }
                }
                expected.extend(&in_patches[in_patches.len() - 3 * patch * patch..]);
                expected.resize(expected.len() + columns - 3 * patch * patch, Bf16(0));
            }
        }
        for (layout, pixels) in [(Layout::Nchw, &pixels), (Layout::Patches, &in_patches)] {
            // Halfway to the next bf16, where it is rounded, and a little less.
            let near: Vec<f32> = pixels
                .iter()
                .map(|pixel| f32::from_bits(widen(*pixel).to_bits() | 0x7fff))
                .collect();
            let size = (height, width, patch);
            let got = launched(|launch| patchify(launch, layout, pixels, size, columns));
            assert!(
                got == expected,
                "{layout:?}, bf16, patches of {patch} in {height} x {width}"
            );
            let got = launched(|launch| patchify(launch, layout, &near, size, columns));
            assert!(
                got == expected,
                "{layout:?}, f32, patches of {patch} in {height} x {width}"
            );
        }
    }
}

#[test]
fn the_stream_is_the_class_token_and_the_patches_and_its_gradient_goes_back() {
    let mut random = Random(22);
    for (batch, patches, width, rows_per_piece) in [
        (1, 1, 8, 64),
        (3, 5, 24, 4),
        (2, 16, 264, 64),
        (1, 9, 768, 7),
    ] {
        for tokens in [patches, patches + 1] {
            let embedding = random.f32s(batch * patches * width, 0.0, 1.0);
            let class_token = random.f32s(width, 0.0, 1.0);
            let got = launched(|launch| {
                assemble(launch, &embedding, &class_token, patches, tokens, None)
            });
            let mut expected = Vec::<f32>::new();
            for image in embedding.chunks_exact(patches * width) {
                expected.extend(&class_token);
                expected.extend(&image[..(tokens - 1) * width]);
            }
            assert_eq!(got, expected);

            let dx = random.f32s(batch * tokens * width, 0.0, 1.0);
            let (d_embedding, partials) = launched(|launch| {
                disassemble(launch, &dx, (patches, tokens), None, width, rows_per_piece)
            });
            let mut expected = Vec::new();
            for image in dx.chunks_exact(tokens * width) {
                expected.extend(&image[width..]);
                expected.resize(expected.len() + (patches + 1 - tokens) * width, 0.0);
            }
            let rounded: Vec<Bf16> = expected.iter().copied().map(bf16).collect();
            assert_eq!(d_embedding, rounded);
            for (part, rows) in partials
                .chunks_exact(width)
                .zip(expected.chunks(rows_per_piece * width))
            {
                assert_sums("part", part, &twins::column_sums(&rows.wide(), width), 0.0);
            }

            // The class token's gradient, as the kernel's file says.
            let zeros = vec![0.0; width];
            let got = launched(|launch| {
                add_partials(launch, &dx, tokens * width, batch, &[Some(&zeros[..])])
            });
            let first: Vec<f64> = dx
                .chunks_exact(tokens * width)
                .flat_map(|image| image[..width].wide())
                .collect();
            let got = got[0].as_ref().unwrap();
            assert_sums("class token", got, &twins::column_sums(&first, width), 0.0);
        }
    }
}

#[test]
fn only_kept_patches_are_tokens_and_get_a_gradient() {
    let mut random = Random(23);
    for (batch, patches, kept_an_image, width, rows_per_piece) in [
        (1, 1, 1, 8, 64),
        (3, 5, 2, 24, 4),
        (2, 16, 4, 264, 64),
        // All of them, but in another order.
        (2, 9, 9, 768, 7),
    ] {
        let tokens = kept_an_image + 1;
        let mut kept = Vec::new();
        for _ in 0..batch {
            kept.extend(&random.order(patches as u32)[..kept_an_image]);
        }
        let embedding = random.f32s(batch * patches * width, 0.0, 1.0);
        let class_token = random.f32s(width, 0.0, 1.0);
        let got = launched(|launch| {
            assemble(
                launch,
                &embedding,
                &class_token,
                patches,
                tokens,
                Some(&kept),
            )
        });
        let dx = random.f32s(batch * tokens * width, 0.0, 1.0);
        let (mut expected, mut d_expected) = (Vec::<f32>::new(), vec![0.0; embedding.len()]);
        for (image, kept) in kept.chunks_exact(kept_an_image).enumerate() {
            expected.extend(&class_token);
            for (number, patch) in kept.iter().enumerate() {
                let at = (image * patches + *patch as usize) * width;
                expected.extend(&embedding[at..][..width]);
                let row = &dx[(image * tokens + 1 + number) * width..][..width];
                d_expected[at..][..width].copy_from_slice(row);
            }
        }
        assert_eq!(got, expected);

        let token_of = tokens_of_patches(&kept, kept_an_image, patches);
        let size = (patches, tokens);
        let (d_embedding, partials) = launched(|launch| {
            disassemble(launch, &dx, size, Some(&token_of), width, rows_per_piece)
        });
        let rounded: Vec<Bf16> = d_expected.iter().copied().map(bf16).collect();
        assert_eq!(d_embedding, rounded);
        for (part, rows) in partials
            .chunks_exact(width)
            .zip(d_expected.chunks(rows_per_piece * width))
        {
            assert_sums("part", part, &twins::column_sums(&rows.wide(), width), 0.0);
        }
    }
}
