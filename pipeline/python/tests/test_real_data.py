"""Real photos, where `NEPA_TEST_DATA` names the folder of larger test data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import nepa


@pytest.fixture
def imagenette() -> Path:
    data = os.environ.get("NEPA_TEST_DATA")
    if data is None:
        pytest.skip("NEPA_TEST_DATA does not name the folder of larger test data")
    folder = Path(data) / "imagenette224"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def test_the_first_lines_of_the_readme_work_on_photos(imagenette: Path) -> None:
    loader = nepa.Loader(imagenette, split="train", batch_size=256, framework="numpy")
    assert len(loader) == 4_736 // 256
    images, labels = next(iter(loader))
    assert (images.shape, images.dtype) == ((256, 3, 224, 224), np.float32)
    assert (labels.shape, labels.dtype) == ((256,), np.int64)
    assert set(labels) <= set(range(10))
    assert -1 <= images.min() < images.max() <= 1
    assert 0.2 < images.std() < 0.8


def test_an_evaluation_sees_each_photo_once_in_order(imagenette: Path) -> None:
    loader = nepa.Loader(
        imagenette,
        split="validation",
        transform=nepa.CenterCrop(224),
        dtype="uint8",
        batch_size=200,
        shuffle=False,
        drop_last=False,
        epochs=1,
        framework="numpy",
    )
    ids, labels = [], []
    for batch in loader:
        assert batch.images.shape == (len(batch), 3, 224, 224)
        ids += batch.ids
        labels += batch.labels.tolist()
    assert len(set(ids)) == 1_963 and ids == sorted(ids)
    assert set(labels) == set(range(10))
