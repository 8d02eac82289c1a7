"""Shares of the sources of a mixture, as exact fractions."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

__all__ = ["Weights", "apportion", "choose_per_source"]


@dataclass(frozen=True, slots=True)
class Weights:
    """Relative weights as whole numbers without a common divisor."""

    parts: tuple[int, ...]

    @classmethod
    def parse(cls, weights: Sequence[float], sources: int) -> Weights:
        """Read relative weights; 0.7 means seven tenths exactly, not the nearest binary number.

        Raises:
            ValueError: If they are not one finite number >= 0 per source, or all 0.
        """
        given = [float(weight) for weight in weights]
        if len(given) != sources:
            raise ValueError(f"weights must have one number per source, {sources}; got {len(given)}.")
        if not all(weight >= 0 and math.isfinite(weight) for weight in given) or not any(given):
            raise ValueError(f"weights must be finite numbers >= 0, and not all 0; got {list(weights)}.")
        exact = [Fraction(repr(weight)) for weight in given]
        scale = math.lcm(*(weight.denominator for weight in exact))
        parts = [int(weight * scale) for weight in exact]
        divisor = math.gcd(*parts)
        return cls(tuple(part // divisor for part in parts))

    def only(self, active: Sequence[bool]) -> Weights | None:
        """The weights of the active sources, 0 for the others; None if nothing is left."""
        kept = tuple(part if keep else 0 for part, keep in zip(self.parts, active, strict=True))
        return Weights(kept) if any(kept) else None

    def __str__(self) -> str:
        return ":".join(map(str, self.parts))


def apportion(weights: Weights, seats: int) -> list[int]:
    """Whole numbers that add up to `seats`, each less than 1 from its share: the method of largest remainders."""
    total = sum(weights.parts)
    quotas = [divmod(part * seats, total) for part in weights.parts]
    counts = [quota for quota, _ in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda source: (-quotas[source][1], source))
    for source in by_remainder[: seats - sum(counts)]:
        counts[source] += 1
    return counts


def choose_per_source(
    lengths: Sequence[int],
    *,
    proportion: Sequence[float] | None = None,
    repeat: Sequence[float | None] | None = None,
    choose: Sequence[int | None] | None = None,
    epoch_size: int | None = None,
) -> list[int]:
    """How many samples of each source make an epoch, by the three kinds of weights of mosaicml-streaming.

    Proportions are relative: source i gets ``floor(epoch_size * proportion[i] / sum(proportion))`` samples, and what is
    missing then goes to the largest remainders (mosaicml-streaming draws by numpy's random numbers which sources get
    one more). The default `epoch_size` is the number of all samples, the default proportion the number of samples.
    Repeat and choose are absolute: ``int(repeat[i] * lengths[i])`` samples, or ``choose[i]``; a source that has neither
    is taken once. The epoch is their sum.

    Args:
        lengths: Samples of each source.
        proportion: Relative weights.
        repeat: How often each source is taken, None where `choose` says it.
        choose: How many samples of each source are taken, None where `repeat` says it.
        epoch_size: Samples of an epoch; only with relative weights.

    Raises:
        ValueError: If relative and absolute weights are given together, both of the absolute ones for one source, or
            `epoch_size` with absolute ones.
    """
    for name, values in (("proportion", proportion), ("repeat", repeat), ("choose", choose)):
        if values is not None and len(values) != len(lengths):
            raise ValueError(f"{name} must have one entry per source, {len(lengths)}; got {len(values)}.")
    if repeat is None and choose is None:
        size = sum(lengths) if epoch_size is None else operator.index(epoch_size)
        return apportion(Weights.parse(lengths if proportion is None else proportion, len(lengths)), size)
    if proportion is not None:
        raise ValueError("proportion is relative, repeat and choose are absolute: give one kind for all sources.")
    if epoch_size is not None:
        raise ValueError(f"repeat and choose make the epoch themselves; leave out epoch_size={epoch_size}.")
    nothing = [None] * len(lengths)
    counts = []
    for source, entry in enumerate(zip(lengths, repeat or nothing, choose or nothing, strict=True)):
        length, factor, number = entry
        if factor is not None and number is not None:
            raise ValueError(f"Source {source} has repeat={factor} and choose={number}; give one of them.")
        count = operator.index(number) if number is not None else int(length * (1 if factor is None else factor))
        if count < 0 or not np.isfinite(factor or 0):
            raise ValueError(f"repeat and choose must be 0 or more; source {source} has {factor or number}.")
        counts.append(count)
    return counts
