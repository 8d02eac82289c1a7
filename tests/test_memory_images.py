"""The same contract for decoded pictures: `ImageDataset` and `ts.DataLoader` with a memory cap."""

import pytest
import torch
from torch.utils.data import DataLoader

import torchslip as ts

VIEW = ts.CenterCrop(64)
BATCH_BYTES = 4 * 3 * 64 * 64  # of pixels; a few more for numbers


def images(folder, cap=None, **options):
    constraints = None if cap is None else ts.Constraints(max_inflight_bytes=cap)
    return ts.ImageDataset(folder, views=VIEW, batch_size=4, constraints=constraints, **options)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batches", [1, 2, 4])
def test_decoded_batches_stay_below_the_cap_and_none_deadlocks(picture_folder, batches, workers):
    cap = batches * 600_000  # the largest batch with its encoded pictures, which count until they are decoded
    capped = images(picture_folder, cap)
    kept = list(ts.DataLoader(capped, num_workers=workers, prefetch_factor=8 if workers else None))
    free = list(images(picture_folder))
    assert [batch["sample_id"].tolist() for batch in kept] == [batch["sample_id"].tolist() for batch in free]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(kept, free, strict=True))
    assert BATCH_BYTES < capped.stats()["inflight_bytes_high_water"] <= cap
    assert capped.stats()["inflight_bytes"] == 0


def test_the_loader_takes_the_cap_as_well(picture_folder):
    loader = ts.DataLoader(images(picture_folder), num_workers=2, constraints=ts.Constraints(max_inflight_bytes="2mb"))
    assert sum(len(batch["sample_id"]) for batch in loader) == 42
    assert 0 < loader.dataset.stats()["inflight_bytes_high_water"] <= 2 << 20


@pytest.mark.parametrize(("batches", "factor"), [(1.5, 1), (5.5, 1), (9.5, 2), (100, 2)])
def test_the_prefetch_factor_follows_from_the_cap(picture_folder, batches, factor):
    capped = images(picture_folder, int(batches * images(picture_folder).batch_bytes))
    assert ts.DataLoader(capped, num_workers=4).prefetch_factor == factor
    assert ts.DataLoader(capped, num_workers=4, prefetch_factor=7).prefetch_factor == 7


def test_a_cap_that_holds_no_batch_is_an_error_with_the_figures(picture_folder):
    with pytest.raises(ValueError, match=r"max_inflight_bytes=1000 cannot hold one batch: 4 samples have \d+ bytes"):
        ts.DataLoader(images(picture_folder, 1000), num_workers=2)


def test_the_loader_of_torch_is_told_to_be_ours(picture_folder):
    with pytest.raises(RuntimeError, match=r"needs ts\.DataLoader"):
        list(DataLoader(images(picture_folder, "4mb"), batch_size=None, num_workers=1))


def test_whole_pictures_of_unknown_size_get_a_third_of_the_cap(picture_folder):
    capped = ts.ImageDataset(picture_folder, batch_size=2, constraints=ts.Constraints(max_inflight_bytes="6mb"))
    assert sum(len(batch["sample_id"]) for batch in ts.DataLoader(capped, num_workers=2)) == 42
    small = ts.ImageDataset(picture_folder, batch_size=8, constraints=ts.Constraints(max_inflight_bytes=500_000))
    with pytest.raises(ts.MemoryLimitError, match="a third of max_inflight_bytes=500000"):
        list(small)


def test_abandoned_passes_of_persistent_workers_hold_no_room(picture_folder):
    capped = images(picture_folder, 700_000)
    loader = ts.DataLoader(capped, num_workers=2, persistent_workers=True)
    for _ in range(2):
        next(iter(loader))
    assert sum(len(batch["sample_id"]) for batch in loader) == 42


def test_a_state_goes_on_under_a_cap(picture_folder):
    loader = ts.DataLoader(images(picture_folder, "1mb", shuffle=True), num_workers=2)
    iterator = iter(loader)
    taken = [next(iterator)["sample_id"].tolist() for _ in range(3)]
    state = loader.state_dict()
    del iterator
    other = ts.DataLoader(images(picture_folder, shuffle=True))
    other.load_state_dict(state)
    rest = [batch["sample_id"].tolist() for batch in other]
    assert taken + rest == [batch["sample_id"].tolist() for batch in images(picture_folder, shuffle=True)]


def test_a_cap_needs_batches_and_pictures(picture_folder):
    with pytest.raises(ValueError, match="give it a batch_size"):
        ts.ImageDataset(picture_folder, views=VIEW, max_ram_gb=8)
    with pytest.raises(ValueError, match="limits the memory of an ImageDataset"):
        ts.DataLoader([1, 2, 3], max_ram_gb=8)
    with pytest.raises(ValueError, match="profile must be one of"):
        images(picture_folder, profile="fast")
