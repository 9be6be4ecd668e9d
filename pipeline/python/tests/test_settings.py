"""What is refused of the settings: at once, by an error that names the parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import loader_of

import nepa


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("batch_size", True),
        ("batch_size", "16"),
        ("transform", lambda image: image),
        ("transform", nepa.RandomResizedCrop),
        ("dtype", "float64"),
        ("dtype", np.float32),
        ("layout", "nchw"),
        ("patch_size", 0),
        ("mean", 0.5),
        ("mean", (0.5, 0.5)),
        ("mean", (0.5, 0.5, float("nan"))),
        ("std", (0.5, 0.5, 0)),
        ("label_column", 3),
        ("image_column", b"image"),
        ("columns", "caption"),
        ("columns", ["caption", "caption"]),
        ("columns", [1]),
        ("split", 1),
        ("index", 1),
        ("strict", 1),
        ("lanes", 0),
        ("lanes", 3),
        ("seed", -1),
        ("seed", 1 << 64),
        ("epochs", 0),
        ("shuffle", None),
        ("drop_last", "yes"),
        ("shuffle_window_bytes", 0),
        ("decode_threads", 0),
        ("prefetch_batches", 0),
        ("max_kept_batches", 0),
        ("max_bad_fraction", 1.5),
        ("bad_samples_path", 1),
        ("cache_dir", 1),
        ("max_requests", 0),
        ("device", "gpu"),
        ("device", "cuda"),
        ("pin_memory", 1),
        ("framework", "tensorflow"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(photos: Path, name: str, value: Any) -> None:
    with pytest.raises(nepa.SettingError, match=name) as refused:
        loader_of(photos, **{name: value})
    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize("urls", [None, 3, [], [3], "", b"folder", [""]])
def test_urls_are_one_or_several(urls: Any) -> None:
    with pytest.raises(nepa.SettingError, match="urls"):
        loader_of(urls)


def test_urls_may_be_text_or_paths_or_several(photos: Path) -> None:
    shards = sorted(photos.iterdir())
    for urls in (photos, str(photos), f"{photos}/*.parquet", shards, map(str, shards)):
        assert loader_of(urls).num_samples == 192


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 8, "global_batch_size": 8}, "batch_size = 8.*global_batch_size = 8"),
        (
            {"batch_size": None, "global_batch_size": 9, "rank": 0, "world_size": 2},
            "global_batch_size is 9.*divisible.*2",
        ),
        ({"rank": 2, "world_size": 2}, "rank is 2.*world_size = 2"),
        ({"rank": 0, "world_size": None}, "rank is given and world_size is not"),
        ({"rank": None, "world_size": 2}, "world_size is given and rank is not"),
        ({"layout": "patches"}, "layout is 'patches' and patch_size is None"),
        ({"patch_size": 8}, "layout is 'NCHW' and patch_size is 8"),
        ({"layout": "patches", "patch_size": 5}, "patch_size is 5.*divisor.*32"),
        ({"dtype": "bfloat16"}, "bfloat16.*NumPy"),
        ({"device": "cuda:0"}, "device is 'cuda:0'.*NumPy"),
        ({"mixture": {"a": 1}}, "urls or mixture"),
        ({"columns": ["no_such"]}, "no_such"),
    ],
)
def test_settings_that_cannot_be_together_are_refused(
    photos: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(nepa.NepaError, match=said):
        loader_of(photos, **settings)


@pytest.mark.parametrize("mixture", [{}, ["a"], {"a": 0}, {"a": "much"}, {3: 1}])
def test_a_mixture_is_of_urls_and_positive_weights(mixture: Any) -> None:
    with pytest.raises(nepa.SettingError, match="mixture"):
        loader_of(None, mixture=mixture)
    with pytest.raises(nepa.SettingError, match="index"):
        loader_of(None, mixture={"a": 1}, index="index.json")


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (lambda: nepa.RandomResizedCrop(0), "size"),
        (lambda: nepa.RandomResizedCrop(2.0), "size"),  # type: ignore[arg-type]
        (lambda: nepa.RandomResizedCrop(scale=(0.1,)), "scale"),  # type: ignore[arg-type]
        (lambda: nepa.RandomResizedCrop(flip="yes"), "flip"),  # type: ignore[arg-type]
        (lambda: nepa.RandomResizedCrop(filter="nearest"), "filter"),  # type: ignore[arg-type]
        (lambda: nepa.RandomResizedCrop(erase=True), "erase"),  # type: ignore[arg-type]
        (lambda: nepa.MultiCrop(rand_augment="m9"), "rand_augment"),  # type: ignore[arg-type]
        (lambda: nepa.MultiCrop(global_views=0), "global_views"),
        (lambda: nepa.RandAugment(operations=0), "operations"),
        (lambda: nepa.RandomErasing(ratio=None), "ratio"),  # type: ignore[arg-type]
        (lambda: nepa.CenterCrop(resize=0), "resize"),
        (lambda: nepa.Squash(resize="224"), "resize"),  # type: ignore[arg-type]
    ],
)
def test_wrong_types_of_a_transform_are_refused_where_it_is_made(transform: Any, name: str) -> None:
    with pytest.raises(nepa.SettingError, match=f"^{name} is "):
        transform()


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (nepa.RandomResizedCrop(1 << 15), "size"),
        (nepa.RandomResizedCrop(32, scale=(0.9, 0.2)), "scale"),
        (nepa.RandomResizedCrop(32, ratio=(0, 1)), "ratio"),
        (nepa.RandomResizedCrop(32, flip=1.5), "flip"),
        (nepa.RandomResizedCrop(32, rand_augment=nepa.RandAugment(magnitude=11)), "magnitude"),
        (nepa.RandomResizedCrop(32, erase=nepa.RandomErasing(probability=2)), "erase.probability"),
        (nepa.MultiCrop(global_views=60, local_views=9), "60 global and 9 local views"),
        (nepa.CenterCrop(32, resize=16), "size"),
    ],
)
def test_impossible_values_of_a_transform_are_refused(
    photos: Path, transform: Any, name: str
) -> None:
    with pytest.raises(nepa.SettingError, match=name):
        loader_of(photos, transform=transform)


def test_every_transform_has_a_default_that_works(photos: Path) -> None:
    for transform in (
        nepa.RandomResizedCrop(rand_augment=nepa.RandAugment(), erase=nepa.RandomErasing()),
        nepa.MultiCrop(rand_augment=nepa.RandAugment(), erase=nepa.RandomErasing()),
        nepa.CenterCrop(),
        nepa.Squash(),
    ):
        batch = next(iter(loader_of(photos, transform=transform)))
        assert [view.shape[2:] for view in batch.views] == [
            (side, side) for side in transform.view_sizes
        ]
