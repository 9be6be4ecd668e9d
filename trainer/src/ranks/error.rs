//! Why several ranks cannot start, or not go on together.
use super::meeting::MeetingError;
use super::place::PlaceError;
use super::wire::WireError;

/// Several ranks cannot start, or not go on together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RanksError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Meeting(#[from] MeetingError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("cannot start what connects the ranks")]
    Start(#[source] std::io::Error),
    /// They were not started alike.
    #[error(
        "{ranks} {} another {what} than rank 0: {theirs}, rank 0 has {ours}\ntip: start all ranks \
         with the same program, command and data",
        if *several { "have" } else { "has" }
    )]
    Differ {
        /// As in `ranks 2 and 3`.
        ranks: String,
        several: bool,
        what: String,
        theirs: String,
        ours: String,
    },
    /// NCCL does not sum within one GPU.
    #[error(
        "{ranks} compute on the same GPU, and NCCL sums between different ones\ntip: show each rank \
         a GPU of its own, by CUDA_VISIBLE_DEVICES or as `srun --gpus-per-task=1` does; \
         --set train.wire=host sums through the memory of the machine, also within one GPU"
    )]
    SharedGpu {
        /// As in `ranks 2 and 3`.
        ranks: String,
    },
    #[error(
        "train.sum = \"library\" takes the sum of the library that connects the ranks, MPI or, \
         from GPU to GPU, NCCL; and TCP connects them\ntip: start them with mpirun, a program with \
         the feature `mpi` (make mpi; docs/ranks.md); or, on GPUs, take --set train.wire=nccl; or \
         --set train.sum=tree"
    )]
    NoLibrary,
    /// What another rank has found and tells of.
    #[error("{what}; rank 0 says more")]
    Elsewhere { what: String },
}
