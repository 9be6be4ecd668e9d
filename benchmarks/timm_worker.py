"""RandAugment, random erasing and mixing by timm for the benchmark `augment`: a line of numbers in, nanoseconds of processor time out.

Arguments: a file of 8-bit RGB pictures, `[N, S, S, 3]`, and S. Needs timm 1.0.22, torch, torchvision and Pillow below 13 (from 13 on, timm's posterize fails
where no bit is kept).
"""
import random
import sys
import time

import numpy as np
import PIL
import timm
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing

torch.set_num_threads(1)
side = int(sys.argv[2])
pictures = np.fromfile(sys.argv[1], np.uint8).reshape(-1, side, side, 3)
images = [Image.fromarray(picture) for picture in pictures]
batch = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1
operations = rand_augment_transform(
    "rand-m9-mstd0.5-inc1",
    {"translate_const": int(side * 0.45), "img_mean": (128,) * 3, "interpolation": Image.Resampling.BICUBIC},
)
erase = RandomErasing(1.0, mode="pixel", device="cpu")
mixing = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=1000)
labels = torch.arange(len(images)) % 1000
print(f"timm {timm.__version__}, PyTorch {torch.__version__}, Pillow {PIL.__version__}", flush=True)
while line := sys.stdin.readline():
    what, seed = line.split()
    random.seed(int(seed))
    np.random.seed(int(seed))
    torch.manual_seed(int(seed))
    tensors = batch.clone()
    start = time.process_time_ns()
    if what == "operations":
        for image in images:
            operations(image)
    elif what == "erase":
        for tensor in tensors:
            erase(tensor)
    else:
        mixing(tensors, labels)
    print(time.process_time_ns() - start, flush=True)
