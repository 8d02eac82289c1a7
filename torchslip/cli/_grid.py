"""Pictures with captions, side by side in one picture."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from torchslip.errors import FormatError

__all__ = ["check_picture_path", "save_grid"]

_GAP_PX = 6
_CAPTION_PX = 16
_FONT_PX = 11
_BACKGROUND, _TEXT = (255, 255, 255), (40, 40, 40)


def save_grid(
    pictures: Sequence[tuple[Image.Image, str]], path: str | os.PathLike[str], *, tile_px: int = 128, columns: int = 8
) -> None:
    """Write pictures and their captions to `path`, whole or not at all.

    Args:
        pictures: Each with the caption below it; too long ones are cut.
        path: Its suffix decides the format.
        tile_px: Each picture is fitted into a square of this side, keeping its aspect ratio.
        columns: Pictures in a row.

    Raises:
        FormatError: If Pillow writes no format with this suffix.
        OSError: If the file cannot be written.
    """
    target = Path(path)
    format_ = check_picture_path(target)
    step_x, step_y = tile_px + _GAP_PX, tile_px + _CAPTION_PX + _GAP_PX
    columns = min(columns, max(len(pictures), 1))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * step_x + _GAP_PX, rows * step_y + _GAP_PX), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_PX)
    for number, (picture, caption) in enumerate(pictures):
        row, column = divmod(number, columns)
        left, top = _GAP_PX + column * step_x, _GAP_PX + row * step_y
        fitted = _fit(picture.convert("RGB"), tile_px)
        sheet.paste(fitted, (left + (tile_px - fitted.width) // 2, top + (tile_px - fitted.height) // 2))
        draw.text((left, top + tile_px + 2), _shorten(caption, font, tile_px), fill=_TEXT, font=font)
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        sheet.save(unfinished, format_)
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


def _fit(picture: Image.Image, side_px: int) -> Image.Image:
    scale = side_px / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(f"{text}...") > width_px:
        text = text[:-1]
    return f"{text}..."
