"""How far everyone is: one position, counted in samples of the global order, the same on all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchslip.errors import StateError

__all__ = ["STATE_VERSION", "Cursor"]

STATE_VERSION = 1

Fingerprints = Mapping[str, int | str | None]


@dataclass(frozen=True, slots=True)
class Cursor:
    """The state of a loader: `position` samples of `epoch` have been delivered, over all ranks.

    Attributes:
        epoch: The epoch in progress.
        position: Samples of it that were delivered, over all ranks.
        fingerprints: Names and values that identify the source and the order.
    """

    epoch: int
    position: int
    fingerprints: Fingerprints = field(repr=False)

    def state_dict(self) -> dict[str, Any]:
        """The cursor as plain data, for `torch.save` or JSON."""
        return {
            "version": STATE_VERSION,
            "epoch": self.epoch,
            "position": self.position,
            "fingerprints": dict(self.fingerprints),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], *, expected: Fingerprints) -> Cursor:
        """Read a state and check that it belongs here.

        Args:
            state: What `state_dict` returned, here or on any other number of ranks and workers.
            expected: The fingerprints of the source and order that the state is loaded into.

        Raises:
            StateError: If something is missing or differs; the text names each difference.
        """
        if not isinstance(state, Mapping):
            raise StateError(f"A state is the dict that state_dict() returned, got {type(state).__name__}.")
        missing = [key for key in ("version", "epoch", "position", "fingerprints") if key not in state]
        if missing:
            raise StateError(
                f"This is not a state of torchslip: {', '.join(missing)} missing, found {sorted(map(str, state))}."
            )
        if state["version"] != STATE_VERSION:
            raise StateError(
                f"The state has version {state['version']}, this torchslip reads version {STATE_VERSION}. "
                "Load it with the torchslip that saved it."
            )
        found: Fingerprints = state["fingerprints"]
        if not isinstance(found, Mapping):
            raise StateError(f"fingerprints must be a dict of names and values, got {type(found).__name__}.")
        names = [*expected, *(name for name in found if name not in expected)]
        different = [
            f"{name}: {found.get(name)!r} in the state, {expected.get(name)!r} here"
            for name in names
            if found.get(name) != expected.get(name)
        ]
        if different:
            raise StateError(
                "The state belongs to another dataset or order, so its position means nothing here:\n  "
                + "\n  ".join(different)
                + "\nOpen the dataset as it was when the state was saved, or start without the state."
            )
        epoch, position = state["epoch"], state["position"]
        if not (isinstance(epoch, int) and isinstance(position, int) and epoch >= 0 and position >= 0):
            raise StateError(f"epoch and position must be integers >= 0, got {epoch!r} and {position!r}.")
        length = expected.get("length")
        if isinstance(length, int) and position > length:
            raise StateError(f"The state is at position {position}, but an epoch has {length} samples.")
        return cls(epoch, position, dict(found))
