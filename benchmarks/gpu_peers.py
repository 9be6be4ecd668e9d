#!/usr/bin/env python3
"""How fast are torchvision's GPU decoder and torch's DataLoader with Pillow on the same files? Prints rows of Markdown.

Called by the program `report` (scripts/gpu-check torch). Each peer reads the encoded images from memory: reading Parquet is not what is compared.
"""
import argparse
import glob
import io
import resource
import sys
import time
import traceback

import pyarrow.parquet as pq


def images_of(folder):
    images = []
    for path in sorted(glob.glob(f"{folder}/*.parquet")):
        table = pq.read_table(path, columns=["image"])
        images.extend(row["bytes"] for row in table.column("image").to_pylist())
    return images


def processor_seconds():
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def synchronize(device):
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def row(name, images, wall, processor):
    print(f"| {name} | {images / wall:.0f} | {images / processor:.0f} |", flush=True)


def torchvision_on_gpu(images, seconds, device, batch=256):
    """Batched nvJPEG decoding, then each image's crop, flip and normalisation on the GPU."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as F

    encoded = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in images]
    draw = v2.RandomResizedCrop(224, scale=(0.08, 1.0), antialias=True)

    def one_batch(start):
        chosen = [encoded[(start + i) % len(encoded)] for i in range(batch)]
        decoded = decode_jpeg(chosen, mode=ImageReadMode.RGB, device=device)
        crops = torch.stack([draw(image) for image in decoded])
        flips = torch.rand(batch, device=device) < 0.5
        crops = torch.where(flips[:, None, None, None], crops.flip(3), crops)
        return F.normalize(crops.to(torch.bfloat16) / 255, [0.5] * 3, [0.5] * 3)

    for i in range(3):
        one_batch(i * batch)
    synchronize(device)
    done, started, processor = 0, time.perf_counter(), processor_seconds()
    while time.perf_counter() - started < seconds:
        one_batch(done)
        done += batch
    synchronize(device)
    row(f"torchvision decode_jpeg on {device}, batched, + crop there", done, time.perf_counter() - started, processor_seconds() - processor)


class Pillow:
    """Pillow decode and torchvision's usual CPU transforms."""

    def __init__(self, images):
        from torchvision import transforms

        self.images = images
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(224, scale=(0.08, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def __len__(self):
        return 1 << 24

    def __getitem__(self, index):
        from PIL import Image

        image = Image.open(io.BytesIO(self.images[index % len(self.images)]))
        return self.transform(image.convert("RGB"))


def data_loader(images, seconds, workers, device, batch=256):
    import torch

    loader = torch.utils.data.DataLoader(Pillow(images), batch_size=batch, num_workers=workers, pin_memory=device == "cuda", prefetch_factor=4)
    batches = iter(loader)
    for _ in range(4):
        next(batches).to(device, torch.bfloat16, non_blocking=True)
    synchronize(device)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        next(batches).to(device, torch.bfloat16, non_blocking=True)
        done += batch
    synchronize(device)
    wall = time.perf_counter() - started
    # Processor time of the workers is known only when they end; all cores are busy, so that is what is counted.
    row(f"torch DataLoader + Pillow, {workers} workers", done, wall, wall * workers)
    del batches


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder")
    arguments.add_argument("--workers", type=int, default=16)
    arguments.add_argument("--seconds", type=float, default=15)
    arguments.add_argument("--device", default="cuda", help="cpu: to try this file out where there is no GPU")
    arguments.add_argument("--batch", type=int, default=256)
    arguments.add_argument("--peer", choices=["torchvision", "dataloader"], help="both if left out")
    arguments = arguments.parse_args()
    images = images_of(arguments.folder)
    given = (images, arguments.seconds)
    device, batch, workers = arguments.device, arguments.batch, arguments.workers
    peers = {
        "torchvision": lambda: torchvision_on_gpu(*given, device, batch),
        "dataloader": lambda: data_loader(*given, workers, device, batch),
    }
    status = 0
    for name in [arguments.peer] if arguments.peer else peers:
        try:
            peers[name]()
        except Exception as error:  # A peer that does not run must not hide the other.
            traceback.print_exc()
            reason = (str(error).splitlines() or [""])[0].replace("|", "/")
            print(f"| {name}: FAILED: {type(error).__name__}: {reason} | | |", flush=True)
            status = 3
    sys.exit(status)


if __name__ == "__main__":
    main()
