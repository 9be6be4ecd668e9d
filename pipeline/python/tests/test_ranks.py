"""Which of how many processes this is, by the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import loader_of

import nepa
from nepa._ranks import local_processes, place

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "", "WORLD_SIZE": " "}, (0, 1)),
        (TORCHRUN, (3, 4)),
        (MPI, (1, 2)),
        (SRUN, (5, 8)),
        # A step may have fewer tasks than the job.
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "6"}, (5, 6)),
        # torchrun within mpirun or srun: the innermost.
        ({**SRUN, **MPI, **TORCHRUN}, (3, 4)),
        ({**SRUN, **MPI}, (1, 2)),
        # A batch script and a shell of salloc are no tasks.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),
        ({**SRUN, "SLURM_STEP_ID": str(2**32 - 5)}, (0, 1)),
    ],
)
def test_the_environment_says_which(environ: dict[str, str], expected: tuple[int, int]) -> None:
    assert place(None, None, environ) == expected
    assert place(2, 3, environ) == (2, 3), "what is given goes first"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"RANK": "1"}, "RANK and not WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE and not RANK"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one'"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_RANK and not OMPI_COMM_WORLD_SIZE"),
    ],
)
def test_what_does_not_say_which_is_refused(environ: dict[str, str], said: str) -> None:
    with pytest.raises(nepa.SettingError, match=said):
        place(None, None, environ)


def test_processes_of_one_machine_share_its_cores() -> None:
    assert local_processes({}) == 1
    assert local_processes({"LOCAL_WORLD_SIZE": "8"}) == 8
    with pytest.raises(nepa.SettingError, match="LOCAL_WORLD_SIZE"):
        local_processes({"LOCAL_WORLD_SIZE": "all"})


def test_a_loader_takes_its_place_from_the_environment(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    loader = loader_of(photos, rank=None, world_size=None)
    assert (loader.rank, loader.world_size) == (1, 2)
    assert (loader.batch_size, loader.global_batch_size) == (16, 32)
    assert len(loader) == 192 // 32
