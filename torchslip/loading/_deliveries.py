"""What the consumer got: counters, the spread of batch sizes, and the events that tell of them."""

from __future__ import annotations

import logging
from collections import deque
from typing import Protocol

import numpy as np

from torchslip.loading._byte_plan import SLO_MAX, WINDOW, Band, jitter

__all__ = ["Deliveries", "Delivery"]

_proof = logging.getLogger("torchslip.proof")


class Delivery(Protocol):
    """A batch that was delivered."""

    bands: tuple[Band, Band | None]

    @property
    def payload_bytes(self) -> int: ...

    def __len__(self) -> int: ...


class Deliveries:
    """Counters of the process that consumes batches; those that workers have made ahead are not in them."""

    def __init__(self) -> None:
        self.batches = self.samples = self.bytes = 0
        self.slo_breaches = self.band_adjustments = 0
        self.band = Band(-1, 85, 115)
        self._sizes: deque[int] = deque(maxlen=WINDOW)

    def add(self, batch: Delivery, inflight_bytes: int) -> None:
        """Count a batch that the consumer gets now."""
        size = batch.payload_bytes
        self.batches += 1
        self.samples += len(batch)
        self.bytes += size
        self._sizes.append(size)
        _proof.debug("%s", {"event": "delivered", "batch_bytes": size, "inflight_bytes": inflight_bytes})
        self.band, following = batch.bands
        if following is not None:
            self._follow(following)

    def _follow(self, new: Band) -> None:
        old, self.band = self.band, new
        event = {
            "p95_over_p50": round(new.p95_over_p50, 4),
            "old_band_lower_pct": old.lower_pct,
            "old_band_upper_pct": old.upper_pct,
            "new_band_lower_pct": new.lower_pct,
            "new_band_upper_pct": new.upper_pct,
        }
        if new.breached:
            self.slo_breaches += 1
            _proof.warning("%s", {"event": "batch_jitter_slo_breached", "slo_max": SLO_MAX, **event})
        if not new.same_edges(old):
            self.band_adjustments += 1
            _proof.info("%s", {"event": "batch_jitter_band_adjusted", **event})

    def stats(self) -> dict[str, int | float]:
        """Counter name to value."""
        p50, p95 = jitter(np.array(self._sizes, np.int64))
        return {
            "delivered_batches_total": self.batches,
            "delivered_samples_total": self.samples,
            "delivered_bytes_total": self.bytes,
            "batch_payload_bytes_p50": p50,
            "batch_payload_bytes_p95": p95,
            "batch_payload_bytes_p95_over_p50": p95 / p50 if p50 else 0.0,
            "batch_payload_window_size": len(self._sizes),
            "batch_jitter_slo_breaches_total": self.slo_breaches,
            "batch_jitter_band_adjustments_total": self.band_adjustments,
            "batch_jitter_band_lower_pct": self.band.lower_pct,
            "batch_jitter_band_upper_pct": self.band.upper_pct,
        }
