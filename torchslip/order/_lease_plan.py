"""What the processes of a job agree on before they take leases."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from torchslip.errors import StateError
from torchslip.order._order import Fingerprint

__all__ = ["LeasePlan"]


@dataclass(frozen=True, slots=True)
class LeasePlan:
    """What all processes of a job must agree on.

    Attributes:
        length: Positions in an epoch.
        batch_size: Positions in a batch.
        lease_batches: Batches in a segment.
        fingerprint: Identifies dataset and order.
        nonce: Differs for every start of a job, so that a store that lost its contents is noticed.
    """

    length: int
    batch_size: int
    lease_batches: int
    fingerprint: Fingerprint
    nonce: str

    @property
    def segments(self) -> int:
        """How many segments an epoch has."""
        return -(-self.length // (self.batch_size * self.lease_batches))

    def bounds(self, number: int) -> tuple[int, int]:
        """The first position of a segment, and one past its last."""
        size = self.batch_size * self.lease_batches
        return number * size, min((number + 1) * size, self.length)

    def encode(self) -> bytes:
        """The value in the store."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    def agreed(self, value: bytes, job: str) -> LeasePlan:
        """The plan that another process has put into the store, if it is for the same epoch and batches.

        Raises:
            StateError: If dataset, order or batch size differ; the text names each difference.
        """
        try:
            found = LeasePlan(**json.loads(value))
        except (ValueError, TypeError) as error:
            raise StateError(f"The store holds {value[:200]!r} where the plan of job {job!r} should be.") from error
        ours = {"length": self.length, "batch_size": self.batch_size, **self.fingerprint}
        theirs = {"length": found.length, "batch_size": found.batch_size, **found.fingerprint}
        different = [
            f"{name}: {theirs.get(name)!r} there, {ours.get(name)!r} here"
            for name in [*ours, *(name for name in theirs if name not in ours)]
            if ours.get(name) != theirs.get(name)
        ]
        if different:
            raise StateError(
                f"The job {job!r} in this store belongs to another dataset or order:\n  "
                + "\n  ".join(different)
                + "\nGive this one another name: LeaseSampler(..., job=...)."
            )
        return found
