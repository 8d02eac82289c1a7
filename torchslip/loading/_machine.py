"""What this machine, and the control group of this process, allow."""

from __future__ import annotations

from pathlib import Path

__all__ = ["cpu_quota", "machine_memory_bytes", "memory_limit_bytes"]

_CGROUP, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_MEMORY_FILES = {2: "memory.max", 1: "memory.limit_in_bytes"}


def machine_memory_bytes() -> int:
    """What this process may use at most: the machine's memory, or the limit of its control group if that is less."""
    import psutil

    return min(psutil.virtual_memory().total, memory_limit_bytes() or 1 << 60)


def memory_limit_bytes(root: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int | None:
    """The memory limit of this process's cgroup, version 2 or 1, in bytes; None if there is none.

    The smallest limit counts on the way from the process's own group up to the root.
    """
    limits = [_read_limit(folder / name) for folder, name in _cgroup_files(root, membership, "memory", _MEMORY_FILES)]
    # Version 1 says "no limit" by a number near 2**63.
    return min((limit for limit in limits if limit is not None and limit < 1 << 60), default=None)


def cpu_quota(root: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> float | None:
    """How many cores' time the cgroup allows; None if it sets no limit."""
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
