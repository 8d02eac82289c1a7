"""The arguments of mosaicml-streaming's `StreamingDataset` that mean nothing here, or something narrower."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["check_options", "window_of"]

_BLOCK_SAMPLES = 1 << 18
_PARTITION_ALGOS = ("orig", "relaxed")
_SAMPLING_METHODS = ("balanced", "fixed")
_SHUFFLE_ALGOS = ("naive", "py1br", "py1e", "py1s", "py2s")


def check_options(
    *,
    download_retry: int,
    download_timeout: float,
    keep_zip: bool,
    sampling_method: str,
    sampling_granularity: int,
    partition_algo: str,
    num_canonical_nodes: int | None,
    replication: int | None,
    stream_name: str,
    stream_config: Mapping[str, Any] | None,
) -> None:
    """Refuse what would not be done, with what to use instead.

    Raises:
        ValueError: If an argument is out of range or refused.
    """
    _check_positive(download_retry=download_retry, download_timeout=download_timeout)
    _check_positive(num_canonical_nodes=num_canonical_nodes, replication=replication)
    _check_choice("partition_algo", partition_algo, _PARTITION_ALGOS)
    _check_choice("sampling_method", sampling_method, _SAMPLING_METHODS)
    if keep_zip:
        raise ValueError(
            "keep_zip=True is not supported: the cache holds only decompressed shards, one copy of each; to keep the "
            "files as they are stored, copy the dataset to a folder and open that."
        )
    if sampling_granularity != 1:
        raise ValueError(
            f"sampling_granularity={sampling_granularity} is not supported: samples are drawn one by one, and the "
            "window of the shuffle keeps them within few shards; leave it at 1."
        )
    if stream_name != "stream" or stream_config:
        raise ValueError(
            "stream_name and stream_config are not supported: there is no registry of streams; pass "
            "streams=[ts.Stream(remote=..., local=...)]."
        )


def window_of(algo: str, block_samples: int | None, shard_sizes: npt.NDArray[np.int64]) -> int | None:
    """How many shards to shuffle together, as `Shuffled` takes it.

    Args:
        algo: The `shuffle_algo`.
        block_samples: The `shuffle_block_size`.
        shard_sizes: Samples of each shard, int64 ``[shards]``.

    Raises:
        ValueError: If there is no such algorithm, or the block is not positive.
    """
    _check_choice("shuffle_algo", algo, _SHUFFLE_ALGOS)
    _check_positive(shuffle_block_size=block_samples)
    if algo == "naive":
        return None
    if algo in ("py1s", "py2s"):
        return 1
    mean_samples = max(float(shard_sizes.mean()) if len(shard_sizes) else 1.0, 1.0)
    return max(1, math.ceil((block_samples or _BLOCK_SAMPLES) / mean_samples))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")


def _check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be above 0, got {value}.")
