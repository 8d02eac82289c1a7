"""Page-locked memory between a batch of a worker and the device: written, copied from, and only then written again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = ["DEADLINE_SECONDS", "CopyEvent", "StagingRing", "wait_for"]

DEADLINE_SECONDS = 300.0
"""A copy takes milliseconds, behind what the device has to do before it."""

# What the caching allocator of CUDA aligns to; every type may begin there.
_ALIGNMENT_BYTES = 512
_FIRST_NAP_SECONDS, _LONGEST_NAP_SECONDS = 2e-5, 2e-3


class CopyEvent(Protocol):
    """Tells whether the copies before it are done, as `torch.cuda.Event`."""

    def query(self) -> bool:
        """Whether they are."""


def wait_for(event: CopyEvent, *, deadline_seconds: float = DEADLINE_SECONDS) -> None:
    """Return when the copies before `event` are done.

    Raises:
        RuntimeError: If they are not for `deadline_seconds`.
    """
    began, nap = time.monotonic(), _FIRST_NAP_SECONDS
    while not event.query():
        if time.monotonic() - began > deadline_seconds:
            raise RuntimeError(
                f"A copy to the device was not done after {deadline_seconds:g} seconds, where milliseconds are usual: "
                "the device hangs, or a kernel before it does. Look at the training step, and at nvidia-smi."
            )
        time.sleep(nap)
        nap = min(2 * nap, _LONGEST_NAP_SECONDS)


@dataclass(slots=True)
class _Slot:
    buffer: torch.Tensor
    event: CopyEvent | None = None


class StagingRing:
    """Buffers that are filled in turn.

    Args:
        slots: How many. With two, one batch is written while the one before it is copied.
        allocate: Makes a buffer: a number of bytes to uint8 ``[bytes]``.
        deadline_seconds: See `wait_for`.
    """

    def __init__(
        self,
        *,
        allocate: Callable[[int], torch.Tensor],
        slots: int = 2,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._allocate, self._deadline_seconds = allocate, deadline_seconds
        self._slots = [_Slot(torch.empty(0, dtype=torch.uint8)) for _ in range(slots)]
        self._next = 0

    def take(self, size_bytes: int) -> torch.Tensor:
        """The next buffer, uint8 of `size_bytes` or more, when nothing reads it any more; `sent` must follow."""
        slot = self._slots[self._next]
        if slot.event is not None:
            wait_for(slot.event, deadline_seconds=self._deadline_seconds)
            slot.event = None
        if len(slot.buffer) < size_bytes:
            slot.buffer = torch.empty(0, dtype=torch.uint8)  # before the larger one is there
            slot.buffer = self._allocate(size_bytes)
        return slot.buffer

    def stage(self, tensors: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
        """Copies in the next buffer, with the same strides, of all tensors that are dense and in host memory.

        Returns:
            ``id`` of each tensor to its copy; `sent` must follow.
        """
        places, total = [], 0
        for each in {id(each): each for each in tensors}.values():
            if each.is_cpu and each.layout == torch.strided:
                places.append((each, total))
                total += -(-each.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        buffer, staged = self.take(total), {}
        for each, begin in places:
            # Of a tensor that is expanded, a full one.
            like = torch.empty_like(each, device="meta")
            flat = buffer[begin : begin + each.nbytes].view(each.dtype)
            staged[id(each)] = flat.as_strided(like.shape, like.stride(), flat.storage_offset()).copy_(each)
        return staged

    def sent(self, event: CopyEvent) -> None:
        """The copies out of the buffer that was taken last are done when `event` is."""
        self._slots[self._next].event = event
        self._next = (self._next + 1) % len(self._slots)
