"""`PackedCache`: what makes any slow source fast from its second epoch on."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchslip.loading import set_cache_of_paths
from torchslip.pack._background import run_in_background
from torchslip.pack._cached import LEASE_SECONDS, TIMEOUT_SECONDS, Plan
from torchslip.pack._cached_source import CachedSource
from torchslip.pack._transcode import ImageRule
from torchslip.sources import MDS, Source

__all__ = ["PackedCache"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedCache:
    """Packs what a dataset reads, once, and lets it read the packed form: ``ImageDataset(..., cache=PackedCache())``.

    ::

        cache = ts.PackedCache(root="/scratch/packed", remote="s3://team-cache/packed")
        train = ts.ImageDataset("s3://bucket/photos", views=ts.RandomResizedCrop(224), batch_size=256, cache=cache)

    Nothing else changes: ids, order, labels, crops, pixels, states and what happens to files that cannot be read are
    those of the source. A state that was saved without the cache resumes with it, and the other way round. What the
    packed form has not, because it could not be read, and what of it is damaged, is read from the source.

    Attributes:
        root: See `torchslip.cached`, like the rest.
        remote: A folder or URL that several machines share.
        image: ``keep``; or ``jpeg`` or a `Resize`, with which the pixels are others, and so is the fingerprint in
            states.
        shard_bytes: Of a shard.
        background: Let another process pack, and read the source until it is done. It ends with this process, and goes
            on when the dataset is opened again. Only with ``image="keep"``, and for a source that another process can
            import: not one whose class is defined in the main script.
        timeout_seconds: How long to wait for another process that packs.
        lease_seconds: How long a machine that died keeps others waiting.
        progress: Show progress bars on a terminal.
        storage_options: For the storage of `remote`.
        options: More of `torchslip.pack`'s: ``compression``, ``hashes``, ``executor``, ``verify``.
    """

    root: str | os.PathLike[str] | None = None
    remote: str | os.PathLike[str] | None = None
    image: ImageRule = "keep"
    shard_bytes: int | str = 1 << 26
    background: bool = False
    timeout_seconds: float = TIMEOUT_SECONDS
    lease_seconds: float = LEASE_SECONDS
    progress: bool = True
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = sorted({"label_mode", "require_labels"} & set(self.options))
        if taken:
            raise ValueError(f"{taken[0]} is an option of the source: open it with that, and pass the source.")
        if self.background and self.image != "keep":
            raise ValueError(
                "background=True needs image='keep': with other pixels it would matter when the packed form is done."
            )

    def __call__(self, source: Source) -> Source:
        """The source through the cache. Packs it now, unless that is done or left to the background.

        Raises:
            StorageError: If `root` cannot be written, or `remote` does not answer.
            TimeoutError: If another process was still packing after `timeout_seconds`.
            ValueError: If an option is not a valid one.
        """
        plan = Plan.make(
            source,
            root=self.root,
            remote=self.remote,
            lease_seconds=self.lease_seconds,
            storage_options=self.storage_options,
            source_storage_options=None,
            options={"image": self.image, "shard_bytes": self.shard_bytes, **self.options},
        )
        fingerprint = source.fingerprint if self.image == "keep" else f"{source.fingerprint}:{plan.recipe.fingerprint}"
        if self.background:
            packed = plan.entry.find()
            if packed is None or not plan.entry.is_shared():
                # Who is not the first leaves it to the first: nobody waits.
                work = functools.partial(
                    plan.run, on_error="skip", wait=False, timeout_seconds=self.timeout_seconds, progress=False
                )
                run_in_background(plan.entry.path, work)
            return CachedSource(source, packed, fingerprint=fingerprint, find=plan.entry.find)
        done = plan.run(on_error="skip", wait=True, timeout_seconds=self.timeout_seconds, progress=self.progress)
        assert isinstance(done, MDS)
        return CachedSource(source, done, fingerprint=fingerprint, find=plan.entry.find)


def _at(root: str | os.PathLike[str] | None) -> PackedCache:
    return PackedCache(root=root)


set_cache_of_paths(_at)
