"""Does a contestant make the same picture of the same crop? Mean absolute difference from Pillow's (bilinear, antialiased), in units of 1/255.

Called by race.py as `same_output.py CONTESTANT SHARD RENDER_DUMP`; prints a line of JSON. The crops are ours, as the program `render_dump` prints them with our
pixels; the contestant `ours` is those pixels. DALI's random-crop decoder takes no crop, so its image_slice is asked, with the same resize and normalisation behind it.
"""
import json
import struct
import subprocess
import sys

import numpy as np

import decode_peers

IMAGES = 50


def our_crops(data, render_dump):
    """The crop and the pixels of each image. render_dump answers an image four times, random resized crop with bilinear filter first; upright images keep their crop in any program."""
    frames = b"".join(struct.pack("<I", len(image)) + image for image in data)
    output = subprocess.run([render_dump, str(decode_peers.SIDE)], input=frames, stdout=subprocess.PIPE, check=True).stdout
    num_bytes, position, found = 4 * 3 * decode_peers.SIDE**2, 0, []
    for answer in range(4 * len(data)):
        line, position = output[position : output.index(b"\n", position)], output.index(b"\n", position) + 1
        plan = json.loads(line)["plan"]
        pixels = np.frombuffer(output, "<f4", num_bytes // 4, position).reshape(3, decode_peers.SIDE, decode_peers.SIDE)
        position += num_bytes
        if answer % 4 == 0:
            rect = plan["rect"]
            left, top = round(rect["x"]), round(rect["y"])
            box = left, top, round(rect["x"] + rect["width"]) - left, round(rect["y"] + rect["height"]) - top, plan["flip"]
            found.append((box, pixels))
    return found


def dali():
    """One image with a given crop through DALI."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False)
    def pipeline():
        encoded, start, shape, mirror = (fn.external_source(name=name) for name in ("encoded", "start", "shape", "mirror"))
        image = fn.decoders.image_slice(encoded, start=start, shape=shape, axis_names="HW", device="cpu", output_type=types.RGB)
        return decode_peers.dali_finish(image, mirror)

    runner = pipeline()
    runner.build()

    def render(data, box):
        x, y, w, h, flip = box
        runner.feed_input("encoded", [np.frombuffer(data, dtype=np.uint8)])
        runner.feed_input("start", [np.array([y, x], dtype=np.int32)])
        runner.feed_input("shape", [np.array([h, w], dtype=np.int32)])
        runner.feed_input("mirror", [np.array(flip, dtype=np.int32)])
        (output,) = runner.run()
        return np.array(output.at(0))

    return "DALI", render


def main():
    contestant, shard, render_dump = sys.argv[1:]
    data = decode_peers.images(shard, IMAGES)
    ours = our_crops(data, render_dump)
    reference = decode_peers.pillow()[1]
    render = None
    if contestant != "ours":
        render = (dali if contestant == "dali" else decode_peers.PEERS[contestant])()[1]
    differences = []
    for image, (box, our_pixels) in zip(data, ours):
        pixels = render(image, box) if render else our_pixels
        expected = reference(image, box)
        assert pixels.shape == expected.shape and pixels.dtype == np.float32, (pixels.shape, pixels.dtype)
        differences.append(float(np.abs(pixels - expected).mean()) * 127.5)
    print(json.dumps({"mean": float(np.mean(differences)), "worst": max(differences)}))


main()
