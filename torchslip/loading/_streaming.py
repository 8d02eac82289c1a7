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
from torchslip.loading._streams import Stream, mix_streams, open_stream
from torchslip.order import Order, Sequential, Shuffled, Tail, Topology
from torchslip.sources import MDS, Mixture, Record

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
        streams: Several datasets to mix, see `Stream`, instead of `remote`, `local` and `split`.
        remote: A URL, or a folder, which is read where it is. None: `local` is the dataset.
        local: With a URL as `remote`, the folder of the cache; without, the dataset.
        split: A sub-folder to read instead.
        download_retry: Attempts to read a remote file. Default: 8.
        download_timeout: Seconds after which reading a remote file fails. Default: 120.
        validate_hash: Check files against this hash of the index, or the first that it has (True).
        keep_zip: Must be False: only decompressed shards are cached.
        epoch_size: Samples of an epoch, a number or such as ``"100k"``; the next epoch goes on where the last one
            stopped in each stream, and begins it anew when all its samples have come. Default: all samples once, or
            what the weights of the streams say.
        predownload: How many samples each worker looks ahead for shards to fetch, rounded up to whole shards. Default:
            4 shards.
        cache_limit: The most that the cache may hold, in bytes or as ``"50gb"``. Default: see `NodeCache`.
        batch_size: Samples per rank and batch.
        shuffle: Shuffle anew in every epoch.
        shuffle_algo: ``naive`` shuffles everything; ``py1s`` and ``py2s`` within one shard at a time; ``py1e`` and
            ``py1br`` within as many shards as hold `shuffle_block_size` samples. See `Shuffled`.
        shuffle_seed: Seeds the order.
        shuffle_block_size: See `shuffle_algo`. Default: 262,144.
        batching_method: How streams are mixed: ``random`` sample by sample, ``stratified`` gives every global batch the
            same composition, ``per_stream`` takes each from one stream; see `MixedOrder`.
        allow_unsafe_types: Unpickle ``pkl`` columns. A pickle can run any code: only for data of your own.
        replication: This many consecutive ranks get the same samples.
        sampling_method: ``balanced``; ``fixed`` only where an epoch is the whole dataset.
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
        streams: Sequence[Stream] | None = None,
        remote: str | os.PathLike[str] | None = None,
        local: str | os.PathLike[str] | None = None,
        split: str | None = None,
        download_retry: int | None = None,
        download_timeout: float | None = None,
        validate_hash: str | bool | None = None,
        keep_zip: bool = False,
        epoch_size: int | str | None = None,
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
        batching_method: str = "random",
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
            predownload=predownload,
            keep_zip=keep_zip,
            sampling_method=sampling_method,
            sampling_granularity=sampling_granularity,
            partition_algo=partition_algo,
            num_canonical_nodes=num_canonical_nodes,
            replication=replication,
            stream_name=stream_name,
            stream_config=stream_config,
            samples_left_out=streams is not None or epoch_size is not None,
        )
        whole = Stream(
            remote=remote,
            local=local,
            split=split,
            download_retry=download_retry,
            download_timeout=download_timeout,
            validate_hash=validate_hash,
        )
        parts = _parts(streams, whole)
        sources = [
            open_stream(
                part,
                whole,
                columns=columns,
                cache_limit=cache_limit,
                predownload=predownload,
                allow_unsafe_types=allow_unsafe_types,
                storage_options=storage_options,
            )
            for part in parts
        ]
        self._replication = replication or 1
        self._rank, self._world_size = rank, world_size
        sizes = np.concatenate([source.shard_sizes for source in sources])
        window = window_of(shuffle_algo, shuffle_block_size, sizes) if shuffle else None
        self.source: MDS | Mixture = sources[0]
        order: Order = Sequential(self.source)
        if streams is not None or epoch_size is not None:
            self.source = mix_streams(
                sources,
                parts,
                epoch_size=epoch_size,
                batching_method=batching_method,
                global_batch=None if batch_size is None else batch_size * self._topology().world_size,
                shuffle=shuffle,
                seed=shuffle_seed,
                window=window,
            )
            order = self.source.order
        elif shuffle:
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


def _parts(streams: Sequence[Stream] | None, whole: Stream) -> Sequence[Stream]:
    if streams is None:
        return [whole]
    if whole.remote is not None or whole.local is not None or whole.split is not None:
        raise ValueError("Give either streams, or remote, local and split, which then belong to each stream.")
    if not streams:
        raise ValueError("streams must list at least one stream.")
    return streams
