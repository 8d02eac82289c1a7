"""`torchslip pack`, `verify` and `stats` as a newcomer runs them, without a terminal."""

import re
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from PIL import Image

import torchslip as ts
from torchslip.cli import main

COMMAND = [sys.executable, "-W", "error", "-m", "torchslip.cli"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """The command line in a folder of its own; returns what it says, on standard error where it fails."""
    monkeypatch.chdir(tmp_path)

    def run_here(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["torchslip", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == code, said
        return re.sub(r"[\s│]+", " ", said.err if code == 2 else said.out)

    return run_here


def test_a_folder_is_packed_verified_measured_and_used(run, tmp_path, picture_folder):
    text = run("pack", picture_folder, tmp_path / "out", "--shorter", 48, "--statistics", "--workers", 2)
    assert "samples 42" in text and "skipped none" in text and "ts.ImageDataset(" in text
    assert "whole (42 samples; checked: all hashes" in run("verify", tmp_path / "out")
    assert "0 discs 14" in run("inspect", tmp_path / "out")

    text = run("stats", tmp_path / "out", "--image", tmp_path / "stats.png")
    mean = ts.MDS(tmp_path / "out").sidecar.statistics["image"]["mean"]
    assert "v2.Normalize(mean=[" + ", ".join(f"{each:.4f}" for each in mean) in text
    with Image.open(tmp_path / "stats.png") as plot:
        assert plot.width > 1000 and np.asarray(plot.convert("L")).std() > 10


def test_a_bad_picture_stops_or_is_skipped_and_listed(run, tmp_path, picture_folder):
    whole = next(picture_folder.glob("*/*baseline.jpg")).read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a[1].jpg").write_bytes(whole[:-50])
    (tmp_path / "in" / "b.jpg").write_bytes(whole)

    assert "Sample 0 cannot be packed: in/a[1].jpg: " in run("pack", "in", "out", code=2)
    text = run("pack", "in", "out", "--on-error", "skip")
    assert "samples 1" in text and "skipped: in/a[1].jpg: " in text
    assert "bad: in/a[1].jpg, sample 0: " in run("verify", "in", code=1)
    assert "1 unreadable" in run("stats", "in")


def test_verify_ends_with_code_1_and_names_what_is_bad(run, tmp_path, picture_folder):
    run("pack", picture_folder, "out")
    (tmp_path / "out" / "shard.00000.mds").write_bytes(b"cut")

    text = run("verify", "out", code=1)
    assert "bad: out/shard.00000.mds: The file has 3 bytes" in text and "1 problem (42 samples" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pack", "nowhere", "out"], "no such path"),
        (["pack", "photos", "out", "--compression", "lz4"], "There is no compression 'lz4'"),
        (["pack", "photos", "out", "--hash", "crc"], "There is no hash algorithm 'crc'"),
        (["pack", "photos", "out", "--shard-bytes", "9gb"], "shard_bytes must be"),
        (["pack", "photos", "out", "--shorter", "0"], "shorter must be at least 1 pixel"),
        (["pack", "photos", "out", "--quality", "80"], "add --shorter or --longer-max"),
        (["pack", "photos", "out", "--shorter", "9", "--image", "jpeg"], "cannot be combined"),
        (["pack", "photos", "photos/out"], "inside its own source"),
        (["pack", "photos", "taken"], "There are already files"),
        (["pack", "photos", "taken/file"], "Not a directory"),
        (["verify", "nowhere"], "no such path"),
        (["stats", "nowhere"], "no such path"),
        (["stats", "photos", "--image", "plot.txt"], "Use .png or .jpg"),
    ],
)
def test_what_the_user_can_mend_is_told_in_words_with_code_2(run, tmp_path, arguments, words):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")

    assert words in run(*arguments, code=2)


def test_another_dataset_is_replaced_only_with_replace(run, tmp_path, picture_folder):
    run("pack", picture_folder, tmp_path / "out")
    assert "--replace" in run("pack", picture_folder, tmp_path / "out", "--hash", "md5", code=2)
    run("pack", picture_folder, tmp_path / "out", "--hash", "md5", "--hash", "sha256", "--replace")

    assert ts.MDS(tmp_path / "out").sidecar.packed["hashes"] == ["md5", "sha256"]


def start(tmp_path, *command):
    """A command that is packing in a process of its own."""
    process = subprocess.Popen([*COMMAND, *map(str, command)], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not (tmp_path / "out" / ".torchslip-packing-00003").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)
    return process


def test_an_interrupted_command_says_so_and_goes_on_where_it_stopped(run, tmp_path, picture_folder):
    options = ["--shard-bytes", "1kb", "--statistics"]
    process = start(tmp_path, "pack", picture_folder, "out", *options)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130 and errors == "Interrupted; the same command goes on where it stopped.\n"
    assert "of these before" in run("pack", picture_folder, "out", *options)
    run("pack", picture_folder, "whole", *options)
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("out", "whole")]
    assert contents[0] == contents[1]


def test_the_workers_of_a_command_that_is_killed_end_too(tmp_path, picture_folder):
    process = start(tmp_path, "pack", picture_folder, "out", "--shard-bytes", "1kb", "--workers", 1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=60)

    assert children
    assert not psutil.wait_procs(children, timeout=60)[1]
