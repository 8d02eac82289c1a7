"""Datasets fetched ahead: everything once, no more than the budget, and what is there is left alone."""

import re
import sys
from collections import Counter

import pytest
from cache_children import SAMPLES, row, used_bytes, write_set

import torchslip as ts
from torchslip.cli import main
from torchslip.errors import FormatError
from torchslip.pack import sync, warm

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs flock")


@pytest.fixture
def remote(bucket, proxy, tmp_path):
    """Twelve shards of 10 kB in a bucket."""
    write_set(f"{bucket}/set", size_limit=10_000, hashes="sha1")
    proxy.set(only="shard.")
    return f"{bucket}/set"


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line; returns what it says."""

    def run_here(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["torchslip", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == code, said
        return said.err if code else said.out

    return run_here


def fetched(proxy):
    return Counter(re.search(r"shard\.\d+", path)[0] for _, path in proxy.faults.seen)


def test_every_shard_is_fetched_once_and_nothing_is_left_to_fetch(remote, proxy, tmp_path):
    done = warm(remote, cache=tmp_path / "cache")
    assert done.near_bytes == done.fetched_bytes == done.bytes and set(fetched(proxy).values()) == {1}
    again = warm(remote, cache=tmp_path / "cache")
    rows = ts.MDS(remote, cache=tmp_path / "cache").fetch(range(SAMPLES))

    assert again.near_bytes == again.bytes and again.fetched_bytes == 0
    assert rows == [row(each) for each in range(SAMPLES)] and len(fetched(proxy)) == sum(fetched(proxy).values()) == 12


def test_it_goes_on_with_what_is_missing(remote, proxy, tmp_path):
    ts.MDS(remote, cache=tmp_path / "cache").fetch(range(40))
    before = sum(fetched(proxy).values())
    done = warm(remote, cache=tmp_path / "cache")

    assert 0 < done.fetched_bytes < done.bytes
    assert sum(fetched(proxy).values()) == 12 and before > 1


def test_no_more_than_the_budget_is_fetched_and_nothing_is_pushed_out(remote, proxy, tmp_path):
    for _ in range(2):
        done = warm(remote, cache=tmp_path / "cache", budget_bytes=50_000)
        assert 30_000 < done.near_bytes <= 50_000 < done.bytes
        assert used_bytes(tmp_path / "cache") <= 50_000

    assert set(fetched(proxy).values()) == {1} and sorted(fetched(proxy))[0] == "shard.00000"


def test_what_lies_here_is_read(picture_folder, tmp_path):
    write_set(tmp_path / "set", size_limit=10_000)
    shards = sum(path.stat().st_size for path in (tmp_path / "set").glob("shard.*"))
    pictures = sum(path.stat().st_size for path in picture_folder.rglob("*.*"))

    assert (warm(tmp_path / "set").near_bytes, warm(picture_folder).near_bytes) == (shards, pictures)


def test_pictures_in_a_bucket_have_no_cache(picture_folder, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sync(picture_folder, f"{bucket}/pictures")
    with pytest.raises(FormatError, match=r"torchslip.cached or ImageDataset\(cache=...\)"):
        warm(f"{bucket}/pictures")


def test_the_command_warms_and_says_what_does_not_fit(run, remote, tmp_path):
    text = run("warm", remote, "--cache", tmp_path / "cache", "--budget", "50kb")
    assert "MiB of 0.1 MiB in the cache; fetched" in text and "do not fit into the budget" in text
    assert "do not fit" not in run("warm", remote, "--cache", tmp_path / "cache", "--budget", "1mb")


def test_the_command_copies_completes_and_refuses(run, remote, tmp_path):
    assert "13 files, 0.1 MiB; copied 13" in run("sync", remote, tmp_path / "copy")
    (tmp_path / "copy" / "shard.00004.mds").unlink()
    assert "copied 1 (0.0 MiB)" in run("sync", remote, tmp_path / "copy")
    write_set(tmp_path / "copy", exist_ok=True)
    assert "--replace" in run("sync", remote, tmp_path / "copy", code=2)
    assert "copied 13" in run("sync", remote, tmp_path / "copy", "--replace")
    assert f"{remote}-missing" in run("sync", f"{remote}-missing", tmp_path / "other", code=2)
    assert "NAME=VALUE" in run("sync", remote, tmp_path / "copy", "--storage-option", "key", code=2)
