"""Batches of images from Parquet shards, on disk or in object storage, for PyTorch and others.

>>> import nepa
>>> loader = nepa.Loader("s3://bucket/imagenet/train", batch_size=256)
>>> for images, labels in loader:  # one epoch
...     ...  # [256, 3, 224, 224] float32, [256] int64

:class:`Loader` reads, decodes and augments on threads of its own, :mod:`nepa.transforms` says how.
:func:`pack` makes shards, :func:`inspect` looks at them, :func:`profile` finds what makes reading
them slow. Log lines go to the logger ``"nepa"`` of :mod:`logging`; nothing is printed.
"""

import logging

from . import transforms
from ._batch import Batch, Crop, SampleId
from ._errors import (
    DatasetError,
    DeviceError,
    ForkError,
    ImageError,
    KeptTooManyError,
    NepaError,
    SettingError,
    StateError,
)
from ._inspect import Inspection, inspect
from ._loader import Loader
from ._nepa import __version__
from ._pack import PackReport, pack
from ._profile import Profile, profile
from .transforms import (
    CenterCrop,
    MultiCrop,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    Squash,
)

__all__ = [
    "Batch",
    "CenterCrop",
    "Crop",
    "DatasetError",
    "DeviceError",
    "ForkError",
    "ImageError",
    "Inspection",
    "KeptTooManyError",
    "Loader",
    "MultiCrop",
    "NepaError",
    "PackReport",
    "Profile",
    "RandAugment",
    "RandomErasing",
    "RandomResizedCrop",
    "SampleId",
    "SettingError",
    "Squash",
    "StateError",
    "__version__",
    "inspect",
    "pack",
    "profile",
    "transforms",
]

# A program that sets up no logging sees none: without this, Python prints warnings itself.
logging.getLogger("nepa").addHandler(logging.NullHandler())
