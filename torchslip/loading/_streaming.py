"""`StreamingDataset`: MDS records of any columns, with the arguments of mosaicml-streaming's class of that name."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from torchslip.loading._ordered import BatchPlan, OrderedDataset
from torchslip.loading._streaming_options import check_options, window_of
from torchslip.order import Order, Sequential, Shuffled, Tail, Topology
from torchslip.sources import MDS, Record

__all__ = ["StreamingDataset"]

Indices = slice | Sequence[int] | npt.NDArray[np.integer[Any]]


class StreamingDataset(OrderedDataset[Record]):
    """Samples of an MDS dataset as dicts, each column decoded by its type; by iteration and by index.

    ::

        dataset = ts.StreamingDataset(remote="s3://bucket/train", local="cache", shuffle=True, batch_size=32)
        for batch in ts.DataLoader(dataset, num_workers=8, collate_fn=collate):
            ...

    Takes what the class of the same name in mosaicml-streaming takes; what is not done here is refused in one line that
    says what to use. Order, division over ranks and states are those of `ImageDataset`: a pure function of seed, epoch
    and position, the same on any number of nodes, ranks and workers, so an epoch has another order than there.

    With `batch_size`, a `DataLoader` of the same batch size gives the same batches for any number of workers;
    `ts.DataLoader` takes the number from the dataset, or gives it its own. Without it, samples are dealt to workers one
    by one. Subclasses may override `__getitem__`, through which iteration goes too.

    Args:
        remote: A URL, or a folder, which is read where it is. None: `local` is the dataset.
        local: With a URL as `remote`, the folder of the cache; without, the dataset.
        split: A sub-folder to read instead.
        download_retry: Attempts to read a remote file.
        download_timeout: Seconds to wait for an answer of the remote.
        validate_hash: Check files against this hash of the index, or the first that it has (True).
        keep_zip: Must be False: only decompressed shards are cached.
        predownload: How many samples each worker looks ahead for shards to fetch. Default: ``8 * batch_size``, or 64.
        cache_limit: The most that the cache may hold, in bytes or as ``"50gb"``. Default: no limit.
        batch_size: Samples per rank and batch.
        shuffle: Shuffle anew in every epoch.
        shuffle_algo: ``naive`` shuffles everything; ``py1s`` and ``py2s`` within one shard at a time; ``py1e`` and
            ``py1br`` within as many shards as hold `shuffle_block_size` samples. See `Shuffled`.
        shuffle_seed: Seeds the order.
        shuffle_block_size: See `shuffle_algo`. Default: 262,144.
        allow_unsafe_types: Unpickle ``pkl`` columns. A pickle can run any code: only for data of your own.
        replication: This many consecutive ranks get the same samples.
        sampling_method: ``balanced``; matters only where an epoch leaves samples out.
        sampling_granularity: Must be 1.
        partition_algo: No effect: the division of an epoch never depends on the number of nodes.
        num_canonical_nodes: No effect, for the same reason.
        stream_name: Must be ``stream``.
        stream_config: Must be None.
        columns: Only these columns; the bytes of all others stay untouched.
        storage_options: For fsspec.
        tail: What becomes of an incomplete last global batch, see `Share`: ``pad`` repeats samples, as
            mosaicml-streaming does; with ``uneven`` each sample comes once, and ranks may differ by a batch; ``drop``.
        rank: This rank; default: `torch.distributed` if it is initialised when the dataset is used, else 0.
        world_size: The number of ranks; default: as for `rank`, else 1.

    Raises:
        FileNotFoundError: If there is no ``index.json``.
        FormatError: If it is not an index.
        ValueError: If an argument is refused, out of range or excludes another one.
    """

    _yields_samples = True

    def __init__(
        self,
        *,
        remote: str | os.PathLike[str] | None = None,
        local: str | os.PathLike[str] | None = None,
        split: str | None = None,
        download_retry: int = 2,
        download_timeout: float = 60,
        validate_hash: str | bool | None = None,
        keep_zip: bool = False,
        predownload: int | None = None,
        cache_limit: int | str | None = None,
        sampling_method: Literal["balanced", "fixed"] = "balanced",
        sampling_granularity: int = 1,
        partition_algo: str = "relaxed",
        num_canonical_nodes: int | None = None,
        batch_size: int | None = None,
        shuffle: bool = False,
        shuffle_algo: str = "py1e",
        shuffle_seed: int = 9176,
        shuffle_block_size: int | None = None,
        allow_unsafe_types: bool = False,
        replication: int | None = None,
        stream_name: str = "stream",
        stream_config: Mapping[str, Any] | None = None,
        columns: Sequence[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        tail: Tail = "pad",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        check_options(
            download_retry=download_retry,
            download_timeout=download_timeout,
            keep_zip=keep_zip,
            sampling_method=sampling_method,
            sampling_granularity=sampling_granularity,
            partition_algo=partition_algo,
            num_canonical_nodes=num_canonical_nodes,
            replication=replication,
            stream_name=stream_name,
            stream_config=stream_config,
        )
        path = remote if remote is not None else local
        if path is None:
            raise ValueError("Give remote, the URL of the dataset, or local, its folder on this machine.")
        self.source = MDS(
            os.fspath(path),
            split=split,
            columns=columns,
            validate_hash=validate_hash or False,
            allow_pickle=allow_unsafe_types,
            decoded=True,
        )
        unsafe = [name for name, encoding in self.source.encodings.items() if encoding == "pkl"]
        if unsafe and not allow_unsafe_types:
            raise ValueError(
                f"The column {unsafe[0]!r} holds pickles, which can run any code when they are read. If the data is "
                "your own, pass allow_unsafe_types=True; else leave the column out with columns=[...]."
            )
        self._replication = replication or 1
        order: Order = Sequential(self.source)
        if shuffle:
            sizes = self.source.shard_sizes
            window = window_of(shuffle_algo, shuffle_block_size, sizes)
            order = Shuffled(order, seed=shuffle_seed, window=window, blocks=sizes)
        super().__init__(
            order,
            source_fingerprint=self.source.fingerprint,
            batch_size=batch_size,
            tail=tail,
            rank=rank,
            world_size=world_size,
        )

    def _topology(self) -> Topology:
        whole = super()._topology()
        if whole.world_size % self._replication:
            raise ValueError(f"replication={self._replication} must divide the {whole.world_size} ranks.")
        return Topology(whole.rank // self._replication, whole.world_size // self._replication)

    @property
    def size(self) -> int:
        """How many different samples there are."""
        return len(self.source)

    def __len__(self) -> int:
        """Samples of this rank in a whole epoch."""
        share = self.share
        if share.tail != "uneven":
            return share.count() * share.batch_size
        return len(range(share.topology.rank, share.length, share.topology.world_size))

    def __repr__(self) -> str:
        return f"StreamingDataset({self.source!r}, {self.order!r}, batch_size={self.batch_size})"

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: Indices) -> list[Record]: ...

    def __getitem__(self, index: int | Indices) -> Record | list[Record]:
        """One sample by its number, or a list of them for a slice, a sequence or an array; negative from the end.

        Raises:
            IndexError: If there is no such sample.
            SampleError: If it cannot be read; names shard and sample.
        """
        if isinstance(index, slice):
            return self.source.fetch(range(*index.indices(self.size)))
        if isinstance(index, int | np.integer):
            return self.source.fetch([self._from_end(index)])[0]
        return self.source.fetch([self._from_end(each) for each in index])

    def _from_end(self, index: Any) -> int:
        number = operator.index(index)
        return number + self.size if number < 0 else number

    def _read(self, plan: BatchPlan) -> Iterator[Record]:
        return (self[index] for index in plan.ids.tolist())
