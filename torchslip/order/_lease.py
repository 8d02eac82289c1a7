"""What a store knows of one segment of an epoch: which positions of it are whose, and how far they are.

An epoch is cut into segments of ``lease_batches`` batches. All that is known of a segment stands under one key, so that
every change of it is one compare-and-set, and a process that dies between two operations leaves nothing half done::

    [tokens, [[position, drawn, replayed, end, holder, token, beat], ...]]

as JSON. A lease whose position is its end is done, and a segment is, if all its leases are. A missing key is a segment
that nobody has asked for.
"""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass, replace

from torchslip.errors import StateError

__all__ = ["HeldLease", "Lease", "LeasedBatch", "OverlapError", "Segment"]


class OverlapError(StateError):
    """A position stands in two leases: something else than leases has written to the store."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A range of positions, and who works on it.

    Attributes:
        position: Everything before it was acknowledged.
        drawn: Everything before it was handed out by the holder.
        replayed: Everything before it was handed out by an earlier holder, who did not acknowledge it.
        end: One past the last position.
        holder: Who works on it; empty if nobody does.
        token: Set anew in every grant, so that a late holder does not take the lease for its own.
        beat: Counts the changes that the holder has made: one that stands still is dead.
    """

    position: int
    drawn: int
    replayed: int
    end: int
    holder: str = ""
    token: int = 0
    beat: int = 0

    @property
    def is_free(self) -> bool:
        """Whether nobody works on it, and somebody should."""
        return not self.holder and self.position < self.end

    @property
    def is_done(self) -> bool:
        """Whether every position was acknowledged."""
        return self.position >= self.end

    def freed(self) -> Lease:
        """The same range without its holder; what was handed out and not acknowledged will be handed out again."""
        return Lease(self.position, self.position, max(self.replayed, self.drawn), self.end)


@dataclass(frozen=True, slots=True)
class LeasedBatch:
    """Positions ``[begin, end)``, handed out under a lease; `replayed` if an earlier holder had them in hand."""

    segment: int
    token: int
    begin: int
    end: int
    replayed: bool

    def is_of_lease(self, other: LeasedBatch) -> bool:
        """Whether both were handed out under the same lease."""
        return (self.segment, self.token) == (other.segment, other.token)


@dataclass(frozen=True, slots=True)
class Segment:
    """The leases of one segment, in the order of their positions.

    Attributes:
        tokens: How many tokens were given out.
        leases: What is not done.
    """

    tokens: int
    leases: tuple[Lease, ...]

    @classmethod
    def whole(cls, begin: int, end: int) -> Segment:
        """A segment that nobody has begun."""
        return cls(0, (Lease(begin, begin, begin, end),))

    @property
    def is_done(self) -> bool:
        """Whether every position was acknowledged."""
        return all(lease.is_done for lease in self.leases)

    def find(self, token: int) -> Lease | None:
        """The lease with this token, if it is still there."""
        return next((lease for lease in self.leases if lease.token == token), None)

    def granted(self, lease: Lease, holder: str) -> tuple[Segment, Lease]:
        """Give a lease of nobody, or of a dead holder, to `holder`."""
        mine = replace(lease.freed(), holder=holder, token=self.tokens + 1)
        return self._with(lease, mine), mine

    def split(self, lease: Lease, at: int, holder: str) -> tuple[Segment, Lease]:
        """Give ``[at, end)`` of a lease to `holder`; its own holder keeps what comes before."""
        mine = Lease(at, at, lease.replayed, lease.end, holder, self.tokens + 1)
        return self._with(lease, replace(lease, end=at), mine), mine

    def changed(self, lease: Lease) -> Segment:
        """Replace the lease that has the token of this one."""
        return Segment(self.tokens, tuple(lease if old.token == lease.token else old for old in self.leases))

    def released(self, lease: Lease) -> Segment:
        """Take a lease from its holder."""
        return self._with(lease, lease.freed())

    def _with(self, old: Lease, *new: Lease) -> Segment:
        leases: list[Lease] = []
        for lease in self.leases:
            leases += new if lease == old else (lease,)
        return Segment(max([self.tokens, *(lease.token for lease in new)]), tuple(leases))

    def encode(self) -> bytes:
        """The value in the store."""
        return json.dumps([self.tokens, [astuple(lease) for lease in self.leases]], separators=(",", ":")).encode()

    @classmethod
    def decode(cls, value: bytes) -> Segment:
        """Read a value of the store.

        Raises:
            StateError: If it is no segment.
            OverlapError: If two leases of it overlap.
        """
        try:
            tokens, leases = json.loads(value)
            segment = cls(tokens, tuple(Lease(*fields) for fields in leases))
            ends = [0, *(lease.end for lease in segment.leases)]
            ordered = all(
                end <= lease.position <= lease.drawn <= lease.end
                for end, lease in zip(ends, segment.leases, strict=False)
            )
        except (ValueError, TypeError) as error:
            raise StateError(f"The store holds {value[:200]!r} where a segment of a job should be.") from error
        if not ordered:
            raise OverlapError(
                f"Two leases overlap: {value[:200]!r}. Something else has written to the store of this job."
            )
        return segment


@dataclass(slots=True)
class HeldLease:
    """A lease of this process, with the segment as last seen; `fresh` if its beat has moved since the last renewal."""

    number: int
    value: bytes
    segment: Segment
    lease: Lease
    fresh: bool = True

    @property
    def key(self) -> tuple[int, int]:
        """The number of its segment, and its token."""
        return self.number, self.lease.token
