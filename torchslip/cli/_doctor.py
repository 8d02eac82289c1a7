"""`torchslip doctor`: what this machine has, and what is missing and why."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

import torchslip as ts
from torchslip.decode import backends
from torchslip.errors import TorchslipError

__all__ = ["memory_limit_bytes", "run_doctor"]

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "torchdata")


def run_doctor(console: Console) -> None:
    """Print versions, backends, cores, memory and GPUs.

    Raises:
        TorchslipError: If no decoder can be used.
    """
    table = Table(show_header=False, title="torchslip doctor", title_justify="left")
    table.add_row("torchslip", ts.__version__)
    table.add_row("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in _PACKAGES:
        table.add_row(name, _version(name))
    table.add_section()
    for backend in backends():
        state = "[green]available[/]" if backend.available else "[yellow]not available:[/]"
        able = f"({', '.join(backend.capabilities)})" if backend.capabilities else ""
        table.add_row(f"decoder {backend.name}", " ".join(filter(None, (state, able, backend.why_not))))
    table.add_section()
    table.add_row("cores", _cores())
    table.add_row("memory", _memory())
    table.add_row("shared memory", _shared_memory())
    table.add_row("GPU", _gpus())
    console.print(table)
    if not any(backend.available for backend in backends()):
        raise TorchslipError("No decoder can be used, so no picture can be read; the table says why.")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cores() -> str:
    there = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    quota = _cpu_quota()
    limited = f", limited to the time of {quota:g} by the cgroup" if quota is not None and quota < usable else ""
    return f"{usable} usable of {there}{limited}; DataLoader workers beyond that only cost memory"


def _memory() -> str:
    total, available = psutil.virtual_memory().total, psutil.virtual_memory().available
    limit = memory_limit_bytes()
    limited = f"; this process may use {limit / 2**30:.1f} GiB (cgroup)" if limit is not None and limit < total else ""
    return f"{total / 2**30:.1f} GiB, {available / 2**30:.1f} free{limited or '; no cgroup limit'}"


def _shared_memory() -> str:
    path = Path("/dev/shm")
    if not path.is_dir():
        return "no /dev/shm"
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    advice = "" if free > 2**30 else "; batches of worker processes lie there: raise it (docker run --shm-size=8g)"
    return f"{free / 2**30:.1f} GiB free in {path}{advice}"


def _gpus() -> str:
    if not torch.cuda.is_available():
        return f"none that torch {torch.__version__} can use; everything works on the CPU"
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return "\n".join(f"{each.name}, {each.total_memory / 2**30:.0f} GiB" for each in names)


def memory_limit_bytes(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """The memory limit of this process's cgroup, version 2 or 1, in bytes; None if there is none.

    The smallest limit counts on the way from the process's own group up to the root.
    """
    limits = [_read_limit(folder / name) for folder, name in _cgroup_files(root, membership, "memory", _MEMORY_FILES)]
    # Version 1 says "no limit" by a number near 2**63.
    return min((limit for limit in limits if limit is not None and limit < 1 << 60), default=None)


_MEMORY_FILES = {2: "memory.max", 1: "memory.limit_in_bytes"}


def _cpu_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    quotas = []
    for folder, name in _cgroup_files(root, membership, "cpu", {2: "cpu.max", 1: "cpu.cfs_quota_us"}):
        if name == "cpu.max":
            quota, _, period = _read_text(folder / name).partition(" ")
        else:
            quota, period = _read_text(folder / name), _read_text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _cgroup_files(root: Path, membership: Path, controller: str, names: dict[int, str]) -> list[tuple[Path, str]]:
    """The folders from the process's own group up to the root, with the file of the controller in each."""
    found = []
    for line in _read_text(membership).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0":
            top, name = root, names[2]
        elif controller in controllers.split(","):
            top, name = root / controllers, names[1]
        else:
            continue
        folder = top / group.lstrip("/")
        found += [(each, name) for each in (folder, *folder.parents) if each == top or top in each.parents]
    return found


def _read_limit(path: Path) -> int | None:
    text = _read_text(path)
    return int(text) if text.isdigit() else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
