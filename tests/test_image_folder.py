"""Image folders: the samples of torchvision, in little memory, and errors that name the sample."""

import io
import os
import pickle
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionImageFolder

from torchslip.errors import FormatError, SampleError
from torchslip.sources import IMG_EXTENSIONS, ImageFolder, Source


def make_files(root, *names):
    """A file under each name, with the name as its content; no picture is decoded here."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return root


def paths_of(source):
    return [source.locate(index) for index in range(len(source))]


def assert_same_as_torchvision(root, **options):
    ours, theirs = ImageFolder(root, **options), TorchvisionImageFolder(root)
    assert list(zip(paths_of(ours), ours.targets.tolist(), strict=True)) == theirs.samples
    assert (ours.classes, ours.class_to_idx) == (theirs.classes, theirs.class_to_idx)
    assert ours.targets.dtype == np.int64
    assert [record["label"] for record in ours.fetch(range(len(ours)))] == theirs.targets


@pytest.fixture
def folder(tmp_path):
    return make_files(tmp_path / "data", "cat/1.jpg", "cat/2.png", "dog/1.jpg", "dog/deep/3.jpg", "dog/deep/4.webp")


TREES = {
    "nested": ["b/2.jpg", "b/x/1.jpg", "b/x/y/1.jpg", "b/x-y/1.jpg", "b/x y/1.jpg", "b/0.jpg", "a/z/1.jpg"],
    "extensions": [f"a/1{extension}" for extension in IMG_EXTENSIONS],
    "mixed case": ["a/1.JPG", "a/2.Jpeg", "a/3.PnG", "A/4.WEBP", "a/5.TIFF", "B/A.jpg", "B/a.jpg", "B/B.jpg"],
    "other files": ["a/1.jpg", "a/1.gif", "a/1.txt", "a/jpg", "a/1.jpg.bak", "a/.jpg", "a/no_extension", "notes.txt"],
    "numbers": [f"{name}/{number}.jpg" for name in ("10", "9", "1") for number in (10, 9, 1)],
    "hidden": [".hidden/1.jpg", "a/.2.jpg", "a/.deep/3.jpg"],
    "folder named like a file": ["a/x.jpg/1.jpg", "a/y.jpg", "b.png/1.jpg"],
    "unicode": [
        "été/naïve.jpg",
        "日本/写真.jpg",
        "e\u0301te/1.jpg",
        "a\nb/c\td.jpg",
        "😀/😀.jpg",
        "I\u0307/\u0130.JPG",
    ],
    "not UTF-8": [os.fsdecode(b"caf\xe9/\xff.jpg"), os.fsdecode(b"caf\xe9/\xfe.jpg"), "café/\uffff.jpg"],
}


@pytest.mark.parametrize("name", TREES)
def test_samples_and_labels_are_those_of_torchvision(name, tmp_path):
    assert_same_as_torchvision(make_files(tmp_path, *TREES[name]))


def test_symbolic_links_are_followed_as_by_torchvision(folder, tmp_path):
    make_files(tmp_path / "elsewhere", "5.jpg", "deep/6.jpg")
    (folder / "linked class").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "cat/linked folder").symlink_to(tmp_path / "elsewhere/deep", target_is_directory=True)
    (folder / "cat/0.jpg").symlink_to(folder / "dog/1.jpg")
    assert_same_as_torchvision(folder)
    assert_same_as_torchvision(folder / ".." / "data")
    assert_same_as_torchvision(f"{folder}/")


def test_links_that_lead_nowhere_are_samples_as_in_torchvision(folder):
    (folder / "cat/broken.jpg").symlink_to("nowhere.jpg")
    (folder / "cat/circle.jpg").symlink_to("circle.jpg")
    source = ImageFolder(folder)
    assert paths_of(source) == [path for path, _ in TorchvisionImageFolder(folder).samples]
    assert source.sizes[[2, 3]].tolist() == [-1, -1]


def test_real_photographs_are_those_of_torchvision(photos):
    assert_same_as_torchvision(photos / "train")


def test_records_hold_the_bytes_of_the_files(picture_folder):
    source = ImageFolder(picture_folder)
    assert isinstance(source, Source)
    assert source.schema == {"image": "image", "label": "int"}
    images = [record["image"] for record in source.fetch(range(len(source)))]
    assert images == [Path(path).read_bytes() for path in paths_of(source)]
    assert source.sizes.tolist() == [len(image) for image in images]
    assert {Image.open(io.BytesIO(image)).format for image in images} == {"JPEG", "PNG", "WEBP", "BMP", "TIFF"}


def test_records_come_in_the_order_asked_for_and_repeat(folder):
    records = ImageFolder(folder).fetch([4, np.int64(0), 4])
    assert [record["image"] for record in records] == [b"dog/deep/4.webp", b"cat/1.jpg", b"dog/deep/4.webp"]
    assert [record["label"] for record in records] == [1, 0, 1]


def test_an_empty_file_is_a_record_without_bytes(folder):
    (folder / "cat/1.jpg").write_bytes(b"")
    assert ImageFolder(folder).fetch([0]) == [{"image": b"", "label": 0}]


def test_relative_paths_are_below_the_root(folder):
    source = ImageFolder(folder)
    assert [source.relative_path(index) for index in (0, 3)] == ["cat/1.jpg", "dog/deep/3.jpg"]
    assert Path(source.locate(3)) == folder / "dog/deep/3.jpg"


def test_a_flat_folder_has_no_labels(tmp_path):
    source = ImageFolder(make_files(tmp_path, "b.jpg", "a.png", "c.txt"))
    assert source.fetch([0, 1]) == [{"image": b"a.png"}, {"image": b"b.jpg"}]
    assert source.schema == {"image": "image"}
    assert (source.classes, source.class_to_idx) == ([], {})
    with pytest.raises(AttributeError, match="has no labels"):
        _ = source.targets


def test_label_mode_none_takes_every_picture_at_any_depth(folder):
    make_files(folder, "0.jpg", "cat/deep/deeper/5.jpg", "empty/notes.txt")
    source = ImageFolder(folder, label_mode="none")
    assert source.schema == {"image": "image"}
    walk = sorted((where, sorted(names)) for where, _, names in os.walk(folder))
    assert paths_of(source) == [f"{where}/{name}" for where, names in walk for name in names if name != "notes.txt"]


def test_pictures_beside_folders_are_ambiguous_until_a_label_mode_is_chosen(folder):
    make_files(folder, "0.jpg")
    with pytest.raises(FormatError, match=r"0\.jpg.*cat.*label_mode='imagefolder'.*label_mode='none'"):
        ImageFolder(folder)
    assert len(ImageFolder(folder, label_mode="none")) == 6
    assert_same_as_torchvision(folder, label_mode="imagefolder")


def test_a_class_without_pictures_is_an_error_that_names_it_unless_allowed(folder):
    make_files(folder, "ant/notes.txt", "eel/deep/notes.txt")
    with pytest.raises(FormatError, match=r"no picture for the classes ant, eel .*allow_empty=True"):
        ImageFolder(folder)
    ours, theirs = ImageFolder(folder, allow_empty=True), TorchvisionImageFolder(folder, allow_empty=True)
    assert list(zip(paths_of(ours), ours.targets.tolist(), strict=True)) == theirs.samples
    assert ours.class_to_idx == theirs.class_to_idx
    assert ours.fetch([0, 4]) == [{"image": b"cat/1.jpg", "label": 1}, {"image": b"dog/deep/4.webp", "label": 2}]


@pytest.mark.parametrize("label_mode", ["auto", "imagefolder", "none"])
def test_a_folder_without_pictures_is_an_error_that_names_it(label_mode, tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        ImageFolder(tmp_path, label_mode=label_mode)


@pytest.mark.parametrize("root", ["missing", "file.jpg", ""])
def test_a_root_that_is_no_folder_is_an_error(root, tmp_path, monkeypatch):
    monkeypatch.chdir(make_files(tmp_path, "file.jpg"))
    with pytest.raises((FileNotFoundError, NotADirectoryError), match=f"'{root}'"):
        ImageFolder(root)


def test_an_unknown_label_mode_is_an_error_that_names_the_known_ones(folder):
    with pytest.raises(ValueError, match="one of auto, imagefolder, none; got 'classes'"):
        ImageFolder(folder, label_mode="classes")


@pytest.mark.parametrize("extensions", [".png", [".png"], (".png",)])
def test_extensions_choose_the_files(folder, extensions):
    with pytest.raises(FormatError, match=r"classes dog .*with the extension \.png;"):
        ImageFolder(folder, extensions=extensions)
    assert paths_of(ImageFolder(folder, extensions=extensions, allow_empty=True)) == [f"{folder}/cat/2.png"]


def test_is_valid_file_decides_as_in_torchvision(folder):
    def is_first(path):
        return Path(path).name == "1.jpg"

    ours = ImageFolder(folder, is_valid_file=is_first)
    assert paths_of(ours) == [path for path, _ in TorchvisionImageFolder(folder, is_valid_file=is_first).samples]
    with pytest.raises(FormatError, match="a file that is_valid_file accepts"):
        ImageFolder(folder, is_valid_file=lambda path: "cat" in path)


def test_a_home_folder_is_found_as_by_torchvision(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert_same_as_torchvision("~/data")


def _replace_by_folder(path):
    path.unlink()
    path.mkdir()


def _replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


def _replace_by_broken_link(path):
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (Path.unlink, "cannot be read: No such file or directory"),
        (_replace_by_broken_link, "cannot be read: No such file or directory"),
        (_replace_by_folder, "is not a regular file but a folder"),
        (_replace_by_pipe, "is not a regular file but a special file"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_with_its_id_and_path(folder, spoil, reason):
    source, path = ImageFolder(folder), folder / "dog/deep/3.jpg"
    spoil(path)
    with pytest.raises(SampleError, match=re.escape(f"Sample 3 {reason}: {path}")):
        source.fetch([0, 3])
    assert len(source.fetch([0, 1, 2, 4])) == 4


@pytest.mark.parametrize("index", [-1, 5, 2**40])
def test_a_record_number_out_of_range_is_an_error_that_names_it(folder, index):
    source = ImageFolder(folder)
    with pytest.raises(IndexError, match=f"no record {index}: the source has 5, numbered from 0"):
        source.fetch([0, index])
    with pytest.raises(IndexError, match=f"no record {index}"):
        source.locate(index)


@pytest.mark.parametrize("index", [1.0, "1", None])
def test_a_record_number_is_an_integer(folder, index):
    with pytest.raises(TypeError):
        ImageFolder(folder).fetch([index])


@pytest.mark.parametrize("options", [{}, {"label_mode": "none"}, {"is_valid_file": lambda path: "1" in path}])
def test_a_source_survives_pickling(folder, options):
    source = ImageFolder(folder, **options)
    clone = pickle.loads(pickle.dumps(source))
    assert clone.fetch(range(len(clone))) == source.fetch(range(len(source)))
    assert (clone.fingerprint, clone.schema, clone.classes) == (source.fingerprint, source.schema, source.classes)
    assert paths_of(clone) == paths_of(source)
    assert repr(clone) == repr(source)


def test_a_copy_elsewhere_has_the_same_fingerprint(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere/copy")
    assert ImageFolder(tmp_path / "elsewhere/copy").fingerprint == ImageFolder(folder).fingerprint
    assert ImageFolder(f"{folder}/").fingerprint == ImageFolder(folder).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "cat/1.jpg").rename(root / "cat/9.jpg"),
        lambda root: (root / "cat/1.jpg").rename(root / "dog/0.jpg"),
        lambda root: (root / "cat").rename(root / "cow"),
        lambda root: (root / "cat/1.jpg").write_bytes(b"longer than it was before"),
        lambda root: (root / "cat/1.jpg").unlink(),
        lambda root: make_files(root, "dog/5.jpg"),
    ],
    ids=["renamed", "moved", "class renamed", "resized", "removed", "added"],
)
def test_a_change_gives_another_fingerprint(folder, change):
    before = ImageFolder(folder).fingerprint
    change(folder)
    assert ImageFolder(folder).fingerprint != before


def test_labels_are_part_of_the_fingerprint(folder):
    assert ImageFolder(folder).fingerprint != ImageFolder(folder, label_mode="none").fingerprint
    before = ImageFolder(folder, allow_empty=True).fingerprint
    (folder / "ant").mkdir()
    assert ImageFolder(folder, allow_empty=True).fingerprint != before


@pytest.fixture(scope="module")
def many_files(tmp_path_factory):
    """20,000 files in 20 classes."""
    root = tmp_path_factory.mktemp("many")
    for label in range(20):
        (root / f"n{label:08}").mkdir()
        for number in range(1000):
            (root / f"n{label:08}/n{label:08}_{number:05}.JPEG").touch()
    return root


@pytest.mark.parametrize("label_mode", ["imagefolder", "none"])
def test_a_file_takes_less_than_200_bytes_of_memory(many_files, label_mode):
    tracemalloc.start()
    source = ImageFolder(many_files, label_mode=label_mode)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 20_000
    assert peak_bytes < 200 * len(source)
    assert len(pickle.dumps(source)) < 200 * len(source)


def test_each_file_is_statted_at_most_once(many_files, monkeypatch):
    asked, stat = [], os.stat

    def counting_stat(path, *args, **kwargs):
        asked.append(path)
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", counting_stat)
    source = ImageFolder(many_files)
    monkeypatch.undo()
    of_files = [path for path in asked if str(path).endswith(".JPEG")]
    assert len(of_files) == len(set(of_files)) <= len(source)
    assert len(asked) < len(source) + 100
