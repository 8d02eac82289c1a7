"""How fast pictures come out of a folder, ready to be augmented and trained on: torchslip and its peers, in one run.

What is measured
----------------
A training epoch's loading: read the files, decode JPEG, take a random-resized crop (scale 0.08 to 1, ratio 3/4 to
4/3) to 224 x 224 with antialiasing, and hand over batches of 100 as uint8, shuffled. Three sets of pictures:

* ``resized``: shorter side 256, at most 512 on the longer, JPEG quality 95, 4:2:0;
* ``original``: the files as they are;
* ``2048x1536``: made so large, JPEG quality 90, 4:2:0.

The first two have 2,400 files (``--images``), copies of the given pictures where these are fewer, the third has 400
(``--large-images``). All lie in the page cache. ``torchslip-mds``, ``-indexed`` and ``-yuv420`` read what `pack` made
of the same files: kept, written again with a tile index, or as planes.

``10-views`` are two views of 224 pixels (scale 0.4 to 1) and eight of 96 (0.05 to 0.4) of each picture, from one
decode; ``10-decodes`` decode it anew for each view, by torchslip's own decoder, or in ten pipelines of one field of
FFCV, as FFCV-SSL does it; ``2-views`` are the two large ones alone.

``--figures`` measures what torchslip's promises compare, and says which of them hold (`_image_loading/figures.py`).

How
---
* One trial is one loader on one set in a fresh process, pinned to the first ``--cores`` cores together with its
  workers: as many worker processes or threads as cores, and the training loop, which only looks at the shape of each
  batch. No trial outlives ``--deadline``; a loader that has failed is not tried again in that run.
* The first epoch of a trial warms up (files into the page cache, workers, compilation) and is not timed; the next
  ``--epochs`` are, and more until ``--least-seconds`` have been timed, each from asking for its first batch to having
  its last. Workers persist between epochs.
* Every loader is measured in every repetition, in an order that is shuffled anew (seeded) for each set. Reported are
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
its writer has encoded again at quality 95, so its original-size pictures are larger files; pictures that were made
2048 x 1536 show less detail than those of cameras, in files of 0.4 instead of 1 MB or more; DALI shuffles once per
epoch like the others, but crops by its own random numbers; torchslip and torchvision agree within the tolerance that
torchslip's tests hold.

Peers that are not installed are left out and the output says so. Those that need an environment of their own are run
by ``--dali-python`` and ``--ffcv-python``. What the installed torchslip cannot pack is left out the same way.
``README.md`` has the commands.
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

from _image_loading.contenders import CONTENDERS, PEERS, SINGLE_VIEW
from _image_loading.figures import FIGURES, check_figures, figures_table
from _image_loading.job import Contender, Job
from _image_loading.pictures import Kind, PictureSet, default_source, prepare
from _image_loading.summary import as_table, summarise
from _image_loading.supervisor import Outcome, run_module
from _machine import commit, describe_machine, usable_cores

from torchslip.decode import backends

_WRITING_SECONDS = 300.0


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
        self.sets = [prepare(source, kind, self._count_of(kind), options.work) for kind in options.sets]
        self.contenders = [CONTENDERS[name] for name in (*options.own, *options.peers)]

    def _count_of(self, kind: Kind) -> int:
        options = self.options
        if kind == "2048x1536":
            return _whole_rounds(options.large_images, options.batch_size, "--large-images")
        return _whole_rounds(options.images, options.batch_size, "--images")

    def run(self) -> None:
        """Measure everything; the result file is written after every repetition."""
        self._leave_out()
        for repetition in range(self.options.repetitions):
            shuffled = random.Random(f"{self.options.seed} {repetition}")
            # Set by set, so that little time lies between the trials that a ratio is taken of.
            for pictures in shuffled.sample(self.sets, len(self.sets)):
                for contender in shuffled.sample(self.contenders, len(self.contenders)):
                    if contender.name not in self.left_out and self._is_wanted(contender, pictures.kind):
                        self._try(contender, pictures, repetition)
            if self.options.out:
                self._save(self.options.out)

    def _is_wanted(self, contender: Contender, kind: str) -> bool:
        if self.options.figures:
            names = {name for each in FIGURES if each.pictures == kind for name in (each.contender, each.peer)}
            # What the others are compared with.
            return contender.name in names | {self.options.baseline}
        return kind in contender.sets

    def _leave_out(self) -> None:
        for each in self.contenders:
            if each.needs_two_cores and self.options.cores == 1:
                self._drop(each.name, each.needs_two_cores)
        for each in self.contenders:
            for pictures in self.sets:
                if self._is_wanted(each, pictures.kind) and each.name not in self.left_out:
                    self._write_data(each, pictures)

    def _write_data(self, contender: Contender, pictures: PictureSet) -> None:
        """Store the pictures as the contender reads them, unless an earlier run has done it."""
        options = self.options
        job = Job(Path(pictures.folder), options.cores, options.batch_size, options.seed)
        arguments: tuple[object, ...]
        if contender.pixels is not None:
            python, module = sys.executable, "_image_loading.write_pack"
            arguments = job.folder, job.pack(contender.pixels), contender.pixels
        elif contender.name.startswith("ffcv") and not job.beton.exists():
            python, module, arguments = options.ffcv_python, "_image_loading.write_beton", (job.folder, job.beton)
        else:
            return
        outcome = run_module(python, module, arguments, deadline_seconds=_WRITING_SECONDS)
        if outcome.status != "ok":
            self._drop(contender.name, f"its data could not be written: {outcome.reason}")

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
            "--images": pictures.count,
            "--cores": options.cores,
            "--batch-size": options.batch_size,
            "--epochs": options.epochs,
            "--least-seconds": options.least_seconds,
            "--seed": options.seed + repetition,
        }
        flat = [contender.name, *(part for pair in arguments.items() for part in pair)]
        peer = contender.name.split("-")[0]
        python = {"dali": options.dali_python, "ffcv": options.ffcv_python}.get(peer, sys.executable)
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
            "figures": check_figures(self.trials),
            "trials": self.trials,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


_OWN = tuple(name for name in CONTENDERS if name not in PEERS)
_KINDS: tuple[Kind, ...] = get_args(Kind)
_PLACES = ("data", "out", "work", "dali_python", "ffcv_python")


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None | list) else str(value)


def _whole_rounds(images: int, batch_size: int, option: str) -> int:
    """Fewer pictures, so that two workers have equally many whole batches and none idles at the end of an epoch."""
    rounded = images // (2 * batch_size) * 2 * batch_size
    if not rounded:
        raise SystemExit(f"{option} must be at least {2 * batch_size}, two batches; got {images}.")
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
    parser.add_argument("--epochs", type=int, default=2, help="least timed epochs of a trial, after one that warms up")
    parser.add_argument("--least-seconds", type=float, default=2, help="that the timed epochs take, or more of them")
    parser.add_argument("--figures", action="store_true", help="measure what the promises compare, instead of all")
    parser.add_argument("--own", type=_names, help=f"some of {','.join(_OWN)}; default: those with one view")
    parser.add_argument(
        "--peers", type=_names, help=f"some of {','.join(PEERS)}; or none; default: those with one view"
    )
    parser.add_argument("--sets", type=_names, help=f"some of {','.join(_KINDS)}; default: resized,original")
    parser.add_argument("--baseline", help="the loader of the ratios; default: torchvision-decode, or else torchslip")
    parser.add_argument("--images", type=int, default=2400, help="files of a set")
    parser.add_argument("--large-images", type=int, default=400, help="files of the set 2048x1536")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--deadline", type=float, default=120, help="seconds that a trial may take")
    parser.add_argument("--dali-python", default=sys.executable, help="the Python that has DALI")
    parser.add_argument("--ffcv-python", default=sys.executable, help="the Python that has FFCV")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "torchslip-benchmarks")
    parser.add_argument("--out", type=Path, help="the result file, JSON")
    options = parser.parse_args(arguments)
    _complete(parser, options)
    return options


def _complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    compared = {name for each in FIGURES for name in (each.contender, each.peer)} if options.figures else SINGLE_VIEW
    sets = list(_KINDS) if options.figures else ["resized", "original"]
    for name, valid, default in (
        ("own", _OWN, [each for each in _OWN if each in compared]),
        ("peers", PEERS, [each for each in PEERS if each in compared]),
        ("sets", _KINDS, sets),
    ):
        if getattr(options, name) is None:
            setattr(options, name, default)
        unknown = [each for each in getattr(options, name) if each not in valid]
        if unknown:
            parser.error(f"--{name} must be among {', '.join(valid)}; got {', '.join(unknown)}")
    measured = options.own + options.peers
    if not measured:
        parser.error("--own and --peers leave nothing to measure")
    if options.baseline is None:
        options.baseline = next((each for each in ("torchvision-decode", "torchslip") if each in measured), measured[0])
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
    if checked := check_figures(run.trials):
        print(f"\n{figures_table(checked)}")
    _say(f"\n{time.monotonic() - start:.0f} s in all")
    if options.own and not set(options.own) - set(run.left_out):
        raise SystemExit("torchslip itself failed, see above.")


if __name__ == "__main__":
    main()
