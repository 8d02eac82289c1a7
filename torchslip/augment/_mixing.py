"""Mixing each image and label of a batch with those of another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from torchslip.augment._gamma import NUMBERS_PER_GAMMA, dirichlet
from torchslip.augment._transform import Params, Transform, Tree, per_image

__all__ = ["CutMix", "Mixup", "MixupOrCutMix"]


class MixupOrCutMix(Transform):
    """For each image either Mixup or CutMix: timm's ``Mixup`` with ``mode="elem"``.

    ::

        mix = ts.augment.MixupOrCutMix(num_classes=1000, label_smoothing=0.1, seed=17)
        batch = mix(chain(batch))      # batch["label"] is float32 [B, 1000] now

    Mixup (Zhang et al., ICLR 2018) adds the next image of the batch with a weight from Beta(alpha, alpha); CutMix (Yun
    et al., ICCV 2019) puts a rectangle of it in, whose share of the area is such a weight. The last image is mixed with
    the first, so batches of any size work. The weights belong to the image; its partner is whichever comes next.

    Without `num_classes`, ``label`` stays and the batch gets ``label_partner``, of the partners, and ``label_weight``,
    float32 ``[B]``, how much the own label counts. Labels that are floating ``[B, K]`` already are mixed as they are.

    Args:
        mixup_alpha: For Mixup; 0 for none.
        cutmix_alpha: For CutMix; 0 for none.
        switch: The probability of CutMix, where both are wanted.
        num_classes: Make labels distributions over this many classes.
        label_smoothing: How much of each label is spread evenly over all classes.
        p: The probability that an image is mixed.
        seed: See `Transform`.
    """

    in_chains = False

    def __init__(
        self,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        *,
        switch: float = 0.5,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(p=p, seed=seed)
        if min(mixup_alpha, cutmix_alpha) < 0 or not max(mixup_alpha, cutmix_alpha):
            raise ValueError(
                f"mixup_alpha and cutmix_alpha must be from 0 and one of them above; got {mixup_alpha}, {cutmix_alpha}."
            )
        if not 0 <= label_smoothing < 1 or (label_smoothing and num_classes is None):
            raise ValueError(
                f"label_smoothing must be from 0 and below 1, and needs num_classes; got {label_smoothing} and "
                f"num_classes={num_classes}."
            )
        self.mixup_alpha, self.cutmix_alpha, self.num_classes = mixup_alpha, cutmix_alpha, num_classes
        self.label_smoothing = label_smoothing
        self.switch = switch if mixup_alpha and cutmix_alpha else float(cutmix_alpha > 0)
        self.numbers = 3 + 2 * NUMBERS_PER_GAMMA

    def draw(self, numbers: torch.Tensor) -> Params:
        cuts = numbers[:, 0] < self.switch
        weights = [dirichlet(numbers[:, 3:], each or 1.0)[:, 0] for each in (self.mixup_alpha, self.cutmix_alpha)]
        return {"cutmix": cuts, "weight": torch.where(cuts, weights[1], weights[0]), "center": numbers[:, 1:3]}

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
        """Mix the ``image`` and ``label`` of a batch, see `Transform.forward`."""
        if not isinstance(batch, Mapping) or "label" not in batch:
            raise TypeError(
                f"{type(self).__name__} mixes images and labels: pass a batch with image, label and sample_id. To mix "
                "images alone use sample and apply."
            )
        output, params = super().forward(batch, ids, epoch=epoch, view=view, seed=seed, return_params=True)
        output |= self._labels(batch["label"], self.own_weight(params, *batch["image"].shape[2:]))
        return (output, params) if return_params else output

    def own_weight(self, params: Params, height: int, width: int) -> torch.Tensor:
        """How much each image itself counts in the result: float32 ``[B]``; for CutMix by the pixels that remain."""
        boxes = self._boxes(params, height, width)
        cut = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
        weight = torch.where(params["cutmix"], 1 - cut / max(1, height * width), params["weight"])
        applied = params.get("applied")
        return weight if applied is None else torch.where(applied, weight, torch.ones_like(weight))

    def _apply_tree(self, images: torch.Tensor, params: Tree) -> torch.Tensor:
        height, width = images.shape[2:]
        own, partner = (images, images.roll(-1, 0)) if images.is_floating_point() else (images.float(), None)
        partner = own.roll(-1, 0) if partner is None else partner
        top, bottom, left, right = (edge[:, None] for edge in self._boxes(params, height, width).unbind(1))
        rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
        inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]
        weight = per_image(self.own_weight(params, height, width), own).to(own.dtype)
        cut = torch.where(inside[:, None], partner, own)
        mixed = torch.where(per_image(params["cutmix"], own), cut, partner + (own - partner) * weight)
        if "applied" in params:
            mixed = torch.where(per_image(params["applied"], own), mixed, own)
        return mixed if images.is_floating_point() else mixed.round().to(images.dtype)

    def _boxes(self, params: Params, height: int, width: int) -> torch.Tensor:
        """The rectangles of CutMix, clipped to the image: float32 ``[B, 4]``, top, bottom, left, right."""
        side = (1 - params["weight"]).clamp_min(0).sqrt()
        edges = []
        for axis, size in enumerate((height, width)):
            half = (side * size).floor().div(2, rounding_mode="floor")
            center = (params["center"][:, axis] * size).floor()
            edges += [(center - half).clamp(0, size), (center + half).clamp(0, size)]
        return torch.stack(edges, 1)

    def _labels(self, labels: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        weight = weight.to(labels.device)
        if labels.is_floating_point():
            return {"label": torch.lerp(labels.roll(-1, 0), labels, per_image(weight, labels).to(labels.dtype))}
        if self.num_classes is None:
            return {"label_partner": labels.roll(-1, 0), "label_weight": weight}
        classes = torch.arange(self.num_classes, device=labels.device)
        even = self.label_smoothing / self.num_classes
        soft = (labels[:, None] == classes).to(torch.float32) * (1 - self.label_smoothing) + even
        return {"label": torch.lerp(soft.roll(-1, 0), soft, weight[:, None])}


class Mixup(MixupOrCutMix):
    """Mixup alone, see `MixupOrCutMix`.

    Args:
        alpha: Of the beta distribution: 0.2 leaves most images nearly as they are, 1 draws weights evenly.
        num_classes: See `MixupOrCutMix`.
        label_smoothing: See `MixupOrCutMix`.
        p: The probability that an image is mixed.
        seed: See `Transform`.
    """

    def __init__(self, alpha: float = 0.8, **options: Any) -> None:
        super().__init__(alpha, 0.0, **options)


class CutMix(MixupOrCutMix):
    """CutMix alone, see `MixupOrCutMix`.

    Args:
        alpha: Of the beta distribution of the share of the area that is kept.
        num_classes: See `MixupOrCutMix`.
        label_smoothing: See `MixupOrCutMix`.
        p: The probability that an image is mixed.
        seed: See `Transform`.
    """

    def __init__(self, alpha: float = 1.0, **options: Any) -> None:
        super().__init__(0.0, alpha, **options)
