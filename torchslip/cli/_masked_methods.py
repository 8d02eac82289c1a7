"""The methods that hide patches, in small; and which method belongs to which recipe."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from torchslip.augment import PatchMask
from torchslip.cli import _methods as methods
from torchslip.cli._backbones import VisionTransformer, as_patches, blocks, positions
from torchslip.cli._methods import DINO, Batch, Method, follow, frozen_copy
from torchslip.errors import FormatError
from torchslip.recipes import Recipe

__all__ = ["METHODS"]


class _Masked(Method):
    """A transformer whose patches are those of the masks."""

    mask: str

    def make_backbone(self, recipe: Recipe, channels: int) -> VisionTransformer:
        name, mask = next(iter(recipe.masks.items()), ("", None))
        if not isinstance(mask, PatchMask) or mask.grid[0] != mask.grid[1]:
            raise FormatError(
                f"{type(self).__name__} needs a view with a square mask; the recipe {recipe.name} has "
                f"{dict(recipe.masks) or 'none'}."
            )
        patch, left = divmod(getattr(recipe.views[name], "size", 0), mask.grid[0])
        if left or not patch:
            raise FormatError(
                f"The size of the view {name} must be a multiple of the {mask.grid[0]} patches of its mask; it is "
                f"{recipe.views[name]}."
            )
        self.patch, self.grid, self.channels = patch, mask.grid[0], channels
        return VisionTransformer(channels, patch)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The mean over the patches."""
        return torch.as_tensor(self.backbone(images)[:, 1:].mean(1))


class MAE(_Masked):
    """Reconstruct hidden patches from the others: He et al., arXiv:2111.06377."""

    def make_heads(self, classes: int) -> None:
        self.narrow = nn.Linear(self.dim, 64)
        self.mask_token = nn.Parameter(torch.randn(64) * 0.02)
        self.decoder = nn.Sequential(blocks(64, 2), nn.Linear(64, self.channels * self.patch**2))

    def forward(self, batch: Batch) -> torch.Tensor:
        view = self.views[0]
        images, hidden = batch[view], batch[f"{view}_mask"].flatten(1)
        # All pictures have equally many hidden patches.
        order = hidden.to(torch.int8).argsort(dim=1, stable=True)
        kept = order[:, : int((~hidden[0]).sum())]
        seen = self.narrow(self.backbone(images, kept=kept))[:, 1:]
        tokens = self.mask_token.expand(*hidden.shape, -1)
        tokens = tokens.scatter(1, kept[..., None].expand_as(seen), seen.to(tokens.dtype))
        found = self.decoder(tokens + positions(self.grid, self.grid, 64, images.device))
        target = as_patches(images, self.patch)
        target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
        error = (found - target).square().mean(2)
        return torch.as_tensor((error * hidden).sum() / hidden.sum())


class IJEPA(_Masked):
    """Predict the features of target blocks from a context: Assran et al., arXiv:2301.08243.

    In small: all targets of a picture are predicted together.
    """

    momentum = 0.99

    def make_heads(self, classes: int) -> None:
        self.narrow, self.widen = nn.Linear(self.dim, 64), nn.Linear(64, self.dim)
        self.mask_token = nn.Parameter(torch.randn(64) * 0.02)
        self.predictor = blocks(64, 2)
        self.teacher = frozen_copy(self.backbone)

    def forward(self, batch: Batch) -> torch.Tensor:
        view = self.views[0]
        images = batch[view]
        context, wanted = batch[f"{view}_context"].flatten(1), batch[f"{view}_targets"].any(1).flatten(1)
        with torch.no_grad():
            target = F.layer_norm(self.teacher(images)[:, 1:], (self.dim,))
        seen = self.narrow(self.backbone(images, ignored=~context))
        place = positions(self.grid, self.grid, 64, images.device)
        tokens = torch.where(wanted[..., None], self.mask_token, seen[:, 1:]) + place
        tokens = torch.cat((seen[:, :1], tokens), 1)
        found = self.predictor(tokens, src_key_padding_mask=F.pad(~(context | wanted), (1, 0)))
        error = F.smooth_l1_loss(self.widen(found[:, 1:]), target, reduction="none").mean(2)
        return (error * wanted).sum() / wanted.sum()

    def after_step(self) -> None:
        follow(self.teacher, self.backbone, self.momentum)


class IBOT(_Masked, DINO):
    """DINO, and the same for the hidden patches of each large view: Zhou et al., arXiv:2111.07832."""

    patch_center: torch.Tensor

    def make_heads(self, classes: int) -> None:
        super().make_heads(classes)
        self.register_buffer("patch_center", torch.zeros_like(self.center))

    def forward(self, batch: Batch) -> torch.Tensor:
        small = [view for view in self.views if view not in self.large]
        images = torch.cat([batch[view] for view in self.large])
        hidden = torch.cat([batch[f"{view}_mask"].flatten(1) for view in self.large])
        found = self.head(self.backbone(images, hidden=hidden))
        with torch.no_grad():
            backbone, head = self.teacher
            known = head(backbone(images))
        scores = dict(zip(self.large, found[:, 0].chunk(len(self.large)), strict=True))
        classify = lambda images: self.head(self.backbone(images)[:, 0])  # noqa: E731
        scores |= dict(zip(small, self.embed(batch, small, classify), strict=True))
        pictures = self.match(
            [scores[view] for view in self.views], self.sharpen(torch.stack(known[:, 0].chunk(len(self.large))))
        )
        return pictures + self._patches(found[:, 1:], known[:, 1:], hidden)

    def _patches(self, found: torch.Tensor, known: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        targets = ((known - self.patch_center) / 0.04).softmax(-1)
        self.patch_center = torch.lerp(known.flatten(0, 1).mean(0), self.patch_center, 0.9)
        error = -(targets * F.log_softmax(found / 0.1, -1)).sum(-1)
        # The mean over the hidden patches of each picture; many pictures have none.
        return ((error * hidden).sum(1) / hidden.sum(1).clamp_min(1)).mean()


METHODS: Mapping[str, type[Method]] = {
    "barlow-twins": methods.BarlowTwins,
    "byol": methods.BYOL,
    "dino": methods.DINO,
    "i-jepa": IJEPA,
    "ibot": IBOT,
    "ipcl": methods.IPCL,
    "lejepa": methods.LeJEPA,
    "mae": MAE,
    "moco-v3": methods.MoCoV3,
    "simclr": methods.SimCLR,
    "supervised": methods.Supervised,
    "supervised-fixres": methods.Supervised,
    "swav": methods.SwAV,
    "vicreg": methods.VICReg,
}
"""Name of a recipe to what it trains."""
