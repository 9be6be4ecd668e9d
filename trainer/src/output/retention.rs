//! Which checkpoints of a run stay: the newest, and those of milestones.
use crate::recipe::CheckpointSection;

/// Which checkpoints stay when a new one is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retention {
    /// So many of the newest, milestones not counted.
    pub newest: usize,
    /// Those of every multiple of so many steps.
    pub milestone_steps: Option<u64>,
}

impl From<&CheckpointSection> for Retention {
    fn from(settings: &CheckpointSection) -> Self {
        Self {
            newest: settings.keep,
            milestone_steps: settings.milestone_steps,
        }
    }
}

impl Retention {
    /// Whether the checkpoint of that step is never removed.
    pub(crate) fn is_milestone(&self, step: u64) -> bool {
        self.milestone_steps
            .is_some_and(|steps| step.is_multiple_of(steps))
    }

    /// Of these steps, in ascending order, those whose checkpoints go.
    pub(super) fn old(&self, steps: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let all = steps.into_iter();
        let mut steps: Vec<u64> = all.filter(|step| !self.is_milestone(*step)).collect();
        steps.truncate(steps.len().saturating_sub(self.newest));
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milestones_stay_and_are_not_among_the_newest() {
        let retention = |newest, milestone_steps| Retention {
            newest,
            milestone_steps,
        };
        let steps = [5, 10, 12, 20, 21, 22, 30];
        assert_eq!(retention(2, None).old(steps), [5, 10, 12, 20, 21]);
        assert_eq!(retention(2, Some(10)).old(steps), [5, 12]);
        assert!(retention(9, Some(10)).old(steps).is_empty());
        assert!(retention(1, Some(1)).old(steps).is_empty());
    }
}
