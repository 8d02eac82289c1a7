"""From trials to medians, spreads and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["as_table", "summarise"]

Trial = dict[str, Any]

_WIDTHS = (10, 18, 8, 16, 11, 13, 12)


def summarise(
    trials: Sequence[Trial], sets: Sequence[dict[str, Any]], cores: int, baseline: str
) -> list[dict[str, Any]]:
    """One row for every set and contender, fastest first within a set.

    A ratio is taken within a repetition, where both were measured minutes apart, and then its median.
    """
    rows = []
    for pictures in sets:
        of_set = [trial for trial in trials if trial["set"] == pictures["kind"]]
        names = dict.fromkeys(trial["contender"] for trial in of_set)
        of_names = (_row(name, of_set, pictures, cores, baseline) for name in names)
        rows += sorted(of_names, key=lambda row: -row["images_per_second"]["median"])
    return rows


def _row(name: str, trials: Sequence[Trial], pictures: dict[str, Any], cores: int, baseline: str) -> dict[str, Any]:
    own = {trial["repetition"]: trial for trial in trials if trial["contender"] == name}
    base = {trial["repetition"]: trial for trial in trials if trial["contender"] == baseline}
    speed = {repetition: trial["images_per_second"] for repetition, trial in own.items()}
    ratios = [value / base[number]["images_per_second"] for number, value in speed.items() if number in base]
    return {
        "set": pictures["kind"],
        "contender": name,
        "label": next(iter(own.values()))["label"],
        "images_per_second": _spread(speed.values()),
        "megapixels_per_second_per_core": _spread(value * pictures["megapixels"] / cores for value in speed.values()),
        "ratio_to_baseline": _spread(ratios),
        "first_batch_seconds": _spread(trial["first_batch_seconds"] for trial in own.values()),
        "peak_pss_mib": _spread(trial["peak_pss_mib"] for trial in own.values()),
        "peak_unmapped_pss_mib": _spread(trial["peak_unmapped_pss_mib"] for trial in own.values()),
    }


def _spread(values: Iterable[float | None]) -> dict[str, float | int] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"median": statistics.median(known), "min": min(known), "max": max(known), "n": len(known)}


def as_table(rows: Sequence[dict[str, Any]], baseline: str) -> str:
    """The rows as text for a terminal."""
    head = ("", "images/s", "(min to max)", "ratio", "(min to max)", "MP/s/core", "first batch", "memory")
    lines = [f"Ratios to {baseline}; MP/s/core: source megapixels per second and core; memory: PSS of all processes."]
    for kind in dict.fromkeys(row["set"] for row in rows):
        lines += ["", _line((f"{kind} pictures", *head[1:]))]
        lines += [_line(_cells(row)) for row in rows if row["set"] == kind]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["contender"],
        *_median_and_range(row["images_per_second"], ",.0f"),
        *_median_and_range(row["ratio_to_baseline"], ".2f"),
        _median_and_range(row["megapixels_per_second_per_core"], ".0f")[0],
        _median_and_range(row["first_batch_seconds"], ".2f")[0] + " s",
        _median_and_range(row["peak_pss_mib"], ",.0f")[0] + " MiB",
    )


def _median_and_range(spread: dict[str, float] | None, form: str) -> tuple[str, str]:
    if spread is None:
        return "-", ""
    median, low, high = (format(spread[name], form) for name in ("median", "min", "max"))
    return median, f"({low} to {high})"


def _line(cells: tuple[str, ...]) -> str:
    return f"{cells[0]:24}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], _WIDTHS, strict=True))
