"""Packing pictures as planes, and reading them with every tool and in every colour."""

from __future__ import annotations

import io
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import torchslip as ts
from torchslip.cli import main
from torchslip.decode import open_picture, read_header, store_planes
from torchslip.errors import SampleError
from torchslip.pack import measure, verify
from torchslip.sources.mds import SIDECAR_NAME


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class StoppedError(Exception):
    pass


class Stopping(ts.ImageFolder):
    stops = False

    def fetch(self, indices):
        if self.stops and max(indices) > 30:
            raise StoppedError
        return super().fetch(indices)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> Path:
    """All encodings as planes."""
    out = tmp_path_factory.mktemp("packed") / "planes"
    ts.pack(picture_folder, out, pixels="yuv420", statistics=True)
    return out


def rgb(data: bytes) -> np.ndarray:
    with open_picture(data) as opened:
        opened.load()
        opened.info.pop("transparency", None)
        return np.asarray(opened.convert("RGB"), int)


def apart(one: bytes, other: bytes) -> float:
    """The mean difference in luma, which drawn figures in hard colours keep, as photographs do."""
    return float(np.abs((rgb(one) - rgb(other)) @ (0.299, 0.587, 0.114)).mean())


def test_every_encoding_keeps_its_size_its_order_and_its_colours(packed, picture_folder):
    source, dataset = ts.ImageFolder(picture_folder), ts.open(packed)

    assert dataset.schema == source.schema and dataset.classes == source.classes
    for before, after in zip(source.fetch(range(42)), dataset.fetch(range(42)), strict=True):
        assert before["label"] == after["label"]
        assert after["image"] == store_planes(before["image"], read_header(before["image"]))
        assert read_header(after["image"]).format == "yuv420"
        assert apart(before["image"], after["image"]) <= 2
        if read_header(before["image"]).components in (1, 3):
            assert np.abs(rgb(before["image"]) - rgb(after["image"])).max() <= 1


def test_the_shards_are_mds_of_bytes_and_need_no_sidecar(packed, tmp_path):
    index = json.loads((packed / "index.json").read_text())["shards"][0]
    assert dict(zip(index["column_names"], index["column_encodings"], strict=True)) == {
        "image": "bytes",
        "label": "int",
    }
    assert ts.MDS(packed).sidecar.packed["pixels"] == "yuv420"
    for name, data in contents(packed).items():
        if name != SIDECAR_NAME:
            (tmp_path / name).write_bytes(data)

    plain = ts.MDS(tmp_path)
    assert plain.schema["image"] == "bytes"
    declared = ts.MDS(tmp_path, image_columns=["image"])
    (mine,), (theirs,) = (
        list(ts.ImageDataset(each, views=ts.CenterCrop(32), batch_size=42)) for each in (declared, packed)
    )
    assert torch.equal(mine["image"], theirs["image"])


def test_equal_options_give_equal_bytes_and_an_interrupted_packer_goes_on(picture_folder, packed, tmp_path):
    Stopping.stops = True
    options = {"pixels": "yuv420", "shard_bytes": "400kb", "statistics": True}
    with pytest.raises(StoppedError), ThreadPoolExecutor(2) as executor:
        ts.pack(Stopping(picture_folder), tmp_path / "out", executor=executor, **options)
    Stopping.stops = False
    assert not (tmp_path / "out" / "index.json").exists()
    again = ts.pack(Stopping(picture_folder), tmp_path / "out", **options)
    ts.pack(picture_folder, tmp_path / "straight", **options)

    assert again.resumed_samples and again.shards > 2
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    assert ts.MDS(tmp_path / "out").fetch(range(42)) == ts.MDS(packed).fetch(range(42))


def test_smaller_pictures_have_the_sizes_and_about_the_pixels_of_smaller_jpeg_files(picture_folder, tmp_path):
    resize = ts.Resize(shorter=64, longer_max=100, quality=95)
    ts.pack(picture_folder, tmp_path / "jpeg", image=resize)
    ts.pack(picture_folder, tmp_path / "planes", image=resize, pixels="yuv420")
    files, planes = ts.MDS(tmp_path / "jpeg"), ts.MDS(tmp_path / "planes")

    assert np.array_equal(files.image_sizes("image"), planes.image_sizes("image"))
    for before, after in zip(files.fetch(range(42)), planes.fetch(range(42)), strict=True):
        assert apart(before["image"], after["image"]) <= 4


def test_planes_that_are_packed_again_are_kept_or_become_files(packed, tmp_path):
    ts.pack(packed, tmp_path / "same", pixels="yuv420")
    ts.pack(packed, tmp_path / "files")

    assert ts.MDS(tmp_path / "same").fetch(range(42)) == ts.MDS(packed).fetch(range(42))
    for before, after in zip(ts.MDS(packed).fetch(range(42)), ts.MDS(tmp_path / "files").fetch(range(42)), strict=True):
        assert read_header(after["image"]).format == "jpeg"
        assert apart(before["image"], after["image"]) <= 4


def test_options_that_make_no_sense_are_refused(picture_folder, tmp_path):
    with pytest.raises(ValueError, match="image='jpeg' says how image files are stored"):
        ts.pack(picture_folder, tmp_path / "out", image="jpeg", pixels="yuv420")
    with pytest.raises(ValueError, match=r"pixels must be one of .*yuv420; got 'raw'"):
        ts.pack(picture_folder, tmp_path / "out", pixels="raw")
    with pytest.raises(ValueError, match="output must be one of rgb, yuv, planes; got 'bgr'"):
        ts.ImageDataset(picture_folder, output="bgr")
    views = {"a": ts.CenterCrop(8), "a_y": ts.CenterCrop(8)}
    assert ts.ImageDataset(picture_folder, views=views, output="yuv")


def test_a_damaged_jpeg_is_not_packed(tmp_path):
    buffer = io.BytesIO()
    Image.effect_noise((90, 70), 60).convert("RGB").save(buffer, "JPEG")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cut.jpg").write_bytes(buffer.getvalue()[:-600])

    with pytest.raises(SampleError, match=r"cut\.jpg.*(truncated|end)"):
        ts.pack(tmp_path / "in", tmp_path / "out", pixels="yuv420")


def test_without_the_kernel_the_same_layout_comes_from_pillow_and_another_fingerprint(
    picture_folder, packed, tmp_path, monkeypatch
):
    monkeypatch.setattr("torchslip.decode._turbo.why_no_kernel", lambda: "gone")
    ts.pack(picture_folder, tmp_path / "pillow", pixels="yuv420")
    ours, theirs = ts.MDS(packed), ts.MDS(tmp_path / "pillow")

    assert "Pillow" in theirs.sidecar.packed["encoder"]
    assert theirs.sidecar.packed["fingerprint"] != ours.sidecar.packed["fingerprint"]
    for mine, other in zip(ours.fetch(range(42)), theirs.fetch(range(42)), strict=True):
        assert read_header(mine["image"]) == read_header(other["image"])
        assert apart(mine["image"], other["image"]) <= 2


def test_verify_and_measure_read_planes(packed, tmp_path):
    assert not verify(packed).problems
    pixels = [rgb(record["image"]) for record in ts.MDS(packed).fetch(range(42))]
    mean = np.concatenate([each.reshape(-1, 3) for each in pixels]).mean(0) / 255
    assert np.allclose(measure(packed).mean, mean)
    assert np.allclose(ts.MDS(packed).sidecar.statistics["image"]["mean"], mean)

    for name, data in contents(packed).items():
        (tmp_path / name).write_bytes(data)
    shard = tmp_path / "shard.00000.mds"
    data = bytearray(shard.read_bytes())
    data[data.index(b"TSPL") + 8] ^= 1
    shard.write_bytes(bytes(data))
    assert any("bytes" in problem.reason and problem.sample == 0 for problem in verify(tmp_path).problems)


def test_the_commands_know_planes(picture_folder, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["torchslip", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return re.sub(r"[\s│]+", " ", capsys.readouterr().out)

    monkeypatch.chdir(tmp_path)
    assert "samples 42" in run("pack", picture_folder, "out", "--pixels", "yuv420", "--shorter", 48)
    assert "42 yuv420" in run("inspect", "out", "--image", "sheet.png")
    assert "whole (42 samples" in run("verify", "out")
    assert "42 images" in run("stats", "out")
    assert "pictures of out" in run("show", "simclr", "--data", "out", "--out", "views.png", "--count", 2)
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("sheet.png", "views.png"))


VIEWS = {"large": ts.RandomResizedCrop((65, 97)), "small": ts.ResizeCrop(20, (31, 17))}


@pytest.mark.parametrize("output", ["rgb", "yuv", "planes"])
@pytest.mark.parametrize("workers", [0, 2])
def test_all_sources_give_all_outputs_in_the_same_form(picture_folder, packed, output, workers):
    options = {"views": VIEWS, "batch_size": 9, "shuffle": True, "seed": 4, "output": output, "return_params": True}
    files = list(ts.ImageDataset(picture_folder, **options))
    planes = list(ts.DataLoader(ts.ImageDataset(packed, **options), num_workers=workers))

    assert len(files) == len(planes) == 5
    for one, other in zip(files, planes, strict=True):
        assert list(one) == list(other)
        for key in one:
            assert one[key].shape == other[key].shape and one[key].stride() == other[key].stride(), key
            if one[key].dtype == torch.uint8:
                assert (one[key].float() - other[key].float()).abs().mean() <= 4
            else:
                assert torch.equal(one[key], other[key])
    batch = planes[0]
    if output == "planes":
        assert batch["large_y"].shape == (9, 1, 65, 97) and batch["large_uv"].shape == (9, 2, 33, 49)
        assert batch["large_y"].is_contiguous() and batch["large_uv"].is_contiguous()
    else:
        assert batch["large"].shape == (9, 3, 65, 97)
        assert batch["large"].is_contiguous(memory_format=torch.channels_last)
    dataset = ts.ImageDataset(packed, **options)
    numbers = 8 * 9 * (2 + 2 * len(VIEWS) + len(dataset.source.schema))
    pixels = sum(value.nbytes for value in batch.values() if value.dtype == torch.uint8)
    assert dataset.batch_bytes == pixels + numbers


@pytest.mark.parametrize("output", ["rgb", "yuv", "planes"])
def test_samples_by_index_and_whole_pictures_come_in_every_output(packed, output):
    crops = ts.ImageMapDataset(packed, views=VIEWS, output=output)
    together = ts.collate(crops.__getitems__([3, 1]))
    whole = ts.ImageMapDataset(packed, output=output)[3]
    sizes = ts.MDS(packed).image_sizes("image")[3].tolist()

    assert all(torch.equal(crops[1][key], together[key][1]) for key in together)
    if output == "planes":
        assert list(whole["image_y"].shape) == [1, *sizes]
        assert list(whole["image_uv"].shape) == [2, *(-(-side // 2) for side in sizes)]
    else:
        assert list(whole["image"].shape) == [3, *sizes]


def test_planes_are_shown_in_colour(packed):
    views = {"one": ts.ResizeCrop(24, 24), "two": ts.CenterCrop(31)}
    dataset = ts.ImageDataset(packed, views=views, batch_size=4)
    planes = ts.ImageDataset(packed, views=views, batch_size=4, output="planes")
    (shown, wanted) = (np.asarray(ts.show_batch(next(iter(each))), int) for each in (planes, dataset))

    assert shown.shape == wanted.shape
    # The names of the views below the pictures differ.
    assert np.abs(shown - wanted).mean() <= 6


def test_both_outputs_become_the_rgb_that_the_dataset_gives(packed):
    def batch(output):
        return next(iter(ts.ImageDataset(packed, views=ts.ResizeCrop(24, 24), batch_size=42, output=output)))

    wanted, yuv, planes = batch("rgb"), batch("yuv"), batch("planes")

    assert (ts.augment.yuv_to_rgb(yuv["image"]).float() - wanted["image"].float()).abs().mean() <= 1
    again = ts.augment.yuv_to_rgb(planes["image_y"], planes["image_uv"])
    assert again.shape == wanted["image"].shape
    # Drawn figures have hard edges in colour; photographs differ by 1 on the mean.
    assert (again.float() - wanted["image"].float()).abs().mean() <= 12
