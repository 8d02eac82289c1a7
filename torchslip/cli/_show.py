"""`torchslip show`: pictures with the boxes of all crops, and what becomes of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.markup import escape

import torchslip as ts
from torchslip.cli._grid import check_picture_path, save_picture
from torchslip.cli._recipe_arguments import load_recipe, normalization_of, open_training_data
from torchslip.recipes import Recipe
from torchslip.show import shorten_text, to_pictures

__all__ = ["show_recipe"]

_SOURCE_PX = 300
_VIEWS_PX = 990
_FEW_PX, _MANY_PX = 240, 190
_GAP_PX = 10
_FRAME_PX = 3
_LINE_PX = 16
_BACKGROUND, _TEXT, _FAINT = (255, 255, 255), (30, 30, 30), (120, 120, 120)

# Told apart by people with any colour vision, as far as twelve can be; the global views of most recipes come first.
_COLORS = (
    *((230, 85, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 190, 0), (86, 180, 233)),
    *((150, 60, 20), (110, 60, 170), (120, 170, 40), (200, 30, 60), (0, 130, 140), (110, 110, 110)),
)

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class _Shown:
    """A view of one picture: its name, colour, picture and box in the source, as left, top, right, bottom."""

    name: str
    color: Color
    picture: Image.Image
    box: Box


def show_recipe(
    console: Console,
    *,
    recipe: str,
    overrides: Sequence[str],
    data: str,
    count: int,
    epoch: int,
    out: Path,
) -> None:
    """Write a picture of what the recipe makes of the first pictures of an epoch.

    Raises:
        FormatError: If the recipe, an argument or the data is wrong.
    """
    check_picture_path(out)
    source, path = open_training_data(data)
    loaded = load_recipe(recipe, overrides)
    batch = _first_batch(loaded, source, min(count, len(source)), epoch)
    save_picture(_draw(loaded, batch, getattr(source, "classes", []), epoch), out)
    yoked = [" and ".join(names) for names in _yoked(loaded)]
    if yoked:
        console.print(f"Yoked, by the same seed: {'; '.join(yoked)}.", highlight=False)
    console.print(f"{len(batch['sample_id'])} pictures of {escape(path)} with all their views: {escape(str(out))}")


def _first_batch(recipe: Recipe, source: ts.Source, count: int, epoch: int) -> dict[str, Any]:
    """Prepared views, their boxes, and the whole pictures under ``_source``."""
    views = {**recipe.views, "_source": ts.Decode()}
    dataset = recipe.dataset(source, batch_size=count, views=views, return_params=True)
    dataset.set_epoch(epoch)
    batch: dict[str, Any] = next(iter(dataset))
    return recipe.prepare(batch, epoch=epoch)


def _draw(recipe: Recipe, batch: dict[str, Any], classes: Sequence[str], epoch: int) -> Image.Image:
    views = {view: to_pictures(batch, view, **normalization_of(recipe, view)) for view in recipe.views}
    whole = to_pictures(batch, "_source")
    rows = []
    for row, picture in enumerate(whole):
        shown = []
        for number, (name, pictures) in enumerate(views.items()):
            top, left, height, width = batch[f"{name}_box"][row].tolist()
            box = (left, top, left + width, top + height)
            shown.append(_Shown(name, _COLORS[number % len(_COLORS)], pictures[row], box))
        rows.append(_draw_row(picture, _caption(batch, row, classes), shown))
    title = f"{recipe.name}, epoch {epoch}"
    yoked = "".join(f"; {' and '.join(names)} are yoked" for names in _yoked(recipe))
    return _stacked(f"{title}{yoked}", rows)


def _caption(batch: dict[str, Any], row: int, classes: Sequence[str]) -> str:
    width, height = batch["_source"][row].shape[:0:-1]
    caption = f"#{int(batch['sample_id'][row])}, {width} x {height} px"
    labels = batch.get("label")
    if classes and labels is not None and labels.dim() == 1 and not labels.is_floating_point():
        return f"{classes[int(labels[row])]} {caption}"
    return caption


def _yoked(recipe: Recipe) -> list[list[str]]:
    """The names of views that share a seed."""
    groups: dict[int, list[str]] = {}
    for name, view in recipe.views.items():
        if view.seed is not None:
            groups.setdefault(view.seed, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _draw_row(picture: Image.Image, caption: str, shown: Sequence[_Shown]) -> Image.Image:
    """The source with its boxes on the left, and the views beside it."""
    source, views = _with_boxes(picture, shown), _arranged(shown)
    height = max(source.height + _LINE_PX + 4, views.height)
    row = Image.new("RGB", (_SOURCE_PX + _GAP_PX + views.width, height), _BACKGROUND)
    row.paste(source, (0, 0))
    _write(row, (0, source.height + 3), caption, _FAINT, _SOURCE_PX)
    row.paste(views, (_SOURCE_PX + _GAP_PX, 0))
    return row


def _arranged(shown: Sequence[_Shown]) -> Image.Image:
    """A block for the views of each size; a block of small ones has as many lines as fit beside the large ones."""
    side_px = _MANY_PX if len(shown) > 4 else _FEW_PX
    scale = side_px / max(max(view.picture.size) for view in shown)
    blocks: dict[tuple[int, int], list[Image.Image]] = {}
    for view in shown:
        blocks.setdefault(view.picture.size, []).append(_framed(view, scale=scale))
    places, left, top, bottom = [], 0, 0, 0
    for tiles in blocks.values():
        step_x, step_y = tiles[0].width + _GAP_PX, tiles[0].height + _GAP_PX
        lines = max(1, round((bottom - top + _GAP_PX) / step_y))
        columns = min(-(-len(tiles) // lines), max(1, (_VIEWS_PX + _GAP_PX) // step_x))
        if left + columns * step_x - _GAP_PX > _VIEWS_PX:
            left, top = 0, bottom + _GAP_PX
        for number, tile in enumerate(tiles):
            line, column = divmod(number, columns)
            places.append((tile, left + column * step_x, top + line * step_y))
        left += columns * step_x
        bottom = max(y + tile.height for tile, _, y in places)
    views = Image.new("RGB", (max(x + tile.width for tile, x, _ in places), bottom), _BACKGROUND)
    for tile, x, y in places:
        views.paste(tile, (x, y))
    return views


def _with_boxes(picture: Image.Image, shown: Sequence[_Shown]) -> Image.Image:
    """The source, with the box of every view; boxes at the same place lie inside each other, so that all are seen."""
    scale = _SOURCE_PX / max(picture.size)
    drawn = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(drawn)
    places: dict[Box, int] = {}
    for view in shown:
        inset = places[view.box] = places.get(view.box, -1) + 1
        left, top, right, bottom = (round(edge * scale) for edge in view.box)
        space = inset * _FRAME_PX
        corners = (left + space, top + space, max(left, right - 1 - space), max(top, bottom - 1 - space))
        if corners[2] - corners[0] > 2 * _FRAME_PX and corners[3] - corners[1] > 2 * _FRAME_PX:
            draw.rectangle(corners, outline=view.color, width=_FRAME_PX)
    return drawn


def _framed(view: _Shown, *, scale: float) -> Image.Image:
    """A view in a frame of the colour of its box, with its name below."""
    size = tuple(max(1, round(side * scale)) for side in view.picture.size)
    width, height = size[0] + 2 * _FRAME_PX, size[1] + 2 * _FRAME_PX
    label = f"{view.name}  {view.picture.width} px"
    tile_width = max(width, 76)
    tile = Image.new("RGB", (tile_width, height + _LINE_PX), _BACKGROUND)
    ImageDraw.Draw(tile).rectangle((0, 0, width - 1, height - 1), fill=view.color)
    tile.paste(view.picture.resize((size[0], size[1]), Image.Resampling.BICUBIC), (_FRAME_PX, _FRAME_PX))
    _write(tile, (0, height + 2), label, view.color, tile_width)
    return tile


def _stacked(title: str, rows: Sequence[Image.Image]) -> Image.Image:
    top = _LINE_PX + 2 * _GAP_PX
    width = max(row.width for row in rows)
    height = top + sum(row.height + 2 * _GAP_PX for row in rows)
    sheet = Image.new("RGB", (width + 2 * _GAP_PX, height), _BACKGROUND)
    _write(sheet, (_GAP_PX, _GAP_PX), title, _TEXT, width, size=14)
    for row in rows:
        sheet.paste(row, (_GAP_PX, top))
        top += row.height + 2 * _GAP_PX
    return sheet


def _write(
    picture: Image.Image, place: tuple[int, int], text: str, color: Color, width_px: int, *, size: int = 11
) -> None:
    font = ImageFont.load_default(size)
    ImageDraw.Draw(picture).text(place, shorten_text(text, font, width_px), fill=color, font=font)
