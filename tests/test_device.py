"""Batches on a device. On the CPU the same path runs without streams: staged ahead, copied, decoded in this process."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
import weakref
from collections import namedtuple
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import torchslip as ts
from torchslip.decode import Draws, backends, device_backend, make_decoder, make_device_decoder, read_header
from torchslip.errors import SampleError
from torchslip.loading._staging import StagingRing
from torchslip.loading._transfer import Sent, deliver_ahead

DALI = any(backend.name == "dali" and backend.available for backend in backends())
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")
VIEWS = {"small": ts.RandomResizedCrop(24), "bordered": ts.ResizeCrop(32, (64, 48)), "whole": ts.Decode()}


def images(folder: Path, **options: Any) -> ts.ImageDataset:
    return ts.ImageDataset(folder, **{"views": VIEWS, "batch_size": 4, "shuffle": True, "seed": 17} | options)


def assert_equal(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride() and ours.dtype == theirs.dtype
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        assert_equal(list(ours.values()), list(theirs.values()))
    elif isinstance(theirs, list | tuple):
        assert type(ours) is type(theirs) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("decode", ["workers", "device"])
@pytest.mark.parametrize(
    "decoder", ["auto", "torchvision", pytest.param("dali", marks=pytest.mark.skipif(not DALI, reason="no DALI"))]
)
def test_batches_on_a_device_are_those_of_the_workers(picture_folder, decoder, decode, workers):
    dataset = images(picture_folder, decoder=decoder, return_params=True, tail="pad")
    expected = list(ts.DataLoader(images(picture_folder, decoder=decoder, return_params=True, tail="pad")))

    assert_equal(list(ts.DataLoader(dataset, num_workers=workers, device="cpu", decode=decode)), expected)
    assert dataset.stats()["samples"] == 44


@pytest.mark.parametrize("decode", ["workers", "device"])
def test_batches_of_samplers_are_the_same_on_a_device(picture_folder, decode):
    def loader(**options: Any) -> ts.DataLoader:
        dataset = ts.ImageMapDataset(picture_folder, views=VIEWS, seed=17)
        sampler = ts.DistributedBatchSampler(ts.Shuffled(len(dataset), seed=17), batch_size=5)
        return ts.DataLoader(dataset, batch_sampler=sampler, num_workers=1, **options)

    assert_equal(list(loader(device="cpu", decode=decode)), list(loader()))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_not_forked_ship_encoded_pictures_too(picture_folder, method):
    loader = ts.DataLoader(
        images(picture_folder), num_workers=1, multiprocessing_context=method, device="cpu", decode="device"
    )

    assert_equal(list(islice(loader, 3)), list(islice(ts.DataLoader(images(picture_folder)), 3)))


@pytest.mark.parametrize("decode", ["workers", "device"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_state_counts_what_the_loop_got_not_what_is_on_its_way(picture_folder, workers, decode):
    loader = ts.DataLoader(images(picture_folder), num_workers=workers, device="cpu", decode=decode)
    plain = ts.DataLoader(images(picture_folder))

    assert loader.state_dict() == plain.state_dict()
    for step, (_, _) in enumerate(zip(loader, plain, strict=True)):
        assert loader.state_dict() == plain.state_dict()
        if step == 4:
            state = loader.state_dict()
    resumed = ts.DataLoader(images(picture_folder), device="cpu", decode=decode)
    resumed.load_state_dict(state)
    assert_equal(list(resumed), list(ts.DataLoader(images(picture_folder)))[5:])


def test_passes_that_were_left_early_leave_nothing_behind(picture_folder):
    loader = ts.DataLoader(images(picture_folder), num_workers=2, persistent_workers=True, device="cpu")
    plain = ts.DataLoader(images(picture_folder))

    assert len(loader) == len(plain) == 11
    for taken in (1, 3, 11, 2):
        assert_equal(list(islice(loader, taken)), list(islice(plain, taken)))
        assert loader.epoch == plain.epoch


def jpeg() -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def damaged(tmp_path: Path, picture_folder: Path) -> Path:
    """The drawn pictures, one that is cut off, which only decoding finds, and one that is no picture at all."""
    shutil.copytree(picture_folder, tmp_path / "set")
    for name, content in (("cut", jpeg()[:1500]), ("none", b"no picture at all"), ("good", jpeg())):
        (tmp_path / "set" / "discs" / f"{name}.jpg").write_bytes(content)
    return tmp_path / "set"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_behind_the_batches_that_were_there_before_it(damaged, workers):
    # Sample 14, in the fourth batch of four, is the one that is cut off.
    loader = ts.DataLoader(images(damaged, shuffle=False), num_workers=workers, device="cpu", decode="device")
    got = []

    with pytest.raises(SampleError, match=r"(?s)Sample 14 .*cut\.jpg"):
        got.extend(batch["sample_id"].tolist() for batch in loader)
    assert got == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_skipped_is_replaced_by_the_same_samples_wherever_it_is_decoded(damaged, workers):
    here, there = (
        images(damaged, on_error="skip", return_params=True),
        images(damaged, on_error="skip", return_params=True),
    )
    loader = ts.DataLoader(here, num_workers=workers, device="cpu", decode="device")

    assert_equal(list(loader), list(ts.DataLoader(there)))
    assert here.stats()["skipped_samples"] == there.stats()["skipped_samples"] >= 2


@pytest.mark.parametrize("decode", ["workers", "device"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_cap_on_bytes_in_flight_holds_on_the_way_to_a_device(picture_folder, workers, decode):
    cap = 1_200_000
    dataset = images(picture_folder, views=ts.CenterCrop(150), constraints=ts.Constraints(max_inflight_bytes=cap))
    batches = list(ts.DataLoader(dataset, num_workers=workers, device="cpu", decode=decode))

    assert sum(len(batch["sample_id"]) for batch in batches) == 42
    assert 0 < dataset.stats()["inflight_bytes_high_water"] <= cap
    assert dataset.stats()["inflight_bytes"] == 0


def test_encoded_batches_in_flight_are_smaller_than_their_pixels(picture_folder):
    def high_water(**options: Any) -> int:
        dataset = images(picture_folder, views=ts.CenterCrop(400), constraints=ts.Constraints(max_inflight_bytes="9mb"))
        assert len(list(ts.DataLoader(dataset, num_workers=1, prefetch_factor=1, **options))) == 11
        return dataset.stats()["inflight_bytes_high_water"]

    assert high_water(device="cpu", decode="device") < high_water() / 2


def test_a_tensor_on_a_device_is_never_written_again(picture_folder):
    loader = ts.DataLoader(images(picture_folder), num_workers=2, device="cpu")
    kept = list(loader)
    clones = pickle.loads(pickle.dumps(kept))
    list(loader)

    assert_equal(kept, clones)


Pair = namedtuple("Pair", "left right")


class Nested(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "deep": [{"x": torch.arange(6).reshape(2, 3).t()}, (torch.tensor(True), "text")],
            "pair": Pair(torch.empty(0), torch.ones(2, 1).expand(2, 4)),
            "number": index,
            "none": None,
        }


@pytest.mark.parametrize("workers", [0, 1])
def test_tensors_are_moved_out_of_any_nest_and_everything_else_is_kept(workers):
    loader = ts.DataLoader(Nested(), batch_size=None, num_workers=workers, device="meta")
    (batch, *others), expected = loader, Nested()[0]

    assert len(others) == 2
    tensors = [batch["deep"][0]["x"], batch["deep"][1][0], *batch["pair"]]
    originals = [expected["deep"][0]["x"], expected["deep"][1][0], *expected["pair"]]
    assert [(each.device.type, each.shape) for each in tensors] == [("meta", each.shape) for each in originals]
    assert isinstance(batch["pair"], Pair) and batch["deep"][1][1] == "text"
    assert (batch["number"], batch["none"]) == (0, None)


@pytest.mark.parametrize("options", [{}, {"device": "cpu"}, {"device": "cpu", "decode": "device"}], ids=str)
def test_augmentation_gets_each_batch_once_where_it_is(picture_folder, options):
    chain = ts.augment.Compose([ts.augment.HorizontalFlip(), ts.augment.Normalize()], seed=5)
    view = {"views": ts.RandomResizedCrop(24)}
    ours = list(ts.DataLoader(images(picture_folder, **view), num_workers=1, augment=chain, **options))

    assert_equal(ours, [chain(batch) for batch in ts.DataLoader(images(picture_folder, **view))])
    assert ours[0]["image"].dtype == torch.float32


def test_leases_are_acknowledged_when_the_loop_is_done_with_a_batch(tmp_path):
    sampler = ts.LeaseSampler(ts.Shuffled(100, seed=17), store=tmp_path / "leases", batch_size=5, lease_batches=4)
    loader = ts.DataLoader(range(100), batch_sampler=sampler, num_workers=1, device="cpu")

    assert sorted(torch.cat(list(loader)).tolist()) == list(range(100))
    with pytest.raises(ValueError, match="lease_batches"):
        ts.DataLoader(range(100), batch_sampler=sampler, num_workers=1, prefetch_factor=3, device="cpu")


class FakeLane:
    """Writes down what happens, and holds on to nothing."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.log: list[str] = []

    def send(self, batch: Any, finish: Any) -> Sent:
        self.log.append(f"send {batch.number}")
        return Sent(finish(batch))

    def receive(self, sent: Sent) -> Any:
        self.log.append(f"receive {sent.batch}")
        return sent.batch


class HostBatch:
    def __init__(self, number: int) -> None:
        self.number = number


def test_the_next_batch_is_on_its_way_before_one_is_handed_out_and_the_last_is_free_before_it_is_made():
    lane, alive = FakeLane(), []

    def made() -> Any:
        for number in range(4):
            assert not any(reference() for reference in alive)
            batch = [HostBatch(number)]
            alive.append(weakref.ref(batch[0]))
            yield batch.pop()

    assert list(deliver_ahead(made(), lane, lambda batch: batch.number)) == [0, 1, 2, 3]
    assert lane.log[:3] == ["send 0", "send 1", "receive 0"]
    for number in range(3):
        assert lane.log.index(f"send {number + 1}") < lane.log.index(f"receive {number}")


class FakeEvent:
    def __init__(self, done_after: int = 0) -> None:
        self.asked, self.done_after = 0, done_after

    def query(self) -> bool:
        self.asked += 1
        return self.asked > self.done_after


def test_a_staging_buffer_is_written_again_only_when_its_copy_is_done():
    ring = StagingRing(allocate=lambda count: torch.zeros(count, dtype=torch.uint8), slots=2)
    events, buffers = [FakeEvent(3), FakeEvent(5)], []
    for event in events:
        buffers.append(ring.take(8))
        ring.sent(event)

    assert buffers[0].data_ptr() != buffers[1].data_ptr() and not any(event.asked for event in events)
    assert ring.take(8) is buffers[0] and (events[0].asked, events[1].asked) == (4, 0)
    ring.sent(FakeEvent())
    assert ring.take(9).numel() >= 9 and events[1].asked == 6


def test_staged_copies_keep_values_types_and_strides_and_share_one_buffer():
    ring = StagingRing(allocate=lambda count: torch.zeros(count, dtype=torch.uint8))
    tensors = [
        torch.rand(2, 5, 4, 3).permute(0, 3, 1, 2),
        torch.tensor(True),
        torch.empty(0, 7),
        torch.arange(3.0).double().expand(4, 3),
        torch.arange(10)[::2],
        torch.arange(7, dtype=torch.uint8),
    ]
    staged = ring.stage([*tensors, tensors[0], torch.rand(3, device="meta")])

    assert len(staged) == len(tensors)
    assert len({each.untyped_storage().data_ptr() for each in staged.values()}) == 1
    for each in tensors:
        copy = staged[id(each)]
        assert torch.equal(copy, each) and copy.stride() == torch.empty_like(each).stride()


def test_a_copy_that_never_ends_is_an_error_with_a_deadline():
    ring = StagingRing(allocate=lambda count: torch.zeros(count, dtype=torch.uint8), slots=1, deadline_seconds=0.05)
    ring.take(1)
    ring.sent(FakeEvent(10**9))

    with pytest.raises(RuntimeError, match=r"not done after 0\.05 seconds"):
        ring.take(1)


def test_arguments_that_exclude_each_other_say_what_to_do(picture_folder):
    dataset = images(picture_folder)
    for options, text in (
        ({"decode": "device"}, "pass device='cuda'"),
        ({"decode": "gpu"}, "decode must be one of workers, device; got 'gpu'"),
        ({"device": "cpu", "pin_memory": True}, "leave pin_memory out"),
        ({"device": "cpu", "decode": "device", "collate_fn": list}, "leave collate_fn out"),
        ({"augment": "flip"}, "augment must be callable"),
    ):
        with pytest.raises(ValueError, match=text):
            ts.DataLoader(dataset, **options)
    with pytest.raises(ValueError, match="needs an ImageDataset or an ImageMapDataset"):
        ts.DataLoader(Nested(), device="cpu", decode="device")
    with pytest.raises(ValueError, match="got 'turbo'"):
        device_backend("turbo", torch.device("cuda"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error_at_once(picture_folder):
    with pytest.raises(RuntimeError, match=r"needs a GPU .* it sees 0"):
        ts.DataLoader(images(picture_folder), device="cuda")


def test_the_benchmark_runs_where_there_is_no_gpu(picture_folder, tmp_path):
    script, out = Path(__file__).parents[1] / "benchmarks/device.py", tmp_path / "out.json"
    command = [sys.executable, script, "--device", "cpu", "--quick", "--data", picture_folder, "--out", out]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    result = json.loads(out.read_text())

    assert {each["contender"] for each in result["correctness"] if each["right"]} >= {
        "copy",
        "device",
        "decode-torchvision",
    }
    assert all(row["images_per_s"]["median"] > 0 for row in result["summary"])
    assert set(result["left_out"]) == (set() if DALI else {"decode-dali"})


# What follows needs a GPU.


def mean_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours.float().cpu() - theirs.float()).abs().mean().item()


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_a_gpu_are_those_of_the_workers(picture_folder, workers):
    loader = ts.DataLoader(images(picture_folder), num_workers=workers, device="cuda")
    for ours, theirs in zip(loader, ts.DataLoader(images(picture_folder)), strict=True):
        assert ours["small"].is_cuda and ours["sample_id"].is_cuda
        assert ours["small"].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ours["small"].cpu(), theirs["small"])
        assert torch.equal(ours["label"].cpu(), theirs["label"])
        assert all(torch.equal(a.cpu(), b) for a, b in zip(ours["whole"], theirs["whole"], strict=True))


@gpu
@pytest.mark.gpu
def test_work_of_the_loop_does_not_see_later_batches(picture_folder):
    loader = ts.DataLoader(images(picture_folder), num_workers=2, device="cuda")
    expected = [batch["small"].double().sum().item() for batch in ts.DataLoader(images(picture_folder))]
    busy, sums = torch.rand(2048, 2048, device="cuda"), []
    for batch in loader:
        for _ in range(20):
            busy = (busy @ busy).clamp_(0, 1)
        sums.append(batch["small"].double().sum())  # read long after later batches were copied

    assert [each.item() for each in sums] == expected


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    "decoder", ["torchvision", pytest.param("dali", marks=pytest.mark.skipif(not DALI, reason="no DALI"))]
)
def test_pictures_decoded_on_a_gpu_are_those_of_the_cpu_but_for_nvjpeg(photos, decoder):
    device = torch.device("cuda", 0)
    for view in VIEWS.values():
        data = [path.read_bytes() for path in sorted(photos.glob("val/*/*"))[:32]]
        headers = [read_header(each) for each in data]
        sizes = np.array([(header.height, header.width) for header in headers])
        place = view.place(sizes, Draws(np.arange(len(data)), seed=0, view="image", epoch=0))
        host = [torch.empty(3, *size, dtype=torch.uint8) for size in place.size.tolist()]
        there = [torch.empty_like(each, device=device) for each in host]
        make_decoder("torchvision").decode(data, headers, [place], [host])
        encoded = [torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in data]

        assert not make_device_decoder(decoder, device).decode(encoded, headers, [place], [there])
        for ours, theirs in zip(there, host, strict=True):
            assert mean_difference(ours, theirs) <= 2


@gpu
@pytest.mark.gpu
def test_damaged_pictures_on_a_gpu_are_replaced_by_the_same_samples(damaged):
    here = images(damaged, on_error="skip")
    loader = ts.DataLoader(here, num_workers=2, device="cuda", decode="device")
    for ours, theirs in zip(loader, ts.DataLoader(images(damaged, on_error="skip")), strict=True):
        assert torch.equal(ours["sample_id"].cpu(), theirs["sample_id"])
        assert mean_difference(ours["small"], theirs["small"]) <= 2
