"""What a figure was measured on and with: goes into every result file."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["commit", "describe_machine", "usable_cores", "versions"]


def describe_machine() -> dict[str, Any]:
    """CPU model, cores, memory, system and date, as plain data."""
    return {
        "cpu": _cpu_model(),
        "cores_present": os.cpu_count(),
        "cores_usable": len(usable_cores()),
        "memory_gib": _memory_gib(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def versions(*packages: str) -> dict[str, str]:
    """The version of each package that is installed, or imported from a checkout; others are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = getattr(sys.modules.get(package), "__version__", None)
            if version is not None:
                found[package] = version
    return found


def commit() -> str | None:
    """The commit of this checkout, with ``+`` if files of the package differ from it; None outside git."""
    try:
        name = _git("rev-parse", "HEAD").strip()
        return f"{name}+" if _git("status", "--porcelain", "--", "torchslip") else name
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent.parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def usable_cores() -> list[int]:
    """The numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    name = fields.get("model name", platform.machine())
    return f"{name} (family {fields.get('cpu family')}, model {fields.get('model')})"


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
