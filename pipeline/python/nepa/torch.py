"""For code that insists on ``torch.utils.data.DataLoader``."""
# mypy: allow-subclassing-any, disable-error-code="import-not-found"
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset as _IterableDataset
from torch.utils.data import get_worker_info

from ._errors import ForkError, SettingError
from ._loader import Loader

__all__ = ["IterableDataset"]


class IterableDataset(_IterableDataset[tuple[Any, Any]]):
    """A loader's batches as a dataset of PyTorch: yields ``(images, labels)``, batch by batch.

    Batches are made already, by threads of the loader's own, so the ``DataLoader`` must neither
    collate nor start workers::

        dataset = nepa.torch.IterableDataset(nepa.Loader("s3://bucket/train"))
        batches = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=0)

    Where a script takes any iterable, give it the :class:`nepa.Loader` itself.
    ``state_dict`` and ``load_state_dict`` are the loader's, as torchdata's ``StatefulDataLoader``
    looks for them.

    Args:
        loader: A loader with ``framework="torch"``, which is the default where torch is installed.
    """

    def __init__(self, loader: Loader) -> None:
        super().__init__()
        if not isinstance(loader, Loader) or loader.framework != "torch":
            raise SettingError(
                f"loader is {loader!r}, but it must be a nepa.Loader with framework='torch'"
            )
        self.loader = loader

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """One epoch, as :meth:`nepa.Loader.__iter__`."""
        if get_worker_info() is not None:
            raise ForkError(
                "nepa.torch.IterableDataset does not work in a worker process: give the DataLoader "
                "num_workers=0, as the loader decodes on threads of its own"
            )
        return ((batch.images, batch.labels) for batch in iter(self.loader))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """As :meth:`nepa.Loader.set_epoch`."""
        self.loader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """As :meth:`nepa.Loader.state_dict`."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As :meth:`nepa.Loader.load_state_dict`."""
        self.loader.load_state_dict(state)
