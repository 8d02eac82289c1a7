"""Numbers of bytes as people write them."""

from __future__ import annotations

import re

__all__ = ["parse_bytes"]

_UNITS = {unit: 1024 ** (power + 1) for power, unit in enumerate(("kb", "mb", "gb", "tb", "pb", "eb", "zb", "yb"))}


def parse_bytes(size: int | float | str) -> int | None:
    """Bytes of ``"128mb"``, ``"0.5 gb"``, ``"4096b"`` or a number; units are powers of 1024.

    Returns:
        None if it is no such text or not above 0.
    """
    value: float = -1
    if isinstance(size, str):
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmgtpezy]b)|(\d+)b?", size.strip().lower())
        if match:
            value = float(match[1]) * _UNITS[match[2]] if match[1] else int(match[3])
    else:
        value = size
    return int(value) if value > 0 else None
