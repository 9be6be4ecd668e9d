"""Trains torchvision's ResNet-50 from image shards, and goes on where it stopped.

    python train_resnet50.py 's3://bucket/in1k/train-*.parquet' --checkpoint run.pt

Killed and started again with the same command, it takes the very batches that would have come
next. Needs torch and torchvision. Labels are integers from 0 to --num-classes - 1.
"""

import argparse
import os
from pathlib import Path

import torch
import torchvision

import nepa
from nepa.transforms import RandomResizedCrop

parser = argparse.ArgumentParser(description="Trains a torchvision model from image shards.")
parser.add_argument("urls", nargs="+", help="shards: folders, globs, s3://, gs://, az://")
parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
parser.add_argument("--save-every", type=int, default=1000, metavar="STEPS")
parser.add_argument("--model", default="resnet50", help="also resnet18, vit_b_16, ...")
parser.add_argument("--num-classes", type=int, default=1000)
parser.add_argument("--epochs", type=int, default=90)
parser.add_argument("--batch-size", type=int, default=256)
parser.add_argument("--size", type=int, default=224, help="side of a crop in pixels")
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--max-steps", type=int, help="stop after this step, saved")


def main() -> None:
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)

    loader = nepa.Loader(
        args.urls,
        batch_size=args.batch_size,
        transform=RandomResizedCrop(args.size),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    model = torchvision.models.get_model(args.model, num_classes=args.num_classes).to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    total = args.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "loader": loader}
    step, last = 0, min(total, args.max_steps or total)
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint, map_location=device)
        step = saved.pop("step")
        for name, state in saved.items():
            parts[name].load_state_dict(state)

    while step < last:
        for images, labels in loader:  # one epoch, or what is left of it
            images, labels = images.to(device), labels.to(device)
            loss = torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % 20 == 0 or step == last:
                print(f"step {step:,}/{total:,}  loss {loss.item():.4f}")
            if step % args.save_every == 0 or step == last:
                new = args.checkpoint.with_suffix(".new")
                torch.save({"step": step} | {k: v.state_dict() for k, v in parts.items()}, new)
                os.replace(new, args.checkpoint)  # whole or absent, never half
            if step == last:
                break


if __name__ == "__main__":
    main()
