//! Attention with what belongs to it, and its backward.
//!
//! How near is near: the twin rounds normalised and rotated queries and keys as the kernels do. What is left are the roundings of probabilities, of the
//! gradients of scores and of the output, at most 2^-8 of each, and those of the results. The roundings of many terms do not conspire, so the twin says what
//! is the root of the sum of their squares; the bound is [`DEVIATIONS`] times that.
use nepa_tests::engine_kernels::attention::{
    AttentionInput, HEAD, HeadAffine, attention_backward, attention_forward,
};
use nepa_tests::engine_kernels::attention_twin::{TwinHead, TwinNorm};
use nepa_tests::engine_kernels::{Bf16, bf16, widen};

use super::{BF16, F32, Random, Wide, assert_gradient, dot, launched};

const EPS: f32 = 1e-12;
/// One rounding is off by 0.4 of its most on average.
const DEVIATIONS: f64 = 4.0;

/// Everything that attention reads.
struct Case {
    tokens: usize,
    heads: usize,
    causal: bool,
    qkv: Vec<Bf16>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// From one image's angles to the next; 0 if there is one table.
    table_stride: usize,
    /// By norm: weight, bias.
    affine: [[Option<Vec<f32>>; 2]; 2],
    normed: bool,
}

/// Which norms there are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Norms {
    None,
    Plain,
    Weight,
    Affine,
}

impl Case {
    fn new(
        random: &mut Random,
        (batch, tokens, heads): (usize, usize, usize),
        causal: bool,
        norms: Norms,
    ) -> Self {
        let angles = random.f32s(tokens * HEAD / 2, 0.0, 2.0);
        // The first token is not turned.
        let angle = |i: usize| if i < HEAD / 2 { 0.0 } else { angles[i] };
        let mut affine =
            |exists: bool, mean: f64| [0, 1].map(|_| exists.then(|| random.f32s(HEAD, mean, 0.3)));
        let weights = affine(matches!(norms, Norms::Weight | Norms::Affine), 1.0);
        let biases = affine(norms == Norms::Affine, 0.0);
        let ([w0, w1], [b0, b1]) = (weights, biases);
        Self {
            tokens,
            heads,
            causal,
            qkv: random.bf16s(batch * tokens * 3 * heads * HEAD, 1.0),
            cos: (0..angles.len()).map(|i| angle(i).cos()).collect(),
            sin: (0..angles.len()).map(|i| angle(i).sin()).collect(),
            table_stride: 0,
            affine: [[w0, b0], [w1, b1]],
            normed: norms != Norms::None,
        }
    }

    /// A table of angles for each image, and between two of them what nobody may read.
    fn with_tables(mut self, random: &mut Random, gap: usize) -> Self {
        let len = self.tokens * HEAD / 2;
        self.table_stride = len + gap;
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for image in 0..self.batch() {
            if image > 0 {
                cos.resize(image * self.table_stride, 1e30);
                sin.resize(image * self.table_stride, 1e30);
            }
            for angle in random.f32s(len, 0.0, 2.0) {
                cos.push(angle.cos());
                sin.push(angle.sin());
            }
        }
        (self.cos, self.sin) = (cos, sin);
        self
    }

    fn batch(&self) -> usize {
        self.qkv.len() / (self.tokens * 3 * self.heads * HEAD)
    }

    fn input(&self) -> AttentionInput<'_> {
        AttentionInput {
            qkv: &self.qkv,
            cos: &self.cos,
            sin: &self.sin,
            table_stride: self.table_stride,
            tokens: self.tokens,
            norms: self.normed.then(|| {
                [0, 1].map(|norm| HeadAffine {
                    weight: self.affine[norm][0].as_deref(),
                    bias: self.affine[norm][1].as_deref(),
                })
            }),
            heads: self.heads,
            causal: self.causal,
            eps: EPS,
        }
    }

    /// One head of `[B, T, parts, H, 64]`.
    fn head_of<T: Copy>(
        &self,
        values: &[T],
        (image, head): (usize, usize),
        (part, parts): (usize, usize),
    ) -> Vec<T> {
        (0..self.tokens)
            .flat_map(|token| {
                let row = (image * self.tokens + token) * parts + part;
                values[(row * self.heads + head) * HEAD..][..HEAD].to_vec()
            })
            .collect()
    }

    fn twin(&self, place: (usize, usize)) -> TwinHead {
        TwinHead {
            qkv: [0, 1, 2].map(|part| self.head_of(&self.qkv, place, (part, 3)).wide()),
            norms: self.normed.then(|| {
                [0, 1].map(|norm| {
                    let values = |part: usize, missing: f64| {
                        self.affine[norm][part]
                            .as_ref()
                            .map_or_else(|| vec![missing; HEAD], |values| values.wide())
                    };
                    TwinNorm {
                        weight: values(0, 1.0),
                        bias: values(1, 0.0),
                        eps: f64::from(EPS),
                    }
                })
            }),
            rotary: [&self.cos, &self.sin]
                .map(|table| table[place.0 * self.table_stride..][..self.tokens * HEAD / 2].wide()),
            causal: self.causal,
            rounded: |value| f64::from(widen(bf16(value as f32))),
        }
    }
}

#[track_caller]
fn assert_within(name: &str, got: &[f64], expected: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), expected.len(), "{name}: number of values");
    for (place, (got, expected)) in got.iter().zip(expected).enumerate() {
        let bound = bound(place);
        assert!(
            (got - expected).abs() <= bound,
            "{name}[{place}] is {got}, not {expected} (+- {bound})"
        );
    }
}

/// Runs both kernels and compares every head.
fn check(case: &Case, random: &mut Random) {
    let (batch, tokens, heads) = (case.batch(), case.tokens, case.heads);
    let (out, lse) = launched(|launch| attention_forward(launch, case.input()));
    let d_out = random.bf16s(out.len(), 1.0);
    let gradients =
        launched(|launch| attention_backward(launch, case.input(), (&out, &lse), &d_out));
    assert_eq!(gradients.norm_partials.is_some(), case.normed);
    for place in (0..batch).flat_map(|image| (0..heads).map(move |head| (image, head))) {
        let (image, head) = place;
        let twin = case.twin(place);
        let expected = twin.forward();
        let got = case.head_of(&out, place, (0, 1)).wide();
        assert_within("out", &got, &expected.out, |i| {
            BF16 * (expected.out[i].abs() + DEVIATIONS * expected.size[i]) + F32
        });
        // A query or key that lies between two bf16 may be rounded the other way, which moves a score a little.
        let got = lse[(image * heads + head) * tokens..][..tokens].wide();
        assert_within("lse", &got, &expected.lse, |_| 2.0 * BF16);

        let expected = twin.backward(&case.head_of(&d_out, place, (0, 1)).wide());
        for part in 0..3 {
            let name = ["d query", "d key", "d value"][part];
            let (value, size) = (&expected.d_qkv[part], &expected.sizes[part]);
            let got = case.head_of(&gradients.d_qkv, place, (part, 3)).wide();
            let bound = |i: usize| BF16 * (value[i].abs() + DEVIATIONS * size[i]) + F32;
            assert_within(name, &got, value, bound);
            let mut sums = [(0.0, F32); HEAD];
            for (i, value) in value.iter().enumerate() {
                sums[i % HEAD].0 += value;
                sums[i % HEAD].1 += DEVIATIONS * BF16 * size[i];
            }
            let got = &gradients.bias_partials[((image * 3 + part) * heads + head) * HEAD..];
            assert_within(name, &got[..HEAD].wide(), &sums.map(|sum| sum.0), |i| {
                sums[i].1
            });
        }
        let Some(norm_partials) = &gradients.norm_partials else {
            continue;
        };
        for quantity in 0..4 {
            let got = &norm_partials[((image * heads + head) * 4 + quantity) * HEAD..][..HEAD];
            if case.affine[quantity / 2][quantity % 2].is_none() {
                assert!(got.iter().all(|sum| *sum == 0.0), "no such norm");
                continue;
            }
            let size = &expected.norm_sizes[quantity];
            assert_within("norm", &got.wide(), &expected.norms[quantity], |i| {
                DEVIATIONS * BF16 * size[i] + F32
            });
        }
    }
}

#[test]
fn the_backward_twin_of_attention_is_its_gradient() {
    let mut random = Random(61);
    for (causal, norms) in [(true, Norms::Affine), (false, Norms::None)] {
        let case = Case::new(&mut random, (1, 3, 1), causal, norms);
        let mut twin = case.twin((0, 0));
        twin.rounded = |value| value;
        let d_out = random.f32s(3 * HEAD, 0.0, 1.0).wide();
        let gradients = twin.backward(&d_out);
        for part in 0..3 {
            assert_gradient("qkv", &twin.qkv[part], &gradients.d_qkv[part], |values| {
                let mut twin = twin.clone();
                twin.qkv[part] = values.to_vec();
                dot(&d_out, &twin.forward().out)
            });
        }
        let Some(norms) = twin.norms.clone() else {
            continue;
        };
        for (number, norm) in norms.iter().enumerate() {
            for (part, at) in [&norm.weight, &norm.bias].into_iter().enumerate() {
                assert_gradient("norm", at, &gradients.norms[2 * number + part], |values| {
                    let mut twin = twin.clone();
                    let norm = &mut twin.norms.as_mut().unwrap()[number];
                    *[&mut norm.weight, &mut norm.bias][part] = values.to_vec();
                    dot(&d_out, &twin.forward().out)
                });
            }
        }
    }
}

#[test]
fn attention_agrees_with_its_twin() {
    let mut random = Random(62);
    for (shape, causal, norms) in [
        ((1, 1, 1), true, Norms::Plain),
        ((2, 5, 3), true, Norms::Weight),
        ((1, 16, 1), false, Norms::None),
        ((2, 17, 2), true, Norms::Affine),
        ((1, 33, 2), false, Norms::Affine),
        ((1, 65, 1), true, Norms::None),
        ((1, 100, 1), false, Norms::Plain),
        // What is behind the last key has a bias, too.
        ((2, 1, 2), false, Norms::Affine),
        ((1, 18, 1), false, Norms::Affine),
    ] {
        check(&Case::new(&mut random, shape, causal, norms), &mut random);
    }
}

#[test]
fn attention_agrees_with_its_twin_where_each_image_has_its_own_angles() {
    let mut random = Random(64);
    for (shape, causal, norms, gap) in [
        ((3, 5, 2), true, Norms::None, 0),
        ((2, 17, 2), false, Norms::Affine, 4),
        ((2, 33, 1), true, Norms::Plain, 96),
        ((1, 20, 1), false, Norms::None, 0),
    ] {
        let case = Case::new(&mut random, shape, causal, norms).with_tables(&mut random, gap);
        check(&case, &mut random);
    }
}

#[test]
fn attention_agrees_with_its_twin_at_the_published_lengths() {
    let mut random = Random(63);
    for (shape, causal, norms) in [
        ((1, 256, 1), true, Norms::Plain),
        ((1, 257, 1), false, Norms::Weight),
        // The longest.
        ((1, 512, 1), true, Norms::None),
    ] {
        check(&Case::new(&mut random, shape, causal, norms), &mut random);
    }
}
