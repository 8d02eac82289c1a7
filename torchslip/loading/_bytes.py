"""`BytesDataset`: the stored bytes of any source, in batches of bounded size, in bounded memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from torchslip.errors import SampleError
from torchslip.loading._autotune import Autotune
from torchslip.loading._byte_budget import ByteBudget
from torchslip.loading._byte_plan import BytePlan, ByteShare, plan_batches, plan_counts
from torchslip.loading._byte_reader import ByteReader
from torchslip.loading._bytes_batch import BytesBatch
from torchslip.loading._dataset import make_order
from torchslip.loading._deliveries import Deliveries
from torchslip.loading._limits import Constraints, ProfileName, RuntimeConfig, derive_limits
from torchslip.loading._memory_guard import this_machine
from torchslip.loading._ordered import BatchPlan, OrderedDataset, Progress
from torchslip.loading._pipeline import Job, Pipeline
from torchslip.order import Order, Tail
from torchslip.sources import FORMATS, ImageFolder, Objects, Source, locate
from torchslip.storage import has_state, is_remote

__all__ = ["BytesDataset"]

_CHUNK = 1 << 20  # positions whose sizes are looked up at once

_proof = logging.getLogger("torchslip.proof")


class BytesDataset(OrderedDataset[BytesBatch]):
    """The stored bytes of samples, undecoded, in batches that are bounded in bytes: for ETL, inference, preprocessing.

    ::

        dataset = ts.BytesDataset("data/train", batch_size=64, max_ram_gb=12)
        for batch in dataset:
            for number, sample_id in enumerate(batch.sample_ids):
                process(batch.sample(number))

    It reads ahead in threads of its own, so it needs no loader around it; inside ``ts.DataLoader(dataset,
    num_workers=4)`` each worker does, and all together stay below the one cap.

    A batch has `batch_size` samples, or fewer where they would be too many bytes, see ``docs/bytes.md``. Its
    composition is a function of the order and of the sizes, the same for any number of ranks and workers. Sources that
    do not know sizes ahead are read too; their batches are divided by count alone.

    Args:
        source: A folder, of which every file is a sample; a URL or a dataset link, of which every object is one, see
            `torchslip.resolve`; an MDS dataset; or any `Source`.
        batch_size: The most samples per batch.
        max_ram_gb: The memory, in GiB, that the process with all its workers may use, beyond which loading stops with
            an error. Default: a part of the machine's, by `profile`.
        profile: ``safe``, ``balanced`` or ``throughput``: how much is in flight, and how far autotune may go.
        constraints: Exact caps instead of those of the profile.
        runtime: How far to read ahead; what is given here stays as it is.
        autotune: Find out, while reading, how far to read ahead pays.
        shuffle: Shuffle anew in every epoch.
        seed: Seeds the order.
        window: As for `ImageDataset`.
        start_id: Only samples from this one on; needs `end_id`.
        end_id: Only samples before this one.
        order: An order of your own, instead of `shuffle`, `window`, `start_id` and `end_id`.
        field: The field to read, if the source has several of bytes.
        target_batch_bytes: What batches strive for, if `batch_size` samples are more. Default: 90 % of the maximum.
        max_batch_bytes: No batch of several samples is larger. Default: a quarter of the cap on bytes in flight,
            between 4 and 64 MiB.
        tail: What becomes of the last batches if there is not one for every rank: ``uneven`` gives empty ones, ``drop``
            leaves them out, ``pad`` repeats batches, marked in ``batch.valid``.
        rank: This rank; default: `torch.distributed` if it is initialised when the dataset is used, else 0.
        world_size: The number of ranks; default: as for `rank`, else 1.
        **options: For opening a path: ``label_mode``, ``recursive``, ``store``, ``storage_options``, ...; see
            `ImageFolder`, `Objects` and `MDS`.

    Raises:
        FormatError: If `source` is a path that cannot be opened.
        SampleError: If a sample is larger than the cap.
        ValueError: If arguments are out of range or exclude each other.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Source,
        *,
        batch_size: int = 64,
        max_ram_gb: float | None = None,
        profile: ProfileName = "balanced",
        constraints: Constraints | None = None,
        runtime: RuntimeConfig | None = None,
        autotune: bool = True,
        shuffle: bool = False,
        seed: int = 0,
        window: int | None = None,
        start_id: int | None = None,
        end_id: int | None = None,
        order: Order | None = None,
        field: str | None = None,
        target_batch_bytes: int | str | None = None,
        max_batch_bytes: int | str | None = None,
        tail: Tail = "uneven",
        rank: int | None = None,
        world_size: int | None = None,
        **options: Any,
    ) -> None:
        self.source: Source = _open(source, options) if isinstance(source, str | os.PathLike) else source
        if options and not isinstance(source, str | os.PathLike):
            raise ValueError(f"{', '.join(options)} can only be given with a path, not with {source!r}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.limits = derive_limits(
            this_machine(),
            profile=profile,
            max_ram_gb=max_ram_gb,
            constraints=constraints,
            runtime=runtime,
            max_batch_bytes=max_batch_bytes,
            target_batch_bytes=target_batch_bytes,
        )
        """The caps that hold, and where the knobs begin."""
        self._reader = ByteReader(self.source, field)
        self._autotune = autotune
        self._plans: dict[int, BytePlan] = {}
        self._ids = _range(start_id, end_id, len(self.source))
        indices = None if self._ids is None else np.arange(*self._ids)
        self.batch_size: int = batch_size
        super().__init__(
            make_order(self.source, shuffle, seed, window, indices, order),
            source_fingerprint=self.source.fingerprint,
            batch_size=batch_size,
            tail=tail,
            rank=rank,
            world_size=world_size,
        )
        self.deliveries = Deliveries()
        self.budget: ByteBudget = ByteBudget(self.limits, self.deliveries)
        """The account of the bytes in flight in workers."""
        self._tuner = Autotune(dict(self.limits.knobs), self.limits.rails)
        event = {"event": "autotune_startup_caps_selected", "profile": profile, **self.limits.knobs}
        figures = {name: getattr(self.limits, name) for name in ("max_inflight_bytes", "max_ram_bytes")}
        _proof.info("%s", {**event, **figures, "autotune": autotune})

    @property
    def share(self) -> ByteShare:  # type: ignore[override]
        """The division of the next epoch into batches, and of these over ranks."""
        return self.share_of(self._clock.next.epoch)

    def share_of(self, epoch: int) -> ByteShare:
        """The division of `epoch` into batches, and of these over ranks."""
        if epoch not in self._plans:
            while len(self._plans) > 1:
                self._plans.pop(next(iter(self._plans)))
            self._plans[epoch] = self._plan(epoch)
        return ByteShare(self._plans[epoch], len(self.order), self._topology(), self._tail)

    def __len__(self) -> int:
        """Batches of this rank in the next epoch."""
        return self.share.count()

    def __repr__(self) -> str:
        return f"BytesDataset({self.source!r}, {self.order!r}, batch_size={self.batch_size})"

    def _plan(self, epoch: int) -> BytePlan:
        length = len(self.order)
        if not self._reader.knows_sizes:
            return plan_counts(length, batch_size=self.batch_size)
        chunks = [np.arange(begin, min(begin + _CHUNK, length)) for begin in range(0, length, _CHUNK)]
        sizes = [self._reader.sizes(self.order.at(chunk, epoch=epoch)) for chunk in chunks]
        joined = np.concatenate([np.zeros(0, np.int64), *sizes])
        return plan_batches(
            joined,
            batch_size=self.batch_size,
            target_bytes=self.limits.target_batch_bytes,
            max_bytes=self.limits.max_batch_bytes,
            refuse=lambda position: self._refuse(position, int(joined[position]), epoch),
        )

    def _refuse(self, position: int, size: int, epoch: int) -> None:
        """Raise for a sample that cannot even form a batch alone."""
        needed = size if self._reader.in_place else 2 * size
        if needed > self.limits.max_inflight_bytes:
            sample = int(self.order.at(np.array([position]), epoch=epoch)[0])
            raise SampleError(
                f"Sample {sample} has {size} bytes, and reading it needs {needed}, more than "
                f"max_inflight_bytes={self.limits.max_inflight_bytes} allows. Pass constraints=Constraints("
                f"max_inflight_bytes={needed}) or more: {locate(self.source, sample)}"
            )

    def _jobs(self, progress: Progress, step: int) -> Iterator[Job]:
        share = self.share_of(progress.epoch)
        plan = share.plan
        for number in range(progress.first, share.count(progress.start), step):
            part = share.batch(progress.start, number)
            ids = self.order.at(part.positions, epoch=progress.epoch)
            yield Job(
                number,
                share.first_position(progress.start, number),
                ids,
                self._reader.sizes(ids) if self._reader.knows_sizes else None,
                part.valid if share.tail == "pad" else None,
                plan.bands_around(share.index(progress.start, number)),
            )

    def _run(self, progress: Progress, step: int) -> Iterator[BytesBatch]:
        account = self._begin_account(step)
        assert account is not None
        alone, budget = account.alone, account.budget
        if alone and self._ids is not None:
            start, end = self._ids
            _proof.info("%s", {"event": "range_selected", "start_id": start, "end_id": end, "samples": end - start})
        pipeline = Pipeline(
            self._jobs(progress, step), self._reader, budget, self._tuner, tuned=self._autotune, consumer_here=alone
        )
        try:
            for job, taken in pipeline:
                progress.last = job.number
                if alone:
                    self.deliveries.add(taken[0], budget.inflight_bytes)
                yield taken.pop()
        finally:
            self._end_account(account)
            pipeline.close()

    def _read(self, plan: BatchPlan) -> Iterator[BytesBatch]:
        raise NotImplementedError  # batches are built ahead, in `_run`

    def stats(self) -> dict[str, int | float | bool | str]:
        """Figures of what was delivered to this process, of memory, and of the knobs. See ``docs/bytes.md``."""
        limits, budget = self.limits, self._own_budget or self.budget
        return {
            **self.deliveries.stats(),
            **self.memory_stats(),
            "batch_size_samples": self.batch_size,
            "target_batch_bytes": limits.target_batch_bytes,
            "max_batch_bytes": limits.max_batch_bytes,
            **dict(limits.knobs),
            **{f"effective_{name}": value for name, value in budget.knobs.items()},
            "autotune_enabled": self._autotune,
            "autotune_adjustments_total": budget.adjustments,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_plans": {}}


def _open(path: str | os.PathLike[str], options: dict[str, Any]) -> Source:
    """Every file or object below a path as bytes, unless it is an MDS dataset."""
    text = os.path.expanduser(os.fspath(path))  # noqa: PTH111  (Path drops one "/" of "s3://")
    mds = FORMATS["mds"]
    if mds.refuse(text, options.get("storage_options")) is None:
        return mds.open(text, **options)
    if is_remote(text) or has_state(text):
        return Objects(text, kind="bytes", **options)
    return ImageFolder(text, **{"extensions": ("",), **options})


def _range(start: int | None, end: int | None, length: int) -> tuple[int, int] | None:
    if start is None and end is None:
        return None
    if start is None or end is None:
        raise ValueError(f"Give both start_id and end_id, or neither; got start_id={start} and end_id={end}.")
    if not 0 <= start < end <= length:
        raise ValueError(f"start_id and end_id must hold 0 <= start_id < end_id <= {length}; got {start} and {end}.")
    return start, end
