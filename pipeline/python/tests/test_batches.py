"""What is in a batch: pixels, labels, ids, crops, columns."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import NUM_CLASSES, index_of, loader_of, picture, png, write_shards

import nepa

# Cuts 32 x 32 pixels out of the middle and changes none of them.
CUT = nepa.CenterCrop(32, resize=40)


def middle(sample: nepa.SampleId) -> np.ndarray:
    """What `CUT` shows of a photo, ``[32, 32, 3]``."""
    return picture(index_of(sample))[4:36, 8:40]


def normalized(pixels: np.ndarray) -> np.ndarray:
    return (pixels.astype(np.float32) / 255 - np.float32(0.5)) / np.float32(0.5)


def test_pixels_are_those_of_the_picture(photos: Path) -> None:
    for batch in loader_of(photos, transform=CUT, dtype="uint8", layout="NHWC"):
        assert (batch.images.shape, batch.images.dtype) == ((16, 32, 32, 3), np.uint8)
        for pixels, sample in zip(batch.images, batch.ids, strict=True):
            np.testing.assert_array_equal(pixels, middle(sample))


def test_pixels_are_normalized_by_mean_and_std(photos: Path) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    batch = next(iter(loader_of(photos, transform=CUT, layout="NHWC", mean=mean, std=std)))
    assert (batch.images.shape, batch.images.dtype) == ((16, 32, 32, 3), np.float32)
    expected = (np.stack([middle(sample) for sample in batch.ids]) / 255 - mean) / std
    np.testing.assert_allclose(batch.images, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_layouts_hold_the_same_pixels(photos: Path, dtype: str) -> None:
    def images(**settings: object) -> np.ndarray:
        batch = next(iter(loader_of(photos, dtype=dtype, seed=3, **settings)))
        assert batch.images.flags.c_contiguous
        return batch.images

    nchw = images()
    assert (nchw.shape, nchw.dtype) == ((16, 3, 32, 32), np.dtype(dtype))
    np.testing.assert_array_equal(images(layout="NHWC"), nchw.transpose(0, 2, 3, 1))
    patches = images(layout="patches", patch_size=8)
    assert patches.shape == (16, 16, 3 * 8 * 8)
    cut = nchw.reshape(16, 3, 4, 8, 4, 8).transpose(0, 2, 4, 1, 3, 5)
    np.testing.assert_array_equal(patches, cut.reshape(16, 16, 3 * 8 * 8))


def test_bfloat16_is_float32_rounded_to_even(photos: Path) -> None:
    def first(dtype: str) -> nepa.Batch:
        return next(iter(loader_of(photos, dtype=dtype, framework="dlpack", seed=3)))

    wide, narrow = first("float32"), first("bfloat16")
    bits = np.from_dlpack(wide.images).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    array = narrow.images
    assert (array.shape, array.dtype, array.nbytes) == ((16, 3, 32, 32), "bfloat16", bits.size * 2)
    found = np.frombuffer(ctypes.string_at(array.data_ptr, array.nbytes), np.uint16)
    np.testing.assert_array_equal(found.reshape(bits.shape), rounded)


def test_labels_are_int64_and_ids_say_of_which_sample(photos: Path) -> None:
    seen = set()
    for batch in loader_of(photos):
        images, labels = batch
        assert images is batch.images and labels is batch.labels
        assert (labels.shape, labels.dtype, len(batch)) == ((16,), np.int64, 16)
        assert all(isinstance(sample, nepa.SampleId) for sample in batch.ids)
        indices = [index_of(sample) for sample in batch.ids]
        assert labels.tolist() == [index % NUM_CLASSES for index in indices]
        assert batch.replaced == [None] * 16
        assert batch.columns is None
        seen.update(indices)
    assert seen == set(range(192)), "an epoch has each sample once"


def test_labels_may_be_names_or_not_there(tmp_path: Path) -> None:
    images = [png(picture(index)) for index in range(8)]
    names = ["cat", "dog"] * 4
    named = write_shards(tmp_path / "named", images, pa.array(names))
    batch = next(iter(loader_of(named, batch_size=8)))
    assert batch.labels == [names[sample.row] for sample in batch.ids]
    for urls, settings in (
        (write_shards(tmp_path / "without", images), {}),
        (named, {"label_column": ""}),
    ):
        assert next(iter(loader_of(urls, batch_size=8, **settings))).labels is None


def test_crops_say_what_a_view_shows(photos: Path) -> None:
    batch = next(iter(loader_of(photos, transform=CUT)))
    assert batch.crops == [(nepa.Crop(8, 4, 32, 32, False),)] * 16
    flips = []
    for batch in loader_of(photos):
        for (crop,) in batch.crops:
            assert 0 <= crop.x <= crop.x + crop.width <= 48
            assert 0 <= crop.y <= crop.y + crop.height <= 40
            assert type(crop.flip) is bool
            flips.append(crop.flip)
    assert 48 < sum(flips) < 144, "about half of 192"


def test_a_flip_mirrors_the_same_crop(photos: Path) -> None:
    def epoch(flip: float) -> dict[nepa.SampleId, tuple[nepa.Crop, np.ndarray]]:
        transform = nepa.RandomResizedCrop(32, flip=flip)
        batches = loader_of(photos, transform=transform, dtype="uint8")
        return {
            sample: (crop, pixels.copy())
            for batch in batches
            for sample, (crop,), pixels in zip(batch.ids, batch.crops, batch.images, strict=True)
        }

    straight, mirrored = epoch(0), epoch(1)
    for sample, (crop, pixels) in straight.items():
        other, flipped = mirrored[sample]
        assert other == crop._replace(flip=True)
        np.testing.assert_array_equal(flipped, pixels[:, :, ::-1])


def test_multi_crop_gives_several_views(photos: Path) -> None:
    transform = nepa.MultiCrop(global_size=32, local_size=16, local_views=3)
    batch = next(iter(loader_of(photos, transform=transform)))
    shapes = [view.shape for view in batch.views]
    assert shapes == [(16, 3, 32, 32)] * 2 + [(16, 3, 16, 16)] * 3
    assert batch.images is batch.views[0]
    assert all(len(views) == 5 for views in batch.crops)
    assert not np.array_equal(batch.views[0], batch.views[1])


def test_columns_are_arrow_without_a_copy(photos: Path) -> None:
    for batch in loader_of(photos, columns=["vector", "caption"]):
        columns = batch.columns
        assert isinstance(columns, pa.RecordBatch) and columns is batch.columns
        assert columns.schema.names == ["vector", "caption"]
        indices = [index_of(sample) for sample in batch.ids]
        assert columns["caption"].to_pylist() == [f"picture {index}" for index in indices]
        assert columns["vector"].to_pylist() == [
            [index * 4.0 + k for k in range(4)] for index in indices
        ]
        # Handed over once more, the same memory comes.
        again = pa.record_batch(batch._native.columns())
        for name in columns.schema.names:
            addresses = [
                [buffer and buffer.address for buffer in array.buffers()]
                for array in (columns[name], again[name])
            ]
            assert addresses[0] == addresses[1]


def test_pack_makes_what_a_loader_reads(tmp_path: Path) -> None:
    pictures = [picture(index, 32, 32) for index in range(40)]
    items = ((png(pixels), index % 3) for index, pixels in enumerate(pictures))
    nepa.pack(items, str(tmp_path / "packed"), classes=["a", "b", "c"])
    transform = nepa.CenterCrop(32, resize=32)
    loader = loader_of(
        tmp_path / "packed", batch_size=40, transform=transform, dtype="uint8", layout="NHWC"
    )
    assert loader.num_samples == 40
    (batch,) = loader
    found = {(label, pixels.tobytes()) for label, pixels in zip(batch.labels, batch.images)}
    assert found == {(index % 3, pixels.tobytes()) for index, pixels in enumerate(pictures)}
