"""Finding a recipe: one that comes with torchslip, or a file of one's own."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from torchslip.errors import FormatError
from torchslip.recipes._build import build
from torchslip.recipes._document import override, parse
from torchslip.recipes._recipe import Recipe

__all__ = ["load", "names"]


def load(recipe: str | Path, /, **overrides: Any) -> Recipe:
    """Read a recipe and build its crops and transforms.

    ::

        recipe = ts.recipes.load("simclr", batch_size=256)
        recipe = ts.recipes.load("swav", **{"views.large.crop.RandomResizedCrop.size": 160})
        recipe = ts.recipes.load("simclr", **{"views.*.augment.ColorJitter.p": 0.5})
        recipe = ts.recipes.load("my/own.yaml")

    Args:
        recipe: The name of a recipe that comes with torchslip, see `names`; or the path of a file that ends in
            ``.yaml``.
        overrides: Other values for single keys: the keys on the way to it joined by dots, with ``*`` for all of a
            level, and transforms by their name or place in the list.

    Raises:
        FormatError: If there is no such recipe; if a key is unknown or a value out of range, with file and line.
        ValueError: If an override leads nowhere.
    """
    path = _find(recipe)
    root = parse(path)
    for key, value in overrides.items():
        override(root, key, value)
    return build(root, name=path.stem, path=path)


def names() -> list[str]:
    """The recipes that come with torchslip."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def _find(recipe: str | Path) -> Path:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise FormatError(f"There is no recipe at {path}.")
        return path
    if str(recipe) not in names():
        close = difflib.get_close_matches(str(recipe), names(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise FormatError(
            f"There is no recipe {str(recipe)!r}.{hint} There are {', '.join(names())}; the path of a file of your own "
            "ends in .yaml."
        )
    return _folder() / f"{recipe}.yaml"


def _folder() -> Path:
    """Inside an installed package; beside it in a checkout."""
    installed = Path(__file__).parent / "yaml"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"
