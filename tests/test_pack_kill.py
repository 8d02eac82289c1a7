"""Packers that are killed at random moments: they go on, end with the same bytes, and never leave a false index."""

import contextlib
import multiprocessing
import random
import sys
import time

import pytest
from pack_children import RECORDS, Numbers, pack_numbers

from torchslip.sources import MDS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

ROWS = Numbers().fetch(range(RECORDS))
KILLS = [8, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]


@pytest.fixture(scope="module")
def context():
    return multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    pack_numbers(out)
    return contents(out)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(context, out):
    process = context.Process(target=pack_numbers, args=(out,), daemon=True)
    process.start()
    return process


def kill_after(process, seconds):
    """Kill it, unless it has ended; returns whether it was killed."""
    process.join(seconds)
    killed = process.is_alive()
    process.kill()
    process.join(30)
    assert not process.is_alive()
    assert killed or process.exitcode == 0
    return killed


def check_index(out, expected):
    """An index is only there when everything that it lists is, and says what it shall."""
    with contextlib.suppress(FileNotFoundError):
        index = (out / "index.json").read_bytes()
        assert index == expected["index.json"]
        assert expected.items() <= contents(out).items()
        assert MDS(out, validate_hash=True, cache=out.parent / "cache").fetch(range(RECORDS)) == ROWS


@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_packer_goes_on_and_ends_with_the_same_bytes(context, uninterrupted, tmp_path, kills):
    rng = random.Random(kills)
    done = attempt = resumed = 0
    deadline = time.monotonic() + 20 * kills
    while done < kills:
        out = tmp_path / str(attempt) / "out"
        attempt += 1
        while kill_after(start(context, out), 0.01 + rng.random() * 0.3):
            assert time.monotonic() < deadline
            done += 1
            before = len(list(out.glob(".torchslip-packing-*"))) if out.exists() else 0
            check_index(out, uninterrupted)
            resumed += before > 0
        assert contents(out) == uninterrupted
    assert resumed >= kills / 4


def test_a_packer_killed_again_and_again_comes_to_an_end(context, uninterrupted, tmp_path):
    out = tmp_path / "out"
    deadline = time.monotonic() + 120
    patience_seconds, kills = 0.02, 0
    while kill_after(start(context, out), patience_seconds):
        assert time.monotonic() < deadline
        patience_seconds, kills = patience_seconds * 1.1, kills + 1

    assert kills > 2
    assert contents(out) == uninterrupted


@pytest.mark.parametrize("name", [".torchslip-packing", "torchslip.sidecar", "index.json"])
def test_a_kill_between_the_last_writes_is_mended_by_the_next_call(uninterrupted, tmp_path, name):
    """The states that a random kill seldom meets: before the sidecar, before the index, before the notes are gone."""
    out = tmp_path / "out"
    with contextlib.suppress(KeyboardInterrupt):
        interrupt_after(name, out)
    pack_numbers(out)

    assert contents(out) == uninterrupted


def interrupt_after(name, out):
    import importlib

    storage = importlib.import_module("torchslip.storage")
    write = storage.LocalFolder.write

    def write_and_stop(self, written, data):
        write(self, written, data)
        if written == name:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage.LocalFolder, "write", write_and_stop)
        pack_numbers(out)
