"""Pictures with captions in a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from torchslip.errors import FormatError
from torchslip.show import draw_grid

__all__ = ["check_picture_path", "save_grid", "save_picture"]


def save_grid(
    pictures: Sequence[tuple[Image.Image, str]], path: str | os.PathLike[str], *, tile_px: int = 128, columns: int = 8
) -> None:
    """Write pictures and their captions to `path`, see `draw_grid` and `save_picture`."""
    save_picture(draw_grid(pictures, tile_px=tile_px, columns=columns), path)


def save_picture(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture, whole or not at all; its suffix decides the format.

    Raises:
        FormatError: If Pillow writes no format with this suffix.
        OSError: If the file cannot be written.
    """
    target = Path(path)
    format_ = check_picture_path(target)
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        picture.save(unfinished, format_)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def check_picture_path(path: Path) -> str:
    """The picture format for `path`.

    Raises:
        FormatError: If Pillow writes no format with this suffix.
        FileNotFoundError: If the folder does not exist.
    """
    format_ = Image.registered_extensions().get(path.suffix.lower())
    if format_ is None or format_ not in Image.SAVE:
        raise FormatError(f"No picture format has the suffix {path.suffix!r} of {str(path)!r}. Use .png or .jpg.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder", str(path.absolute().parent))
    return format_
