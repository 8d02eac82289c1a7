"""How far to read ahead, found out while reading: a controller without clocks, threads or memory of its own.

Signals go in, one knob and a reason come out. It climbs: a knob is doubled while the consumer waits for data, and the
next tick compares the bytes delivered per second with those before. What brought less than 5 % is taken back and not
tried again for a while, twice as long after each failure; what brought more is tried again at once. Memory comes first:
near the limit the knob that holds most of it is halved, whatever the throughput.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Autotune", "Decision", "Signals"]

_GAIN = 1.05
_WAIT_RATIO = 0.05
_MEMORY_RATIO, _INFLIGHT_RATIO = 0.9, 0.95
_FIRST_REST_TICKS, _LONGEST_REST_TICKS = 4, 64
_RAISED = ("prefetch_batches", "want")


@dataclass(frozen=True, slots=True)
class Signals:
    """What happened since the last tick.

    Attributes:
        bytes_per_second: Delivered.
        wait_ratio: The part of the time that the consumer waited for data.
        memory_ratio: Memory of the process tree, as a part of its hard limit.
        inflight_ratio: The most bytes in flight, as a part of their cap.
    """

    bytes_per_second: float
    wait_ratio: float
    memory_ratio: float
    inflight_ratio: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do.

    Attributes:
        knob: The knob to set; None to leave all as they are.
        value: What to set it to.
        reason: ``memory``, ``probe``, ``revert``, ``kept``, ``at_cap``, ``at_rail``, ``resting`` or ``keeping_up``.
    """

    knob: str | None
    value: int
    reason: str


@dataclass(slots=True)
class _Knob:
    rest_ticks: int = 0
    next_rest_ticks: int = _FIRST_REST_TICKS

    def fail(self) -> None:
        self.rest_ticks = self.next_rest_ticks
        self.next_rest_ticks = min(2 * self.next_rest_ticks, _LONGEST_REST_TICKS)

    def succeed(self) -> None:
        self.rest_ticks, self.next_rest_ticks = 0, _FIRST_REST_TICKS


@dataclass(frozen=True, slots=True)
class _Trial:
    knob: str
    before: int
    bytes_per_second: float


@dataclass(slots=True)
class Autotune:
    """The controller.

    Args:
        knobs: Where each knob stands; changed by `tick`.
        rails: Smallest and largest value of each.
    """

    knobs: dict[str, int]
    rails: Mapping[str, tuple[int, int]]
    adjustments: int = 0
    last: Decision = field(default_factory=lambda: Decision(None, 0, "resting"))
    _trial: _Trial | None = None
    _states: dict[str, _Knob] = field(default_factory=lambda: {name: _Knob() for name in _RAISED})

    def tick(self, signals: Signals) -> Decision:
        """Look at what happened, and move at most one knob."""
        for state in self._states.values():
            state.rest_ticks = max(0, state.rest_ticks - 1)
        decision = self.last = self._decide(signals)
        if decision.knob is not None:
            self.knobs[decision.knob] = decision.value
            self.adjustments += 1
        return decision

    def _decide(self, signals: Signals) -> Decision:
        trial, self._trial = self._trial, None
        if signals.memory_ratio >= _MEMORY_RATIO:
            return self._back_off()
        if trial is not None:
            if signals.bytes_per_second < trial.bytes_per_second * _GAIN:
                self._states[trial.knob].fail()
                return Decision(trial.knob, trial.before, "revert")
            self._states[trial.knob].succeed()
        if signals.wait_ratio <= _WAIT_RATIO:
            return Decision(None, 0, "kept" if trial is not None else "keeping_up")
        if signals.inflight_ratio >= _INFLIGHT_RATIO:
            return Decision(None, 0, "at_cap")
        return self._probe(signals, first=None if trial is None else trial.knob)

    def _probe(self, signals: Signals, first: str | None) -> Decision:
        """Raise a knob: the one that has just helped, else the next one that may."""
        below = [name for name in _RAISED if self.knobs[name] < self.rails[name][1]]
        free = [name for name in below if not self._states[name].rest_ticks]
        if not free:
            return Decision(None, 0, "resting" if below else "at_rail")
        knob = first if first in free else free[0]
        before = self.knobs[knob]
        self._trial = _Trial(knob, before, signals.bytes_per_second)
        return Decision(knob, min(2 * before, self.rails[knob][1]), "probe")

    def _back_off(self) -> Decision:
        for knob in ("prefetch_batches", "max_queue_batches", "want"):
            if self.knobs[knob] > self.rails[knob][0]:
                if knob in self._states:
                    self._states[knob].fail()
                return Decision(knob, max(self.knobs[knob] // 2, self.rails[knob][0]), "memory")
        return Decision(None, 0, "at_rail")
