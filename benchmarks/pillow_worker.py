"""Decodes and crops with Pillow for the benchmark `decode`: a line of numbers and an image in, nanoseconds of processor time out."""
import io
import sys
import time

import numpy as np
import PIL
from PIL import Image, ImageOps, features

print(f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}", flush=True)
while line := sys.stdin.buffer.readline():
    length, *box, side, flip = line.split()
    data = sys.stdin.buffer.read(int(length))
    x, y, width, height = map(float, box)
    start = time.process_time_ns()
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    image = image.crop(tuple(round(value) for value in (x, y, x + width, y + height)))
    image = image.resize((int(side), int(side)), Image.Resampling.BILINEAR)
    if int(flip):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    # The last step of a loader, as ToTensor and Normalize do it.
    (np.asarray(image).transpose(2, 0, 1).astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    print(time.process_time_ns() - start, flush=True)
