"""What the pixels of a dataset are like: mean, standard deviation and sizes, exactly."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from torchslip.decode import open_picture, read_header
from torchslip.errors import FormatError, MissingDependencyError, SampleError
from torchslip.pack._chunks import map_records
from torchslip.pack._progress import Progress
from torchslip.sources import Source, image_fields, locate, open

__all__ = ["ImageStatistics", "channel_histogram", "measure", "moments"]

OnError = Literal["raise", "skip"]


@dataclass(frozen=True, slots=True)
class ImageStatistics:
    """The pixels of all images of a field, as RGB.

    Attributes:
        images: How many were measured.
        pixels: How many they have together.
        mean: Of red, green and blue, from 0 to 1: what `torchvision.transforms.v2.Normalize` takes.
        std: The standard deviation over all pixels, from 0 to 1.
        histogram: How many pixels have each value, int64 ``[3, 256]``.
        sizes: Height and width of each image, int32 ``[images, 2]``.
        bytes: Of each encoded image, int64 ``[images]``.
        skipped: ``{"id", "where", "reason"}`` of each that could not be read.
    """

    images: int
    pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    histogram: npt.NDArray[np.int64] = field(repr=False)
    sizes: npt.NDArray[np.int32] = field(repr=False)
    bytes: npt.NDArray[np.int64] = field(repr=False)
    skipped: Sequence[Mapping[str, Any]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Measured:
    index: int
    histogram: npt.NDArray[np.int64] | None
    size: tuple[int, int]
    bytes: int
    reason: str = ""
    where: str = ""


def measure(
    dataset: Source | str | os.PathLike[str],
    *,
    image_field: str | None = None,
    executor: Executor | None = None,
    on_error: OnError = "raise",
    progress: bool = False,
) -> ImageStatistics:
    """Mean and standard deviation over all pixels of a dataset, and the sizes of its images.

    Whole pictures are decoded, as ``PIL.Image.convert("RGB")`` does it. The sums are integers, so the result does not
    depend on the order or the number of workers.

    Args:
        dataset: A path that `torchslip.open` knows, or a source.
        image_field: The field to measure. Default: the only image field.
        executor: Where pictures are read and decoded: any executor of `concurrent.futures`. Default: threads, one per
            core.
        on_error: What happens with an image that cannot be decoded: ``raise``, or ``skip`` and list it.
        progress: Show a progress bar on a terminal.

    Raises:
        FormatError: If it cannot be opened, or has no image that can be measured.
        SampleError: If an image cannot be read or decoded.
        ValueError: If `image_field` must be given, or is none.
    """
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error must be one of {', '.join(get_args(OnError))}; got {on_error!r}.")
    source = dataset if isinstance(dataset, Source) else open(dataset)
    fields = image_fields(source.schema)
    if image_field is None and len(fields) == 1:
        image_field = fields[0]
    if image_field not in fields:
        raise ValueError(f"image_field must be one of the image fields {fields} of {source!r}; got {image_field!r}.")
    total = np.zeros((3, 256), np.int64)
    sizes, lengths, skipped = [], [], []
    rows = map_records(source, _MeasureRecords(image_field), executor=executor)
    with Progress("Measuring", len(source), shown=progress) as bar, contextlib.closing(rows):
        for measured in rows:
            bar.advance()
            if measured.histogram is not None:
                total += measured.histogram
                sizes.append(measured.size)
                lengths.append(measured.bytes)
                continue
            skipped.append({"id": measured.index, "where": measured.where, "reason": measured.reason})
            if on_error == "raise":
                place = "" if measured.where in measured.reason else f"{measured.where}: "
                raise SampleError(f"Sample {measured.index} cannot be measured: {place}{measured.reason}")
    if not sizes:
        raise FormatError(f"There is no image to measure in {source!r}.")
    pixels, mean, std = moments(total)
    shape = np.array(sizes, np.int32)
    return ImageStatistics(len(sizes), pixels, mean, std, total, shape, np.array(lengths, np.int64), skipped)


@dataclass(frozen=True, slots=True)
class _MeasureRecords:
    """The work on a chunk of records."""

    name: str

    def __call__(self, source: Source, ids: range) -> tuple[list[_Measured], int]:
        measured = [self._measure(source, index) for index in ids]
        return measured, sum(each.bytes for each in measured)

    def _measure(self, source: Source, index: int) -> _Measured:
        try:
            data = source.fetch([index])[0][self.name]
            header = read_header(data)
            return _Measured(index, channel_histogram(data), (header.height, header.width), len(data))
        except (MissingDependencyError, MemoryError):
            raise
        except Exception as error:  # whatever a damaged file makes Pillow stumble over
            return _Measured(index, None, (0, 0), 0, str(error) or type(error).__name__, locate(source, index))


def channel_histogram(data: bytes) -> npt.NDArray[np.int64]:
    """How many pixels of an encoded picture have each value of red, green and blue, int64 ``[3, 256]``."""
    with open_picture(data) as picture:
        # Transparency is dropped by the conversion anyway; with it, Pillow warns about palettes.
        picture.load()
        picture.info.pop("transparency", None)
        return np.array(picture.convert("RGB").histogram(), np.int64).reshape(3, 256)


Triple = tuple[float, float, float]


def moments(histogram: npt.NDArray[np.int64]) -> tuple[int, Triple, Triple]:
    """Number of pixels, and mean and standard deviation of each channel, from 0 to 1.

    Args:
        histogram: How many pixels have each value, ``[3, 256]``.
    """
    means, deviations = [], []
    pixels = int(histogram[0].sum())
    for counts in histogram.tolist():
        # Python's integers have no limit, so nothing is rounded before the last step.
        first = sum(value * count for value, count in enumerate(counts))
        second = sum(value * value * count for value, count in enumerate(counts))
        means.append(first / (255 * pixels))
        deviations.append(math.sqrt(pixels * second - first * first) / (255 * pixels))
    return pixels, (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])
