"""Dataset links: a place, and which state of it.

========================  ==========================================================================
``base``                  the state that was last resolved; the first time, the one that is there now
``base@refresh``          the state that is there now
``base@sha256:<64 hex>``  the state with this hash, and no other
========================  ==========================================================================
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

__all__ = ["Link", "has_state", "parse_link"]

_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Link:
    """A dataset link.

    Attributes:
        base: The folder: a URL or an absolute path, without a slash at its end.
        refresh: Whether to look at what is there now.
        hash: The hash of the wanted state, or None.
    """

    base: str
    refresh: bool = False
    hash: str | None = None


def parse_link(text: str | os.PathLike[str]) -> Link:
    """The parts of a link; a path becomes absolute.

    Raises:
        ValueError: If there is no base, or a hash that is not 64 lower-case hexadecimal digits.
    """
    link = os.fspath(text).strip()
    base, separator, state = link.rpartition("@")
    refresh = bool(separator) and state == "refresh"
    pinned = bool(separator) and state.startswith("sha256:")
    base = base if refresh or pinned else link
    if not base:
        raise ValueError(f"A dataset link must name a folder or URL before the '@'; got {link!r}.")
    digest = state.removeprefix("sha256:") if pinned else None
    if digest is not None and not _HASH.fullmatch(digest):
        raise ValueError(
            f"A hash in a dataset link must be 64 lower-case hexadecimal digits, as in 'base@sha256:0123…'; got "
            f"{len(digest)} characters in {link!r}. `torchslip resolve {base}` prints the one of now."
        )
    return Link(_normal(base), refresh, digest)


def has_state(text: str | os.PathLike[str]) -> bool:
    """Whether a link ends in ``@refresh`` or ``@sha256:…``."""
    state = os.fspath(text).strip().rpartition("@")[2]
    return "@" in os.fspath(text) and (state == "refresh" or state.startswith("sha256:"))


def _normal(base: str) -> str:
    scheme, separator, rest = base.partition("://")
    if separator and scheme not in ("file", "local"):
        return f"{scheme}://{rest.rstrip('/')}"
    return os.path.abspath(os.path.expanduser(rest if separator else base))  # noqa: PTH100, PTH111  (".." is text here)
