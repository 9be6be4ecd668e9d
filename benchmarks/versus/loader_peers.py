"""A whole loader: random resized crops to 224 as f32 [32, 3, 224, 224] batches from Parquet shards or files, two workers, by one peer or by our wheel.

Called by race.py as `loader_peers.py PEER SOURCE EPOCHS`, SOURCE being a folder or an s3:// URL (AWS_ENDPOINT_URL and keys from the environment). Prints one line of JSON with
the keys of `target/release/loader --json`. Times are read from the first batch on, and the first batch's from before the peer is imported; processor time and memory are those of the
process and all its children.
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
        if "\nPss:" in text:
            total += int(text.split("\nPss:", 1)[1].split()[0])
    return total / 1024


def measure(batches):
    images, peak, sampling_s, first_batch_s = 0, 0.0, 0.0, None
    for batch in batches:
        if first_batch_s is None:
            first_batch_s = time.perf_counter() - START
            dtype, shape, low, high = str(batch.dtype), tuple(batch.shape), float(batch.min()), float(batch.max())
            assert dtype.endswith("float32") and shape[1:] == (3, SIDE, SIDE) and -1.01 < low < -0.5 and 0.5 < high < 1.01, (dtype, shape, low, high)
            wall, cpu = time.perf_counter(), cpu_s()
            continue
        images += len(batch)
        if images // 1024 != (images - len(batch)) // 1024:
            # Reading memory takes tens of milliseconds, which are ours and not the peer's.
            sampling = time.thread_time()
            peak = max(peak, memory_mib())
            sampling_s += time.thread_time() - sampling
    wall_s, cpu_used_s = time.perf_counter() - wall, cpu_s() - cpu - sampling_s
    print(json.dumps({"images": images, "wall_s": wall_s, "cpu_s": cpu_used_s, "peak_mib": max(peak, memory_mib()), "first_batch_s": first_batch_s}), flush=True)


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
    files = [pq.ParquetFile(system.open_input_file(path)) for path in paths]
    groups = [(file, group) for file in files for group in range(file.num_row_groups)]
    rng = random.Random(worker)
    mine = groups[worker::num_workers]
    rng.shuffle(mine)
    for file, group in mine:
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


# ---- ours ----


def nepa_wheel(source, epochs):
    """Our loader from Python, with the settings of benchmarks/src/lib.rs: tensors of torch where that is installed, or else arrays of NumPy."""
    from importlib.util import find_spec

    import nepa

    loader = nepa.Loader(
        source,
        batch_size=BATCH,
        transform=nepa.RandomResizedCrop(SIDE),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        seed=1337,
        epochs=epochs,
        drop_last=False,
        shuffle_window_bytes=64 << 20,
        decode_threads=WORKERS,
        prefetch_batches=2,
        framework="torch" if find_spec("torch") else "numpy",
    )
    with loader:
        for _ in range(epochs):
            for batch in loader:
                yield batch.images


# ---- the peers ----


def torch_tensors(source, epochs):
    """torchvision's advice for speed: decode to tensors, transforms v2 on uint8."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    render = v2.Compose(steps)
    return torch_loader(source, epochs, lambda data: render(decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)))


def torch_pillow(source, epochs):
    render = transform()
    return torch_loader(source, epochs, lambda data: render(opened(data)))


def torch_loader(source, epochs, render):
    import torch

    class Shards(torch.utils.data.IterableDataset):
        def __iter__(self):
            torch.set_num_threads(1)
            info = torch.utils.data.get_worker_info()
            for _ in range(epochs):
                for data in encoded_images(source, info.id, info.num_workers):
                    yield render(data)

    return torch.utils.data.DataLoader(Shards(), batch_size=BATCH, num_workers=WORKERS)


def hf_streaming(source, epochs):
    import datasets
    import torch
    from datasets import load_dataset

    # It sleeps for 5 s at the end of each pass, so that PyArrow's threads may end. With passes as short as these that would be most of its time.
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
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
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    rng = random.Random(7)

    def sources():
        for _ in range(epochs):
            yield from encoded_images(source)

    def render(data):
        packets = spdl.io.demux_image(data)
        return decode_peers.spdl_render(packets, decode_peers.crop(packets.width, packets.height, rng))

    pipeline = PipelineBuilder().add_source(sources()).pipe(render, concurrency=WORKERS).aggregate(BATCH).pipe(np.stack).add_sink(3).build(num_threads=WORKERS)
    with pipeline.auto_stop():
        yield from pipeline.get_iterator(timeout=60)


def dali(source, epochs):
    import decode_peers
    from nvidia.dali import fn, pipeline_def

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
        return decode_peers.dali_random_crop(fn.external_source(source=blocks))

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

    import decode_peers
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
        # The files are not its work.
        global START
        START = time.perf_counter()
        for _ in range(epochs):
            client, batch = DatagoClient(json.dumps(config)), []
            while (sample := client.get_sample()) is not None and sample.id:
                batch.append(decode_peers.normalise(sample.image.to_numpy_array(), False))
                if len(batch) == BATCH:
                    yield np.stack(batch)
                    batch = []
            client.stop()


if sys.argv[1:2] == ["litdata"]:
    # Its client for chunks takes no setting that would allow plain http, which a server on this machine speaks. Here, because its spawned workers read this file, too.
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True

PEERS = {"nepa": nepa_wheel, "torch": torch_pillow, "torch-tensors": torch_tensors, "hf": hf_streaming, "litdata": litdata, "spdl": spdl, "dali": dali, "datago": datago}
START = 0.0


def main():
    global START
    peer, source, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])
    START = time.perf_counter()
    measure(PEERS[peer](source, epochs))


if __name__ == "__main__":
    main()
