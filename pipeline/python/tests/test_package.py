"""What `import nepa` does and does not do, and what a reader of its help finds."""

from __future__ import annotations

import inspect
import pydoc
import sys
from importlib import resources
from pathlib import Path

import pytest
from conftest import loader_of, run_python

import nepa


def test_importing_it_imports_no_framework() -> None:
    found = run_python("""
        import sys, nepa
        print(sorted({"torch", "numpy", "pyarrow", "jax"} & set(sys.modules)))
    """)
    assert found.strip() == "[]"


def test_a_batch_as_dlpack_imports_no_framework(photos: Path) -> None:
    found = run_python(
        """
        import sys, nepa
        loader = nepa.Loader(sys.argv[1], batch_size=16, framework="dlpack")
        images, labels = next(iter(loader))
        print(images.shape, images.dtype, images.device, labels.shape, labels.dtype)
        print(sorted({"torch", "numpy", "pyarrow", "jax"} & set(sys.modules)))
        """,
        photos,
    )
    assert found.splitlines() == ["(16, 3, 224, 224) float32 cpu (16,) int64", "[]"]


def test_a_second_interpreter_of_the_process_is_refused() -> None:
    if sys.version_info >= (3, 13):
        pytest.skip("from Python 3.13 on the module of subinterpreters has another name")
    found = run_python("""
        import _xxsubinterpreters as interpreters, nepa
        other = interpreters.create()
        try:
            interpreters.run_string(other, "import nepa")
        except interpreters.RunFailedError as error:
            print(error)
    """)
    assert "ImportError" in found and "interpreter" in found


def test_everything_public_is_documented_and_typed() -> None:
    assert resources.files("nepa").joinpath("py.typed").is_file()
    for name in nepa.__all__:
        thing = getattr(nepa, name)
        assert thing.__doc__, name
        for member, found in vars(thing).items() if inspect.isclass(thing) else ():
            if not member.startswith("_") and (
                inspect.isfunction(found) or isinstance(found, property)
            ):
                assert found.__doc__, f"{name}.{member}"


def test_help_of_the_loader_tells_of_each_parameter() -> None:
    text = pydoc.plain(pydoc.render_doc(nepa.Loader))
    about = inspect.getdoc(nepa.Loader) or ""
    for name in list(inspect.signature(nepa.Loader.__init__).parameters)[1:]:
        assert f"\n    {name}: " in about, name
    for part in ("[256, 3, 224, 224] float32", "[256] int64", "set_epoch(self, epoch: "):
        assert part in text, part


def test_a_loader_says_what_it_is_of(photos: Path) -> None:
    loader = loader_of(photos)
    assert loader.stats() == {}
    assert repr(loader) == (
        "<nepa.Loader of 192 samples in 3 shards, 12 batches of 16, rank 0 of 1>"
    )
    assert Path(loader.shard_url(2).removeprefix("file://")).name == "train-00002-of-00003.parquet"
    with pytest.raises(nepa.SettingError, match="index is 3"):
        loader.shard_url(3)
    batch = next(iter(loader))
    assert repr(batch) == "<nepa.Batch of 16 samples, 1 view(s), epoch 0>"
    assert loader.stats()
    assert loader.class_names is None
