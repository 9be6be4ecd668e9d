//! How much memory, for what.
use std::fmt;

/// Bytes of memory by purpose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Purpose and bytes, in the order of first use.
    pub parts: Vec<(&'static str, u64)>,
}

impl MemoryPlan {
    /// Adds to a part.
    pub fn add(&mut self, name: &'static str, bytes: u64) {
        match self.parts.iter_mut().find(|(part, _)| *part == name) {
            Some((_, sum)) => *sum += bytes,
            None => self.parts.push((name, bytes)),
        }
    }

    /// Adds all parts of another plan.
    pub fn extend(&mut self, other: &Self) {
        for (name, bytes) in &other.parts {
            self.add(name, *bytes);
        }
    }

    /// Sum of all parts.
    pub fn total_bytes(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(f, "{:.1} MiB: ", mib(self.total_bytes()))?;
        for (i, (name, bytes)) in self.parts.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{name} {:.1}", mib(*bytes))?;
        }
        Ok(())
    }
}
