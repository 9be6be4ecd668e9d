"""The examples, each as a user runs it, on the CPU and for a few steps."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
# 12 batches of 16 an epoch of `photos`: 13 steps end in its second epoch.
SMALL = ["--num-classes", "10", "--batch-size", "16", "--size", "32"]


def needs(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def run(*command: Any, module: str | None = None, fails: bool = False) -> str:
    """What an example prints. One thread, as sums over several depend on their number."""
    start = [] if module is None else ["-m", module]
    done = subprocess.run(
        [sys.executable, *start, *map(str, command)],
        cwd=EXAMPLES,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode != 0) == fails, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    import torch

    assert one.keys() == other.keys()
    for name, weights in one.items():
        assert torch.equal(weights, other[name]), name


def test_numpy_only(photos: Path) -> None:
    losses = run("numpy_only.py", photos, "--batch-size", 16, "--max-steps", 40)
    assert "step 40  loss" in losses


def test_jax(photos: Path) -> None:
    needs("jax")
    assert "step 20  loss" in run("train_jax.py", photos, *SMALL, "--max-steps", 20)


def test_resnet_stopped_in_mid_epoch_goes_on_as_if_it_had_not_been(
    photos: Path, tmp_path: Path
) -> None:
    needs("torch", "torchvision")
    import torch

    def train(name: str, steps: int) -> dict[str, Any]:
        settings = [*SMALL, "--model", "resnet18", "--max-steps", steps]
        run("train_resnet50.py", photos, *settings, "--checkpoint", tmp_path / name)
        saved: dict[str, Any] = torch.load(tmp_path / name)
        return saved

    whole = train("whole.pt", 17)
    first = train("parts.pt", 14)
    parts = train("parts.pt", 17)
    assert (first["step"], parts["step"]) == (14, 17)
    assert first["loader"]["batch_in_epoch"] == 2
    assert parts["loader"] == whole["loader"]
    assert_equal(parts["model"], whole["model"])


def test_two_processes_train_what_one_does(photos: Path, tmp_path: Path) -> None:
    needs("torch")
    one, two, other = tmp_path / "one.pt", tmp_path / "two.pt", tmp_path / "other.pt"
    settings = [photos, "--global-batch-size", 32, "--lanes", 2, "--max-steps", 20]
    run("ddp_cnn.py", *settings, "--save", one)
    torchrun = ["--standalone", "--nproc-per-node=2", "ddp_cnn.py", *settings, "--save", two]
    assert "processes 2" in run(*torchrun, module="torch.distributed.run")
    run("ddp_cnn.py", "--compare", one, two)
    # Other batches are another thing than rounding.
    run("ddp_cnn.py", *settings, "--lanes", 1, "--save", other)
    assert "differ" in run("ddp_cnn.py", "--compare", one, other, fails=True)


def test_timm(photos: Path) -> None:
    needs("torch", "timm")
    model = ["--model", "vit_tiny_patch16_224", "--num-classes", "10"]
    length = ["--batch-size", "4", "--epochs", "1", "--max-steps", "2"]
    assert "top-1" in run("finetune_timm.py", photos, "--val", photos, *model, *length)


def test_lightning_goes_on_in_mid_epoch(photos: Path, tmp_path: Path) -> None:
    needs("torch", "torchvision", "lightning")
    import torch

    def train(name: str, steps: int, *more: Any) -> dict[str, Any]:
        out = tmp_path / name
        settings = [*SMALL, "--save-every", steps, "--max-steps", steps, "--out", out]
        run("lightning_classifier.py", photos, *settings, *more)
        saved: dict[str, Any] = torch.load(out / "last.ckpt", weights_only=False)
        return saved

    whole = train("whole", 17)
    train("parts", 14)
    parts = train("parts", 17, "--resume", tmp_path / "parts" / "last.ckpt")
    assert parts["Shards"] == whole["Shards"]
    assert_equal(parts["state_dict"], whole["state_dict"])


def test_the_trainer_of_transformers_goes_on_in_mid_epoch(photos: Path, tmp_path: Path) -> None:
    needs("torch", "transformers", "accelerate")
    from safetensors.torch import load_file

    def train(name: str, *more: Any) -> dict[str, Any]:
        out = tmp_path / name
        settings = [*SMALL, "--depths", 1, 1, 1, 1, "--save-every", 14, "--max-steps", 17]
        run("hf_trainer.py", photos, *settings, "--out", out, *more)
        return load_file(out / "checkpoint-17" / "model.safetensors")

    whole = train("whole")
    parts = train("parts", "--resume", tmp_path / "whole" / "checkpoint-14")
    assert_equal(parts, whole)


def test_the_tour_prints_what_its_page_says() -> None:
    needs("PIL")
    pages = [parent / "docs" / "python-tour.md" for parent in Path(__file__).parents]
    page = next((page for page in pages if page.exists()), None)
    if page is None:
        pytest.skip("no docs/python-tour.md above the tests")
    run("tour.py", page, "--check")
