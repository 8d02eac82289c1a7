"""Draw a result of `image_loading.py` as a bar chart: ``python benchmarks/plot.py results/image_loading-2.json``.

One panel for each set of pictures. A bar is the median over the repetitions, the line on it reaches from the slowest
to the fastest, and the number beside it says how many times as fast as the baseline that loader was, again the median
over the repetitions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine

RESULTS = Path(__file__).parent / "results"
OURS, PEER, BASELINE, INK = "#d9480f", "#9db4c8", "#5c7a94", "#222222"


def draw(result: dict[str, Any], out: Path) -> None:
    sets = [pictures for pictures in result["sets"] if _rows(result, pictures["kind"])]
    bars = sum(len(_rows(result, pictures["kind"])) for pictures in sets)
    figure, panels = plt.subplots(
        len(sets),
        1,
        figsize=(9.5, 0.4 * bars + 1.1 * len(sets) + 1.1),
        height_ratios=[len(_rows(result, pictures["kind"])) for pictures in sets],
        squeeze=False,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, hspace=0.04),
    )
    for panel, pictures in zip(panels[:, 0], sets, strict=True):
        _draw_panel(panel, result, pictures)
    panels[-1, 0].set_xlabel("pictures per second (longer is faster)")
    cores = result["options"]["cores"]
    title = f"Loading pictures for training, on {cores} CPU core{'s' if cores > 1 else ''}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold")
    figure.supxlabel(_footnote(result), x=0.01, ha="left", fontsize=8, color="#666666")
    figure.savefig(out, dpi=150, bbox_inches="tight")
    plt.close(figure)


def _rows(result: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [row for row in result["summary"] if row["set"] == kind]


def _draw_panel(axes: Axes, result: dict[str, Any], pictures: dict[str, Any]) -> None:
    rows = _rows(result, pictures["kind"])[::-1]
    speeds = [row["images_per_second"] for row in rows]
    medians = [speed["median"] for speed in speeds]
    spread = [
        [speed["median"] - speed["min"] for speed in speeds],
        [speed["max"] - speed["median"] for speed in speeds],
    ]
    baseline = result["options"]["baseline"]
    colors = [_color(row["contender"], baseline) for row in rows]
    axes.barh(range(len(rows)), medians, color=colors, height=0.68)
    axes.errorbar(medians, range(len(rows)), xerr=spread, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    longest = max(speed["max"] for speed in speeds)
    for place, (row, speed) in enumerate(zip(rows, speeds, strict=True)):
        axes.text(speed["max"] + longest * 0.015, place, _value(row, baseline), va="center", color=INK, fontsize=10)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=10)
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row["contender"].startswith("torchslip") else "normal")
    axes.set_xlim(0, longest * 1.36)
    axes.set_title(_panel_title(pictures), loc="left", fontsize=11)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _color(contender: str, baseline: str) -> str:
    if contender.startswith("torchslip"):
        return OURS
    return BASELINE if contender == baseline else PEER


def _value(row: dict[str, Any], baseline: str) -> str:
    speed = f"{row['images_per_second']['median']:,.0f}"
    if row["contender"] == baseline:
        return f"{speed}   (baseline)"
    ratio = row["ratio_to_baseline"]
    return speed if ratio is None else f"{speed}   {ratio['median']:.2f}x baseline"


def _panel_title(pictures: dict[str, Any]) -> str:
    what = {
        "resized": "Pictures resized to 256 pixels on the shorter side",
        "original": "The same pictures at their original size",
        "2048x1536": "Pictures of 2048 x 1536",
    }[pictures["kind"]]
    return f"{what} ({pictures['megapixels']:.2f} megapixels, {pictures['file_bytes'] / 1000:.0f} kB each)"


def _footnote(result: dict[str, Any]) -> str:
    options, machine = result["options"], result["machine"]
    return (
        "JPEG files in memory -> decoded, random-resized crop to 224 x 224, uint8 batches of "
        f"{options['batch_size']}, shuffled. Bar: median of {options['repetitions']} runs; line: slowest to fastest.\n"
        f"{machine['cpu']}, {machine['date'][:10]}. Only the ratios of one run mean anything. "
        "Protocol: benchmarks/image_loading.py"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("results", type=Path, nargs="*", help="default: benchmarks/results/image_loading*.json")
    parser.add_argument("--out", type=Path, help="the PNG, for a single result; default: beside it")
    options = parser.parse_args()
    results = options.results or sorted(RESULTS.glob("image_loading*.json"))
    if not results:
        parser.error(f"no image_loading*.json in {RESULTS}; run image_loading.py with --out first")
    if options.out and len(results) > 1:
        parser.error(f"--out names one picture, but there are {len(results)} results")
    for path in results:
        out = options.out or path.with_suffix(".png")
        draw(json.loads(path.read_text()), out)
        print(out)


if __name__ == "__main__":
    main()
