"""What every transform is: parameters drawn per image, and pixels computed from parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from torchslip.augment._philox import uniform_of

__all__ = ["Params", "Pictures", "Transform", "Tree", "as_floating", "by_rows", "masked", "per_image", "spread", "take"]

Params = dict[str, torch.Tensor]
"""Name to values of each image, ``[B, ...]``; in a chain, ``GaussianBlur/sigma``."""

Tree = dict[str, Any]
"""`Params` with one level per chain, as transforms hand them to each other."""

_CHUNK_PIXELS = 224 * 224
"""What is processed at a time on the CPU: one picture of 224 x 224. Measured November 2026 on a Xeon with 2 MB of
second-level cache per core: a SimCLR chain takes half the time that it takes on eight at once."""


class Pictures(NamedTuple):
    """A batch on its way through a chain.

    Attributes:
        images: ``[B, C, H, W]``, uint8 or floating.
        bound: The value of white: 255 for pictures that were uint8, even while they are floating; else 1.
        dtype: What the caller is given in the end.
    """

    images: torch.Tensor
    bound: float
    dtype: torch.dtype

    def floating(self) -> Pictures:
        """The same values in floating point, planes apart: that is how arithmetic over channels is fast."""
        return self._replace(images=as_floating(self.images))

    def settled(self, *, rounds: bool) -> Pictures:
        """In the type that the caller is given."""
        images = self.images
        if images.dtype == self.dtype:
            return self
        if not self.dtype.is_floating_point:
            images = (images.round() if rounds else images).clamp(0, 255)
        return self._replace(images=images.to(self.dtype))


def as_floating(images: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The same values in float32 (float64 stays), or in `dtype`, and planes apart."""
    dtype = dtype or (torch.float64 if images.dtype == torch.float64 else torch.float32)
    return images.to(dtype, memory_format=torch.contiguous_format)


class Transform(nn.Module):
    """A batch transform with parameters of each image's own.

    ::

        out = transform(images, ids, epoch=3)                              # uint8 or float [B, C, H, W]
        batch = transform(batch)                                           # a dict with "image" and "sample_id"
        out, params = transform(images, ids, epoch=3, return_params=True)
        other = transform.apply(masks, params)                             # the same again

    Parameters are a function of (seed, view, sample id, epoch) and of the transform's place in its chain, so an image
    gets the same ones in any batch, on any rank and device. Float images have values from 0 to 1. The result has the
    type of the input unless the transform is there to change it, and never shares memory with what was passed.

    To write one, set `numbers` and implement `draw` and `pixels`.

    Args:
        p: The probability that an image is transformed, drawn for each image.
        seed: Seeds the draws of a transform that is called itself. Inside a chain, a transform with a seed draws by
            it alone, whatever the chain's seed and the view: two with the same seed are yoked.
    """

    numbers: int = 0
    """How many uniform numbers `draw` takes for each image."""

    keeps_bytes: ClassVar[bool] = False
    """`pixels` takes uint8 as it is."""

    rounds: ClassVar[bool] = True
    """Floating results become uint8 by rounding; else by truncation, as in torchvision."""

    in_chains: ClassVar[bool] = True
    """False for what needs more of a batch than its images one by one."""

    def __init__(self, *, p: float = 1.0, seed: int | None = None) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must be a probability, from 0 to 1; got {p}.")
        self.p, self.seed, self._epoch = p, seed, 0

    def draw(self, numbers: torch.Tensor) -> Params:
        """Parameters from uniform numbers.

        Args:
            numbers: float32 ``[B, self.numbers]`` in [0, 1).

        Returns:
            Name to tensor ``[B, ...]``. They must not depend on the size of the images: say it in fractions.
        """
        return {}

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        """The transformed images; must not write into `images`.

        Args:
            images: ``[B, C, H, W]``: float, or uint8 too if `keeps_bytes`.
            params: From `draw`.
            bound: The value of white, 1 or 255.
        """
        raise NotImplementedError

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
        """Transform images, or the ``image`` of a batch.

        Args:
            batch: uint8 or float ``[B, C, H, W]``; or a dict with ``image`` and ``sample_id``, of which a changed copy
                is returned.
            ids: int64 ``[B]``, the sample ids; from the batch if that is a dict.
            epoch: Default: ``batch["epoch"]`` if it is there, else that of `set_epoch`.
            view: Tells apart several views of one image: a number or a name.
            seed: Default: the transform's own, else 0.
            return_params: Return ``(result, params)``.

        Raises:
            ValueError: If `ids` are needed and not there.
            TypeError: If the images are no uint8 or float tensor of four dimensions.
        """
        if not isinstance(batch, Mapping):
            images, result = batch, None
        else:
            images, result = _entry(batch, "image", self), dict(batch)
            ids = batch.get("sample_id") if ids is None else ids
            epoch = batch.get("epoch") if epoch is None else epoch
        params = self.sample(ids, epoch=epoch, view=view, seed=seed, like=images)
        output: Any = self.apply(images, params)
        if result is not None:
            result["image"] = output
            output = result
        return (output, params) if return_params else output

    def sample(
        self,
        ids: torch.Tensor | None,
        *,
        epoch: int | torch.Tensor | None = None,
        view: int | str = 0,
        seed: int | None = None,
        like: torch.Tensor | None = None,
    ) -> Params:
        """The parameters alone; `like` is a batch on the device where they are wanted."""
        return flatten(self._sample_tree(ids, epoch, view, seed, like))

    def _sample_tree(
        self,
        ids: torch.Tensor | None,
        epoch: int | torch.Tensor | None,
        view: int | str,
        seed: int | None,
        like: torch.Tensor | None,
    ) -> Tree:
        kind = type(self).__name__
        requests = tuple(
            (own, "/".join(path if own is not None else (kind, *path)), blocks)
            for own, path, blocks in self._requests()
        )
        if ids is None:
            if requests:
                raise ValueError(
                    f"{kind} draws random parameters for each image and needs to know which image is "
                    "which: pass ids=batch['sample_id'], or the whole batch."
                )
            return self._tree(torch.empty(0 if like is None else len(like), 0))
        if like is not None:
            check_images(like)
            if len(ids) != len(like):
                raise ValueError(f"There must be one id per image; got {len(ids)} ids for {len(like)} images.")
            ids = ids.to(like.device, non_blocking=True)
        seed = (self.seed or 0) if seed is None else seed
        epoch = self._epoch if epoch is None else epoch
        if isinstance(epoch, torch.Tensor):
            epoch = epoch.to(ids.device, non_blocking=True)
        return self._tree(uniform_of(ids, requests, seed=seed, view=view, epoch=epoch))

    def apply(self, images: Any, params: Mapping[str, torch.Tensor] | None = None) -> Any:
        """Transform other images by known parameters, exactly as those were transformed that they come from.

        With a function as the only argument it is `torch.nn.Module.apply`.
        """
        if params is None and callable(images) and not isinstance(images, torch.Tensor):
            return super().apply(images)
        check_images(images)
        return self._apply_tree(images, nest(params or {}))

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the calls that do not name one."""
        self._epoch = epoch

    def extra_repr(self) -> str:
        return "" if self.p == 1 else f"p={self.p}"

    # What a chain asks of its parts; `Compose` and its like answer for theirs.

    def _requests(self) -> list[tuple[int | None, tuple[str, ...], int]]:
        """The numbers that are needed: own seed or None, path below this transform, blocks of four."""
        blocks = -(-(self.numbers + (self.p < 1)) // 4)
        return [(None, (), blocks)] if blocks else []

    def _tree(self, numbers: torch.Tensor) -> Tree:
        """Parameters from all the numbers that `_requests` asked for; the coin is the last, so `p` moves nothing."""
        params: Tree = dict(self.draw(numbers[:, : self.numbers]))
        if self.p < 1:
            params["applied"] = numbers[:, self.numbers] < self.p
        return params

    def _apply_tree(self, images: torch.Tensor, params: Tree) -> torch.Tensor:
        start = Pictures(images, 255.0 if images.dtype == torch.uint8 else 1.0, images.dtype)
        size = max(1, _CHUNK_PIXELS // max(1, images.shape[2] * images.shape[3]))
        if len(images) <= size or not by_rows(images):
            done = self._step(start, params).settled(rounds=self.rounds).images
            return done.clone() if done is images else done
        output = None
        for first in range(0, len(images), size):
            rows = slice(first, first + size)
            done = (
                self._step(start._replace(images=images[rows]), take(params, rows)).settled(rounds=self.rounds).images
            )
            if output is None:
                output = done.new_empty((len(images), *done.shape[1:]))
            output[rows] = done
        assert output is not None
        return output

    def _step(self, pictures: Pictures, params: Tree) -> Pictures:
        """One station of a chain; the result may still be floating where uint8 was passed."""
        bound = pictures.bound
        keeps_type = self.keeps_bytes and pictures.images.dtype in (torch.uint8, torch.float32, torch.float64)

        def pixels(images: torch.Tensor, own: Tree) -> torch.Tensor:
            images = images if keeps_type else as_floating(images)
            return self.pixels(images, own, bound)

        return pictures._replace(images=masked(pixels, pictures.images, params))


def masked(
    function: Callable[[torch.Tensor, Tree], torch.Tensor],
    images: torch.Tensor,
    params: Tree,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`function` on the images whose `mask` (default: ``params["applied"]``) is set; the others as they are."""
    mask = params.get("applied") if mask is None else mask
    if mask is None:
        return function(images, params)
    if not by_rows(images):
        changed = function(images, params)
        return torch.where(per_image(mask, changed), changed, images.to(changed.dtype))
    rows = [row for row, selected in enumerate(mask.tolist()) if selected]
    if not rows:
        return images
    if len(rows) == len(images):
        return function(images, params)
    index = torch.tensor(rows)
    changed = function(images.index_select(0, index), take(params, index))
    if changed.dtype != images.dtype:
        images = as_floating(images, changed.dtype)
    return images.index_copy(0, index, changed)


def by_rows(images: torch.Tensor) -> bool:
    """Whether parameters may be looked at, to leave out work for images that are not selected.

    On the CPU that costs nothing; elsewhere it would wait for the device, and under `torch.compile` and autograd it
    would cut the graph in pieces. The pixels are the same.
    """
    return (
        images.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not (images.requires_grad and torch.is_grad_enabled())
    )


def take(params: Tree, rows: slice | torch.Tensor) -> Tree:
    """The parameters of some images."""
    return {name: take(value, rows) if isinstance(value, dict) else value[rows] for name, value in params.items()}


def flatten(tree: Tree) -> Params:
    """``{"a": {"b": x}}`` as ``{"a/b": x}``."""
    flat: Params = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{inner}": each for inner, each in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def nest(params: Mapping[str, torch.Tensor]) -> Tree:
    """``{"a/b": x}`` as ``{"a": {"b": x}}``."""
    tree: Tree = {}
    for path, value in params.items():
        *parents, name = path.split("/")
        level = tree
        for parent in parents:
            level = level.setdefault(parent, {})
        level[name] = value
    return tree


def per_image(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """``[B]`` as ``[B, 1, 1, ...]``, to broadcast against `images`."""
    return values.view(-1, *(1,) * (images.dim() - 1))


def spread(numbers: torch.Tensor, interval: tuple[float, float]) -> torch.Tensor:
    """Numbers in [0, 1) as numbers in `interval`."""
    low, high = interval
    return numbers * (high - low) + low


def check_images(images: Any) -> None:
    """Refuse what is no batch of pictures.

    Raises:
        TypeError: With what is wrong.
    """
    if not isinstance(images, torch.Tensor):
        hint = "; give the pictures one size with a view such as ts.RandomResizedCrop(224)"
        raise TypeError(f"Images must be a tensor [B, C, H, W]; got a {type(images).__name__}{hint}.")
    if images.dim() != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise TypeError(
            f"Images must be uint8 or floating [B, C, H, W]; got {images.dtype} {list(images.shape)}. "
            "For a single picture pass picture[None]."
        )


def _entry(batch: Mapping[str, Any], key: str, transform: Transform) -> Any:
    if key not in batch:
        raise ValueError(
            f"{type(transform).__name__} transforms batch[{key!r}], and this batch has {sorted(batch)}. For other "
            "names use ts.augment.MultiView({name: transform, ...})."
        )
    return batch[key]
