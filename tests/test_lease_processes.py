"""Real processes over real stores, killed and stopped at random moments: every sample is processed, nothing hangs."""

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import lease_children
import pytest
import torch.distributed as dist

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

STORES = ["tcp", "file"]
KILLS = [8, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
OPTIONS = {"batch_size": 4, "lease_batches": 8, "ttl_seconds": 0.6, "world_size": 4}


@pytest.fixture(scope="module")
def context():
    return multiprocessing.get_context("forkserver")


@pytest.fixture
def address(request, tmp_path):
    if request.param == "file":
        return f"file:{tmp_path / 'store'}"
    request.node.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return f"tcp:{request.node.store.port}"


def start(context, target, *arguments):
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def processed(folder):
    """How often each id was processed, over all processes; a line that a kill has cut short was not."""
    lines = [
        line
        for path in folder.iterdir()
        if not path.suffix
        for line in path.read_bytes().decode().splitlines(keepends=True)
    ]
    return Counter(name for line in lines if line.endswith("\n") for name in line.split())


def wait(processes, seconds=60):
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
        assert not process.is_alive(), "hangs"


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("address", STORES, indirect=True)
def test_killed_and_stopped_processes_lose_nothing(context, address, tmp_path, kills):
    rng, done, job, length = random.Random(kills), 0, 0, 2000
    while done < kills:
        job += 1
        out = tmp_path / f"job-{job}"
        out.mkdir()
        arguments = (lease_children.work, address, out, length, {**OPTIONS, "job": str(job)}, 0.004)
        processes, losses = [start(context, *arguments) for _ in range(4)], 0
        while any(process.is_alive() for process in processes) and not list(out.glob("*.done")) and losses < 40:
            time.sleep(rng.random() * 0.25)
            victim = rng.choice(processes)
            if rng.random() < 0.3:
                # It may have ended a moment ago.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim.pid, signal.SIGSTOP)
                    time.sleep(rng.random() * 1.2)
                    os.kill(victim.pid, signal.SIGCONT)
                    losses += 1
            elif victim.is_alive():
                victim.kill()
                victim.join(10)
                processes[processes.index(victim)] = start(context, *arguments)
                losses, done = losses + 1, done + 1
        wait(processes)
        counts = processed(out)
        assert sorted(map(int, counts)) == list(range(length))
        assert counts.total() - length <= losses * OPTIONS["lease_batches"] * OPTIONS["batch_size"]
        assert all(process.exitcode in (0, -signal.SIGKILL) for process in processes)


@pytest.mark.parametrize("address", STORES, indirect=True)
def test_processes_that_join_late_share_the_rest(context, address, tmp_path):
    arguments = (lease_children.work, address, tmp_path, 600, OPTIONS, 0.02)
    first = start(context, *arguments, 0, 100)
    wait_for(lambda: processed(tmp_path).total() >= 100)
    late = [start(context, *arguments) for _ in range(2)]
    wait_for(lambda: all((tmp_path / str(process.pid)).exists() for process in late))
    (tmp_path / "go").touch()
    wait([first, *late])
    assert processed(tmp_path) == Counter(map(str, range(600)))
    assert all(len((tmp_path / str(process.pid)).read_text().splitlines()) > 10 for process in late)


def test_workers_of_a_killed_process_take_nothing_with_them(context, tmp_path):
    arguments = (lease_children.work, f"file:{tmp_path / 'store'}", tmp_path, 400, OPTIONS, 0.01, 2)
    killed, alive = [start_not_daemon(context, *arguments) for _ in range(2)]
    wait_for(lambda: (tmp_path / str(killed.pid)).exists())
    killed.kill()
    wait([killed, alive])
    assert alive.exitcode == 0
    counts = processed(tmp_path)
    assert set(map(str, range(400))) == set(counts)
    assert counts.total() - 400 <= OPTIONS["lease_batches"] * OPTIONS["batch_size"]


def start_not_daemon(context, target, *arguments):
    """Daemons may have no workers."""
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


@pytest.fixture
def server(context):
    """Starts a store server: ``server()`` on a free port, ``server(port)`` again."""
    started = []

    def serve(port=0):
        ours, theirs = context.Pipe()
        started.append(start(context, lease_children.serve, port, theirs))
        assert ours.poll(30)
        return started[-1], ours.recv()

    yield serve
    for process in started:
        process.kill()


def test_work_goes_on_after_the_server_stood_still(context, server, tmp_path):
    process, port = server()
    options = {**OPTIONS, "store_timeout_seconds": 20}
    workers = [start(context, lease_children.work, f"tcp:{port}", tmp_path, 400, options, 0.01) for _ in range(2)]
    wait_for(lambda: processed(tmp_path).total() > 40)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(process.pid, signal.SIGCONT)
    wait(workers)
    assert processed(tmp_path) == Counter(map(str, range(400)))


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_server_that_dies_is_an_error_on_every_rank(context, server, tmp_path, comes_back):
    process, port = server()
    options = {**OPTIONS, "store_timeout_seconds": 4}
    arguments = (lease_children.work_until_error, f"tcp:{port}", tmp_path, 4000, options, 0.01)
    workers = [start(context, *arguments) for _ in range(2)]
    wait_for(lambda: all((tmp_path / str(worker.pid)).exists() for worker in workers))
    process.kill()
    process.join(10)
    if comes_back:
        server(port)
    wait(workers, 20)
    errors = [path.read_text() for path in tmp_path.glob("*.error")]
    expected = "StateError: The store of job 'default' was started anew" if comes_back else "ConnectionError: The store"
    assert len(errors) == 2
    assert all(error.startswith(expected) for error in errors)


def test_the_example_of_the_documentation_processes_all_objects(context, tmp_path):
    for folder in ("source", "target", "out"):
        (tmp_path / folder).mkdir()
    for number in range(150):
        (tmp_path / "source" / f"{number:03}.txt").write_text(f"object {number}")
    paths = [str(tmp_path / folder) for folder in ("source", "target", "out")]
    address = f"file:{tmp_path / 'store'}"
    workers = [start(context, lease_children.copy_objects, address, *paths, die) for die in (4, None, None, None)]
    wait(workers)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, 0, 0, 0]
    copies = {path.name: path.read_text() for path in (tmp_path / "target").iterdir()}
    assert copies == {f"{number:03}.txt": f"OBJECT {number}" for number in range(150)}


def test_rank_0_killed_under_torchrun_goes_on_where_it_was(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    run = subprocess.run([*command, lease_children.__file__, tmp_path], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    counts = processed(tmp_path)
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {"0", "1"}
    assert set(counts) == set(map(str, range(400)))
    # All ranks of the first attempt were killed.
    assert counts.total() - 400 <= 2 * 4 * 4


def test_uneven_ends_in_ddp_are_joined(context, tmp_path):
    (tmp_path / "out").mkdir()
    arguments = tmp_path / "store", tmp_path / "out"
    ranks = [start_not_daemon(context, lease_children.train, rank, *arguments) for rank in range(2)]
    wait(ranks)
    counts = processed(tmp_path / "out")
    assert counts == Counter(map(str, range(203)))
    assert len(list((tmp_path / "out").iterdir())) == 2
