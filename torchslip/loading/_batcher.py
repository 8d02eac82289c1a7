"""From sample ids to a finished batch."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from torchslip.decode import Draws, Header, Output, Placement, View, make_decoder, read_header
from torchslip.errors import SampleError
from torchslip.loading._memory import empty_pictures
from torchslip.loading._statistics import Statistics
from torchslip.order import Order
from torchslip.random import derive_key, uniform
from torchslip.sources import Record, Source, image_fields, locate

__all__ = ["MAX_PIXELS", "Batch", "Batcher", "OnError"]

Batch = dict[str, Any]
OnError = Literal["raise", "skip"]

MAX_PIXELS = 178_956_970
"""Where Pillow refuses a picture too: a few kB of file can decode to any size."""

_MAX_REPLACEMENTS = 100
_proof = logging.getLogger("torchslip.proof")


@dataclass(frozen=True, slots=True)
class _View:
    key: str
    view: View

    def draws(self, ids: npt.NDArray[np.int64], seed: int, epoch: int, batch_key: int) -> Draws:
        name: str | int = self.key if self.view.seed is None else self.view.seed
        return Draws(ids, seed=seed, view=name, epoch=epoch, batch_key=batch_key)


class Batcher:
    """Reads records, decodes every view straight into its place in the batch, and replaces what cannot be read.

    Args:
        source: The records.
        views: One view, or batch key to view.
        order: Where replacements for unreadable samples are drawn from.
        seed: Seeds the views and the replacements.
        image_field: The field to decode; default: the only image field of the source.
        on_error: ``raise`` or ``skip``.
        return_params: Add ``<key>_box`` to the batch.
        decoder: The name of a decoder, or ``auto``.
        output: The colours of the pictures.
        max_pixels: Larger pictures are errors.
    """

    def __init__(
        self,
        source: Source,
        *,
        views: View | Mapping[str, View],
        order: Order,
        seed: int,
        image_field: str | None,
        on_error: OnError,
        return_params: bool,
        decoder: str,
        output: Output,
        max_pixels: int,
    ) -> None:
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error must be one of {', '.join(get_args(OnError))}; got {on_error!r}.")
        if output not in get_args(Output):
            raise ValueError(f"output must be one of {', '.join(get_args(Output))}; got {output!r}.")
        self.source = source
        self.statistics = Statistics()
        self._order = order
        self._seed = seed
        self._image_field = _choose_image_field(source, image_field)
        self._views = _name_views(views, self._image_field, source, output)
        self._output: Output = output
        self._on_error = on_error
        self._return_params = return_params
        self._decoder = make_decoder(decoder)
        self._max_pixels = max_pixels

    def __call__(
        self, ids: npt.NDArray[np.int64], *, epoch: int, key: int, valid: npt.NDArray[np.bool_] | None = None
    ) -> Batch:
        """Make the batch of these samples.

        Args:
            ids: int64 ``[B]``.
            epoch: Enters every random draw.
            key: Names the global batch, for what is drawn once per batch.
            valid: Put into the batch if given.

        Raises:
            SampleError: If a sample cannot be read or decoded and `on_error` is ``raise``; else if 100 replacements
                in a row cannot be read either.
        """
        ids = ids.copy()
        pictures = _Pictures(self._views, ids, self._seed, epoch, key, self._output)
        records = self._fill(pictures, ids, epoch, key)
        batch = pictures.in_batch(self._return_params)
        for name, kind in self.source.schema.items():
            if name != self._image_field:
                batch[name] = _column([record[name] for record in records], kind)
        batch["sample_id"] = torch.from_numpy(ids)
        # A field of the source may be called so.
        batch.setdefault("epoch", torch.full((len(ids),), epoch))
        if valid is not None:
            batch["valid"] = torch.from_numpy(valid)
        self.statistics.add(
            batches=1,
            samples=len(ids),
            encoded_bytes=sum(len(record[self._image_field]) for record in records),
        )
        return batch

    def bytes_of(self, ids: npt.NDArray[np.int64]) -> int | None:
        """Bytes of the tensors of a batch of these samples; None if a view has no fixed size."""
        sizes = [each.view.output_size(each.draws(ids, self._seed, 0, 0)) for each in self._views]
        if any(size is None for size in sizes):
            return None
        pixels = sum(
            part.channels * math.prod(part.size(*size))
            for size in filter(None, sizes)
            for part in _parts("", self._output)
        )
        # Numbers of 8 bytes: the id, the mask, the boxes, and fields of the source.
        per_sample = pixels + 8 * (2 + 2 * len(sizes) + len(self.source.schema))
        return len(ids) * per_sample

    def _fill(self, pictures: _Pictures, ids: npt.NDArray[np.int64], epoch: int, key: int) -> list[Record]:
        """Decode into every row; `ids` changes where a sample is replaced."""
        wanted = ids.copy()
        records: list[Record] = [{}] * len(ids)
        todo = list(range(len(ids)))
        for attempt in range(_MAX_REPLACEMENTS + 1):
            failures: dict[int, Exception] = {}
            rows, headers = [], []
            for row, record in zip(todo, self._fetch(ids[todo], failures, todo), strict=True):
                try:
                    if row not in failures:
                        headers.append(self._check(record))
                        rows.append(row)
                        records[row] = record
                except SampleError as error:
                    failures[row] = error
            if rows:
                images = [records[row][self._image_field] for row in rows]
                failures |= pictures.decode(self._decoder, images, headers, rows, ids)
            todo = sorted(failures)
            if not todo:
                return records
            self._report(failures, ids)
            if attempt < _MAX_REPLACEMENTS:
                ids[todo] = self._replacements(wanted[todo], epoch, attempt)
        row = todo[0]
        raise self._named(int(ids[row]), failures[row], f"{_MAX_REPLACEMENTS} replacements failed too")

    def _fetch(self, ids: npt.NDArray[np.int64], failures: dict[int, Exception], rows: list[int]) -> list[Record]:
        numbers = ids.tolist()
        try:
            return self.source.fetch(numbers)
        except SampleError:
            if self._on_error == "raise":
                raise
        records: list[Record] = []
        for row, number in zip(rows, numbers, strict=True):
            try:
                records += self.source.fetch([number])
            except SampleError as error:
                failures[row] = error
                records.append({})
        return records

    def _check(self, record: Record) -> Header:
        header = read_header(record[self._image_field])
        if header.height * header.width > self._max_pixels:
            raise SampleError(
                f"it has {header.width}x{header.height} pixels, more than max_pixels={self._max_pixels}; "
                "pass a larger max_pixels if it is meant to be so large"
            )
        return header

    def _report(self, failures: dict[int, Exception], ids: npt.NDArray[np.int64]) -> None:
        for row in sorted(failures):
            error = self._named(int(ids[row]), failures[row])
            if self._on_error == "raise":
                raise error from failures[row]
            _proof.warning("%s", {"event": "sample_skipped", "sample_id": int(ids[row]), "reason": str(error)})
        self.statistics.add(skipped_samples=len(failures))

    def _named(self, sample_id: int, error: Exception, more: str = "") -> SampleError:
        where = locate(self.source, sample_id)
        text = str(error)
        if where not in text:
            text = f"Sample {sample_id} cannot be decoded: {text or type(error).__name__}: {where}"
        return SampleError(f"{text} ({more})" if more else text)

    def _replacements(self, ids: npt.NDArray[np.int64], epoch: int, attempt: int) -> npt.NDArray[np.int64]:
        """Other samples of the order, a function of (seed, epoch, sample id, attempt) like everything random."""
        numbers = uniform(ids, key=derive_key(self._seed, "replacement"), epoch=epoch, block=attempt)[:, 0]
        return self._order.at((numbers * len(self._order)).astype(np.int64), epoch=epoch)


@dataclass(frozen=True, slots=True)
class _Part:
    """One tensor of a view in the batch."""

    key: str
    channels: int = 3
    halved: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        return (-(-height // 2), -(-width // 2)) if self.halved else (height, width)


def _parts(key: str, output: Output) -> list[_Part]:
    """The tensors of a view; those of all views come in the order in which decoders take them."""
    return [_Part(f"{key}_y", 1), _Part(f"{key}_uv", 2, True)] if output == "planes" else [_Part(key)]


class _Pictures:
    """The outputs of all views of one batch: of each its first part, and then of each its second, if it has two."""

    def __init__(
        self,
        views: Sequence[_View],
        ids: npt.NDArray[np.int64],
        seed: int,
        epoch: int,
        batch_key: int,
        output: Output,
    ) -> None:
        self._views, self._seed, self._epoch, self._batch_key = views, seed, epoch, batch_key
        self._output = output
        parts = [_parts(each.key, output) for each in views]
        self._parts = [part for same in zip(*parts, strict=True) for part in same]
        self._stacked: list[torch.Tensor | None] = []
        self._outputs: list[list[torch.Tensor]] = []
        sizes = [each.view.output_size(self._draws(each, ids)) for each in views]
        for number, part in enumerate(self._parts):
            size = sizes[number % len(views)]
            stack = None if size is None else empty_pictures(len(ids), *part.size(*size), channels=part.channels)
            self._stacked.append(stack)
            self._outputs.append([torch.empty(0)] * len(ids) if stack is None else list(stack.unbind(0)))
        self._boxes = np.zeros((len(views), len(ids), 4), np.float32)

    def _draws(self, each: _View, ids: npt.NDArray[np.int64]) -> Draws:
        return each.draws(ids, self._seed, self._epoch, self._batch_key)

    def decode(
        self,
        decoder: Any,
        images: list[bytes],
        headers: list[Header],
        rows: list[int],
        ids: npt.NDArray[np.int64],
    ) -> dict[int, Exception]:
        """Decode `images` into `rows`; returns the rows that failed."""
        sizes = np.array([(header.height, header.width) for header in headers], np.int64)
        placements: list[Placement] = []
        for number, each in enumerate(self._views):
            placement = each.view.place(sizes, self._draws(each, ids[rows]))
            placements.append(placement)
            self._boxes[number, rows] = placement.shown
        for number, part in enumerate(self._parts):
            if self._stacked[number] is None:
                placed = placements[number % len(placements)].size.tolist()
                for row, (height, width) in zip(rows, placed, strict=True):
                    shape = part.size(height, width)
                    self._outputs[number][row] = empty_pictures(1, *shape, channels=part.channels)[0]
        outputs = [[part[row] for row in rows] for part in self._outputs]
        # Decoders that know nothing of other colours need not.
        options = {} if self._output == "rgb" else {"output": self._output}
        failures = decoder.decode(images, headers, placements, outputs, **options)
        return {rows[index]: error for index, error in failures.items()}

    def in_batch(self, return_params: bool) -> Batch:
        """Batch key to tensor or list of tensors, and the boxes if asked for."""
        batch: Batch = {}
        for part, stack, outputs in zip(self._parts, self._stacked, self._outputs, strict=True):
            batch[part.key] = outputs if stack is None else stack
        if return_params:
            for each, boxes in zip(self._views, self._boxes, strict=True):
                batch[f"{each.key}_box"] = torch.from_numpy(boxes.copy())
        return batch


def _choose_image_field(source: Source, name: str | None) -> str:
    fields = image_fields(source.schema)
    if name is not None:
        if name not in fields:
            raise ValueError(f"image_field must be one of the image fields {fields} of {source!r}; got {name!r}.")
        return name
    if len(fields) != 1:
        raise ValueError(
            f"{source!r} has {len(fields)} image fields {fields} among {list(source.schema)}; "
            "choose the one to decode with image_field=."
        )
    return fields[0]


def _name_views(views: View | Mapping[str, View], image_field: str, source: Source, output: Output) -> list[_View]:
    named = views if isinstance(views, Mapping) else {image_field: views}
    if not named:
        raise ValueError("views must name at least one view, got none.")
    taken = {name for name in source.schema if name != image_field} | {"sample_id", "epoch", "valid"}
    for key, view in named.items():
        if not isinstance(view, View):
            raise TypeError(f"views must be a view such as ts.CenterCrop(224), or names to views; got {view!r}.")
        for part in _parts(key, output):
            if part.key in taken:
                raise ValueError(
                    f"The view {part.key!r} has the name of another batch key; rename it. Taken: {sorted(taken)}."
                )
    return [_View(key, view) for key, view in named.items()]


def _column(values: list[Any], kind: str) -> Any:
    """The values of one field as a tensor, if its kind allows; else as they are."""
    if kind == "int":
        return torch.tensor(values, dtype=torch.int64)
    if kind == "float":
        return torch.tensor(values, dtype=torch.float64)
    if kind == "array" and len({(value.shape, value.dtype) for value in values}) == 1:
        return torch.from_numpy(np.stack(values))
    return values
