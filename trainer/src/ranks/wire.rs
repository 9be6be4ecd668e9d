//! What the ranks of a run ask of whatever connects them. All that they do together is made of one
//! operation between two of them.

/// Connects this rank with others. Every rank asks for the same operations in the same order.
///
/// Two ranks exchange something only if their numbers differ in one bit: so a wire needs no more
/// than log2 of the ranks connections.
pub(crate) trait Wire: Send + std::fmt::Debug {
    /// This rank.
    fn rank(&self) -> usize;

    /// All ranks, a power of two.
    fn size(&self) -> usize;

    /// Sends bytes to a rank while it receives as many from it as there is room for; the other one
    /// does the same. Either may be empty.
    fn send_receive(
        &mut self,
        peer: usize,
        send: &[u8],
        receive: &mut [u8],
    ) -> Result<(), WireError>;

    /// Makes values their sum over all ranks as the library that carries them adds, in an order of
    /// its own; none where no such library is. Of no values it only tells which.
    fn library_sum(&mut self, _values: &mut [f32]) -> Option<Result<(), WireError>> {
        None
    }

    /// Fails once a rank that this one exchanges something with has ended, or gives no sign of life
    /// any more; does not wait.
    fn check(&mut self) -> Result<(), WireError>;

    /// The signal by which some rank was asked to stop, where a wire tells of that beside the
    /// operations.
    fn stop_heard(&self) -> Option<i32> {
        None
    }

    /// Tells the others that this rank ends: well, or because of a rank and for a reason.
    fn leave(&mut self, _failed: Option<(usize, &str)>) {}
}

/// The ranks cannot go on together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    /// A rank has ended; so does the run.
    #[error("rank {rank} {cause}")]
    Ended {
        /// Which.
        rank: usize,
        /// What became of it, as in `has failed: the disk is full`.
        cause: String,
    },
    /// Two ranks do not do the same things in the same order.
    #[error(
        "rank {rank} sent {got} bytes where {expected} were expected: the ranks are out of step; \
         this is a bug"
    )]
    OutOfStep {
        /// Which.
        rank: usize,
        /// Bytes that came.
        got: usize,
        /// Bytes that should have.
        expected: usize,
    },
}

impl WireError {
    /// The rank that is to blame, and the reason.
    pub(crate) fn blame(&self) -> (usize, String) {
        match self {
            Self::Ended { rank, cause } => (*rank, cause.clone()),
            Self::OutOfStep { rank, .. } => (*rank, format!("was out of step ({self})")),
        }
    }
}
