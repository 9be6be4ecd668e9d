"""Where batches lie, without a GPU. With one: tests/cuda/python.rs, by make gpu-test."""

import subprocess
import sys

import nepa
import pytest


def test_a_gpu_needs_a_build_with_cuda_and_a_driver() -> None:
    # The program is of the same build.
    line = [sys.executable, "-m", "nepa", "--version"]
    version = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    kind: type[Exception] = nepa.SettingError
    says = r"make cuda-wheel.*images\.to\(\"cuda:3\"\)"
    if "cuda" in version:
        kind, says = nepa.DeviceError, "driver"
    # Before anything of the data set is read.
    with pytest.raises(kind, match=says):
        nepa.Loader("/nowhere", device="cuda:3")


@pytest.mark.parametrize("name", ["cuda", "cuda:", "cuda:-1", "gpu", "CPU", ""])
def test_a_device_is_named_as_pytorch_writes_it(name: str) -> None:
    with pytest.raises(nepa.SettingError, match="cuda:0"):
        nepa.Loader("/nowhere", device=name)
