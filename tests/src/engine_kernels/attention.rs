//! The kernels of `attention.cu`. B images of T tokens, H heads of 64 values.
use nepa_model::cuda::arguments::Attention;

use super::{Bf16, Launch, Memory, optional, optional_mut};

/// Values of a head.
pub const HEAD: usize = 64;

/// Of a norm of queries or keys, `[64]` each.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeadAffine<'a> {
    /// Else 1.
    pub weight: Option<&'a [f32]>,
    /// Else 0.
    pub bias: Option<&'a [f32]>,
}

/// What both kernels read.
#[derive(Debug, Clone, Copy)]
pub struct AttentionInput<'a> {
    /// `[B, T, 3, H, 64]`.
    pub qkv: &'a [Bf16],
    /// `[T, 32]`, or one such table for each image.
    pub cos: &'a [f32],
    /// The same.
    pub sin: &'a [f32],
    /// From one image's table to the next; 0 if there is one for all.
    pub table_stride: usize,
    /// T.
    pub tokens: usize,
    /// Of the queries' norm and of the keys', if they are normalised.
    pub norms: Option<[HeadAffine<'a>; 2]>,
    /// H.
    pub heads: usize,
    /// Whether a token sees only those before it, and itself.
    pub causal: bool,
    /// Of the norms.
    pub eps: f32,
}

/// The backward's outputs.
#[derive(Debug, PartialEq)]
pub struct AttentionGradients {
    /// `[B, T, 3, H, 64]`.
    pub d_qkv: Vec<Bf16>,
    /// `[B, 3, H, 64]`.
    pub bias_partials: Vec<f32>,
    /// `[B * H, 4, 64]`, if there are norms.
    pub norm_partials: Option<Vec<f32>>,
}

struct Outputs {
    out: Memory<Bf16>,
    lse: Memory<f32>,
    backward: Option<BackwardOutputs>,
}

struct BackwardOutputs {
    d_qkv: Memory<Bf16>,
    bias: Memory<f32>,
    norms: Option<Memory<f32>>,
}

fn run(
    launch: Launch,
    input: AttentionInput<'_>,
    saved: Option<(&[Bf16], &[f32], &[Bf16])>,
) -> Outputs {
    let tokens = input.tokens;
    let width = input.heads * HEAD;
    let batch = input.qkv.len() / (tokens * 3 * width);
    let table = tokens * HEAD / 2 + (batch - 1) * input.table_stride;
    assert_eq!(input.cos.len(), table, "tables of other images");
    assert_eq!(input.sin.len(), table, "two tables of one size");
    let qkv = launch.input(input.qkv);
    let (cos, sin) = (launch.input(input.cos), launch.input(input.sin));
    let norms = input.norms.unwrap_or_default();
    let affine = norms.map(|norm| {
        [norm.weight, norm.bias].map(|values| values.map(|values| launch.input(values)))
    });
    let [[query_weight, query_bias], [key_weight, key_bias]] =
        [0, 1].map(|norm| [0, 1].map(|part| optional(affine[norm][part].as_ref())));
    let (mut out, mut lse) = match saved {
        Some((out, lse, _)) => (launch.changed(out), launch.changed(lse)),
        None => (
            launch.output(batch * tokens * width),
            launch.output(batch * input.heads * tokens),
        ),
    };
    let d_out = saved.map(|(_, _, d_out)| launch.input(d_out));
    let mut backward = saved.map(|_| BackwardOutputs {
        d_qkv: launch.output(input.qkv.len()),
        bias: launch.output(batch * 3 * width),
        norms: input
            .norms
            .map(|_| launch.output(batch * input.heads * 4 * HEAD)),
    });
    let (d_qkv, bias_partials, norm_partials) = match &mut backward {
        Some(outputs) => (
            outputs.d_qkv.address_mut(),
            outputs.bias.address_mut(),
            optional_mut(outputs.norms.as_mut()),
        ),
        None => (0, 0, 0),
    };
    let args = Attention {
        qkv: qkv.address(),
        cos: cos.address(),
        sin: sin.address(),
        query_weight,
        query_bias,
        key_weight,
        key_bias,
        out: out.address_mut(),
        lse: lse.address_mut(),
        d_out: optional(d_out.as_ref()),
        d_qkv,
        bias_partials,
        norm_partials,
        tokens: tokens as u32,
        heads: input.heads as u32,
        causal: input.causal.into(),
        qk_norm: input.norms.is_some().into(),
        eps: input.eps,
        table_stride: input.table_stride as u32,
    };
    launch.run(args.launch(batch as u32));
    Outputs { out, lse, backward }
}

/// `attention_forward`: the output `[B, T, H * 64]`, and `[B, H, T]`.
pub fn attention_forward(launch: Launch, input: AttentionInput<'_>) -> (Vec<Bf16>, Vec<f32>) {
    let outputs = run(launch, input, None);
    (outputs.out.written(), outputs.lse.written())
}

/// `attention_backward`, from what the forward left and the gradient of its output.
pub fn attention_backward(
    launch: Launch,
    input: AttentionInput<'_>,
    (out, lse): (&[Bf16], &[f32]),
    d_out: &[Bf16],
) -> AttentionGradients {
    let outputs = run(launch, input, Some((out, lse, d_out)));
    assert!(
        outputs.out.values() == out && outputs.lse.values() == lse,
        "the backward changed its input"
    );
    let gradients = outputs.backward.expect("a backward was launched");
    AttentionGradients {
        d_qkv: gradients.d_qkv.written(),
        bias_partials: gradients.bias.written(),
        norm_partials: gradients.norms.map(Memory::written),
    }
}
