"""The pictures that are loaded: a set of a given number of files, made once and kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageOps

__all__ = ["Kind", "PictureSet", "default_source", "prepare"]

Kind = Literal["resized", "original", "2048x1536"]

_EXTENSIONS = (".jpg", ".jpeg", ".png")
_SHORTER_PX, _LONGER_MOST_PX, _QUALITY = 256, 512, 95
_LARGE_PX, _LARGE_QUALITY = (2048, 1536), 90
_LAYOUT = 1  # change it when the pictures of a set change
_DRAWN_CLASSES, _DRAWN_PER_CLASS = 8, 25
_SHARED_DATA = Path(__file__).parents[3] / "shared/data"


@dataclass(frozen=True, slots=True)
class PictureSet:
    """A folder of pictures that is whole.

    Attributes:
        kind: ``resized``, ``original`` or ``2048x1536``.
        folder: ``class/picture``.
        count: Files.
        distinct: Pictures that differ; the others are copies, each a file of its own.
        megapixels: Width x height of a file, the mean.
        file_bytes: The size of a file, the mean.
    """

    kind: str
    folder: str
    count: int
    distinct: int
    megapixels: float
    file_bytes: float


def default_source(work: Path) -> Path:
    """The photographs of the test data, or else a folder of drawn pictures below `work`."""
    photos = Path(os.environ.get("TORCHSLIP_TEST_DATA", _SHARED_DATA)) / "photos/train"
    return photos if photos.is_dir() else _draw_folder(work / "drawn")


def prepare(source: Path, kind: Kind, count: int, work: Path) -> PictureSet:
    """Make the set, or find it as an earlier run has made it.

    Args:
        source: A folder of pictures at any depth; the folder that holds a picture is its class.
        kind: ``resized``: shorter side 256, at most 512 on the longer (cut off at both ends), quality 95, 4:2:0.
            ``original``: the files as they are. ``2048x1536``: made as large (or 1536 x 2048) with a Lanczos filter,
            cut off where the shape differs, quality 90, 4:2:0.
        count: How many files the set has: evenly taken if `source` has more, copied if it has fewer.
        work: Where sets are kept.

    Raises:
        FileNotFoundError: If `source` has no pictures.
    """
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in _EXTENSIONS)
    if not files:
        raise FileNotFoundError(f"no pictures ({', '.join(_EXTENSIONS)}) below {source}")
    chosen = [files[index * len(files) // count] for index in range(count)] if len(files) > count else files
    identity = f"{_LAYOUT} {source.resolve()} {len(files)} {kind} {count}"
    home = work / f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if not (home / "set.json").exists():
        _make(home, chosen, source, kind, count)
    return PictureSet(**json.loads((home / "set.json").read_text()))


def _make(home: Path, files: list[Path], source: Path, kind: Kind, count: int) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    # One day a run is interrupted here: the set gets its name when it is whole.
    draft = Path(tempfile.mkdtemp(prefix=f"{home.name}.", dir=home.parent))
    pixels = size = 0
    for number in range(count):
        copy, index = divmod(number, len(files))
        file = files[index]
        target = draft / "pictures" / _class_name(file, source) / f"{index:06}-{copy}{file.suffix.lower()}"
        if copy:
            shutil.copyfile(target.with_stem(f"{index:06}-0"), target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(file, target, kind)
        with Image.open(target) as image:
            pixels += image.width * image.height
        size += target.stat().st_size
    made = PictureSet(
        kind, str(home / "pictures"), count, min(count, len(files)), pixels / count / 1e6, round(size / count)
    )
    (draft / "set.json").write_text(json.dumps(asdict(made), indent=1))
    shutil.rmtree(home, ignore_errors=True)
    draft.rename(home)


def _class_name(file: Path, source: Path) -> str:
    return "_".join(file.relative_to(source).parts[:-1]) or "pictures"


def _write(file: Path, target: Path, kind: Kind) -> None:
    if kind == "original":
        shutil.copyfile(file, target)
        return
    with Image.open(file) as image:
        rgb = image.convert("RGB")
    if kind == "2048x1536":
        wide = rgb.width >= rgb.height
        large = ImageOps.fit(rgb, _LARGE_PX if wide else _LARGE_PX[::-1], Image.Resampling.LANCZOS)
        large.save(target, "JPEG", quality=_LARGE_QUALITY, subsampling="4:2:0")
        return
    scale = _SHORTER_PX / min(rgb.size)
    width, height = (max(round(side * scale), _SHORTER_PX) for side in rgb.size)
    rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    left, top = max(width - _LONGER_MOST_PX, 0) // 2, max(height - _LONGER_MOST_PX, 0) // 2
    rgb = rgb.crop((left, top, width - left, height - top))
    rgb.save(target, "JPEG", quality=_QUALITY, subsampling="4:2:0")


def _draw_folder(folder: Path) -> Path:
    """Drawn pictures of the size of photographs, with film grain, so that they are as long to decode."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix="drawn.", dir=folder.parent))
        rng = np.random.default_rng(0)
        for number in range(_DRAWN_CLASSES * _DRAWN_PER_CLASS):
            path = draft / f"class{number % _DRAWN_CLASSES}" / f"{number:04}.jpg"
            path.parent.mkdir(exist_ok=True)
            _draw(rng).save(path, quality=90)
        draft.rename(folder)
    return folder


def _draw(rng: np.random.Generator) -> Image.Image:
    width, height = (int(side) for side in rng.integers(300, 640, 2))
    start, end = rng.integers(0, 256, (2, 3))
    slope = np.linspace(0, 1, width)[None, :, None] * np.linspace(0.5, 1, height)[:, None, None]
    pixels = start + (end - start) * slope + rng.normal(0, 6, (height, width, 3))
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(30):
        (left, right), (top, bottom) = np.sort(rng.integers(0, width, 2)), np.sort(rng.integers(0, height, 2))
        color = tuple(rng.integers(0, 256, 3).tolist())
        draw.ellipse((int(left), int(top), int(right), int(bottom)), outline=color, width=4)
    return picture
