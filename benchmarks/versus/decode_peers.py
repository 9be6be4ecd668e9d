"""Decode + random resized crop to 224 + flip + normalise to f32 [3, 224, 224], one thread: CPU-milliseconds an image of one peer.

Called by race.py as `decode_peers.py PEER SHARD ROUNDS`; prints a line of JSON a round. The crops are drawn as torchvision's RandomResizedCrop draws them, before the clock runs
and from one seed for all peers, except DALI's, which draws its own inside its fused decoder. Read: processor time of the process; the first round is not counted. `same_output.py` checks that
all make the same picture.
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
    column = pq.read_table(shard, columns=["image"]).column("image").to_pylist()
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


def crops(data, rng):
    from PIL import Image

    return [crop(*Image.open(io.BytesIO(image)).size, rng) for image in data]


def normalise(pixels, flip, output=None):
    """uint8 [224, 224, 3] to f32 [3, 224, 224], into `output` or a new array. Mirrored after it is transposed; the other way round takes three times as long."""
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    if flip:
        planes = np.ascontiguousarray(planes[:, :, ::-1])
    output = np.multiply(planes, np.float32(2 / 255), out=output)
    output -= 1
    return output


def buffer():
    """Ours renders into memory that is there already, and so do the peers."""
    return np.empty((3, SIDE, SIDE), dtype=np.float32)


# ---- the peers: a name, and a function of an encoded image and a crop ----


def pillow():
    import PIL
    from PIL import Image

    output = buffer()

    def render(data, box):
        x, y, w, h, flip = box
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return normalise(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))), flip, output)

    return f"Pillow {PIL.__version__}", render


def simplejpeg_cv2(interpolation):
    import cv2
    import simplejpeg

    cv2.setNumThreads(1)
    output = buffer()

    def render(data, box):
        x, y, w, h, flip = box
        image = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False)
        # INTER_AREA averages when it shrinks, as antialiasing does; when it grows OpenCV itself interpolates linearly.
        image = cv2.resize(image[y : y + h, x : x + w], (SIDE, SIDE), interpolation=getattr(cv2, interpolation))
        return normalise(image, flip, output)

    return f"simplejpeg {simplejpeg.__version__} + OpenCV {cv2.__version__} ({interpolation})", render


def simplejpeg_scaled():
    """The same with libjpeg-turbo's scaled decoding where the crop is at least twice as large as the output."""
    import cv2
    import simplejpeg

    cv2.setNumThreads(1)
    output = buffer()

    def render(data, box):
        x, y, w, h, flip = box
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        scale = min(1.0, SIDE / min(w, h))
        least = {"min_height": math.ceil(height * scale), "min_width": math.ceil(width * scale), "min_factor": 2}
        image = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=False, fastupsample=False, **least)
        down, right = image.shape[0] / height, image.shape[1] / width
        x, y, w, h = round(x * right), round(y * down), round(w * right), round(h * down)
        image = cv2.resize(image[y : y + h, x : x + w], (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        return normalise(image, flip, output)

    return f"simplejpeg {simplejpeg.__version__}, scaled + OpenCV {cv2.__version__} (INTER_LINEAR)", render


def torchvision():
    import torch
    import torchvision
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2 import functional

    torch.set_num_threads(1)
    output = torch.from_numpy(buffer())

    def render(data, box):
        x, y, w, h, flip = box
        image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        image = functional.resized_crop(image, y, x, h, w, [SIDE, SIDE], antialias=True)
        if flip:
            image = image.flip(2)
        return torch.mul(image, 2 / 255, out=output).sub_(1).numpy()

    return f"torchvision {torchvision.__version__} decode_jpeg + resized_crop", render


def spdl_render(packets, box, output=None):
    import spdl.io

    x, y, w, h, flip = box
    filters = f"crop={w}:{h}:{x}:{y},scale={SIDE}:{SIDE}:flags=bilinear,format=rgb24"
    frames = spdl.io.decode_packets(packets, filter_desc=filters)
    return normalise(spdl.io.to_numpy(spdl.io.convert_frames(frames)), flip, output)


def spdl():
    from importlib.metadata import version

    import spdl.io

    output = buffer()
    return f"spdl {version('spdl')} (FFmpeg)", lambda data, box: spdl_render(spdl.io.demux_image(data), box, output)


def dali_finish(image, mirror):
    """What follows DALI's decoders."""
    from nvidia.dali import fn, types

    image = fn.resize(image, size=[SIDE, SIDE], interp_type=types.INTERP_TRIANGULAR)
    return fn.crop_mirror_normalize(image, dtype=types.FLOAT, output_layout="CHW", mean=[127.5] * 3, std=[127.5] * 3, mirror=mirror)


def dali_random_crop(encoded):
    from nvidia.dali import fn, types

    image = fn.decoders.image_random_crop(encoded, device="cpu", output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
    return dali_finish(image, fn.random.coin_flip(probability=0.5))


def dali_rounds(data, rounds):
    """DALI has no call for one image: batches of 25 through its pipeline, one thread, fused random-crop decoder."""
    import nvidia.dali as dali
    from nvidia.dali import fn, pipeline_def

    blocks = [[np.frombuffer(image, dtype=np.uint8) for image in data[i : i + 25]] for i in range(0, len(data), 25)]
    blocks = [block for block in blocks if len(block) == 25]

    @pipeline_def(batch_size=25, num_threads=1, device_id=None, seed=1, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False)
    def pipeline():
        return dali_random_crop(fn.external_source(name="encoded", no_copy=True))

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
    "simplejpeg-scaled": simplejpeg_scaled,
    "simplejpeg-linear": lambda: simplejpeg_cv2("INTER_LINEAR"),
    "simplejpeg-area": lambda: simplejpeg_cv2("INTER_AREA"),
    "dali": None,
    "torchvision": torchvision,
    "spdl": spdl,
    "pillow": pillow,
}


def rounds_of(render, name, data, rounds):
    boxes = crops(data, random.Random(7))
    for number in range(rounds + 1):
        start = time.process_time()
        for image, box in zip(data, boxes):
            render(image, box)
        if number:
            yield name, len(data), time.process_time() - start


def main():
    peer, shard, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    data = images(shard)
    if peer == "dali":
        results = dali_rounds(data, rounds)
    else:
        name, render = PEERS[peer]()
        results = rounds_of(render, name, data, rounds)
    for name, count, cpu_s in results:
        print(json.dumps({"peer": name, "images": count, "cpu_s": cpu_s}), flush=True)


if __name__ == "__main__":
    main()
