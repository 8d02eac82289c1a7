"""Credentials and endpoints as arguments: everything that opens a path takes them, and the environment has none."""

import pytest
import s3_servers
from PIL import Image

import torchslip as ts


@pytest.fixture
def options(moto_url, s3_keys, monkeypatch):
    """For a server that no variable names."""
    for name in s3_servers.KEYS:
        monkeypatch.delenv(name)
    return {"endpoint_url": moto_url, "key": "test", "secret": "test"}


@pytest.fixture
def pictures(moto_url, options, tmp_path):
    """The URL of four pictures in two classes."""
    from torchslip.storage import open_folder

    url = f"s3://{s3_servers.make_bucket(moto_url)}/pictures"
    folder = open_folder(url, options)
    for number, name in enumerate(("cat/0", "cat/1", "dog/2", "dog/3")):
        Image.new("RGB", (20 + number, 16), (60 * number, 9, 9)).save(tmp_path / "drawn.png")
        folder.upload(tmp_path / "drawn.png", f"{name}.png")
    return url


def test_datasets_take_the_options_of_the_url_that_they_open(pictures, options):
    iterable = ts.ImageDataset(pictures, views=ts.CenterCrop(8), batch_size=4, storage_options=options)
    by_index = ts.ImageMapDataset(pictures, views=ts.CenterCrop(8), storage_options=options)

    (batch,) = iterable
    assert batch["label"].tolist() == [0, 0, 1, 1]
    assert (by_index[3]["image"] == batch["image"][3]).all()


def test_packing_takes_options_for_its_source_and_for_its_result(pictures, options):
    ts.pack(pictures, f"{pictures}-mds", source_storage_options=options, storage_options=options)

    packed = ts.open(f"{pictures}-mds", storage_options=options)
    assert packed.fetch(range(4)) == ts.open(pictures, storage_options=options).fetch(range(4))


def test_packing_with_labels_left_out_takes_them_too(pictures, options, tmp_path):
    ts.pack(pictures, tmp_path / "out", label_mode="none", source_storage_options=options)

    assert list(ts.MDS(tmp_path / "out").schema) == ["image"]


def test_options_are_no_obstacle_for_a_folder_of_this_machine(picture_folder):
    dataset = ts.ImageDataset(picture_folder, storage_options={"key": "unused"})

    assert len(dataset.source) == 42


@pytest.mark.parametrize("make", [ts.ImageDataset, ts.ImageMapDataset])
def test_options_for_a_source_that_is_open_are_an_error(picture_folder, make):
    with pytest.raises(ValueError, match="was opened with its own"):
        make(ts.ImageFolder(picture_folder), storage_options={"key": "unused"})
