"""How fast batches are augmented: torchslip, torchvision v2 and kornia, in one run, on the CPU and on a GPU.

What is measured
----------------
Batches that lie in memory already, of pictures of 224 x 224 (drawn, smooth colours with noise), go through

* ``simclr``: flip, colour jitter 0.8 0.8 0.8 0.2 (p 0.8), gray (p 0.2), blur of 23 taps (p 0.5), normalise;
* ``dino``: the ten views of an image, two of 224 and eight of 96 pixels, each through its own chain of these and
  solarise; an image counts once;
* single transforms, which get floats and give floats, except where the name says otherwise or bytes are defined.

Contenders: ``torchslip`` draws parameters for each image; ``torchvision-sample`` is torchvision v2 image by
image, which draws for each too; ``torchvision-batch`` is torchvision v2 on the whole batch, with one set of parameters
for all of it, which is another augmentation and less work; ``kornia`` draws for each image. On a GPU,
``torchslip-compiled`` is torchslip under ``torch.compile``.

How
---
* A trial runs one contender on one case again and again, each time with new parameters, for at least ``--seconds``,
  after one run that warms up (four where it is compiled), and takes images per second. On a GPU the clock stops after
  a synchronisation, the batch lies on the device and so do the sample ids.
* Every contender is measured in every repetition, case by case, in an order that is shuffled anew (seeded) for each.
  Reported are medians with the smallest and largest value, and ratios to torchslip's, taken within a repetition.
  **Only ratios of one run mean anything** where the machine is shared.
* A contender that fails is left out of that case, with its reason in the result; one that needs longer than
  ``--deadline`` to warm up is not tried again in that case.

What is not
-----------
No decoding, no transfer to the device, no training. The libraries do not compute the same pixels everywhere: kornia's
blur and torchslip's and torchvision's agree, the order of kornia's colour jitter is one for the whole batch.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _augment.cases import CASES, PEERS, Case
from _machine import commit, describe_machine, versions

from torchslip import augment as A

CONTENDERS = ("torchslip", "torchslip-compiled", *PEERS)


class TooSlowError(Exception):
    """One run took longer than the deadline."""


def pictures(count: int, size: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Smooth colours with noise; bytes in the memory format of the loader."""
    generator = torch.Generator().manual_seed(size)
    coarse = torch.rand((count, 3, 8, 8), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    noisy = (smooth + 0.1 * torch.rand((count, 3, size, size), generator=generator)).clamp(0, 1)
    if dtype == torch.uint8:
        return (noisy * 255).to(dtype).to(device).contiguous(memory_format=torch.channels_last)
    return noisy.to(device)


def make_run(case: Case, contender: str, count: int, device: str) -> Callable[[int], Any]:
    """A function that augments the batch once; its argument makes the parameters new."""
    views = {name: pictures(count, size, case.dtype, device) for name, size in case.views}
    if contender.startswith("torchslip"):
        transform: Any = A.MultiView({name: case.ours(name) for name in views}, seed=17)
        if contender == "torchslip-compiled":
            transform.compile()
        ids = torch.arange(count, device=device)
        return lambda step: transform({**views, "sample_id": ids}, epoch=step)
    if contender == "kornia":
        chains = {name: (case.kornia or _missing)(name) for name in views}
        if device != "cpu":
            chains = {name: chain.to(device) for name, chain in chains.items()}
        scale = case.dtype == torch.uint8
        return lambda step: [chains[name](x.float() / 255 if scale else x) for name, x in views.items()]
    chains = {name: (case.torchvision or _missing)(name) for name in views}
    if contender == "torchvision-batch":
        return lambda step: [chains[name](x) for name, x in views.items()]
    return lambda step: [torch.stack([chains[name](image) for image in x]) for name, x in views.items()]


def measure(
    run: Callable[[int], Any], count: int, device: str, *, seconds: float, deadline: float, warm_up: int
) -> float:
    """Images per second."""
    first = time.perf_counter()
    for step in range(warm_up):
        run(step)
    _wait(device)
    if time.perf_counter() - first > deadline:
        raise TooSlowError(f"warming up took more than {deadline} s")
    start, steps = time.perf_counter(), 0
    while True:
        steps += 1
        run(warm_up + steps)
        # Asking a GPU after each run would measure the asking.
        if device == "cpu" or steps % 8 == 0:
            _wait(device)
            if time.perf_counter() - start >= seconds:
                return steps * count / (time.perf_counter() - start)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _missing(view: str) -> Any:
    raise LookupError(view)


def has(case: Case, contender: str, device: str) -> bool:
    """Whether the library has this transform."""
    if contender == "torchslip-compiled":
        return device != "cpu"
    return {"kornia": case.kornia, "torchslip": case.ours}.get(contender, case.torchvision) is not None


class Run:
    """All trials of one call."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.left_out: dict[str, str] = {}
        self.trials: list[dict[str, Any]] = []

    def run(self) -> None:
        """Measure everything; the result file is written after every repetition."""
        for repetition in range(self.options.repetitions):
            shuffled = random.Random(f"{self.options.seed} {repetition}")
            for device in self.options.devices:
                for name in shuffled.sample(self.options.cases, len(self.options.cases)):
                    for contender in shuffled.sample(self.options.contenders, len(self.options.contenders)):
                        self._try(device, name, contender, repetition)
            if self.options.out:
                self.save(self.options.out)

    def _try(self, device: str, name: str, contender: str, repetition: int) -> None:
        options, case, key = self.options, CASES[name], f"{device} {name} {contender}"
        if key in self.left_out or not has(case, contender, device):
            return
        count = options.batch_size_cpu if device == "cpu" else options.batch_size_gpu
        compiled = contender == "torchslip-compiled"
        deadline = options.compile_deadline if compiled else options.deadline
        try:
            if compiled:
                torch.compiler.reset()
            run = make_run(case, contender, count, device)
            # The compiler takes the epoch for a constant twice before it makes it a variable.
            warm_up = 4 if compiled else 1
            speed = measure(run, count, device, seconds=options.seconds, deadline=deadline, warm_up=warm_up)
        except Exception as error:  # a library that cannot do it is left out, whatever it raises
            self.left_out[key] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            _say(f"{key} is left out: {self.left_out[key]}")
            return
        trial = {"device": device, "case": name, "contender": contender, "repetition": repetition}
        self.trials.append(trial | {"batch_size": count, "images_per_second": speed})
        _say(f"{repetition + 1}  {key:48} {speed:12,.0f} images/s")

    def summary(self) -> list[dict[str, Any]]:
        """Medians, spreads, and how many times as fast torchslip is."""
        rows = []
        for device in self.options.devices:
            for name in self.options.cases:
                speeds = {contender: self._speeds(device, name, contender) for contender in self.options.contenders}
                own = speeds.get("torchslip", {})
                for contender, values in speeds.items():
                    if values:
                        ratios = [own[number] / value for number, value in values.items() if number in own]
                        row = {"device": device, "case": name, "contender": contender}
                        row |= {"images_per_second": _spread(values.values()), "torchslip_is_faster": _spread(ratios)}
                        rows.append(row)
        return rows

    def _speeds(self, device: str, name: str, contender: str) -> dict[int, float]:
        wanted = {"device": device, "case": name, "contender": contender}
        found = [trial for trial in self.trials if wanted.items() <= trial.items()]
        return {trial["repetition"]: trial["images_per_second"] for trial in found}

    def save(self, path: Path) -> None:
        """Write what has been measured so far."""
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        result = {
            "benchmark": "augment",
            "machine": describe_machine() | {"gpu": gpu, "threads": torch.get_num_threads()},
            "commit": commit(),
            "options": {name: value for name, value in vars(self.options).items() if name != "out"},
            "versions": versions("torch", "torchvision", "kornia"),
            "left_out": self.left_out,
            "summary": self.summary(),
            "trials": self.trials,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")

    def table(self) -> str:
        """The summary as text for a terminal."""
        lines = [f"{'':8}{'':18}{'':20}{'images/s':>12}{'(min to max)':>20}   torchslip is faster"]
        for row in self.summary():
            speed, ratio = row["images_per_second"], row["torchslip_is_faster"]
            spread = f"{speed['min']:,.0f} to {speed['max']:,.0f}"
            times = "" if ratio is None or row["contender"] == "torchslip" else f"{ratio['median']:.2f} times"
            head = f"{row['device']:8}{row['case']:18}{row['contender']:20}"
            lines.append(f"{head}{speed['median']:12,.0f}{spread:>20}   {times}")
        return "\n".join(lines)


def _spread(values: Any) -> dict[str, float] | None:
    known = list(values)
    if not known:
        return None
    return {"median": statistics.median(known), "min": min(known), "max": max(known), "n": len(known)}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--devices", type=_names, default=devices, help="cpu, cuda; default: those that are there")
    parser.add_argument("--cases", type=_names, default=list(CASES), help=f"some of {','.join(CASES)}")
    parser.add_argument("--contenders", type=_names, default=list(CONTENDERS), help=f"some of {','.join(CONTENDERS)}")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="how long a trial runs at least")
    parser.add_argument("--batch-size-cpu", type=int, default=32)
    parser.add_argument("--batch-size-gpu", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2, help="of torch on the CPU")
    parser.add_argument("--deadline", type=float, default=20, help="seconds that warming up may take")
    parser.add_argument("--compile-deadline", type=float, default=300, help="likewise, with compilation")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--out", type=Path, help="the result file, JSON")
    options = parser.parse_args(arguments)
    for name, valid in (("cases", CASES), ("contenders", CONTENDERS), ("devices", ("cpu", "cuda"))):
        unknown = [each for each in getattr(options, name) if each not in valid]
        if unknown:
            parser.error(f"--{name} must be among {', '.join(valid)}; got {', '.join(unknown)}")
    return options


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    start = time.monotonic()
    run = Run(options)
    with torch.no_grad():
        run.run()
    print(run.table())
    _say(f"\n{time.monotonic() - start:.0f} s in all")
    if not any(trial["contender"] == "torchslip" for trial in run.trials):
        raise SystemExit("torchslip itself failed, see above.")


if __name__ == "__main__":
    main()
