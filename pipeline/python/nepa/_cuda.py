"""What the native half needs to find on a machine with a GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
from pathlib import Path

NVJPEG = "libnvjpeg.so.13"


def load_nvjpeg() -> None:
    """Opens nvJPEG, so that the native half finds it by its name: where the dynamic loader looks,
    else where pip has put the package ``nvidia-nvjpeg``. Without it the CPU decodes, and a log line
    says so."""
    try:
        ctypes.CDLL(NVJPEG)
        return
    except OSError:
        pass
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        library = Path(folder, "cu13", "lib", NVJPEG)
        if library.is_file():
            try:
                ctypes.CDLL(str(library))
                return
            except OSError as error:
                logging.getLogger("nepa").warning("%s cannot be opened: %s", library, error)
