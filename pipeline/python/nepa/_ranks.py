"""Which of how many processes this one is: as told, or as torchrun, Open MPI and Slurm say."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from ._checks import whole
from ._errors import SettingError

# Steps of Slurm from here on are no `srun`: a batch script, a shell of `salloc`.
_RESERVED_STEPS = 2**32 - 17

_log = logging.getLogger("nepa")


def place(
    rank: int | None, world_size: int | None, environ: Mapping[str, str] | None = None
) -> tuple[int, int]:
    """Rank and number of ranks: those given, else those of the environment, else 0 of 1."""
    environ = os.environ if environ is None else environ
    if (rank is None) != (world_size is None):
        given, other = ("rank", "world_size") if world_size is None else ("world_size", "rank")
        raise SettingError(f"{given} is given and {other} is not: give both, or neither")
    if rank is not None and world_size is not None:
        rank, world_size = whole("rank", rank), whole("world_size", world_size, least=1)
        return _checked(rank, world_size, "rank", "world_size")
    for rank_name, size_name in _names(environ):
        found = _both(environ, rank_name, size_name)
        if found is not None:
            rank, world_size = _checked(*found, rank_name, size_name)
            _log.info("rank %d of %d, by %s and %s", rank, world_size, rank_name, size_name)
            return rank, world_size
    return 0, 1


def local_processes(environ: Mapping[str, str] | None = None) -> int:
    """Processes of one run that share this machine's cores, as torchrun says; 1 without it."""
    environ = os.environ if environ is None else environ
    if _value(environ, "LOCAL_WORLD_SIZE") is None:
        return 1
    return max(1, _number(environ, "LOCAL_WORLD_SIZE"))


def _names(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs of variables, from the innermost of what starts processes to the outermost."""
    names = [("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")]
    # A batch script or a shell has the variables of Slurm, too, and is no task of several.
    step = _value(environ, "SLURM_STEP_ID")
    if step is not None and _number(environ, "SLURM_STEP_ID") < _RESERVED_STEPS:
        size = "SLURM_STEP_NUM_TASKS"
        names.append(("SLURM_PROCID", size if _value(environ, size) else "SLURM_NTASKS"))
    return names


def _value(environ: Mapping[str, str], name: str) -> str | None:
    return environ.get(name, "").strip() or None


def _number(environ: Mapping[str, str], name: str) -> int:
    value = _value(environ, name) or ""
    if not (value.isascii() and value.isdigit()):
        raise SettingError(
            f"the environment's {name} is {value!r}, but it must be a whole number; "
            "mend or unset it, or give rank and world_size"
        )
    return int(value)


def _both(environ: Mapping[str, str], rank_name: str, size_name: str) -> tuple[int, int] | None:
    rank, size = _value(environ, rank_name), _value(environ, size_name)
    if rank is None and size is None:
        return None
    if rank is None or size is None:
        given, other = (rank_name, size_name) if size is None else (size_name, rank_name)
        raise SettingError(
            f"the environment has {given} and not {other}: which of how many processes is this? "
            "Set both, or neither for one process alone, or give rank and world_size"
        )
    return _number(environ, rank_name), _number(environ, size_name)


def _checked(rank: int, world_size: int, rank_name: str, size_name: str) -> tuple[int, int]:
    if rank >= world_size:
        raise SettingError(
            f"{rank_name} is {rank}, but with {size_name} = {world_size} it must be from 0 to "
            f"{world_size - 1}"
            if world_size
            else f"{size_name} is 0, but it must be at least 1"
        )
    return rank, world_size
