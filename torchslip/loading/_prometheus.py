"""Figures as text that Prometheus reads."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["prometheus_text"]


def prometheus_text(
    stats: Mapping[str, object], *, prefix: str = "torchslip", labels: Mapping[str, str] | None = None
) -> str:
    """The numbers among `stats` in the text format of Prometheus, version 0.0.4, to serve or to write to a file.

    ::

        Path("/var/lib/node_exporter/torchslip.prom").write_text(ts.prometheus_text(dataset.stats()))

    Args:
        stats: What ``stats()`` of a dataset returns; what is no number is left out.
        prefix: Stands before every name.
        labels: Added to every line, such as ``{"rank": "3"}``.
    """
    escaped = (f'{name}="{_escape(value)}"' for name, value in (labels or {}).items())
    suffix = f"{{{','.join(escaped)}}}" if labels else ""
    lines = []
    for key, value in stats.items():
        if isinstance(value, bool | int | float):
            name = re.sub(r"\W", "_", f"{prefix}_{key}", flags=re.ASCII)
            kind = "counter" if key.endswith("_total") else "gauge"
            lines += [f"# TYPE {name} {kind}", f"{name}{suffix} {float(value):.17g}"]
    return "\n".join([*lines, ""])


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
