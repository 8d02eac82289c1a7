"""The laws of the package's layout, read from its source."""

import ast
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "torchslip"
MODULES = sorted(PACKAGE.rglob("*.py"))
INITS = [path for path in MODULES if path.name == "__init__.py"]

# A room imports only from rooms to its left. `order` asks nobody, so it stands first.
ROOMS = (
    *("order", "storage", "sources", "decode", "loading", "augment", "pack", "streams"),
    *("recipes", "lightning", "show", "cli"),
)
FOR_ALL = ("errors", "random")


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("torchslip", *(part for part in parts if part != "__init__")))


def room_of(module):
    """``loading`` for ``torchslip.loading._dataset``, and "" for ``torchslip`` itself."""
    return ([*module.split("."), ""])[1]


def imports_of(path):
    """The modules of torchslip that a file imports, and each name that it imports from one, written out in full."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            found = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in found if name.split(".")[0] == "torchslip")


# The package itself, which re-exports from every room, is none.
IN_ROOMS = [path for path in MODULES if room_of(name_of(path))]


@pytest.mark.parametrize("path", IN_ROOMS, ids=name_of)
def test_a_room_imports_only_from_rooms_to_its_left(path):
    here = room_of(name_of(path))
    to_the_left = () if here in FOR_ALL else ROOMS[: ROOMS.index(here)]
    # The commands use the package as its users do.
    allowed = {here, *to_the_left, *FOR_ALL, *([""] if here == "cli" else [])}
    assert [name for name in imports_of(path) if room_of(name) not in allowed] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_private_modules_of_a_room_stay_its_own(path):
    here = room_of(name_of(path))
    foreign = [name for name in imports_of(path) if room_of(name) != here]
    assert [name for name in foreign if any(part.startswith("_") for part in name.split("."))] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_shorter_than_400_lines(path):
    assert len(path.read_text().splitlines()) < 400


def bound_names(tree):
    """The public names that a module defines or takes from the rest of the package."""
    names = []
    lazy = [node.body for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for node in [*tree.body, *(each for body in lazy for each in body)]:
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("torchslip")):
            names += [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def exported_names(tree):
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def rank_of_case(name):
    """CONSTANTS, then Classes, then functions and submodules: the order that ruff keeps too."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("path", INITS, ids=name_of)
def test_all_is_sorted_and_complete(path):
    tree = ast.parse(path.read_bytes())
    exported = exported_names(tree)
    assert exported == sorted(exported, key=rank_of_case)
    assert sorted(exported) == sorted(bound_names(tree))
