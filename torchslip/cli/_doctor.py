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
from torchslip.loading import cpu_quota, memory_limit_bytes

__all__ = ["run_doctor"]

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
    quota = cpu_quota()
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
