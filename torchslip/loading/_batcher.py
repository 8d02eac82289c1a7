"""From sample ids to a finished batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from torchslip.decode import Decoder, DeviceDecoder, Header, Output, View, make_decoder, read_header
from torchslip.errors import SampleError
from torchslip.loading._encoded import EncodedBatch
from torchslip.loading._memory import for_handover
from torchslip.loading._pictures import GatheredPictures, NamedView, Pictures, boxes_of, parts_of
from torchslip.loading._statistics import Statistics
from torchslip.order import Order
from torchslip.random import derive_key, uniform
from torchslip.sources import Record, Source, image_fields, lend, locate

__all__ = ["MAX_PIXELS", "Batch", "Batcher", "OnError"]

Batch = dict[str, Any]
OnError = Literal["raise", "skip"]

MAX_PIXELS = 178_956_970
"""Where Pillow refuses a picture too: a few kB of file can decode to any size."""

_MAX_REPLACEMENTS = 100
_proof = logging.getLogger("torchslip.proof")


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
        decoder: The name of a decoder, ``auto``, or one.
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
        decoder: str | Decoder,
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
        self.output: Output = output
        self._on_error = on_error
        self._return_params = return_params
        self.decoder_name = decoder if isinstance(decoder, str) else decoder.name
        self._decoder = make_decoder(decoder) if isinstance(decoder, str) else decoder
        self._max_pixels = max_pixels
        self.leaves_encoded = False

    def __call__(
        self, ids: npt.NDArray[np.int64], *, epoch: int, key: int, valid: npt.NDArray[np.bool_] | None = None
    ) -> Batch | EncodedBatch:
        """Make the batch of these samples; within `leaving_encoded`, without the pixels.

        Args:
            ids: int64 ``[B]``.
            epoch: Enters every random draw.
            key: Names the global batch, for what is drawn once per batch.
            valid: Put into the batch if given.

        Raises:
            SampleError: If a sample cannot be read or decoded and `on_error` is ``raise``; else if 100 replacements
                in a row cannot be read either.
        """
        ids, wanted, attempts = ids.copy(), ids, np.zeros(len(ids), np.int64)
        kind_of = GatheredPictures if self.leaves_encoded else Pictures
        pictures = kind_of(self._views, ids, seed=self._seed, epoch=epoch, batch_key=key, output=self.output)
        records: list[Record] = [{}] * len(ids)
        self._fill(pictures, records, ids, wanted, attempts, epoch, todo=list(range(len(ids))))
        gathered = isinstance(pictures, GatheredPictures)
        batch: Batch = {} if gathered else pictures.in_batch(with_boxes=self._return_params)
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
        batch = for_handover(batch)
        if isinstance(pictures, GatheredPictures):
            return EncodedBatch(pictures.gathered(), batch, wanted, attempts, epoch, key)
        return batch

    @contextmanager
    def leaving_encoded(self) -> Iterator[None]:
        """What is made meanwhile, and in processes that begin meanwhile, is to be decoded by `finish`."""
        before, self.leaves_encoded = self.leaves_encoded, True
        try:
            yield
        finally:
            self.leaves_encoded = before

    def finish(self, encoded: EncodedBatch, decoder: DeviceDecoder, device: torch.device) -> Batch:
        """Decode a batch on a device: the batch that a worker would have made, but for the backend's pixels.

        The other fields stay where they are.

        Raises:
            SampleError: As for a call.
        """
        pictures, fields = encoded.pictures, encoded.fields
        outputs = {each.key: _empty_on(device, each.size, each.placement.size) for each in pictures.views}
        placements = [each.placement for each in pictures.views]
        failures = decoder.decode(pictures.images, pictures.headers, placements, list(outputs.values()))
        shown = {each.key: each.placement.shown for each in pictures.views}
        if failures:
            self._replace_rows(encoded, failures, outputs, shown)
        return outputs | (boxes_of(shown) if self._return_params else {}) | fields

    def _replace_rows(
        self,
        encoded: EncodedBatch,
        failures: dict[int, Exception],
        outputs: dict[str, Any],
        shown: dict[str, npt.NDArray[np.float32]],
    ) -> None:
        """Put other samples where these failed, all in this process."""
        fields, ids = encoded.fields, encoded.fields["sample_id"].numpy().copy()
        pictures = Pictures(self._views, ids, seed=self._seed, epoch=encoded.epoch, batch_key=encoded.key)
        records: list[Record] = [{}] * len(ids)
        todo = self._replacing(failures, ids, encoded.wanted, encoded.attempts, encoded.epoch)
        self._fill(pictures, records, ids, encoded.wanted, encoded.attempts, encoded.epoch, todo=todo)
        boxes = pictures.boxes()
        for row in todo:
            for key, pixels in pictures.row(row).items():
                if isinstance(outputs[key], list):
                    outputs[key][row] = torch.empty_like(pixels, device=outputs[key][row].device)
                outputs[key][row].copy_(pixels)
                shown[key][row] = boxes[f"{key}_box"][row].numpy()
        for name, kind in self.source.schema.items():
            if name != self._image_field:
                values = fields[name] if isinstance(fields[name], list) else list(fields[name].numpy())
                fields[name] = _column([records[row].get(name, value) for row, value in enumerate(values)], kind)
        fields["sample_id"] = torch.from_numpy(ids)

    def bytes_of(self, ids: npt.NDArray[np.int64]) -> int | None:
        """Bytes of the tensors of a batch of these samples; None if a view has no fixed size."""
        sizes = [each.view.output_size(each.draws(ids, self._seed, 0, 0)) for each in self._views]
        if any(size is None for size in sizes):
            return None
        pixels = sum(
            part.shape(1, size).size_bytes for size in filter(None, sizes) for part in parts_of("", self.output)
        )
        # Numbers of 8 bytes: the id, the mask, the boxes, and fields of the source.
        per_sample = pixels + 8 * (2 + 2 * len(sizes) + len(self.source.schema))
        return len(ids) * per_sample

    def _fill(
        self,
        pictures: Pictures,
        records: list[Record],
        ids: npt.NDArray[np.int64],
        wanted: npt.NDArray[np.int64],
        attempts: npt.NDArray[np.int64],
        epoch: int,
        *,
        todo: list[int],
    ) -> None:
        """Decode into the rows `todo`; `ids`, `attempts` and `records` change there."""
        while todo:
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
            todo = self._replacing(failures, ids, wanted, attempts, epoch)

    def _replacing(
        self,
        failures: dict[int, Exception],
        ids: npt.NDArray[np.int64],
        wanted: npt.NDArray[np.int64],
        attempts: npt.NDArray[np.int64],
        epoch: int,
    ) -> list[int]:
        """Report what failed and choose other samples for it; the rows to be tried again."""
        if not failures:
            return []
        self._report(failures, ids)
        todo = sorted(failures)
        for row in todo:
            if attempts[row] == _MAX_REPLACEMENTS:
                raise self._named(int(ids[row]), failures[row], f"{_MAX_REPLACEMENTS} replacements failed too")
            ids[row] = self._replacements(wanted[row : row + 1], epoch, int(attempts[row]))[0]
            attempts[row] += 1
        return todo

    def _fetch(self, ids: npt.NDArray[np.int64], failures: dict[int, Exception], rows: list[int]) -> list[Record]:
        numbers = ids.tolist()
        try:
            return lend(self.source, numbers)
        except SampleError:
            if self._on_error == "raise":
                raise
        records: list[Record] = []
        for row, number in zip(rows, numbers, strict=True):
            try:
                records += lend(self.source, [number])
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


def _name_views(views: View | Mapping[str, View], image_field: str, source: Source, output: Output) -> list[NamedView]:
    named = views if isinstance(views, Mapping) else {image_field: views}
    if not named:
        raise ValueError("views must name at least one view, got none.")
    taken = {name for name in source.schema if name != image_field} | {"sample_id", "epoch", "valid"}
    for key, view in named.items():
        if not isinstance(view, View):
            raise TypeError(f"views must be a view such as ts.CenterCrop(224), or names to views; got {view!r}.")
        for part in parts_of(key, output):
            if part.key in taken:
                raise ValueError(
                    f"The view {part.key!r} has the name of another batch key; rename it. Taken: {sorted(taken)}."
                )
    return [NamedView(key, view) for key, view in named.items()]


def _empty_on(
    device: torch.device, size: tuple[int, int] | None, sizes: npt.NDArray[np.int64]
) -> torch.Tensor | list[torch.Tensor]:
    """Uninitialised pictures, channels last in memory: one tensor, or where they differ in size, one for each."""
    if size is not None:
        return torch.empty((len(sizes), *size, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    return [
        torch.empty((height, width, 3), dtype=torch.uint8, device=device).permute(2, 0, 1)
        for height, width in sizes.tolist()
    ]


def _column(values: list[Any], kind: str) -> Any:
    """The values of one field as a tensor, if its kind allows; else as they are."""
    if kind == "int":
        return torch.tensor(values, dtype=torch.int64)
    if kind == "float":
        return torch.tensor(values, dtype=torch.float64)
    if kind == "array" and len({(value.shape, value.dtype) for value in values}) == 1:
        return torch.from_numpy(np.stack(values))
    return values
