"""What stored planes save: processor time to decode a picture, against the JPEG file that the planes come from.

The photographs are made smaller as `pack` does it (shorter side 256, at most 512, JPEG of quality 95) and stored as
such and as planes; both lie in memory. One thread decodes batches of 100 into one batch of 224 x 224 each,
random-resized crops that are the same for all cases, and a new epoch of them in each round. Cases:

* ``jpeg``: the files, by the turbo decoder;
* ``planes to rgb``, ``to yuv``, ``to planes``: the planes, with each output.

Rounds take all cases in turn, so that other work on the machine disturbs all alike; times are those of the processor in
user mode, which it disturbs least. `ratio` is the median over rounds of the time of ``jpeg`` over that of the case: the
requirement is 2.5 for RGB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import commit, describe_machine, versions

import torchslip as ts
from torchslip.decode import Decoder, Draws, Header, Output, read_header, store_planes
from torchslip.decode._turbo import TurboDecoder
from torchslip.pack._transcode import store_image

PHOTOS = Path(os.environ.get("TORCHSLIP_TEST_DATA", Path(__file__).parents[1] / "../shared/data")) / "photos"
BATCH, SIZE_PX = 100, 224
CASES: dict[str, tuple[str, Output]] = {
    "jpeg": ("jpeg", "rgb"),
    "planes to rgb": ("planes", "rgb"),
    "planes to yuv": ("planes", "yuv"),
    "planes to planes": ("planes", "planes"),
}


def make_outputs(output: Output) -> list[list[torch.Tensor]]:
    half = SIZE_PX // 2
    if output == "planes":
        shapes = [(BATCH, 1, SIZE_PX, SIZE_PX), (BATCH, 2, half, half)]
        return [list(torch.empty(shape, dtype=torch.uint8).unbind(0)) for shape in shapes]
    pixels = torch.empty((BATCH, SIZE_PX, SIZE_PX, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    return [list(pixels.unbind(0))]


def measure(decoder: Decoder, images: list[bytes], headers: list[Header], output: Output, epoch: int) -> float:
    """Milliseconds in user mode per picture."""
    sizes = np.array([(each.height, each.width) for each in headers])
    placement = ts.RandomResizedCrop(SIZE_PX).place(
        sizes, Draws(np.arange(len(images)), seed=0, view="image", epoch=epoch)
    )
    outputs = make_outputs(output)
    spent = 0.0
    for start in range(0, len(images) - BATCH + 1, BATCH):
        rows = slice(start, start + BATCH)
        part = type(placement)(
            placement.box[rows], placement.resized[rows], placement.window[rows], placement.size[rows]
        )
        begin = resource.getrusage(resource.RUSAGE_THREAD).ru_utime
        failures = decoder.decode(images[rows], headers[rows], [part], outputs, output=output)
        spent += resource.getrusage(resource.RUSAGE_THREAD).ru_utime - begin
        assert not failures
    return spent / (len(images) // BATCH * BATCH) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=PHOTOS, help="a folder of pictures")
    parser.add_argument("--images", type=int, default=700)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    paths = sorted(path for path in arguments.data.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    rule = ts.Resize(shorter=256, longer_max=512, quality=95)
    files = [store_image(path.read_bytes(), rule, verify=False).data for path in paths[: arguments.images]]
    headers = [read_header(data) for data in files]
    planes = [store_planes(data, header) for data, header in zip(files, headers, strict=True)]
    stored = {"jpeg": (files, headers), "planes": (planes, [read_header(data) for data in planes])}
    decoder = TurboDecoder(threads=1)
    trials: dict[str, list[float]] = {name: [] for name in CASES}
    for epoch in range(arguments.rounds + 1):
        for name, (form, output) in CASES.items():
            spent = measure(decoder, *stored[form], output, epoch)
            if epoch:  # the first round warms up
                trials[name].append(spent)
    rows: list[dict[str, Any]] = []
    for name, each in trials.items():
        ratios = [jpeg / spent for jpeg, spent in zip(trials["jpeg"], each, strict=True)]
        rows.append(
            {
                "case": name,
                "ms": round(statistics.median(each), 4),
                "ratio": round(statistics.median(ratios), 2),
                "least_ratio": round(min(ratios), 2),
                "most_ratio": round(max(ratios), 2),
                "trials_ms": [round(value, 4) for value in each],
            }
        )
        print(f"{name:18} {rows[-1]['ms']:.4f} ms   {rows[-1]['ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    sizes = {form: round(sum(map(len, data)) / len(data)) for form, (data, _) in stored.items()}
    print(f"bytes per picture: {sizes}")
    if arguments.out:
        result = {
            "protocol": __doc__,
            "machine": describe_machine(),
            "versions": versions("torch", "numpy"),
            "commit": commit(),
            "images": len(files),
            "bytes_per_picture": sizes,
            "results": rows,
        }
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
