//! Who writes into an output in a store: the content of `owner.json`, and whether the process that
//! it names still lives.
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Who writes into an output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Claim {
    /// The run, for as long as its output is there.
    pub(super) run: String,
    /// The process.
    pub(super) id: String,
    pub(super) host: String,
    pub(super) pid: u32,
    /// Boot and process namespace in which `pid` is meant.
    #[serde(default)]
    pub(super) machine: Option<String>,
    /// When the process started, in ticks since the boot.
    #[serde(default)]
    pub(super) process_start: Option<u64>,
    pub(super) since_unix_s: u64,
    pub(super) renewed_unix_s: u64,
    /// It has ended and put everything away.
    pub(super) released: bool,
}

impl Claim {
    pub(super) fn new() -> Self {
        let now = unix_s();
        let pid = std::process::id();
        Self {
            run: random_id(),
            id: random_id(),
            host: sysinfo::System::host_name().unwrap_or_else(|_| "an unknown host".to_owned()),
            pid,
            machine: machine(),
            process_start: process_start(pid),
            since_unix_s: now,
            renewed_unix_s: now,
            released: false,
        }
    }

    /// Whether its process is known to have ended.
    pub(super) fn is_dead(&self) -> bool {
        self.is_of_this_machine() && process_start(self.pid) != self.process_start
    }

    pub(super) fn is_of_this_machine(&self) -> bool {
        self.machine.is_some() && self.process_start.is_some() && self.machine == machine()
    }

    pub(super) fn age(&self) -> Duration {
        Duration::from_secs(unix_s().saturating_sub(self.renewed_unix_s))
    }
}

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "process {} on {}, which began {} s ago",
            self.pid,
            self.host,
            unix_s().saturating_sub(self.since_unix_s)
        )
    }
}

pub(super) fn unix_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// 32 hex digits. The seeds of hash tables are random, and nothing more is asked for here.
fn random_id() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

/// What a process id belongs to; where the system does not tell, nothing is concluded from one.
fn machine() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), namespace.display()))
}

/// When a process started, if it lives.
fn process_start(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name, may hold anything; the state follows, and `Z` has ended.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z").then(|| fields.nth(18)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_and_not_by_its_number_alone() {
        let own = Claim::new();
        if own.machine.is_none() {
            eprintln!("SKIPPED: this system does not tell when a process started");
            return;
        }
        assert!(own.is_of_this_machine() && !own.is_dead());
        let reused = Claim {
            process_start: own.process_start.map(|start| start + 1),
            ..own.clone()
        };
        assert!(reused.is_dead());
        let elsewhere = Claim {
            machine: Some("other".to_owned()),
            ..reused
        };
        assert!(!elsewhere.is_dead());
        assert_ne!(own.id, Claim::new().id);
    }
}
