"""`StreamingDataset` from a real S3 server, as the guides of mosaicml-streaming have it."""

import contextlib
import io
import itertools
import json
import re
import sys

import numpy as np
import pytest
from torch.utils.data import DataLoader

import torchslip as ts
from torchslip import MDSWriter, StreamingDataset

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shards are not kept on Windows")

EPISODES = 60


def make_episodes():
    rng = np.random.default_rng(0)
    for number in range(EPISODES):
        yield {"frame_table": rng.random((50 + number, 4)), "meta": {"number": number, "name": f"épisode {number}"}}


@pytest.fixture
def written(bucket, tmp_path):
    """What the guide writes: locally and to the bucket, compressed, with hashes."""
    columns = {"frame_table": "bytes", "meta_json": "str"}
    with MDSWriter(
        out=str(tmp_path / "data/mds/train"),
        columns=columns,
        compression="zstd",
        hashes="sha1",
        size_limit="8kb",
        remote=f"{bucket}/datasets/ui-trajs",
    ) as w:
        for episode in make_episodes():
            buf = io.BytesIO()
            np.save(buf, episode["frame_table"].astype("float32"))
            w.write({"frame_table": buf.getvalue(), "meta_json": json.dumps(episode["meta"], ensure_ascii=False)})
    return f"{bucket}/datasets/ui-trajs"


def collate(batch):
    return batch


def numbers(batches):
    return [json.loads(sample["meta_json"])["number"] for batch in batches for sample in batch]


def test_the_guides_examples_run_as_pasted(written, tmp_path):
    ds = StreamingDataset(remote=written, local=str(tmp_path / "cache"), shuffle=True, shuffle_seed=1337)
    loader = DataLoader(ds, batch_size=8, num_workers=2, collate_fn=collate, persistent_workers=True)
    for _ in range(2):
        assert sorted(numbers(loader)) == list(range(EPISODES))
    table = np.load(io.BytesIO(ds[3]["frame_table"]))
    np.testing.assert_array_equal(table, list(make_episodes())[3]["frame_table"].astype("float32"))


def test_each_shard_is_downloaded_once_for_all_workers_and_epochs(written, tmp_path, proxy):
    options = {"endpoint_url": proxy.url, "key": "test", "secret": "test"}
    ds = StreamingDataset(remote=written, local=tmp_path / "cache", shuffle=True, storage_options=options)
    proxy.set()
    for _ in range(2):
        list(ts.DataLoader(ds, batch_size=8, num_workers=2, collate_fn=collate))
    asked = sorted(found[0] for _, path in proxy.faults.seen if (found := re.search(r"shard\.\d+", path)))
    assert asked == [f"shard.{number:05}" for number in range(len(ds.source.shard_sizes))]


def test_the_local_folder_stays_within_its_limit(written, tmp_path):
    ds = StreamingDataset(remote=written, local=tmp_path / "cache", cache_limit="40kb", predownload=8)
    largest = 0
    for batch in ts.DataLoader(ds, batch_size=4, collate_fn=collate):
        assert len(batch) == 4
        with contextlib.suppress(FileNotFoundError):  # dropped while we look
            largest = max(largest, sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.raw")))
    assert 0 < largest <= 40 * 1024


def test_an_epoch_goes_on_where_it_stopped(written, tmp_path):
    def loader(workers):
        ds = StreamingDataset(remote=written, local=tmp_path / "cache", shuffle=True, batch_size=8)
        return ts.DataLoader(ds, num_workers=workers, collate_fn=collate)

    first, second = loader(2), loader(1)
    begun = numbers(itertools.islice(first, 3))
    second.load_state_dict(first.state_dict())
    assert begun + numbers(second) == numbers(loader(0))


def test_streams_may_lie_anywhere(written, tmp_path):
    streams = [
        ts.Stream(remote=written, local=tmp_path / "cache", proportion=1),
        ts.Stream(remote=written, local=tmp_path / "cache", proportion=3),
    ]
    ds = StreamingDataset(streams=streams, shuffle=True, epoch_size=40, batch_size=8)
    assert len(numbers(ts.DataLoader(ds, num_workers=2, collate_fn=collate))) == 40


def test_an_unreachable_remote_is_an_error_within_the_timeout(tmp_path, s3_keys):
    options = {"endpoint_url": "http://127.0.0.1:9", "key": "test", "secret": "test"}
    with pytest.raises(ts.StorageError, match=r"s3://nowhere/set/index\.json failed 2 times"):
        StreamingDataset(
            remote="s3://nowhere/set",
            local=tmp_path,
            download_retry=2,
            download_timeout=20,
            storage_options=options,
        )
