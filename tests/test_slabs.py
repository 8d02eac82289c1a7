"""Batches from worker processes belong to whoever holds them, though their memory is used again."""

import copy
import itertools
import os
import pickle
import signal
import sys
import zlib
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import torchslip as ts


def make(folder, **options):
    arguments = {"views": ts.RandomResizedCrop(64), "batch_size": 4, "shuffle": True, "seed": 3} | options
    return ts.ImageDataset(folder, **arguments)


def pictures(batches):
    return [batch["image"] for batch in batches]


def expected(folder, epochs=1):
    dataset = make(folder)
    return [image for _ in range(epochs) for image in pictures(dataset)]


def same(found, wanted):
    return len(found) == len(wanted) and all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_batches_that_are_kept_stay_as_they_were(picture_folder, context):
    loader = ts.DataLoader(
        make(picture_folder), num_workers=1, persistent_workers=True, multiprocessing_context=context
    )
    kept = [image for _ in range(3) for image in pictures(loader)]
    assert same(kept, expected(picture_folder, epochs=3))


def test_views_of_a_dropped_batch_stay_as_they_were(picture_folder):
    loader = ts.DataLoader(make(picture_folder), num_workers=1)
    corners = [image[:, :, 5:20, ::3] for image in pictures(loader)]
    assert same(corners, [image[:, :, 5:20, ::3] for image in expected(picture_folder)])


def segments(loader):
    """How many slabs the workers of a loader have open, however many descriptors of each are under way."""
    workers = [worker.pid for worker in loader._iterator._workers]
    return len({slab_of(file) for pid in workers for file in Path(f"/proc/{pid}/fd").iterdir()} - {None})


def slab_of(descriptor):
    try:
        return descriptor.stat().st_ino if str(descriptor.readlink()).startswith("/memfd:torchslip") else None
    except FileNotFoundError:  # closed since
        return None


linux = pytest.mark.skipif(sys.platform != "linux", reason="slabs are made, and counted, on Linux only")


@linux
def test_memory_of_dropped_batches_is_used_again(picture_folder):
    loader = ts.DataLoader(make(picture_folder), num_workers=1, persistent_workers=True)
    counts = [segments(loader) for _ in range(4) for _ in loader]
    assert len(counts) > 40
    # 2 prefetched, 1 in the making, 1 with the loop, 1 that the loop just replaces
    assert 1 <= max(counts) <= 5


@linux
def test_memory_of_kept_batches_is_given_back_when_they_are_dropped(picture_folder):
    loader = ts.DataLoader(make(picture_folder), num_workers=1, persistent_workers=True)
    kept = [list(loader) for _ in range(2)]
    assert segments(loader) > 15
    kept.clear()
    for _ in loader:
        last = segments(loader)
    assert last <= 10


@linux
@pytest.mark.parametrize("sizes", [(64, 32), (64, (40, 60))])
def test_all_views_of_a_batch_lie_in_one_segment(picture_folder, sizes):
    crops = {f"view_{i}": ts.ResizeShortCropLong(size) for i, size in enumerate(sizes)}
    views = crops | {"image": ts.Decode()}  # which has a tensor for each picture
    loader = ts.DataLoader(make(picture_folder, views=views), num_workers=1, persistent_workers=True)
    wanted = list(make(picture_folder, views=views))
    counts = []
    for number, batch in enumerate(loader):
        counts.append(segments(loader))
        assert all(torch.equal(batch[name], wanted[number][name]) for name in crops)
        assert same(batch["image"], wanted[number]["image"])
    assert max(counts) <= 2 * 5  # one for the stacks, one for the single pictures


def test_small_tensors_go_by_value(picture_folder):
    loader = ts.DataLoader(make(picture_folder, return_params=True), num_workers=1)
    for found, wanted in zip(loader, make(picture_folder, return_params=True), strict=True):
        assert found.keys() == wanted.keys()
        for name in ("label", "sample_id", "epoch", "image_box"):
            assert type(found[name]) is torch.Tensor and found[name].dtype == wanted[name].dtype
            assert torch.equal(found[name], wanted[name]) and not found[name].is_shared()
            found[name].zero_()


class Forking(IterableDataset):
    """Forks whenever a batch is on its way."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        for batch in self.dataset:
            yield batch
            if (child := os.fork()) == 0:
                os._exit(0)
            os.waitpid(child, 0)


def test_workers_may_fork_while_batches_are_on_their_way(picture_folder):
    dataset = make(picture_folder)
    loader = DataLoader(Forking(dataset), batch_size=None, num_workers=1, prefetch_factor=4)
    assert same(pictures(loader), expected(picture_folder))


def test_a_forked_child_keeps_the_batches_that_it_inherited(picture_folder):
    wanted = expected(picture_folder)
    loader = iter(ts.DataLoader(make(picture_folder), num_workers=1))
    held = [image.permute(0, 2, 3, 1).numpy() for image in pictures(itertools.islice(loader, 3))]
    digests = [zlib.crc32(image.permute(0, 2, 3, 1).numpy()) for image in wanted[:3]]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os.read(read, 1)
        os._exit(0 if [zlib.crc32(image) for image in held] == digests else 1)
    held.clear()
    assert len(list(loader)) == len(wanted) - 3
    os.write(write, b"1")
    os.close(read)
    os.close(write)
    assert os.waitpid(child, 0)[1] == 0


class Copies(IterableDataset):
    """Batches that were copied, pickled and cut within the worker."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        for batch in self.dataset:
            image = batch["image"]
            assert type(image[1:]) is type(image * 1) is type(image.float()) is torch.Tensor
            yield {
                "image": image,
                "deep": copy.deepcopy(image),
                "pickled": pickle.loads(pickle.dumps(image)),
                "part": image[1:],
            }


def test_workers_may_do_with_batches_what_they_like(picture_folder):
    wanted = expected(picture_folder)
    found = list(DataLoader(Copies(make(picture_folder)), batch_size=None, num_workers=2))
    # Each worker has its own share, in turn.
    for name in ("image", "deep", "pickled"):
        assert same([batch[name] for batch in found], wanted)
    assert same([batch["part"] for batch in found], [image[1:] for image in wanted])


def test_what_the_loop_gets_is_a_plain_tensor(picture_folder):
    for image in pictures(ts.DataLoader(make(picture_folder), num_workers=1)):
        assert type(image) is torch.Tensor and image._base is None
        assert image.is_contiguous(memory_format=torch.channels_last)
        image.fill_(7)
        assert (pickle.loads(pickle.dumps(image)) == 7).all()


def test_another_sharing_strategy_works_too(picture_folder):
    strategy = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        found = pictures(ts.DataLoader(make(picture_folder), num_workers=2))
    finally:
        torch.multiprocessing.set_sharing_strategy(strategy)
    assert same(found, expected(picture_folder))


@linux
def test_bytes_of_a_dataset_with_a_cap_leave_little_idle_memory(tmp_path):
    (tmp_path / "files").mkdir()
    for number in range(64):
        (tmp_path / "files" / f"{number:02}.bin").write_bytes(bytes([number]) * 1_000_000)
    cap = 32 << 20
    dataset = ts.BytesDataset(
        tmp_path / "files", batch_size=4, constraints=ts.Constraints(max_inflight_bytes=cap), autotune=False
    )
    loader = ts.DataLoader(dataset, num_workers=2, persistent_workers=True)
    for _ in range(2):
        held = [batch.sample(0)[:1].tobytes()[0] for batch in loader]
        assert sorted(held) == list(range(0, 64, 4))
        idle = sum(allocated(worker.pid) for worker in loader._iterator._workers)
        assert idle <= cap // 4 + (1 << 20)


def allocated(pid):
    """Bytes of the slabs that a process has open."""
    files = {slab_of(file): file for file in Path(f"/proc/{pid}/fd").iterdir()}
    return sum(file.stat().st_blocks * 512 for inode, file in files.items() if inode is not None)


@linux
def test_batches_take_no_room_in_dev_shm(picture_folder):
    # Containers often have only 64 MB there.
    views = {"crop": ts.RandomResizedCrop(64), "whole": ts.Decode()}
    loader = ts.DataLoader(make(picture_folder, views=views), num_workers=1, persistent_workers=True)
    for batch in loader:
        assert batch["crop"].shape == (len(batch["whole"]), 3, 64, 64)
        (worker,) = loader._iterator._workers
        for pid in (os.getpid(), worker.pid):
            assert f"/dev/shm/torch_{worker.pid}_" not in Path(f"/proc/{pid}/maps").read_text()
