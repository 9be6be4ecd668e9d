"""Trains a ResNet with the Trainer of Hugging Face transformers, on batches of nepa.

    python hf_trainer.py 'set/train-*.parquet' --out runs/a
    python hf_trainer.py 'set/train-*.parquet' --out runs/a --resume runs/a/checkpoint-1000

The Trainer insists on a torch DataLoader: nepa.torch.IterableDataset gives it whole batches, and
get_train_dataloader hands it over. Each checkpoint has the loader's position beside the weights.
Needs transformers and accelerate. One process a GPU, as torchrun starts them.

Beware of resuming other models: for those whose weights transformers 5 renames when it saves them,
ViT for one, the Trainer warns of missing keys and goes on with random weights
(huggingface/transformers issue 43701).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

import nepa
import nepa.torch
from nepa.transforms import RandomResizedCrop

parser = argparse.ArgumentParser(description="A ResNet, trained by the Trainer of transformers.")
parser.add_argument("urls", nargs="+", help="shards: folders, globs, s3://, gs://, az://")
parser.add_argument("--out", default="runs/trainer", help="folder of the checkpoints")
parser.add_argument("--resume", type=Path, help="a checkpoint to go on from")
parser.add_argument("--save-every", type=int, default=1000, metavar="STEPS")
parser.add_argument("--num-classes", type=int, default=1000)
parser.add_argument("--batch-size", type=int, default=64, help="of each process")
parser.add_argument("--size", type=int, default=224, help="side of a crop in pixels")
parser.add_argument("--depths", type=int, nargs=4, default=[3, 4, 6, 3], help="blocks of stages")
parser.add_argument("--max-steps", type=int, default=10_000)

STATE = "nepa_loader.json"


class BatchTrainer(Trainer):
    def __init__(self, loader: nepa.Loader, **settings: Any) -> None:
        super().__init__(**settings)
        self.loader = loader

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            nepa.torch.IterableDataset(self.loader),
            batch_size=None,  # they are batches already
            num_workers=0,  # the loader has threads of its own
            collate_fn=lambda batch: {"pixel_values": batch[0], "labels": batch[1]},
        )


class SaveLoader(TrainerCallback):
    """Writes the loader's position beside each checkpoint; it is the same in all processes."""

    def __init__(self, loader: nepa.Loader) -> None:
        self.loader = loader

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
            (folder / STATE).write_text(json.dumps(self.loader.state_dict()))


def main() -> None:
    args = parser.parse_args()
    set_seed(0)
    loader = nepa.Loader(
        args.urls, batch_size=args.batch_size, transform=RandomResizedCrop(args.size)
    )
    if args.resume:
        loader.load_state_dict(json.loads((args.resume / STATE).read_text()))
    config = ResNetConfig(depths=args.depths)
    config.num_labels = args.num_classes
    trainer = BatchTrainer(
        loader,
        model=ResNetForImageClassification(config),
        args=TrainingArguments(
            output_dir=args.out,
            max_steps=args.max_steps,
            per_device_train_batch_size=args.batch_size,
            save_steps=args.save_every,
            logging_steps=20,
            learning_rate=1e-3,
            report_to="none",
            ignore_data_skip=True,  # the loader stands where it stopped
        ),
        callbacks=[SaveLoader(loader)],
    )
    trainer.train(resume_from_checkpoint=str(args.resume) if args.resume else None)


if __name__ == "__main__":
    main()
