"""A whole loader: random resized crops to 224 as f32 [32, 3, 224, 224] batches from Parquet shards or files, two workers, by one peer.

Called by scripts/versus.sh as `loader_peers.py PEER SOURCE EPOCHS`, SOURCE being a folder or an s3:// URL (AWS_ENDPOINT_URL and keys from the environment). Prints one line of JSON with
the keys of `target/release/loader --json`. Times are read from the first batch on; processor time and memory are those of the process and all its children.
"""
import json
import os
import random
import sys
import time
from pathlib import Path

import numpy as np

BATCH, WORKERS, SIDE = 32, 2, 224


# ---- measuring ----


def processes():
    """This process and its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found = {os.getpid()}
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return found
        found |= more


def cpu_s():
    """Processor time of all of them, ended children included."""
    ticks = 0
    for pid in processes():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mib():
    """Resident memory of all of them, shared pages counted once (PSS)."""
    total = 0
    for pid in processes():
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += int(text.split("\nPss:", 1)[1].split()[0])
    return total / 1024


def measure(start, batches, check=True):
    images, peak, first = 0, 0.0, None
    for batch in batches:
        if first is None:
            if check:
                shape, low, high = tuple(batch.shape), float(batch.min()), float(batch.max())
                assert shape[1:] == (3, SIDE, SIDE) and low >= -1.01 and high <= 1.01 and high > low, (shape, low, high)
            first, wall, cpu = time.perf_counter() - start, time.perf_counter(), cpu_s()
            continue
        images += len(batch)
        if images // 256 != (images - len(batch)) // 256:
            peak = max(peak, memory_mib())
    result = {"images": images, "wall_s": time.perf_counter() - wall, "cpu_s": cpu_s() - cpu, "peak_mib": max(peak, memory_mib()), "first_batch_s": first}
    print(json.dumps(result), flush=True)


# ---- what several of them need ----


def filesystem(source):
    """pyarrow's file system and the paths of the shards."""
    from pyarrow import fs

    if source.startswith("s3://"):
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        system = fs.S3FileSystem(
            access_key=os.environ["AWS_ACCESS_KEY_ID"],
            secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            endpoint_override=endpoint.split("://")[1],
            scheme=endpoint.split("://")[0],
            region=os.environ.get("AWS_REGION", "us-east-1"),
        )
        folder = source[len("s3://") :]
    else:
        system, folder = fs.LocalFileSystem(), source
    files = system.get_file_info(fs.FileSelector(folder, recursive=True))
    return system, sorted(file.path for file in files if file.path.endswith(".parquet"))


def encoded_images(source, worker=0, num_workers=1):
    """The images of every num_workers-th row group, in random order of row groups and within them."""
    import pyarrow.parquet as pq

    system, paths = filesystem(source)
    groups = []
    for path in paths:
        file = pq.ParquetFile(system.open_input_file(path))
        groups += [(path, group) for group in range(file.num_row_groups)]
    rng = random.Random(worker)
    mine = groups[worker::num_workers]
    rng.shuffle(mine)
    for path, group in mine:
        file = pq.ParquetFile(system.open_input_file(path))
        rows = file.read_row_group(group, columns=["image"]).column("image").to_pylist()
        rng.shuffle(rows)
        for row in rows:
            yield row["bytes"] if isinstance(row, dict) else row


def transform():
    """What a torchvision user writes: Pillow's image in, normalised tensor out."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )


def opened(data):
    import io

    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


RENDER = None


def render_row(row):
    """A row of a Parquet shard, however it is given, to a tensor."""
    global RENDER
    RENDER = RENDER or transform()
    image = row["image"] if isinstance(row, dict) else row[0]
    return RENDER(opened(image["bytes"] if isinstance(image, dict) else image))


# ---- the peers ----


def torch_pillow(source, epochs):
    import torch

    class Shards(torch.utils.data.IterableDataset):
        def __iter__(self):
            torch.set_num_threads(1)
            info, render = torch.utils.data.get_worker_info(), transform()
            for _ in range(epochs):
                for data in encoded_images(source, info.id, info.num_workers):
                    yield render(opened(data))

    return torch.utils.data.DataLoader(Shards(), batch_size=BATCH, num_workers=WORKERS)


def hf_streaming(source, epochs):
    import torch
    from datasets import load_dataset

    options = {}
    if source.startswith("s3://"):
        options = {"storage_options": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "key": os.environ["AWS_ACCESS_KEY_ID"], "secret": os.environ["AWS_SECRET_ACCESS_KEY"]}}
        _, paths = filesystem(source)
        files = [f"s3://{path}" for path in paths]
    else:
        files = sorted(str(path) for path in Path(source).glob("*.parquet"))
    dataset = load_dataset("parquet", data_files=files, split="train", streaming=True, **options)
    if not hasattr(dataset.features.get("image"), "decode_example"):
        from datasets import Image

        dataset = dataset.cast_column("image", Image())
    render = transform()
    dataset = dataset.select_columns(["image"]).shuffle(seed=1, buffer_size=200)
    dataset = dataset.map(lambda row: {"pixels": render(row["image"].convert("RGB"))}, remove_columns=["image"]).with_format("torch")
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        for batch in loader:
            yield batch["pixels"]


def litdata(source, epochs):
    import tempfile

    import litdata as ld
    import torch
    from litdata.streaming.item_loader import ParquetLoader

    options = {}
    if source.startswith("s3://"):
        # Keys come from the environment: its two clients want them under different names.
        options = {"storage_options": {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}}
    ld.index_parquet_dataset(source, **options)

    # A cache of its own, so that nothing of an earlier run is there. Its workers must be spawned, so the transform is given by name.
    with tempfile.TemporaryDirectory() as cache:
        dataset = ld.StreamingDataset(source, item_loader=ParquetLoader(), shuffle=True, cache_dir=cache, transform=render_row, **options)
        loader = ld.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, multiprocessing_context="spawn", persistent_workers=True)
        for _ in range(epochs):
            yield from loader


def spdl(source, epochs):
    import decode_peers
    from spdl.pipeline import PipelineBuilder

    _, render = decode_peers.spdl()
    rng = random.Random(7)

    def sources():
        for _ in range(epochs):
            yield from encoded_images(source)

    pipeline = (
        PipelineBuilder()
        .add_source(sources())
        .pipe(lambda data: render(data, rng), concurrency=WORKERS)
        .aggregate(BATCH)
        .pipe(np.stack)
        .add_sink(3)
        .build(num_threads=WORKERS)
    )
    with pipeline.auto_stop():
        yield from pipeline.get_iterator(timeout=60)


def dali(source, epochs):
    from nvidia.dali import fn, pipeline_def, types

    def blocks():
        block = []
        for _ in range(epochs):
            for data in encoded_images(source):
                block.append(np.frombuffer(data, dtype=np.uint8))
                if len(block) == BATCH:
                    yield block
                    block = []

    @pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None, seed=1)
    def pipeline():
        encoded = fn.external_source(source=blocks)
        image = fn.decoders.image_random_crop(encoded, device="cpu", output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
        image = fn.resize(image, size=[SIDE, SIDE], interp_type=types.INTERP_TRIANGULAR)
        return fn.crop_mirror_normalize(
            image, dtype=types.FLOAT, output_layout="CHW", mean=[127.5] * 3, std=[127.5] * 3, mirror=fn.random.coin_flip(probability=0.5)
        )

    runner = pipeline()
    runner.build()
    while True:
        try:
            (output,) = runner.run()
        except StopIteration:
            return
        yield output.as_array()


def datago(source, epochs):
    """Reads files only, resizes and crops to a size by aspect ratio; no random crop. The nearest it offers: a square of 224."""
    import tempfile

    from datago import DatagoClient, initialize_logging

    initialize_logging("warn")
    with tempfile.TemporaryDirectory() as folder:
        count = 0
        for count, data in enumerate(encoded_images(source), 1):
            Path(folder, f"{count}.jpg").write_bytes(data)
        config = {
            "source_type": "file",
            "source_config": {"root_path": folder, "random_sampling": False, "rank": 0, "world_size": 1},
            "image_config": {"crop_and_resize": True, "default_image_size": SIDE, "downsampling_ratio": 16, "min_aspect_ratio": 0.99, "max_aspect_ratio": 1.01, "pre_encode_images": False, "image_to_rgb8": True},
            "prefetch_buffer_size": 64,
            "samples_buffer_size": 64,
            "limit": count,
        }
        global START
        START = time.perf_counter()
        for _ in range(epochs):
            client, batch = DatagoClient(json.dumps(config)), []
            while (sample := client.get_sample()) is not None and sample.id:
                pixels = sample.image.to_numpy_array()
                batch.append((pixels.astype(np.float32) * (2 / 255) - 1).transpose(2, 0, 1))
                if len(batch) == BATCH:
                    yield np.stack(batch)
                    batch = []
            client.stop()


if sys.argv[1:2] == ["litdata"]:
    # Its client for chunks takes no setting that would allow plain http, which a server on this machine speaks. Here, because its spawned workers read this file, too.
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True

PEERS = {"torch": torch_pillow, "hf": hf_streaming, "litdata": litdata, "spdl": spdl, "dali": dali, "datago": datago}
START = 0.0


def main():
    global START
    peer, source, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])
    START = time.perf_counter()
    measure(START, PEERS[peer](source, epochs))


if __name__ == "__main__":
    main()
