"""The commands as a newcomer runs them: in a process of their own, without a terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from torchslip.cli._app import app
from torchslip.cli._demo_pictures import CLASSES, draw_pictures
from torchslip.errors import FormatError
from torchslip.loading import memory_limit_bytes


def run(*arguments: object, cwd: Path | None = None, code: int = 0) -> str:
    command = [sys.executable, "-W", "error", "-m", "torchslip.cli", *map(str, arguments)]
    wide = {**os.environ, "COLUMNS": "200"}  # paths of tests are long, and a table would break them
    done = subprocess.run(command, cwd=cwd, env=wide, capture_output=True, text=True, timeout=170)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def _mode(path: Path) -> str:
    with Image.open(path) as picture:
        return picture.mode


def joined(text: str) -> str:
    """Without the line breaks and frames of a table."""
    return re.sub(r"[\s│]+", " ", text)


def test_help_lists_the_commands():
    text = run("--help")
    assert all(command.callback.__name__ in text for command in app.registered_commands)


@pytest.mark.parametrize("command", [command.callback.__name__ for command in app.registered_commands])
def test_help_says_what_a_command_does(command):
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0 and "Usage:" in shown.output


def test_the_demo_trains_stops_resumes_and_finishes_on_pictures_of_the_user(tmp_path, picture_folder):
    text = joined(run("demo", "--data", picture_folder, "--epochs", 2, cwd=tmp_path))

    assert "Stopped in epoch 2 after batch" in text and "Resumed in a new process: epoch 2" in text
    assert "exact: every epoch gave each picture once, over 2 processes" in text
    for name in ("images/s", "waiting for data", "accuracy", "peak memory"):
        assert name in text
    with Image.open(tmp_path / "demo" / "batch.png") as picture:
        assert picture.width > 200


def test_the_demo_works_with_one_epoch(tmp_path, picture_folder):
    assert "exact" in run("demo", "--data", picture_folder, "--epochs", 1, "--out", tmp_path / "out")


def test_the_demo_takes_train_and_val_as_they_are_divided(tmp_path, photos):
    text = joined(run("demo", "--data", photos, "--epochs", 1, "--out", tmp_path / "out"))

    assert "625 pictures to train on and 125 to measure with (the folders train/ and val/)" in text


@pytest.mark.parametrize("what", ["missing", "a file", "empty", "no classes"])
def test_the_demo_says_what_is_wrong_with_a_folder(tmp_path, what):
    path = tmp_path / "data"
    if what == "a file":
        path.write_text("")
    elif what != "missing":
        path.mkdir()
    if what == "no classes":
        Image.new("RGB", (9, 9)).save(path / "a.png")

    assert str(path) in run("demo", "--data", path, "--out", tmp_path / "out", code=2).replace("\n", "")


def test_the_drawn_set_is_what_it_says_and_is_drawn_once(tmp_path):
    assert draw_pictures(tmp_path / "set", count=400)
    assert not draw_pictures(tmp_path / "set", count=400)
    files = sorted((tmp_path / "set").glob("*/*"))

    assert [folder.name for folder in sorted((tmp_path / "set").glob("*/"))] == list(CLASSES)
    assert len(files) == 400 and {file.suffix for file in files} == {".jpg", ".png"}
    assert {_mode(file) for file in files} == {"L", "RGB"}
    files[0].unlink()
    with pytest.raises(FormatError, match="not the complete set"):
        draw_pictures(tmp_path / "set", count=400)


def test_inspect_describes_a_folder_and_draws_it(tmp_path, picture_folder):
    text = joined(run("inspect", picture_folder, "--image", tmp_path / "sheet.png"))

    assert "records 42" in text and "image (image), label (int)" in text
    assert "21 jpeg" in text and "12 png" in text and "3 webp" in text
    assert "0 discs 14" in text
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000


def test_inspect_names_the_files_that_cannot_be_read(tmp_path):
    (tmp_path / "good.png").write_bytes(b"")
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    (tmp_path / "bad[1].jpg").write_bytes(b"no picture")
    text = joined(run("inspect", tmp_path))

    assert "unreadable 1 of 2" in text and "bad[1].jpg: no picture format begins with" in text


def test_inspect_says_what_it_tried(tmp_path):
    assert "imagefolder: there is no such path" in run("inspect", tmp_path / "nowhere", code=2)


def test_doctor_names_versions_backends_and_limits():
    text = joined(run("doctor"))

    for name in ("torchslip", "torchvision", "decoder torchvision available", "cores", "memory", "GPU"):
        assert name in text


def test_the_memory_limit_is_the_smallest_on_the_way_up(tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    (two / "jobs" / "mine").mkdir(parents=True)
    (two / "jobs" / "memory.max").write_text("2000\n")
    (two / "jobs" / "mine" / "memory.max").write_text("max\n")
    (tmp_path / "member2").write_text("0::/jobs/mine\n")
    (one / "memory" / "mine").mkdir(parents=True)
    (one / "memory" / "memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")
    (one / "memory" / "mine" / "memory.limit_in_bytes").write_text("3000\n")
    (tmp_path / "member1").write_text("5:cpu,cpuacct:/mine\n4:memory:/mine\n")

    assert memory_limit_bytes(two, tmp_path / "member2") == 2000
    assert memory_limit_bytes(one, tmp_path / "member1") == 3000
    assert memory_limit_bytes(tmp_path, tmp_path / "nothing") is None


def test_a_training_process_that_fails_ends_the_demo_with_its_words(tmp_path, picture_folder):
    plan = {"data": str(tmp_path / "gone"), "limit": 9, "epochs": 1, "stop_epoch": 0, "stop_batch": 1,
            "state": "s", "resume": False, "sheet": "b.png", "workers": 0}  # fmt: skip
    command = [sys.executable, "-m", "torchslip.cli._demo_training", json.dumps(plan)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)

    assert done.returncode == 1
    assert "no such folder" in json.loads(done.stdout)["text"]


@pytest.mark.parametrize(
    ("name", "words"), [("sheet.txt", "Use .png or .jpg"), ("no/such/sheet.png", "no such folder")]
)
def test_inspect_refuses_a_sheet_that_it_cannot_write_before_it_begins(picture_folder, tmp_path, name, words):
    assert words in joined(run("inspect", picture_folder, "--image", tmp_path / name, code=2))


def test_inspect_finds_a_file_that_was_cut_short(tmp_path, picture_folder):
    whole = next(picture_folder.glob("*/*baseline.jpg")).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "whole.jpg").write_bytes(whole)

    assert "unreadable 1 of 2" in joined(run("inspect", tmp_path))
