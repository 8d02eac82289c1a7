"""`torchslip run` and `torchslip show`: every recipe trains on real batches, and can be looked at."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import torchslip as ts
from torchslip.cli._app import app

QUICK = ("--steps", 2, "--size", 32, "--batch-size", 6, "--workers", 0, "--device", "cpu")


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors on two threads take twenty times as long when other processes have the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(*arguments):
    """Runs a command in this process; what it raises is raised here."""
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("name", ts.recipes.names())
def test_every_recipe_trains_and_shows_its_views(picture_folder, tmp_path, name):
    text = run("run", name, "--data", picture_folder, *QUICK, "--out", tmp_path)
    report = json.loads((tmp_path / "run.json").read_text())

    assert report["steps"] == 2 and report["images"] == 6
    assert 0 < report["final_loss"] < 1000 and report["images_per_second"] > 0
    assert "waiting for data" in text
    assert {path.stem for path in tmp_path.glob("*.png")} == set(ts.recipes.load(name).views)
