"""The native module: private, for the Python files beside it."""

from collections.abc import Sequence
from typing import Any, final

__version__: str

def available_cores() -> int:
    """Cores that this process may use: affinity and cgroup quota counted in."""

@final
class Array:
    """One array of a batch, lent without a copy: memory stays the batch's until this is dropped."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str:
        """``"float32"``, ``"bfloat16"``, ``"uint8"`` or ``"int64"``."""
    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda:N"``."""
    @property
    def nbytes(self) -> int: ...
    @property
    def data_ptr(self) -> int: ...
    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

@final
class Batch:
    @property
    def epoch(self) -> int: ...
    @property
    def num_views(self) -> int: ...
    def __len__(self) -> int: ...
    def view(self, index: int) -> Array: ...
    def labels(self) -> Array | list[str | None] | None:
        """Integers, -1 where a row has none; or names, None where a row has none."""
    def ids(self) -> list[tuple[int, int, int]]: ...
    def crops(self) -> list[list[tuple[float, float, float, float, bool]]]: ...
    def replaced(self) -> list[tuple[int, int, int] | None]: ...
    def columns(self) -> Any | None:
        """An object with ``__arrow_c_array__``."""

@final
class Loader:
    def __new__(
        cls,
        dataset: str,
        io: str,
        loader: str,
        *,
        columns: Sequence[str],
        dtype: str,
        layout: str,
        patch_size: int | None,
        device: str,
    ) -> Loader:
        """Opens the data set. JSON texts of DatasetConfig, IoConfig and LoaderConfig."""
    def next(self) -> Batch | None: ...
    def seek(self, epoch: int, batch: int) -> None: ...
    def load_state(self, state: str) -> None: ...
    def state(self) -> str: ...
    @property
    def position(self) -> tuple[int, int]:
        """Epoch of the next batch, and batches of that epoch before it."""
    @property
    def batches_per_epoch(self) -> int: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def num_shards(self) -> int: ...
    @property
    def class_names(self) -> list[str] | None: ...
    def shard_url(self, index: int) -> str | None: ...
    def stats(self) -> str | None:
        """JSON; None while nothing runs."""
    def stop(self) -> None: ...

@final
class Packer:
    def __new__(
        cls,
        url: str,
        split: str,
        classes: list[str] | None,
        row_group_bytes: int,
        shard_bytes: int,
        check: bool,
    ) -> Packer: ...
    def add(self, data: bytes, label: int | str | None, path: str | None) -> None: ...
    def finish(self) -> list[tuple[str, int, int]]:
        """Name, images and bytes of each shard."""
    def abort(self) -> list[tuple[str, int, int]]:
        """The shards that are whole and stay."""
