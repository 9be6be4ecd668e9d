"""Batches as arrays of JAX; skipped where jax is not installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import loader_of

jax = pytest.importorskip("jax", reason="jax is not installed")


def test_arrays_hold_what_numpy_arrays_hold(photos: Path) -> None:
    arrays = loader_of(photos, framework="jax")
    for batch, expected in zip(arrays, loader_of(photos), strict=True):
        assert isinstance(batch.images, jax.Array)
        np.testing.assert_array_equal(np.asarray(batch.images), expected.images)
        np.testing.assert_array_equal(np.asarray(batch.labels), expected.labels)


def test_jax_has_bfloat16(photos: Path) -> None:
    narrow = next(iter(loader_of(photos, framework="jax", dtype="bfloat16"))).images
    wide = next(iter(loader_of(photos, framework="jax"))).images
    assert narrow.dtype == jax.numpy.bfloat16
    assert bool((narrow == wide.astype(jax.numpy.bfloat16)).all())
