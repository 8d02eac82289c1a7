"""The DALI decoder: JPEG by NVIDIA's library, on the CPU.

DALI decodes the region that the views of a picture need, to the same levels as torchvision does, and torch resizes it:
with DALI's own resampling this took twice the time (450 against 850 crops to 224 per second and core, 2026-11). A graph
of operators is built when the first batch comes, in each process and thread; see `Graph`.

What DALI does not decode as Pillow does (other formats, four colour components) and damaged files go through
`TorchvisionDecoder`, so that all decoders accept the same files.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info

from torchslip.decode._dali_graph import Graph, Stages, region_of, why_no_dali
from torchslip.decode._decoder import Output, Outputs
from torchslip.decode._header import Encoded, Header
from torchslip.decode._torchvision import TorchvisionDecoder, write_view
from torchslip.decode._view import Placement

__all__ = ["DaliDecoder", "GraphCache", "refused_rows", "takes"]

_MOST_GRAPHS = 8
_ONLY_DECODE = Stages(resize=False, window=False)


class DaliDecoder:
    """Decodes the region that the views need, by DALI on the CPU. See `Decoder`.

    Needs the extra ``dali``. Gives the bytes of `TorchvisionDecoder`, which does everything but RGB out of JPEG.

    Args:
        threads: Threads of each graph. Default: one in worker processes of a DataLoader, else as many as torch uses.

    Raises:
        RuntimeError: If DALI is not installed.
    """

    name = "dali"

    def __init__(self, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, or None for a choice by the process; got {threads}.")
        if reason := why_no_dali():
            raise RuntimeError(reason)
        self._threads = threads

    def decode(
        self,
        images: Sequence[Encoded],
        headers: Sequence[Header],
        placements: Sequence[Placement],
        outputs: Sequence[Outputs],
        *,
        output: Output = "rgb",
    ) -> dict[int, Exception]:
        """See `Decoder.decode`."""
        if output != "rgb":
            return TorchvisionDecoder().decode(images, headers, placements, outputs, output=output)
        arrays = [np.frombuffer(image, np.uint8) for image in images]
        taken = [row for row, each in enumerate(headers) if takes(each)]
        geometries = [np.concatenate((place.box, place.resized, place.window), axis=1).tolist() for place in placements]
        threads = self._threads or (1 if get_worker_info() is not None else torch.get_num_threads())

        def run(rows: list[int]) -> None:
            region = region_of([place.rows(rows) for place in placements])
            (pictures,) = _graphs.run([_ONLY_DECODE], [arrays[row] for row in rows], [region], threads=threads)
            for index, row in enumerate(rows):
                pixels = torch.from_numpy(np.asarray(pictures.at(index))).permute(2, 0, 1)
                top, left = region.box[index, :2].tolist()
                for geometry, view in zip(geometries, outputs, strict=True):
                    write_view(pixels, [geometry[row][0] - top, geometry[row][1] - left, *geometry[row][2:]], view[row])

        refused = sorted((set(range(len(images))) - set(taken)) | set(refused_rows(run, taken)))
        if not refused:
            return {}
        failures = TorchvisionDecoder().decode(
            [images[row] for row in refused],
            [headers[row] for row in refused],
            [place.rows(refused) for place in placements],
            [[view[row] for row in refused] for view in outputs],
        )
        return {refused[index]: error for index, error in failures.items()}


def takes(header: Header) -> bool:
    """Whether DALI and nvJPEG decode such a picture as Pillow does."""
    return header.format == "jpeg" and header.components in (1, 3)


def refused_rows(run: Callable[[list[int]], None], rows: list[int]) -> list[int]:
    """Run a decoder that fails as a whole on ever smaller parts of a batch; the rows that fail alone.

    What a picture becomes does not depend on its neighbours, so the others are decoded as if these were not there.
    """
    if not rows:
        return []
    try:
        run(rows)
    except RuntimeError:
        if len(rows) == 1:
            return rows
        middle = len(rows) // 2
        return refused_rows(run, rows[:middle]) + refused_rows(run, rows[middle:])
    return []


class GraphCache:
    """The graphs of each thread, by what they do."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._local = threading.local()

    def run(
        self,
        stages: Sequence[Stages],
        images: Sequence[npt.NDArray[np.uint8]],
        placements: Sequence[Placement],
        *,
        threads: int,
        device_id: int | None = None,
    ) -> Sequence[Any]:
        """Run the graph of these stages, see `Graph.run`; builds it, or a larger one, where there is none."""
        graphs = self._graphs()
        key = (tuple(stages), threads, device_id)
        graph = graphs.get(key)
        if graph is None or graph.capacity < len(images):
            graphs.pop(key, None)
            while len(graphs) >= _MOST_GRAPHS:
                del graphs[next(iter(graphs))]
            # To a power of two, so that batches that grow do not build one each.
            capacity = 1 << (len(images) - 1).bit_length()
            graph = graphs[key] = Graph(stages, capacity=capacity, threads=threads, device_id=device_id)
        try:
            return graph.run(images, placements)
        except RuntimeError:
            graphs.pop(key, None)
            raise

    def _graphs(self) -> dict[Any, Graph]:
        if self._pid != os.getpid():  # a fork has the graphs of its parent, but not their threads
            self._pid, self._local = os.getpid(), threading.local()
        graphs: dict[Any, Graph] | None = getattr(self._local, "graphs", None)
        if graphs is None:
            graphs = self._local.graphs = {}
        return graphs


_graphs = GraphCache()
