"""`Stream`: one of several MDS datasets that a `StreamingDataset` mixes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchslip.loading._streaming_options import KEEP_ZIP, check_positive
from torchslip.order import Batching
from torchslip.sources import MDS, Mixture, mix
from torchslip.storage import NodeCache

__all__ = ["Stream", "mix_streams", "open_stream"]

_BATCHING: dict[str, Batching] = {"random": "random", "stratified": "stratified", "per_stream": "per_source"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A dataset and its weight in a mixture. What is None here is as the `StreamingDataset` says.

    At most one of the three weights; `proportion` for all streams or for none.

    Attributes:
        remote: A URL, or a folder, which is read where it is. None: `local` is the dataset.
        local: With a URL as `remote`, the folder of the cache; without, the dataset.
        split: A sub-folder to read instead.
        proportion: The share of the stream in an epoch, relative to those of the others.
        repeat: How often the samples of the stream come in an epoch, such as 0.5 or 2. Default: once.
        choose: How many samples of the stream make an epoch.
        download_retry: Attempts to read a remote file.
        download_timeout: Seconds after which reading a remote file fails.
        validate_hash: Check files against this hash of the index, or the first that it has (True).
        keep_zip: Must be False or None.
    """

    remote: str | os.PathLike[str] | None = None
    local: str | os.PathLike[str] | None = None
    split: str | None = None
    proportion: float | None = None
    repeat: float | None = None
    choose: int | None = None
    download_retry: int | None = None
    download_timeout: float | None = None
    validate_hash: str | bool | None = None
    keep_zip: bool | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("proportion", "repeat", "choose") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"A stream has at most one of proportion, repeat and choose; got {' and '.join(given)}.")
        check_positive(download_retry=self.download_retry, download_timeout=self.download_timeout)
        if self.keep_zip:
            raise ValueError(KEEP_ZIP)


def open_stream(
    part: Stream,
    whole: Stream,
    *,
    columns: Sequence[str] | None,
    cache_limit: int | str | None,
    predownload: int | None,
    allow_unsafe_types: bool,
    storage_options: Mapping[str, Any] | None,
) -> MDS:
    """The dataset of a stream, its columns decoded.

    Args:
        part: The stream.
        whole: Holds where `part` says nothing.
        columns: Only these columns.
        cache_limit: The budget of the cache.
        predownload: How many samples to look ahead for shards to fetch.
        allow_unsafe_types: Unpickle ``pkl`` columns.
        storage_options: For fsspec.

    Raises:
        FileNotFoundError: If there is no ``index.json``.
        FormatError: If it is not an index.
        ValueError: If there is no place, or a column of pickles that was not asked for.
    """
    path = part.remote if part.remote is not None else part.local
    if path is None:
        raise ValueError("Give remote, the URL of the dataset, or local, its folder on this machine.")
    retry = {
        "attempts": part.download_retry or whole.download_retry,
        "deadline_seconds": part.download_timeout or whole.download_timeout,
    }
    source = MDS(
        path,
        split=part.split,
        columns=columns,
        cache=NodeCache(part.local if part.remote is not None else None, budget_bytes=cache_limit),
        validate_hash=part.validate_hash or whole.validate_hash or False,
        allow_pickle=allow_unsafe_types,
        decoded=True,
        storage_options={"retry": {name: value for name, value in retry.items() if value}, **(storage_options or {})},
    )
    if predownload is not None and len(source):
        source.prefetch = math.ceil(predownload / float(source.shard_sizes.mean()))
    unsafe = [name for name, encoding in source.encodings.items() if encoding == "pkl"]
    if unsafe and not allow_unsafe_types:
        raise ValueError(
            f"The column {unsafe[0]!r} holds pickles, which can run any code when they are read. If the data is your "
            "own, pass allow_unsafe_types=True; else leave the column out with columns=[...]."
        )
    return source


def mix_streams(
    sources: Sequence[MDS],
    streams: Sequence[Stream],
    *,
    epoch_size: int | str | None,
    batching_method: str,
    global_batch: int | None,
    shuffle: bool,
    seed: int,
    window: int | None,
) -> Mixture:
    """The streams as one source with its order.

    Raises:
        ValueError: If weights of two kinds are given, or arguments are out of range.
    """
    if batching_method not in _BATCHING:
        raise ValueError(
            f"batching_method must be one of {', '.join(_BATCHING)}; got {batching_method!r}. For batches of one "
            "stream on each device, use per_stream."
        )
    batching = _BATCHING[batching_method]
    proportions = [stream.proportion for stream in streams]
    absolute = any(stream.repeat is not None or stream.choose is not None for stream in streams)
    weights = [each for each in proportions if each is not None]
    if weights and len(weights) < len(streams):
        raise ValueError(f"Give a proportion to all {len(streams)} streams or to none; got {proportions}.")
    return mix(
        sources,
        weights=weights or None,
        repeat=[stream.repeat for stream in streams] if absolute else None,
        choose=[stream.choose for stream in streams] if absolute else None,
        seed=seed,
        shuffle=shuffle,
        window=window,
        source_exhausted="repeat",
        epoch_size=_parse_count(epoch_size),
        batching=batching,
        batch_size=None if batching == "random" else global_batch,
        source_field=None,
    )


def _parse_count(count: int | str | None) -> int | None:
    """Samples of ``"100k"``, ``"64M"``, ``"1.5b"`` or a number; units are powers of 1000."""
    if not isinstance(count, str):
        return count
    text = count.strip().lower()
    factor = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}.get(text[-1:], 1)
    try:
        return round(float(text[:-1] if factor > 1 else text) * factor)
    except ValueError:
        raise ValueError(
            f"epoch_size must be a number of samples, or such as '100k' or '64M'; got {count!r}."
        ) from None
