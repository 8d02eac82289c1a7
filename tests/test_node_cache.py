"""The node cache, by what lies in its folder and what processes that are really killed leave."""

import itertools
import logging
import multiprocessing
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cache_children import (
    SIZE,
    content,
    entry_of,
    fetch_slowly,
    fetcher,
    hold,
    read,
    read_once,
    use_forever,
    use_some,
    used_bytes,
)

from torchslip.errors import FormatError
from torchslip.storage import NodeCache

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs flock and SIGKILL")

SLACK = 200  # the marker
SOAK = [8, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]


@pytest.fixture(scope="module")
def context():
    return multiprocessing.get_context("forkserver")


@pytest.fixture
def processes(context):
    """Starts processes, and kills those that are left."""
    started = []

    def start(target, *arguments):
        process = context.Process(target=target, args=arguments, daemon=True)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join(30)


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def stored(root, suffix=".raw"):
    return {path.stem: path for path in root.glob(f"*{suffix}")}


def is_kept(cache, key):
    return entry_of(key).name in stored(cache.root)


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def test_the_example_for_data_of_ones_own_runs(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[1] / "docs" / "cache.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[-1], {})
    assert capsys.readouterr().out == "b'what is expensive to get'\n"


@pytest.mark.parametrize("options", [{"budget_bytes": -1}, {"budget_bytes": "many"}, {"wait_seconds": -1}])
def test_what_is_no_budget_is_an_error(tmp_path, options):
    with pytest.raises(ValueError, match="must be above 0"):
        NodeCache(tmp_path, **options)


def test_a_budget_may_be_written_as_people_write_it(tmp_path):
    assert NodeCache(tmp_path, "2 kb").budget_bytes == 2048


def test_an_entry_is_fetched_once_and_then_read_from_the_disk(tmp_path):
    cache, count = NodeCache(tmp_path / "cache"), tmp_path / "count"
    assert [read(cache, "a", count=count) for _ in range(3)] == [content("a")] * 3
    assert lines(count) == ["a"]


def test_nothing_is_made_before_it_is_needed(tmp_path):
    cache = NodeCache(tmp_path / "cache", 10 * SIZE)
    assert pickle.loads(pickle.dumps(cache)).root == cache.root
    assert list(tmp_path.iterdir()) == []


def test_an_empty_entry_is_kept_too(tmp_path):
    cache = NodeCache(tmp_path / "cache")
    for _ in range(2):
        with cache.open(entry_of("e", 0), lambda path: path.write_bytes(b"")) as held:
            assert (held.map(), held.kept) == (b"", True)


def test_different_identities_and_sizes_are_different_entries():
    assert len({entry_of(key, size).name for key, size in itertools.product("ab", (1, 2))}) == 4


def test_eight_processes_that_want_an_entry_fetch_it_once(context, processes, tmp_path):
    cache, barrier, results = NodeCache(tmp_path / "cache"), context.Barrier(8), context.Queue()
    for _ in range(8):
        processes(read_once, cache, "a", tmp_path / "count", barrier, results)
    assert [results.get(timeout=60) for _ in range(8)] == [True] * 8
    assert lines(tmp_path / "count") == ["a"]


def test_eight_threads_that_want_an_entry_fetch_it_once(tmp_path):
    cache, found = NodeCache(tmp_path / "cache"), []
    threads = [
        threading.Thread(target=lambda: found.append(read(cache, "a", count=tmp_path / "count", pause=0.1)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [content("a")] * 8
    assert lines(tmp_path / "count") == ["a"]


def test_the_next_one_takes_over_from_a_killed_fetcher_at_once(processes, tmp_path):
    cache = NodeCache(tmp_path / "cache", wait_seconds=600)
    process = processes(fetch_slowly, cache, "a")
    wait_until(lambda: stored(cache.root, ".part"))
    process.kill()
    process.join(30)
    assert stored(cache.root, ".part")
    assert read(cache, "a") == content("a")
    assert not stored(cache.root, ".part")
    assert is_kept(cache, "a")


def test_prefetching_does_not_wait_for_another_process(processes, tmp_path):
    cache = NodeCache(tmp_path / "cache", wait_seconds=600)
    processes(fetch_slowly, cache, "a")
    wait_until(lambda: stored(cache.root, ".part"))
    assert cache.prefetch(entry_of("a"), fetcher("a")) == "busy"


def test_whoever_has_waited_long_enough_fetches_it_too(processes, tmp_path):
    cache = NodeCache(tmp_path / "cache", wait_seconds=0.2)
    processes(fetch_slowly, cache, "a")
    wait_until(lambda: stored(cache.root, ".part"))
    with cache.open(entry_of("a"), fetcher("a")) as held:
        assert not held.kept
        assert bytes(held.map()) == content("a")


def test_a_fork_during_a_fetch_does_not_keep_the_lock_of_its_killed_parent(tmp_path):
    code = f"""
import os, sys, threading, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from cache_children import fetch_slowly
from torchslip.storage import NodeCache
cache = NodeCache({str(tmp_path / "cache")!r})
threading.Thread(target=fetch_slowly, args=(cache, "a"), daemon=True).start()
while not list(cache.root.glob("*.part")): time.sleep(0.01)
child = os.fork()
if child: print(child, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait(30)
        cache = NodeCache(tmp_path / "cache", wait_seconds=0)
        assert read(cache, "a") == content("a")
        assert is_kept(cache, "a")
    finally:
        parent.stdout.close()
        subprocess.run(["kill", "-9", str(child)], check=True)


def test_what_was_opened_longest_ago_goes_first(tmp_path):
    cache = NodeCache(tmp_path / "cache", 3 * SIZE + SLACK)
    for key in "abcad":
        read(cache, key)
    assert [is_kept(cache, key) for key in "abcd"] == [True, False, True, True]


def test_what_is_needed_last_goes_before_what_is_needed_soon(tmp_path):
    cache = NodeCache(tmp_path / "cache", 3 * SIZE + 1000)
    for key in "abc":
        read(cache, key)
    cache.plan([entry_of(key).name for key in "dab"])
    read(cache, "d")
    assert [is_kept(cache, key) for key in "abcd"] == [True, True, False, True]
    cache.plan([entry_of(key).name for key in "eadb"])
    read(cache, "e")
    assert [is_kept(cache, key) for key in "abde"] == [True, False, True, True]


def test_a_process_respects_the_plans_of_others_while_they_live(tmp_path):
    mine, other = (NodeCache(tmp_path / "cache", 3 * SIZE + 1000) for _ in range(2))
    for key in "abc":
        read(mine, key)
    other.plan([entry_of("a").name])
    read(mine, "d")
    assert [is_kept(mine, key) for key in "abcd"] == [True, False, True, True]
    del other
    assert not stored(mine.root, ".plan")


def test_an_entry_that_is_needed_later_does_not_displace_one_that_is_needed_before(tmp_path):
    cache = NodeCache(tmp_path / "cache", 2 * SIZE + 1000)
    cache.plan([entry_of(key).name for key in "abc"])
    for turn, key in enumerate("ab"):
        assert cache.prefetch(entry_of(key), fetcher(key), next_use=turn) == "fetched"
    assert cache.prefetch(entry_of("a"), fetcher("a"), next_use=0) == "kept"
    assert cache.prefetch(entry_of("c"), fetcher("c"), next_use=2) == "no room"
    assert [is_kept(cache, key) for key in "abc"] == [True, True, False]


def test_the_plan_makes_a_second_epoch_in_another_order_cheaper(tmp_path):
    keys = [str(number) for number in range(12)]
    epochs = keys + [keys[number * 5 % 12] for number in range(12)] + keys[::-1]
    fetched = {}
    for planned in (False, True):
        cache, count = NodeCache(tmp_path / str(planned), 6 * SIZE + 2000), tmp_path / f"count-{planned}"
        for number, key in enumerate(epochs):
            if planned:
                cache.plan([entry_of(each).name for each in epochs[number + 1 :]])
            assert read(cache, key, count=count) == content(key)
        fetched[planned] = len(lines(count))
    assert fetched[True] < 0.8 * fetched[False]


def test_what_a_process_holds_stays(context, processes, tmp_path):
    cache, ready, done = NodeCache(tmp_path / "cache", 2 * SIZE + SLACK), context.Event(), context.Event()
    holder = processes(hold, cache, "ab", ready, done)
    assert ready.wait(60)
    with cache.open(entry_of("c"), fetcher("c")) as held:
        assert not held.kept
        assert bytes(held.map()) == content("c")
    assert [is_kept(cache, key) for key in "abc"] == [True, True, False]
    holder.kill()
    holder.join(30)
    assert read(cache, "c") == content("c")
    assert is_kept(cache, "c")


def test_a_map_holds_its_entry_after_the_file_was_closed(tmp_path):
    cache = NodeCache(tmp_path / "cache", SIZE + SLACK)
    with cache.open(entry_of("a"), fetcher("a")) as held:
        data = held.map()
    read(cache, "b")
    assert (is_kept(cache, "a"), data[:]) == (True, content("a"))
    data.close()
    read(cache, "b")
    assert [is_kept(cache, key) for key in "ab"] == [False, True]


def test_a_process_can_let_go_of_what_it_holds_itself(tmp_path):
    cache = NodeCache(tmp_path / "cache", SIZE + SLACK)
    old = cache.open(entry_of("a"), fetcher("a"))
    with cache.open(entry_of("b"), fetcher("b"), let_go=old.close) as held:
        assert held.kept


def test_the_budget_is_never_exceeded(context, processes, tmp_path):
    budget = 4 * SIZE + 3000
    cache, results = NodeCache(tmp_path / "cache", budget), context.Queue()
    keys, most = [str(number) for number in range(12)], 0
    users = [processes(use_some, cache, keys, seed, 60, results) for seed in range(4)]
    while any(user.is_alive() for user in users):
        most = max(most, used_bytes(cache.root))
    assert [results.get(timeout=60) for _ in users] == ["right"] * 4
    assert 2 * SIZE < most <= budget


def test_a_budget_below_one_entry_keeps_nothing_and_says_so_once(tmp_path, caplog):
    cache = NodeCache(tmp_path / "cache", SIZE - 1)
    with caplog.at_level(logging.WARNING, "torchslip.proof"):
        assert [read(cache, key) for key in "aba"] == [content(key) for key in "aba"]
    assert not cache.root.exists()
    assert len(caplog.records) == 1
    assert "budget" in caplog.text


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(path)]
    if subprocess.run(options, capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_keeps_nothing_more_and_says_so_once(small_disk, caplog):
    cache, size = NodeCache(small_disk / "cache", 1 << 30), 400_000
    with caplog.at_level(logging.WARNING, "torchslip.proof"):
        assert all(read(cache, key, size=size) == content(key, size) for key in "abcdabcd")
    assert len(stored(cache.root)) == 2
    assert not stored(cache.root, ".part")
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text


def test_a_disk_that_fills_up_meanwhile_leaves_no_half_entry(small_disk):
    cache = NodeCache(small_disk / "cache", 1 << 30)

    def fetch(path):
        path.write_bytes(b"")  # gives back what was set aside
        if path.is_relative_to(small_disk) and not (small_disk / "filler").exists():
            with (small_disk / "filler").open("wb") as file, pytest.raises(OSError, match="No space"):
                file.write(bytes(1 << 20))
        path.write_bytes(content("a", 300_000))

    with cache.open(entry_of("a", 300_000), fetch) as held:
        assert (held.kept, bytes(held.map())) == (False, content("a", 300_000))
    assert not stored(cache.root) and not stored(cache.root, ".part")


def test_without_a_budget_part_of_the_disk_stays_free(small_disk):
    cache = NodeCache(small_disk / "cache")
    for key in "abcdefghijkl":
        assert read(cache, key, size=100_000) == content(key, 100_000)
    assert 7 <= len(stored(cache.root)) <= 9


def test_a_read_only_disk_is_read_from(small_disk, caplog):
    cache = NodeCache(small_disk / "cache")
    read(cache, "a", count=small_disk.parent / "count")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with caplog.at_level(logging.WARNING, "torchslip.proof"):
        for key in "abab":
            assert read(cache, key, count=small_disk.parent / "count") == content(key)
    assert lines(small_disk.parent / "count") == ["a", "b", "b"]
    assert len(caplog.records) == 1


def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("mine")
    with caplog.at_level(logging.WARNING, "torchslip.proof"):
        assert [read(NodeCache(tmp_path / "file" / "cache"), "a") for _ in range(2)] == [content("a")] * 2
    assert (tmp_path / "file").read_text() == "mine"
    assert "Not a directory" in caplog.text


def test_a_folder_with_files_of_others_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FormatError, match=r"not a cache: it holds 'mine\.txt'"):
        read(NodeCache(tmp_path), "a")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_files_of_others_in_the_folder_stay(tmp_path):
    cache = NodeCache(tmp_path / "cache", SIZE + SLACK)
    read(cache, "a")
    names = ["mine.raw", "x.part", f"{'0' * 63}.raw", f"{'g' * 64}.raw"]
    for name in names:
        (cache.root / name).write_text("mine")
    for key in "bcd":
        read(cache, key)
    assert all((cache.root / name).read_text() == "mine" for name in names)


def damaged_fetcher(key, times, calls):
    def fetch(path):
        calls.append(key)
        data = content(key)
        path.write_bytes(bytes(SIZE) if len(calls) <= times else data)

    return fetch


def check_of(key):
    def check(data):
        if bytes(data) != content(key):
            raise FormatError("The sha1 is 0; the index says 1")

    return check


def test_damaged_bytes_are_put_aside_and_fetched_again(tmp_path):
    cache, calls = NodeCache(tmp_path / "cache"), []
    with cache.open(entry_of("a"), damaged_fetcher("a", 1, calls), check=check_of("a")) as held:
        assert bytes(held.map()) == content("a")
    assert len(calls) == 2
    assert stored(cache.root, ".bad").keys() == {entry_of("a").name}


@pytest.mark.parametrize("budget", [None, 10], ids=["kept", "not kept"])
def test_bytes_that_are_damaged_twice_are_an_error_that_names_them(tmp_path, budget):
    cache, calls = NodeCache(tmp_path / "cache", budget), []
    with pytest.raises(FormatError, match=f"index says 1.*twice.*test://bucket/a.*{entry_of('a').name}"):
        cache.open(entry_of("a"), damaged_fetcher("a", 9, calls), check=check_of("a"))
    assert len(calls) == 2
    assert not stored(cache.root)


def test_a_fetch_of_the_wrong_size_is_an_error_that_says_what_was_expected(tmp_path):
    cache = NodeCache(tmp_path / "cache", 2 * SIZE)
    with pytest.raises(FormatError, match=f"{SIZE + 5} bytes came where {SIZE} were expected"):
        cache.open(entry_of("a"), lambda path: path.write_bytes(bytes(SIZE + 5)))
    assert used_bytes(cache.root) < SLACK


def test_an_entry_of_the_wrong_size_is_fetched_again(tmp_path):
    cache, count = NodeCache(tmp_path / "cache"), tmp_path / "count"
    read(cache, "a", count=count)
    stored(cache.root)[entry_of("a").name].write_bytes(content("a")[:-1])
    assert read(cache, "a", count=count) == content("a")
    assert len(lines(count)) == 2


def test_a_kept_entry_is_checked_when_asked(tmp_path):
    cache, count = NodeCache(tmp_path / "cache"), tmp_path / "count"
    read(cache, "a", count=count)
    stored(cache.root)[entry_of("a").name].write_bytes(bytes(SIZE))
    with cache.open(entry_of("a"), fetcher("a", count=count), check=check_of("a"), recheck=True) as held:
        assert bytes(held.map()) == content("a")
    assert len(lines(count)) == 2


def test_the_errors_of_a_fetch_are_passed_on_and_leave_nothing(tmp_path):
    def fetch(path):
        path.write_bytes(b"half")
        raise PermissionError(13, "The server refused", "s3://bucket/a")

    cache = NodeCache(tmp_path / "cache")
    with pytest.raises(PermissionError, match="refused"):
        cache.open(entry_of("a"), fetch)
    assert used_bytes(cache.root) < SLACK


@pytest.mark.parametrize("kills", SOAK)
def test_processes_killed_at_random_moments_leave_no_wrong_byte_and_no_hang(context, processes, tmp_path, kills):
    budget, keys = 4 * SIZE + 3000, [str(number) for number in range(8)]
    cache = NodeCache(tmp_path / "cache", budget)
    for number in range(kills):
        started = [context.Event() for _ in range(2)]
        users = [processes(use_forever, cache, keys, 2 * number + each, event) for each, event in enumerate(started)]
        assert all(event.wait(60) for event in started)
        time.sleep(number % 7 * 0.007)
        for user in users:
            assert user.is_alive()
            user.kill()
            user.join(30)
        begin = time.monotonic()
        assert all(read(cache, key) == content(key) for key in keys)
        assert time.monotonic() - begin < 30
        assert used_bytes(cache.root) <= budget
        assert not stored(cache.root, ".part") and not stored(cache.root, ".plan")
