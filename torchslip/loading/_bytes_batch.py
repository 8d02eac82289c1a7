"""`BytesBatch`: the stored bytes of some samples, one behind the other."""

from __future__ import annotations

import weakref
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info

from torchslip.loading._byte_budget import ByteBudget, Lease
from torchslip.loading._byte_plan import Band

__all__ = ["BytesBatch"]


class BytesBatch:
    """The stored bytes of the samples of one batch.

    Its bytes count against the cap of the dataset until the batch and all tensors taken from it are freed, or until
    the next batch was handed over. What is kept longer is the caller's, and no longer counted.
    """

    def __init__(
        self,
        payload: torch.Tensor,
        offsets: npt.NDArray[np.int64],
        ids: npt.NDArray[np.int64],
        labels: npt.NDArray[np.int64] | None,
        valid: npt.NDArray[np.bool_] | None,
        position: int,
        bands: tuple[Band, Band | None],
    ) -> None:
        # The array carries the account: it lives as long as any tensor over the same bytes.
        self._payload, self._array = payload, payload.numpy()
        self._offsets, self._ids, self._labels, self._valid = offsets, ids, labels, valid
        self.position, self.bands = position, bands
        self._account: tuple[int, Lease] | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return f"BytesBatch({len(self)} samples, {self.payload_bytes} bytes)"

    @property
    def payload_bytes(self) -> int:
        """Bytes of all samples together."""
        return len(self._array)

    @property
    def sample_ids(self) -> list[int]:
        """The ids of the samples."""
        ids: list[int] = self._ids.tolist()
        return ids

    @property
    def offsets(self) -> list[int]:
        """Where each sample begins in the payload, and behind the last one where it ends."""
        offsets: list[int] = self._offsets.tolist()
        return offsets

    @cached_property
    def payload(self) -> bytes:
        """All samples, one behind the other: a copy, made when it is first asked for and kept with the batch.

        `sample` and `to_torch` copy nothing.
        """
        return self._array.tobytes()

    @property
    def label_ids(self) -> list[int] | None:
        """The labels of the samples; None if the source has none."""
        return None if self._labels is None else self._labels.tolist()

    @property
    def valid(self) -> list[bool] | None:
        """False where ``tail="pad"`` repeats a sample; None under other policies."""
        return None if self._valid is None else self._valid.tolist()

    def sample(self, index: int) -> memoryview:
        """The bytes of one sample, by its place in the batch, without a copy."""
        index = range(len(self))[index]
        return memoryview(self._array[self._offsets[index] : self._offsets[index + 1]])  # type: ignore[arg-type]

    def to_torch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Payload (uint8 ``[bytes]``), offsets (int64 ``[B + 1]``) and sample ids (int64 ``[B]``).

        The payload is the batch's own memory, which nothing else writes to.
        """
        return torch.from_numpy(self._array), torch.from_numpy(self._offsets), torch.from_numpy(self._ids)

    def to_torch_with_labels(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `to_torch` gives, and the labels (int64 ``[B]``).

        Raises:
            ValueError: If the source has no labels.
        """
        if self._labels is None:
            raise ValueError("The source has no labels; use to_torch(), or open it with label_mode='imagefolder'.")
        return (*self.to_torch(), torch.from_numpy(self._labels))

    def pin_memory(self) -> BytesBatch:
        """A copy in page-locked memory, for `DataLoader(..., pin_memory=True)`."""
        pinned = self._with(self._payload.pin_memory())
        pinned.attach(*self._detach())
        return pinned

    def _with(self, payload: torch.Tensor) -> BytesBatch:
        return BytesBatch(payload, self._offsets, self._ids, self._labels, self._valid, self.position, self.bands)

    def attach(self, budget: ByteBudget | None, lease: Lease | None) -> None:
        """Count the bytes of this batch until it is freed."""
        if budget is not None and lease is not None:
            self._account = (budget.key, lease)
            self._finalizer = weakref.finalize(self._array, budget.release, lease)
            self._finalizer.atexit = False

    def _detach(self) -> tuple[ByteBudget | None, Lease | None]:
        """Take the account away from this batch, for the one that follows it."""
        if self._finalizer is None or self._account is None or self._finalizer.detach() is None:
            return None, None
        key, lease = self._account
        return ByteBudget.known(key), lease

    def __reduce__(self) -> tuple[Any, ...]:
        # On its way from a worker to the main process: the copy over there carries the account.
        _, lease = self._detach() if get_worker_info() is not None else (None, None)
        account = self._account if lease is not None else None
        parts = (self._payload, self._offsets, self._ids, self._labels, self._valid, self.position, self.bands)
        return _arrive, (account, *parts)


def _arrive(account: tuple[int, Lease] | None, *parts: Any) -> BytesBatch:
    batch = BytesBatch(*parts)
    if account is not None and (budget := ByteBudget.known(account[0])) is not None:
        batch.attach(budget, account[1])
        budget.arrived(batch, account[1])
    return batch
