//! Who decoded the images of a device's loader, and what its JPEG engines refused: counted by the
//! decoders, read by [`Loader::stats`](crate::Loader::stats).
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

/// An engine that may refuse an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JpegEngine {
    /// The JPEG engines of the device, fed in batches.
    Hardware,
    /// nvJPEG with Huffman decoding on a decode thread.
    Hybrid,
}

/// Where in its work an engine refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RefusalPhase {
    /// Making handles, states and buffers.
    Setup,
    /// Reading the file's markers.
    Parse,
    /// Asked beforehand whether it takes such a file.
    Support,
    /// Huffman decoding on the host.
    Host,
    /// Moving the coefficients to the device.
    Transfer,
    /// The device's part.
    Device,
    /// A call of the engines.
    Batch,
    /// Reported as done, with pixels that nobody wrote; seen only where the pixels are checked.
    Skipped,
}

const ENGINES: [JpegEngine; 2] = [JpegEngine::Hardware, JpegEngine::Hybrid];
const PHASES: [RefusalPhase; 8] = [
    RefusalPhase::Setup,
    RefusalPhase::Parse,
    RefusalPhase::Support,
    RefusalPhase::Host,
    RefusalPhase::Transfer,
    RefusalPhase::Device,
    RefusalPhase::Batch,
    RefusalPhase::Skipped,
];
/// Statuses that are told apart; nvJPEG has 0 to 10, and what comes later is counted as the last.
const STATUSES: usize = 16;
/// Sizes of calls that are told apart: 1, 2, up to 4, up to 8, ..., up to 128 and more.
const SIZES: usize = 8;

/// Added to by all threads that decode for a device; one for all decoders of a loader.
#[derive(Debug, Default)]
pub struct DecoderCounters {
    hardware: AtomicU64,
    hybrid: AtomicU64,
    cpu: AtomicU64,
    call_images: AtomicU64,
    calls: [AtomicU64; SIZES],
    refusals: [[[AtomicU64; STATUSES]; PHASES.len()]; ENGINES.len()],
}

impl DecoderCounters {
    /// An engine decoded so many images.
    pub fn decoded(&self, engine: JpegEngine, num_images: usize) {
        let count = match engine {
            JpegEngine::Hardware => &self.hardware,
            JpegEngine::Hybrid => &self.hybrid,
        };
        count.fetch_add(num_images as u64, Relaxed);
    }

    /// The processor decoded an image alone.
    pub fn decoded_by_cpu(&self) {
        self.cpu.fetch_add(1, Relaxed);
    }

    /// The hardware's engines were called with so many images.
    pub fn call(&self, num_images: usize) {
        let size = num_images.max(1).next_power_of_two().ilog2() as usize;
        self.calls[size.min(SIZES - 1)].fetch_add(1, Relaxed);
        self.call_images.fetch_add(num_images as u64, Relaxed);
    }

    /// An engine refused an image with a status of nvJPEG.
    pub fn refused(&self, engine: JpegEngine, phase: RefusalPhase, status: u32) {
        let status = (status as usize).min(STATUSES - 1);
        self.refusals[engine as usize][phase as usize][status].fetch_add(1, Relaxed);
    }

    /// What was counted so far.
    pub fn read(&self) -> DecoderStats {
        let mut refusals = Vec::new();
        for engine in ENGINES {
            for phase in PHASES {
                for (status, count) in self.refusals[engine as usize][phase as usize]
                    .iter()
                    .enumerate()
                {
                    let images = count.load(Relaxed);
                    if images > 0 {
                        let status = status as u32;
                        refusals.push(Refusals {
                            engine,
                            phase,
                            status,
                            images,
                        });
                    }
                }
            }
        }
        DecoderStats {
            hardware: self.hardware.load(Relaxed),
            hybrid: self.hybrid.load(Relaxed),
            cpu: self.cpu.load(Relaxed),
            call_images: self.call_images.load(Relaxed),
            calls: self.calls.each_ref().map(|count| count.load(Relaxed)),
            refusals,
        }
    }
}

/// Images that an engine refused with one status in one phase; all of them went to the next
/// decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Refusals {
    /// Who refused.
    pub engine: JpegEngine,
    /// Where in its work.
    pub phase: RefusalPhase,
    /// nvJPEG's status, a number of `nvjpegStatus_t`; 15 stands for all from 15 on, 0 for an engine
    /// that reported no error.
    pub status: u32,
    /// How many.
    pub images: u64,
}

impl std::fmt::Display for Refusals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let engine = match self.engine {
            JpegEngine::Hardware => "hardware",
            JpegEngine::Hybrid => "hybrid",
        };
        let phase = match self.phase {
            RefusalPhase::Setup => "setup",
            RefusalPhase::Parse => "parse",
            RefusalPhase::Support => "support",
            RefusalPhase::Host => "host",
            RefusalPhase::Transfer => "transfer",
            RefusalPhase::Device => "device",
            RefusalPhase::Batch => "batch",
            RefusalPhase::Skipped => "skipped",
        };
        write!(f, "{engine} {phase} {}", self.status)
    }
}

/// Who decoded how many images of a loader whose batches lie in a device's memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DecoderStats {
    /// Images decoded by the device's JPEG engines.
    pub hardware: u64,
    /// Images decoded by nvJPEG's hybrid decoder on the decode threads.
    pub hybrid: u64,
    /// Images decoded by the processor alone.
    pub cpu: u64,
    /// Images given to the engines in all calls, those that were tried again in smaller calls
    /// counted again.
    pub call_images: u64,
    /// Calls of the engines by their size: of 1 image, of 2, of up to 4, 8, 16, 32, 64, and of
    /// more.
    pub calls: [u64; SIZES],
    /// What was refused; empty if nothing was.
    pub refusals: Vec<Refusals>,
}

impl DecoderStats {
    /// Images that an engine refused, each as often as it was refused.
    pub fn refused(&self) -> u64 {
        self.refusals.iter().map(|refusals| refusals.images).sum()
    }

    /// Refusals by engine, phase and status, as in `"hybrid host 8"`.
    pub fn refusals_by_name(&self) -> BTreeMap<String, u64> {
        let named = self.refusals.iter();
        named
            .map(|refusals| (refusals.to_string(), refusals.images))
            .collect()
    }

    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let refusals = self.refusals.iter().filter_map(|now| {
            let same = |before: &&Refusals| {
                (before.engine, before.phase, before.status) == (now.engine, now.phase, now.status)
            };
            let before = earlier.refusals.iter().find(same);
            let images = now.images - before.map_or(0, |before| before.images);
            (images > 0).then_some(Refusals { images, ..*now })
        });
        Self {
            hardware: self.hardware - earlier.hardware,
            hybrid: self.hybrid - earlier.hybrid,
            cpu: self.cpu - earlier.cpu,
            call_images: self.call_images - earlier.call_images,
            calls: std::array::from_fn(|size| self.calls[size] - earlier.calls[size]),
            refusals: refusals.collect(),
        }
    }
}

impl std::fmt::Display for DecoderStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            hardware,
            hybrid,
            cpu,
            ..
        } = self;
        write!(
            f,
            "decoded by hardware {hardware}, hybrid {hybrid}, CPU {cpu}"
        )?;
        let calls = self.calls.iter().sum::<u64>();
        if calls > 0 {
            let mean = self.call_images as f64 / calls as f64;
            write!(f, "; {calls} hardware calls of {mean:.1} images")?;
        }
        for (position, refusals) in self.refusals.iter().enumerate() {
            let lead = if position == 0 { "; refused: " } else { ", " };
            write!(f, "{lead}{} by {refusals}", refusals.images)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told_by_engine_phase_and_status() {
        let counters = DecoderCounters::default();
        counters.decoded(JpegEngine::Hybrid, 7);
        for num_images in [1, 3, 4, 64, 1000] {
            counters.call(num_images);
        }
        counters.refused(JpegEngine::Hybrid, RefusalPhase::Host, 8);
        let before = counters.read();
        assert_eq!(before.calls, [1, 0, 2, 0, 0, 0, 1, 1]);
        assert_eq!((before.call_images, before.refused()), (1072, 1));
        counters.refused(JpegEngine::Hybrid, RefusalPhase::Host, 8);
        counters.refused(JpegEngine::Hardware, RefusalPhase::Batch, 400);
        counters.decoded_by_cpu();
        counters.decoded_by_cpu();
        let since = counters.read().since(&before);
        let named = since.refusals_by_name();
        let expected = [("hardware batch 15", 1), ("hybrid host 8", 1)];
        assert!(
            named
                .iter()
                .map(|(name, images)| (name.as_str(), *images))
                .eq(expected)
        );
        assert_eq!(
            since.to_string(),
            "decoded by hardware 0, hybrid 0, CPU 2; refused: 1 by hardware batch 15, 1 by \
             hybrid host 8"
        );
        // What is the same as before is not told again.
        assert_eq!(
            counters.read().since(&counters.read()),
            DecoderStats::default()
        );
    }
}
