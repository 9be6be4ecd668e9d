#!/usr/bin/env python3
"""Packs a small folder of images and reads the shards with pyarrow, Hugging Face `datasets` and DuckDB.

    scripts/check-interop.py [NEPA]

NEPA is the program, `target/debug/nepa` unless given. All three readers must give back the files' bytes, the labels and the class names.
What is needed from PyPI goes into a virtual environment under ~/.cache, outside of the repository, or into $NEPA_INTEROP_VENV.
"""
import io, os, pathlib, subprocess, sys, tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
VENV = pathlib.Path(os.environ.get("NEPA_INTEROP_VENV", CACHE / "nepa-check-interop"))
PACKAGES = ["pillow", "numpy", "pyarrow", "datasets", "duckdb"]
try:
    import datasets, duckdb, numpy as np, pyarrow.parquet as pq
    from PIL import Image
except ImportError:
    python = VENV / "bin" / "python"
    if pathlib.Path(sys.prefix).resolve() == VENV.resolve():
        raise
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    os.execv(python, [str(python), *sys.argv])

# With a space and letters outside of ASCII, as people's folders have them.
CLASSES = {"ant": 5, "big bee": 7, "Käfer": 9}
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def make_folder(folder):
    """Images of noise, which does not compress; gives the files' bytes and class names by name."""
    random = np.random.default_rng(7)
    files = {}
    for name, count in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            suffix, kind = list(FORMATS.items())[number % len(FORMATS)]
            buffer = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)).save(buffer, kind)
            path = f"{name}/{number}.{suffix}"
            (folder / path).write_bytes(buffer.getvalue())
            files[path] = (buffer.getvalue(), name)
    return files


def check(reader, files, classes, rows):
    """`rows` are (path, bytes, index of the class)."""
    rows = list(rows)
    assert len(rows) == len(files), f"{reader}: {len(rows)} rows for {len(files)} files"
    found = {path: (data, classes[label]) for path, data, label in rows}
    assert found.keys() == files.keys(), f"{reader}: the names differ: {sorted(found.keys() ^ files.keys())}"
    for path, expected in files.items():
        assert found[path] == expected, f"{reader}: {path} differs"
    print(f"{reader}: {len(rows)} images, {len(classes)} classes, all equal")


def main():
    nepa = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/debug/nepa").resolve()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        files = make_folder(scratch / "photos")
        # Small enough for several shards of several row groups.
        sizes = ["--shard-mib", "0.05", "--row-group-mib", "0.015", "--val-fraction", "0.2"]
        subprocess.run([nepa, "pack", scratch / "photos", scratch / "packed", *sizes], check=True)
        pattern = str(scratch / "packed/*.parquet")
        shards = sorted((scratch / "packed").glob("*.parquet"))
        assert len(shards) > 2, shards
        assert any(pq.ParquetFile(shard).num_row_groups > 1 for shard in shards)

        # Hugging Face first: the class names are its feature, found in the file's metadata.
        data_files = {split: str(scratch / f"packed/{split}-*.parquet") for split in ("train", "val")}
        loaded = datasets.load_dataset("parquet", data_files=data_files, cache_dir=str(scratch / "cache"))
        for split in loaded.values():
            assert isinstance(split.features["image"], datasets.Image), split.features
        classes = loaded["train"].features["label"].names
        assert sorted(classes) == sorted(CLASSES), classes
        assert loaded["val"].features["label"].names == classes
        raw = [row for split in loaded.values() for row in split.cast_column("image", datasets.Image(decode=False))]
        check("datasets", files, classes, ((row["image"]["path"], row["image"]["bytes"], row["label"]) for row in raw))
        for row in loaded["train"]:
            row["image"].load()

        tables = [pq.ParquetFile(shard, page_checksum_verification=True).read().to_pylist() for shard in shards]
        rows = [row for table in tables for row in table]
        check("pyarrow", files, classes, ((row["image"]["path"], row["image"]["bytes"], row["label"]) for row in rows))

        query = "select image.path, image.bytes, label from read_parquet(?)"
        check("DuckDB", files, classes, duckdb.execute(query, [pattern]).fetchall())


if __name__ == "__main__":
    main()
