"""Writers and readers that are killed at random moments: no index over missing data, no wrong byte, no hang."""

import multiprocessing
import random
import sys
import time

import pytest
from mds_children import SAMPLES, read_forever, row, write_forever, write_one

from torchslip.sources import MDS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

ROWS = [row(index) for index in range(SAMPLES)]
KILLS = [6, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]


@pytest.fixture(scope="module")
def context():
    return multiprocessing.get_context("forkserver")


def run_and_kill(context, rng, root, target, *arguments):
    """Kill the process some time after its first file is there."""
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    deadline = time.monotonic() + 60
    while not any(root.iterdir()):
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.001)
    time.sleep(rng.random() * 0.15)
    assert process.is_alive()
    process.kill()
    process.join(30)
    assert not process.is_alive()


def whole(folder, cache):
    """Whether there is a dataset; if so, every byte of it is checked."""
    if not (folder / "index.json").exists():
        with pytest.raises(FileNotFoundError):
            MDS(folder)
        return False
    assert MDS(folder, cache=cache, validate_hash=True).fetch(range(SAMPLES)) == ROWS
    return True


@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_writer_leaves_a_whole_dataset_or_none(context, tmp_path, kills):
    rng = random.Random(kills)
    unfinished = 0
    for number in range(kills):
        root = tmp_path / str(number)
        root.mkdir()
        run_and_kill(context, rng, root, write_forever, root)
        for folder in root.iterdir():
            remote = whole(folder / "remote", tmp_path / "cache")
            local = whole(folder / "local", tmp_path / "cache")
            assert local or not remote
            if not (local and remote):
                unfinished += 1
                write_one(folder, exist_ok=True)
                assert whole(folder / "remote", tmp_path / "cache")
                assert not list((folder / "local").glob(".*"))
    assert unfinished > kills / 3


@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_reader_leaves_a_cache_that_others_read_right(context, tmp_path, kills):
    rng = random.Random(kills)
    write_one(tmp_path / "set")
    dataset = tmp_path / "set" / "local"
    for number in range(kills):
        root = tmp_path / f"caches-{number}"
        root.mkdir()
        run_and_kill(context, rng, root, read_forever, dataset, root)
        for cache in root.iterdir():
            begin = time.monotonic()
            assert MDS(dataset, cache=cache).fetch(range(SAMPLES)) == ROWS
            assert time.monotonic() - begin < 30
