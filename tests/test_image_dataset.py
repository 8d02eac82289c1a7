"""`ImageDataset` and `ImageMapDataset` in the loaders that people use."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

import torchslip as ts

PIECES = 42  # pictures in picture_folder


def make(folder: Path, **options: object) -> ts.ImageDataset:
    arguments = {"views": ts.RandomResizedCrop(16), "batch_size": 8, "shuffle": True, "seed": 17} | options
    return ts.ImageDataset(folder, **arguments)


def ids_of(batches: object) -> list[int]:
    return [sample for batch in batches for sample in batch["sample_id"].reshape(-1).tolist()]


def test_a_batch_has_the_stated_shapes_types_and_memory_format(picture_folder):
    batch = next(iter(make(picture_folder)))

    assert {name: (values.shape, values.dtype) for name, values in batch.items()} == {
        "image": ((8, 3, 16, 16), torch.uint8),
        "label": ((8,), torch.int64),
        "sample_id": ((8,), torch.int64),
        "epoch": ((8,), torch.int64),
    }
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)


def test_labels_and_pictures_belong_to_the_sample_id(picture_folder):
    dataset = make(picture_folder, views=ts.ResizeCrop(16, 16))
    alone = ts.ImageMapDataset(picture_folder, views=ts.ResizeCrop(16, 16))

    for batch in dataset:
        for row, sample in enumerate(batch["sample_id"].tolist()):
            assert batch["label"][row] == dataset.source.targets[sample]
            assert torch.equal(batch["image"][row], alone[sample]["image"])


def test_an_epoch_is_a_permutation_and_the_next_one_another(picture_folder):
    dataset = make(picture_folder)
    first, second = ids_of(dataset), ids_of(dataset)

    assert sorted(first) == sorted(second) == list(range(PIECES))
    assert first != second


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_any_number_of_workers_gives_the_same_batches(picture_folder, workers):
    alone = list(make(picture_folder))
    loaded = list(DataLoader(make(picture_folder), batch_size=None, num_workers=workers))

    assert len(alone) == len(loaded)
    for one, two in zip(alone, loaded, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_any_number_of_ranks_gives_the_same_global_batches(picture_folder, world):
    alone = list(make(picture_folder, batch_size=24))
    ranks = [list(make(picture_folder, batch_size=24 // world, rank=r, world_size=world)) for r in range(world)]

    for number, batch in enumerate(alone):
        together = np.concatenate([rank[number]["sample_id"] for rank in ranks])
        assert sorted(together) == sorted(batch["sample_id"].tolist())
    crops = {int(i): image for rank in ranks for batch in rank
             for i, image in zip(batch["sample_id"], batch["image"], strict=True)}  # fmt: skip
    for batch in alone:
        assert all(torch.equal(crops[int(i)], b) for i, b in zip(batch["sample_id"], batch["image"], strict=True))


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_epochs_go_on_by_themselves_in_every_kind_of_worker(picture_folder, start_method, persistent):
    reference = make(picture_folder)
    expected = [ids_of(reference) for _ in range(3)]
    dataset = make(picture_folder)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=start_method,
                        persistent_workers=persistent)  # fmt: skip

    assert [ids_of(loader), ids_of(loader)] == expected[:2]
    dataset.set_epoch(2)
    assert ids_of(loader) == expected[2]


def test_an_abandoned_pass_counts_as_an_epoch(picture_folder):
    dataset, reference = make(picture_folder), make(picture_folder)
    expected = [ids_of(reference) for _ in range(2)]

    next(iter(dataset))
    assert ids_of(dataset) == expected[1]


def test_set_epoch_repeats_an_epoch_with_its_crops(picture_folder):
    dataset = make(picture_folder)
    first = list(dataset)
    list(dataset)
    dataset.set_epoch(0)

    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, dataset, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_without_batch_size_samples_go_through_the_loaders_own_collate(picture_folder, workers):
    loader = DataLoader(make(picture_folder, batch_size=None), batch_size=8, num_workers=workers)
    batches = list(loader)

    assert batches[0]["image"].shape == (8, 3, 16, 16)
    assert sorted(ids_of(batches)) == list(range(PIECES))


@pytest.mark.parametrize("world", [1, 3, 4])
def test_without_batch_size_ranks_divide_the_samples(picture_folder, world):
    ranks = [make(picture_folder, batch_size=None, rank=rank, world_size=world) for rank in range(world)]
    shares = [ids_of(rank) for rank in ranks]

    assert sorted(itertools.chain(*shares)) == list(range(PIECES))
    assert [len(rank) for rank in ranks] == [len(share) for share in shares]


@pytest.mark.parametrize(("tail", "batches", "last"), [("drop", 5, 8), ("pad", 6, 8), ("uneven", 6, 2)])
def test_the_tail_is_what_was_asked_for(picture_folder, tail, batches, last):
    dataset = make(picture_folder, tail=tail)
    got = list(dataset)

    assert len(dataset) == len(got) == batches
    assert len(got[-1]["sample_id"]) == last


def test_padding_is_marked_and_the_rest_is_each_sample_once(picture_folder):
    batches = list(make(picture_folder, tail="pad"))
    valid = torch.cat([batch["valid"] for batch in batches])
    ids = torch.cat([batch["sample_id"] for batch in batches])

    assert valid.dtype == torch.bool and valid.sum() == PIECES
    assert sorted(ids[valid].tolist()) == list(range(PIECES))
    assert ids[~valid].tolist() == ids[: (~valid).sum()].tolist()


def test_more_ranks_than_samples_in_the_tail_give_an_empty_batch_not_a_missing_one(picture_folder):
    ranks = [list(make(picture_folder, batch_size=5, rank=rank, world_size=8)) for rank in range(8)]

    assert {len(rank) for rank in ranks} == {2}
    assert [rank[1]["image"].shape for rank in ranks] == [(1, 3, 16, 16)] * 2 + [(0, 3, 16, 16)] * 6


def test_named_views_come_from_one_decode_with_their_own_sizes_and_boxes(picture_folder):
    views = {
        "global": ts.RandomResizedCrop(32, scale=(0.4, 1)),
        "local": ts.RandomResizedCrop((8, 12), scale=(0.05, 0.4)),
    }
    batch = next(iter(make(picture_folder, views=views, return_params=True)))

    assert "image" not in batch
    assert batch["global"].shape == (8, 3, 32, 32) and batch["local"].shape == (8, 3, 8, 12)
    assert batch["global_box"].shape == batch["local_box"].shape == (8, 4)
    assert batch["global_box"].dtype == torch.float32
    assert not torch.equal(batch["global_box"], batch["local_box"])


def test_a_view_is_the_same_with_and_without_other_views_beside_it(picture_folder):
    """Byte for byte, but where a decoder shares a smaller scale between views."""
    view = ts.RandomResizedCrop(16)

    for decoder in ("torchvision", "auto"):
        alone = make(picture_folder, views=view, decoder=decoder)
        together = make(picture_folder, views={"a": ts.CenterCrop(8), "image": view}, decoder=decoder)
        for one, two in zip(alone, together, strict=True):
            apart = (one["image"].int() - two["image"].int()).abs().float()
            assert apart.mean() <= (8 if decoder == "auto" else 0)


def test_the_box_shows_what_was_cropped(picture_folder):
    dataset = make(picture_folder, views=ts.RandomResizedCrop(16, scale=(1, 1), ratio=(0.01, 100)), return_params=True)
    for batch in dataset:
        for sample, box in zip(batch["sample_id"].tolist(), batch["image_box"], strict=True):
            height, width = ts.ImageMapDataset(picture_folder)[sample]["image"].shape[1:]
            assert box[2] <= height and box[3] <= width


def test_pictures_of_their_own_size_come_as_a_list(picture_folder):
    whole = next(iter(make(picture_folder, views=None)))["image"]
    sized = next(iter(make(picture_folder, views=ts.ResizeShortCropLong((8, 40), per="image"))))["image"]

    assert isinstance(whole, list) and len({tuple(image.shape) for image in whole}) > 1
    assert isinstance(sized, list) and len({image.shape[1] for image in sized}) > 1


def test_one_size_per_batch_is_equal_on_all_ranks(picture_folder):
    view = ts.ResizeShortCropLong((8, 64))
    ranks = [make(picture_folder, views=view, batch_size=3, rank=rank, world_size=4) for rank in range(4)]
    sizes = [[batch["image"].shape[2] for batch in rank] for rank in ranks]

    assert sizes[0] == sizes[1] == sizes[2] == sizes[3]
    assert len(set(sizes[0])) > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_returned_batch_belongs_to_the_caller(picture_folder, workers):
    dataset = make(picture_folder)
    batches, copies = [], []
    for batch in ts.DataLoader(dataset, num_workers=workers):
        batches.append(batch)
        copies.append({name: values.clone() for name, values in batch.items()})

    for batch, copy in zip(batches, copies, strict=True):
        assert all(torch.equal(batch[name], copy[name]) for name in batch)
    batches[0]["image"].zero_()
    assert torch.equal(batches[1]["image"], copies[1]["image"])


def test_indices_and_orders_choose_the_samples(picture_folder):
    few = make(picture_folder, indices=[5, 3, 9], shuffle=False)
    shuffled = make(picture_folder, indices=[5, 3, 9])
    own = make(picture_folder, shuffle=False, order=ts.Subset([1, 1, 2]))

    assert ids_of(few) == [5, 3, 9]
    assert sorted(ids_of(shuffled)) == [3, 5, 9]
    assert ids_of(own) == [1, 1, 2]


def test_a_window_bounds_how_far_samples_travel(picture_folder):
    dataset = make(picture_folder, order=ts.Shuffled(PIECES, window=1, blocks=7), shuffle=False)
    ids = ids_of(dataset)

    assert sorted(ids) == list(range(PIECES))
    assert all(len({sample // 7 for sample in ids[begin : begin + 7]}) == 1 for begin in range(0, PIECES, 7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"tail": "keep"}, "tail must be one of drop, pad, uneven"),
        ({"on_error": "ignore"}, "on_error must be one of raise, skip"),
        ({"window": 4, "shuffle": False}, "window=4 needs shuffle=True"),
        ({"order": ts.Sequential(42)}, "either order, or shuffle"),
        ({"indices": [42]}, "indices must be below 42"),
        ({"rank": 1}, "both rank and world_size"),
        ({"rank": 2, "world_size": 2}, "rank must lie in"),
        ({"decoder": "magic"}, "decoder must be one of"),
        ({"views": {}}, "at least one view"),
        ({"views": {"label": ts.CenterCrop(4)}}, "name of another batch key"),
        ({"image_field": "picture"}, "image_field must be one of"),
    ],
)
def test_impossible_arguments_are_refused_at_once(picture_folder, options, message):
    with pytest.raises(ValueError, match=message):
        make(picture_folder, **options)


def test_datasets_pickle(picture_folder):
    dataset = pickle.loads(pickle.dumps(make(picture_folder)))

    assert ids_of(dataset) == ids_of(make(picture_folder))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_map_dataset_gives_the_batches_of_the_iterable_one(picture_folder, workers):
    dataset = ts.ImageMapDataset(picture_folder, views=ts.RandomResizedCrop(16), seed=17)
    sampler = ts.DistributedBatchSampler(ts.Shuffled(dataset, seed=17), batch_size=8, tail="pad")
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=ts.collate)
    expected = make(picture_folder, tail="pad")

    for _ in range(2):  # the sampler carries the epoch to the workers
        for one, two in zip(loader, expected, strict=True):
            assert one.keys() == two.keys()
            assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_map_dataset_works_with_the_samplers_and_collate_of_torch(picture_folder, workers):
    dataset = ts.ImageMapDataset(picture_folder, views=ts.CenterCrop(16))
    loader = DataLoader(dataset, batch_size=8, sampler=RandomSampler(dataset), num_workers=workers)
    batches = list(loader)

    assert sorted(ids_of(batches)) == list(range(PIECES))
    assert batches[0]["image"].shape == (8, 3, 16, 16)


def test_collate_takes_the_decoded_batch_without_copying_it(picture_folder):
    samples = ts.ImageMapDataset(picture_folder, views=ts.CenterCrop(16)).__getitems__([1, 2])

    assert ts.collate(samples)["image"].data_ptr() == samples[0]["image"].data_ptr()


def test_set_epoch_changes_the_crops_of_the_map_dataset(picture_folder):
    dataset = ts.ImageMapDataset(picture_folder, views=ts.RandomResizedCrop(16))
    first = dataset[0]["image"]
    dataset.set_epoch(1)
    second = dataset[0]["image"]
    dataset.set_epoch(0)

    assert torch.equal(first, dataset[0]["image"]) and not torch.equal(first, second)


class Records:
    """A source of one's own: every kind of field, in memory."""

    fingerprint = "records"

    def __init__(self, data: bytes) -> None:
        self.data = data
        kinds = {"n": "int", "x": "float", "name": "str", "meta": "json", "vector": "array", "raw": "bytes"}
        self.schema = {"picture": "image", **kinds}

    def __len__(self) -> int:
        return 5

    def fetch(self, indices):
        return [
            {"picture": self.data, "n": i, "x": i / 2, "name": str(i), "meta": {"i": i},
             "vector": np.full(3, i), "raw": bytes(i)} for i in indices
        ]  # fmt: skip


def test_a_source_of_ones_own_brings_its_fields_into_the_batch(picture_folder):
    source = Records(next(picture_folder.glob("*/*baseline.jpg")).read_bytes())
    assert isinstance(source, ts.Source)
    (batch,) = ts.ImageDataset(source, views=ts.CenterCrop(8), batch_size=5)

    assert batch["picture"].shape == (5, 3, 8, 8)
    assert batch["n"].tolist() == [0, 1, 2, 3, 4] and batch["x"].dtype == torch.float64
    assert batch["name"] == ["0", "1", "2", "3", "4"] and batch["meta"][3] == {"i": 3}
    assert batch["vector"].shape == (5, 3) and batch["raw"][2] == b"\0\0"
