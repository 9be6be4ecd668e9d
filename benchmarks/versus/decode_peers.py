"""Decode + random resized crop to 224 + flip + normalise to f32 [3, 224, 224], one thread: CPU-milliseconds an image of one peer.

Called by scripts/versus.sh as `decode_peers.py PEER SHARD ROUNDS`; prints a line of JSON a round. The crops are drawn as torchvision's RandomResizedCrop draws them, from one seed for
all peers, except DALI's, which draws its own inside its fused decoder. Read: processor time of the process; the first round is not counted.
"""
import io
import json
import math
import random
import sys
import time

import numpy as np
import pyarrow.parquet as pq

SIDE = 224


def images(shard, limit=200):
    column = pq.read_table(shard).column("image").to_pylist()
    return [row["bytes"] if isinstance(row, dict) else row for row in column[:limit]]


def crop(width, height, rng):
    """torchvision's RandomResizedCrop.get_params, then a coin for the flip: left, top, width, height, flip."""
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, width - w), rng.randint(0, height - h), w, h, rng.random() < 0.5
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side, False


def normalise(pixels, flip):
    """uint8 [224, 224, 3] to f32 [3, 224, 224]."""
    if flip:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray((pixels.astype(np.float32) * (2 / 255) - 1).transpose(2, 0, 1))


def pillow():
    import PIL
    from PIL import Image

    def render(data, rng):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        x, y, w, h, flip = crop(*image.size, rng)
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))
        return normalise(np.asarray(image), flip)

    return f"Pillow {PIL.__version__}", render


def simplejpeg_cv2(interpolation="INTER_AREA"):
    import cv2
    import simplejpeg

    cv2.setNumThreads(1)

    def render(data, rng):
        image = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
        x, y, w, h, flip = crop(image.shape[1], image.shape[0], rng)
        area = image[y : y + h, x : x + w]
        # INTER_AREA averages when it shrinks, as antialiasing does; when it grows OpenCV itself interpolates linearly.
        return normalise(cv2.resize(area, (SIDE, SIDE), interpolation=getattr(cv2, interpolation)), flip)

    return f"simplejpeg {simplejpeg.__version__} + OpenCV {cv2.__version__} ({interpolation})", render


def torchvision():
    import torch
    import torchvision
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2 import functional

    torch.set_num_threads(1)

    def render(data, rng):
        image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        x, y, w, h, flip = crop(image.shape[2], image.shape[1], rng)
        image = functional.resized_crop(image, y, x, h, w, [SIDE, SIDE], antialias=True)
        if flip:
            image = image.flip(2)
        return image.to(torch.float32).mul_(2 / 255).sub_(1).numpy()

    return f"torchvision {torchvision.__version__} decode_jpeg + resized_crop", render


def spdl():
    import spdl.io

    def render(data, rng):
        packets = spdl.io.demux_image(data)
        width, height = packets.width, packets.height
        x, y, w, h, flip = crop(width, height, rng)
        filters = f"crop={w}:{h}:{x}:{y},scale={SIDE}:{SIDE}:flags=bilinear,format=rgb24"
        frames = spdl.io.decode_packets(packets, filter_desc=filters)
        return normalise(spdl.io.to_numpy(spdl.io.convert_frames(frames)), flip)

    return f"spdl {spdl.io.__version__ if hasattr(spdl.io, '__version__') else ''} (FFmpeg)", render


def dali_rounds(data, rounds):
    """DALI has no call for one image: batches of 25 through its pipeline, one thread, fused random-crop decoder."""
    import nvidia.dali as dali
    from nvidia.dali import fn, pipeline_def, types

    blocks = [[np.frombuffer(image, dtype=np.uint8) for image in data[i : i + 25]] for i in range(0, len(data), 25)]
    blocks = [block for block in blocks if len(block) == 25]

    @pipeline_def(batch_size=25, num_threads=1, device_id=None, seed=1, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False)
    def pipeline():
        encoded = fn.external_source(name="encoded", no_copy=True)
        image = fn.decoders.image_random_crop(encoded, device="cpu", output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
        image = fn.resize(image, size=[SIDE, SIDE], interp_type=types.INTERP_TRIANGULAR)
        return fn.crop_mirror_normalize(
            image, dtype=types.FLOAT, output_layout="CHW", mean=[127.5] * 3, std=[127.5] * 3, mirror=fn.random.coin_flip(probability=0.5)
        )

    runner = pipeline()
    runner.build()
    for number in range(rounds + 1):
        start, images_done = time.process_time(), 0
        for block in blocks:
            runner.feed_input("encoded", block)
            (output,) = runner.run()
            images_done += len(output)
        if number:
            yield f"NVIDIA DALI {dali.__version__} (CPU, fused crop decoder)", images_done, time.process_time() - start


PEERS = {
    "pillow": pillow,
    "simplejpeg": simplejpeg_cv2,
    "simplejpeg-linear": lambda: simplejpeg_cv2("INTER_LINEAR"),
    "torchvision": torchvision,
    "spdl": spdl,
}


def main():
    peer, shard, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    data = images(shard)
    if peer == "dali":
        results = dali_rounds(data, rounds)
    else:
        name, render = PEERS[peer]()
        output = render(data[0], random.Random(0))
        assert output.shape == (3, SIDE, SIDE) and output.dtype == np.float32 and output.min() >= -1.01 and output.max() <= 1.01

        def measured():
            for number in range(rounds + 1):
                rng, start = random.Random(7), time.process_time()
                for image in data:
                    render(image, rng)
                if number:
                    yield name, len(data), time.process_time() - start

        results = measured()
    for name, count, cpu_s in results:
        print(json.dumps({"peer": name, "images": count, "cpu_s": cpu_s}), flush=True)


if __name__ == "__main__":
    main()
