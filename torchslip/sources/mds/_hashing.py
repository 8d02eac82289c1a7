"""The hash algorithms of an MDS index; digests are lower-case hex, those of xxHash in canonical byte order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from types import ModuleType

from torchslip.errors import MissingDependencyError

__all__ = ["HASHES", "checked_hashes", "hash_bytes"]

_HASHLIB = (
    "blake2b",
    "blake2s",
    "md5",
    "sha1",
    "sha224",
    "sha256",
    "sha384",
    "sha3_224",
    "sha3_256",
    "sha3_384",
    "sha3_512",
    "sha512",
)
_XXHASH = ("xxh128", "xxh32", "xxh3_128", "xxh3_64", "xxh64")

HASHES: tuple[str, ...] = (*_HASHLIB, *_XXHASH)
"""Names of the algorithms; those that begin with ``xxh`` need the package xxhash."""


def hash_bytes(algorithm: str, data: bytes | memoryview) -> str:
    """The digest of `data` in lower-case hex.

    Raises:
        ValueError: If `algorithm` is not one of `HASHES`.
        MissingDependencyError: If it needs xxhash and that is not installed.
    """
    if algorithm in _XXHASH:
        return str(getattr(_xxhash(), algorithm)(data).hexdigest())
    checked_hashes(algorithm)
    # A checksum, not a signature: md5 and sha1 must work where OpenSSL forbids them for security.
    return hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()


def checked_hashes(hashes: str | Sequence[str] | None) -> list[str]:
    """Algorithm names, sorted as an index has them; one name may be given as a plain string.

    Raises:
        ValueError: If a name is unknown or stands twice.
    """
    names = sorted([hashes] if isinstance(hashes, str) else hashes or [])
    for name in names:
        if name not in HASHES:
            raise ValueError(f"There is no hash algorithm {name!r}; choose from {', '.join(HASHES)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"hashes must name each algorithm once; got {', '.join(names)}.")
    return names


def _xxhash() -> ModuleType:
    try:
        import xxhash
    except ImportError as error:
        raise MissingDependencyError(
            "This hash algorithm needs the package xxhash: pip install 'torchslip[mds]'"
        ) from error
    return xxhash
