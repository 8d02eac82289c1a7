"""What torchslip promises about its speed, and what a run says to it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from _image_loading.pictures import Kind

__all__ = ["FIGURES", "Figure", "check_figures", "figures_table"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A promise: `contender` is at least `least` times as fast as `peer`, both on the same pictures.

    Attributes:
        work: In words.
        pictures: The set.
        contender: Which of ours.
        peer: Against which.
        least: How many times as fast.
    """

    work: str
    pictures: Kind
    contender: str
    peer: str
    least: float


FIGURES: tuple[Figure, ...] = (
    Figure("RRC 224, files as they are", "resized", "torchslip", "ffcv", 1.9),
    Figure("RRC 224, files as they are", "resized", "torchslip", "torchvision-decode", 2.7),
    Figure("RRC 224, files as they are", "resized", "torchslip", "dali", 2.9),
    Figure("RRC 224, tile-indexed pack", "resized", "torchslip-indexed", "ffcv", 2.3),
    Figure("RRC 224, original photographs", "original", "torchslip", "ffcv", 1.9),
    Figure("RRC 224, 2048 x 1536", "2048x1536", "torchslip", "torchvision-decode", 4.0),
    Figure("RRC 224, YUV420 pack", "resized", "torchslip-yuv420", "torchslip-mds", 2.5),
    Figure("RRC 224, YUV420 pack", "resized", "torchslip-yuv420", "ffcv", 3.0),
    Figure("2 x 224 + 8 x 96", "resized", "torchslip-10-views", "ffcv-10-decodes", 2.5),
    Figure("2 x 224 + 8 x 96", "resized", "torchslip-10-views", "torchslip-10-decodes", 2.5),
    # At most 1.6 times the time.
    Figure("2 x 224 + 8 x 96", "resized", "torchslip-10-views", "torchslip-2-views", 1 / 1.6),
)


def check_figures(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each promise of which both sides were measured: ratios are taken within a repetition, and then their median."""
    speeds = {(trial["set"], trial["contender"], trial["repetition"]): trial["images_per_second"] for trial in trials}
    repetitions = sorted({trial["repetition"] for trial in trials})
    checked = []
    for figure in FIGURES:
        pairs = [
            (speeds[ours], speeds[theirs])
            for ours, theirs in (
                ((figure.pictures, figure.contender, each), (figure.pictures, figure.peer, each))
                for each in repetitions
            )
            if ours in speeds and theirs in speeds
        ]
        ratios = [ours / theirs for ours, theirs in pairs]
        if ratios:
            median = statistics.median(ratios)
            spread = {"median": median, "min": min(ratios), "max": max(ratios), "n": len(ratios)}
            checked.append(
                {
                    "work": figure.work,
                    "set": figure.pictures,
                    "contender": figure.contender,
                    "peer": figure.peer,
                    "least": figure.least,
                    "ratio": spread,
                    "reached": median >= figure.least,
                }
            )
    return checked


def figures_table(checked: Sequence[dict[str, Any]]) -> str:
    """The promises as text for a terminal."""
    lines = [f"{'':32}{'of':22}{'over':24}{'ratio':>7}  {'(min to max)':16}{'at least':>9}"]
    for each in checked:
        ratio, mark = each["ratio"], "reached" if each["reached"] else "missed"
        spread = f"({ratio['min']:.2f} to {ratio['max']:.2f})"
        lines.append(
            f"{each['work']:32}{each['contender']:22}{each['peer']:24}{ratio['median']:7.2f}  {spread:16}"
            f"{each['least']:9.2f}  {mark}"
        )
    return "\n".join(lines)
