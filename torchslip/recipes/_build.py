"""From the nodes of a file to crops and transforms.

In a file, ``Name: {argument: value, ...}`` stands for the crop or transform of that name, with the arguments that it
has in Python; ``Name`` alone for one without arguments. Its own checks say which values are valid.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from torchslip import augment
from torchslip.augment import Compose, MultiView, Transform
from torchslip.decode import CenterCrop, DirectRandomResizedCrop, RandomResizedCrop, ResizeCrop, ResizeShortCropLong
from torchslip.recipes._document import Mapping as Entries
from torchslip.recipes._document import error_at, plain
from torchslip.recipes._recipe import Evaluation, Recipe

__all__ = ["CROPS", "MASKS", "MIXES", "TRANSFORMS", "build"]

CROPS: Mapping[str, Callable[..., Any]] = {
    crop.__name__: crop
    for crop in (CenterCrop, DirectRandomResizedCrop, RandomResizedCrop, ResizeCrop, ResizeShortCropLong)
}
"""The crops that a recipe may name."""

_ALL = {
    name: each
    for name, each in vars(augment).items()
    if isinstance(each, type) and issubclass(each, Transform) and each not in (Transform, MultiView)
}

MASKS: Mapping[str, Callable[..., Any]] = {
    name: _ALL[name] for name in ("BlockMask", "JEPAMask", "PatchMask") if name in _ALL
}
"""The masks over the patches of a view."""

MIXES: Mapping[str, Callable[..., Any]] = {
    name: _ALL[name] for name in ("CutMix", "Mixup", "MixupOrCutMix") if name in _ALL
}
"""The transforms that mix images and labels of a batch."""

TRANSFORMS: Mapping[str, Callable[..., Any]] = {
    name: each for name, each in _ALL.items() if name not in MASKS and name not in MIXES
}
"""The transforms that a view may have: all others of `torchslip.augment`."""

_DTYPES = ("bfloat16", "float16", "float32")


def build(root: MappingNode, *, name: str, path: Path) -> Recipe:
    """A recipe from its file.

    Raises:
        FormatError: If a key is unknown or missing, or a value out of range; the text names the line.
    """
    entries = Entries(root, "a recipe")
    paper, parameters = entries.text("paper"), entries.text("parameters")
    differences = _texts(entries.need("differences"))
    batch_size, seed = entries.integer("batch_size"), entries.integer("seed", 0, least=0)
    views, chains, masks = _views(entries.need("views"))
    mix, evaluation = entries.take("mix"), entries.take("evaluation")
    entries.end()
    if mix is not None and list(views) != ["image"]:
        raise error_at(mix, f"mix needs one view with the name 'image'; the recipe has {', '.join(views)}.")
    return Recipe(
        name=name,
        path=path,
        paper=paper,
        parameters=parameters,
        differences=differences,
        batch_size=batch_size,
        seed=seed,
        views=views,
        augment=MultiView(chains, seed=seed),
        masks=masks,
        mix=None if mix is None else _one(mix, MIXES, "way to mix"),
        evaluation=None if evaluation is None else _evaluation(evaluation),
    )


def _views(node: Node) -> tuple[dict[str, Any], dict[str, Transform], dict[str, Transform]]:
    """The crops, chains and masks of the views, by name."""
    views: dict[str, Any] = {}
    chains: dict[str, Transform] = {}
    masks: dict[str, Transform] = {}
    for name, key, value in Entries(node, "views").items():
        entries = Entries(value, "a view")
        counted = any(each == "count" for each, _, _ in entries.items())
        count = entries.integer("count", 1)
        crop, transforms, mask = entries.need("crop"), entries.need("augment"), entries.take("mask")
        entries.end()
        for each in [f"{name}_{number}" for number in range(count)] if counted else [name]:
            if each in views:
                raise error_at(key, f"there are two views with the name {each!r}.")
            views[each] = _one(crop, CROPS, "crop")
            chains[each] = Compose(_many(transforms))
            if mask is not None:
                masks[each] = _one(mask, MASKS, "mask")
    if not views:
        raise error_at(node, "a recipe needs at least one view.")
    return views, chains, masks


def _evaluation(node: Node) -> Evaluation:
    entries = Entries(node, "evaluation")
    crop = _one(entries.need("crop"), CROPS, "crop")
    chain = Compose(_many(entries.need("augment")))
    entries.end()
    return Evaluation(views={"image": crop}, augment=MultiView({"image": chain}))


def _many(node: Node) -> list[Transform]:
    if not isinstance(node, SequenceNode):
        raise error_at(node, "transforms are a list: one line for each, beginning with a hyphen.")
    return [_one(item, TRANSFORMS, "transform") for item in node.value]


def _one(node: Node, known: Mapping[str, Callable[..., Any]], what: str) -> Any:
    """The object that ``Name`` or ``Name: {argument: value}`` stands for."""
    if isinstance(node, ScalarNode):
        key, arguments = node, MappingNode(node.tag, [], node.start_mark, node.end_mark)
    elif isinstance(node, MappingNode) and len(node.value) == 1:
        key, arguments = node.value[0]
    else:
        raise error_at(node, f"a {what} is one name with its arguments, such as 'Name: {{argument: value}}'.")
    if key.value not in known:
        raise error_at(key, f"there is no {what} {key.value!r}; there are {', '.join(sorted(known))}.")
    make = known[key.value]
    parameters = inspect.signature(make).parameters
    valid = [name for name in parameters if parameters[name].kind is not inspect.Parameter.VAR_KEYWORD]
    passes_on = len(valid) < len(parameters)
    values = {}
    for name, place, value in Entries(arguments, key.value).items():
        if name not in valid and not passes_on:
            raise error_at(place, f"{key.value} has no argument {name!r}; it has {', '.join(valid) or 'none'}.")
        values[name] = _many(value) if name == "transforms" else _value(name, value)
    try:
        return make(**values)
    except (TypeError, ValueError) as error:
        places = [place for name, place, _ in Entries(arguments, key.value).items() if name in str(error)]
        raise error_at(places[0] if places else key, f"{key.value}: {error}") from error


def _value(name: str, node: Node) -> Any:
    value = plain(node)
    if name == "dtype":
        if value not in _DTYPES:
            raise error_at(node, f"dtype must be one of {', '.join(_DTYPES)}; got {value!r}.")
        return getattr(torch, value)
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def _texts(node: Node) -> tuple[str, ...]:
    values = plain(node)
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise error_at(node, "differences is a list of sentences; [] if there are none.")
    return tuple(values)
