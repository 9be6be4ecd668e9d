"""The errors of nepa. The native module raises them by these names."""

from __future__ import annotations


class NepaError(Exception):
    """Anything that goes wrong in nepa; the message says what, where, why and what to do.

    Attributes:
        object: URL or path of the object (without secrets) where it happened, if it is one place.
        row_group: Index of the row group in that object, as far as known.
        row: Row within the row group, as far as known.
    """

    def __init__(
        self,
        message: str = "",
        object: str | None = None,
        row_group: int | None = None,
        row: int | None = None,
    ) -> None:
        super().__init__(message)
        self.object = object
        self.row_group = row_group
        self.row = row


class DatasetError(NepaError):
    """A data set cannot be read: its store, a shard's footer, its columns."""


class ImageError(NepaError):
    """Too many images are bad, or nothing can take the place of one."""


class SettingError(NepaError, ValueError):
    """A setting cannot work; the message names it."""


class StateError(NepaError, ValueError):
    """A state belongs to another data set or other settings, or is no state."""


class DeviceError(NepaError, RuntimeError):
    """A device, or its decoder, failed or is not there."""


class KeptTooManyError(NepaError, BufferError):
    """More batches are kept at once than ``max_kept_batches`` allows."""


class ForkError(NepaError, RuntimeError):
    """A loader or batch was used in a process that was forked after it was opened."""
