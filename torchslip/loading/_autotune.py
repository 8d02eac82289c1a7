"""How far to read ahead, found out while reading: a controller without clocks, threads or memory of its own.

Signals go in, one knob and a reason come out. It climbs: a knob is doubled while the consumer waits for data, and the
next tick compares the bytes delivered per second with those before. What brought less than 5 % is taken back and not
tried again for a while, twice as long after each failure. What brought half as much again is tried again at once; what
lies between may be chance, so the next tick must say the same. And what was gained once may not help any more, or never
did: from time to time a knob above its start is halved, and stays there unless that costs 3 %. Memory comes first: near
the limit the knob that holds most of it is halved, whatever the throughput.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Autotune", "Decision", "Signals"]

_GAIN, _CERTAIN_GAIN = 1.05, 1.5
_LOSS = 0.97
_WAIT_RATIO = 0.05
_MEMORY_RATIO, _INFLIGHT_RATIO = 0.9, 0.95
_FIRST_REST_TICKS, _LONGEST_REST_TICKS = 4, 64
_KEPT_TICKS = 12  # before what was gained is questioned for the first time
_NEWEST = 0.3  # the weight of the latest tick in the rate that a trial is compared with
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
        reason: ``memory``, ``probe``, ``question``, ``confirm``, ``revert``, ``kept``, ``at_cap``, ``at_rail``,
            ``resting`` or ``keeping_up``.
    """

    knob: str | None
    value: int
    reason: str


@dataclass(slots=True)
class _Pause:
    """How long to leave something alone: twice as long after each failure."""

    first: int
    left: int = 0
    next: int = 0

    def fail(self) -> None:
        self.left = max(self.next, self.first)
        self.next = min(2 * self.left, _LONGEST_REST_TICKS)

    def succeed(self, left: int = 0) -> None:
        self.left, self.next = left, 0


@dataclass(frozen=True, slots=True)
class _Trial:
    """A knob that was moved, to find out what that does.

    Attributes:
        knob: Which.
        before: Where it stood.
        rate: Bytes per second before.
        up: Whether it was raised.
        gains: Bytes per second of each tick since, as a part of `rate`.
    """

    knob: str
    before: int
    rate: float
    up: bool
    gains: tuple[float, ...] = ()


def _pauses(left: int = 0) -> dict[str, _Pause]:
    return {name: _Pause(_FIRST_REST_TICKS + left, left) for name in _RAISED}


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
    _start: dict[str, int] = field(init=False)
    _rate: float | None = None
    _trial: _Trial | None = None
    _up: dict[str, _Pause] = field(default_factory=_pauses)
    _down: dict[str, _Pause] = field(default_factory=lambda: _pauses(_KEPT_TICKS))

    def __post_init__(self) -> None:
        self._start = dict(self.knobs)

    def tick(self, signals: Signals) -> Decision:
        """Look at what happened, and move at most one knob."""
        for pause in (*self._up.values(), *self._down.values()):
            pause.left = max(0, pause.left - 1)
        decision = self.last = self._decide(signals)
        if decision.knob is not None:
            self.knobs[decision.knob] = decision.value
            self.adjustments += 1
        return decision

    def _decide(self, signals: Signals) -> Decision:
        trial, self._trial = self._trial, None
        if signals.memory_ratio >= _MEMORY_RATIO:
            self._rate = None
            return self._back_off()
        if trial is None:
            newest = signals.bytes_per_second
            self._rate = newest if self._rate is None else self._rate + _NEWEST * (newest - self._rate)
        elif verdict := self._judge(trial, signals):
            return verdict
        if signals.wait_ratio <= _WAIT_RATIO:
            return Decision(None, 0, "kept" if trial is not None else "keeping_up")
        if signals.inflight_ratio >= _INFLIGHT_RATIO:
            return Decision(None, 0, "at_cap")
        return self._probe(first=None if trial is None or not trial.up else trial.knob)

    def _judge(self, trial: _Trial, signals: Signals) -> Decision | None:
        """What becomes of a trial; None if it is kept."""
        gains = (*trial.gains, signals.bytes_per_second / max(trial.rate, 1e-9))
        gain, pause = sum(gains) / len(gains), (self._up if trial.up else self._down)[trial.knob]
        if gain < (_GAIN if trial.up else _LOSS):
            pause.fail()
            self._rate = trial.rate
            return Decision(trial.knob, trial.before, "revert")
        if len(gains) < 2 and not (trial.up and gain >= _CERTAIN_GAIN):
            self._trial = _Trial(trial.knob, trial.before, trial.rate, trial.up, gains)
            return Decision(None, 0, "confirm")
        self._rate = trial.rate * gain
        pause.succeed()
        if trial.up:
            self._down[trial.knob].succeed(_KEPT_TICKS)
        else:
            self._up[trial.knob].fail()  # it was just found to be of no use up there
        return None

    def _probe(self, first: str | None) -> Decision:
        """Raise a knob, the one that has just helped or the next one that may; if none may, question one."""
        below = [name for name in _RAISED if self.knobs[name] < self.rails[name][1]]
        free = [name for name in below if not self._up[name].left]
        if free:
            knob = first if first in free else free[0]
            return self._try(knob, min(2 * self.knobs[knob], self.rails[knob][1]), up=True)
        raised = [name for name in _RAISED if self.knobs[name] > self._start[name] and not self._down[name].left]
        if raised:
            return self._try(raised[0], max(self.knobs[raised[0]] // 2, self._start[raised[0]]), up=False)
        return Decision(None, 0, "resting" if below else "at_rail")

    def _try(self, knob: str, value: int, *, up: bool) -> Decision:
        assert self._rate is not None
        self._trial = _Trial(knob, self.knobs[knob], self._rate, up)
        return Decision(knob, value, "probe" if up else "question")

    def _back_off(self) -> Decision:
        for knob in ("prefetch_batches", "max_queue_batches", "want"):
            if self.knobs[knob] > self.rails[knob][0]:
                if knob in self._up:
                    self._up[knob].fail()
                return Decision(knob, max(self.knobs[knob] // 2, self.rails[knob][0]), "memory")
        return Decision(None, 0, "at_rail")
