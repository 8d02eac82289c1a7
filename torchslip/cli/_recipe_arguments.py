"""What the commands that take a recipe have in common: overrides, and where the pictures are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import torchslip as ts
from torchslip.errors import FormatError
from torchslip.recipes import Recipe

__all__ = ["choose_device", "load_recipe", "normalization_of", "open_training_data"]


def load_recipe(name: str, overrides: Sequence[str], *, size: int | None = None, **more: Any) -> Recipe:
    """The recipe with ``key=value`` overrides, whose values are YAML; `more` are defaults of others.

    Raises:
        FormatError: If the recipe, an override or `size` is wrong.
    """
    import yaml

    values = dict(more)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise FormatError(f"An override is key=value, such as batch_size=64; got {override!r}.")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise FormatError(f"The value of {override!r} is no YAML.") from error
    try:
        recipe = ts.recipes.load(name, **values)
        return recipe if size is None else recipe.resized(size)
    except ValueError as error:
        raise FormatError(str(error)) from error


def open_training_data(path: str) -> tuple[ts.Source, str]:
    """The source at `path`, or in its folder ``train`` if it has one; and which it was."""
    inner = Path(path) / "train"
    chosen = str(inner) if inner.is_dir() else path
    return ts.open(chosen), chosen


def choose_device(name: str | None) -> torch.device:
    """The device called `name`; by default the GPU if there is one.

    Raises:
        FormatError: If there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise FormatError(f"There is no device {name!r} that torch can use: {str(error).splitlines()[0]}") from error
    return device


def normalization_of(recipe: Recipe, view: str) -> dict[str, Any]:
    """For `torchslip.show`: the mean and standard deviation of the view's `Normalize`, if it has one."""
    for part in recipe.augment.views[view].modules():
        if isinstance(part, ts.augment.Normalize) and len(part.mean) == 3:
            return {"normalization": (part.mean, part.std)}
    return {}
