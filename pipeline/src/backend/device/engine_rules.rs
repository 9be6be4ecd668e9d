//! What is known of JPEG engines without one: whose fault a refusal is, when an engine is given up,
//! which host side is free.
//!
//! Plain logic, so that it is tested where there is no GPU; `cuda/` asks it after each call of
//! nvJPEG.
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

/// Refusals in a row that are plainly the images' own before an engine is given up: it was asked
/// for what it never does.
pub(crate) const MAX_REFUSED_IMAGES: u32 = 256;
/// Refusals in a row that are not plainly the images' own before an engine is given up.
pub(crate) const MAX_UNCLEAR_REFUSALS: u32 = 32;

/// Whose fault a refusal by nvJPEG may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The image's: it is broken, cut off, or of a kind that the engine does not take.
    Image,
    /// The image's, if the device goes on working. nvJPEG answers so for odd single images, and
    /// also after a device has failed.
    Unclear,
    /// Not the image's: memory, or the library itself.
    Surroundings,
}

impl Blame {
    /// By nvJPEG's status, a number of `nvjpegStatus_t`.
    pub(crate) fn of(status: u32) -> Self {
        match status {
            // An invalid parameter, a bad JPEG, an unsupported one, an incomplete one.
            2 | 3 | 4 | 10 => Self::Image,
            // Not initialised, an allocation failed, built for another device.
            1 | 5 | 7 => Self::Surroundings,
            // Execution failed, an internal error, not implemented; and what later versions may
            // add.
            _ => Self::Unclear,
        }
    }

    /// Whether the device must be asked before the image is blamed.
    pub(crate) fn needs_proof(self) -> bool {
        self != Self::Image
    }
}

/// Counts an engine's refusals in a row; shared by all threads that use it.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    images: AtomicU32,
    unclear: AtomicU32,
    given_up: AtomicBool,
}

impl Patience {
    /// The engine has decoded an image.
    pub(crate) fn decoded(&self) {
        // As a rule both are 0, and no thread writes what the others read.
        if self.images.load(Relaxed) | self.unclear.load(Relaxed) != 0 {
            self.images.store(0, Relaxed);
            self.unclear.store(0, Relaxed);
        }
    }

    /// The engine has refused an image. True for the one refusal after which it is given up.
    pub(crate) fn refused(&self, blame: Blame) -> bool {
        let (count, limit) = match blame {
            Blame::Image => (&self.images, MAX_REFUSED_IMAGES),
            Blame::Unclear | Blame::Surroundings => (&self.unclear, MAX_UNCLEAR_REFUSALS),
        };
        count.fetch_add(1, Relaxed) + 1 >= limit && self.give_up()
    }

    /// Gives the engine up; true for the first who does.
    pub(crate) fn give_up(&self) -> bool {
        !self.given_up.swap(true, Relaxed)
    }

    /// Whether the engine is not used any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.load(Relaxed)
    }
}

/// Which of a decoder's two host sides may be written.
///
/// The device reads one side while the host prepares the next image in the other. Sides change when
/// a transfer is enqueued and not before: an image that fails on the host leaves the free side
/// free, so that the next one does not write into the side that may still be read.
#[derive(Debug, Default)]
pub(crate) struct HostSides {
    free: usize,
}

impl HostSides {
    /// Index of the side that no transfer reads.
    pub(crate) fn free(&self) -> usize {
        self.free
    }

    /// A transfer from the free side is enqueued. The device was done with the one before, so that
    /// its side is free now.
    pub(crate) fn transferred(&mut self) {
        self.free = 1 - self.free;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_blames_the_image_alone_only_where_nvidia_says_so() {
        let blamed = (1..=12).filter(|status| !Blame::of(*status).needs_proof());
        assert_eq!(blamed.collect::<Vec<_>>(), [2, 3, 4, 10]);
        // nvJPEG answers these for single odd images on a healthy device.
        for status in [6, 8, 9] {
            assert_eq!(Blame::of(status), Blame::Unclear);
        }
        assert_eq!(Blame::of(5), Blame::Surroundings);
    }

    #[test]
    fn an_engine_is_given_up_once_and_only_after_a_row() {
        for (blame, limit) in [
            (Blame::Image, MAX_REFUSED_IMAGES),
            (Blame::Unclear, MAX_UNCLEAR_REFUSALS),
            (Blame::Surroundings, MAX_UNCLEAR_REFUSALS),
        ] {
            let patience = Patience::default();
            for _ in 0..3 {
                assert!((1..limit).all(|_| !patience.refused(blame)));
                patience.decoded();
            }
            assert!((1..limit).all(|_| !patience.refused(blame)));
            assert!(!patience.is_given_up());
            assert!(patience.refused(blame));
            assert!(patience.is_given_up() && !patience.refused(blame));
        }
    }

    #[test]
    fn a_failed_host_phase_changes_no_sides() {
        // A model of the device: the side that the last transfer may still read.
        let (mut sides, mut read) = (HostSides::default(), None);
        for host_phase_succeeds in [true, false, true, true, false, false, true] {
            assert_ne!(Some(sides.free()), read, "written while it is read");
            if host_phase_succeeds {
                read = Some(sides.free());
                sides.transferred();
            }
        }
    }
}
