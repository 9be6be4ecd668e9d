//! Each operation's backward against finite differences in f64, and f32 against f64.
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::activation::{activate, activate_gated};
use super::attention::{attention_scores, causal_softmax, merge_heads, split_heads};
use super::linear::{add_scaled, linear};
use super::norm::layer_norm;
use super::*;
use crate::HiddenAct;
use crate::init::{Purpose, stream, unit};

fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = stream(seed, 1, 2, Purpose::Weights);
    let values: Vec<f64> = (0..shape.iter().product::<usize>())
        .map(|_| 2.0 * unit(&mut rng) - 1.0)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor")
}

/// Compares the tape's gradient of `sum(f(inputs) * constant)` with central differences, for every
/// input element.
fn check(name: &str, shapes: &[&[usize]], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let vars: Vec<Var> = shapes
        .iter()
        .enumerate()
        .map(|(i, s)| Var::from_tensor(&random(s, i as u64)).expect("a var"))
        .collect();
    let inputs: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let out = f(&inputs).expect("forward");
    let constant = random(out.dims(), 99);
    let weigh = |out: Tensor| (out * &constant).expect("product").sum_all().expect("sum");
    let grads = weigh(out).backward().expect("backward");
    for (index, var) in vars.iter().enumerate() {
        let grad = grads
            .get(var)
            .unwrap_or_else(|| panic!("{name}: no gradient of input {index}"));
        let grad = grad
            .flatten_all()
            .and_then(|g| g.to_vec1::<f64>())
            .expect("values");
        let values = inputs[index]
            .flatten_all()
            .and_then(|x| x.to_vec1::<f64>())
            .expect("values");
        for i in 0..values.len() {
            let at = |step: f64| {
                let mut moved = values.clone();
                moved[i] += step;
                let mut inputs: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
                inputs[index] =
                    Tensor::from_vec(moved, shapes[index], &Device::Cpu).expect("a tensor");
                weigh(f(&inputs).expect("forward"))
                    .to_scalar::<f64>()
                    .expect("a number")
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!(
                (slope - grad[i]).abs() < 1e-7,
                "{name}: input {index}, element {i}: {} should be {slope}",
                grad[i]
            );
        }
    }
    // The same in f32.
    let single: Vec<Tensor> = inputs
        .iter()
        .map(|x| x.detach().to_dtype(DType::F32).expect("f32"))
        .collect();
    let (a, b) = (f(&single).expect("f32"), f(&inputs).expect("f64"));
    let off = (a.to_dtype(DType::F64).expect("f64") - b)
        .and_then(|d| d.abs()?.max_all()?.to_scalar::<f64>());
    assert!(off.expect("a number") < 3e-6, "{name}: f32 is off");
}

fn table(tokens: usize, half: usize) -> Arc<RotaryTable> {
    let angles: Vec<f64> = (0..tokens * half)
        .map(|i| if i < half { 0.0 } else { 0.37 * i as f64 })
        .collect();
    Arc::new(RotaryTable {
        cos: angles.iter().map(|a| a.cos()).collect(),
        sin: angles.iter().map(|a| a.sin()).collect(),
    })
}

#[test]
fn backward_passes_agree_with_finite_differences() {
    check("layer_norm", &[&[3, 2, 10]], |x| {
        layer_norm(&x[0], 10, None, None, 1e-6)
    });
    check("layer_norm of heads", &[&[3, 2, 12], &[6]], |x| {
        layer_norm(&x[0], 6, Some(&x[1]), None, 1e-6)
    });
    check("layer_norm affine", &[&[70, 9], &[9], &[9]], |x| {
        layer_norm(&x[0], 9, Some(&x[1]), Some(&x[2]), 1e-6)
    });
    check("linear", &[&[2, 3, 4], &[5, 4]], |x| {
        linear(&x[0], &x[1], None)
    });
    check("linear with bias", &[&[2, 35, 4], &[5, 4], &[5]], |x| {
        linear(&x[0], &x[1], Some(&x[2]))
    });
    check("add_scaled", &[&[2, 3, 4], &[2, 3, 4], &[4]], |x| {
        add_scaled(&x[0], &x[1], &x[2])
    });
    for act in [HiddenAct::Gelu, HiddenAct::Silu, HiddenAct::Relu] {
        check("activate", &[&[3, 7]], |x| activate(&x[0], act));
        check("activate_gated", &[&[3, 7], &[3, 7]], |x| {
            activate_gated(&x[0], &x[1], act)
        });
    }
    check("split_heads", &[&[2, 3, 8]], |x| {
        split_heads(&x[0], 2, None)
    });
    check("split_heads rotated", &[&[2, 3, 8]], |x| {
        split_heads(&x[0], 2, Some(&table(3, 2)))
    });
    check("merge_heads", &[&[2, 3, 4, 2]], |x| merge_heads(&x[0]));
    check("attention_scores", &[&[2, 3, 4, 2], &[2, 3, 4, 2]], |x| {
        attention_scores(&x[0], &x[1])
    });
    for causal in [false, true] {
        check("causal_softmax", &[&[2, 2, 5, 5]], |x| {
            causal_softmax(&x[0], 0.7, causal)
        });
    }
    let target = random(&[2, 3, 9], 50);
    check("cosine_rows", &[&[2, 3, 9]], |x| {
        cosine_rows(&x[0], &target.to_dtype(x[0].dtype())?)
    });
    // The rest of candle's operations is held to our own by a test of the whole model.
    check("cosine_rows of candle's", &[&[2, 3, 9]], |x| {
        composed::cosine_rows(&x[0], &target.to_dtype(x[0].dtype())?)
    });
}

#[test]
fn splitting_and_merging_undo_each_other() {
    let x = random(&[2, 5, 12], 3);
    let back = merge_heads(&split_heads(&x, 3, None).expect("splits")).expect("merges");
    assert_eq!(
        back.to_vec3::<f64>().expect("values"),
        x.to_vec3::<f64>().expect("values")
    );
}

#[test]
fn the_fast_erf_is_close_enough() {
    let worst = (-60_000..=60_000)
        .map(|i| {
            let x = i as f32 * 1e-4;
            (Real::erf(x) as f64 - libm::erf(x as f64)).abs()
        })
        .fold(0.0, f64::max);
    assert!(worst < 5e-7, "{worst}");
}

#[test]
fn sums_over_rows_do_not_depend_on_threads() {
    let x = random(&[1000, 24], 5).to_dtype(DType::F32).expect("f32");
    let w =
        Var::from_tensor(&random(&[7, 24], 6).to_dtype(DType::F32).expect("f32")).expect("a var");
    let b = Var::from_tensor(&random(&[7], 7).to_dtype(DType::F32).expect("f32")).expect("a var");
    let gradient = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a pool");
        pool.install(|| {
            let loss = linear(&x, &w, Some(&b))
                .and_then(|y| y.sqr()?.sum_all())
                .expect("forward");
            let grads = loss.backward().expect("backward");
            let values = |var: &Var| {
                grads
                    .get(var)
                    .and_then(|g| g.flatten_all().ok()?.to_vec1::<f32>().ok())
            };
            (values(&w), values(&b))
        })
    };
    assert_eq!(gradient(1), gradient(4));
}
