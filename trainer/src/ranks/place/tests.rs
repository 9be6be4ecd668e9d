//! Tests of `place`: what flags and variables say.
use super::*;

fn found(variables: &[(&str, &str)]) -> Result<Option<Place>, PlaceError> {
    with(&PlaceArgs::default(), variables)
}

fn with(args: &PlaceArgs, variables: &[(&str, &str)]) -> Result<Option<Place>, PlaceError> {
    let lookup = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    place(args, &lookup, false)
}

fn of(rank: usize, size: usize, local_rank: usize, sharing: usize) -> Place {
    Place {
        rank,
        size,
        local_rank,
        sharing,
        meeting: Some(("127.0.0.1".to_owned(), 29_501)),
    }
}

#[test]
fn a_process_without_variables_is_alone() {
    for variables in [
        &[][..],
        &[("MASTER_ADDR", "node1"), ("MASTER_PORT", "1234")],
        &[("RANK", ""), ("WORLD_SIZE", "  ")],
        &[("RANK", "0"), ("WORLD_SIZE", "1")],
        &[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1")],
    ] {
        assert_eq!(found(variables), Ok(None), "{variables:?}");
    }
}

#[test]
fn torchrun_says_which_rank_this_is() {
    let variables = [
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("MASTER_ADDR", "node1"),
        ("MASTER_PORT", "29400"),
        ("TORCHELASTIC_RUN_ID", "none"),
        // It runs within a task of Slurm for each machine, or one of mpirun.
        ("SLURM_STEP_ID", "0"),
        ("SLURM_PROCID", "1"),
        ("SLURM_NTASKS", "2"),
        ("OMPI_COMM_WORLD_RANK", "1"),
        ("OMPI_COMM_WORLD_SIZE", "2"),
    ];
    let place = found(&variables).unwrap().unwrap();
    let expected = Place {
        meeting: Some(("node1".to_owned(), 29_401)),
        ..of(3, 4, 1, 2)
    };
    assert_eq!(place, expected);
    // All on one machine, without being told where to meet.
    let variables = [
        ("RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_WORLD_SIZE", "2"),
    ];
    assert_eq!(found(&variables), Ok(Some(of(1, 2, 1, 2))));
}

#[test]
fn so_do_mpirun_and_srun() {
    let mpi = [
        ("OMPI_COMM_WORLD_RANK", "2"),
        ("OMPI_COMM_WORLD_SIZE", "4"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "2"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
    ];
    assert_eq!(found(&mpi), Ok(Some(of(2, 4, 2, 1))));
    let slurm = [
        ("SLURM_STEP_ID", "0"),
        ("SLURM_STEP_NUM_TASKS", "8"),
        ("SLURM_NTASKS", "8"),
        ("SLURM_PROCID", "5"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_NNODES", "2"),
    ];
    assert_eq!(found(&slurm), Err(PlaceError::NoMeeting));
    let meeting = [&slurm[..], &[("MASTER_ADDR", "10.0.0.7")]].concat();
    let expected = Place {
        meeting: Some(("10.0.0.7".to_owned(), 29_501)),
        ..of(5, 8, 1, 1)
    };
    assert_eq!(found(&meeting), Ok(Some(expected)));
}

#[test]
fn mpi_connects_what_was_started_for_it() {
    let mpirun = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")];
    let srun = [
        ("SLURM_STEP_ID", "0"),
        ("SLURM_NTASKS", "2"),
        ("SLURM_PROCID", "1"),
        ("PMIX_RANK", "1"),
    ];
    let torchrun = [
        ("RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_WORLD_SIZE", "2"),
    ];
    let meeting = |variables: &[(&str, &str)], meet: Option<&str>| {
        let lookup = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let args = PlaceArgs {
            meet: meet.map(str::to_owned),
            ..PlaceArgs::default()
        };
        place(&args, &lookup, true).unwrap().unwrap().meeting
    };
    assert_eq!(meeting(&mpirun, None), None);
    assert_eq!(meeting(&srun, None), None);
    // Who says where to meet means TCP, as does torchrun.
    let told = [&mpirun[..], &[("MASTER_ADDR", "node1")]].concat();
    for found in [meeting(&mpirun, Some("node1:29501")), meeting(&told, None)] {
        assert_eq!(found, Some(("node1".to_owned(), 29_501)));
    }
    assert!(meeting(&torchrun, None).is_some());
    assert!(meeting(&[&mpirun[..], &torchrun].concat(), None).is_some());
}

#[test]
fn a_job_of_slurm_alone_makes_no_ranks() {
    let job = [
        ("SLURM_JOB_ID", "77"),
        ("SLURM_NTASKS", "4"),
        ("SLURM_PROCID", "0"),
        ("SLURM_LOCALID", "0"),
    ];
    // A batch script, a shell of salloc, srun with one task.
    assert_eq!(found(&job), Ok(None));
    let shell = [&job[..], &[("SLURM_STEP_ID", "4294967290")]].concat();
    assert_eq!(found(&shell), Ok(None));
    let one = [
        &job[..],
        &[("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "1")],
    ];
    assert_eq!(found(&one.concat()), Ok(None));
}

#[test]
fn what_is_not_clear_is_refused_by_name() {
    /// Variables, and what is said of them.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        (&[("RANK", "1")], &["RANK is set and WORLD_SIZE is not"]),
        (
            &[("OMPI_COMM_WORLD_SIZE", "4")],
            &["OMPI_COMM_WORLD_SIZE is set and OMPI_COMM_WORLD_RANK is not"],
        ),
        (
            &[("RANK", "4"), ("WORLD_SIZE", "4")],
            &["RANK = 4", "WORLD_SIZE = 4", "count from 0"],
        ),
        (
            &[("RANK", "one"), ("WORLD_SIZE", "4")],
            &["RANK = one is no number"],
        ),
        (
            &[
                ("RANK", "1"),
                ("WORLD_SIZE", "4"),
                ("OMPI_COMM_WORLD_RANK", "0"),
                ("OMPI_COMM_WORLD_SIZE", "2"),
            ],
            &[
                "RANK = 1",
                "OMPI_COMM_WORLD_RANK = 0",
                "contradict",
                "unset",
            ],
        ),
        (
            &[("RANK", "1"), ("WORLD_SIZE", "6"), ("MASTER_ADDR", "a")],
            &["6 ranks (WORLD_SIZE)", "start 4 ranks"],
        ),
        (
            &[("RANK", "1"), ("WORLD_SIZE", "2")],
            &["MASTER_ADDR", "--meet"],
        ),
        (
            &[
                ("RANK", "1"),
                ("WORLD_SIZE", "2"),
                ("MASTER_ADDR", "a"),
                ("MASTER_PORT", "65535"),
            ],
            &["MASTER_PORT = 65535"],
        ),
        (
            &[("SLURM_STEP_ID", "0"), ("SLURM_NTASKS", "4")],
            &["SLURM_NTASKS is set and SLURM_PROCID is not"],
        ),
    ];
    for (variables, parts) in cases {
        let error = found(variables).unwrap_err().to_string();
        for part in *parts {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}

#[test]
fn flags_go_before_all() {
    let args = PlaceArgs {
        rank: Some(1),
        ranks: Some(2),
        meet: Some("[::1]:4000".to_owned()),
    };
    let variables = [("RANK", "7"), ("WORLD_SIZE", "8")];
    let expected = Place {
        meeting: Some(("::1".to_owned(), 4000)),
        ..of(1, 2, 1, 1)
    };
    assert_eq!(with(&args, &variables), Ok(Some(expected)));
    let half = PlaceArgs {
        ranks: None,
        ..args.clone()
    };
    let error = with(&half, &[]).unwrap_err().to_string();
    assert!(
        error.contains("--rank is set and --ranks is not"),
        "{error}"
    );
    let nowhere = PlaceArgs {
        meet: Some("4000".to_owned()),
        ..args
    };
    let error = with(&nowhere, &[]).unwrap_err().to_string();
    assert!(error.contains("--meet 4000"), "{error}");
}
