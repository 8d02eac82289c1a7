"""Where the time of a picture goes, on one core: each part of decoding and cropping, and how far it is from its floor.

What is measured
----------------
Pictures of ``--set`` (see `image_loading.py`; shorter side 256, quality 95) in memory as `torchslip.pack` stores them:
as they are (``jpeg``), with a tile index (``jpeg-indexed``) and as planes (``yuv420``, where the installed torchslip
can do that). One part at a time is run over all of them:

* *libjpeg*: a C program, compiled for the run: the header; the header and entropy decoding of the whole file
  (`jpeg_read_coefficients`); that and the inverse DCT (`jpeg_read_raw_data`); that, chroma upsampling and colours (RGB
  out). The parts of a full decode are their differences.
* *torchslip*: one call of the ``turbo`` decoder on one thread for all pictures: the whole picture; the crop of a
  random-resized crop in its own size; the same resized to 224 x 224; ten views (2 x 224 and 8 x 96).
* *overhead*: what an epoch of `ImageDataset` over the same pictures, packed, takes in this process beyond that call.
* *floors*: looking for the markers, copying the files, the crops and the outputs.

How
---
Pinned to one core. Every part is run in each of ``--repetitions``, in an order that is shuffled anew (seeded); crops
are those of another epoch each time, the same for all parts of a repetition. Seconds of the processor (of this
process, which other processes cannot add to) per picture; the median, the smallest and the largest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
from _decode_parts.kernels import Files, Libjpeg, crop_of, place, run_decoder
from _image_loading.pictures import Kind, PictureSet, default_source, prepare
from _machine import commit, describe_machine, usable_cores, versions

import torchslip as ts

FORMS = ("jpeg", "jpeg-indexed", "yuv420")
SIZE_PX = 224
VIEW = ts.RandomResizedCrop(SIZE_PX)
TEN_VIEWS = {f"global_{i}": ts.RandomResizedCrop(SIZE_PX, scale=(0.4, 1)) for i in range(2)} | {
    f"local_{i}": ts.RandomResizedCrop(96, scale=(0.05, 0.4)) for i in range(8)
}
Part = Callable[[], object]


class Bench:
    """The pictures of a run, in each form that they can be stored in, and its parts."""

    def __init__(self, pictures: PictureSet, work: Path) -> None:
        self.libjpeg = Libjpeg()
        self._folder = tempfile.TemporaryDirectory(dir=work, prefix="parts.")
        self.files: dict[str, Files] = {}
        self.datasets: dict[str, ts.ImageDataset] = {}
        self.left_out: dict[str, str] = {}
        for pixels in FORMS:
            try:
                self._pack(pictures, pixels)
            except ValueError as error:
                self.left_out[pixels] = str(error)

    def _pack(self, pictures: PictureSet, pixels: str) -> None:
        options: dict[str, Any] = {"pixels": pixels}
        path = ts.pack(pictures.folder, Path(self._folder.name) / pixels, **options).path
        source = ts.open(path)
        images = [record["image"] for record in source.fetch(range(len(source)))]
        self.files[pixels] = Files(images)
        batch_size = min(100, len(images))
        self.datasets[pixels] = ts.ImageDataset(path, views=VIEW, batch_size=batch_size, shuffle=True, seed=17)

    def __len__(self) -> int:
        return len(self.files["jpeg"])

    def parts(self, epoch: int) -> dict[str, Part]:
        """Name to what is run over all pictures."""
        outputs = [np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8) for _ in range(len(self))]
        target = np.zeros_like(outputs[0])
        parts: dict[str, Part] = {"copy of the output": lambda: self.libjpeg.copy(outputs, target)}
        for name, files in self.files.items():
            parts |= self._parts_of(name, files, epoch)
            if name != "yuv420":
                parts |= self._parts_of_jpeg(name, files)
        return parts

    def _parts_of(self, name: str, files: Files, epoch: int) -> dict[str, Part]:
        crop = place(files, VIEW, epoch=epoch)
        whole = place(files, ts.Decode(), epoch=epoch)
        ten = [place(files, view, epoch=epoch) for view in TEN_VIEWS.values()]
        arrays = [np.frombuffer(image, np.uint8) for image in files.images]
        target = np.zeros(max(map(len, files.images)), np.uint8)
        dataset = self.datasets[name]
        return {
            f"{name}: copy of the file": lambda: self.libjpeg.copy(arrays, target),
            f"{name}: whole picture": run_decoder(files, [whole]),
            f"{name}: crop": run_decoder(files, [crop_of(crop)]),
            f"{name}: crop + resize": run_decoder(files, [crop]),
            f"{name}: ten views": run_decoder(files, ten),
            f"{name}: dataset": lambda: _run_epoch(dataset, epoch),
        }

    def _parts_of_jpeg(self, name: str, files: Files) -> dict[str, Part]:
        return {
            f"{name}: search for markers": lambda: self.libjpeg.scan(files),
            f"{name}: libjpeg header": lambda: self.libjpeg.decode(files, "header"),
            f"{name}: libjpeg entropy decoding": lambda: self.libjpeg.decode(files, "coefficients"),
            f"{name}: libjpeg + inverse DCT": lambda: self.libjpeg.decode(files, "planes"),
            f"{name}: libjpeg + colours": lambda: self.libjpeg.decode(files, "rgb"),
        }


def _run_epoch(dataset: ts.ImageDataset, epoch: int) -> None:
    dataset.set_epoch(epoch)
    for batch in dataset:
        assert batch["image"].shape[1:] == (3, SIZE_PX, SIZE_PX)


def measure(bench: Bench, repetitions: int, seed: int) -> dict[str, list[float]]:
    """Part to milliseconds of the processor per picture, one for each repetition."""
    found: dict[str, list[float]] = {}
    for repetition in range(repetitions + 1):
        parts = list(bench.parts(epoch=repetition).items())
        random.Random(f"{seed} {repetition}").shuffle(parts)
        for name, run in parts:
            start = time.process_time()
            run()
            seconds = time.process_time() - start
            if repetition:  # the first one touches the memory
                found.setdefault(name, []).append(seconds * 1000 / len(bench))
    return found


def derive(found: dict[str, list[float]]) -> list[dict[str, Any]]:
    """The parts of the table, as differences within a repetition, each with its floor."""

    def of(name: str, less: str = "") -> list[float]:
        return [a - b for a, b in zip(found[name], found[less], strict=True)] if less else found[name]

    rows = []
    output = "copy of the output"
    for name in FORMS:
        entropy, header = f"{name}: libjpeg entropy decoding", f"{name}: libjpeg header"
        planes, rgb, scan = (
            f"{name}: libjpeg + inverse DCT",
            f"{name}: libjpeg + colours",
            f"{name}: search for markers",
        )
        whole, crop, resized = f"{name}: whole picture", f"{name}: crop", f"{name}: crop + resize"
        file, ten, dataset = f"{name}: copy of the file", f"{name}: ten views", f"{name}: dataset"
        if whole not in found:
            continue
        floor = ("libjpeg's entropy decoding", of(entropy)) if entropy in found else (output, of(output))
        if entropy in found:
            rows += [
                _row(f"{name}: entropy decoding, libjpeg", of(entropy, header), "copy of the file", of(file)),
                _row(f"{name}: inverse DCT, libjpeg", of(planes, entropy)),
                _row(f"{name}: chroma and colours, libjpeg", of(rgb, planes)),
                _row(f"{name}: whole picture, libjpeg", of(rgb), *floor),
                _row(f"{name}: search for markers", of(scan), "crop + resize", of(resized)),
            ]
        rows += [
            _row(f"{name}: whole picture", of(whole), *floor),
            _row(f"{name}: crop", of(crop), *floor),
            _row(f"{name}: resize", of(resized, crop), output, of(output)),
            _row(f"{name}: crop + resize", of(resized), *floor),
            _row(f"{name}: ten views", of(ten), "crop + resize", of(resized)),
            _row(f"{name}: overhead of a dataset", of(dataset, resized), "crop + resize", of(resized)),
        ]
    return rows


def _row(name: str, values: list[float], floor: str = "", floors: list[float] | None = None) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(values, floors or [], strict=False) if b > 0]
    return {
        "part": name,
        "ms": {"median": statistics.median(values), "min": min(values), "max": max(values)},
        "floor": floor or None,
        "times_the_floor": statistics.median(ratios) if ratios else None,
    }


def as_table(rows: list[dict[str, Any]]) -> str:
    """The rows as text for a terminal."""
    lines = [f"{'':38}{'ms':>8}  {'(min to max)':18}{'images/s':>9}  of its floor"]
    for row in rows:
        ms = row["ms"]
        spread = f"({ms['min']:.3f} to {ms['max']:.3f})"
        speed = f"{1000 / ms['median']:,.0f}" if ms["median"] > 0 else "-"
        floor = f"{row['times_the_floor']:.2f} x {row['floor']}" if row["times_the_floor"] is not None else ""
        lines.append(f"{row['part']:38}{ms['median']:8.3f}  {spread:18}{speed:>9}  {floor}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="a folder of pictures; default: the photographs of the test data")
    parser.add_argument("--set", choices=get_args(Kind), default="resized", dest="kind")
    parser.add_argument("--images", type=int, default=300, help="pictures that a part is run over")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "torchslip-benchmarks")
    parser.add_argument("--out", type=Path, help="the result file, JSON")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, usable_cores()[:1])
    begin = time.monotonic()
    pictures = prepare(options.data or default_source(options.work), options.kind, options.images, options.work)
    bench = Bench(pictures, options.work)
    for name, reason in bench.left_out.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)
    found = measure(bench, options.repetitions, options.seed)
    rows = derive(found)
    print(as_table(rows))
    print(f"\n{time.monotonic() - begin:.0f} s in all", file=sys.stderr)
    if options.out:
        result = {
            "benchmark": "decode_parts",
            "machine": describe_machine(),
            "commit": commit(),
            "versions": versions("torchslip", "torch", "numpy", "pillow"),
            "set": pictures.kind,
            "pictures": len(bench),
            "left_out": bench.left_out,
            "mean_file_bytes": {name: round(files.mean_bytes) for name, files in bench.files.items()},
            "repetitions": options.repetitions,
            "parts": rows,
            "ms": found,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
