"""The loader: an iterable of batches, one `for` an epoch, with an exact position."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from . import _frameworks, _nepa, _ranks, _settings
from ._batch import Batch
from ._checks import boolean, finite, whole, wrong
from ._errors import SettingError, StateError
from .transforms import RandomResizedCrop, Transform

if TYPE_CHECKING:
    from typing_extensions import Self

    from ._profile import Profile

Url = str | PathLike[str]


class Loader:
    """Batches of images from Parquet shards, read, decoded and augmented on threads of its own.

    One ``for`` is one epoch, and the next ``for`` the next epoch; reading ahead goes on from one to
    the other::

        loader = nepa.Loader("s3://bucket/train", batch_size=256, seed=1)
        for epoch in range(90):
            for images, labels in loader:  # [256, 3, 224, 224] float32, [256] int64
                ...

    The order and every crop depend on the data set, the seed, the batch size over all processes and
    the epoch alone, not on how many processes, threads or machines there are.

    Use it on one thread at a time. A loader does not survive a ``fork`` and cannot be pickled: open
    one in each process.

    Args:
        urls: What is read: a folder, a file, a glob or a URL (``s3://``, ``gs://``, ``az://``,
            ``https://``), or several of them.
        batch_size: Images of this process in a batch, as in PyTorch; 256 if neither this nor
            ``global_batch_size`` is given.
        global_batch_size: Instead, images in a batch over all processes; divisible by their number.
        transform: Which views of an image a sample is, from :mod:`nepa.transforms`.
        dtype: ``"float32"`` or ``"bfloat16"``, normalised; ``"uint8"``, as decoded.
        layout: ``"NCHW"``: ``[B, 3, S, S]``. ``"NHWC"``: ``[B, S, S, 3]``. ``"patches"``:
            ``[B, (S / p)**2, 3 * p * p]``, the patches row by row, each as ``[3, p, p]``.
        patch_size: Side ``p`` of a patch in pixels, a divisor of ``S``; with ``"patches"`` alone.
        mean: Of R, G, B: a pixel is ``(rgb / 255 - mean) / std``. The default maps to -1 to 1;
            ImageNet's are ``(0.485, 0.456, 0.406)`` and ``(0.229, 0.224, 0.225)``.
        std: Of R, G, B.
        label_column: Column of the labels; found by its name or type without it, ``""`` for none.
            Integers give int64 ``[B]``, strings a list of them.
        image_column: Column of the images; found by its name or type without it.
        columns: Further columns that :attr:`nepa.Batch.columns` gives.
        split: Reads the shards of one split alone: ``"train"``, ``"validation"``, ``"test"``.
        index: Path or URL of the data set's index (``nepa inspect --index``), so that nothing is listed.
        mixture: Instead of ``urls``: data sets and their weights, as
            ``{"s3://a": 2, "s3://b": 1}``; each has its share of every batch.
        strict: Whether what ``nepa inspect`` warns of is an error.
        rank: Number of this process, from 0; given together with ``world_size``. Without them, what
            torchrun (RANK, WORLD_SIZE), Open MPI or Slurm's srun says; else 0 of 1.
        world_size: Number of processes; each gets its part of every batch.
        lanes: Equal shares of the data, each shuffled and read by itself. With 1, the default, each
            process reads all data. With a multiple of ``world_size``, each reads its share alone,
            and the number of processes may be any divisor of it.
        seed: Of order and augmentation.
        epochs: Epochs after which all ends; without it there is no end.
        shuffle: Whether samples are shuffled; False for evaluation.
        drop_last: Whether an epoch's last incomplete batch is dropped.
        shuffle_window_bytes: Samples of about so many bytes (unpacked) of row groups are mixed.
        decode_threads: Threads that decode; without it one for each core that this process may use,
            divided by torchrun's LOCAL_WORLD_SIZE.
        prefetch_batches: Finished batches ahead.
        max_kept_batches: Batches that may be kept at once; one more is a
            :class:`nepa.KeptTooManyError`. Memory is made for as many as are kept.
        max_bad_fraction: Share of images that cannot be decoded at which iteration ends with a
            :class:`nepa.ImageError`, judged after the first 1,000; until then others take their
            place.
        bad_samples_path: File in which they are listed, a line of JSON each; logged without it.
        cache_dir: Local folder that keeps what was fetched.
        max_requests: Requests to the store at once, 32 without it.
        device: ``"cpu"``, or ``"cuda:0"``: decoded there by nvJPEG, in a build with CUDA.
        pin_memory: Whether images and labels are copied into page-locked memory of PyTorch's, once,
            so that ``.to("cuda", non_blocking=True)`` runs beside the computation; with torch alone.
        framework: Arrays are ``"torch"`` tensors, ``"numpy"`` or ``"jax"`` arrays, or
            ``"dlpack"``: objects with ``__dlpack__`` for any other. Without it torch where that is
            installed, else ``"dlpack"``. All are the loader's memory, not copies.

    Attributes:
        batch_size: Images of this process in a batch.
        global_batch_size: Images in a batch over all processes.
        rank: Number of this process.
        world_size: Number of processes.
        transform: Which views of an image a sample is.
        framework: Whose arrays the batches have: ``"torch"``, ``"numpy"``, ``"jax"``, ``"dlpack"``.

    Raises:
        nepa.SettingError: A setting cannot work; the message names it.
        nepa.DatasetError: The data set cannot be read.
        nepa.DeviceError: The device is not there.
    """

    def __init__(
        self,
        urls: Url | Iterable[Url] | None = None,
        *,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        transform: Transform = RandomResizedCrop(224),
        dtype: Literal["float32", "bfloat16", "uint8"] = "float32",
        layout: Literal["NCHW", "NHWC", "patches"] = "NCHW",
        patch_size: int | None = None,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        label_column: str | None = None,
        image_column: str | None = None,
        columns: Iterable[str] = (),
        split: str | None = None,
        index: Url | None = None,
        mixture: Mapping[str, float] | Mapping[PathLike[str], float] | None = None,
        strict: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        lanes: int | None = None,
        seed: int = 0,
        epochs: int | None = None,
        shuffle: bool = True,
        drop_last: bool = True,
        shuffle_window_bytes: int = 512 << 20,
        decode_threads: int | None = None,
        prefetch_batches: int = 2,
        max_kept_batches: int = 16,
        max_bad_fraction: float = 0.01,
        bad_samples_path: Url | None = None,
        cache_dir: Url | None = None,
        max_requests: int | None = None,
        device: str = "cpu",
        pin_memory: bool = False,
        framework: Literal["torch", "numpy", "jax", "dlpack"] | None = None,
    ) -> None:
        self._dataset = _settings.dataset(
            urls=urls,
            mixture=mixture,
            image_column=image_column,
            label_column=label_column,
            split=split,
            index=index,
            strict=strict,
        )
        self._io = _settings.io(max_requests=max_requests, cache_dir=cache_dir)
        self.rank, self.world_size = _ranks.place(rank, world_size)
        self.batch_size, self.global_batch_size = _settings.batch_sizes(
            batch_size, global_batch_size, self.world_size
        )
        self._config = _settings.loader(
            transform=transform,
            mean=mean,
            std=std,
            global_batch=self.global_batch_size,
            rank=self.rank,
            world_size=self.world_size,
            lanes=lanes,
            seed=seed,
            epochs=epochs,
            shuffle=shuffle,
            drop_last=drop_last,
            shuffle_window_bytes=shuffle_window_bytes,
            decode_threads=decode_threads,
            prefetch_batches=prefetch_batches,
            max_kept_batches=max_kept_batches,
            max_bad_fraction=max_bad_fraction,
            bad_samples_path=bad_samples_path,
        )
        arrays = _settings.arrays(
            dtype=dtype,
            layout=layout,
            patch_size=patch_size,
            device=device,
        )
        _settings.check_patches(arrays["patch_size"], transform)
        self.transform = transform
        self.framework = _frameworks.choose(framework, dtype=dtype, device=arrays["device"])
        self._convert = _frameworks.converter(
            self.framework, pin_memory=boolean("pin_memory", pin_memory), device=arrays["device"]
        )
        self._native = _nepa.Loader(
            json.dumps(self._dataset),
            json.dumps(self._io),
            json.dumps(self._config),
            columns=_settings.columns(columns),
            **arrays,
        )
        # Only the iterator of the latest turn may go on.
        self._turn = 0
        # Whether a `for` that begins in mid-epoch goes on there: the position was loaded, not left.
        self._goes_on = True

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._native.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        """One epoch; what is left of it after :meth:`load_state_dict`.

        After a ``break`` in mid-epoch this is the next epoch, from its start. After the last of
        ``epochs`` there is nothing. Only the newest iterator goes on; an older one raises
        ``RuntimeError``.
        """
        self._turn += 1
        epoch, batch = self._native.position
        if batch > 0 and not self._goes_on:
            epoch += 1
            self._native.seek(epoch, 0)
        return _Epoch(self, self._turn, epoch)

    @property
    def epoch(self) -> int:
        """Epoch of the next batch, from 0. After a ``break`` still the one that was left."""
        return self._native.position[0]

    def set_epoch(self, epoch: int) -> None:
        """Makes the next ``for`` this epoch, from its start.

        Costs nothing where the loader stands there already, as it does in a plain loop over epochs.
        A position within this epoch that :meth:`load_state_dict` has set is kept.
        """
        epoch = whole("epoch", epoch)
        epochs = self._config["epochs"]
        if epochs is not None and epoch >= epochs:
            raise wrong("epoch", epoch, f"less than the loader's epochs, {epochs}")
        stands_in, batch = self._native.position
        if stands_in != epoch or (batch > 0 and not self._goes_on):
            self._native.seek(epoch, 0)
            self._turn += 1

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch handed out, and of what: small, plain data (JSON).

        All processes stand at the same position; any one's state is good for any number of them.
        """
        state: dict[str, Any] = json.loads(self._native.state())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to a position that :meth:`state_dict` gave: the next ``for`` yields the very batches
        that would have come next in that epoch.

        Raises:
            nepa.StateError: It is of another data set, seed, batch size or order; nothing changes.
        """
        if not isinstance(state, Mapping):
            raise StateError(f"state is {state!r}, but it must be what state_dict() gave")
        try:
            text = json.dumps(dict(state))
        except (TypeError, ValueError) as error:
            raise StateError(f"state is not what state_dict() gave: {error}") from error
        self._native.load_state(text)
        self._turn += 1
        self._goes_on = True

    @property
    def num_samples(self) -> int:
        """Samples of the data set."""
        return self._native.num_samples

    @property
    def num_shards(self) -> int:
        """Shards of the data set."""
        return self._native.num_shards

    def shard_url(self, index: int) -> str:
        """URL or path of a shard, without secrets; ``index`` is a :class:`nepa.SampleId`'s."""
        url = self._native.shard_url(whole("index", index))
        if url is None:
            raise wrong("index", index, f"less than the number of shards, {self.num_shards}")
        return url

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes by their index, where the data set has them."""
        return self._native.class_names

    def stats(self) -> dict[str, Any]:
        """What each stage did since the threads were started: how long it worked and waited, and
        which limits the rate. Empty before the first batch."""
        stats: dict[str, Any] = json.loads(self._native.stats() or "{}")
        return stats

    def profile(self, seconds: float = 30) -> Profile:
        """Measures for so many seconds what limits reading this data set with these settings, and
        what to change. See :func:`nepa.profile`."""
        from ._profile import profile

        if "mixture" in self._dataset:
            raise SettingError(
                "a mixture cannot be profiled: give its data sets to nepa.profile one by one"
            )
        return profile(
            self._dataset["urls"],
            seconds=finite("seconds", seconds),
            batch_size=self.batch_size,
            image_size=self.transform.view_sizes[0],
            decode_threads=self._config["decode_threads"],
            max_requests=self._io.get("max_requests"),
            shuffle_window_bytes=self._config["shuffle_window_bytes"],
            image_column=self._dataset.get("image_column"),
            split=self._dataset.get("split"),
            strict=self._dataset["strict"],
            index=self._dataset.get("index"),
        )

    def close(self) -> None:
        """Stops all threads and ends the running ``for``. Batches stay good, the position is kept,
        and a later ``for`` starts the threads again.

        A loader that is not referred to any more closes by itself.
        """
        self._turn += 1
        self._native.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<nepa.Loader of {self.num_samples} samples in {self.num_shards} shards, {len(self)} "
            f"batches of {self.batch_size}, rank {self.rank} of {self.world_size}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a nepa.Loader cannot be pickled or copied, as its threads belong to this process: "
            "open one with the same settings in each process"
        )


class _Epoch(Iterator[Batch]):
    """The batches of one epoch that are still to come."""

    def __init__(self, loader: Loader, turn: int, epoch: int) -> None:
        self._loader = loader
        self._turn = turn
        self._epoch = epoch
        self._is_over = False

    def __next__(self) -> Batch:
        if self._is_over:
            raise StopIteration
        loader = self._loader
        if loader._turn != self._turn:
            raise RuntimeError(
                "this iterator of a nepa.Loader has ended: a newer one, set_epoch, load_state_dict "
                "or close has moved the loader; one loader gives one epoch at a time"
            )
        native = loader._native.next()
        if native is None:
            self._is_over = True
            raise StopIteration
        loader._goes_on = False
        self._is_over = loader._native.position[0] != self._epoch
        return Batch(native, loader._convert)
