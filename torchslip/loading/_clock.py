"""Which epoch a pass belongs to, agreed between the main process and its workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import get_worker_info

from torchslip.random import derive_key

__all__ = ["Pass", "PassClock"]

_EPOCH_BITS, _GENERATION_BITS = 23, 8
_EPOCHS, _GENERATIONS = 1 << _EPOCH_BITS, 1 << _GENERATION_BITS


@dataclass(frozen=True, slots=True)
class Pass:
    """One iteration over the dataset: it begins at `position` of `epoch`."""

    epoch: int
    position: int


@dataclass(frozen=True, slots=True)
class _Reading:
    """The shared words at one moment: what was set in `generation`, and the last pass, if one `began` since."""

    generation: int
    chosen: Pass
    last_token: int
    began: bool
    last_epoch: int

    @property
    def latest(self) -> Pass:
        return Pass(self.last_epoch, 0) if self.began and self.last_epoch != self.chosen.epoch else self.chosen

    @property
    def next(self) -> Pass:
        return Pass(self.last_epoch + 1, 0) if self.began else self.chosen


class PassClock:
    """Gives every pass the next epoch, in whatever processes it runs.

    `torch.utils.data.DataLoader` copies the dataset into its workers and tells it nothing of later passes, so the
    little that must be known lies in shared memory: which epoch was set last, and which pass ran last. Workers
    recognise their pass by the seed that the loader gives to all workers of a pass. Each of them computes the same
    epoch and writes the same word, so no lock is needed.
    """

    def __init__(self) -> None:
        # set word, start position, pass word, generation that workers ran in
        self._shared = torch.zeros(4, dtype=torch.int64)
        self._shared.share_memory_()  # type: ignore[no-untyped-call]
        self._passes_here = 0
        self.token = 0
        """Names the pass that began last in this process: the same in all workers of a pass."""
        self.set(0, 0)

    def set(self, epoch: int, position: int) -> None:
        """The next pass begins at `position` of `epoch`.

        Raises:
            ValueError: If `epoch` is negative or 2**23 or more.
        """
        if not 0 <= epoch < _EPOCHS:
            raise ValueError(f"epoch must lie in [0, {_EPOCHS}), got {epoch}.")
        generation = (self._read().generation + 1) % _GENERATIONS
        self._shared[1] = position
        self._shared[0] = generation << _EPOCH_BITS | epoch

    @property
    def latest(self) -> Pass:
        """The pass that began last; if none has since the epoch was set, the one that would."""
        return self._read().latest

    @property
    def next(self) -> Pass:
        """The pass that would begin now."""
        return self._read().next

    def begin(self, override: Pass | None = None) -> Pass:
        """Begin a pass in this process.

        Args:
            override: Where to begin, instead of what the clock says.
        """
        worker = get_worker_info()
        self._passes_here += 1
        base_seed = worker.seed - worker.id if worker is not None else None
        token = self.token = derive_key(base_seed, self._passes_here) & 0xFFFFFFFF
        # One reading for all decisions: another worker of this pass may write at any moment.
        reading = self._read()
        if override is not None:
            current = override
        elif reading.last_token == token and reading.began:
            current = reading.latest
        else:
            current = reading.next
        word = (token << _GENERATION_BITS | reading.generation) << _EPOCH_BITS | current.epoch
        self._shared[2] = word - (1 << 64) if word >= 1 << 63 else word
        if worker is not None:
            self._shared[3] = reading.generation + 1
        return current

    @property
    def ran_in_workers(self) -> bool:
        """Whether worker processes have run a pass since the epoch was last set."""
        return int(self._shared[3]) == self._read().generation + 1

    def _read(self) -> _Reading:
        chosen, position, last, _ = self._shared.tolist()
        generation, epoch = divmod(chosen, _EPOCHS)
        rest, last_epoch = divmod(last & ((1 << 64) - 1), _EPOCHS)
        last_token, last_generation = divmod(rest, _GENERATIONS)
        return _Reading(generation, Pass(epoch, position), last_token, last_generation == generation, last_epoch)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy made by pickle or deepcopy has plain memory, which workers would not share.
        self.__dict__.update(state)
        self._shared.share_memory_()  # type: ignore[no-untyped-call]
