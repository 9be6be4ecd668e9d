"""Where batches lie, in a build without CUDA. With it: tests/cuda/python.rs, by make gpu-test."""

import nepa
import pytest


def test_a_gpu_needs_a_build_with_cuda() -> None:
    # Before anything of the data set is read.
    with pytest.raises(nepa.SettingError, match=r"feature cuda.*images\.to\(\"cuda:3\"\)"):
        nepa.Loader("/nowhere", device="cuda:3")


@pytest.mark.parametrize("name", ["cuda", "cuda:", "cuda:-1", "gpu", "CPU", ""])
def test_a_device_is_named_as_pytorch_writes_it(name: str) -> None:
    with pytest.raises(nepa.SettingError, match="cuda:0"):
        nepa.Loader("/nowhere", device=name)
