//! What the kernel says of the processor: how long our threads ran and waited for a core, and how
//! much of the machine others took. Linux alone says so; elsewhere there is no reading.
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

/// Ticks of `/proc/stat` in a second, on every architecture that Linux runs a trainer on.
const TICKS: f64 = 100.0;

/// A reading at one moment.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    at: Instant,
    /// Of each thread by its id: its name, time at work and time waiting for a core, in seconds.
    threads: BTreeMap<String, (String, [f64; 2])>,
    /// Time at work of all cores of the machine, in seconds.
    machine: Option<f64>,
    /// Time at work of this process, in seconds.
    process: f64,
    /// Time for which the control group was held back, in seconds.
    throttled: Option<f64>,
}

/// What happened between two readings, in cores: seconds a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Use {
    /// Cores that this process had.
    pub(super) own: f64,
    /// Cores that others had, where the kernel says so.
    pub(super) others: Option<f64>,
    /// Share of the time that our threads could run, but waited for a core.
    pub(super) wait_share: Option<f64>,
    /// Share of the time in which the control group was held back.
    pub(super) throttled: Option<f64>,
}

/// What the threads of one kind did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Threads {
    /// Their name, without a number.
    pub name: String,
    /// How many there are.
    pub number: usize,
    /// Cores that they had.
    pub cores: f64,
    /// Cores that they waited for.
    pub waited_cores: f64,
}

/// Name of a thread without what counts it: `decode-3` and `decode-4` are of one kind.
fn kind(name: &str) -> &str {
    let name = name.trim();
    let kind = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-' || c == ' ');
    if kind.is_empty() { name } else { kind }
}

/// Time at work of this process so far, in seconds.
fn process_s() -> f64 {
    cpu_time::ProcessTime::try_now().map_or(0.0, |time| time.as_duration().as_secs_f64())
}

/// `1234 56 7` of a `schedstat`: nanoseconds at work and waiting, and slices.
fn schedstat(text: &str) -> Option<[f64; 2]> {
    let mut numbers = text.split_whitespace().map(|word| word.parse::<u64>().ok());
    let mut next = || numbers.next().flatten().map(|ns| ns as f64 / 1e9);
    Some([next()?, next()?])
}

/// Ticks at work in the first line of `/proc/stat`, in seconds: all but idle and waiting for disks.
/// Guests are counted among user time already.
fn machine(text: &str) -> Option<f64> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks = line
        .split_whitespace()
        .map(|word| word.parse::<u64>().ok())
        .collect::<Option<Vec<_>>>()?;
    let is_work = |column: &usize| !matches!(column, 3 | 4) && *column < 8;
    let work = (0..ticks.len()).filter(is_work).map(|column| ticks[column]);
    Some(work.sum::<u64>() as f64 / TICKS)
}

/// `throttled_usec` of a control group's `cpu.stat`, in seconds.
fn throttled(text: &str) -> Option<f64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("throttled_usec "))?;
    Some(line.trim().parse::<u64>().ok()? as f64 / 1e6)
}

impl Reading {
    pub(super) fn now() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let mut threads = BTreeMap::new();
        for task in std::fs::read_dir("/proc/self/task").into_iter().flatten() {
            let Ok(task) = task else { continue };
            // A thread that has just ended has none.
            let times = std::fs::read_to_string(task.path().join("schedstat"));
            if let Some(times) = times.ok().and_then(|text| schedstat(&text)) {
                let name = std::fs::read_to_string(task.path().join("comm"));
                let name = kind(&name.unwrap_or_default()).to_owned();
                let id = task.file_name().to_string_lossy().into_owned();
                threads.insert(id, (name, times));
            }
        }
        Self {
            at: Instant::now(),
            threads,
            machine: read("/proc/stat").and_then(|text| machine(&text)),
            process: process_s(),
            throttled: group().and_then(|text| throttled(&text)),
        }
    }

    /// What each kind of thread did since `self`, the busiest first.
    pub(super) fn threads_until(&self, later: &Self) -> Vec<Threads> {
        let seconds = later.at.duration_since(self.at).as_secs_f64().max(1e-9);
        let mut kinds = BTreeMap::<&str, Threads>::new();
        for (id, (name, [work, wait])) in &later.threads {
            let before = self.threads.get(id).map_or([0.0; 2], |(_, times)| *times);
            let kind = kinds.entry(name).or_insert_with(|| Threads {
                name: name.clone(),
                number: 0,
                cores: 0.0,
                waited_cores: 0.0,
            });
            kind.number += 1;
            kind.cores += (work - before[0]).max(0.0) / seconds;
            kind.waited_cores += (wait - before[1]).max(0.0) / seconds;
        }
        let mut kinds = kinds.into_values().collect::<Vec<_>>();
        kinds.sort_by(|a, b| b.cores.total_cmp(&a.cores));
        kinds
    }

    /// What happened since `self`.
    pub(super) fn until(&self, later: &Self) -> Use {
        let seconds = later.at.duration_since(self.at).as_secs_f64().max(1e-9);
        let own = (later.process - self.process) / seconds;
        let (ran, waited) = self
            .threads_until(later)
            .iter()
            .fold((0.0, 0.0), |(ran, waited), kind| {
                (ran + kind.cores, waited + kind.waited_cores)
            });
        let others = later.machine.zip(self.machine);
        let throttled = later.throttled.zip(self.throttled);
        Use {
            own,
            others: others.map(|(later, before)| ((later - before) / seconds - own).max(0.0)),
            wait_share: (ran + waited > 0.0).then(|| waited / (ran + waited)),
            throttled: throttled.map(|(later, before)| (later - before) / seconds),
        }
    }
}

/// `cpu.stat` of the control group of this process.
fn group() -> Option<String> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    // Of version 2: `0::/path`. Within a container the root is its own group.
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let own = root.join(path).join("cpu.stat");
    std::fs::read_to_string(own)
        .or_else(|_| std::fs::read_to_string(root.join("cpu.stat")))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        assert_eq!(schedstat("1500000000 250000000 7\n"), Some([1.5, 0.25]));
        assert_eq!(schedstat("\n"), None);
        // user nice system idle iowait irq softirq steal guest guest_nice
        let text = "cpu  100 20 30 9000 500 4 6 40 60 1\ncpu0 1 1 1 1\n";
        assert_eq!(machine(text), Some(2.0));
        assert_eq!(
            throttled("usage_usec 5\nthrottled_usec 2500000\n"),
            Some(2.5)
        );
        assert_eq!(throttled("usage_usec 5\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn work_of_a_thread_is_seen() {
        let before = Reading::now();
        let mut sum = 0_u64;
        while before.at.elapsed().as_millis() < 200 {
            sum = std::hint::black_box(sum.wrapping_mul(3).wrapping_add(1));
        }
        let found = before.until(&Reading::now());
        // On a busy machine it may wait for most of that time.
        assert!(found.own > 0.05, "{found:?}");
        assert!(
            found.others.is_some() && found.wait_share.is_some(),
            "{found:?}"
        );
    }
}
