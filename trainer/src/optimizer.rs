//! AdamW with groups, clipping and a moving average of the weights, over flat f32 buffers in the order of `nepa_model::Weights`.
//! Semantics are those of PyTorch's `AdamW` and `clip_grad_norm_`. Every element is a function of its own history and of the
//! norm, which is summed in f64 in a fixed order: the number of threads changes no bit. Called by the run loop and `nepa verify`.
use nepa_model::ParamSpec;

use crate::engine::{LearningRates, TrainingState};
use crate::recipe::OptimizerConfig;

/// Whether weight decay applies to a weight of that name: not to biases, norms and layer scales; it does to the class token.
pub fn decays(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let named = ["bias", "layernorm", "rmsnorm", "layer_scale"]
        .iter()
        .any(|part| name.contains(part));
    let norm = name
        .split('.')
        .any(|part| part == "norm" || part.ends_with("_norm"));
    !(named || norm)
}

/// Whether a weight belongs to the embeddings, which may have a learning rate of their own.
pub fn is_embedding(name: &str) -> bool {
    name.starts_with("vit_nepa.embeddings.")
}

/// Consecutive weights with the same settings.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Run {
    start: usize,
    end: usize,
    decay: f64,
    embedding: bool,
}

/// AdamW over one flat buffer. What it remembers lies in [`TrainingState`].
#[derive(Debug, Clone)]
pub struct Optimizer {
    config: OptimizerConfig,
    runs: Vec<Run>,
}

/// Elements in one piece of the norm.
const PIECE: usize = 1 << 14;

/// The global norm of all gradients, in f64 and in a fixed order.
pub fn global_norm(gradients: &[f32]) -> f64 {
    let piece = |values: &[f32]| {
        let mut lanes = [0.0f64; 8];
        let chunks = values.chunks_exact(8);
        let tail: f64 = chunks
            .remainder()
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum();
        for chunk in chunks {
            for (lane, g) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(*g) * f64::from(*g);
            }
        }
        lanes.iter().sum::<f64>() + tail
    };
    gradients.chunks(PIECE).map(piece).sum::<f64>().sqrt()
}

/// PyTorch's `clip_grad_norm_`: scales by `max_norm / (norm + 1e-6)`, but never up.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

impl Optimizer {
    /// Sorts the weights into groups. The recipe has checked the settings.
    pub fn new(config: &OptimizerConfig, specs: &[ParamSpec]) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for spec in specs {
            let run = Run {
                start: spec.offset,
                end: spec.range().end,
                decay: if decays(&spec.name) {
                    config.weight_decay
                } else {
                    0.0
                },
                embedding: is_embedding(&spec.name),
            };
            match runs.last_mut() {
                Some(last) if (last.decay, last.embedding) == (run.decay, run.embedding) => {
                    last.end = run.end
                }
                _ => runs.push(run),
            }
        }
        Self {
            config: config.clone(),
            runs,
        }
    }

    /// One update by `gradient`, whose global norm is `norm`: clipping, weights, moments, moving average, step count. The
    /// caller checks first that the norm is finite. The average starts as a copy after the first step.
    pub fn update(
        &self,
        state: &mut TrainingState,
        gradient: &[f32],
        norm: f64,
        rates: LearningRates,
    ) {
        assert_eq!(
            state.weights.flat.len(),
            gradient.len(),
            "flat buffers of one model"
        );
        state.step += 1;
        let [beta1, beta2] = self.config.betas;
        // `powf`, since a long run has more steps than `powi` counts.
        let correction1 = 1.0 - beta1.powf(state.step as f64);
        let correction2 = (1.0 - beta2.powf(state.step as f64)).sqrt();
        for run in &self.runs {
            let lr = if run.embedding {
                rates.embedding
            } else {
                rates.main
            };
            let rule = Update {
                clip: clip_factor(norm, self.config.clip_norm) as f32,
                keep: (1.0 - lr * run.decay) as f32,
                step_size: (lr / correction1) as f32,
                correction2: correction2 as f32,
                beta1: beta1 as f32,
                beta2: beta2 as f32,
                rest1: (1.0 - beta1) as f32,
                rest2: (1.0 - beta2) as f32,
                eps: self.config.eps as f32,
            };
            let range = run.start..run.end;
            rule.apply(
                &mut state.weights.flat[range.clone()],
                &gradient[range.clone()],
                &mut state.first_moment[range.clone()],
                &mut state.second_moment[range],
            );
        }
        if state.step == 1 {
            state.ema.clone_from(&state.weights.flat);
            return;
        }
        let (decay, rest) = (
            self.config.ema_decay as f32,
            (1.0 - self.config.ema_decay) as f32,
        );
        for (average, weight) in state.ema.iter_mut().zip(&state.weights.flat) {
            *average = decay * *average + rest * weight;
        }
    }
}

/// The numbers of one update, the same for a whole run.
#[derive(Debug, Clone, Copy)]
struct Update {
    clip: f32,
    keep: f32,
    step_size: f32,
    correction2: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    eps: f32,
}

impl Update {
    /// Element by element, so that it may be split over threads as it comes.
    fn apply(self, weights: &mut [f32], gradients: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((weight, gradient), m), v) in weights.iter_mut().zip(gradients).zip(m).zip(v) {
            let gradient = gradient * self.clip;
            *m = self.beta1 * *m + self.rest1 * gradient;
            *v = self.beta2 * *v + self.rest2 * gradient * gradient;
            let denominator = v.sqrt() / self.correction2 + self.eps;
            *weight = *weight * self.keep - self.step_size * *m / denominator;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nepa_model::{NepaConfig, Weights};

    fn spec(name: &str, len: usize, offset: usize) -> ParamSpec {
        ParamSpec {
            name: name.into(),
            shape: vec![len],
            offset,
        }
    }

    #[test]
    fn decay_goes_by_name() {
        for name in [
            "vit_nepa.embeddings.patch_embeddings.projection.bias",
            "vit_nepa.encoder.layer.0.layernorm_after.weight",
            "vit_nepa.encoder.layer.0.attention.attention.q_norm.weight",
            "vit_nepa.encoder.layer.0.output.layer_scale.lambda1",
            "vit_nepa.layernorm.weight",
            "fc_norm.weight",
            "blocks.0.norm.weight",
        ] {
            assert!(!decays(name), "{name}");
        }
        for name in [
            "vit_nepa.embeddings.cls_token",
            "vit_nepa.embeddings.patch_embeddings.projection.weight",
            "vit_nepa.encoder.layer.0.intermediate.gate_proj.weight",
            "normal.weight",
        ] {
            assert!(decays(name), "{name}");
        }
        let specs = ParamSpec::all(&NepaConfig::tiny());
        let optimizer = Optimizer::new(&OptimizerConfig::default(), &specs);
        assert_eq!(optimizer.runs.first().map(|run| run.start), Some(0));
        assert!(
            optimizer
                .runs
                .windows(2)
                .all(|pair| pair[0].end == pair[1].start)
        );
        for spec in &specs {
            let run = optimizer
                .runs
                .iter()
                .find(|run| run.start <= spec.offset && spec.range().end <= run.end);
            assert_eq!(
                run.expect("covered").decay > 0.0,
                decays(&spec.name),
                "{}",
                spec.name
            );
        }
    }

    /// The formulas of `torch.optim.AdamW` in f64, written out for one element.
    #[test]
    fn steps_are_those_of_the_formulas() {
        let config = OptimizerConfig {
            ema_decay: 0.9,
            ..OptimizerConfig::default()
        };
        let specs = vec![
            spec("vit_nepa.embeddings.cls_token", 1, 0),
            spec("a.bias", 1, 1),
            spec("b.weight", 1, 2),
        ];
        let optimizer = Optimizer::new(&config, &specs);
        let mut state = TrainingState::new(Weights {
            specs,
            flat: vec![0.5, -0.25, 1.5],
        });
        let mut expected: Vec<(f64, f64, f64, f64)> = state
            .weights
            .flat
            .iter()
            .map(|w| (f64::from(*w), 0.0, 0.0, 0.0))
            .collect();
        for step in 1..=6i32 {
            let gradient: Vec<f32> = (0..3)
                .map(|i| (step * (i + 1)) as f32 * 0.3 - 1.0)
                .collect();
            let rates = LearningRates {
                main: 0.01 * f64::from(step),
                embedding: 0.004 * f64::from(step),
            };
            let norm = global_norm(&gradient);
            let true_norm = gradient
                .iter()
                .map(|g| f64::from(*g).powi(2))
                .sum::<f64>()
                .sqrt();
            assert!((norm - true_norm).abs() < 1e-12);
            optimizer.update(&mut state, &gradient, norm, rates);
            let clip = (1.0 / (true_norm + 1e-6)).min(1.0);
            for (i, (w, m, v, ema)) in expected.iter_mut().enumerate() {
                let g = f64::from(gradient[i]) * clip;
                let lr = if i == 0 { rates.embedding } else { rates.main };
                *w *= 1.0 - lr * if i == 1 { 0.0 } else { 0.05 };
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.95 * *v + 0.05 * g * g;
                let (m_hat, v_hat) = (
                    *m / (1.0 - 0.9f64.powi(step)),
                    *v / (1.0 - 0.95f64.powi(step)),
                );
                *w -= lr * m_hat / (v_hat.sqrt() + 1e-8);
                *ema = if step == 1 { *w } else { 0.9 * *ema + 0.1 * *w };
                let got = (f64::from(state.weights.flat[i]), f64::from(state.ema[i]));
                assert!(
                    (got.0 - *w).abs() < 1e-6,
                    "step {step}, weight {i}: {} should be {w}",
                    got.0
                );
                assert!(
                    (got.1 - *ema).abs() < 1e-6,
                    "step {step}, average {i}: {} should be {ema}",
                    got.1
                );
            }
        }
        assert_eq!(state.step, 6);
    }

    #[test]
    fn clipping_never_enlarges() {
        assert!((clip_factor(0.5, 1.0) - 1.0).abs() < f64::EPSILON);
        assert!((clip_factor(4.0, 1.0) - 1.0 / (4.0 + 1e-6)).abs() < 1e-15);
        assert!(!global_norm(&[1.0, f32::NAN]).is_finite());
    }

    #[test]
    fn the_norm_has_one_order() {
        let gradient: Vec<f32> = (0..100_003).map(|i| (i as f32 * 0.7).sin()).collect();
        let plain = gradient
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        assert!((global_norm(&gradient) / plain - 1.0).abs() < 1e-12);
        assert_eq!(
            global_norm(&gradient).to_bits(),
            global_norm(&gradient.clone()).to_bits()
        );
    }
}
