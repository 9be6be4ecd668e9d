"""Batches from S3 are those from disk; by our small server, and by the one of the Rust tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import loader_of
from s3 import S3Server
from test_epochs import seen


@pytest.fixture
def environ(photos: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """What leads a client to a server with the photos in the bucket `test`."""
    if request.param == "python":
        server = S3Server(photos)
        yield server.environ
        server.close()
        return
    program = os.environ.get("NEPA_TEST_S3")
    if program is None:
        pytest.skip("NEPA_TEST_S3 does not name the program nepa-test-s3")
    with subprocess.Popen([program, photos], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        found = {"AWS_ALLOW_HTTP": "true"}
        for line in child.stdout:
            if line.strip() == "ready":
                break
            name, value = line.strip().split("=", 1)
            found[name] = value
        yield found
        child.kill()


@pytest.mark.parametrize("environ", ["python", "rust"], indirect=True)
def test_batches_from_s3_are_those_from_disk(
    photos: Path, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    expected = seen(loader_of(photos))
    cached = {"cache_dir": tmp_path / "cache", "max_requests": 4}
    for settings in ({}, cached, cached):
        loader = loader_of("s3://test", **settings)
        assert loader.shard_url(0) == "s3://test/train-00000-of-00003.parquet"
        assert seen(loader) == expected
