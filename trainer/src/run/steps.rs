//! What a run says while it trains: a line at the bottom of a terminal, step lines elsewhere, a
//! line an epoch, and the sums that its closing lines need. Called by the run's loop.
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use candle_core::Device;
use nepa_pipeline::EpochReport;

use super::spans::{EpochLine, Span};
use crate::console::line::{BottomLine, Field, WIDEST, bar, columns, fit};
use crate::console::rate::Rate;
use crate::console::words;
use crate::device::memory_in_use;
#[cfg(feature = "cuda")]
use crate::device::peak_tflops;
use crate::logs::{Accuracy, EvalRecord, Measured, StepMetrics};
use crate::recipe::{Precision, ResolvedRecipe};

/// Steps between two lines, where the recipe does not say.
const EVERY_STEPS: u64 = 10;
/// Least and most time between two lines, where the recipe does not say.
const EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Steps whose mean loss is the loss at the start or at the end.
const ENDS: usize = 10;
/// A wait for data that is shorter is not shown.
const SHOWN_WAIT: Duration = Duration::from_secs(1);
/// The time of the whole run is told once after so much of it, and if so much is left.
const ESTIMATE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(1));

/// How the losses of this process began and ended, and how long it took.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Summary {
    /// Steps of this process.
    pub steps: u64,
    /// Images it trained on.
    pub images: u64,
    pub time: Duration,
    /// Mean losses of the first and of the last steps, and of how many.
    pub losses: Option<(f64, f64, usize)>,
    /// Share of positions whose prediction was nearer to the current patch than to the next one,
    /// over the last steps, in pretraining.
    pub copies: Option<f64>,
}

/// Rate of training at which every operation that a device can do is one of the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Peak {
    /// Operations of training on one image.
    pub flops_per_image: f64,
    /// Operations of the device in a second.
    pub flops_per_second: f64,
}

impl Peak {
    /// That of a recipe on a device, where the device's is known.
    pub(crate) fn of(recipe: &ResolvedRecipe, device: &Device) -> Option<Self> {
        Some(Self {
            flops_per_image: recipe.model.training_flops_per_image(),
            flops_per_second: peak_flops(device, recipe.train.precision)?,
        })
    }
}

/// Operations a second of a device that multiplies in this precision, where they are known.
fn peak_flops(device: &Device, precision: Precision) -> Option<f64> {
    #[cfg(feature = "cuda")]
    if let (Device::Cuda(cuda), Precision::Bf16) = (device, precision) {
        let name = cuda.cuda_stream().context().name().ok()?;
        return Some(peak_tflops(&name)? * 1e12);
    }
    let _ = (device, precision);
    None
}

/// Tells of a run's steps.
#[derive(Debug)]
pub(crate) struct Steps {
    bottom: Option<BottomLine>,
    device: Device,
    peak: Option<Peak>,
    /// The last step of the run, and of this process.
    last_step: u64,
    stop_at: u64,
    every: Option<u64>,
    /// Steps by time, from the end of the first one on: it takes longer, as the queues fill.
    rate: Option<Rate>,
    first_step: Duration,
    told_estimate: bool,
    /// Since the last line; of the epoch; of this process.
    line: Span,
    epoch: Span,
    whole: Span,
    ended: Option<EpochLine>,
    /// What does not change between two lines.
    fields: Vec<Field>,
    first_losses: Vec<f64>,
    last: VecDeque<(f64, Measured)>,
}

impl Steps {
    /// Begins after `step` of `steps`, in a process that ends after step `stop_at`.
    pub(crate) fn new(
        steps: u64,
        stop_at: u64,
        every_steps: Option<u64>,
        device: &Device,
        peak: Option<Peak>,
    ) -> Self {
        let now = Instant::now();
        // Where one of them goes into a file or a program, that is to hold the steps.
        let bottom = std::io::stdout().is_terminal().then(BottomLine::new);
        Self {
            bottom: bottom.flatten(),
            device: device.clone(),
            peak,
            last_step: steps,
            stop_at,
            every: every_steps,
            rate: None,
            first_step: Duration::ZERO,
            told_estimate: false,
            line: Span::new(now),
            epoch: Span::new(now),
            whole: Span::new(now),
            ended: None,
            fields: Vec::new(),
            first_losses: Vec::with_capacity(ENDS),
            last: VecDeque::with_capacity(ENDS + 1),
        }
    }

    /// The run has waited for a batch since `since`.
    pub(crate) fn wait(&self, step: u64, since: Instant) {
        let waited = since.elapsed();
        if let Some(bottom) = &self.bottom
            && waited >= SHOWN_WAIT
        {
            bottom.set(&[
                Field::new(1, self.step_of(step)),
                Field::new(0, format!("waiting for data, {}", words::duration(waited))),
            ]);
        }
    }

    /// One step of `images` images is done.
    pub(crate) fn show(&mut self, metrics: &StepMetrics, images: u64) {
        self.show_at(Instant::now(), metrics, images);
    }

    fn show_at(&mut self, now: Instant, metrics: &StepMetrics, images: u64) {
        for span in [&mut self.line, &mut self.epoch, &mut self.whole] {
            span.add(metrics, images);
        }
        if self.first_losses.len() < ENDS {
            self.first_losses.push(metrics.loss);
        }
        self.last.push_back((metrics.loss, metrics.measured));
        if self.last.len() > ENDS {
            self.last.pop_front();
        }
        if let Some(rate) = &mut self.rate {
            rate.mark(now, metrics.step);
        } else {
            self.rate = Some(Rate::new(now, metrics.step));
            self.first_step = Duration::from_secs_f64(metrics.step_ms.max(0.0) / 1e3);
        }
        let is_due = self.line_is_due(now, metrics.step);
        if is_due || self.fields.is_empty() {
            self.fields = self.slow_fields(now);
            self.line = Span::new(now);
        }
        if self.bottom.is_some() {
            let fields = self.fields(metrics, true);
            if let Some(bottom) = &self.bottom {
                bottom.set(&fields);
            }
        } else if is_due {
            println!("{}", fit(&self.fields(metrics, false), WIDEST));
        }
        self.tell_estimate(now, metrics.step);
    }

    fn line_is_due(&self, now: Instant, step: u64) -> bool {
        let since = now - self.line.started;
        // The first step says at once that all is well, and how a resumed run goes on.
        if self.whole.steps == 1 || step == self.stop_at {
            return true;
        }
        let (least, most) = EVERY;
        match self.every {
            // A terminal's line changes all the time, but for what would be too restless to read.
            _ if self.bottom.is_some() => since >= least,
            Some(every) => step.is_multiple_of(every),
            None => since >= most || (step.is_multiple_of(EVERY_STEPS) && since >= least),
        }
    }

    fn step_of(&self, step: u64) -> String {
        format!(
            "step {}/{}",
            words::count(step),
            words::count(self.last_step)
        )
    }

    fn fields(&self, metrics: &StepMetrics, with_bar: bool) -> Vec<Field> {
        let mut fields = vec![Field::new(0, self.step_of(metrics.step))];
        if with_bar {
            let share = metrics.step as f64 / self.last_step.max(1) as f64;
            fields.push(Field::new(5, bar(share)));
        }
        fields.push(Field::new(1, format!("loss {:.4}", metrics.loss)));
        if let Measured::Classification { accuracy } = metrics.measured {
            fields.push(Field::new(5, format!("right {}", words::percent(accuracy))));
        }
        fields.push(Field::new(7, format!("lr {}", words::small(metrics.lr))));
        let norm = words::small(metrics.grad_norm);
        fields.push(Field::new(6, format!("grad {norm}")));
        fields.extend(self.fields.iter().cloned());
        if let Some(rest) = self.time_left(metrics.step) {
            fields.push(Field::new(2, format!("ETA {}", words::duration(rest))));
        }
        fields
    }

    /// What is measured from line to line.
    fn slow_fields(&self, now: Instant) -> Vec<Field> {
        let rate = self.line.rate(now);
        let waiting = words::percent(self.line.waiting(now).min(1.0));
        let mut fields = vec![
            Field::new(3, format!("{} images/s", words::digits(rate))),
            Field::new(4, format!("wait {waiting}")),
        ];
        if let Some(peak) = self.peak {
            let share = rate * peak.flops_per_image / peak.flops_per_second;
            fields.push(Field::new(8, format!("MFU {}", words::percent(share))));
        }
        if let Some(memory) = memory_in_use(&self.device) {
            fields.push(Field::new(9, format!("mem {}", words::bytes(memory))));
        }
        fields
    }

    /// Time to the end of this process, at the rate of the last half minute.
    fn time_left(&self, step: u64) -> Option<Duration> {
        let rest = self.stop_at.checked_sub(step).filter(|rest| *rest > 0)?;
        let by_rate = self.rate.as_ref().and_then(|rate| rate.time_for(rest));
        by_rate.or_else(|| {
            let seconds = self.first_step.as_secs_f64() * rest as f64;
            Duration::try_from_secs_f64(seconds).ok()
        })
    }

    fn tell_estimate(&mut self, now: Instant, step: u64) {
        let (after, least) = ESTIMATE;
        if self.told_estimate || now - self.whole.started < after || self.whole.steps < 3 {
            return;
        }
        self.told_estimate = true;
        if let Some(left) = self.time_left(step).filter(|left| *left >= least) {
            println!(
                "about {} to go for {} steps",
                words::duration(left),
                words::count(self.stop_at - step)
            );
        }
    }

    /// An epoch of `epochs` has ended, in which so many images were replaced. Short ones get a line
    /// together.
    pub(crate) fn end_epoch(&mut self, report: &EpochReport, replaced: u64, epochs: u64) {
        let ended = self.ended.get_or_insert(EpochLine {
            first: report.epoch,
            from: (report.first_batch > 0).then_some((report.first_batch + 1, report.batches)),
            last: report.epoch,
            epochs,
            replaced: 0,
        });
        ended.last = report.epoch;
        ended.replaced += replaced;
        if self.epoch.started.elapsed() >= EVERY.1 {
            self.tell_epochs();
        }
    }

    /// The line of the epochs that have ended since the last one, if any have.
    pub(crate) fn tell_epochs(&mut self) {
        if let Some(ended) = self.ended.take() {
            let now = Instant::now();
            println!("{}", fit(&ended.fields(&self.epoch, now), columns()));
            self.epoch = Span::new(now);
        }
    }

    fn copies(&self) -> Option<f64> {
        let copies = self.last.iter().map(|(_, measured)| match measured {
            Measured::Pretraining { copy_win, .. } => Some(*copy_win),
            Measured::Classification { .. } => None,
        });
        let copies = copies.collect::<Option<Vec<_>>>()?;
        (!copies.is_empty()).then(|| copies.iter().sum::<f64>() / copies.len() as f64)
    }

    /// So many images of an evaluation are done, of all.
    pub(crate) fn evaluating(&self, step: u64, done: u64, images: u64) {
        if let Some(bottom) = &self.bottom {
            let (done, images) = (words::count(done), words::count(images));
            bottom.set(&[
                Field::new(1, self.step_of(step)),
                Field::new(0, format!("evaluating, {done} of {images} images")),
            ]);
        }
    }

    /// An evaluation is done. Its time is none of training's.
    pub(crate) fn tell_eval(&mut self, record: &EvalRecord, took: Duration) {
        self.tell_epochs();
        println!("{}", fit(&eval_fields(record, took), columns()));
        for span in [&mut self.line, &mut self.epoch, &mut self.whole] {
            span.started += took;
        }
        if let Some(rate) = &mut self.rate {
            rate.pause(took);
        }
    }

    /// Of this process.
    pub(crate) fn summary(&self) -> Summary {
        let now = Instant::now();
        let mean =
            |losses: &mut dyn Iterator<Item = f64>, of: usize| losses.sum::<f64>() / of as f64;
        let ends = self.last.len();
        let losses = (self.whole.steps as usize >= 2 * ENDS).then(|| {
            let first = mean(&mut self.first_losses.iter().copied(), ENDS);
            let last = mean(&mut self.last.iter().map(|(loss, _)| *loss), ends);
            (first, last, ENDS)
        });
        Summary {
            steps: self.whole.steps,
            images: self.whole.images,
            time: now - self.whole.started,
            losses,
            copies: self.copies(),
        }
    }
}

/// The line of an evaluation.
fn eval_fields(record: &EvalRecord, took: Duration) -> Vec<Field> {
    let mut fields = vec![Field::new(
        0,
        format!("evaluated after step {}", words::count(record.step)),
    )];
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let mut add = |name: &str, of: Accuracy, rank: u8| {
        fields.push(Field::new(
            rank,
            format!("{name}top-1 {}", percent(of.top1)),
        ));
        fields.push(Field::new(rank + 2, format!("{name}loss {:.4}", of.loss)));
    };
    if let Some(ema) = record.ema {
        add("average ", ema, 0);
    }
    add("", record.raw, 1);
    if record.best {
        fields.push(Field::new(1, "the best so far".to_owned()));
    }
    fields.push(Field::new(
        4,
        format!(
            "{} in {}",
            words::counted(record.images, "image"),
            words::duration(took)
        ),
    ));
    fields
}

#[cfg(test)]
mod tests {
    use super::super::spans::tests::metrics;
    use super::*;

    fn steps(steps: u64, stop_at: u64, every_steps: Option<u64>) -> Steps {
        let peak = Peak {
            flops_per_image: 1e9,
            flops_per_second: 1e12,
        };
        let mut steps = Steps::new(steps, stop_at, every_steps, &Device::Cpu, Some(peak));
        steps.bottom = None;
        steps
    }

    /// Runs steps of a tenth of a second; gives when lines were due and the last time left.
    fn run(steps: &mut Steps, from: u64, to: u64) -> (Vec<u64>, Option<Duration>) {
        let start = steps.whole.started;
        let mut due = Vec::new();
        for step in from..=to {
            // The first step fills the queues: five seconds.
            let now =
                start + Duration::from_secs(5) + Duration::from_millis(100) * (step - from) as u32;
            let line = steps.line.started;
            steps.show_at(now, &metrics(step), 32);
            if steps.line.started != line {
                due.push(step);
            }
        }
        (due, steps.time_left(to))
    }

    #[test]
    fn a_line_says_all_of_the_interval_in_120_columns() {
        let mut steps = steps(3000, 3000, None);
        run(&mut steps, 1, 20);
        let line = fit(&steps.fields(&metrics(20), false), WIDEST);
        let (most, memory) = line.split_once("  mem ").expect(&line);
        assert_eq!(
            most,
            "step 20/3,000  loss -0.6532  lr 0.00125  grad 0.5213  320 images/s  wait 10 %  MFU 32 \
             %"
        );
        assert!(memory.ends_with("  ETA 4 min 58 s"), "{line}");
        assert!(line.len() <= WIDEST, "{line}");
    }

    #[test]
    fn lines_come_by_steps_and_time() {
        let (due, _) = run(&mut steps(3000, 3000, None), 1, 100);
        assert_eq!(due, [1, 20, 30, 40, 50, 60, 70, 80, 90, 100]);
        let (due, _) = run(&mut steps(40, 40, Some(15)), 1, 40);
        assert_eq!(due, [1, 15, 30, 40]);
        // After a resume: at once.
        let (due, _) = run(&mut steps(40, 40, Some(15)), 22, 40);
        assert_eq!(due, [22, 30, 40]);
    }

    #[test]
    fn the_time_left_is_right_after_a_resume() {
        let mut steps = steps(5000, 4000, None);
        let (_, left) = run(&mut steps, 3001, 3001);
        assert!(
            (left.unwrap().as_secs_f64() - 90.0).abs() < 10.0,
            "{left:?}"
        );
        let (_, left) = run(&mut steps, 3001, 3030);
        assert!((left.unwrap().as_secs_f64() - 97.0).abs() < 2.0, "{left:?}");
        assert_eq!(run(&mut steps, 3031, 4000).1, None);
    }
}
