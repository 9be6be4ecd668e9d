"""What a sample is made of an image: crops, and changes of their pixels.

They are settings. The drawing and the pixels are the loader's work, on its own threads; all that is
random comes from the sample, the epoch and the loader's seed, so that a run can be repeated. Every
view is square. Images are turned upright first (EXIF).

``(low, high)`` is a range with both ends. ``filter`` is ``"bilinear"`` or ``"bicubic"``; both are
antialiased, as Pillow's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ._checks import finite, finites, one_of, whole, wrong

__all__ = [
    "CenterCrop",
    "Filter",
    "MultiCrop",
    "RandAugment",
    "RandomErasing",
    "RandomResizedCrop",
    "Squash",
    "Transform",
]

Filter = Literal["bilinear", "bicubic"]


def _side(name: str, value: Any) -> int:
    return whole(name, value, least=1)


def _filter(value: Any) -> str:
    return one_of("filter", value, ("bilinear", "bicubic"))


class _Settings:
    """Settings that are checked where they are made."""

    def __post_init__(self) -> None:
        self._config()

    def _config(self) -> dict[str, Any]:
        """The settings as Rust has them."""
        raise NotImplementedError


class _OneView(_Settings):
    """A transform of one view."""

    size: int

    @property
    def view_sizes(self) -> tuple[int, ...]:
        """Side of each view in pixels."""
        return (self.size,)


@dataclass(frozen=True)
class RandAugment(_Settings):
    """RandAugment as timm's ``rand-m9-mstd0.5-inc1``: operations on a view's 8-bit pixels.

    Args:
        operations: Operations drawn for each view, 1 to 32.
        magnitude: Mean of an operation's level, 0 to 10.
        magnitude_std: Standard deviation of the level, which is cut to 0 to 10.
        probability: That a drawn operation is applied.
    """

    operations: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    probability: float = 0.5

    def _config(self) -> dict[str, Any]:
        return {
            "operations": whole("operations", self.operations, least=1),
            "magnitude": finite("magnitude", self.magnitude),
            "magnitude_std": finite("magnitude_std", self.magnitude_std),
            "probability": finite("probability", self.probability),
        }


@dataclass(frozen=True)
class RandomErasing(_Settings):
    """Fills a random box of some views with standard normal noise, after normalisation.

    Args:
        probability: That a view gets a box.
        scale: Range of the box's share of the area.
        ratio: Range of the box's height over its width.
    """

    probability: float = 0.25
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)

    def _config(self) -> dict[str, Any]:
        return {
            "probability": finite("probability", self.probability),
            "scale": finites("scale", self.scale, 2),
            "ratio": finites("ratio", self.ratio, 2),
        }


def _changes(rand_augment: Any, erase: Any) -> dict[str, Any]:
    """The settings of what changes pixels, where it is asked for."""
    config: dict[str, Any] = {}
    if rand_augment is not None:
        if not isinstance(rand_augment, RandAugment):
            raise wrong("rand_augment", rand_augment, "a nepa.transforms.RandAugment or None")
        config["rand_augment"] = rand_augment._config()
    if erase is not None:
        if not isinstance(erase, RandomErasing):
            raise wrong("erase", erase, "a nepa.transforms.RandomErasing or None")
        config["erase"] = erase._config()
    return config


@dataclass(frozen=True)
class RandomResizedCrop(_OneView):
    """torchvision's ``RandomResizedCrop`` and a horizontal flip.

    Args:
        size: Side of the view in pixels.
        scale: Range of the crop's share of the image's area.
        ratio: Range of the crop's width over its height.
        flip: Probability of a horizontal flip.
        filter: Interpolation.
        rand_augment: Operations on the 8-bit pixels after the flip.
        erase: A box of noise after normalisation.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    filter: Filter = "bilinear"
    rand_augment: RandAugment | None = None
    erase: RandomErasing | None = None

    def _config(self) -> dict[str, Any]:
        return {
            "kind": "random_resized_crop",
            "size": _side("size", self.size),
            "scale": finites("scale", self.scale, 2),
            "ratio": finites("ratio", self.ratio, 2),
            "flip": finite("flip", self.flip),
            "filter": _filter(self.filter),
            **_changes(self.rand_augment, self.erase),
        }


@dataclass(frozen=True)
class MultiCrop(_Settings):
    """Several random crops of each image from one decode, as DINO and its followers train on.

    A batch has ``global_views + local_views`` views, the global ones first.

    Args:
        global_size: Side of the global views in pixels.
        global_views: Number of global views, at least 1.
        global_scale: Range of a global crop's share of the image's area.
        local_size: Side of the local views in pixels.
        local_views: Number of local views; 64 views in all at the most.
        local_scale: Range of a local crop's share of the image's area.
        ratio: Range of the crops' width over their height.
        flip: Probability of a horizontal flip, drawn for each view.
        filter: Interpolation.
        rand_augment: Operations on the 8-bit pixels after the flip, drawn for each view.
        erase: A box of noise after normalisation, drawn for each view.
    """

    global_size: int = 224
    global_views: int = 2
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_size: int = 96
    local_views: int = 8
    local_scale: tuple[float, float] = (0.05, 0.4)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    filter: Filter = "bilinear"
    rand_augment: RandAugment | None = None
    erase: RandomErasing | None = None

    @property
    def view_sizes(self) -> tuple[int, ...]:
        """Side of each view in pixels."""
        return (self.global_size,) * self.global_views + (self.local_size,) * self.local_views

    def _config(self) -> dict[str, Any]:
        return {
            "kind": "multi_crop",
            "global_size": _side("global_size", self.global_size),
            "global_views": whole("global_views", self.global_views, least=1),
            "global_scale": finites("global_scale", self.global_scale, 2),
            "local_size": _side("local_size", self.local_size),
            "local_views": whole("local_views", self.local_views),
            "local_scale": finites("local_scale", self.local_scale, 2),
            "ratio": finites("ratio", self.ratio, 2),
            "flip": finite("flip", self.flip),
            "filter": _filter(self.filter),
            **_changes(self.rand_augment, self.erase),
        }


@dataclass(frozen=True)
class CenterCrop(_OneView):
    """torchvision's ``Resize`` of the shorter side, then ``CenterCrop``: for evaluation.

    Args:
        size: Side of the view in pixels.
        resize: Length of the shorter side after resizing, in pixels; without it
            ``size * 256 / 224``, rounded.
        filter: Interpolation.
    """

    size: int = 224
    resize: int | None = None
    filter: Filter = "bilinear"

    def _config(self) -> dict[str, Any]:
        size = _side("size", self.size)
        resize = round(size * 256 / 224) if self.resize is None else _side("resize", self.resize)
        filter = _filter(self.filter)
        return {"kind": "center_crop", "size": size, "resize": resize, "filter": filter}


@dataclass(frozen=True)
class Squash(_OneView):
    """The whole image resized to a square, whatever its shape, then its centre: for evaluation.

    Args:
        size: Side of the view in pixels.
        resize: Side of the square in pixels, at least ``size``; without it ``size``.
        filter: Interpolation.
    """

    size: int = 224
    resize: int | None = None
    filter: Filter = "bilinear"

    def _config(self) -> dict[str, Any]:
        size = _side("size", self.size)
        resize = size if self.resize is None else _side("resize", self.resize)
        return {"kind": "squash", "size": size, "resize": resize, "filter": _filter(self.filter)}


Transform = RandomResizedCrop | MultiCrop | CenterCrop | Squash
"""What :class:`nepa.Loader` takes as ``transform``."""
