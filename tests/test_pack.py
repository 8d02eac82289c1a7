"""`pack`: any source to MDS, the same bytes whoever does it, whole or not there."""

import importlib
import io
import json
import re
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import torchslip as ts
from torchslip.errors import FormatError, SampleError
from torchslip.sources.mds import SIDECAR_NAME

DOCS = Path(__file__).parents[1] / "docs" / "packing.md"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def jpeg(width, height, mode="RGB", seed=0, **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


def opened(data):
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        return picture


class Rows:
    """A source of records in memory."""

    def __init__(self, rows, schema, classes=()):
        self.rows, self.schema, self.classes = rows, schema, list(classes)
        self.fingerprint = f"rows:{hash(repr(rows))}"

    def __len__(self):
        return len(self.rows)

    def fetch(self, indices):
        return [dict(self.rows[index]) for index in indices]


@pytest.fixture
def folder(tmp_path):
    """Two classes of 20 small pictures."""
    for number in range(40):
        path = tmp_path / "photos" / ("cat" if number < 20 else "dog") / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(64 + number, 48, seed=number))
    return tmp_path / "photos"


def test_a_packed_folder_has_the_records_of_the_folder(picture_folder, tmp_path):
    packed = ts.pack(picture_folder, tmp_path / "out")
    source, dataset = ts.ImageFolder(picture_folder), ts.open(packed.path)

    assert packed.samples == len(dataset) == 42
    assert dataset.fetch(range(42)) == source.fetch(range(42))
    assert dataset.classes == source.classes
    assert {label: ids.tolist() for label, ids in dataset.index("label").items()} == {
        label: np.flatnonzero(source.targets == label).tolist() for label in range(3)
    }


def test_a_packed_dataset_gives_the_batches_of_its_source(folder, tmp_path):
    ts.pack(folder, tmp_path / "out", shard_bytes="8kb")
    options = {"views": ts.RandomResizedCrop(32), "batch_size": 16, "shuffle": True, "seed": 3}
    ours, theirs = ts.ImageDataset(tmp_path / "out", **options), ts.ImageDataset(folder, **options)

    assert ours.classes == theirs.classes == ["cat", "dog"]
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("image", "label", "sample_id"))


def test_the_image_sizes_are_those_of_the_images(picture_folder, tmp_path):
    ts.pack(picture_folder, tmp_path / "out", image=ts.Resize(shorter=32))
    dataset = ts.MDS(tmp_path / "out")
    sizes = [opened(record["image"]).size[::-1] for record in dataset.fetch(range(42))]

    assert dataset.image_sizes("image").tolist() == [list(size) for size in sizes]


@pytest.mark.parametrize(
    "options",
    [{}, {"image": ts.Resize(shorter=24)}, {"compression": "zstd", "hashes": ["md5", "sha256"], "verify": False}],
    ids=["keep", "resize", "zstd"],
)
def test_one_and_eight_workers_threads_and_processes_write_the_same_bytes(folder, tmp_path, options):
    pack = partial(ts.pack, folder, shard_bytes="6kb", **options)
    pack(tmp_path / "default")
    for name, executor in {"1": ThreadPoolExecutor(1), "8": ThreadPoolExecutor(8), "p": ProcessPoolExecutor(2)}.items():
        with executor:
            pack(tmp_path / name, executor=executor)

        assert contents(tmp_path / name) == contents(tmp_path / "default")
    assert len(contents(tmp_path / "default")) > 4


def test_images_are_kept_byte_for_byte_unless_asked_otherwise(picture_folder, tmp_path):
    ts.pack(picture_folder, tmp_path / "keep")
    ts.pack(picture_folder, tmp_path / "jpeg", image="jpeg")
    stored = zip(*(ts.MDS(tmp_path / name).fetch(range(42)) for name in ("keep", "jpeg")), strict=True)

    formats = [(opened(kept["image"]), opened(converted["image"])) for kept, converted in stored]
    assert {kept.format for kept, _ in formats} == {"JPEG", "PNG", "WEBP", "BMP", "TIFF"}
    assert {converted.format for _, converted in formats} == {"JPEG"}
    assert all(kept.size == converted.size for kept, converted in formats)


def test_converted_pictures_look_like_what_the_dataset_decodes(picture_folder, tmp_path):
    ts.pack(picture_folder, tmp_path / "jpeg", image="jpeg")
    pictures = [
        next(iter(ts.ImageDataset(path, views=ts.Decode(), batch_size=42)))["image"]
        for path in (picture_folder, tmp_path / "jpeg")
    ]

    for before, after in zip(*pictures, strict=True):
        assert (before.int() - after.int()).abs().float().mean() < 8


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (1000, 100), (30, 40), (256, 257), (77, 1)])
@pytest.mark.parametrize(("shorter", "longer_max"), [(64, None), (64, 100), (None, 90), (100, 101)])
def test_resized_pictures_have_the_size_of_torchvision_and_never_grow(size, shorter, longer_max):
    wanted = [shorter] if shorter else None
    theirs = v2.functional.resize(torch.empty(1, *size), wanted, max_size=longer_max).shape[1:]
    smaller = max(theirs) < max(size)

    assert ts.Resize(shorter=shorter, longer_max=longer_max).size_of(*size) == (tuple(theirs) if smaller else size)


def test_a_resized_picture_shows_what_torchvision_makes_of_the_large_one(picture_folder, tmp_path):
    large = (picture_folder / "discs" / "00-baseline.jpg").read_bytes()
    ts.pack(Rows([{"image": large}], {"image": "image"}), tmp_path / "out", image=ts.Resize(shorter=100, quality=95))
    stored = opened(ts.MDS(tmp_path / "out").fetch([0])[0]["image"])

    before, after = (torch.from_numpy(np.array(each)).permute(2, 0, 1) for each in (opened(large), stored))
    wanted = v2.functional.resize(before, [100], antialias=True)
    assert stored.size == (133, 100)
    assert (wanted.int() - after.int()).abs().float().mean() < 4


def test_a_picture_that_is_small_enough_is_kept_byte_for_byte(tmp_path):
    rows = [{"image": jpeg(64, 48)}, {"image": jpeg(200, 100)}]
    ts.pack(Rows(rows, {"image": "image"}), tmp_path / "out", image=ts.Resize(shorter=48, longer_max=100))
    small, large = ts.MDS(tmp_path / "out").fetch([0, 1])

    assert small == rows[0]
    assert opened(large["image"]).size == (96, 48)


def test_a_gray_picture_stays_gray_and_cmyk_becomes_rgb(tmp_path):
    rows = [{"image": jpeg(200, 100, mode)} for mode in ("L", "CMYK", "RGB")]
    ts.pack(Rows(rows, {"image": "image"}), tmp_path / "out", image=ts.Resize(shorter=48))

    assert [opened(record["image"]).mode for record in ts.MDS(tmp_path / "out").fetch(range(3))] == ["L", "RGB", "RGB"]


def test_orientation_and_colour_profile_of_a_resized_picture_stay_and_the_pixels_are_not_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    rows = [{"image": jpeg(200, 100, exif=exif, icc_profile=b"a profile")}]
    ts.pack(Rows(rows, {"image": "image"}), tmp_path / "out", image=ts.Resize(shorter=48))
    stored = opened(ts.MDS(tmp_path / "out").fetch([0])[0]["image"])

    assert stored.size == (96, 48)
    assert dict(stored.getexif()) == {0x0112: 6}
    assert stored.info["icc_profile"] == b"a profile"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_metadata_does_not_make_a_bad_picture(tmp_path):
    rows = [{"image": jpeg(200, 100, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")}]
    ts.pack(Rows(rows, {"image": "image"}), tmp_path / "out", image=ts.Resize(shorter=48))

    assert ts.MDS(tmp_path / "out").image_sizes("image").tolist() == [[48, 96]]


def test_every_kind_of_field_is_packed(tmp_path):
    row = {"a": 7, "b": 0.5, "c": "ä", "d": b"\0", "e": {"x": [1]}, "f": np.eye(2, dtype=np.float32)}
    schema = {"a": "int", "b": "float", "c": "str", "d": "bytes", "e": "json", "f": "array"}
    ts.pack(Rows([row, {**row, "c": "b"}], schema), tmp_path / "out")
    dataset = ts.MDS(tmp_path / "out")

    assert dataset.schema == schema
    (record,) = dataset.fetch([0])
    assert record.pop("f").tolist() == row.pop("f").tolist()
    assert record == row
    assert {value: ids.tolist() for value, ids in dataset.index("c").items()} == {"b": [1], "ä": [0]}


def test_a_dataset_packed_from_mds_keeps_its_columns(tmp_path):
    columns = {"small": "uint8", "big": "str_int", "exact": "str_decimal", "photo": "png", "raw": "pil"}
    picture = Image.new("RGB", (5, 4), "red")
    with ts.MDSWriter(columns=columns, out=tmp_path / "in") as writer:
        for number in range(3):
            values = {"small": number, "big": 10**20 + number, "exact": b"1.50", "photo": picture, "raw": picture}
            writer.write(values)
    ts.pack(tmp_path / "in", tmp_path / "out")
    before, after = ts.MDS(tmp_path / "in"), ts.MDS(tmp_path / "out")

    assert after.encodings == columns | {"raw": "png"}
    assert after.fetch(range(3)) == before.fetch(range(3))
    assert list(after.index("big")) == [10**20, 10**20 + 1, 10**20 + 2]


def test_packing_again_returns_the_dataset_that_is_there(folder, tmp_path):
    first = ts.pack(folder, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = ts.pack(folder, tmp_path / "out")

    assert again.resumed_samples == again.samples == first.samples
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_another_dataset_is_replaced_only_when_asked_for(folder, tmp_path):
    ts.pack(folder, tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"another dataset in .* exist_ok=True"):
        ts.pack(folder, tmp_path / "out", image=ts.Resize(shorter=8))
    ts.pack(folder, tmp_path / "out", image=ts.Resize(shorter=8), exist_ok=True)
    ts.pack(folder, tmp_path / "fresh", image=ts.Resize(shorter=8))

    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_the_writer_replaces_a_packed_dataset_and_its_sidecar(folder, tmp_path):
    ts.pack(folder, tmp_path / "out", shard_bytes="8kb")
    with ts.MDSWriter(columns={"a": "int"}, out=tmp_path / "out", exist_ok=True) as writer:
        writer.write({"a": 1})

    assert sorted(contents(tmp_path / "out")) == ["index.json", "shard.00000.mds"]


@pytest.mark.parametrize("file", ["notes.txt", "index.json"])
def test_files_of_others_are_never_removed(folder, tmp_path, file):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / file).write_text("{}")
    for exist_ok in (False, True):
        with pytest.raises(FileExistsError):
            ts.pack(folder, tmp_path / "out", exist_ok=exist_ok)

    assert contents(tmp_path / "out") == {file: b"{}"}


def test_a_dataset_does_not_go_into_its_own_source(folder):
    ts.pack(folder, folder.parent / "out")
    for source, out in ((folder, folder / "packed"), (folder, folder), (folder.parent / "out", folder.parent / "out")):
        with pytest.raises(FileExistsError, match="inside its own source"):
            ts.pack(source, out, exist_ok=True)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "cut progressive", "unreadable"])
def test_a_bad_image_stops_and_is_named_or_is_skipped_and_listed(folder, tmp_path, damage):
    bad = folder / "cat" / "07.jpg"
    if damage == "cut progressive":
        bad.write_bytes(jpeg(200, 200, progressive=True))
    data = {"empty": b"", "text": b"no picture", "unreadable": None}.get(damage, bad.read_bytes()[:-200])
    bad.unlink()
    bad.mkdir() if data is None else bad.write_bytes(data)
    source = ts.ImageFolder(folder)
    if data is None:  # gone since the folder was opened
        bad.rmdir()
        bad.write_bytes(b"")
        source = ts.ImageFolder(folder)
        bad.unlink()
    with pytest.raises(SampleError, match=r"Sample 7 cannot be packed: .*07.jpg.*on_error='skip'"):
        ts.pack(source, tmp_path / "out", shard_bytes="4kb")
    packed = ts.pack(source, tmp_path / "out", shard_bytes="4kb", on_error="skip")
    ts.pack(source, tmp_path / "whole", shard_bytes="4kb", on_error="skip")

    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert [(each["id"], each["where"]) for each in packed.skipped] == [(7, str(bad))]
    assert packed.samples == len(ts.MDS(tmp_path / "out")) == 39 and packed.resumed_samples
    assert ts.MDS(tmp_path / "out").sidecar.skipped == packed.skipped
    assert len(ts.MDS(tmp_path / "out").index("label")[0]) == 19


def test_a_value_that_does_not_fit_is_a_bad_sample(tmp_path):
    source = Rows([{"a": 1}, {"a": 2**70}, {"a": 3}], {"a": "int"})
    with pytest.raises(SampleError, match=r"Sample 1 cannot be packed: .*str_int"):
        ts.pack(source, tmp_path / "out")
    ts.pack(source, tmp_path / "out", on_error="skip")

    assert ts.MDS(tmp_path / "out").fetch([0, 1]) == [{"a": 1}, {"a": 3}]


def test_without_verify_only_headers_are_read(folder, tmp_path):
    whole = (folder / "cat" / "07.jpg").read_bytes()
    (folder / "cat" / "07.jpg").write_bytes(whole[:-200])

    assert ts.pack(folder, tmp_path / "out", verify=False).samples == 40


def test_label_modes(folder, tmp_path):
    (folder / "stray.jpg").write_bytes(jpeg(10, 10))
    with pytest.raises(FormatError, match="not clear whether the sub-folders are classes"):
        ts.pack(folder, tmp_path / "out")
    with pytest.raises(FormatError, match="have no class"):
        ts.pack(folder, tmp_path / "out", label_mode="imagefolder", require_labels=True)
    ts.pack(folder, tmp_path / "with", label_mode="imagefolder")
    ts.pack(folder, tmp_path / "without", label_mode="none")

    assert len(ts.MDS(tmp_path / "with")) == 40 and ts.MDS(tmp_path / "with").classes == ["cat", "dog"]
    assert len(ts.MDS(tmp_path / "without")) == 41 and list(ts.MDS(tmp_path / "without").schema) == ["image"]


def test_labels_can_be_required_and_left_out_of_any_source(tmp_path):
    labelled = Rows([{"image": jpeg(8, 8), "label": 0}], {"image": "image", "label": "int"}, ["only"])
    ts.pack(labelled, tmp_path / "with", require_labels=True)
    ts.pack(labelled, tmp_path / "without", label_mode="none")

    assert ts.MDS(tmp_path / "with").classes == ["only"] and ts.MDS(tmp_path / "without").classes == []
    with pytest.raises(FormatError, match="has no labels"):
        ts.pack(tmp_path / "without", tmp_path / "out", require_labels=True)
    with pytest.raises(ValueError, match="is for folders of pictures"):
        ts.pack(tmp_path / "without", tmp_path / "out", label_mode="imagefolder")


@pytest.mark.parametrize(
    "options",
    [
        {"image": "png"},
        {"pixels": "raw"},
        {"shard_bytes": "5 GiB"},
        {"compression": "lz4"},
        {"hashes": "crc"},
        {"label_mode": "maybe"},
        {"on_error": "ignore"},
        {"label_mode": "none", "require_labels": True},
    ],
)
def test_a_wrong_option_is_an_error_before_anything_is_written(folder, tmp_path, options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))}|There is no|contradicts"):
        ts.pack(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{}, {"shorter": 0}, {"shorter": 9, "longer_max": 8}, {"shorter": 9, "quality": 0}])
def test_an_impossible_resize_is_an_error(options):
    with pytest.raises(ValueError, match=r"must|needs"):
        ts.Resize(**options)


def test_an_empty_source_becomes_an_empty_dataset(tmp_path):
    packed = ts.pack(Rows([], {"image": "image", "label": "int"}), tmp_path / "out")

    assert (packed.samples, packed.shards) == (0, 0)
    assert len(ts.MDS(tmp_path / "out")) == 0


class Heavy(Rows):
    """A source with a large part, whose place in memory its records tell."""

    def __init__(self):
        super().__init__([0] * 100, {"place": "int", "thread": "int"})
        self.part = bytes(1 << 20)
        self.seen = []

    def fetch(self, indices):
        self.seen.append(len(indices))
        return [{"place": id(self.part), "thread": id(self.seen)} for _ in indices]


def test_threads_have_a_copy_of_the_source_each_but_share_what_is_large(tmp_path):
    source = Heavy()
    ts.pack(source, tmp_path / "out", executor=ThreadPoolExecutor(3))
    dataset = ts.MDS(tmp_path / "out")

    assert list(dataset.index("place")) == [id(source.part)]
    assert id(source.seen) not in dataset.index("thread") and not source.seen


def test_two_packers_may_share_the_workers_of_one_executor(folder, tmp_path):
    """A worker keeps one source at a time, so each asks for its own again and again."""
    with ProcessPoolExecutor(1) as workers, ThreadPoolExecutor(2) as packers:
        sources = {name: Rows([{"a": number} for number in range(2000)], {"a": "int"}) for name in ("one", "two")}
        jobs = [packers.submit(ts.pack, source, tmp_path / name, executor=workers) for name, source in sources.items()]
        assert [job.result(60).samples for job in jobs] == [2000, 2000]

    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_source_without_a_field_to_pack_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no field to pack"):
        ts.pack(Rows([{"label": 1}], {"label": "int"}), tmp_path / "out", label_mode="none")
    assert not (tmp_path / "out").exists()


def test_a_source_that_does_not_pickle_is_an_error_that_says_so(tmp_path):
    source = Rows([{"a": 1}], {"a": "int"})
    source.hook = lambda: None
    with pytest.raises(TypeError, match="must pickle"):
        ts.pack(source, tmp_path / "out")


def test_an_error_of_the_source_reaches_the_caller(folder, tmp_path):
    with pytest.raises(ZeroDivisionError):
        ts.pack(Failing(), tmp_path / "out")
    assert "index.json" not in contents(tmp_path / "out")


class Failing(Rows):
    def __init__(self):
        super().__init__([{"a": 1}] * 100, {"a": "int"})

    def fetch(self, indices):
        return [{"a": 1 // (99 - index)} for index in indices]


def test_a_url_gets_the_same_bytes_and_the_index_last(folder, tmp_path):
    remote = fsspec.filesystem("memory")
    url = f"memory://{tmp_path.name}/out"
    packed = ts.pack(folder, url, shard_bytes="8kb")
    ts.pack(folder, tmp_path / "out", shard_bytes="8kb")

    root = f"/{tmp_path.name}/out"
    found = {path.rpartition("/")[2]: remote.cat_file(path) for path in remote.ls(root, detail=False)}
    assert found == contents(tmp_path / "out")
    arrived = sorted(remote.ls(root), key=lambda file: file["created"])
    assert [file["name"].rpartition("/")[2] for file in arrived[-2:]] == [SIDECAR_NAME, "index.json"]
    assert ts.pack(folder, url, shard_bytes="8kb").resumed_samples == packed.samples == 40


def test_an_unfinished_dataset_is_resumed_or_begun_anew_as_asked(folder, tmp_path):
    interrupt(folder, tmp_path / "out")
    other = {"shard_bytes": "5kb"}
    with pytest.raises(FileExistsError, match="unfinished dataset of another source or with other options"):
        ts.pack(folder, tmp_path / "out", **other)
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    resumed = ts.pack(folder, tmp_path / "out", shard_bytes="4kb")
    anew = ts.pack(folder, tmp_path / "copy", shard_bytes="4kb", resume=False)
    ts.pack(folder, tmp_path / "whole", shard_bytes="4kb")

    assert resumed.resumed_samples > 0 and anew.resumed_samples == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "copy") == contents(tmp_path / "whole")


def test_a_url_is_resumed_too(folder, tmp_path):
    url = f"memory://{tmp_path.name}/out"
    interrupt(folder, url)
    remote, root = fsspec.filesystem("memory"), f"/{tmp_path.name}/out"
    before = remote.ls(root, detail=False)
    assert f"{root}/.torchslip-packing-00002" in before and f"{root}/index.json" not in before
    resumed = ts.pack(folder, url, shard_bytes="4kb")
    ts.pack(folder, tmp_path / "whole", shard_bytes="4kb")

    assert resumed.resumed_samples > 0
    found = {path.rpartition("/")[2]: remote.cat_file(path) for path in remote.ls(root, detail=False)}
    assert found == contents(tmp_path / "whole")


def interrupt(folder, out):
    """Pack until a picture that cannot be read, and mend it."""
    bad = folder / "dog" / "35.jpg"
    whole = bad.read_bytes()
    bad.write_bytes(bytes(len(whole)))
    with pytest.raises(SampleError):
        ts.pack(folder, out, shard_bytes="4kb")
    bad.write_bytes(whole)


@pytest.mark.parametrize("damage", ["shard missing", "shard cut", "note missing", "note damaged"])
def test_packing_goes_on_before_what_is_missing_or_damaged(folder, tmp_path, damage):
    interrupt(folder, tmp_path / "out")
    what, how = damage.split()
    path = tmp_path / "out" / ("shard.00001.mds" if what == "shard" else ".torchslip-packing-00001")
    path.unlink() if how == "missing" else path.write_bytes(path.read_bytes()[:-1])
    packed = ts.pack(folder, tmp_path / "out", shard_bytes="4kb")
    ts.pack(folder, tmp_path / "whole", shard_bytes="4kb")

    first = json.loads((tmp_path / "out" / "index.json").read_text())["shards"][0]["samples"]
    assert packed.resumed_samples == first
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_field_of_too_many_values_has_no_stored_index(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("torchslip.pack._pack"), "_MAX_INDEXED_VALUES", 5)
    rows = [{"few": index % 2, "many": f"caption {index}"} for index in range(40)]
    ts.pack(Rows(rows, {"few": "int", "many": "str"}), tmp_path / "out", shard_bytes=400)
    dataset = ts.MDS(tmp_path / "out", cache=tmp_path / "cache")

    assert list(dataset.sidecar.index("few")) == [0, 1] and dataset.sidecar.index("many") is None
    assert dataset.index("many")["caption 7"].tolist() == [7]


def test_the_sidecar_is_no_part_of_the_index(folder, tmp_path):
    ts.pack(folder, tmp_path / "out")
    records = ts.MDS(tmp_path / "out").fetch(range(40))
    (tmp_path / "out" / SIDECAR_NAME).unlink()

    assert ts.MDS(tmp_path / "out").fetch(range(40)) == records
    assert set(json.loads((tmp_path / "out" / "index.json").read_text())) == {"shards", "version"}


def test_the_examples_of_the_page_on_packing_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL):
        exec(block, names)

    assert names["few"].tolist() == [0, 1, 20, 21]
    assert len(ts.MDS("photos-mds")) == len(ts.MDS("photos-small")) == 40
