"""The settings of a loader: what the caller gave, checked, as the native module's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from . import _nepa, _ranks
from ._checks import (
    boolean,
    finite,
    finites,
    one_of,
    path,
    paths,
    positive,
    text,
    texts,
    whole,
    wrong,
)
from ._errors import SettingError
from .transforms import CenterCrop, MultiCrop, RandomResizedCrop, Squash, Transform

DTYPES = ("float32", "bfloat16", "uint8")
LAYOUTS = ("NCHW", "NHWC", "patches")


def dataset(
    *,
    urls: Any,
    mixture: Any,
    image_column: Any,
    label_column: Any,
    split: Any,
    index: Any,
    strict: Any,
) -> dict[str, Any]:
    """Rust's `DatasetConfig`."""
    if (urls is None) == (mixture is None):
        what = "neither is" if urls is None else "both are"
        raise SettingError(f"urls or mixture says what is read, and {what} given: give one of them")
    schema: dict[str, Any] = {}
    if image_column is not None:
        schema["image_column"] = text("image_column", image_column)
    if label_column is not None:
        schema["label_column"] = text("label_column", label_column)
    config: dict[str, Any] = {"strict": boolean("strict", strict)}
    if split is not None:
        config["split"] = text("split", split)
    if index is not None:
        if mixture is not None:
            raise SettingError("index is of one data set: with mixture, leave it out")
        config["index"] = path("index", index)
    if mixture is None:
        return {**config, **schema, "urls": paths("urls", urls)}
    if not isinstance(mixture, Mapping) or not mixture:
        raise wrong("mixture", mixture, "a dict of URLs and weights, as {'s3://a': 2, 's3://b': 1}")
    sources = []
    for url, given in mixture.items():
        weight = positive(f"mixture[{url!r}]", given)
        sources.append({"urls": [path("a key of mixture", url)], "weight": weight, **schema})
    return {**config, "mixture": sources}


def io(*, max_requests: Any, cache_dir: Any) -> dict[str, Any]:
    """Rust's `IoConfig`: what is not given here has its default."""
    config: dict[str, Any] = {}
    if max_requests is not None:
        config["max_requests"] = whole("max_requests", max_requests, least=1)
    if cache_dir is not None:
        config["cache_dir"] = path("cache_dir", cache_dir)
    return config


def batch_sizes(batch_size: Any, global_batch_size: Any, world_size: int) -> tuple[int, int]:
    """Samples in a batch of this process, and of all."""
    if global_batch_size is None:
        own = 256 if batch_size is None else whole("batch_size", batch_size, least=1)
        return own, own * world_size
    if batch_size is not None:
        raise SettingError(
            f"batch_size = {batch_size!r} (of each process) and global_batch_size = "
            f"{global_batch_size!r} (of all) are both given: give one of them"
        )
    over_all = whole("global_batch_size", global_batch_size, least=1)
    if over_all % world_size:
        rule = f"divisible by the number of processes, {world_size}"
        raise wrong("global_batch_size", global_batch_size, rule)
    return over_all // world_size, over_all


def loader(
    *,
    transform: Any,
    mean: Any,
    std: Any,
    global_batch: int,
    rank: int,
    world_size: int,
    lanes: Any,
    seed: Any,
    epochs: Any,
    shuffle: Any,
    drop_last: Any,
    shuffle_window_bytes: Any,
    decode_threads: Any,
    prefetch_batches: Any,
    max_kept_batches: Any,
    max_bad_fraction: Any,
    bad_samples_path: Any,
) -> dict[str, Any]:
    """Rust's `LoaderConfig`."""
    share = finite("max_bad_fraction", max_bad_fraction)
    if not 0 <= share <= 1:
        raise wrong("max_bad_fraction", max_bad_fraction, "a share from 0 to 1")
    deviations = finites("std", std, 3)
    if min(deviations) <= 0:
        raise wrong("std", std, "3 positive numbers")
    if not isinstance(transform, (RandomResizedCrop, MultiCrop, CenterCrop, Squash)):
        rule = "one of nepa.transforms; what is your own belongs behind the loader, on its batches"
        raise wrong("transform", transform, rule)
    return {
        "seed": whole("seed", seed),
        "global_batch": global_batch,
        "lanes": 1 if lanes is None else whole("lanes", lanes, least=1),
        "rank": rank,
        "world_size": world_size,
        "epochs": None if epochs is None else whole("epochs", epochs, least=1),
        "shuffle": boolean("shuffle", shuffle),
        "drop_last": boolean("drop_last", drop_last),
        "augment": transform._config(),
        "normalize": {"mean": finites("mean", mean, 3), "std": deviations},
        "exif_orientation": True,
        "decode_threads": _decode_threads(decode_threads),
        "prefetch_batches": whole("prefetch_batches", prefetch_batches, least=1),
        "max_kept_batches": whole("max_kept_batches", max_kept_batches, least=1),
        "shuffle_window_bytes": whole("shuffle_window_bytes", shuffle_window_bytes, least=1),
        "max_bad_fraction": share,
        "bad_samples_path": (
            None if bad_samples_path is None else path("bad_samples_path", bad_samples_path)
        ),
    }


def _decode_threads(given: Any) -> int:
    """One for each core, which the processes of torchrun share."""
    if given is not None:
        return whole("decode_threads", given, least=1)
    return max(1, _nepa.available_cores() // _ranks.local_processes())


def arrays(*, dtype: Any, layout: Any, patch_size: Any, device: Any) -> dict[str, Any]:
    """How the pixels lie, and where: the native loader's keyword arguments."""
    where = str(device)  # A torch.device, too.
    if not re.fullmatch(r"cpu|cuda:\d+", where):
        raise wrong("device", device, "'cpu', or a GPU by its number as 'cuda:0'")
    form = one_of("layout", layout, LAYOUTS)
    patch = None if patch_size is None else whole("patch_size", patch_size, least=1)
    if (form == "patches") != (patch is not None):
        raise SettingError(
            f"layout is {form!r} and patch_size is {patch!r}: layout='patches' needs a patch_size, "
            "and no other layout takes one"
        )
    return {
        "dtype": one_of("dtype", dtype, DTYPES),
        "layout": form,
        "patch_size": patch,
        "device": where,
    }


def check_patches(patch_size: int | None, transform: Transform) -> None:
    """Patches cover each view."""
    for size in transform.view_sizes:
        if patch_size is not None and size % patch_size:
            rule = f"a divisor of the view's side, {size}"
            raise wrong("patch_size", patch_size, rule)


def columns(given: Any) -> list[str]:
    """Further columns."""
    return texts("columns", given)
