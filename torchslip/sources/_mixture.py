"""`mix`: several sources as one source that brings its order along."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torchslip.order import (
    Batching,
    Cursor,
    MixedOrder,
    Order,
    Schedule,
    Sequential,
    SourceExhausted,
    choose_per_source,
)
from torchslip.sources._concatenated import Concatenated
from torchslip.sources._open import open
from torchslip.sources._source import Source

__all__ = ["Mixture", "mix"]

_proof = logging.getLogger("torchslip.proof")


class Mixture(Concatenated):
    """What `mix` returns: the sources as one, and in `order` the order in which they are mixed.

    An `ImageDataset` takes the order along with the source. Others get it by name:
    ``ts.DistributedBatchSampler(mixed.order, batch_size=64, fingerprint=mixed.fingerprint)``.
    """

    def __init__(self, sources: Sequence[Source], order: MixedOrder, *, source_field: str | None = "source") -> None:
        super().__init__(sources, source_field=source_field)
        self.order = order
        """Which record stands at which position."""

    def __repr__(self) -> str:
        return f"Mixture({len(self)} records, {self.order!r})"

    def stats(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """What each source has given until `state`, the ``state_dict()`` of a loader, dataset or sampler.

        It is computed from the position, so it counts what was delivered, not what workers have read ahead.

        Returns:
            ``epoch``, ``position`` and ``mix_sources``, a dict per source:

            * ``source``, ``dataset``, ``fingerprint`` and ``samples``: its number, what it is, and how much it has;
            * ``weight``, as it holds now, and ``ratio``, of the samples delivered in this epoch;
            * ``delivered_samples`` of this epoch;
            * ``passes`` that have ended since the beginning, and ``pass_samples`` of the one in progress; unless
              sources are repeated, a pass ends with its epoch;
            * ``exhausted``: whether it has left this epoch, under ``source_exhausted="allow"``;
            * ``starved``: 0; a source cannot wait longer than the order says.

        Raises:
            StateError: If `state` belongs to another mixture.
        """
        expected = {"source": self.fingerprint, **self.order.fingerprint}
        if isinstance(state, Mapping) and isinstance(found := state.get("fingerprints"), Mapping):
            # A sampler that was not told the fingerprint of the source has None.
            expected["source"] = found.get("source") and expected["source"]
        cursor = Cursor.from_state_dict(state, expected=expected)
        at = {"epoch": cursor.epoch, "position": cursor.position}
        counts = self.order.counts(**at).tolist()
        passes, in_pass = (each.tolist() for each in self.order.progress(**at))
        weights = self.order.weights_at(**at)
        sources = [
            {
                "source": number,
                "dataset": repr(source),
                "fingerprint": source.fingerprint,
                "samples": self.order.lengths[number],
                "weight": weights[number],
                "ratio": counts[number] / max(cursor.position, 1),
                "delivered_samples": counts[number],
                "passes": passes[number],
                "pass_samples": in_pass[number],
                "exhausted": self.order.source_exhausted == "allow" and counts[number] >= self.order.lengths[number],
                "starved": 0,
            }
            for number, source in enumerate(self.sources)
        ]
        return {**at, "mix_sources": sources}


def mix(
    sources: Sequence[str | os.PathLike[str] | Source | Any],
    *,
    weights: Sequence[float] | None = None,
    repeat: Sequence[float | None] | None = None,
    choose: Sequence[int | None] | None = None,
    schedule: Schedule | None = None,
    seed: int = 0,
    shuffle: bool = True,
    window: int | None = None,
    source_exhausted: SourceExhausted = "error",
    epoch_size: int | None = None,
    batching: Batching = "random",
    batch_size: int | None = None,
    source_field: str | None = "source",
) -> Mixture:
    """Mix several datasets in given proportions.

    ::

        mixed = ts.mix(["data/photos", "data/drawings"], weights=[0.7, 0.3], seed=17)
        train = ts.ImageDataset(mixed, views=ts.RandomResizedCrop(224), batch_size=256)
        for batch in ts.DataLoader(train, num_workers=8):
            batch["source"]  # int64 [256]: 0 for a photo, 1 for a drawing

    The mixture is a source like any other, and its order is arithmetic like any other: it resumes, divides over ranks
    and workers, and needs no memory. See `MixedOrder` for what it promises.

    Args:
        sources: Paths that `torchslip.open` understands, sources, or datasets; all with the same fields. From a dataset
            its source and its order are taken, not its views. A source that brings an order (such as another mixture)
            keeps it inside its part.
        weights: Relative weights; default: the numbers of samples.
        repeat: Instead of weights: how often each source is taken in an epoch, such as 0.5 or 2; None: once.
        choose: Instead of weights: how many samples of each source make an epoch. One source may have `repeat` and
            another `choose`.
        schedule: Instead of weights: weights that change, see `MixedOrder`.
        seed: Seeds the order.
        shuffle: Shuffle each source anew in every pass over it; else take it as it is stored.
        window: Shuffle a source within this many of its shards at a time, see `Shuffled`; None: the whole source.
        source_exhausted: ``error``, ``allow`` or ``repeat``: what happens when an epoch needs more samples of a source
            than it has, see `MixedOrder`.
        epoch_size: Samples of an epoch, see `MixedOrder` for the default.
        batching: ``random``, ``stratified`` or ``per_source``, see `MixedOrder`.
        batch_size: Samples of a global batch, over all ranks; only for ``stratified`` and ``per_source``.
        source_field: The name of the field that says which source a record comes from; None: no such field.

    Raises:
        FormatError: If a path cannot be opened, or if the sources have different fields.
        ValueError: If a source would be exhausted under ``error``, or if arguments are out of range or exclude each
            other.
    """
    if isinstance(sources, str | os.PathLike):
        raise TypeError(f"mix takes a list of sources, got the single path {os.fspath(sources)!r}.")
    if window is not None and not shuffle:
        raise ValueError(f"window={window} needs shuffle=True.")
    opened = [_open(each) for each in sources]
    parts = [source for source, _ in opened]
    orders: list[int | Order] = [
        order if order is not None else len(source) if shuffle else Sequential(source) for source, order in opened
    ]
    if repeat is not None or choose is not None:
        if weights is not None or schedule is not None:
            raise ValueError("Pass one of weights, a schedule, or repeat and choose.")
        lengths = [len(order) if isinstance(order, Order) else order for order in orders]
        weights = choose_per_source(lengths, repeat=repeat, choose=choose, epoch_size=epoch_size)
        epoch_size = int(sum(weights))
    whole = Concatenated(parts, source_field=source_field)
    order = MixedOrder(
        orders,
        weights=weights,
        seed=seed,
        source_exhausted=source_exhausted,
        epoch_size=epoch_size,
        batching=batching,
        batch_size=batch_size,
        schedule=schedule,
        window=window,
        blocks=[getattr(source, "shard_sizes", 1024) for source in parts],
        starts=whole.starts,
    )
    _proof.info("%s", {"event": "mix_initialized", **order.fingerprint, "samples": order.counts(epoch=0).tolist()})
    return Mixture(parts, order, source_field=source_field)


def _open(given: Any) -> tuple[Source, Order | None]:
    """The source, and the order if it brings one."""
    if isinstance(given, str | os.PathLike):
        return open(given), None
    source = given if isinstance(given, Source) else getattr(given, "source", None)
    if not isinstance(source, Source):
        raise TypeError(f"mix takes paths, sources and datasets that have a source; got {type(given).__name__}.")
    order = getattr(given, "order", None)
    return source, order if isinstance(order, Order) else None
