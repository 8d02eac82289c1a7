"""Chains of transforms, and choices between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from torchslip.augment._fusion import stations
from torchslip.augment._philox import constant
from torchslip.augment._transform import Pictures, Transform, Tree, masked

__all__ = ["Compose", "OneOf", "RandomApply"]


class Compose(Transform):
    """Transforms one after the other.

    ::

        chain = ts.augment.Compose([ts.augment.HorizontalFlip(), ts.augment.Normalize()], seed=17)
        batch = chain(batch)

    With `fuse`, the same parameters cost less work:

    * neighbouring geometric transforms become one resampling. What one of them would have moved out of the picture can
      come back by the next, and the pixels are interpolated once;
    * neighbouring transforms that are affine in colour, and a `Normalize` after them, become one matrix. Colours are
      clipped once, after the last;
    * bytes stay floating point from the first computation on and are rounded once, at the end.

    So results differ where the parts would have clipped or rounded in between.

    Args:
        transforms: In order.
        fuse: Fuse neighbours.
        p: The probability that an image goes through the chain at all; needs transforms that keep its size and type.
        seed: See `Transform`.
    """

    def __init__(
        self, transforms: Sequence[Transform], *, fuse: bool = True, p: float = 1.0, seed: int | None = None
    ) -> None:
        super().__init__(p=p, seed=seed)
        for each in transforms:
            if not isinstance(each, Transform):
                raise TypeError(f"A chain is made of torchslip.augment transforms; got {each!r}.")
            if not each.in_chains:
                raise TypeError(f"{type(each).__name__} needs the whole batch; call it after the chain.")
        self.fuse = fuse
        self._names = _distinct_names(transforms)
        self.transforms = torch.nn.ModuleList(transforms)
        self._stations = stations(self._parts(), fuse)

    def extra_repr(self) -> str:
        return "" if self.p == 1 else f"p={self.p}"

    def __getitem__(self, index: int) -> Transform:
        part = self.transforms[index]
        assert isinstance(part, Transform)
        return part

    def __len__(self) -> int:
        return len(self.transforms)

    def _parts(self) -> list[tuple[str, Transform]]:
        return [(name, self[number]) for number, name in enumerate(self._names)]

    def _requests(self) -> list[tuple[int | None, tuple[str, ...], int]]:
        requests = super()._requests()
        for name, part in self._parts():
            for seed, path, blocks in part._requests():
                if seed is None and part.seed is not None:
                    requests.append((part.seed, (type(part).__name__, *path), blocks))
                else:
                    requests.append((seed, path if seed is not None else (name, *path), blocks))
        return requests

    def _tree(self, numbers: torch.Tensor) -> Tree:
        own = 4 * sum(blocks for _, _, blocks in super()._requests())
        tree = super()._tree(numbers[:, :own])
        for name, part in self._parts():
            count = 4 * sum(blocks for _, _, blocks in part._requests())
            if params := part._tree(numbers[:, own : own + count]):
                tree[name] = params
            own += count
        return tree

    def _step(self, pictures: Pictures, params: Tree) -> Pictures:
        if "applied" not in params:
            return self._walk(pictures, params)
        return within(pictures, params, params["applied"], self._walk)

    def _walk(self, pictures: Pictures, params: Tree) -> Pictures:
        for station in self._stations:
            pictures = station(pictures, params)
            if not self.fuse:
                pictures = pictures.settled(rounds=station.rounds)
        return pictures


class RandomApply(Compose):
    """A `Compose` that each image goes through with probability `p`, and otherwise not at all.

    Args:
        transforms: In order; they must keep the size and type of images.
        p: The probability for each image.
        fuse: See `Compose`.
        seed: See `Transform`.
    """

    def __init__(
        self, transforms: Sequence[Transform], p: float = 0.5, *, fuse: bool = True, seed: int | None = None
    ) -> None:
        super().__init__(transforms, p=p, fuse=fuse, seed=seed)


class OneOf(Compose):
    """One of several transforms, drawn for each image.

    All of them draw their parameters, so those of ``OneOf`` always have the same names; ``choice``, int64 ``[B]``, says
    which one counts.

    Args:
        transforms: The choices; they must keep the size and type of images.
        weights: How often each is chosen, relative to the others; default: equally often.
        p: See `Transform`.
        seed: See `Transform`.
    """

    numbers = 1

    def __init__(
        self,
        transforms: Sequence[Transform],
        weights: Sequence[float] | None = None,
        *,
        p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(transforms, p=p, seed=seed)
        shares = tuple(map(float, weights or (1.0,) * len(transforms)))
        if not transforms or len(shares) != len(transforms) or min(shares) < 0 or not sum(shares):
            raise ValueError(
                f"OneOf needs transforms and as many weights, none negative and not all zero; got "
                f"{len(transforms)} transforms and weights {weights}."
            )
        self.weights = shares

    def draw(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        edges, below = [], 0.0
        for weight in self.weights[:-1]:
            below += weight / sum(self.weights)
            edges.append(below)
        return {"choice": (numbers >= constant(tuple(edges), numbers.device)).sum(1)}

    def _walk(self, pictures: Pictures, params: Tree) -> Pictures:
        for number, (name, part) in enumerate(self._parts()):
            pictures = within(pictures, params.get(name, {}), params["choice"] == number, part._step)
        return pictures


def within(
    pictures: Pictures, params: Tree, mask: torch.Tensor, step: Callable[[Pictures, Tree], Pictures]
) -> Pictures:
    """`step` for the images whose `mask` is set; the others as they are."""

    def images_of(images: torch.Tensor, own: Tree) -> torch.Tensor:
        done = step(pictures._replace(images=images), own)
        if (done.bound, done.dtype) != (pictures.bound, pictures.dtype):
            raise ValueError(
                f"What is applied to some images of a batch only must keep their type; {pictures.dtype} became "
                f"{done.dtype}. Put ToFloat and Normalize outside."
            )
        return done.images

    return pictures._replace(images=masked(images_of, pictures.images, params, mask))


def _distinct_names(transforms: Sequence[Transform]) -> list[str]:
    """``["HorizontalFlip", "GaussianBlur", "GaussianBlur_2"]``: no draw depends on transforms of other kinds."""
    names: list[str] = []
    for each in transforms:
        kind = type(each).__name__
        count = sum(name.partition("_")[0] == kind for name in names)
        names.append(f"{kind}_{count + 1}" if count else kind)
    return names
