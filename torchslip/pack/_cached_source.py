"""A source whose records come from its packed form."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchslip.errors import SampleError
from torchslip.sources import MDS, Record, Schema, Source, checked_indices, lend

__all__ = ["CachedSource"]

# How often to look whether another process has finished it.
_LOOK_SECONDS = 2.0
_Fetch = Callable[[Source, Sequence[int]], list[Record]]
_proof = logging.getLogger("torchslip.proof")


class CachedSource:
    """The records of `source`, from `packed` where it has them. Everything else is that of `source`.

    Args:
        source: What was packed.
        packed: What became of it; None if it is not done.
        fingerprint: Of the records, in saved states.
        find: Looks whether it is done.
    """

    def __init__(self, source: Source, packed: MDS | None, *, fingerprint: str, find: Callable[[], MDS | None]) -> None:
        self._source = source
        self._fingerprint = fingerprint
        self._find = find
        self._looked = -_LOOK_SECONDS
        self._packed: MDS | None = None
        self._left_out = np.zeros(0, np.int64)
        self._warned_in = 0
        if packed is not None:
            self._use(packed)

    def _use(self, packed: MDS) -> MDS:
        skipped = packed.sidecar.skipped if packed.sidecar is not None else ()
        self._left_out = np.array([each["id"] for each in skipped], np.int64)
        self._packed = packed
        return packed

    def __len__(self) -> int:
        return len(self._source)

    def __repr__(self) -> str:
        return f"{self._source!r} through {self._packed or 'a cache that is not packed yet'!r}"

    def __getattr__(self, name: str) -> Any:
        # `fetch_into` too: it would be right, but slow, so it is left out.
        if name.startswith("_") or name == "fetch_into":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._source, name)

    @property
    def schema(self) -> Schema:
        """Those of the source."""
        return self._source.schema

    @property
    def fingerprint(self) -> str:
        """That of the source, if its images are kept."""
        return self._fingerprint

    @property
    def packed(self) -> MDS | None:
        """What the records come from; None while it is not done."""
        if self._packed is None and time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            if (found := self._find()) is not None:
                self._use(found)
        return self._packed

    def fetch(self, indices: Sequence[int]) -> list[Record]:
        """Read records. See `Source.fetch`."""
        return self._fetch(indices, _fetch)

    def lend(self, indices: Sequence[int]) -> list[Record]:
        """The same with images as the source that they come from lends them. See `Source`."""
        return self._fetch(indices, lend)

    def _fetch(self, indices: Sequence[int], fetch: _Fetch) -> list[Record]:
        ids = np.array(checked_indices(indices, len(self)), np.int64)
        if self.packed is None:
            return self._fetch_source(ids, fetch)
        if not len(self._left_out):
            return self._fetch_packed(ids, fetch)
        kept = ~np.isin(ids, self._left_out)
        records: list[Record] = [{}] * len(ids)
        for chosen, fetch_from in ((kept, self._fetch_packed), (~kept, self._fetch_source)):
            places = np.flatnonzero(chosen).tolist()
            for place, record in zip(places, fetch_from(ids[chosen], fetch) if places else [], strict=True):
                records[place] = record
        return records

    def prepare(self, indices: Sequence[int], counts: Sequence[int] | None = None) -> bool:
        """Say which records will be fetched next. See `Source`."""
        if self.packed is None:
            ahead = getattr(self._source, "prepare", None)
            return ahead is not None and bool(ahead(indices, counts))
        assert self._packed is not None
        ids = np.asarray(indices, np.int64)
        kept = ~np.isin(ids, self._left_out)
        chosen = None if counts is None else np.asarray(counts, np.int64)[kept].tolist()
        return self._packed.prepare(self._rows(ids[kept]).tolist(), chosen)

    def _rows(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return ids - np.searchsorted(self._left_out, ids)

    def _fetch_source(self, ids: npt.NDArray[np.int64], fetch: _Fetch) -> list[Record]:
        return fetch(self._source, ids.tolist())

    def _fetch_packed(self, ids: npt.NDArray[np.int64], fetch: _Fetch) -> list[Record]:
        assert self._packed is not None
        try:
            return fetch(self._packed, self._rows(ids).tolist())
        except SampleError as error:
            if self._warned_in != os.getpid():
                self._warned_in = os.getpid()
                _proof.warning("%s", {"event": "packed_cache_unreadable", "reason": str(error)})
        return self._fetch_source(ids, fetch)


def _fetch(source: Source, indices: Sequence[int]) -> list[Record]:
    return source.fetch(indices)
