//! How well batches mix: the divergence of their class histograms from the classes' frequencies,
//! beside that of a true permutation.
//!
//! The divergence of a batch is the Kullback-Leibler divergence in nats, `sum q ln(q / p)`, of the
//! histogram q of its classes from their frequencies p in the epoch. Over an epoch its mean is the
//! entropy of p less the mean entropy of the batches, so nothing but entropies is summed. A small
//! batch diverges even in a true permutation; that is the measure.
use std::collections::{BTreeMap, HashMap};

use nepa_schemas::Label;

use super::config::LoaderConfig;
use super::lane::{Lane, deal};
use super::order::EpochOrder;
use super::part::{self, Part};
use crate::batch::SampleRecord;
use crate::{Dataset, SampleId};

/// Batches that a prediction looks at.
const BATCHES: u64 = 48;
/// Windows up to so many times the configured one are tried.
const LARGEST_WINDOW: u64 = 64;
/// More different labels than this in an epoch are captions or names of images, no classes; they
/// are not counted on.
const MOST_CLASSES: usize = 1 << 16;
/// Excess over a true permutation that counts as well mixed.
const WELL_MIXED: f64 = 0.05;

/// `-sum q ln q` of a histogram.
fn entropy(counts: impl IntoIterator<Item = u64>, total: u64) -> f64 {
    counts
        .into_iter()
        .filter(|&count| count > 0)
        .map(|count| {
            let share = count as f64 / total as f64;
            -share * share.ln()
        })
        .sum()
}

/// `sum q ln(q / p)` of a batch of members of groups, p being the groups' shares of all.
fn divergence(members: impl IntoIterator<Item = usize>, sizes: &[u64]) -> f64 {
    let total: u64 = sizes.iter().sum();
    let mut counts = HashMap::new();
    let mut batch = 0u64;
    for group in members {
        *counts.entry(group).or_insert(0u64) += 1;
        batch += 1;
    }
    counts
        .into_iter()
        .map(|(group, count)| {
            let share = count as f64 / batch as f64;
            share * (share * total as f64 / sizes[group] as f64).ln()
        })
        .sum()
}

/// Mean divergence of batches of `batch` samples of a true permutation of classes with these
/// `sizes`: each count is hypergeometric.
fn ideal_divergence(sizes: &[u64], batch: u64) -> f64 {
    let total: u64 = sizes.iter().sum();
    let batch = batch.min(total);
    let mut by_size = BTreeMap::new();
    for &size in sizes {
        *by_size.entry(size).or_insert(0u64) += 1;
    }
    let ln_factorial = |n: u64| libm::lgamma(n as f64 + 1.0);
    let ln_choose = |n: u64, k: u64| ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k);
    let all = ln_choose(total, batch);
    let batch_entropy: f64 = by_size
        .iter()
        .map(|(&size, &number)| {
            let least = (size + batch).saturating_sub(total).max(1);
            let terms = (least..=size.min(batch)).map(|count| {
                let probability =
                    (ln_choose(size, count) + ln_choose(total - size, batch - count) - all).exp();
                let share = count as f64 / batch as f64;
                -probability * share * share.ln()
            });
            number as f64 * terms.sum::<f64>()
        })
        .sum();
    // Rounding must not make it negative.
    (entropy(sizes.iter().copied(), total) - batch_entropy).max(0.0)
}

/// How batches of a class-sorted data set would mix, by the shuffle window: the worst case of the
/// same layout.
#[derive(Debug, Clone, PartialEq)]
pub struct MixingForecast {
    /// Groups whose histograms are compared: classes, each in rows side by side; shards, where no
    /// classes are named.
    pub num_groups: usize,
    /// Whether the groups are classes.
    pub by_class: bool,
    /// Samples in one batch over all ranks.
    pub global_batch: u64,
    /// Lanes of the order.
    pub lanes: u64,
    /// Mean divergence in a true permutation, in nats.
    pub ideal: f64,
    /// Bytes of a window and mean divergence, in nats: the configured window first, then larger
    /// ones until batches are well mixed.
    pub windows: Vec<(u64, f64)>,
    /// Mean divergence with the configured window and one lane; `None` where there is one.
    pub without_lanes: Option<f64>,
}

impl MixingForecast {
    /// The forecast for a data set; `None` where nothing is shuffled, where there is but one group,
    /// and for a mixture. Looks at the order only, at no data, so rows without an image are counted
    /// and not placed; for a large data set it takes some tenths of a second.
    pub fn new(dataset: &Dataset, config: &LoaderConfig) -> Option<Self> {
        let num_samples = dataset.num_samples();
        let global_batch = (config.global_batch as u64).min(num_samples);
        let parts = part::parts(dataset.shards());
        let first_rows: HashMap<(u32, u32), u64> = parts
            .iter()
            .scan(0, |row, part| {
                let first = *row - u64::from(part.first_row);
                *row += u64::from(part.num_rows);
                Some(((part.id.shard, part.row_group), first))
            })
            .collect();
        let num_rows: u64 = parts.iter().map(|part| u64::from(part.num_rows)).sum();
        let classes = dataset.class_names().map(<[String]>::len);
        let num_groups = classes.unwrap_or(dataset.shards().len());
        if !config.shuffle || num_groups < 2 || dataset.sources().len() > 1 {
            return None;
        }
        let group = |id: SampleId| -> usize {
            if classes.is_none() {
                return id.shard as usize;
            }
            let row = first_rows[&(id.shard, id.row_group)] + u64::from(id.row);
            (row * num_groups as u64 / num_rows) as usize
        };
        let mut sizes = vec![0u64; num_groups];
        for part in &parts {
            for id in part.first_samples() {
                sizes[group(id)] += 1;
            }
        }
        // A set of less than one batch may not divide by them.
        let lanes = Some(config.lanes as u64);
        let lanes = lanes.filter(|&lanes| lanes > 0 && global_batch.is_multiple_of(lanes));
        let lanes = lanes.unwrap_or(1);
        let mean = |lanes, window_bytes| {
            let orders = orders(&parts, config.seed, lanes, window_bytes);
            mean_divergence(&orders, num_samples, global_batch, &sizes, group)
        };
        let ideal = ideal_divergence(&sizes, global_batch);
        let memory: u64 = parts.iter().map(|part| part.memory_bytes).sum();
        let mut windows: Vec<(u64, f64)> = Vec::new();
        let configured = config.shuffle_window_bytes.max(1);
        let mut window_bytes = configured;
        loop {
            let divergence = mean(lanes, window_bytes);
            windows.push((window_bytes, divergence));
            if divergence <= ideal * (1.0 + WELL_MIXED)
                || window_bytes >= memory
                || window_bytes / configured >= LARGEST_WINDOW
            {
                break;
            }
            window_bytes = window_bytes.saturating_mul(2);
        }
        Some(Self {
            num_groups,
            by_class: classes.is_some(),
            global_batch,
            lanes,
            ideal,
            windows,
            without_lanes: (lanes > 1).then(|| mean(1, configured)),
        })
    }

    /// Divergence with the configured window over that of a true permutation: 1.05 is 5 % too much.
    pub fn ratio(&self) -> f64 {
        ratio(self.windows[0].1, self.ideal)
    }
}

/// The orders of all lanes in an epoch with full windows.
fn orders(parts: &[Part], seed: u64, lanes: u64, window_bytes: u64) -> Vec<EpochOrder> {
    let dealt = deal(parts.to_vec(), seed, true, lanes);
    let lanes = (0..lanes).map(|index| Lane { index, of: lanes });
    let order = |lane: Lane| EpochOrder::new(&lane.cut(&dealt), seed, 1, true, window_bytes, lane);
    lanes.map(order).collect()
}

/// The samples of a lane by their position, its window held.
struct LaneReader<'a> {
    order: &'a EpochOrder,
    window: Option<(usize, Vec<SampleId>)>,
}

impl LaneReader<'_> {
    fn sample(&mut self, position: u64) -> SampleId {
        let index = self.order.window_at(position);
        let window = &self.order.windows[index];
        if self.window.as_ref().is_none_or(|(held, _)| *held != index) {
            let samples = self.order.samples(window, Part::first_samples);
            self.window = Some((index, samples));
        }
        let (_, samples) = self.window.as_ref().expect("it was set");
        samples[(position - window.start) as usize]
    }
}

/// Mean divergence of some batches, spread over an epoch, that the lanes of these orders give.
fn mean_divergence(
    orders: &[EpochOrder],
    num_samples: u64,
    batch: u64,
    sizes: &[u64],
    group: impl Fn(SampleId) -> usize,
) -> f64 {
    let num_batches = num_samples / batch;
    let looked_at = num_batches.min(BATCHES);
    let of_lane = batch / orders.len() as u64;
    let lanes = orders.iter().map(|order| LaneReader {
        order,
        window: None,
    });
    let mut lanes: Vec<_> = lanes.collect();
    let sum: f64 = (0..looked_at)
        .map(|i| {
            let start = i * num_batches / looked_at * of_lane;
            let mut groups = Vec::new();
            for lane in &mut lanes {
                groups.extend((start..start + of_lane).map(|at| group(lane.sample(at))));
            }
            divergence(groups, sizes)
        })
        .sum();
    sum / looked_at as f64
}

/// A divergence over the ideal one; where both are nothing but rounding, 1.
fn ratio(divergence: f64, ideal: f64) -> f64 {
    const ROUNDING: f64 = 1e-9;
    (divergence + ROUNDING) / (ideal + ROUNDING)
}

impl std::fmt::Display for MixingForecast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let groups = if self.by_class { "classes" } else { "shards" };
        write!(
            f,
            "shuffle: if the rows were sorted by {}, batches of {} would diverge from the {} {groups}' frequencies by",
            if self.by_class { "class" } else { "shard" },
            self.global_batch,
            self.num_groups,
        )?;
        for (i, (bytes, divergence)) in self.windows.iter().enumerate() {
            let mib = *bytes as f64 / f64::from(1 << 20);
            let size = if mib >= 1024.0 {
                format!("{:.3} GiB", mib / 1024.0)
            } else {
                format!("{mib:.0} MiB")
            };
            let size = size.replace(".000 GiB", " GiB");
            let separator = if i == 0 { "" } else { "," };
            write!(
                f,
                "{separator} {divergence:.3} nats with a window of {size} ({:.2} times the ideal)",
                ratio(*divergence, self.ideal)
            )?;
        }
        write!(f, "; a true permutation's {:.3} is the ideal", self.ideal)?;
        if let Some(divergence) = self.without_lanes {
            write!(
                f,
                "; with one lane instead of {} it would be {divergence:.3} with the first of these windows",
                self.lanes
            )?;
        }
        Ok(())
    }
}

/// What became of an epoch's samples, and how its batches mixed. Of this rank, since the loader
/// started.
#[derive(Debug, Clone, PartialEq)]
pub struct EpochReport {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Samples in the data set.
    pub num_samples: u64,
    /// Global batches in the epoch.
    pub batches: u64,
    /// The first of them that this loader gave; not 0 where it was resumed.
    pub first_batch: u64,
    /// Samples of this rank that were given.
    pub given: u64,
    /// Bad ones among the samples that were due, in whose place others were given.
    pub replaced: u64,
    /// Rows without an image among them that no footer counts, in whose place others were given,
    /// too. They are not bad.
    pub absent: u64,
    /// Samples at the end of the epoch's order that no batch holds (`drop_last`), of all ranks.
    pub left_out: u64,
    /// Whether the divergence is that of classes; of shards otherwise.
    pub by_class: bool,
    /// How the batches mixed; `None` where nothing is shuffled, or there is but one class or shard.
    pub mixing: Option<Mixing>,
}

/// How batches mixed, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mixing {
    /// Mean divergence of the batches.
    pub divergence: f64,
    /// Its standard error: batches differ by chance.
    pub standard_error: f64,
    /// Mean divergence in a true permutation.
    pub ideal: f64,
}

impl Mixing {
    /// The divergence over that of a true permutation: 1.05 is 5 % too much.
    pub fn ratio(&self) -> f64 {
        ratio(self.divergence, self.ideal)
    }
}

impl EpochReport {
    /// Whether batches hold fewer classes than they should, by more than chance explains.
    pub(super) fn is_badly_mixed(&self) -> bool {
        self.mixing.is_some_and(|mixing| {
            mixing.divergence - 3.0 * mixing.standard_error > mixing.ideal * (1.0 + WELL_MIXED)
        })
    }
}

impl std::fmt::Display for EpochReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "epoch {}: batches {} to {} of {}, {} of {} samples given, {} of them in the place of bad ones, {} left out",
            self.epoch,
            self.first_batch + 1,
            self.batches,
            self.batches,
            self.given,
            self.num_samples,
            self.replaced,
            self.left_out
        )?;
        if self.absent > 0 {
            write!(
                f,
                "; {} in the place of rows without an image, which no footer counts",
                self.absent
            )?;
        }
        if let Some(mixing) = self.mixing {
            write!(
                f,
                "; batches diverge from the {}' frequencies by {:.3} nats (standard error {:.3}), {:.2} times a true permutation's {:.3}",
                if self.by_class { "classes" } else { "shards" },
                mixing.divergence,
                mixing.standard_error,
                mixing.ratio(),
                mixing.ideal
            )?;
        }
        Ok(())
    }
}

/// Counts an epoch while it goes on.
#[derive(Debug)]
pub(super) struct EpochMeter {
    by_class: bool,
    first_batch: u64,
    given: u64,
    replaced: u64,
    absent: u64,
    /// Samples by their class, or by their shard as if it were one. `None`: the labels are too many
    /// to be classes.
    groups: Option<HashMap<Label, u64>>,
    grouped: u64,
    batches: u64,
    entropy_sum: f64,
    entropy_square_sum: f64,
}

impl EpochMeter {
    /// A meter of classes or, where there are none, of shards.
    pub(super) fn new(by_class: bool, first_batch: u64) -> Self {
        Self {
            by_class,
            first_batch,
            given: 0,
            replaced: 0,
            absent: 0,
            groups: Some(HashMap::new()),
            grouped: 0,
            batches: 0,
            entropy_sum: 0.0,
            entropy_square_sum: 0.0,
        }
    }

    /// Counts one batch.
    pub(super) fn batch(&mut self, samples: &[SampleRecord], replaced: u64, absent: u64) {
        self.given += samples.len() as u64;
        self.replaced += replaced;
        self.absent += absent;
        let Some(groups) = &mut self.groups else {
            return;
        };
        let mut in_batch = HashMap::new();
        for sample in samples {
            let group = if self.by_class {
                sample.label.clone()
            } else {
                Some(Label::Index(i64::from(sample.id.shard)))
            };
            if let Some(group) = group {
                *in_batch.entry(group).or_insert(0u64) += 1;
            }
        }
        let grouped: u64 = in_batch.values().sum();
        if grouped == 0 {
            return;
        }
        self.batches += 1;
        self.grouped += grouped;
        let entropy = entropy(in_batch.values().copied(), grouped);
        self.entropy_sum += entropy;
        self.entropy_square_sum += entropy * entropy;
        for (group, count) in in_batch {
            *groups.entry(group).or_insert(0) += count;
        }
        if self.by_class && groups.len() > MOST_CLASSES {
            self.groups = None;
        }
    }

    /// The epoch's report.
    pub(super) fn report(
        &self,
        epoch: u64,
        num_samples: u64,
        used_samples: u64,
        config: &LoaderConfig,
    ) -> EpochReport {
        let groups = self.groups.as_ref().filter(|groups| groups.len() > 1);
        let mixing = groups.filter(|_| config.shuffle).map(|groups| {
            let sizes: Vec<u64> = groups.values().copied().collect();
            let count = self.batches as f64;
            let mean = self.entropy_sum / count;
            let variance = (self.entropy_square_sum / count - mean * mean).max(0.0);
            Mixing {
                divergence: (entropy(sizes.iter().copied(), self.grouped) - mean).max(0.0),
                standard_error: (variance / (count - 1.0).max(1.0)).sqrt(),
                ideal: ideal_divergence(&sizes, self.grouped / self.batches),
            }
        });
        EpochReport {
            epoch,
            num_samples,
            batches: used_samples.div_ceil(config.global_batch as u64),
            first_batch: self.first_batch,
            given: self.given,
            replaced: self.replaced,
            absent: self.absent,
            left_out: num_samples - used_samples,
            by_class: self.by_class,
            mixing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, epoch_stream, shuffle};

    /// Captions for labels: memory must not grow with the data.
    #[test]
    fn labels_that_are_no_classes_are_not_counted_on() {
        let plan = crate::augment::CropPlan {
            rect: crate::augment::CropRect {
                x: 0.0,
                y: 0.0,
                width: 1.0,
                height: 1.0,
            },
            flip: false,
            output_size: 8,
            filter: crate::Filter::Bilinear,
            edge: crate::augment::EdgeSupport::Rect,
            operations: Vec::new(),
            erase: None,
        };
        let sample = |row: u32| SampleRecord {
            id: SampleId {
                shard: 0,
                row_group: 0,
                row,
            },
            views: vec![plan.clone()],
            label: Some(Label::Index(i64::from(row))),
            replaces: None,
        };
        let config = crate::loader::config::tests::config();
        let mut meter = EpochMeter::new(true, 0);
        let batches = 100;
        let batch = MOST_CLASSES as u32 / batches + 1;
        for number in 0..batches {
            assert!(meter.groups.is_some());
            let samples = (number * batch..(number + 1) * batch).map(sample);
            meter.batch(&samples.collect::<Vec<_>>(), 0, 0);
        }
        assert!(meter.groups.is_none());
        let report = meter.report(
            0,
            u64::from(batches * batch),
            u64::from(batches * batch),
            &config,
        );
        assert_eq!(report.given, u64::from(batches * batch));
        assert!(report.mixing.is_none());
    }

    #[test]
    fn the_ideal_is_that_of_random_permutations() {
        let sizes = [300u64, 100, 50, 50, 7, 5, 5, 5];
        for batch in [8u64, 64, 200] {
            let mut classes: Vec<usize> = sizes
                .iter()
                .enumerate()
                .flat_map(|(class, &size)| (0..size).map(move |_| class))
                .collect();
            let mut rng = epoch_stream(3, batch, 0, Purpose::Order);
            let rounds = 2_000;
            let sum: f64 = (0..rounds)
                .map(|_| {
                    shuffle(&mut rng, &mut classes);
                    divergence(classes[..batch as usize].iter().copied(), &sizes)
                })
                .sum();
            let (measured, ideal) = (sum / f64::from(rounds), ideal_divergence(&sizes, batch));
            assert!(
                (measured / ideal - 1.0).abs() < 0.03,
                "batch {batch}: {measured} measured, {ideal} computed"
            );
        }
        assert!(
            ideal_divergence(&[3, 5], 8) < 1e-12,
            "a batch of everything"
        );
    }

    /// Rows sorted by class, in parts of two classes; batches of 256 from a window of 32 parts.
    #[test]
    fn lanes_mix_sorted_rows_as_well_as_one_lane_does() {
        let parts: Vec<Part> = (0..512)
            .map(|part| Part {
                id: crate::PartId { shard: 0, part },
                row_group: part,
                first_row: 0,
                num_rows: 100,
                num_present: 100,
                skipped: 0,
                num_samples: 100,
                memory_bytes: 1 << 20,
            })
            .collect();
        let group = |id: SampleId| ((id.row_group * 100 + id.row) / 50) as usize;
        let sizes = [50; 1024];
        let mean = |lanes, window: u64| {
            // The order is random: the mean of some.
            let seeds = 0..8;
            let of_seed = |seed| {
                let orders = orders(&parts, seed, lanes, window << 20);
                mean_divergence(&orders, 51_200, 256, &sizes, group)
            };
            seeds.map(of_seed).sum::<f64>() / 8.0
        };
        let ideal = ideal_divergence(&sizes, 256);
        for window in [32, 128, 512] {
            let one = mean(1, window);
            println!("window of {window} parts: 1 lane {:.3}", one / ideal);
            for lanes in [2, 4, 8, 16, 32] {
                let several = mean(lanes, window);
                println!(
                    "window of {window} parts: {lanes} lanes {:.3}",
                    several / ideal
                );
                let excess = several / one;
                assert!((0.9..1.01).contains(&excess), "{window}, {lanes}: {excess}");
            }
        }
    }

    #[test]
    fn a_meter_tells_sorted_from_mixed() {
        let config = LoaderConfig {
            global_batch: 10,
            ..crate::loader::config::tests::config()
        };
        let views = config.augment.build().unwrap().draw(
            8,
            8,
            &mut epoch_stream(1, 0, 0, Purpose::Augment),
        );
        let mut samples: Vec<SampleRecord> = (0..1000)
            .map(|i| SampleRecord {
                id: SampleId {
                    shard: i % 2,
                    row_group: 0,
                    row: i,
                },
                views: views.clone(),
                label: Some(Label::Index(i64::from(i / 100))),
                replaces: None,
            })
            .collect();
        let report = |samples: &[SampleRecord], by_class| {
            let mut meter = EpochMeter::new(by_class, 0);
            for batch in samples.chunks(10) {
                meter.batch(batch, 1, 2);
            }
            meter.report(4, 1003, 1000, &config)
        };
        let sorted = report(&samples, true);
        assert_eq!(
            (
                sorted.given,
                sorted.replaced,
                sorted.absent,
                sorted.left_out,
                sorted.batches
            ),
            (1000, 100, 200, 3, 100)
        );
        let mixing = sorted.mixing.unwrap();
        assert!((mixing.divergence - 10f64.ln()).abs() < 1e-9 && mixing.ratio() > 2.0);
        assert!(sorted.is_badly_mixed());
        let by_shard = report(&samples, false).mixing.unwrap();
        assert!(
            by_shard.divergence < 1e-9,
            "each batch holds both shards alike"
        );
        shuffle(&mut epoch_stream(1, 0, 0, Purpose::Order), &mut samples);
        let mixed = report(&samples, true);
        assert!(!mixed.is_badly_mixed(), "{mixed}");
        let none = EpochMeter::new(true, 0).report(0, 10, 10, &config);
        assert_eq!((none.given, none.mixing), (0, None));
        // By chance a few batches may diverge much more than the ideal.
        let few = report(&samples[..30], true);
        assert!(!few.is_badly_mixed(), "{few}");
    }
}
