"""The graph of operators that DALI runs for a batch: decode a region; on a GPU also resize boxes and show windows.

DALI's antialiased filter is torchvision's, except where it reaches beyond the edge of the picture: DALI counts the
edge pixel again for what lies outside, torchvision leaves that out and gives the rest more weight. So a box is resized
with a border of zeros, which adds nothing, and `restore_edges` divides what lost weight by what is left: only the
outermost row and column of a picture that shrinks. On 14 photographs the largest difference falls from 21 levels to 2
(2026-11).
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from torchslip.decode._view import Placement

__all__ = ["Graph", "Stages", "region_of", "restore_edges", "why_no_dali"]

_Ints = npt.NDArray[np.int64]
_INSTALL = "pip install 'torchslip[dali]'"


def why_no_dali() -> str:
    """Why DALI cannot be used here and what to do about it; empty if it can."""
    try:
        import nvidia.dali.fn
        import nvidia.dali.pipeline  # noqa: F401
    except ModuleNotFoundError as error:
        return f"DALI is not installed ({error}). Install it: {_INSTALL}"
    except (ImportError, OSError) as error:
        return f"DALI cannot be loaded ({error}). Install it again: {_INSTALL}"
    return ""


@dataclass(frozen=True, slots=True)
class Stages:
    """Which operators a view needs.

    Attributes:
        resize: Some box changes its size.
        window: Some output is not the whole of what was resized.
    """

    resize: bool
    window: bool

    @classmethod
    def of(cls, place: Placement) -> Stages:
        """Those of a batch."""
        return cls(
            bool((place.box[:, 2:] != place.resized).any()),
            bool(place.window.any() or (place.size != place.resized).any()),
        )


class Graph:
    """One pipeline of DALI. Belongs to the process and thread that made it.

    Args:
        stages: Of each view.
        capacity: The largest batch.
        threads: Of the CPU.
        device_id: The GPU that decodes; None: the CPU does.
    """

    def __init__(self, stages: Sequence[Stages], *, capacity: int, threads: int, device_id: int | None = None) -> None:
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline

        self.capacity = capacity
        self._stages = tuple(stages)
        # One batch at a time: this object is asked, it does not run ahead.
        self._pipeline = Pipeline(
            batch_size=capacity,
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=1,
            exec_async=False,
            exec_pipelined=False,
        )

        def numbers(name: str) -> Any:
            return fn.external_source(name=name, device="cpu")

        def cut(pixels: Any, name: str) -> Any:
            start, shape = numbers(f"{name}_start"), numbers(f"{name}_shape")
            return fn.slice(pixels, start=start, shape=shape, axes=[0, 1], out_of_bounds_policy="pad")

        with self._pipeline:
            # Without a copy the bytes must stay until they are read: on a CPU that is until `run` is over.
            encoded = fn.external_source(name="images", device="cpu", no_copy=device_id is None)
            region = fn.decoders.image_slice(
                encoded,
                start=numbers("region_start"),
                shape=numbers("region_shape"),
                axes=[0, 1],
                device="cpu" if device_id is None else "mixed",
                output_type=types.RGB,
                # As Pillow and torchvision decode, to the level on a CPU.
                jpeg_fancy_upsampling=True,
                use_fast_idct=False,
                adjust_orientation=False,
            )
            outputs = []
            for view, each in enumerate(stages):
                pixels = region if len(stages) == 1 else cut(region, f"box{view}")
                if each.resize:
                    pixels = fn.resize(
                        cut(pixels, f"bordered{view}"),
                        size=numbers(f"resized{view}"),
                        roi_start=numbers(f"roi{view}_start"),
                        roi_end=numbers(f"roi{view}_end"),
                        interp_type=types.INTERP_LINEAR,
                        antialias=True,
                    )
                outputs.append(cut(pixels, f"window{view}") if each.window else pixels)
            self._pipeline.set_outputs(*outputs)
        self._pipeline.build()
        _pipelines.add(self._pipeline)

    def run(self, images: Sequence[npt.NDArray[np.uint8]], placements: Sequence[Placement]) -> Sequence[Any]:
        """The pictures of each view as a DALI tensor list of ``[H, W, 3]``, valid until the next call.

        Raises:
            RuntimeError: If one of the pictures cannot be decoded; the graph is of no use any more.
        """
        self._pipeline.feed_input("images", list(images))
        for name, values in self._numbers(placements).items():
            self._pipeline.feed_input(name, values)
        outputs: Sequence[Any] = self._pipeline.run()
        return outputs

    def _numbers(self, placements: Sequence[Placement]) -> Mapping[str, npt.NDArray[Any]]:
        region = region_of(placements).box
        start = region[:, :2]
        fed: dict[str, npt.NDArray[Any]] = {"region_start": start, "region_shape": region[:, 2:]}
        for view, (place, stages) in enumerate(zip(placements, self._stages, strict=True)):
            shape = place.box[:, 2:]
            fed |= {f"box{view}_start": place.box[:, :2] - start, f"box{view}_shape": shape}
            scale = shape / place.resized
            border = np.where(scale > 1, np.ceil(scale).astype(np.int64) + 1, 0)
            if stages.resize:
                fed |= {f"bordered{view}_start": -border, f"bordered{view}_shape": shape + 2 * border}
                lengths = {
                    f"resized{view}": place.resized,
                    f"roi{view}_start": border,
                    f"roi{view}_end": border + shape,
                }
                fed |= {name: values.astype(np.float32) for name, values in lengths.items()}
            if stages.window:
                fed |= {f"window{view}_start": place.window, f"window{view}_shape": place.size}
        kept = {name: values for name, values in fed.items() if len(placements) > 1 or not name.startswith("box")}
        return {
            name: np.ascontiguousarray(values, np.float32 if values.dtype == np.float32 else np.int32)
            for name, values in kept.items()
        }


def region_of(placements: Sequence[Placement]) -> Placement:
    """The smallest region of each picture that has all its boxes, as it is."""
    start = np.min([place.box[:, :2] for place in placements], axis=0)
    size = np.max([place.box[:, :2] + place.box[:, 2:] for place in placements], axis=0) - start
    return Placement.of_crops(np.concatenate((start, size), axis=1), size)


def restore_edges(pictures: torch.Tensor, place: Placement, rows: npt.NDArray[np.intp]) -> None:
    """Give the outermost rows and columns of what was resized with a border of zeros their full weight.

    Args:
        pictures: uint8 ``[N, H, W, 3]``, on any device; written.
        place: Where they come from.
        rows: int ``[N]``: which row of `place` each picture is.
    """
    for axis in (0, 1):
        length, resized = place.box[rows, 2 + axis], place.resized[rows, axis]
        share = _weight_inside(length, resized)
        first = -place.window[rows, axis]
        last = first + resized - 1
        for at, wanted in ((first, share < 1), (last, (share < 1) & (last != first))):
            chosen = np.nonzero(wanted & (at >= 0) & (at < pictures.shape[1 + axis]))[0]
            if not len(chosen):
                continue
            index, line = (torch.from_numpy(each).to(pictures.device) for each in (chosen, at[chosen]))
            factor = torch.from_numpy((1 / share[chosen]).astype(np.float32)).to(pictures.device)
            place_of = (index, line) if axis == 0 else (index, slice(None), line)
            full = (pictures[place_of] * factor[:, None, None]).round_().clamp_(max=255)
            pictures[place_of] = full.to(torch.uint8)


def _weight_inside(length: _Ints, resized: _Ints) -> npt.NDArray[np.float64]:
    """How much of the weights of the first output pixel lies within the picture, ``[N]``; 1 where nothing shrinks."""
    scale = np.maximum(length / resized, 1)
    reach = int(np.ceil(2 * scale.max(initial=1))) + 1
    pixels = np.arange(-reach, reach)
    weights = np.maximum(0, 1 - np.abs(pixels + 0.5 - 0.5 * scale[:, None]) / scale[:, None])
    inside = (pixels >= 0) & (pixels < length[:, None])
    share: npt.NDArray[np.float64] = (weights * inside).sum(axis=1) / weights.sum(axis=1)
    return np.where(scale > 1, share, 1.0)


# A fork has the pipelines of its parent but not their threads: to end one waits for these, or crashes. And a fork drops
# what belonged to the other threads before it runs a line of Python. So it keeps all of them for good.
_pipelines: weakref.WeakSet[Any] = weakref.WeakSet()
_of_forks: list[list[Any]] = []


def _before_fork() -> None:
    _of_forks.append(list(_pipelines))


def _after_fork_in_parent() -> None:
    _of_forks.pop()


def _after_fork_in_child() -> None:
    for pipeline in _of_forks[-1]:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pipeline))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
