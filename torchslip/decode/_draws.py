"""The random numbers of one view, for the samples of a batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from torchslip.random import derive_key, uniform

__all__ = ["Draws"]


class Draws:
    """Uniform numbers that depend on ``(seed, epoch, sample_id, view)`` and on nothing else.

    Args:
        sample_ids: int64 ``[B]``.
        seed: The dataset's seed.
        view: The name of the view, or its own seed, which other views may share.
        epoch: The epoch.
        batch_key: A number that names the global batch, for what is drawn once per batch.
    """

    def __init__(
        self, sample_ids: npt.NDArray[np.int64], *, seed: int, view: str | int, epoch: int, batch_key: int = 0
    ) -> None:
        self._ids = sample_ids
        self._key = derive_key(seed, "view", view)
        self._batch_key = batch_key
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._ids)

    def block(self, number: int) -> npt.NDArray[np.float64]:
        """Numbers 4 * `number` to 4 * `number` + 3 of every sample: float64 ``[B, 4]`` in [0, 1)."""
        return uniform(self._ids, key=self._key, epoch=self._epoch, block=number)

    def blocks(self, begin: int, end: int, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """The blocks from `begin` to before `end` of these rows, one behind the other: float64 ``[rows, 4 * blocks]``.

        Made all at once, because numpy takes as long for ten rows as for a hundred.
        """
        numbers = np.arange(begin, end)
        ids = np.repeat(self._ids[rows], len(numbers))
        values = uniform(ids, key=self._key, epoch=self._epoch, block=np.tile(numbers, len(rows)))
        return values.reshape(len(rows), 4 * len(numbers))

    def of_batch(self) -> npt.NDArray[np.float64]:
        """Four numbers that are equal for all samples of the global batch: float64 ``[4]`` in [0, 1)."""
        # Block 2**31 lies far beyond those that any view takes for a sample.
        key = np.array([self._batch_key], np.int64)
        numbers: npt.NDArray[np.float64] = uniform(key, key=self._key, epoch=self._epoch, block=1 << 31)[0]
        return numbers
