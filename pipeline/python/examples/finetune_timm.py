"""Fine-tunes a timm model: crops, RandAugment and erasing by nepa, Mixup and the rates by timm.

    python finetune_timm.py 'set/train-*.parquet' --val 'set/val-*.parquet' --pretrained

Needs torch and timm. Without --pretrained the weights are random and nothing is downloaded.
"""

import argparse
from typing import Literal

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.mixup import Mixup
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

import nepa
from nepa.transforms import CenterCrop, RandAugment, RandomErasing, RandomResizedCrop

parser = argparse.ArgumentParser(description="Fine-tunes a timm model from image shards.")
parser.add_argument("urls", nargs="+", help="training shards: folders, globs, s3://, ...")
parser.add_argument("--val", required=True, help="shards to evaluate on")
parser.add_argument("--model", default="vit_small_patch16_224")
parser.add_argument("--pretrained", action="store_true", help="download timm's weights")
parser.add_argument("--num-classes", type=int, default=1000)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--lr", type=float, default=5e-4)
parser.add_argument("--layer-decay", type=float, default=0.75)
parser.add_argument("--max-steps", type=int, help="stop an epoch and an evaluation after these")


@torch.no_grad()
def accuracy(
    model: torch.nn.Module, loader: nepa.Loader, device: str, max_steps: int | None
) -> float:
    """Top-1 in 0..=1 over one epoch of the loader."""
    model.eval()
    right = seen = 0
    for step, (images, labels) in enumerate(loader):
        if step == max_steps:
            break
        right += int((model(images.to(device)).argmax(1) == labels.to(device)).sum())
        seen += len(labels)
    return right / seen


def main() -> None:
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)

    model = timm.create_model(
        args.model, pretrained=args.pretrained, num_classes=args.num_classes, drop_path_rate=0.1
    ).to(device)
    data = resolve_model_data_config(model)  # what these weights were trained with
    size, mean, std = data["input_size"][-1], data["mean"], data["std"]
    filter: Literal["bilinear", "bicubic"] = (
        "bicubic" if data["interpolation"] == "bicubic" else "bilinear"
    )
    train = nepa.Loader(
        args.urls,
        batch_size=args.batch_size,
        transform=RandomResizedCrop(
            size, filter=filter, rand_augment=RandAugment(), erase=RandomErasing()
        ),
        mean=mean,
        std=std,
    )
    val = nepa.Loader(
        args.val,
        batch_size=args.batch_size,
        transform=CenterCrop(size, resize=round(size / data["crop_pct"]), filter=filter),
        mean=mean,
        std=std,
        shuffle=False,
        drop_last=False,
    )
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=args.num_classes)
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=args.lr, weight_decay=0.05, layer_decay=args.layer_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(train))
    loss_of = SoftTargetCrossEntropy()

    for epoch in range(args.epochs):
        model.train()
        for step, (images, labels) in enumerate(train):
            if step == args.max_steps:
                break
            mixed, targets = mixup(images.to(device), labels.to(device))
            loss = loss_of(model(mixed), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                print(f"epoch {epoch}  step {step}/{len(train)}  loss {loss.item():.4f}")
        top1 = accuracy(model, val, device, args.max_steps)
        print(f"epoch {epoch}  top-1 {100 * top1:.1f} %")


if __name__ == "__main__":
    main()
