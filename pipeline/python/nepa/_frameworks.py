"""Arrays of a batch as a framework's own, by DLPack and without a copy. None is imported early."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from ._checks import one_of
from ._errors import SettingError

NAMES = ("torch", "numpy", "jax", "dlpack")


def choose(framework: Any, *, dtype: str, device: str) -> str:
    """The framework that was asked for; torch where it is installed, if none was."""
    if framework is None:
        return "torch" if importlib.util.find_spec("torch") else "dlpack"
    name = one_of("framework", framework, NAMES)
    if name == "numpy" and dtype == "bfloat16":
        raise SettingError(
            "dtype is 'bfloat16', which NumPy does not have: use dtype='float32', or "
            "framework='torch', 'jax' or 'dlpack'"
        )
    if name == "numpy" and device != "cpu":
        raise SettingError(
            f"device is {device!r}, and NumPy's arrays are the CPU's: use device='cpu', or "
            "framework='torch', 'jax' or 'dlpack'"
        )
    return name


def converter(framework: str, *, pin_memory: bool, device: str) -> Callable[[Any], Any]:
    """What makes the framework's array of an object with ``__dlpack__``, in the same memory; or in
    page-locked memory of torch's, which keeps it from reuse while copies to a GPU run."""
    if pin_memory and (framework != "torch" or device != "cpu"):
        raise SettingError(
            f"pin_memory is of framework='torch' and device='cpu', and these are {framework!r} and "
            f"{device!r}: leave it out"
        )
    if framework == "dlpack":
        return _as_it_is
    try:
        module = importlib.import_module("jax.dlpack" if framework == "jax" else framework)
    except ModuleNotFoundError as error:
        raise SettingError(
            f"framework is {framework!r}, and its package cannot be imported ({error}): install "
            "it, or use framework='dlpack'"
        ) from error
    convert: Callable[[Any], Any] = module.from_dlpack
    if not pin_memory:
        return convert
    if not module.cuda.is_available():
        raise SettingError(
            "pin_memory needs a GPU that torch can use (torch.cuda.is_available() is False): leave "
            "it out"
        )
    return lambda array: convert(array).pin_memory()


def _as_it_is(array: Any) -> Any:
    return array
