//! Sums over the steps between two lines, of an epoch or of a run, and the line of an epoch.
use std::time::{Duration, Instant};

use crate::console::line::Field;
use crate::console::words;
use crate::logs::StepMetrics;

/// Images, time, and the share of it that was spent waiting for data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) started: Instant,
    pub(super) images: u64,
    pub(super) steps: u64,
    waited: Duration,
    loss: f64,
}

impl Span {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            started: now,
            images: 0,
            steps: 0,
            waited: Duration::ZERO,
            loss: 0.0,
        }
    }

    pub(super) fn add(&mut self, metrics: &StepMetrics, images: u64) {
        self.images += images;
        self.steps += 1;
        self.loss += metrics.loss;
        self.waited += Duration::from_secs_f64(metrics.data_wait_ms.max(0.0) / 1e3);
    }

    pub(super) fn rate(&self, now: Instant) -> f64 {
        self.images as f64 / (now - self.started).as_secs_f64().max(1e-9)
    }

    pub(super) fn waiting(&self, now: Instant) -> f64 {
        self.waited.as_secs_f64() / (now - self.started).as_secs_f64().max(1e-9)
    }
}

/// Epochs that have ended and were not told yet.
#[derive(Debug)]
pub(super) struct EpochLine {
    pub(super) first: u64,
    /// The first batch of the first of them, and its batches, where it was resumed.
    pub(super) from: Option<(u64, u64)>,
    pub(super) last: u64,
    pub(super) epochs: u64,
    /// Bad images and rows without one.
    pub(super) replaced: u64,
}

impl EpochLine {
    pub(super) fn fields(&self, span: &Span, now: Instant) -> Vec<Field> {
        let (first, last) = (self.first + 1, self.last + 1);
        let which = if first == last {
            format!("epoch {last}/{}", self.epochs)
        } else {
            format!("epochs {first} to {last}/{}", self.epochs)
        };
        let mut fields = vec![Field::new(0, which)];
        if let Some((batch, batches)) = self.from {
            fields.push(Field::new(3, format!("from batch {batch} of {batches}")));
        }
        let time = words::duration(now - span.started);
        let rate = words::digits(span.rate(now));
        let waiting = words::percent(span.waiting(now).min(1.0));
        fields.extend([
            Field::new(
                0,
                format!("mean loss {:.4}", span.loss / span.steps.max(1) as f64),
            ),
            Field::new(
                5,
                format!("{} in {time}", words::counted(span.images, "image")),
            ),
            Field::new(2, format!("{rate} images/s")),
            Field::new(4, format!("wait {waiting}")),
        ]);
        if self.replaced > 0 {
            let text = format!("{} replaced", words::counted(self.replaced, "bad image"));
            fields.push(Field::new(1, text));
        }
        fields
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::console::line::{WIDEST, fit};
    use crate::logs::Measured;

    pub(in super::super) fn metrics(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            epoch: 0,
            samples: 32 * step,
            loss: -0.65321,
            lr: 1.25e-3,
            grad_norm: 0.521_345,
            images_per_second: 320.0,
            data_wait_ms: 10.0,
            step_ms: 90.0,
            measured: Measured::Pretraining {
                cos_target: 0.1,
                cos_previous: 0.2,
                copy_win: 0.75,
            },
            decoders: None,
            loader: None,
            ranks: None,
        }
    }

    #[test]
    fn an_epoch_is_told_in_words_of_a_user() {
        let now = Instant::now();
        let mut span = Span::new(now);
        for step in 1..=62 {
            span.add(&metrics(step), 32);
        }
        let mut ended = EpochLine {
            first: 1,
            from: None,
            last: 1,
            epochs: 48,
            replaced: 0,
        };
        let now = now + Duration::from_millis(6200);
        assert_eq!(
            fit(&ended.fields(&span, now), WIDEST),
            "epoch 2/48  mean loss -0.6532  1,984 images in 6.2 s  320 images/s  wait 10 %"
        );
        ended.replaced = 1;
        ended.from = Some((31, 62));
        ended.last = 4;
        assert_eq!(
            fit(&ended.fields(&span, now), 140),
            "epochs 2 to 5/48  from batch 31 of 62  mean loss -0.6532  1,984 images in 6.2 s  320 \
             images/s  wait 10 %  1 bad image replaced"
        );
        assert_eq!(
            fit(&ended.fields(&span, now), 60),
            "epochs 2 to 5/48  mean loss -0.6532  1 bad image replaced"
        );
    }
}
