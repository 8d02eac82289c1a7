"""A YAML file as a tree whose every node knows its line, and changes to single values of it.

Only plain data: mappings, lists, strings, numbers, booleans and null. Tags of one's own, aliases and duplicate keys are
errors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from torchslip.errors import FormatError

__all__ = ["Mapping", "error_at", "override", "parse", "plain"]


def error_at(node: Node, message: str) -> FormatError:
    """`message`, after the file and the line of `node`; or after the override that it comes from."""
    mark = node.start_mark
    where = mark.name if mark.name.startswith("override ") else f"{mark.name}, line {mark.line + 1}"
    return FormatError(f"{where}: {message}")


def parse(path: Path) -> MappingNode:
    """Read a file.

    Raises:
        FormatError: If it is no YAML, no mapping, or not plain data; the text names the line.
    """
    root = _compose(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(root, MappingNode):
        raise FormatError(f"{path}: a recipe is a mapping of keys and values; see docs/recipes.md.")
    _check_plain(root, set())
    return root


def plain(node: Node) -> Any:
    """The value of a node, as Python's own types."""
    constructor = yaml.constructor.SafeConstructor()
    return constructor.construct_document(node)


class Mapping:
    """The entries of a mapping node, taken one by one; whatever is left at the end is an unknown key.

    Args:
        node: The node.
        what: What it describes, for errors: "a view".

    Raises:
        FormatError: If `node` is no mapping.
    """

    def __init__(self, node: Node, what: str) -> None:
        if not isinstance(node, MappingNode):
            raise error_at(node, f"{what} is a mapping of keys and values, got {_describe(node)}.")
        self.node, self._what = node, what
        self._entries = {key.value: (key, value) for key, value in node.value}
        self._known: list[str] = []

    def items(self) -> list[tuple[str, Node, Node]]:
        """Every entry: name, node of the key, node of the value."""
        return [(name, key, value) for name, (key, value) in self._entries.items()]

    def take(self, key: str) -> Node | None:
        """The value of `key`; None if it is not there.

        Raises:
            FormatError: If it is there and empty.
        """
        self._known.append(key)
        entry = self._entries.pop(key, None)
        if entry is not None and entry[1].tag == "tag:yaml.org,2002:null":
            raise error_at(entry[0], f"{key} of {self._what} has no value.")
        return None if entry is None else entry[1]

    def need(self, key: str) -> Node:
        """The value of `key`.

        Raises:
            FormatError: If it is not there.
        """
        if (node := self.take(key)) is None:
            raise error_at(self.node, f"{self._what} needs the key {key!r}.")
        return node

    def text(self, key: str) -> str:
        """The text that `key` has to have."""
        node = self.need(key)
        if not isinstance(node, ScalarNode):
            raise error_at(node, f"{key} of {self._what} must be text, got {_describe(node)}.")
        return str(node.value)

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """The integer of `key`, `least` or more."""
        node = self.need(key) if default is None else self.take(key)
        value = default if node is None else plain(node)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise error_at(node or self.node, f"{key} must be an integer, {least} or more; got {value!r}.")
        return value

    def end(self) -> None:
        """Refuse what nobody took.

        Raises:
            FormatError: With the first key that is left.
        """
        for name, key, _ in self.items():
            raise error_at(key, f"{self._what} has no key {name!r}; it has {', '.join(self._known)}.")


def override(root: MappingNode, path: str, value: Any) -> None:
    """Set the value at `path`: keys joined by dots, ``*`` for all, names or numbers for the entries of a list.

    Raises:
        ValueError: If `path` leads nowhere.
    """
    node = _compose(yaml.safe_dump(_lists(value)), f"override {path}")
    *parents, last = path.split(".")
    places: list[Node] = [root]
    for step, part in enumerate(parents):
        found = [child for place in places for child in _children(place, part)]
        if not found:
            there = sorted({name for place in places for name in _names(place)})
            before = ".".join(parents[:step]) or "the recipe"
            raise ValueError(f"override {path}: {before} has no {part!r}; it has {', '.join(there) or 'nothing'}.")
        places = found
    mappings = [place for place in places if isinstance(place, MappingNode)]
    if not mappings:
        raise ValueError(f"override {path}: {'.'.join(parents)} has no keys that could be set.")
    for place in mappings:
        place.value = [(key, old) for key, old in place.value if key.value != last]
        place.value.append((ScalarNode("tag:yaml.org,2002:str", last, node.start_mark, node.end_mark), node))


def _children(place: Node, part: str) -> list[Node]:
    if isinstance(place, MappingNode):
        return [value for key, value in place.value if part in ("*", key.value)]
    if not isinstance(place, SequenceNode):
        return []
    found = []
    for number, item in enumerate(place.value):
        if isinstance(item, ScalarNode):
            # A transform that is written without arguments has none yet.
            empty = MappingNode("tag:yaml.org,2002:map", [], item.start_mark, item.end_mark)
            item = MappingNode("tag:yaml.org,2002:map", [(item, empty)], item.start_mark, item.end_mark)
            place.value[number] = item
        if isinstance(item, MappingNode) and len(item.value) == 1:
            name, arguments = item.value[0]
            if part in ("*", name.value, str(number)):
                found.append(arguments)
    return found


def _names(place: Node) -> list[str]:
    if isinstance(place, MappingNode):
        return [key.value for key, _ in place.value]
    if isinstance(place, SequenceNode):
        return [name for item in place.value for name in ([item.value] if not item.value else _names(item))]
    return []


def _compose(text: str, name: str) -> Node:
    stream = _NamedText(text, name)
    try:
        root = yaml.compose(stream, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "no YAML"
        raise FormatError(f"{name}{line}: {problem}.") from error
    if root is None:
        raise FormatError(f"{name}: the file is empty.")
    return root


class _NamedText:
    """A stream with a name, which PyYAML gives to the marks of all nodes."""

    def __init__(self, text: str, name: str) -> None:
        self._text, self.name = text, name

    def read(self, size: int = -1) -> str:
        text, self._text = self._text, ""
        return text


def _check_plain(node: Node, seen: set[int]) -> None:
    seen.add(id(node))
    if not re.fullmatch(r"tag:yaml\.org,2002:(map|seq|str|int|float|bool|null)", node.tag):
        raise error_at(node, f"a recipe is plain data, got {node.tag}.")
    if isinstance(node, SequenceNode):
        for item in node.value:
            _check_alias(item, item, seen)
    elif isinstance(node, MappingNode):
        names = set()
        for key, value in node.value:
            if not isinstance(key, ScalarNode) or key.value in names:
                raise error_at(key, f"the key {getattr(key, 'value', '?')!r} is there twice, or is no word.")
            names.add(key.value)
            _check_plain(key, seen)
            _check_alias(value, key, seen)


def _check_alias(node: Node, place: Node, seen: set[int]) -> None:
    # PyYAML puts the node of the anchor in the place of an alias.
    if id(node) in seen:
        raise error_at(place, "a recipe has no aliases; write the values out.")
    _check_plain(node, seen)


def _describe(node: Node) -> str:
    if isinstance(node, ScalarNode):
        return repr(node.value)
    return "a list" if isinstance(node, SequenceNode) else "a mapping"


def _lists(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_lists(each) for each in value]
    if isinstance(value, dict):
        return {key: _lists(each) for key, each in value.items()}
    return value
