"""Trains a classifier with Lightning; its checkpoints hold the loader's position, too.

    python lightning_classifier.py 'set/train-*.parquet' --out runs/a
    python lightning_classifier.py 'set/train-*.parquet' --out runs/a --resume runs/a/last.ckpt

Resumed in the middle of an epoch, it takes the batches that would have come next. Needs lightning
and torchvision.
"""

import argparse
from typing import Any

import lightning
import torch
import torchvision
from lightning.pytorch.callbacks import ModelCheckpoint

import nepa
from nepa.transforms import RandomResizedCrop

parser = argparse.ArgumentParser(description="A torchvision classifier, trained by Lightning.")
parser.add_argument("urls", nargs="+", help="shards: folders, globs, s3://, gs://, az://")
parser.add_argument("--out", default="runs/lightning", help="folder of the checkpoints")
parser.add_argument("--resume", help="a checkpoint to go on from")
parser.add_argument("--save-every", type=int, default=1000, metavar="STEPS")
parser.add_argument("--model", default="resnet18")
parser.add_argument("--num-classes", type=int, default=1000)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=128, help="of each process")
parser.add_argument("--size", type=int, default=224, help="side of a crop in pixels")
parser.add_argument("--max-steps", type=int, default=-1, help="stop after this step")


class Classifier(lightning.LightningModule):
    def __init__(self, model: str, num_classes: int) -> None:
        super().__init__()
        self.model = torchvision.models.get_model(model, num_classes=num_classes)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.05)


class Shards(lightning.LightningDataModule):
    """Lightning saves what `state_dict` returns with each checkpoint."""

    def __init__(self, urls: list[str], batch_size: int, size: int) -> None:
        super().__init__()
        self.urls, self.batch_size, self.size = urls, batch_size, size
        self.saved: dict[str, Any] | None = None
        self.loader: nepa.Loader | None = None

    def train_dataloader(self) -> nepa.Loader:
        # Opened here, in each process of a strategy: rank and world_size are known by now.
        self.loader = nepa.Loader(
            self.urls,
            batch_size=self.batch_size,
            transform=RandomResizedCrop(self.size),
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )
        if self.saved is not None:
            self.loader.load_state_dict(self.saved)
        return self.loader

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict() if self.loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved = state_dict or None


def main() -> None:
    args = parser.parse_args()
    lightning.seed_everything(0)
    # Without a version counter a run that goes on replaces its last.ckpt.
    save = ModelCheckpoint(
        args.out,
        save_last=True,
        every_n_train_steps=args.save_every,
        enable_version_counter=False,
    )
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        max_steps=args.max_steps,
        accelerator="auto",
        logger=False,
        log_every_n_steps=20,
        callbacks=[save],
    )
    model = Classifier(args.model, args.num_classes)
    trainer.fit(model, Shards(args.urls, args.batch_size, args.size), ckpt_path=args.resume)


if __name__ == "__main__":
    main()
