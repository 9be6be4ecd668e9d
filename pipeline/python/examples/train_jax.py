"""Trains a small network in JAX; batches come as JAX arrays by DLPack.

    python train_jax.py 'set/train-*.parquet'

Needs jax. Labels are integers from 0 to --num-classes - 1.
"""

import argparse

import jax
import jax.numpy as jnp

import nepa
from nepa.transforms import RandomResizedCrop

parser = argparse.ArgumentParser(description="A multilayer perceptron on patches of pixels.")
parser.add_argument("urls", nargs="+", help="shards: folders, globs, s3://, gs://, az://")
parser.add_argument("--num-classes", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--size", type=int, default=32, help="side of a crop in pixels")
parser.add_argument("--max-steps", type=int, default=200)

Weights = list[jax.Array]


def loss_of(weights: Weights, images: jax.Array, labels: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(images.reshape(len(images), -1) @ weights[0])
    logits = hidden @ weights[1]
    chances = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(chances, labels[:, None], axis=1).mean()


def updated(weights: Weights, images: jax.Array, labels: jax.Array) -> tuple[Weights, jax.Array]:
    loss, gradients = jax.value_and_grad(loss_of)(weights, images, labels)
    return [w - 0.01 * g for w, g in zip(weights, gradients, strict=True)], loss


def main() -> None:
    args = parser.parse_args()
    loader = nepa.Loader(
        args.urls,
        batch_size=args.batch_size,
        transform=RandomResizedCrop(args.size, scale=(0.35, 1.0)),
        layout="NHWC",
        framework="jax",
    )
    train_step = jax.jit(updated)
    pixels, width = args.size * args.size * 3, 256
    keys = jax.random.split(jax.random.key(0))
    weights = [
        jax.random.normal(keys[0], (pixels, width)) * pixels**-0.5,
        jax.random.normal(keys[1], (width, args.num_classes)) * width**-0.5,
    ]
    step = 0
    while step < args.max_steps:
        for images, labels in loader:
            weights, loss = train_step(weights, images, labels)
            step += 1
            if step % 20 == 0 or step == args.max_steps:
                print(f"step {step}  loss {float(loss):.4f}")
            if step == args.max_steps:
                break


if __name__ == "__main__":
    main()
