"""How fast pictures come out of a folder, ready to be augmented and trained on: torchslip and its peers, in one run.

What is measured
----------------
A training epoch's loading: read the files, decode JPEG, take a random-resized crop (scale 0.08 to 1, ratio 3/4 to
4/3) to 224 x 224 with antialiasing, and hand over batches of 100 as uint8, shuffled. Two sets of pictures:

* ``resized``: shorter side 256, at most 512 on the longer, JPEG quality 95, 4:2:0;
* ``original``: the files as they are.

Each has 2,400 files (``--images``), copies of the given pictures where these are fewer, and lies in the page cache.

How
---
* One trial is one loader on one set in a fresh process, pinned to the first ``--cores`` cores together with its
  workers: as many worker processes or threads as cores, and the training loop, which only looks at the shape of each
  batch. No trial outlives ``--deadline``; a loader that has failed is not tried again in that run.
* The first epoch of a trial warms up (files into the page cache, workers, compilation) and is not timed; the next
  ``--epochs`` are, each from asking for its first batch to having its last. Workers persist between epochs.
* Every loader is measured in every repetition, in an order that is shuffled anew (seeded) for each. Reported are
  medians over the repetitions with the smallest and the largest value, and ratios to ``--baseline``, taken within a
  repetition. **Only ratios of one run mean anything** where the machine is shared.
* Source megapixels per second and core (pictures x their area / cores) is the figure that carries over to pictures
  of other sizes.
* The time to the first batch is that of a fresh process after its imports: listing the folder, starting workers,
  compiling, and one batch.
* Memory is the largest sum of the proportional set sizes (Linux; elsewhere resident) of the process and its workers,
  sampled ten times a second in the warm-up epoch, after the first batch, when nothing is timed.

What is not
-----------
No disk or network (the page cache is warm), no conversion to float, no copy to a device, no training. The loaders do
not compute the same pixels: FFCV decodes with a less accurate inverse DCT and resizes by pixel area, from JPEG that
its writer has encoded again at quality 95, so its original-size pictures are larger files; DALI shuffles once per
epoch like the others, but crops by its own random numbers; torchslip and torchvision agree within the tolerance that
torchslip's tests hold.

Peers that are not installed are left out and the output says so. Those that need an environment of their own are run
by ``--dali-python`` and ``--ffcv-python``. ``README.md`` has the commands.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from _image_loading.contenders import CONTENDERS, PEERS, Contender
from _image_loading.pictures import Kind, PictureSet, default_source, prepare
from _image_loading.summary import as_table, summarise
from _image_loading.supervisor import Outcome, run_module
from _machine import commit, describe_machine, usable_cores

from torchslip.decode import backends

_BETON_SECONDS = 300.0


class Run:
    """All trials of one call, and what has been learnt of the contenders."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.left_out: dict[str, str] = {}
        self.trials: list[dict[str, Any]] = []
        self.versions: dict[str, dict[str, str]] = {}
        self.machine = describe_machine()
        self.commit = commit()
        source = options.data or default_source(options.work)
        self.source = "/".join(Path(source).parts[-2:])
        count = _whole_rounds(options.images, options.batch_size)
        self.sets = [prepare(source, kind, count, options.work) for kind in options.sets]
        own = [name for name in CONTENDERS if name not in PEERS]
        self.contenders = [CONTENDERS[name] for name in (*own, *options.peers)]

    def run(self) -> None:
        """Measure everything; the result file is written after every repetition."""
        self._leave_out()
        for repetition in range(self.options.repetitions):
            shuffled = random.Random(f"{self.options.seed} {repetition}")
            # Set by set, so that little time lies between the trials that a ratio is taken of.
            for pictures in shuffled.sample(self.sets, len(self.sets)):
                for contender in shuffled.sample(self.contenders, len(self.contenders)):
                    if contender.name not in self.left_out:
                        self._try(contender, pictures, repetition)
            if self.options.out:
                self._save(self.options.out)

    def _leave_out(self) -> None:
        for each in self.contenders:
            if each.needs_two_cores and self.options.cores == 1:
                self._drop(each.name, each.needs_two_cores)
        if "ffcv" in self.options.peers and "ffcv" not in self.left_out:
            for pictures in self.sets:
                self._write_beton(pictures)

    def _write_beton(self, pictures: PictureSet) -> None:
        if pictures.beton.exists() or "ffcv" in self.left_out:
            return
        module, arguments = "_image_loading.write_beton", (pictures.folder, pictures.beton)
        outcome = run_module(self.options.ffcv_python, module, arguments, deadline_seconds=_BETON_SECONDS)
        if outcome.status != "ok":
            self._drop("ffcv", f"its file could not be written: {outcome.reason}")

    def _try(self, contender: Contender, pictures: PictureSet, repetition: int) -> None:
        outcome = self._run_trial(contender, pictures, repetition)
        if outcome.status != "ok":
            what = {"missing": "not installed", "failed": "failed", "timeout": "timeout"}[outcome.status]
            self._drop(contender.name, f"{what}: {outcome.reason}")
            return
        self.versions[contender.name] = outcome.result.pop("versions")
        trial = {
            "set": pictures.kind,
            "contender": contender.name,
            "label": contender.label,
            "repetition": repetition,
            **outcome.result,
            "peak_pss_mib": outcome.peak_pss_mib,
            "peak_unmapped_pss_mib": outcome.peak_unmapped_pss_mib,
        }
        self.trials.append(trial)
        _say(f"{repetition + 1}  {pictures.kind:9} {contender.name:24} {trial['images_per_second']:7,.0f} images/s")

    def _run_trial(self, contender: Contender, pictures: PictureSet, repetition: int) -> Outcome:
        options = self.options
        arguments = {
            "--folder": pictures.folder,
            "--beton": pictures.beton,
            "--images": pictures.count,
            "--cores": options.cores,
            "--batch-size": options.batch_size,
            "--epochs": options.epochs,
            "--seed": options.seed + repetition,
        }
        flat = [contender.name, *(part for pair in arguments.items() for part in pair)]
        python = {"dali": options.dali_python, "ffcv": options.ffcv_python}.get(contender.name, sys.executable)
        return run_module(python, "_image_loading.trial", flat, deadline_seconds=options.deadline)

    def _drop(self, name: str, reason: str) -> None:
        self.left_out[name] = reason
        _say(f"{name} is left out: {reason}")

    def summary(self) -> list[dict[str, Any]]:
        """See `summarise`."""
        sets = [asdict(each) for each in self.sets]
        return summarise(self.trials, sets, self.options.cores, self.options.baseline)

    def _save(self, path: Path) -> None:
        options = {name: _plain(value) for name, value in vars(self.options).items() if name not in _PLACES}
        result = {
            "benchmark": "image_loading",
            "machine": self.machine,
            "commit": self.commit,
            "torchslip_decoders": [each.name for each in backends() if each.available],
            "options": options,
            "source": self.source,
            "sets": [{name: value for name, value in asdict(each).items() if name != "folder"} for each in self.sets],
            "versions": self.versions,
            "left_out": self.left_out,
            "summary": self.summary(),
            "trials": self.trials,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


_PLACES = ("data", "out", "work", "dali_python", "ffcv_python")


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None | list) else str(value)


def _whole_rounds(images: int, batch_size: int) -> int:
    """Fewer pictures, so that two workers have equally many whole batches and none idles at the end of an epoch."""
    rounded = images // (2 * batch_size) * 2 * batch_size
    if not rounded:
        raise SystemExit(f"--images must be at least {2 * batch_size}, two batches; got {images}.")
    return rounded


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name and name != "none"]


def _parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="a folder of pictures; default: the photographs of the test data")
    parser.add_argument("--cores", type=int, choices=(1, 2), default=2, help="cores to be pinned to, and workers")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2, help="timed epochs of a trial, after one that warms up")
    parser.add_argument("--peers", type=_names, default=list(PEERS), help=f"some of {','.join(PEERS)}; or none")
    parser.add_argument("--sets", type=_names, default=list(get_args(Kind)), help="some of resized,original")
    parser.add_argument("--baseline", help="the loader of the ratios; default: torchvision-decode, or else torchslip")
    parser.add_argument("--images", type=int, default=2400, help="files of a set")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--deadline", type=float, default=90, help="seconds that a trial may take")
    parser.add_argument("--dali-python", default=sys.executable, help="the Python that has DALI")
    parser.add_argument("--ffcv-python", default=sys.executable, help="the Python that has FFCV")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "torchslip-benchmarks")
    parser.add_argument("--out", type=Path, help="the result file, JSON")
    options = parser.parse_args(arguments)
    _complete(parser, options)
    return options


def _complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    for name, valid in (("peers", PEERS), ("sets", get_args(Kind))):
        unknown = [each for each in getattr(options, name) if each not in valid]
        if unknown:
            parser.error(f"--{name} must be among {', '.join(valid)}; got {', '.join(unknown)}")
    measured = [name for name in CONTENDERS if name not in PEERS] + options.peers
    if options.baseline is None:
        options.baseline = "torchvision-decode" if "torchvision-decode" in measured else "torchslip"
    if options.baseline not in measured:
        parser.error(f"--baseline must be one of the measured loaders {', '.join(measured)}; got {options.baseline}")
    if options.cores > len(usable_cores()):
        parser.error(f"--cores {options.cores}, but this process may use {len(usable_cores())}")


def main() -> None:
    options = _parse()
    start = time.monotonic()
    run = Run(options)
    run.run()
    print(as_table(run.summary(), options.baseline))
    _say(f"\n{time.monotonic() - start:.0f} s in all")
    if not set(CONTENDERS) - set(PEERS) - set(run.left_out):
        raise SystemExit("torchslip itself failed, see above.")


if __name__ == "__main__":
    main()
