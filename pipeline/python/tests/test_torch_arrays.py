"""Batches as tensors of PyTorch, and its DataLoader; skipped where torch is not installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import loader_of
from test_epochs import seen

import nepa

torch = pytest.importorskip("torch", reason="torch is not installed")
import nepa.torch  # noqa: E402


def test_torch_is_chosen_where_it_is_installed(photos: Path) -> None:
    loader = loader_of(photos, framework=None)
    assert loader.framework == "torch"
    images, labels = next(iter(loader))
    assert (tuple(images.shape), images.dtype) == ((16, 3, 32, 32), torch.float32)
    assert (tuple(labels.shape), labels.dtype) == ((16,), torch.int64)
    assert images.is_contiguous() and images.device.type == "cpu"


def test_tensors_are_the_loaders_memory(photos: Path) -> None:
    for batch in loader_of(photos, framework="torch"):
        assert batch.images.data_ptr() == batch._native.view(0).data_ptr
        batch.images.mul_(2)


def test_tensors_hold_what_numpy_arrays_hold(photos: Path) -> None:
    for name, dtype in (("float32", torch.float32), ("uint8", torch.uint8)):
        tensors = next(iter(loader_of(photos, framework="torch", dtype=name))).images
        arrays = next(iter(loader_of(photos, framework="numpy", dtype=name))).images
        assert tensors.dtype == dtype
        np.testing.assert_array_equal(tensors.numpy(), arrays)


def test_bfloat16_tensors_are_float32_rounded(photos: Path) -> None:
    wide = next(iter(loader_of(photos, framework="torch"))).images
    narrow = next(iter(loader_of(photos, framework="torch", dtype="bfloat16"))).images
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow, wide.to(torch.bfloat16))


def test_pinned_tensors_are_copies_by_torch(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch is played where it would need a GPU."""
    with pytest.raises(nepa.SettingError, match="pin_memory is of framework='torch'"):
        loader_of(photos, framework="numpy", pin_memory=True)
    if not torch.cuda.is_available():
        with pytest.raises(nepa.SettingError, match="needs a GPU"):
            loader_of(photos, framework="torch", pin_memory=True)
    pinned: list[int] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.data_ptr())
        return tensor.clone()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = next(iter(loader_of(photos, framework="torch", pin_memory=True)))
    assert batch.images.data_ptr() != batch._native.view(0).data_ptr == pinned[0]
    assert torch.equal(batch.images, torch.from_dlpack(batch._native.view(0)))
    assert batch.images is batch.images and len(pinned) == 1


def test_a_data_loader_without_workers_gives_the_same_batches(photos: Path) -> None:
    dataset = nepa.torch.IterableDataset(loader_of(photos, framework="torch"))
    batches = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=0)
    assert len(batches) == len(dataset) == 12
    plain = loader_of(photos, framework="torch")
    for _ in range(2):
        for (images, labels), batch in zip(batches, plain, strict=True):
            assert torch.equal(images, batch.images)
            assert torch.equal(labels, batch.labels)


def test_a_data_loader_with_workers_is_refused(photos: Path) -> None:
    dataset = nepa.torch.IterableDataset(loader_of(photos, framework="torch"))
    batches = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=1, multiprocessing_context="fork"
    )
    with pytest.raises(nepa.ForkError, match="num_workers=0"):
        next(iter(batches))


def test_the_dataset_needs_a_loader_of_tensors(photos: Path) -> None:
    for loader in (loader_of(photos, framework="numpy"), [1, 2]):
        with pytest.raises(nepa.SettingError, match="framework='torch'"):
            nepa.torch.IterableDataset(loader)  # type: ignore[arg-type]


def test_the_dataset_passes_positions_through(photos: Path) -> None:
    dataset = nepa.torch.IterableDataset(loader_of(photos, framework="torch"))
    for count, _ in enumerate(dataset):
        if count == 4:
            break
    state = dataset.state_dict()
    expected = loader_of(photos)
    expected.load_state_dict(state)
    resumed = nepa.torch.IterableDataset(loader_of(photos, framework="torch"))
    resumed.load_state_dict(state)
    rest = [images.numpy().tobytes() for images, _ in resumed]
    assert rest == [pixels for _, _, pixels in seen(expected)]
    resumed.set_epoch(0)
    assert sum(1 for _ in resumed) == 12


def test_the_stateful_data_loader_of_torchdata_resumes_exactly(photos: Path) -> None:
    stateful = pytest.importorskip(
        "torchdata.stateful_dataloader", reason="torchdata is not installed"
    )

    def batches():  # type: ignore[no-untyped-def]
        dataset = nepa.torch.IterableDataset(loader_of(photos, framework="torch"))
        return stateful.StatefulDataLoader(dataset, batch_size=None, num_workers=0)

    whole = [images.clone() for images, _ in batches()]
    first = batches()
    iterator = iter(first)
    for _ in range(5):
        next(iterator)
    second = batches()
    second.load_state_dict(first.state_dict())
    rest = [images for images, _ in second]
    assert len(rest) == 7
    assert all(torch.equal(*pair) for pair in zip(rest, whole[5:], strict=True))
