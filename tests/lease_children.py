"""What the processes do that test_lease_processes stops and kills: share a job, and note each batch before its end."""

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

import torchslip as ts


class Ids(Dataset):
    """Sample i is i."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return index


def connect(address):
    """``tcp:PORT`` or ``file:PATH``."""
    kind, _, where = address.partition(":")
    if kind == "file":
        return dist.FileStore(where, -1)
    return dist.TCPStore("127.0.0.1", int(where), is_master=False, timeout=timedelta(seconds=20))


def note(out, ids, replayed=False):
    """One line, written at once, so that what a killed process had done is known."""
    with Path(out).open("ab", buffering=0) as file:
        file.write((" ".join(map(str, [*ids, *(["again"] if replayed else [])])) + "\n").encode())


def work(address, out, length, options, seconds_per_batch=0.0, num_workers=0, wait_after=None):
    """Process a share of the samples, each batch taking its time; wait for the file ``go`` after some of them."""
    out = Path(out) / f"{os.getpid()}"
    sampler = ts.LeaseSampler(ts.Shuffled(length, seed=3), store=connect(address), **options)
    # A child of a fork server would start a fork server of its own, which imports torch again.
    workers = {"num_workers": num_workers, "multiprocessing_context": "fork"} if num_workers else {}
    for batch in ts.DataLoader(Ids(length), batch_sampler=sampler, **workers):
        time.sleep(seconds_per_batch)
        note(out, batch.tolist())
        wait_after = None if wait_after is None else wait_after - len(batch)
        if wait_after is not None and wait_after <= 0:
            wait_for(out.parent / "go")
            wait_after = None
    (out.parent / f"{out.name}.done").write_text(repr(sampler.stats()))


def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def work_until_error(address, out, length, options, seconds_per_batch):
    try:
        work(address, out, length, options, seconds_per_batch)
    except Exception as error:
        (Path(out) / f"{os.getpid()}.error").write_text(f"{type(error).__name__}: {error}")


def serve(port, ready):
    """Host a store until killed."""
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    ready.send(store.port)
    while True:
        time.sleep(1)


def copy_objects(address, source, target, out, die_after=None):
    """The example of docs/leases.md: read files, write what they become."""
    paths = sorted(Path(source).iterdir())

    class Objects(Dataset):
        def __getitem__(self, index):
            return paths[index].name, paths[index].read_bytes()

    sampler = ts.LeaseSampler(
        ts.Sequential(len(paths)), batch_size=4, store=connect(address), job="copy", ttl_seconds=1, world_size=4
    )
    for number, batch in enumerate(ts.DataLoader(Objects(), batch_sampler=sampler, collate_fn=list)):
        if number == die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        for name, data in batch:
            (Path(target) / name).write_bytes(data.upper())
        time.sleep(0.02)
        note(Path(out) / f"{os.getpid()}", [name for name, _ in batch])


def train(rank, store, out):
    """Two ranks of unequal speed in DistributedDataParallel, with uneven ends."""
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        torch.manual_seed(0)
        model = DistributedDataParallel(torch.nn.Linear(1, 1))
        sampler = ts.LeaseSampler(ts.Shuffled(203, seed=3), batch_size=4, exact="at_most_once", lease_batches=8)
        workers = {"num_workers": 1, "multiprocessing_context": "fork"} if rank else {}
        loader = ts.DataLoader(Ids(203), batch_sampler=sampler, **workers)
        with torch.distributed.algorithms.Join([model]):
            for batch in loader:
                model(batch[:, None].float()).sum().backward()
                note(Path(out) / f"{rank}", batch.tolist())
    finally:
        dist.destroy_process_group()


def main_of_torchrun(out):
    """Rank 0 of the first attempt kills itself; torchrun starts all ranks anew."""
    rank, attempt = int(os.environ["RANK"]), os.environ["TORCHELASTIC_RESTART_COUNT"]
    # Not through a process group: gloo does not come up a second time on the store of the agent (torch 2.15).
    sampler = ts.LeaseSampler(
        ts.Sequential(400),
        batch_size=4,
        lease_batches=4,
        ttl_seconds=1,
        store=connect(f"tcp:{os.environ['MASTER_PORT']}"),
        world_size=2,
    )
    for number, batch in enumerate(ts.DataLoader(Ids(400), batch_sampler=sampler)):
        note(Path(out) / f"{attempt}-{rank}", batch.tolist())
        time.sleep(0.01)
        if (rank, attempt, number) == (0, "0", 8):
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main_of_torchrun(sys.argv[1])
