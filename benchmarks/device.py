"""How batches come to a GPU: correctness first, then images per second with and without work for the GPU.

What is measured
----------------
Batches of random resized crops of 224 x 224 from a folder of JPEG, shuffled, in the hands of a loop on the device:

* ``copy``: workers decode (``turbo`` where it is built); the loop calls ``.to(device)``, so nothing overlaps;
* ``pinned``: the same with torch's ``pin_memory=True`` and ``.to(device, non_blocking=True)``;
* ``device``: ``ts.DataLoader(device=...)``: pinned staging and copies on a stream of their own, one batch ahead;
* ``decode-torchvision``, ``decode-dali``: ``decode="device"``: workers ship encoded bytes, the device decodes.

Each with no work in the loop, and with ``--matmuls`` products of square matrices of side ``--side`` per batch, beside
which a copy can be hidden. All normalise to float32 on the device, `copy` and `pinned` in the loop, the others by
``augment=``.

How
---
* Correctness comes first: transfers must give the bytes of the CPU path, decoding on the device pictures that differ
  from it by at most 2 levels in the mean of each batch. A contender that does not is reported, not measured, and the
  script ends with status 1.
* A trial takes one pass over the data after a warm-up of ``--warm-up`` batches, or as many batches as fit into
  ``--seconds``; the clock stops after a synchronisation. Contenders run in an order shuffled anew in each repetition.
* Reported are medians with the smallest and largest value, and ratios to ``copy`` taken within a repetition.
  **Only ratios of one run mean anything.**
* A contender that cannot run here is left out, with its reason in the result.

With ``--device cpu`` all of this runs on the CPU and shows only that it works.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _image_loading.pictures import default_source
from _machine import commit, describe_machine, versions

import torchslip as ts

CONTENDERS = ("copy", "pinned", "device", "decode-torchvision", "decode-dali")
MOST_MEAN_LEVELS = 2.0


def dataset(options: argparse.Namespace, decoder: str = "auto") -> ts.ImageDataset:
    view = ts.RandomResizedCrop(options.size)
    return ts.ImageDataset(
        options.data, views=view, batch_size=options.batch, shuffle=True, seed=17, tail="drop", decoder=decoder
    )


def batches(contender: str, options: argparse.Namespace, augment: Any, *, epoch: int) -> Iterator[dict[str, Any]]:
    """Batches of one epoch on the device, normalised if `augment` is given."""
    device, workers = torch.device(options.device), options.workers
    if contender in ("copy", "pinned"):
        loader = ts.DataLoader(dataset(options), num_workers=workers, pin_memory=contender == "pinned")
        loader.set_epoch(epoch)
        for batch in loader:
            moved = {
                key: value.to(device, non_blocking=contender == "pinned") if isinstance(value, torch.Tensor) else value
                for key, value in batch.items()
            }
            yield moved if augment is None else augment(moved)
        return
    decode = {"device": ("auto", "workers")}.get(contender, (contender.removeprefix("decode-"), "device"))
    loader = ts.DataLoader(
        dataset(options, decode[0]), num_workers=workers, device=device, decode=decode[1], augment=augment
    )
    loader.set_epoch(epoch)
    yield from loader


def compare(contender: str, options: argparse.Namespace) -> dict[str, Any]:
    """The largest and mean difference to the CPU path, over a few batches."""
    worst, mean, same = 0, 0.0, True
    expected = iter(ts.DataLoader(dataset(options), num_workers=0))
    for _, ours, theirs in zip(
        range(options.compared), batches(contender, options, None, epoch=0), expected, strict=False
    ):
        apart = (ours["image"].cpu().int() - theirs["image"].int()).abs()
        worst, mean = max(worst, int(apart.max())), max(mean, apart.float().mean().item())
        same &= all(torch.equal(ours[key].cpu(), theirs[key]) for key in ("label", "sample_id"))
    exact = not contender.startswith("decode")
    right = same and (worst == 0 if exact else mean <= MOST_MEAN_LEVELS)
    return {"contender": contender, "right": right, "largest": worst, "mean_of_worst_batch": round(mean, 4)}


def synchronise(options: argparse.Namespace) -> None:
    if options.device != "cpu":
        torch.cuda.synchronize()


def measure(contender: str, matmuls: int, options: argparse.Namespace, *, epoch: int) -> dict[str, Any]:
    """Images per second of one trial."""
    normalise = ts.augment.Normalize()
    matrix = torch.rand((options.side, options.side), device=options.device) / options.side
    start, count, total = 0.0, 0, torch.zeros((), device=options.device)
    for number, batch in enumerate(batches(contender, options, normalise, epoch=epoch)):
        if number == options.warm_up:
            synchronise(options)
            start = time.perf_counter()
        total += batch["image"].mean()
        work = matrix
        for _ in range(matmuls):
            work = work @ matrix
        total += work[0, 0]
        if number >= options.warm_up:
            count += len(batch["image"])
            if time.perf_counter() - start > options.seconds:
                break
    synchronise(options)
    seconds = time.perf_counter() - start
    if not count:
        raise SystemExit(f"{options.data} has too few pictures for {options.warm_up + 1} batches of {options.batch}.")
    rate = count / seconds
    return {"contender": contender, "matmuls": matmuls, "images_per_s": rate, "images": count, "seconds": seconds}


def run(options: argparse.Namespace) -> dict[str, Any]:
    left_out, compared, trials = {}, [], []
    for contender in CONTENDERS:
        try:
            compared.append(compare(contender, options))
        except (RuntimeError, ValueError) as error:
            left_out[contender] = str(error)
        print(f"{contender}: {left_out.get(contender) or compared[-1]}", file=sys.stderr, flush=True)
    able = [each["contender"] for each in compared if each["right"]]
    shuffler = random.Random(17)
    for repetition in range(options.repetitions):
        for matmuls in (0, options.matmuls):
            for contender in shuffler.sample(able, len(able)):
                trial = {"repetition": repetition, **measure(contender, matmuls, options, epoch=repetition)}
                trials.append(trial)
                print(json.dumps(trial), file=sys.stderr, flush=True)
    return {"left_out": left_out, "correctness": compared, "trials": trials, "summary": summarise(trials)}


def summarise(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for matmuls, contender in dict.fromkeys((each["matmuls"], each["contender"]) for each in trials):
        own = {
            t["repetition"]: t["images_per_s"] for t in trials if (t["matmuls"], t["contender"]) == (matmuls, contender)
        }
        base = {
            t["repetition"]: t["images_per_s"] for t in trials if (t["matmuls"], t["contender"]) == (matmuls, "copy")
        }
        ratios = [rate / base[number] for number, rate in own.items() if number in base]
        row: dict[str, Any] = {"contender": contender, "matmuls": matmuls, "images_per_s": _spread(list(own.values()))}
        rows.append(row | {"ratio": _spread(ratios) if ratios else None})
    return sorted(rows, key=lambda row: (row["matmuls"], CONTENDERS.index(row["contender"])))


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "smallest": min(values), "largest": max(values)}


def table(summary: list[dict[str, Any]]) -> str:
    lines = ["| contender | matmuls | images/s | ratio to copy |", "|---|---|---|---|"]
    for row in summary:
        rate, ratio = row["images_per_s"], row["ratio"]
        span = f"{ratio['median']:.2f} ({ratio['smallest']:.2f} to {ratio['largest']:.2f})" if ratio else ""
        lines.append(f"| {row['contender']} | {row['matmuls']} | {rate['median']:,.0f} | {span} |")
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--data", type=Path, help="a folder of pictures; default: the test photographs, else drawn ones"
    )
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "torchslip-benchmarks")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224, help="side of the crops")
    parser.add_argument("--seconds", type=float, default=10, help="of a trial at most")
    parser.add_argument("--warm-up", type=int, default=3, help="batches before the clock starts")
    parser.add_argument("--compared", type=int, default=4, help="batches that are compared with the CPU path")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--matmuls", type=int, default=16)
    parser.add_argument("--side", type=int, default=8192, help="of the matrices")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    options = parser.parse_args()
    if options.quick:
        options.workers, options.batch, options.size, options.seconds = 1, 8, 32, 0.1
        options.warm_up, options.compared, options.repetitions, options.matmuls, options.side = 1, 1, 1, 1, 64
    return options


def main() -> None:
    options = _parse()
    options.data = options.data or default_source(options.work)
    result = run(options)
    gpu = torch.cuda.get_device_name() if options.device.startswith("cuda") else None
    packages = ("torch", "torchvision", "torchslip", "nvidia-dali-cuda130", "nvidia-nvjpeg")
    about = {"machine": describe_machine(), "gpu": gpu, "versions": versions(*packages), "commit": commit()}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    if options.out is not None:
        options.out.write_text(json.dumps({**about, "options": settings, **result}, indent=1) + "\n")
    print(table(result["summary"]))
    wrong = [each["contender"] for each in result["correctness"] if not each["right"]]
    if wrong:
        raise SystemExit(f"Not the pixels of the CPU path: {', '.join(wrong)}.")


if __name__ == "__main__":
    main()
