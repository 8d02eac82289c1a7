"""What `cache=` of the datasets means: something that makes a faster source of a slow one, with equal records."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torchslip.sources import Source

__all__ = ["CacheArgument", "SourceCache", "apply_cache", "set_cache_of_paths"]


@runtime_checkable
class SourceCache(Protocol):
    """Makes a source whose records, ids and fingerprint are those of another one, and which is faster."""

    def __call__(self, source: Source) -> Source: ...


CacheArgument = bool | str | os.PathLike[str] | SourceCache | None

_of_paths: Callable[[str | os.PathLike[str] | None], SourceCache] | None = None


def set_cache_of_paths(make: Callable[[str | os.PathLike[str] | None], SourceCache]) -> None:
    """Say what a path stands for, and None for the default place: for the room that packs, which comes after this."""
    global _of_paths
    _of_paths = make


def apply_cache(source: Source, cache: CacheArgument) -> Source:
    """The source that is read.

    Args:
        source: What is stored.
        cache: None or False for the source itself, True for a cache at the default place, or its path, or a cache.

    Raises:
        TypeError: If it is none of these.
    """
    if cache is None or cache is False:
        return source
    if cache is True or isinstance(cache, str | os.PathLike):
        assert _of_paths is not None, "set when torchslip is imported"
        cache = _of_paths(None if cache is True else cache)
    if not callable(cache):
        raise TypeError(f"cache must be True, a path or a ts.PackedCache; got {cache!r}.")
    return cache(source)
