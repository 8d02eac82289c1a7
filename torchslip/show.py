"""Batches as pictures, to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from torchslip.decode import interpolate_chroma, to_rgb

if TYPE_CHECKING:
    from PIL import Image, ImageFont

__all__ = ["draw_grid", "fit_picture", "shorten_text", "show_batch", "to_pictures", "view_names"]

_GAP_PX = 6
_CAPTION_PX = 16
_FONT_PX = 11
_BACKGROUND, _TEXT = (255, 255, 255), (40, 40, 40)
_HIDDEN = 128
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Pair = tuple[Sequence[float], Sequence[float]]


def show_batch(
    batch: Mapping[str, Any],
    *,
    limit: int | None = None,
    classes: Sequence[str] = (),
    normalization: Pair = _IMAGENET,
    tile_px: int = 128,
) -> Image.Image:
    """A picture of a batch, which a notebook displays: the samples side by side, or a row for each with all its views.

    ::

        ts.show_batch(batch)                            # in a notebook
        ts.show_batch(batch).save("batch.png")

    Everything in the batch is shown that has pictures: uint8, or floating from 0 to 1, or normalised; planes of a view
    (``<view>_y`` and ``<view>_uv``) as RGB. Where the batch has masks of a view (``<view>_mask`` or
    ``<view>_context``), what they hide is gray.

    Args:
        batch: As datasets, transforms and recipes return it, on any device.
        limit: Samples at most; default: 32, or 8 where there are several views.
        classes: The names of the labels, `ImageDataset.classes` for instance.
        normalization: Mean and standard deviation per channel, to undo where floating values are not from 0 to 1.
        tile_px: The side of the square that each picture is fitted into.

    Raises:
        ValueError: If the batch has no pictures.
    """
    views = view_names(batch)
    if not views:
        raise ValueError(f"The batch has no pictures: no uint8 or floating [B, 3, H, W] among {sorted(batch)}.")
    limit = limit or (32 if len(views) == 1 else 8)
    pictures = [to_pictures(batch, view, limit=limit, normalization=normalization) for view in views]
    captions = _captions(batch, classes, len(pictures[0]))
    if len(views) == 1:
        return draw_grid(list(zip(pictures[0], captions, strict=True)), tile_px=tile_px)
    tiles = [
        (picture, f"{view}  {caption}" if column == 0 else view)
        for row, caption in zip(zip(*pictures, strict=True), captions, strict=True)
        for column, (picture, view) in enumerate(zip(row, views, strict=True))
    ]
    return draw_grid(tiles, tile_px=tile_px, columns=len(views))


def view_names(batch: Mapping[str, Any]) -> list[str]:
    """The keys with pictures: tensors ``[B, C, H, W]``, or lists of ``[C, H, W]``, of up to 5 channels."""
    return [name for name, value in batch.items() if _are_pictures(value) and not _is_chroma(batch, name)]


def to_pictures(
    batch: Mapping[str, Any], view: str, *, limit: int | None = None, normalization: Pair = _IMAGENET
) -> list[Image.Image]:
    """The pictures of one view of a batch, see `show_batch`."""
    from PIL import Image

    images, hidden = [image.detach().cpu() for image in _images(batch, view, limit)], _hidden(batch, view)
    # One rule for the whole batch: a flat picture may be normalised and still lie between 0 and 1.
    normalized = any(image.is_floating_point() and (image.min() < 0 or image.max() > 1) for image in images)
    pictures = []
    for row, image in enumerate(images):
        pixels = _as_bytes(image, normalization if normalized else None)
        if hidden is not None:
            mask = hidden[row, None, None].float().cpu()
            mask = torch.nn.functional.interpolate(mask, pixels.shape[1:])[0, 0] > 0.5
            pixels = torch.where(mask, (pixels // 8 + (_HIDDEN - 16)).to(torch.uint8), pixels)
        pictures.append(Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()))
    return pictures


def draw_grid(pictures: Sequence[tuple[Image.Image, str]], *, tile_px: int = 128, columns: int = 8) -> Image.Image:
    """Pictures with captions below them, in rows.

    Args:
        pictures: Each with its caption; captions that are too long are cut.
        tile_px: Each picture is fitted into a square of this side, keeping its aspect ratio.
        columns: Pictures in a row.
    """
    from PIL import Image, ImageDraw, ImageFont

    step_x, step_y = tile_px + _GAP_PX, tile_px + _CAPTION_PX + _GAP_PX
    columns = min(columns, max(len(pictures), 1))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * step_x + _GAP_PX, rows * step_y + _GAP_PX), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_PX)
    for number, (picture, caption) in enumerate(pictures):
        row, column = divmod(number, columns)
        left, top = _GAP_PX + column * step_x, _GAP_PX + row * step_y
        fitted = fit_picture(picture.convert("RGB"), tile_px)
        sheet.paste(fitted, (left + (tile_px - fitted.width) // 2, top + (tile_px - fitted.height) // 2))
        draw.text((left, top + tile_px + 2), shorten_text(caption, font, tile_px), fill=_TEXT, font=font)
    return sheet


def fit_picture(picture: Image.Image, side_px: int) -> Image.Image:
    """Resized so that its longer side is `side_px`."""
    from PIL import Image

    scale = side_px / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def shorten_text(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    """`text`, cut at the end where it is wider than `width_px`."""
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(f"{text}...") > width_px:
        text = text[:-1]
    return f"{text}..."


def _are_pictures(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, torch.Tensor) and _is_picture(each) for each in value)
    return isinstance(value, torch.Tensor) and value.dim() == 4 and len(value) > 0 and _is_picture(value[0])


def _is_chroma(batch: Mapping[str, Any], name: str) -> bool:
    return name.endswith("_uv") and f"{name[:-3]}_y" in batch


def _images(batch: Mapping[str, Any], view: str, limit: int | None) -> Sequence[torch.Tensor]:
    chroma = batch.get(f"{view[:-2]}_uv") if view.endswith("_y") else None
    if chroma is None:
        images: Sequence[torch.Tensor] = batch[view][:limit]
        return images
    pairs = zip(batch[view][:limit], chroma[:limit], strict=True)
    return [to_rgb(torch.cat((luma, interpolate_chroma(each, *luma.shape[1:])))) for luma, each in pairs]


def _is_picture(image: torch.Tensor) -> bool:
    known = image.dtype == torch.uint8 or image.is_floating_point()
    return known and image.dim() == 3 and 1 <= image.shape[0] <= 5


def _as_bytes(image: torch.Tensor, normalization: Pair | None) -> torch.Tensor:
    if image.dtype == torch.uint8:
        return image
    image = image.float()
    if image.shape[0] not in (1, 3):
        # Receptor or ganglion channels: their mean, from black to white.
        low, high = image.mean(0, keepdim=True).aminmax()
        image = (image.mean(0, keepdim=True) - low) / (high - low).clamp_min(1e-6)
    elif normalization is not None:
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in normalization)
        image = image * std + mean
    return (image * 255).round().clamp(0, 255).to(torch.uint8)


def _hidden(batch: Mapping[str, Any], view: str) -> torch.Tensor | None:
    """Bool ``[B, rows, columns]``, True where a mask hides the view."""
    if f"{view}_mask" in batch:
        return torch.as_tensor(batch[f"{view}_mask"])
    return ~batch[f"{view}_context"] if f"{view}_context" in batch else None


def _captions(batch: Mapping[str, Any], classes: Sequence[str], count: int) -> list[str]:
    ids = batch.get("sample_id", range(count))
    captions = [f"#{int(sample)}" for sample in ids[:count]]
    labels = batch.get("label")
    if isinstance(labels, torch.Tensor) and labels.dim() == 1 and not labels.is_floating_point():
        names = [classes[label] if classes else str(label) for label in labels[:count].tolist()]
        captions = [f"{name} {caption}" for name, caption in zip(names, captions, strict=True)]
    return captions
