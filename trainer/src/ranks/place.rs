//! Which rank this process is, of how many, and where they meet: from flags, or from the variables
//! that torchrun (and `nepa launch`), Open MPI and Slurm set. A function of both and nothing else.
use super::neighbours::is_possible;

/// Where torchrun's ranks meet without being told.
const MASTER_PORT: u16 = 29_500;
/// Steps of Slurm from here on are no `srun`: a batch script, a shell of `salloc`.
const RESERVED_STEPS: u32 = u32::MAX - 16;

/// What the command line says of ranks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PlaceArgs {
    pub rank: Option<usize>,
    pub ranks: Option<usize>,
    /// `HOST:PORT`.
    pub meet: Option<String>,
}

/// One of several ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub rank: usize,
    pub size: usize,
    /// Its number among those on this machine.
    pub local_rank: usize,
    /// Ranks that share the cores which this process sees; 1 where whoever started them gives each
    /// its own.
    pub sharing: usize,
    /// Host and port at which rank 0 waits for the others; none where MPI connects them.
    pub meeting: Option<(String, u16)>,
}

/// The flags and variables do not say which rank this process is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error(
        "{set} is set and {unset} is not: which of how many ranks is this process?\ntip: set both, \
         or neither for one process alone"
    )]
    Half {
        set: &'static str,
        unset: &'static str,
    },
    #[error("{name} = {value} is no number of a rank or a port")]
    Number { name: &'static str, value: String },
    #[error("{rank_name} = {rank} is no rank of {size_name} = {size}: ranks count from 0")]
    Range {
        rank_name: &'static str,
        rank: usize,
        size_name: &'static str,
        size: usize,
    },
    #[error(
        "{first} and {second} contradict each other: which rank is this process?\ntip: unset those \
         that are not meant, or give --rank, --ranks and --meet"
    )]
    Contradiction { first: String, second: String },
    #[error(
        "{size} ranks ({name}): a run has 1, 2, 4, 8, ... ranks, so that its numbers are the same \
         with any of them\ntip: start {} ranks", size.next_power_of_two() / 2
    )]
    NotPowerOfTwo { name: &'static str, size: usize },
    #[error(
        "nothing says where the ranks meet, and they are on several machines\ntip: set MASTER_ADDR \
         to the machine of rank 0 on all of them, or give --meet HOST:PORT"
    )]
    NoMeeting,
    #[error("--meet {value}: it must be HOST:PORT, as in node1:29501")]
    Meet { value: String },
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Who says which rank this is, and what else they say.
struct Given {
    rank: usize,
    size: usize,
    names: [&'static str; 2],
    local_rank: Option<usize>,
    sharing: usize,
    /// Whether all ranks are known to be on this machine.
    is_local: bool,
    /// Whether whoever started them has told an MPI library of them, too.
    is_mpi: bool,
}

/// The place of this process; none where it is alone. `lookup` gives the value of an environment
/// variable. Where the program `has_mpi`, MPI connects ranks that were started for it, unless they
/// are told where to meet.
pub(crate) fn place(
    args: &PlaceArgs,
    lookup: Lookup<'_>,
    has_mpi: bool,
) -> Result<Option<Place>, PlaceError> {
    let Some(given) = given(args, lookup)? else {
        return Ok(None);
    };
    let [rank_name, size_name] = given.names;
    if given.rank >= given.size {
        return Err(PlaceError::Range {
            rank_name,
            rank: given.rank,
            size_name,
            size: given.size,
        });
    }
    if given.size == 1 {
        return Ok(None);
    }
    if !is_possible(given.size) {
        return Err(PlaceError::NotPowerOfTwo {
            name: size_name,
            size: given.size,
        });
    }
    let is_told = args.meet.is_some() || text(lookup, "MASTER_ADDR").is_some();
    let meeting = if has_mpi && given.is_mpi && !is_told {
        None
    } else {
        Some(meeting(args, &given, lookup)?)
    };
    Ok(Some(Place {
        rank: given.rank,
        size: given.size,
        local_rank: given.local_rank.unwrap_or(given.rank),
        sharing: given.sharing.max(1),
        meeting,
    }))
}

/// Flags go before variables; the innermost of what started this process before what it was started
/// in: torchrun, then Open MPI, then Slurm.
fn given(args: &PlaceArgs, lookup: Lookup<'_>) -> Result<Option<Given>, PlaceError> {
    let names = ["--rank", "--ranks"];
    if let Some((rank, size)) = both(names, args.rank, args.ranks)? {
        let local = number(lookup, "LOCAL_WORLD_SIZE")?;
        return Ok(Some(Given {
            rank,
            size,
            names,
            local_rank: number(lookup, "LOCAL_RANK")?,
            sharing: local.unwrap_or(1),
            is_local: false,
            is_mpi: false,
        }));
    }
    let torch = of_torch(lookup)?;
    let mpi = of_mpi(lookup)?;
    match (torch, mpi) {
        (Some(torch), Some(mpi)) => {
            let same = (torch.rank, torch.size) == (mpi.rank, mpi.size);
            // torchrun on each of mpirun's machines has ranks of its own.
            if same || text(lookup, "TORCHELASTIC_RUN_ID").is_some() {
                return Ok(Some(torch));
            }
            Err(PlaceError::Contradiction {
                first: said(&torch),
                second: said(&mpi),
            })
        }
        (Some(one), None) | (None, Some(one)) => Ok(Some(one)),
        (None, None) => of_slurm(lookup),
    }
}

fn said(given: &Given) -> String {
    let [rank, size] = given.names;
    format!("{rank} = {}, {size} = {}", given.rank, given.size)
}

/// torchrun and `nepa launch`, whose ranks share the cores of a machine.
fn of_torch(lookup: Lookup<'_>) -> Result<Option<Given>, PlaceError> {
    let local = ["LOCAL_RANK", "LOCAL_WORLD_SIZE"];
    let found = of_variables(lookup, ["RANK", "WORLD_SIZE"], local)?;
    Ok(found.map(|(given, local_size)| Given {
        sharing: local_size.unwrap_or(1),
        ..given
    }))
}

/// Open MPI's mpirun, which binds each rank to cores of its own unless it is told not to.
fn of_mpi(lookup: Lookup<'_>) -> Result<Option<Given>, PlaceError> {
    let names = ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"];
    let local = ["OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"];
    let found = of_variables(lookup, names, local)?;
    Ok(found.map(|(given, _)| Given {
        is_mpi: true,
        ..given
    }))
}

/// Rank and number of ranks by the variables of these names, also on this machine; and the last by
/// itself.
fn of_variables(
    lookup: Lookup<'_>,
    names: [&'static str; 2],
    [local_name, local_size_name]: [&'static str; 2],
) -> Result<Option<(Given, Option<usize>)>, PlaceError> {
    let pair = both(names, number(lookup, names[0])?, number(lookup, names[1])?)?;
    let Some((rank, size)) = pair else {
        return Ok(None);
    };
    let local_size = number(lookup, local_size_name)?;
    let given = Given {
        rank,
        size,
        names,
        local_rank: local_rank(lookup, local_name, (names[1], size))?,
        sharing: 1,
        is_local: local_size == Some(size),
        is_mpi: false,
    };
    Ok(Some((given, local_size)))
}

/// A task of `srun`, which gives each its cores. Variables of a job are there in its batch script
/// and in a shell of `salloc`, too, where one process runs alone.
fn of_slurm(lookup: Lookup<'_>) -> Result<Option<Given>, PlaceError> {
    let step = text(lookup, "SLURM_STEP_ID").or_else(|| text(lookup, "SLURM_STEPID"));
    let step = step.and_then(|step| step.parse::<u32>().ok());
    if step.is_none_or(|step| step >= RESERVED_STEPS) {
        return Ok(None);
    }
    let size = match number(lookup, "SLURM_STEP_NUM_TASKS")? {
        Some(size) => Some(size),
        None => number(lookup, "SLURM_NTASKS")?,
    };
    // One task alone needs no number.
    if size.is_none_or(|size| size <= 1) {
        return Ok(None);
    }
    let names = ["SLURM_PROCID", "SLURM_NTASKS"];
    let Some((rank, size)) = both(names, number(lookup, names[0])?, size)? else {
        return Ok(None);
    };
    let nodes = match number(lookup, "SLURM_STEP_NUM_NODES")? {
        Some(nodes) => Some(nodes),
        None => number(lookup, "SLURM_NNODES")?,
    };
    Ok(Some(Given {
        rank,
        size,
        names,
        local_rank: local_rank(lookup, "SLURM_LOCALID", (names[1], size))?,
        sharing: 1,
        is_local: nodes == Some(1),
        // Of `srun --mpi=pmix`.
        is_mpi: text(lookup, "PMIX_RANK").is_some(),
    }))
}

fn meeting(
    args: &PlaceArgs,
    given: &Given,
    lookup: Lookup<'_>,
) -> Result<(String, u16), PlaceError> {
    if let Some(meet) = &args.meet {
        let parts = meet.rsplit_once(':').and_then(|(host, port)| {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let port = port.parse::<u16>().ok().filter(|port| *port > 0);
            (!host.is_empty()).then(|| Some((host.to_owned(), port?)))?
        });
        return parts.ok_or_else(|| PlaceError::Meet {
            value: meet.clone(),
        });
    }
    let host = match text(lookup, "MASTER_ADDR") {
        Some(host) => host,
        None if given.is_local => "127.0.0.1".to_owned(),
        None => return Err(PlaceError::NoMeeting),
    };
    // torchrun's own store listens at MASTER_PORT.
    let port = match text(lookup, "MASTER_PORT") {
        None => MASTER_PORT + 1,
        Some(port) => {
            let next = port
                .parse::<u16>()
                .ok()
                .and_then(|port| port.checked_add(1));
            next.ok_or(PlaceError::Number {
                name: "MASTER_PORT",
                value: port,
            })?
        }
    };
    Ok((host, port))
}

fn local_rank(
    lookup: Lookup<'_>,
    name: &'static str,
    (size_name, size): (&'static str, usize),
) -> Result<Option<usize>, PlaceError> {
    match number(lookup, name)? {
        Some(rank) if rank >= size => Err(PlaceError::Range {
            rank_name: name,
            rank,
            size_name,
            size,
        }),
        rank => Ok(rank),
    }
}

fn both(
    [rank_name, size_name]: [&'static str; 2],
    rank: Option<usize>,
    size: Option<usize>,
) -> Result<Option<(usize, usize)>, PlaceError> {
    let half = |set, unset| Err(PlaceError::Half { set, unset });
    match (rank, size) {
        (None, None) => Ok(None),
        (Some(rank), Some(size)) => Ok(Some((rank, size))),
        (Some(_), None) => half(rank_name, size_name),
        (None, Some(_)) => half(size_name, rank_name),
    }
}

/// A variable that is set to something.
fn text(lookup: Lookup<'_>, name: &str) -> Option<String> {
    let value = lookup(name).map(|value| value.trim().to_owned());
    value.filter(|value| !value.is_empty())
}

fn number(lookup: Lookup<'_>, name: &'static str) -> Result<Option<usize>, PlaceError> {
    let Some(value) = text(lookup, name) else {
        return Ok(None);
    };
    match value.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(PlaceError::Number { name, value }),
    }
}

#[cfg(test)]
mod tests;
