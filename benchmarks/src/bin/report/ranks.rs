//! The report of what adding over ranks takes. `scripts/mpi.sh bench` writes it; it needs Open MPI
//! and the program `ranks`, which the feature `mpi` builds.
use std::net::TcpListener;
use std::path::Path;

use crate::child::command;
use crate::machine::{Head, program};
use crate::sheet::{Measurement, Report};

/// Values of B/14 and L/14, about.
const VALUES: [usize; 2] = [86_000_000, 304_000_000];
const RANKS: [usize; 2] = [2, 4];

const SUMS: &str = "\
Each rank has so many f32 values and gets the sum over all ranks. The three ways take turns in the
same processes, after one turn that is not counted; medians of 5, the time of the slowest rank.
`sent` is what each rank has to send at least, 2 (ranks - 1) / ranks of its values, over the median.
All ranks are on this machine, where memory and cores are what is short, not a network; of more ranks
than cores some wait for a core. The tree gives the same bits for every number of ranks, MPI_Allreduce
does not.";

/// Measures all and writes the report.
pub(crate) fn write(programs: &Path, path: &Path) -> anyhow::Result<Report> {
    let head = Head {
        title: "Adding over ranks",
        program: &program(programs),
        command: "report ranks",
        data: "none",
        ..Head::default()
    };
    let mut report = Report::create(path, &head.text())?;
    let columns = "ranks | values, M | way | median, s | least to most, s | sent, GB/s";
    report.section("Sums of one machine's ranks", SUMS, columns)?;
    for values in VALUES {
        for ranks in RANKS {
            let free = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
            let mut mpirun = command("mpirun", "--oversubscribe --bind-to none -n");
            mpirun.arg(ranks.to_string());
            mpirun.arg(programs.join("ranks"));
            mpirun.args(["--values", &values.to_string()]);
            mpirun.args(["--meet", &free.to_string()]);
            // In a container all is root's.
            mpirun.env("OMPI_ALLOW_RUN_AS_ROOT", "1");
            mpirun.env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
            let label = format!("{ranks} ranks, {values} values");
            report.measure(Measurement::new(900, label, mpirun))?;
        }
    }
    Ok(report)
}
