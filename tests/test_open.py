"""`open`: finds the format of a path, or says what was tried."""

import re

import pytest

from torchslip.errors import FormatError
from torchslip.sources import FORMATS, ImageFolder, Source, open


@pytest.mark.parametrize("as_type", [str, lambda path: path])
@pytest.mark.parametrize("format", [None, "imagefolder"])
def test_a_folder_of_pictures_is_an_image_folder(picture_folder, as_type, format):
    source = open(as_type(picture_folder), format=format)
    assert isinstance(source, ImageFolder)
    assert isinstance(source, Source)
    assert source.fingerprint == ImageFolder(picture_folder).fingerprint


def test_options_reach_the_format(picture_folder):
    assert open(picture_folder, label_mode="none").schema == {"image": "image"}
    with pytest.raises(TypeError, match="labels"):
        open(picture_folder, labels="none")


def test_a_home_folder_is_found(picture_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(picture_folder.parent))
    assert len(open(f"~/{picture_folder.name}")) == len(open(picture_folder))


def test_an_unknown_format_is_an_error_that_names_the_known_ones(picture_folder):
    with pytest.raises(ValueError, match=f"one of {', '.join(FORMATS)}, or None to detect it; got 'zip'"):
        open(picture_folder, format="zip")


def test_a_url_of_a_file_is_that_file(picture_folder):
    assert open(f"file://{picture_folder}").fingerprint == open(picture_folder).fingerprint


@pytest.mark.parametrize(("name", "reason"), [("missing", "there is no such path"), ("file.bin", "it is a file")])
def test_what_is_no_dataset_is_an_error_that_says_what_was_tried(tmp_path, name, reason):
    (tmp_path / "file.bin").write_bytes(b"0123")
    with pytest.raises(FormatError, match=f"(?s){re.escape(str(tmp_path / name))}.*Tried:.*imagefolder: {reason}"):
        open(tmp_path / name)


def test_a_folder_without_pictures_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        open(tmp_path)
