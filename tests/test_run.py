"""`torchslip run` and `torchslip show`: every recipe trains on real batches, and can be looked at."""

from __future__ import annotations

import json
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import torchslip as ts
from torchslip.cli import _losses as losses
from torchslip.cli import main
from torchslip.cli._app import app
from torchslip.cli._recipe_training import RecipeTraining

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


OWN = """\
paper: ours
parameters: ours
differences: []
batch_size: 8
views:
  left:
    crop: {RandomResizedCrop: {size: 40, scale: [0.3, 0.6], seed: 1}}
    augment: [ToFloat]
  right:
    crop: {RandomResizedCrop: {size: 40, scale: [0.3, 0.6], seed: 1}}
    augment: [ToFloat, RGBToLGN]
  small:
    crop: {RandomResizedCrop: {size: 16, scale: [0.1, 0.2]}}
    augment: [Normalize]
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.yaml").write_text(OWN)
    return tmp_path / "own.yaml"


def losses_of(name, folder, first=24):
    """Of the first steps of a training that has 24."""
    recipe = ts.recipes.load(name, batch_size=14).resized(28)
    training = RecipeTraining(recipe, ts.open(folder), steps=24, device=torch.device("cpu"), learning_rate=3e-3)
    return [step.loss for step in islice(training.run(), first)]


@pytest.mark.parametrize("name", ["simclr", "supervised", "mae"])
def test_a_training_learns_and_comes_again(picture_folder, name):
    values = losses_of(name, picture_folder)

    assert np.mean(values[-6:]) < 0.93 * np.mean(values[:3])
    assert losses_of(name, picture_folder, 3) == pytest.approx(values[:3], rel=1e-3)


def test_a_training_that_diverges_says_so(picture_folder):
    recipe = ts.recipes.load("supervised", batch_size=14).resized(16)
    training = RecipeTraining(
        recipe, ts.open(picture_folder), steps=9, device=torch.device("cpu"), learning_rate=float("inf")
    )
    with pytest.raises(ts.TorchslipError, match="The loss of step 2 is not a number"):
        list(training.run())


def test_values_of_a_recipe_are_overridden(picture_folder, tmp_path):
    text = run(
        "run", "swav", "--data", picture_folder, *QUICK, "--out", tmp_path, "views.small.count=1", "batch_size=5"
    )

    assert "5 in a batch, views of 2 x 32, 1 x 14 px" in " ".join(text.split())
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_a_recipe_of_ones_own_is_trained_by_a_method_of_choice(picture_folder, tmp_path, own):
    path = own.with_name("lgn.yaml")
    path.write_text(OWN.replace("augment: [ToFloat]", "augment: [RGBToLGN]").replace("[Normalize]", "[RGBToLGN]"))
    run("run", path, "--method", "lejepa", "--data", picture_folder, *QUICK, "--out", tmp_path / "out")

    assert json.loads((tmp_path / "out/run.json").read_text())["method"] == "LeJEPA"


def frames(picture, color):
    """Where the pixels of a colour are: (left, top, right, bottom)."""
    y, x = np.nonzero((np.asarray(picture) == color).all(2))
    return x.min(), y.min(), x.max(), y.max()


def test_show_draws_boxes_where_the_crops_are_and_yoked_ones_inside_each_other(picture_folder, tmp_path, own):
    text = run("show", own, "--data", picture_folder, "--count", 1, "--epoch", 2, "--out", tmp_path / "views.png")
    assert "Yoked, by the same seed: left and right" in text
    dataset = ts.recipes.load(own).dataset(
        picture_folder, batch_size=1, return_params=True, views=ts.recipes.load(own).views | {"whole": ts.Decode()}
    )
    dataset.set_epoch(2)
    batch = next(iter(dataset))
    top, left, height, width = batch["left_box"][0].tolist()
    scale = 300 / max(batch["whole"][0].shape)
    with Image.open(tmp_path / "views.png") as sheet:
        source = sheet.convert("RGB").crop((10, 36, 310, 336))

    outer, inner = frames(source, (230, 85, 0)), frames(source, (0, 114, 178))
    expected = np.array([left, top, left + width, top + height]) * scale
    assert np.abs(np.array(outer) - expected).max() <= 1.5
    assert [b - a for a, b in zip(outer, inner, strict=True)] == [3, 3, -3, -3]


@pytest.mark.parametrize("name", ["dino", "i-jepa", "supervised-fixres"])
def test_every_kind_of_recipe_can_be_shown(picture_folder, tmp_path, name):
    run("show", name, "--data", picture_folder, "--count", 2, "--out", tmp_path / "views.jpg")
    with Image.open(tmp_path / "views.jpg") as sheet:
        assert sheet.width > 500 and sheet.height > 500


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "simclear"), "There is no recipe 'simclear'. Did you mean 'simclr'?"),
        (("run", "simclr", "batch_size"), "An override is key=value, such as batch_size=64; got 'batch_size'"),
        (("run", "simclr", "batch_size=[1"), "is no YAML"),
        (("run", "simclr", "batchsize=1"), "a recipe has no key 'batchsize'"),
        (("run", "simclr", "views.*.augment.Blur.p=1"), "has no 'Blur'"),
        (("run", "simclr", "batch_size=100"), "must be from 2 to the 42 pictures"),
        (("run", "simclr", "views.view.count=1"), "SimCLR needs at least 2 views"),
        (("run", "simclr", "--method", "mae"), "MAE needs a view with a square mask"),
        (("run", "simclr", "--method", "magic"), "There is no method 'magic' to train; choose one with --method"),
        (("run", "mae", "views.image.crop.RandomResizedCrop.size=30"), "must be a multiple of the 14 patches"),
        (("run", "simclr", "--device", "warp"), "There is no device 'warp'"),
        (("show", "simclr", "--out", "views.txt"), "Use .png or .jpg"),
    ],
)
def test_what_is_wrong_is_one_line(picture_folder, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["torchslip", *arguments, "--data", str(picture_folder)])
    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_supervised_training_needs_labels(picture_folder, tmp_path):
    (tmp_path / "flat").mkdir()
    for path in sorted(picture_folder.glob("discs/*.jpg")):
        (tmp_path / "flat" / path.name).symlink_to(path)
    with pytest.raises(ts.FormatError, match="Supervised training needs labels"):
        run("run", "supervised", "--data", tmp_path / "flat", *QUICK, "--out", tmp_path / "out", "batch_size=2")


def test_contrastive_losses_are_least_for_equal_views_of_different_pictures():
    one, other = torch.eye(8), torch.eye(8).roll(1, 0)

    for loss in (losses.nt_xent, losses.contrast, losses.barlow_twins, losses.vicreg):
        assert loss(one, one) < loss(one, other)
    # Of 15 others, one is the same picture (cosine 1) and 14 have cosine 0.
    expected = -np.log(np.exp(2) / (np.exp(2) + 14))
    assert losses.nt_xent(one, one, temperature=0.5).item() == pytest.approx(expected, rel=1e-5)


def test_sinkhorn_codes_use_all_prototypes_equally():
    codes = losses.sinkhorn(torch.randn(32, 8, generator=torch.Generator().manual_seed(0)) * 0.1, rounds=50)

    torch.testing.assert_close(codes.sum(1), torch.ones(32))
    torch.testing.assert_close(codes.sum(0), torch.full((8,), 4.0))


def test_sigreg_is_least_for_a_normal_distribution():
    torch.manual_seed(0)
    normal = torch.randn(2000, 16)

    assert losses.sigreg(normal) < 2
    for other in (normal * 2, normal + 1, torch.rand(2000, 16), torch.zeros(2000, 16)):
        assert losses.sigreg(other) > 5 * losses.sigreg(normal)
