"""What is known of a file without reading it."""

from __future__ import annotations

from dataclasses import dataclass

from torchslip.errors import StorageError

__all__ = ["FileStat", "check_range", "too_short"]


@dataclass(frozen=True, slots=True)
class FileStat:
    """Size and version of a file.

    Attributes:
        bytes: Size.
        etag: What an object store calls this version of the object, without quotes; None where there is no such thing.
        mtime_ns: When it was last modified, in nanoseconds since 1970 UTC; None where that is not known.
    """

    bytes: int
    etag: str | None = None
    mtime_ns: int | None = None


def check_range(start: int, stop: int) -> None:
    """Raise `ValueError` unless ``0 <= start <= stop``."""
    if not 0 <= start <= stop:
        raise ValueError(f"A range of bytes must have 0 <= start <= stop; got start={start}, stop={stop}.")


def too_short(url: str, size: int, start: int, stop: int) -> StorageError:
    """The error for a range that ends behind the end of a file."""
    return StorageError(f"{url} has {size} bytes; bytes {start} to {stop} were asked for.")
