"""What of a chain is computed together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch

from torchslip.augment._color_linear import ColorLinear, check_rgb, fused_color_map, map_colors
from torchslip.augment._convert import Normalize
from torchslip.augment._geometry import Geometric, fused_matrix, resample
from torchslip.augment._transform import Pictures, Transform, Tree, as_floating, masked

__all__ = ["Station", "stations"]


class Station(Protocol):
    """One or more transforms of a chain, computed in one go."""

    @property
    def rounds(self) -> bool:
        """See `Transform.rounds`."""

    def __call__(self, pictures: Pictures, params: Tree) -> Pictures:
        """Transform; `params` are those of the whole chain."""


@dataclass(frozen=True, slots=True)
class _Single:
    name: str
    part: Transform

    @property
    def rounds(self) -> bool:
        return self.part.rounds

    def __call__(self, pictures: Pictures, params: Tree) -> Pictures:
        return self.part._step(pictures, params.get(self.name, {}))


@dataclass(frozen=True, slots=True)
class _OneResampling:
    members: list[tuple[str, Geometric]]
    rounds: bool = True

    def __call__(self, pictures: Pictures, params: Tree) -> Pictures:
        # Flips alone do not interpolate, so the options are those of any that does.
        options = next(part for _, part in self.members if part.resamples)

        def resampled(images: torch.Tensor, own: Tree) -> torch.Tensor:
            images = as_floating(images)
            matrix = fused_matrix([(part, own.get(name, {})) for name, part in self.members], images)
            return resample(images, matrix, padding=options.padding, interpolation=options.interpolation)

        mask = _any_applied([params.get(name, {}) for name, _ in self.members])
        return pictures._replace(images=masked(resampled, pictures.images, params, mask))


@dataclass(frozen=True, slots=True)
class _OneColorMap:
    members: list[tuple[str, ColorLinear]]
    normalize: Normalize | None
    rounds: bool = False

    def __call__(self, pictures: Pictures, params: Tree) -> Pictures:
        bound = pictures.bound
        check_rgb(pictures.images)

        def mapped(images: torch.Tensor, own: Tree) -> torch.Tensor:
            images = as_floating(images)
            matrix, offset = fused_color_map(images, [(part, own.get(name, {})) for name, part in self.members], bound)
            if self.normalize is None:
                return map_colors(images, matrix, offset).clamp_(0, bound)
            scale, shift = self.normalize.scale_and_offset(images, bound)
            normal = map_colors(images, matrix * scale[:, None], offset * scale + shift)
            return normal.clamp_(shift.view(-1, 1, 1), (shift + bound * scale).view(-1, 1, 1))

        if self.normalize is not None:
            dtype = self.normalize.dtype_for(pictures.dtype)
            return Pictures(mapped(pictures.images, params).to(dtype), 1.0, dtype)
        mask = _any_applied([params.get(name, {}) for name, _ in self.members])
        return pictures._replace(images=masked(mapped, pictures.images, params, mask))


def stations(parts: Sequence[tuple[str, Transform]], fuse: bool) -> list[Station]:
    """The transforms of a chain, neighbours together where they can be computed in one go."""
    if not fuse:
        return [_Single(name, part) for name, part in parts]
    plan: list[Station] = []
    for kind, run in groupby(_with_kinds(parts), lambda item: item[0]):
        members = [(name, part) for _, name, part in run]
        if kind and kind[0] == "geometry" and _is_worth_resampling(members):
            plan.append(_OneResampling(members))  # type: ignore[arg-type]
        elif kind and kind[0] == "color" and sum(isinstance(part, ColorLinear) for _, part in members) > 1:
            last = members[-1][1]
            normalize = last if isinstance(last, Normalize) else None
            plan.append(_OneColorMap(members[: -1 if normalize else None], normalize))  # type: ignore[arg-type]
        else:
            plan += [_Single(name, part) for name, part in members]
    return plan


def _with_kinds(parts: Sequence[tuple[str, Transform]]) -> list[tuple[tuple[str, ...] | None, str, Transform]]:
    """Neighbours of equal kind can be fused."""
    kinds: list[tuple[tuple[str, ...] | None, str, Transform]] = []
    options = ("", "")
    for name, part in parts:
        kind: tuple[str, ...] | None = None
        if isinstance(part, Geometric):
            # A flip goes with any options: those of its neighbours before it, else of those after it.
            if part.resamples:
                options = (part.padding, part.interpolation)
            kind = ("geometry", *options)
        elif isinstance(part, ColorLinear):
            kind = ("color",)
        elif isinstance(part, Normalize) and len(part.mean) == 3 and kinds and kinds[-1][0] == ("color",):
            kind = None if isinstance(parts[len(kinds) - 1][1], Normalize) else ("color",)
        kinds.append((kind, name, part))
    return kinds


def _is_worth_resampling(members: list[tuple[str, Transform]]) -> bool:
    return len(members) > 1 and any(isinstance(part, Geometric) and part.resamples for _, part in members)


def _any_applied(params: list[Tree]) -> torch.Tensor | None:
    """Which images any of the transforms changes; None: all."""
    total: torch.Tensor | None = None
    for each in params:
        applied = each.get("applied")
        if applied is None:
            return None
        total = applied if total is None else total | applied
    return total
