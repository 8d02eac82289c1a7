"""A chain for each named view of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from torchslip.augment._transform import Transform, Tree, flatten, nest

__all__ = ["MultiView"]


class MultiView(Transform):
    """Transforms the views of a batch, each by a chain of its own.

    ::

        augment = ts.augment.MultiView({"global_0": chain_a, "global_1": chain_b, "local_0": chain_c}, seed=17)
        batch = augment(batch)

    Draws depend on the name of the view, so two views with one chain are augmented independently; chains that have
    the same `seed` of their own are yoked.

    Args:
        views: Batch key to transform.
        source: Make all views from this batch key instead of each from its own.
        seed: See `Transform`.
    """

    def __init__(self, views: Mapping[str, Transform], *, source: str | None = None, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        if not views:
            raise ValueError("MultiView needs at least one view, got none.")
        self.source = source
        self.views = torch.nn.ModuleDict(views)

    def extra_repr(self) -> str:
        return "" if self.source is None else f"source={self.source!r}"

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
        """Transform the views of a batch, see `Transform.forward`; `view` has no meaning here."""
        if not isinstance(batch, Mapping):
            raise TypeError(f"MultiView transforms a batch, a dict with the views; got a {type(batch).__name__}.")
        ids = batch.get("sample_id") if ids is None else ids
        epoch = batch.get("epoch") if epoch is None else epoch
        epoch = self._epoch if epoch is None else epoch
        base = (self.seed or 0) if seed is None else seed
        images = self._inputs(batch)
        tree: Tree = {}
        for name, transform in self._transforms():
            own = {"seed": base, "view": name} if transform.seed is None else {"seed": transform.seed, "view": None}
            tree[name] = transform._sample_tree(ids, epoch=epoch, like=images[name], **own)
        params = flatten(tree)
        output = {**batch, **self.apply(batch, params)}
        return (output, params) if return_params else output

    def apply(self, images: Any, params: Mapping[str, torch.Tensor] | None = None) -> Any:
        """Transform the views of another batch by known parameters; returns the views alone."""
        if not isinstance(images, Mapping):
            return super().apply(images, params)
        tree, inputs = nest(params or {}), self._inputs(images)
        return {name: each._apply_tree(inputs[name], tree.get(name, {})) for name, each in self._transforms()}

    def _transforms(self) -> list[tuple[str, Transform]]:
        return [(name, each) for name, each in self.views.items() if isinstance(each, Transform)]

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        inputs = {}
        for name in self.views:
            key = self.source or name
            if key not in batch:
                hint = "" if self.source else "; pass source= to make all views from one entry"
                raise ValueError(f"MultiView needs batch[{key!r}], and this batch has {sorted(batch)}{hint}.")
            inputs[name] = batch[key]
        return inputs
