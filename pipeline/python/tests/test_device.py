"""Where batches lie, in a build without CUDA. With it: tests/cuda/python.rs, by make gpu-test."""

import re

import nepa
import pytest


def test_a_gpu_needs_a_build_with_cuda_and_a_driver() -> None:
    # Before anything of the data set is read.
    with pytest.raises((nepa.SettingError, nepa.DeviceError)) as raised:
        nepa.Loader("/nowhere", device="cuda:3")
    if isinstance(raised.value, nepa.SettingError):
        assert re.search(r"make cuda-wheel.*images\.to\(\"cuda:3\"\)", str(raised.value))
    else:
        assert "driver" in str(raised.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:", "cuda:-1", "gpu", "CPU", ""])
def test_a_device_is_named_as_pytorch_writes_it(name: str) -> None:
    with pytest.raises(nepa.SettingError, match="cuda:0"):
        nepa.Loader("/nowhere", device=name)
