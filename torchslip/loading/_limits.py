"""How much memory loading may use, and how far it reads ahead: what was asked for, and what follows from it.

Everything here is a pure function of the arguments, the profile and the figures of the machine. What decides the
composition of batches (`Limits.max_batch_bytes`, `Limits.target_batch_bytes`) never depends on the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from torchslip.storage import parse_bytes

__all__ = [
    "PROFILES",
    "RAM_VARIABLE",
    "Constraints",
    "Limits",
    "Machine",
    "Profile",
    "ProfileName",
    "RuntimeConfig",
    "derive_limits",
]

ProfileName = Literal["safe", "balanced", "throughput"]

RAM_VARIABLE = "TORCHSLIP_MAX_PROCESS_RSS_BYTES"
"""The environment variable that limits the memory of the process tree, for whoever operates the machine."""

_MIB = 1 << 20
_KNOBS = ("prefetch_batches", "max_queue_batches", "want")


@dataclass(frozen=True, slots=True)
class Constraints:
    """Exact caps, which always win over those of the profile.

    Attributes:
        max_inflight_bytes: Bytes of batches that are being fetched, wait, or are in the hands of the training loop: a
            number, or text such as ``"512mb"``.
        max_ram_bytes: Memory of the process with all its workers, beyond which loading stops with an error.
    """

    max_inflight_bytes: int | str | None = None
    max_ram_bytes: int | str | None = None

    def __post_init__(self) -> None:
        for name in ("max_inflight_bytes", "max_ram_bytes"):
            given = getattr(self, name)
            if given is not None and (isinstance(given, bool) or parse_bytes(given) is None):
                raise ValueError(f"{name} must be a number of bytes above 0, or text such as '512mb'; got {given!r}.")


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """How far to read ahead. What is given here stays as it is: autotune moves only the others.

    Attributes:
        prefetch_batches: How many batches each process builds at the same time.
        max_queue_batches: How many finished ones may wait in each process.
        want: Into how many fetches at the same time each batch is divided.
    """

    prefetch_batches: int | None = None
    max_queue_batches: int | None = None
    want: int | None = None

    def __post_init__(self) -> None:
        for name in _KNOBS:
            given = getattr(self, name)
            if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {given!r}.")


@dataclass(frozen=True, slots=True)
class Profile:
    """A starting point, and the rails between which autotune may move each knob.

    Attributes:
        max_inflight_bytes: The cap on bytes in flight.
        start: Where each knob begins.
        rails: Smallest and largest value of each knob.
        ram_fraction: The part of the machine's memory that the process tree may use.
    """

    max_inflight_bytes: int
    start: Mapping[str, int]
    rails: Mapping[str, tuple[int, int]]
    ram_fraction: float


def _profile(inflight_mib: int, prefetch: int, queue: int, rails: tuple[tuple[int, int], ...], ram: float) -> Profile:
    start = dict(zip(_KNOBS, (prefetch, queue, 1), strict=True))
    between = MappingProxyType(dict(zip(_KNOBS, rails, strict=True)))
    return Profile(inflight_mib * _MIB, MappingProxyType(start), between, ram)


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "safe": _profile(128, 1, 32, ((1, 4), (8, 64), (1, 2)), 0.60),
        "balanced": _profile(256, 2, 64, ((1, 8), (16, 128), (1, 4)), 0.75),
        "throughput": _profile(512, 4, 128, ((2, 16), (32, 256), (1, 8)), 0.85),
    }
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What limits depend on besides arguments.

    Attributes:
        memory_bytes: What the process may use, see `machine_memory_bytes`.
        base_bytes: What it uses already.
        environment: Where `RAM_VARIABLE` is looked up.
    """

    memory_bytes: int
    base_bytes: int
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds.

    Attributes:
        max_inflight_bytes: The cap on bytes in flight, over all worker processes of a loader.
        max_ram_bytes: The most that the process tree may use.
        ram_knob: What to change if that is too little.
        max_batch_bytes: No batch of several samples is larger.
        target_batch_bytes: What batches strive for, if `batch_size` samples do not fit.
        knobs: Where ``prefetch_batches``, ``max_queue_batches`` and ``want`` begin.
        rails: Smallest and largest value of each; equal for one that was given.
    """

    max_inflight_bytes: int
    max_ram_bytes: int
    ram_knob: str
    max_batch_bytes: int
    target_batch_bytes: int
    knobs: Mapping[str, int]
    rails: Mapping[str, tuple[int, int]]


def derive_limits(
    machine: Machine,
    *,
    profile: str = "balanced",
    max_ram_gb: float | None = None,
    constraints: Constraints | None = None,
    runtime: RuntimeConfig | None = None,
    max_batch_bytes: int | str | None = None,
    target_batch_bytes: int | str | None = None,
) -> Limits:
    """The limits that follow from arguments, profile and machine.

    Args:
        machine: The figures of the machine.
        profile: ``safe``, ``balanced`` or ``throughput``.
        max_ram_gb: `Constraints.max_ram_bytes` in GiB.
        constraints: Exact caps.
        runtime: Where the knobs stay.
        max_batch_bytes: Default: a quarter of the cap on bytes in flight, from 4 to 64 MiB, at most a
            third of the cap: room for the batch that the consumer holds, for the next one, and for a copy of it.
        target_batch_bytes: Default: nine tenths of `max_batch_bytes`.

    Raises:
        ValueError: If there is no such profile, or the arguments contradict each other or what the machine has.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(get_args(ProfileName))}; got {profile!r}.")
    chosen, constraints = PROFILES[profile], constraints or Constraints()
    ram_given, ram_knob = _explicit_ram(max_ram_gb, constraints, machine.environment)
    asked = _bytes("max_inflight_bytes", constraints.max_inflight_bytes)
    if asked is not None and ram_given is not None and asked > ram_given:
        raise ValueError(
            f"max_inflight_bytes={asked} cannot be above the {ram_given} bytes of {ram_knob}: bytes in flight are part "
            "of the memory. Lower the one or raise the other."
        )
    own_ram = _own_ram(max_ram_gb, constraints)
    inflight = asked or min(chosen.max_inflight_bytes, own_ram // 4 if own_ram is not None else 1 << 60)
    largest, target = _batch_bytes(inflight, max_batch_bytes, target_batch_bytes)

    ram = ram_given
    if ram is None:
        ram = max(int(chosen.ram_fraction * machine.memory_bytes) - (1 << 30), machine.base_bytes + 2 * inflight)
        ram_knob = f"max_ram_gb (unset: derived from profile={profile!r} and the machine's {machine.memory_bytes})"
    room = ram - machine.base_bytes
    needed = inflight if asked is not None else 2 * largest
    if room < needed:
        raise ValueError(
            f"{ram_knob} allows {ram} bytes, of which the process uses {machine.base_bytes} already: {max(room, 0)} "
            f"are left, and batches need {needed}. Raise it, or lower max_inflight_bytes."
        )
    rails = _rails(chosen, runtime or RuntimeConfig())
    knobs = {name: min(max(chosen.start[name], low), high) for name, (low, high) in rails.items()}
    return Limits(min(inflight, room), ram, ram_knob, largest, target, knobs, rails)


def _explicit_ram(
    max_ram_gb: float | None, constraints: Constraints, environment: Mapping[str, str]
) -> tuple[int | None, str]:
    """The memory that was asked for, by argument or environment, and the name of what says so."""
    own = _own_ram(max_ram_gb, constraints)
    knob = "max_ram_gb" if max_ram_gb is not None else "max_ram_bytes"
    text = environment.get(RAM_VARIABLE, "").strip()
    if not text:
        return own, knob
    operator = parse_bytes(text)
    if operator is None:
        raise ValueError(f"{RAM_VARIABLE} must be a number of bytes above 0; got {text!r}.")
    return (operator, RAM_VARIABLE) if own is None or operator < own else (own, knob)


def _own_ram(max_ram_gb: float | None, constraints: Constraints) -> int | None:
    if max_ram_gb is not None and constraints.max_ram_bytes is not None:
        raise ValueError("Give either max_ram_gb or constraints.max_ram_bytes: both limit the same memory.")
    if max_ram_gb is None:
        return _bytes("max_ram_bytes", constraints.max_ram_bytes)
    if not max_ram_gb > 0:
        raise ValueError(f"max_ram_gb must be above 0, got {max_ram_gb}.")
    return int(max_ram_gb * (1 << 30))


def _batch_bytes(inflight: int, largest: int | str | None, target: int | str | None) -> tuple[int, int]:
    most = _bytes("max_batch_bytes", largest)
    if most is None:
        most = max(1, min(max(inflight // 4, 4 * _MIB), 64 * _MIB, inflight // 3))
    elif most > inflight:
        raise ValueError(f"max_batch_bytes={most} cannot be above max_inflight_bytes={inflight}: no batch would fit.")
    aim = _bytes("target_batch_bytes", target)
    if aim is None:
        aim = -(-most * 9 // 10)
    elif aim > most:
        raise ValueError(f"target_batch_bytes={aim} cannot be above max_batch_bytes={most}.")
    return most, aim


def _rails(profile: Profile, runtime: RuntimeConfig) -> dict[str, tuple[int, int]]:
    given = {name: getattr(runtime, name) for name in _KNOBS}
    return {name: (given[name], given[name]) if given[name] else profile.rails[name] for name in _KNOBS}


def _bytes(name: str, given: int | str | None) -> int | None:
    if given is None:
        return None
    size = parse_bytes(given)
    if size is None:
        raise ValueError(f"{name} must be a number of bytes above 0, or text such as '64mb'; got {given!r}.")
    return size
