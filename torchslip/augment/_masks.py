"""Masks over the patches of an image, for models that predict what is hidden."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from torchslip.augment._transform import Params, Transform, spread

__all__ = ["BlockMask", "JEPAMask", "PatchMask"]

_Interval = tuple[float, float]


class PatchMask(Transform):
    """Hides a fixed number of patches, drawn at random: the mask of MAE (He et al., CVPR 2022).

    ::

        mask = ts.augment.PatchMask(14, ratio=0.75, seed=17)
        batch = mask(batch)                        # adds batch["mask"], bool [B, 14, 14], True where hidden
        hidden = mask(batch["sample_id"], epoch=3)["mask"]
        kept = hidden.flatten(1).to(torch.int8).argsort(stable=True)[:, :49]    # the patches that are seen

    `apply` blackens the hidden patches of pictures.

    Args:
        grid: Patches along the sides: a number, or (rows, columns).
        ratio: How many are hidden, as a fraction.
        seed: See `Transform`.
    """

    keeps_bytes = True
    in_chains = False

    def __init__(self, grid: int | tuple[int, int] = 14, *, ratio: float = 0.75, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self.grid = _as_grid(grid)
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio must be a fraction, from 0 to 1; got {ratio}.")
        self.ratio = ratio
        self.numbers = self.grid[0] * self.grid[1]

    def draw(self, numbers: torch.Tensor) -> Params:
        hidden = self.numbers - int(self.numbers * (1 - self.ratio))
        rank = numbers.argsort(dim=1, stable=True).argsort(dim=1)
        return {"mask": (rank < hidden).view(-1, *self.grid)}

    def forward(
        self,
        batch: Any,
        ids: torch.Tensor | None = None,
        *,
        epoch: int | torch.Tensor | None = None,
        view: int | str = 0,
        seed: int | None = None,
        return_params: bool = False,
    ) -> Any:
        """Add masks to a batch, or make them for sample ids.

        Args:
            batch: A dict with ``sample_id``, of which a copy with the masks is returned; or int64 ``[B]``, the ids
                themselves, for the masks alone.
            ids: Instead of ``batch["sample_id"]``.
            epoch: See `Transform.forward`.
            view: Likewise.
            seed: Likewise.
            return_params: Return ``(result, params)``; the parameters are the masks.
        """
        if isinstance(batch, Mapping):
            ids = batch.get("sample_id") if ids is None else ids
            epoch = batch.get("epoch") if epoch is None else epoch
            params = self.sample(ids, epoch=epoch, view=view, seed=seed)
            result: Any = {**batch, **params}
        else:
            params = self.sample(batch if ids is None else ids, epoch=epoch, view=view, seed=seed)
            result = params
        return (result, params) if return_params else result

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        hidden = _enlarged(self.hidden(params), *images.shape[2:])
        return images.masked_fill(hidden[:, None], 0)

    def hidden(self, params: Params) -> torch.Tensor:
        """Bool ``[B, rows, columns]``, True where an encoder sees nothing."""
        return params["mask"]

    def extra_repr(self) -> str:
        return f"grid={self.grid}, ratio={self.ratio}"


class BlockMask(PatchMask):
    """Hides blocks until a drawn number of patches is reached: BEiT's mask as iBOT uses it (Zhou et al., ICLR 2022).

    As there, blocks that would hide too many are left out, so an image may end up with fewer hidden patches than drawn,
    never with more. Adds ``mask``, bool ``[B, rows, columns]``, to the batch.

    Args:
        grid: Patches along the sides: a number, or (rows, columns).
        ratio: The range of how many patches are hidden, as a fraction.
        aspect: The range of a block's height divided by its width, drawn evenly on a logarithmic scale.
        smallest: The area of the smallest blocks, in patches; default: a third of the shorter side, squared.
        tries: How many blocks are tried in each image.
        p: The probability that an image is masked at all.
        seed: See `Transform`.
    """

    def __init__(
        self,
        grid: int | tuple[int, int] = 14,
        *,
        ratio: _Interval = (0.1, 0.5),
        aspect: _Interval = (0.3, 1 / 0.3),
        smallest: float | None = None,
        tries: int = 20,
        p: float = 0.5,
        seed: int | None = None,
    ) -> None:
        super().__init__(grid, seed=seed)
        if not 0 <= ratio[0] <= ratio[1] <= 1 or not 0 < aspect[0] <= aspect[1] or tries < 1 or not 0 <= p <= 1:
            raise ValueError(
                f"ratio must be a range within (0, 1), aspect one above 0, tries from 1, and p a probability; got "
                f"{ratio}, {aspect}, {tries} and {p}."
            )
        self.range, self.aspect, self.tries, self.chance = ratio, aspect, tries, p
        self.smallest = (min(self.grid) // 3) ** 2 if smallest is None else smallest
        self.numbers = 2 + 4 * tries

    def draw(self, numbers: torch.Tensor) -> Params:
        rows, columns = self.grid
        wanted = (spread(numbers[:, 0], self.range) * (numbers[:, 1] < self.chance)) * (rows * columns)
        mask = torch.zeros((len(numbers), rows, columns), dtype=torch.bool, device=numbers.device)
        low, high = (math.log(each) for each in self.aspect)
        for number in torch.split(numbers[:, 2:], 4, 1):
            left = wanted - mask.sum((1, 2))
            area = self.smallest + number[:, 0] * (left - self.smallest)
            aspect = spread(number[:, 1], (low, high)).exp()
            height, width = (area * aspect).clamp_min(0).sqrt().round(), (area / aspect).clamp_min(0).sqrt().round()
            block = _rectangles(height, width, number[:, 2:], self.grid)
            added = (block & ~mask).sum((1, 2))
            fits = (height < rows) & (width < columns) & (added > 0) & (added <= left)
            mask = mask | (block & fits[:, None, None])
        return {"mask": mask}

    def extra_repr(self) -> str:
        return f"grid={self.grid}, ratio={self.range}, p={self.chance}"


class JEPAMask(PatchMask):
    """One block of context and several blocks to predict: the masks of I-JEPA (Assran et al., CVPR 2023).

    Adds ``context``, bool ``[B, rows, columns]``, and ``targets``, bool ``[B, count, rows, columns]``, to the batch.
    The targets are taken out of the context. Block sizes are those of the first image for the whole batch, as in the
    published code, so that all targets have equally many patches; their places belong to the image.

    Args:
        grid: Patches along the sides: a number, or (rows, columns).
        targets: How many blocks are predicted.
        target_scale: The range of a target's area, as a fraction of the grid.
        target_aspect: The range of its height divided by its width.
        context_scale: The range of the context's area; it is square.
        seed: See `Transform`.
    """

    def __init__(
        self,
        grid: int | tuple[int, int] = 14,
        *,
        targets: int = 4,
        target_scale: _Interval = (0.15, 0.2),
        target_aspect: _Interval = (0.75, 1.5),
        context_scale: _Interval = (0.85, 1.0),
        seed: int | None = None,
    ) -> None:
        super().__init__(grid, seed=seed)
        for name, (low, high), most in (
            ("target_scale", target_scale, 1.0),
            ("target_aspect", target_aspect, math.inf),
            ("context_scale", context_scale, 1.0),
        ):
            if not 0 < low <= high <= most:
                raise ValueError(f"{name} must be a range (low, high) above 0 and up to {most}; got {(low, high)}.")
        if targets < 1 or targets * target_scale[1] >= context_scale[0]:
            raise ValueError(
                f"{targets} targets of up to {target_scale[1]} of the grid may leave nothing of a context of "
                f"{context_scale[0]}; use fewer or smaller ones."
            )
        self.targets, self.target_scale, self.target_aspect = targets, target_scale, target_aspect
        self.context_scale = context_scale
        self.numbers = 3 + 2 * (targets + 1)

    def draw(self, numbers: torch.Tensor) -> Params:
        cells = self.grid[0] * self.grid[1]
        shared = numbers[:1]
        aspect = spread(shared[:, 1], self.target_aspect)
        area = (spread(shared[:, 0], self.target_scale) * cells).floor()
        sizes = ((area * aspect).sqrt().round(), (area / aspect).sqrt().round())
        height, width = (size.clamp(1, side - 1) for size, side in zip(sizes, self.grid, strict=True))
        places = torch.split(numbers[:, 3:], 2, 1)
        targets = torch.stack([_rectangles(height, width, place, self.grid) for place in places[1:]], 1)
        side = (spread(shared[:, 2], self.context_scale) * cells).floor().sqrt().round()
        height, width = (side.clamp_max(most) for most in self.grid)
        context = _rectangles(height, width, places[0], self.grid)
        return {"context": context & ~targets.any(1), "targets": targets}

    def hidden(self, params: Params) -> torch.Tensor:
        """Bool ``[B, rows, columns]``, True where the context encoder sees nothing."""
        return ~params["context"]

    def extra_repr(self) -> str:
        return f"grid={self.grid}, targets={self.targets}"


def _as_grid(grid: int | tuple[int, int]) -> tuple[int, int]:
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    if min(rows, columns) < 1:
        raise ValueError(f"grid must be a positive number of patches or (rows, columns); got {grid!r}.")
    return rows, columns


def _rectangles(height: torch.Tensor, width: torch.Tensor, place: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Blocks of `height` and `width` at `place`, in [0, 1) of the possible ones: bool ``[B, rows, columns]``."""
    sides = []
    for axis, (length, size) in enumerate(zip((height, width), grid, strict=True)):
        start = (place[:, axis] * (size - length + 1)).floor()
        lines = torch.arange(size, device=place.device)
        sides.append((lines >= start[:, None]) & (lines < (start + length)[:, None]))
    return sides[0][:, :, None] & sides[1][:, None]


def _enlarged(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Each pixel's patch: bool ``[B, height, width]``."""
    rows, columns = (
        torch.arange(size, device=mask.device) * cells // max(1, size)
        for size, cells in zip((height, width), mask.shape[1:], strict=True)
    )
    return mask[:, rows[:, None], columns]
