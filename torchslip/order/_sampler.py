"""Batches of sample ids for a plain `torch.utils.data.DataLoader`."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from torchslip.order._cursor import Cursor
from torchslip.order._mix import check_global_batch
from torchslip.order._order import Fingerprint, Order
from torchslip.order._share import Share, Tail
from torchslip.order._topology import Topology

__all__ = ["DistributedBatchSampler", "IndexBatch"]


class IndexBatch(list[int]):
    """The sample ids of one batch, with what else a dataset may want to know of it.

    It is a list of integers for every map-style dataset; ours also read `epoch`, `valid` and `key` from it, which so
    reach worker processes together with the ids they belong to.

    Attributes:
        epoch: The epoch that the batch belongs to.
        valid: False where ``tail="pad"`` repeats a sample; ``None`` under other policies.
        key: The first position of the global batch: equal on all ranks, for what is drawn once per batch.
        replayed: Whether another rank may have done this batch before; ``None`` without leases.
    """

    def __init__(
        self,
        ids: npt.NDArray[np.int64],
        *,
        epoch: int,
        valid: npt.NDArray[np.bool_] | None,
        key: int,
        replayed: bool | None = None,
    ) -> None:
        super().__init__(ids.tolist())
        self.epoch = epoch
        self.valid = valid
        self.key = key
        self.replayed = replayed

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_index_batch, (np.asarray(self, np.int64), self.epoch, self.valid, self.key, self.replayed)


def _make_index_batch(
    ids: npt.NDArray[np.int64], epoch: int, valid: npt.NDArray[np.bool_] | None, key: int, replayed: bool | None
) -> IndexBatch:
    return IndexBatch(ids, epoch=epoch, valid=valid, key=key, replayed=replayed)


class DistributedBatchSampler(Sampler[list[int]]):
    """Divides the global batches of an order over ranks; resumes on any other number of them.

    ::

        sampler = ts.DistributedBatchSampler(ts.Shuffled(len(dataset), seed=17), batch_size=64)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=8)

    Every pass takes the next epoch; `set_epoch` chooses another. In a plain `DataLoader` the sampler runs ahead of the
    training loop by what the workers prefetch, and `state_dict` with it: use `ts.DataLoader`, which counts the batches
    that were delivered, or ``state_at(batches)`` with your own count.

    Args:
        order: Which sample stands at which position.
        batch_size: Samples per rank and batch.
        rank: This rank; default: `torch.distributed` if it is initialised, else 0.
        world_size: The number of ranks; default: as for `rank`, else 1.
        tail: ``drop``, ``pad`` or ``uneven``, see `Share`. With ``pad``, our datasets mark the repeats in
            ``batch["valid"]``.
        fingerprint: Identifies the dataset in saved states, so that a state of another dataset is refused; a source
            has it as ``source.fingerprint``.
    """

    def __init__(
        self,
        order: Order,
        *,
        batch_size: int,
        rank: int | None = None,
        world_size: int | None = None,
        tail: Tail = "uneven",
        fingerprint: str | None = None,
    ) -> None:
        self.order = order
        self._batch_size, self._rank, self._world_size, self._tail = batch_size, rank, world_size, tail
        _ = self.share  # reports bad arguments here rather than in the first pass
        self.fingerprints: Fingerprint = {"source": fingerprint, **order.fingerprint}
        """Identifies the dataset and the order in saved states."""
        self._epoch = 0
        self._start = 0
        self._handed_out = 0
        self._pass: Literal["chosen", "loaded", "begun"] = "chosen"

    @property
    def share(self) -> Share:
        """The division of the epoch, as the process group stands now."""
        topology = Topology.resolve(self._rank, self._world_size)
        return Share(len(self.order), self._batch_size, topology, self._tail)

    def __len__(self) -> int:
        """Batches per rank in a whole epoch."""
        return self.share.count()

    @property
    def epoch(self) -> int:
        """The epoch of the latest pass, or the one that `set_epoch` or `load_state_dict` has named since."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Begin the next pass at the start of `epoch`; if a state of that epoch was just loaded, go on from there."""
        epoch = operator.index(epoch)
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}.")
        if self._pass == "begun" or epoch != self._epoch:
            self._epoch, self._start, self._handed_out = epoch, 0, 0
        self._pass = "chosen"

    @property
    def upcoming(self) -> tuple[int, int]:
        """Epoch and position that the next pass begins at."""
        return (self._epoch + 1, 0) if self._pass == "begun" else (self._epoch, self._start)

    def __iter__(self) -> Iterator[list[int]]:
        # A state from the end of its epoch goes on with the next one, unless `set_epoch` named the old one.
        ended = self._pass == "loaded" and not self.share.count(self._start)
        if self._pass == "begun" or ended:
            self._epoch, self._start, self._handed_out = self._epoch + 1, 0, 0
        self._pass = "begun"
        epoch, start, share = self._epoch, self._start, self.share
        check_global_batch(self.order, share.global_batch)
        for number in range(share.count(start)):
            part = share.batch(start, number)
            self._handed_out = number + 1
            yield IndexBatch(
                self.order.at(part.positions, epoch=epoch),
                epoch=epoch,
                valid=part.valid if share.tail == "pad" else None,
                key=share.first_position(start, number),
            )

    def state_dict(self) -> dict[str, Any]:
        """The state after the batches that this sampler has handed out."""
        return self.state_at(self._handed_out)

    def state_at(self, batches: int) -> dict[str, Any]:
        """The state after the first `batches` batches of the latest pass, however far the sampler has run ahead."""
        position = self.share.end(self._start, batches)
        return Cursor(self._epoch, position, self.fingerprints).state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state` in the next pass, whatever the number of ranks and the batch size it was saved with.

        Raises:
            StateError: If the state belongs to another dataset, seed, order or version.
        """
        cursor = Cursor.from_state_dict(state, expected=self.fingerprints)
        self._epoch, self._start, self._handed_out, self._pass = cursor.epoch, cursor.position, 0, "loaded"
