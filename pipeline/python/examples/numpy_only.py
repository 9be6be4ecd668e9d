"""A linear classifier of pixels in NumPy alone: batches as its arrays, without torch or a copy.

    python numpy_only.py 'set/train-*.parquet'

Labels are integers from 0 to --num-classes - 1.
"""

import argparse

import numpy as np
from numpy.typing import NDArray

import nepa
from nepa.transforms import CenterCrop

parser = argparse.ArgumentParser(description="Logistic regression on pixels.")
parser.add_argument("urls", nargs="+", help="shards: folders, globs, s3://, gs://, az://")
parser.add_argument("--num-classes", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--size", type=int, default=16, help="side of an image in pixels")
parser.add_argument("--max-steps", type=int, default=100)


def main() -> None:
    args = parser.parse_args()
    loader = nepa.Loader(
        args.urls,
        batch_size=args.batch_size,
        transform=CenterCrop(args.size, resize=args.size),
        layout="NHWC",
        framework="numpy",
    )
    weights = np.zeros((args.size * args.size * 3, args.num_classes), np.float32)
    step = 0
    while step < args.max_steps:
        for images, labels in loader:  # f32 [B, S, S, 3] and int64 [B]
            pixels: NDArray[np.float32] = images.reshape(len(images), -1)
            logits = pixels @ weights
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            chances = odds / odds.sum(axis=1, keepdims=True)
            loss = -np.log(chances[np.arange(len(labels)), labels]).mean()
            chances[np.arange(len(labels)), labels] -= 1  # now the gradient of the logits
            weights -= 0.01 * pixels.T @ chances / len(labels)
            step += 1
            if step % 20 == 0 or step == args.max_steps:
                print(f"step {step}  loss {loss:.4f}")
            if step == args.max_steps:
                break


if __name__ == "__main__":
    main()
