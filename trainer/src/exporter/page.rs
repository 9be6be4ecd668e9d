//! The page that is scraped: all numbers of a run in Prometheus' text format, read when it is asked
//! for. Names are those of `metrics.jsonl` where it has them, units are seconds and bytes.
use std::fmt::{Error, Result};

use nepa_pipeline::{IoCounters, Latencies, PipelineStats, Stage};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::prometheus_text::encode;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::live::{Live, Now};
use crate::device::{HAS_CUDA, resident_bytes};

/// Makes the page.
#[derive(Debug)]
pub(super) struct Page(Registry);

impl Page {
    pub(super) fn new(live: Live) -> Self {
        let mut registry = Registry::with_prefix("nepa");
        registry.register_collector(Box::new(Run(live)));
        Self(registry)
    }

    /// The page as it is now.
    pub(super) fn text(&self) -> std::result::Result<String, Error> {
        let mut text = String::with_capacity(8 << 10);
        encode(&mut text, &self.0)?;
        Ok(text)
    }
}

#[derive(Debug)]
struct Run(Live);

impl Collector for Run {
    fn encode(&self, encoder: DescriptorEncoder) -> Result {
        let now = self.0.snapshot();
        let mut families = Families(encoder);
        families.program()?;
        families.training(&now)?;
        if let Some(loader) = &now.loader {
            let (stats, io) = loader.read();
            families.stages(&now, &stats)?;
            families.store(&io)?;
            families.first_byte(&io.first_byte)?;
        }
        Ok(())
    }
}

/// Writes one family after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    /// A number that only grows; its name gets `_total`.
    fn counter(&mut self, name: &str, help: &str, value: &impl EncodeCounterValue) -> Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, _, f64>(value, None)
    }

    /// The same for each value of a label.
    fn counters<V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: &[(&str, V)],
    ) -> Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (of, value) in values {
            let labels = [(label, *of)];
            let mut one = family.encode_family(&labels)?;
            one.encode_counter::<NoLabelSet, _, f64>(value, None)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: &impl EncodeGaugeValue) -> Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        family.encode_gauge(value)
    }

    fn program(&mut self) -> Result {
        let help = "The program that trains";
        let mut family = self
            .0
            .encode_descriptor("build", help, None, MetricType::Info)?;
        let cuda = if HAS_CUDA { "true" } else { "false" };
        family.encode_info(&[("version", env!("CARGO_PKG_VERSION")), ("cuda", cuda)])?;
        match resident_bytes() {
            Some(bytes) => self.gauge(
                "resident_memory_bytes",
                "Memory of the machine that the program holds",
                &bytes,
            ),
            None => Ok(()),
        }
    }

    fn training(&mut self, now: &Now) -> Result {
        self.gauge("step", "Steps of the run that are done", &now.step)?;
        self.gauge("last_step", "Step at which the run ends", &now.last_step)?;
        self.counter(
            "samples",
            "Images that the run was trained on, those before a resume included",
            &now.samples,
        )?;
        if let Some(metrics) = &now.metrics {
            self.gauge("epoch", "Epoch of the last batch, from 0", &metrics.epoch)?;
            self.gauge("loss", "Mean loss of the last batch", &metrics.loss)?;
            self.gauge("lr", "Learning rate of the last step", &metrics.lr)?;
            self.gauge(
                "grad_norm",
                "Norm of the last gradient, before clipping",
                &metrics.grad_norm,
            )?;
            self.gauge(
                "images_per_second",
                "Images over the time of the last step, waiting included",
                &metrics.images_per_second,
            )?;
        }
        self.counter(
            "data_wait_seconds",
            "Time that steps waited for their batch, a wait that lasts included",
            &now.waited().as_secs_f64(),
        )?;
        self.counter(
            "step_seconds",
            "Time of forward, backward and update",
            &now.stepped.as_secs_f64(),
        )?;
        self.counter(
            "bad_samples",
            "Images of the run that could not be decoded and were replaced",
            &now.bad,
        )?;
        self.counter(
            "absent_samples",
            "Rows without an image that were found while decoding and replaced",
            &now.absent(),
        )?;
        self.counter(
            "checkpoints_saved",
            "Checkpoints saved by this process",
            &now.checkpoints,
        )?;
        self.counter(
            "evaluations",
            "Evaluations by this process",
            &now.evaluations,
        )
    }

    fn stages(&mut self, now: &Now, stats: &PipelineStats) -> Result {
        let stages = [Stage::Fetch, Stage::Unpack, Stage::Decode, Stage::Consume];
        let names = stages.map(|stage| stage.to_string());
        let busy = [0, 1, 2, 3].map(|i| (names[i].as_str(), stats.stage(stages[i]).busy_s));
        self.counters(
            "loader_busy_seconds",
            "Time at work, summed over requests (fetch) or decode threads (unpack, decode); \
             consume: while no batch is waited for",
            "stage",
            &busy,
        )?;
        self.counter(
            "loader_row_group_wait_seconds",
            "Time in which the walk along the order waited for row groups",
            &stats.stage(Stage::Dispatch).blocked_in_s,
        )?;
        self.counter(
            "loader_decoded_images",
            "Images decoded",
            &stats.stage(Stage::Decode).items,
        )?;
        if let Some(decoded) = &now.decoded {
            self.counters(
                "loader_images_by_decoder",
                "Images decoded for a GPU, as of the last step",
                "decoder",
                &[
                    ("hardware", decoded.hardware),
                    ("hybrid", decoded.hybrid),
                    ("cpu", decoded.cpu),
                ],
            )?;
        }
        self.gauge(
            "loader_decode_threads",
            "Threads that unpack and decode",
            &(stats.stage(Stage::Decode).workers as u64),
        )?;
        self.gauge(
            "loader_batches_ready",
            "Batches that are decoded and wait for their step, in full batches",
            &now.batches_ready(stats.stage(Stage::Decode).items),
        )
    }

    fn store(&mut self, io: &IoCounters) -> Result {
        self.gauge(
            "loader_held_bytes",
            "Bytes in flight, or fetched and not yet let go",
            &io.held_bytes,
        )?;
        self.gauge("store_in_flight", "Requests in flight", &io.in_flight)?;
        let counters = [
            ("store_requests", "Requests that ended", io.requests),
            ("store_bytes", "Bytes received", io.bytes),
            (
                "store_retries",
                "Requests that were sent once more",
                io.retries,
            ),
            (
                "store_hedges",
                "Second requests, as the first was late",
                io.hedges,
            ),
            (
                "store_throttled",
                "Answers by which the store asked to be asked less (503, 429)",
                io.throttled,
            ),
            (
                "cache_hits",
                "Parts that came from the local cache",
                io.cache_hits,
            ),
            (
                "cache_hit_bytes",
                "Bytes that came from the local cache",
                io.cache_hit_bytes,
            ),
        ];
        for (name, help, count) in counters {
            self.counter(name, help, &count)?;
        }
        Ok(())
    }

    fn first_byte(&mut self, latencies: &Latencies) -> Result {
        let mut buckets = latencies
            .by_doublings()
            .map(|(until, count)| (until.as_secs_f64(), count))
            .collect::<Vec<_>>();
        let within = buckets.iter().map(|(_, count)| count).sum::<u64>();
        buckets.push((f64::INFINITY, latencies.count() - within));
        let mut family = self.0.encode_descriptor(
            "store_first_byte_seconds",
            "Time from a request to the first byte of its answer",
            None,
            MetricType::Histogram,
        )?;
        family.encode_histogram::<NoLabelSet>(
            latencies.sum().as_secs_f64(),
            latencies.count(),
            &buckets,
            None,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_has_not_begun_has_a_page() {
        let text = Page::new(Live::default()).text().unwrap();
        let build = format!(
            "# HELP nepa_build_info The program that trains\n# TYPE nepa_build_info gauge\n\
             nepa_build_info{{version=\"{}\",cuda=\"{HAS_CUDA}\"}} 1\n",
            env!("CARGO_PKG_VERSION")
        );
        assert!(text.starts_with(&build), "{text}");
        assert!(text.contains("\nnepa_step 0\n"), "{text}");
        assert!(
            text.contains("\n# TYPE nepa_samples_total counter\n"),
            "{text}"
        );
        assert!(!text.contains("loader"), "{text}");
    }
}
