"""Trains a small CNN on one process or several, to the same weights up to rounding.

    python ddp_cnn.py 'set/train-*.parquet' --save one.pt
    torchrun --standalone --nproc-per-node=2 ddp_cnn.py 'set/train-*.parquet' --save two.pt
    python ddp_cnn.py --compare one.pt two.pt

Why they agree: a global batch holds the same samples with the same crops for every number of
processes; each process takes an equal share of it, so the mean of their mean gradients, which
DistributedDataParallel computes, is the gradient of the global batch; GroupNorm, unlike BatchNorm,
does not mix the samples of a share; GELU, unlike ReLU, has no kink at which rounding would decide
whether a gradient is there. What differs is the order in which f32 numbers are added: after 20
steps of SGD the weights agree to TOLERANCE. The number of processes divides --lanes.
"""

import argparse
import hashlib
import os
from itertools import islice

import torch
import torch.distributed as dist
from torch import nn

import nepa
from nepa.transforms import RandomResizedCrop

# Norm of the difference of all weights over their norm.
TOLERANCE = 1e-6

parser = argparse.ArgumentParser(description="Data-parallel training of a small CNN.")
parser.add_argument("urls", nargs="*", help="shards: folders, globs, s3://, gs://, az://")
parser.add_argument("--compare", nargs=2, metavar="FILE", help="compare saved weights, no training")
parser.add_argument("--save", help="where rank 0 writes the weights")
parser.add_argument("--num-classes", type=int, default=10)
parser.add_argument("--global-batch-size", type=int, default=256, help="over all processes")
parser.add_argument("--lanes", type=int, default=8, help="as many as there may ever be processes")
parser.add_argument("--size", type=int, default=32, help="side of a crop in pixels")
parser.add_argument("--max-steps", type=int, default=20)


def small_cnn(num_classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for width_in, width in [(3, 32), (32, 64), (64, 128)]:
        layers += [nn.Conv2d(width_in, width, 3, stride=2, padding=1), nn.GroupNorm(8, width)]
        layers += [nn.GELU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes)]
    return nn.Sequential(*layers)


def flat(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """All weights as one vector, f64."""
    return torch.cat([state[name].flatten().double().cpu() for name in sorted(state)])


def compare(one: str, other: str) -> None:
    a, b = flat(torch.load(one)), flat(torch.load(other))
    difference = float((a - b).norm() / a.norm())
    print(f"difference over norm {difference:.2e}, allowed {TOLERANCE:.0e}")
    if not difference <= TOLERANCE:
        raise SystemExit("the weights differ by more than rounding")


def main() -> None:
    args = parser.parse_args()
    if args.compare:
        return compare(*args.compare)
    if not args.urls:
        parser.error("name the shards, or --compare two files")
    together = "RANK" in os.environ  # torchrun sets it
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
    if together:
        dist.init_process_group("nccl" if device != "cpu" else "gloo")

    torch.manual_seed(0)
    cnn = small_cnn(args.num_classes).to(device)
    model = nn.parallel.DistributedDataParallel(cnn) if together else cnn
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    loader = nepa.Loader(  # rank and world_size are those of torchrun
        args.urls,
        global_batch_size=args.global_batch_size,
        lanes=args.lanes,
        transform=RandomResizedCrop(args.size, scale=(0.35, 1.0)),
    )
    step = 0
    while step < args.max_steps:
        for images, labels in islice(loader, args.max_steps - step):
            loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1

    weights = flat(cnn.state_dict())
    if not together or dist.get_rank() == 0:
        processes = dist.get_world_size() if together else 1
        digest = hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:16]
        print(f"processes {processes}  steps {step}  norm {weights.norm():.9f}  sha256 {digest}")
        if args.save:
            torch.save(cnn.state_dict(), args.save)
    if together:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
