"""The work on each record that is packed: read it, and make of its images what shall be stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchslip.errors import MissingDependencyError, SampleError
from torchslip.pack._measure import channel_histogram
from torchslip.pack._recipe import Recipe
from torchslip.pack._transcode import store_image
from torchslip.sources import Record, Source

__all__ = ["PrepareRecords", "Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """A record as it will be stored, or why it cannot be.

    Attributes:
        index: Which record of the source.
        record: Field name to value; empty if it cannot be stored.
        image_sizes: Image field to height and width.
        histograms: Image field to how many pixels have each value, if that is wanted.
        reason: Why it cannot be stored, or empty.
    """

    index: int
    record: Record
    image_sizes: Mapping[str, tuple[int, int]]
    histograms: Mapping[str, npt.NDArray[np.int64]]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PrepareRecords:
    """The work on a chunk of records, for `map_records`.

    Attributes:
        recipe: How they are packed.
    """

    recipe: Recipe

    def __call__(self, source: Source, ids: range) -> tuple[list[Row], int]:
        try:
            records: list[Record | SampleError] = list(source.fetch(ids))
        except SampleError:  # one of them, which says not which
            records = [_fetch_one(source, index) for index in ids]
        images = self.recipe.image_fields
        read_bytes = sum(len(record[name]) for record in records if isinstance(record, dict) for name in images)
        return [self._row(source, index, record) for index, record in zip(ids, records, strict=True)], read_bytes

    def _row(self, source: Source, index: int, found: Record | SampleError) -> Row:
        if isinstance(found, SampleError):
            return Row(index, {}, {}, {}, str(found))
        record = {name: found[name] for name in self.recipe.fields}
        sizes, histograms = {}, {}
        for name in self.recipe.image_fields:
            try:
                stored = store_image(
                    record[name], self.recipe.rule, pixels=self.recipe.pixels, verify=self.recipe.verify
                )
                if self.recipe.statistics:
                    histograms[name] = channel_histogram(stored.data)
            except (MissingDependencyError, MemoryError):
                raise
            except Exception as error:  # whatever a damaged file makes Pillow stumble over
                return Row(index, {}, {}, {}, str(error) or type(error).__name__)
            record[name], sizes[name] = stored.data, (stored.height, stored.width)
        return Row(index, record, sizes, histograms)


def _fetch_one(source: Source, index: int) -> Record | SampleError:
    try:
        return source.fetch([index])[0]
    except SampleError as error:
        return error
