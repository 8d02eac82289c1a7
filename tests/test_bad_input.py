"""What happens to files that cannot be read: a clear error from any worker, or a replacement that is counted."""

from __future__ import annotations

import io
import logging
import shutil
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import torchslip as ts
from torchslip.errors import SampleError


def huge_png(side: int) -> bytes:
    """A valid PNG of side x side gray pixels in a few hundred kB, made row by row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    row, squeeze = bytes(side // 8 + 1 + (side % 8 > 0)), zlib.compressobj()
    pixels = b"".join(squeeze.compress(row) for _ in range(side)) + squeeze.flush()
    header = side.to_bytes(4, "big") * 2 + bytes((1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg(width: int = 60, height: int = 40) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


DAMAGE = {
    "empty": (b"", "empty"),
    "truncated": (jpeg()[:1500], "(?i)truncated|incomplete|premature"),
    "corrupt": (b"no picture at all, but long enough to be one", "no picture format begins with"),
    "header only": (jpeg()[:100], "."),
    "20,000 x 20,000 pixels": (huge_png(20_000), "20000x20000 pixels, more than max_pixels=178956970"),
    "vanished": (None, "No such file"),
    "a folder": ("folder", "not a regular file but a folder"),
}


@pytest.fixture
def folder(tmp_path: Path, picture_folder: Path) -> Path:
    """The drawn pictures and one that a test damages: sample 14, the first of class `m`."""
    shutil.copytree(picture_folder, tmp_path / "set")
    (tmp_path / "set" / "m").mkdir()
    (tmp_path / "set" / "m" / "bad.jpg").write_bytes(jpeg())
    (tmp_path / "set" / "m" / "good.jpg").write_bytes(jpeg())
    return tmp_path / "set"


def make(folder: Path, damage: str, **options: object) -> ts.ImageDataset:
    """A dataset whose sample 14 went bad after the folder was opened."""
    path = folder / "m" / "bad.jpg"
    dataset = ts.ImageDataset(folder, views=ts.RandomResizedCrop(16), batch_size=4, seed=3, **options)
    content = DAMAGE[damage][0]
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    return dataset


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", DAMAGE)
def test_the_error_names_sample_path_and_reason_and_arrives_within_seconds(folder, damage, workers):
    loader = ts.DataLoader(make(folder, damage), num_workers=workers)
    begun = time.monotonic()

    with pytest.raises(SampleError, match=DAMAGE[damage][1]) as caught:
        list(loader)
    assert "Sample 14 " in str(caught.value) and str(folder / "m" / "bad.jpg") in str(caught.value)
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("damage", DAMAGE)
def test_skip_replaces_the_sample_and_counts_it(folder, damage, caplog):
    dataset = make(folder, damage, on_error="skip")
    with caplog.at_level(logging.WARNING, "torchslip.proof"):
        batches = list(dataset)
    ids = [sample for batch in batches for sample in batch["sample_id"].tolist()]

    assert len(ids) == 44 and 14 not in ids
    assert ids[:14] + ids[15:] == [sample for sample in range(44) if sample != 14]
    assert dataset.stats()["skipped_samples"] == 1
    assert "sample_skipped" in caplog.text and "bad.jpg" in caplog.text


@pytest.mark.parametrize("workers", [1, 2])
def test_the_replacement_is_the_same_whatever_the_batch_and_the_worker(folder, workers):
    alone = list(make(folder, "empty", on_error="skip"))
    again = make(folder, "empty", on_error="skip") if (folder / "m/bad.jpg").exists() else None
    loaded = list(ts.DataLoader(again, num_workers=workers))

    for one, two in zip(alone, loaded, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert again.stats()["skipped_samples"] == 1


def test_the_label_and_the_crop_of_a_replacement_are_its_own(folder):
    batch = list(make(folder, "empty", on_error="skip"))[14 // 4]
    row = 14 % 4
    sample = int(batch["sample_id"][row])
    alone = ts.ImageMapDataset(folder, views=ts.RandomResizedCrop(16), seed=3)[sample]

    assert torch.equal(batch["image"][row], alone["image"]) and batch["label"][row] == alone["label"]


def test_a_subset_is_replaced_from_within_the_subset(folder):
    dataset = make(folder, "empty", on_error="skip", indices=[14, 2, 5])
    (batch,) = dataset

    assert batch["sample_id"][0].item() in (2, 5)


def test_when_nothing_can_be_read_skip_ends_in_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    for number in range(3):
        (tmp_path / "a" / f"{number}.jpg").write_bytes(b"")
    dataset = ts.ImageDataset(tmp_path, views=ts.CenterCrop(8), batch_size=2, on_error="skip")

    with pytest.raises(SampleError, match="100 replacements failed too"):
        next(iter(dataset))


def test_a_larger_limit_lets_a_large_picture_through(tmp_path):
    (tmp_path / "a.png").write_bytes(huge_png(2_000))
    views = ts.ResizeCrop(16, 16)

    (batch,) = ts.ImageDataset(tmp_path, views=views, batch_size=1, max_pixels=4_000_000)
    assert batch["image"].shape == (1, 3, 16, 16)
    with pytest.raises(SampleError, match="more than max_pixels=3999999"):
        next(iter(ts.ImageDataset(tmp_path, views=views, batch_size=1, max_pixels=3_999_999)))


def test_a_picture_of_one_pixel_is_a_picture(tmp_path):
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "a.png")
    views = {"r": ts.RandomResizedCrop(8), "c": ts.ResizeCrop(8, 8), "d": ts.DirectRandomResizedCrop(8)}

    (batch,) = ts.ImageDataset(tmp_path, views=views, batch_size=1)
    for name in views:
        assert (batch[name] == torch.tensor((9, 8, 7), dtype=torch.uint8).view(1, 3, 1, 1)).all()


def test_a_folder_called_like_a_picture_is_a_folder(tmp_path):
    (tmp_path / "a" / "x.jpg").mkdir(parents=True)
    (tmp_path / "a" / "x.jpg" / "y.jpg").write_bytes(jpeg())

    assert ts.ImageFolder(tmp_path).locate(0).endswith("/a/x.jpg/y.jpg")


def test_an_exception_of_a_source_reaches_the_training_loop_as_it_is(picture_folder):
    class Broken(ts.ImageFolder):
        def fetch(self, indices):
            raise KeyError("the catalogue is gone")

    dataset = ts.ImageDataset(Broken(picture_folder), views=ts.CenterCrop(8), batch_size=4, on_error="skip")
    with pytest.raises(KeyError, match="the catalogue is gone"):
        next(iter(DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork")))
