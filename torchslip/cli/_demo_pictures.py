"""A small labelled picture set, drawn on the spot: eight classes of shapes and patterns."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from torchslip.errors import FormatError
from torchslip.sources import ImageFolder

__all__ = ["CLASSES", "PICTURES", "draw_picture", "draw_pictures"]

CLASSES = ("checks", "circles", "crosses", "rings", "squares", "stars", "stripes", "triangles")
PICTURES = 2000

_VERSION = 1
_MARKER = "drawn-by-torchslip.json"
_SIDES_PX = (80, 240)
_GRAY_SHARE = 0.1
_PNG_SHARE = 0.1

Color = tuple[int, int, int]
Points = list[tuple[float, float]]


def draw_pictures(
    folder: str | os.PathLike[str],
    *,
    count: int = PICTURES,
    seed: int = 17,
    progress: Callable[[int], None] = lambda drawn: None,
) -> bool:
    """Draw the set into `folder`, one sub-folder per class; a set that is there and complete is left as it is.

    The pictures have sides of 80 to 240 px. One in ten is grayscale, one in ten is a PNG, the others are JPEGs.

    Args:
        folder: Appears when the set is whole, not before.
        count: How many pictures, divided evenly over `CLASSES`.
        seed: Other seeds give other pictures.
        progress: Called after each picture with the number drawn so far.

    Returns:
        Whether it was drawn; False if it was there.

    Raises:
        FormatError: If `folder` exists and is not the complete set.
    """
    target = Path(folder)
    if target.exists():
        _check_complete(target, count, seed)
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        unfinished.chmod(0o755)  # mkdtemp makes it private
        for index in range(count):
            _save(draw_picture(index, seed=seed), unfinished, index, seed)
            progress(index + 1)
        marker = {**_recipe(count, seed), "fingerprint": ImageFolder(unfinished).fingerprint}
        (unfinished / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return True


def draw_picture(index: int, *, seed: int = 17) -> Image.Image:
    """Picture `index` of the set, whose class is ``CLASSES[index % 8]``; mode ``RGB`` or ``L``."""
    random = np.random.default_rng([seed, index])
    kind = CLASSES[index % len(CLASSES)]
    width, height = (int(side) for side in random.integers(_SIDES_PX[0], _SIDES_PX[1] + 1, 2))
    if kind in ("checks", "stripes"):
        picture = _pattern(kind, width, height, random)
    else:
        picture = _shapes(kind, width, height, random)
    return picture.convert("L") if random.random() < _GRAY_SHARE else picture


def _recipe(count: int, seed: int) -> dict[str, int]:
    return {"version": _VERSION, "pictures": count, "seed": seed}


def _check_complete(target: Path, count: int, seed: int) -> None:
    try:
        marker = json.loads((target / _MARKER).read_text(encoding="utf-8"))
        complete = marker == {**_recipe(count, seed), "fingerprint": ImageFolder(target).fingerprint}
    except (OSError, ValueError):
        complete = False
    if not complete:
        raise FormatError(
            f"{str(target)!r} exists, but is not the complete set of {count:,} drawn pictures. "
            "Remove it to have it drawn again, or choose another folder."
        )


def _save(picture: Image.Image, folder: Path, index: int, seed: int) -> None:
    random = np.random.default_rng([seed, index, 1])
    class_folder = folder / CLASSES[index % len(CLASSES)]
    class_folder.mkdir(exist_ok=True)
    name = f"{index // len(CLASSES):04d}"
    if random.random() < _PNG_SHARE:
        picture.save(class_folder / f"{name}.png", compress_level=1)
    else:
        picture.save(class_folder / f"{name}.jpg", quality=int(random.integers(75, 96)))


def _colors(random: np.random.Generator) -> tuple[Color, Color]:
    """Two colors that differ in brightness too, so that a grayscale picture still shows the shapes."""
    while True:
        first, second = random.integers(0, 256, (2, 3)).tolist()
        if abs(_brightness(first) - _brightness(second)) > 70:
            return tuple(first), tuple(second)


def _brightness(color: list[int]) -> float:
    return 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]


def _pattern(kind: str, width: int, height: int, random: np.random.Generator) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    angle = random.uniform(0, math.pi)
    period = random.uniform(0.08, 0.2) * min(width, height)
    along = np.floor((x * math.cos(angle) + y * math.sin(angle)) / period).astype(np.int64)
    across = np.floor((y * math.cos(angle) - x * math.sin(angle)) / period).astype(np.int64)
    cells = (along + across) % 2 if kind == "checks" else along % 2
    return _with_noise(np.array(_colors(random), np.float32)[cells], random)


def _shapes(kind: str, width: int, height: int, random: np.random.Generator) -> Image.Image:
    near, far = _colors(random)
    canvas = Image.new("RGB", (2 * width, 2 * height), far)  # drawn at twice the size, for smooth edges
    draw = ImageDraw.Draw(canvas)
    # one shape in each cell of a grid, so that they seldom overlap
    cell = 2 * min(width, height) / random.uniform(2, 3)
    for row, column in np.ndindex(math.ceil(2 * height / cell), math.ceil(2 * width / cell)):
        radius = random.uniform(0.3, 0.45) * cell
        center = (column + random.uniform(0.35, 0.65)) * cell, (row + random.uniform(0.35, 0.65)) * cell
        fill = tuple(np.clip(np.array(near) + random.integers(-30, 31, 3), 0, 255).tolist())
        if kind == "circles":
            draw.circle(center, radius, fill=fill)
        elif kind == "rings":
            draw.circle(center, radius, outline=fill, width=max(2, int(0.35 * radius)))
        else:
            draw.polygon(_corners(kind, center, radius, random.uniform(0, 2 * math.pi)), fill=fill)
    return _with_noise(np.asarray(canvas.reduce(2), np.float32), random)


def _corners(kind: str, center: tuple[float, float], radius: float, turn: float) -> Points:
    if kind == "crosses":
        arm = 0.3
        outline = [(arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]
        outline += [(-x, -y) for x, y in outline]
        polar = [(math.hypot(x, y), math.atan2(y, x)) for x, y in outline]
    elif kind == "stars":
        polar = [(1.2 if point % 2 else 0.5, point * math.pi / 5) for point in range(10)]
    else:
        sides = {"squares": 4, "triangles": 3}[kind]
        polar = [(1.2, point * 2 * math.pi / sides) for point in range(sides)]
    x, y = center
    return [
        (x + far * radius * math.cos(turn + angle), y + far * radius * math.sin(turn + angle)) for far, angle in polar
    ]


def _with_noise(pixels: npt.NDArray[np.float32], random: np.random.Generator) -> Image.Image:
    """A light that falls from one side, and some grain."""
    height, width = pixels.shape[:2]
    left, right = random.uniform(0.75, 1.15, 2)
    light = np.linspace(left, right, width, dtype=np.float32)[:, None]
    grain = random.standard_normal((height, width, 1), np.float32) * np.float32(6)
    return Image.fromarray(np.clip(pixels * light + grain, 0, 255).astype(np.uint8))
