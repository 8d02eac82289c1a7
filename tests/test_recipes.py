"""Recipes: each one loads and makes batches; whatever is wrong in a file is an error that names the line."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchslip as ts

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs/recipes.md"

# Of the papers: samples per step; the sizes of the views, in pixels.
PUBLISHED = {
    "barlow-twins": (2048, [224] * 2),
    "byol": (4096, [224] * 2),
    "dino": (1024, [224] * 2 + [96] * 8),
    "i-jepa": (2048, [224]),
    "ibot": (1024, [224] * 2 + [96] * 10),
    "ipcl": (128, [224] * 5),
    "lejepa": (512, [224] * 2 + [98] * 6),
    "mae": (4096, [224]),
    "moco-v3": (4096, [224] * 2),
    "simclr": (4096, [224] * 2),
    "supervised": (256, [224]),
    "supervised-fixres": (1024, [176]),
    "swav": (4096, [224] * 2 + [96] * 6),
    "vicreg": (2048, [224] * 2),
}

OWN = """\
paper: "None"
parameters: ours
differences: []
batch_size: 8
views:
  image:
    crop:
      RandomResizedCrop: {size: 16}
    augment:
      - HorizontalFlip
      - RandomGrayscale: {p: 0.2}
      - Normalize
"""


@pytest.fixture
def own(tmp_path):
    """Writes a recipe with one part replaced, and returns its path."""

    def write(old="", new="", text=OWN):
        assert old in text
        (tmp_path / "own.yaml").write_text(text.replace(old, new, 1))
        return tmp_path / "own.yaml"

    return write


def test_every_published_recipe_is_there():
    assert ts.recipes.names() == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_makes_the_batches_of_its_paper(picture_folder, name):
    recipe = ts.recipes.load(name)
    views = recipe.prepare(next(iter(recipe.dataset(picture_folder, batch_size=2))))

    assert recipe.batch_size == PUBLISHED[name][0]
    assert [views[view].shape for view in recipe.views] == [(2, 3, size, size) for size in PUBLISHED[name][1]]
    assert all(views[view].dtype == torch.float32 and views[view].isfinite().all() for view in recipe.views)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_names_its_paper_and_evaluates(picture_folder, name):
    recipe = ts.recipes.load(name)
    batch = next(iter(recipe.evaluation.dataset(picture_folder, batch_size=2)))

    assert re.search(r"arXiv:\d{4}\.\d{5}|Nature", recipe.paper)
    assert recipe.evaluation.prepare(batch)["image"].shape == (2, 3, 224, 224)


def test_views_of_one_picture_differ_and_come_again(picture_folder):
    small = {"views.*.crop.RandomResizedCrop.size": 32, "views.*.augment.GaussianBlur.kernel_size": 3}
    recipes = [ts.recipes.load("byol", seed=seed, **small) for seed in (5, 5, 6)]
    one, two, other = (
        each.prepare(next(iter(each.dataset(picture_folder, batch_size=6, indices=range(6))))) for each in recipes
    )

    assert torch.equal(one["view_0"], two["view_0"])
    assert not torch.equal(one["view_0"], one["view_1"])
    assert one["sample_id"].tolist() != other["sample_id"].tolist()
    order = [row.argsort() for row in (one["sample_id"], other["sample_id"])]
    assert not torch.equal(one["view_0"][order[0]], other["view_0"][order[1]])


@pytest.mark.parametrize(
    ("name", "masks"),
    [
        ("mae", {"image_mask": (14, 14)}),
        ("i-jepa", {"image_context": (16, 16), "image_targets": (4, 16, 16)}),
        ("ibot", {"global_0_mask": (14, 14), "global_1_mask": (14, 14)}),
    ],
)
def test_masks_come_with_the_batch_and_change_with_the_epoch(picture_folder, name, masks):
    recipe = ts.recipes.load(name, **{"views.*.crop.RandomResizedCrop.size": 32})
    batch = next(iter(recipe.dataset(picture_folder, batch_size=8)))
    first, again, later = (recipe.prepare(batch, epoch=epoch) for epoch in (0, 0, 1))

    assert {key: tuple(first[key].shape[1:]) for key in first if key not in batch} == masks
    assert all(torch.equal(first[key], again[key]) and not torch.equal(first[key], later[key]) for key in masks)
    assert name != "mae" or first["image_mask"].sum((1, 2)).tolist() == [147] * 8


def test_labels_are_mixed_with_the_images(picture_folder):
    recipe = ts.recipes.load("supervised-fixres", **{"mix.MixupOrCutMix.num_classes": 3})
    labels = recipe.prepare(next(iter(recipe.dataset(picture_folder, batch_size=8))))["label"]

    assert labels.shape == (8, 3)
    torch.testing.assert_close(labels.sum(1), torch.ones(8))
    assert (labels.amax(1) < 1).any()


def test_the_batch_size_is_divided_over_the_ranks(picture_folder):
    recipe = ts.recipes.load("supervised", batch_size=12)

    assert recipe.dataset(picture_folder, rank=0, world_size=4).batch_size == 3
    assert recipe.dataset(picture_folder).batch_size == 12
    with pytest.raises(ValueError, match="12, cannot be divided over 5 ranks"):
        recipe.dataset(picture_folder, rank=0, world_size=5)


def test_a_recipe_is_resized_in_proportion():
    small = ts.recipes.load("dino").resized(56)

    assert {view.size for view in small.views.values()} == {56, 24}
    assert small.evaluation.views["image"] == ts.ResizeCrop(64, 56)
    assert small.augment.views["global_0"][3].kernel_size == 5 and small.augment.views["global_0"][3].sigma[1] == 0.5
    assert ts.recipes.load("dino").augment.views["global_0"][3].kernel_size == 23


@pytest.mark.parametrize(("name", "sizes"), [("mae", {28}), ("i-jepa", {32}), ("ibot", {28, 12})])
def test_a_recipe_with_masks_is_resized_to_whole_patches(name, sizes):
    assert {view.size for view in ts.recipes.load(name).resized(32).views.values()} == sizes


def test_a_recipe_that_cannot_be_resized_says_why():
    with pytest.raises(ValueError, match="Only views that have a size"):
        dataclasses.replace(ts.recipes.load("mae"), views={"image": ts.Decode()}).resized(8)
    with pytest.raises(ValueError, match="positive number of pixels; got 0"):
        ts.recipes.load("simclr").resized(0)


def test_overrides_reach_single_values_and_all_of_a_level(own):
    path = own()

    assert ts.recipes.load(path, batch_size=3).batch_size == 3
    assert ts.recipes.load(path, **{"views.image.crop.RandomResizedCrop.size": 8}).views["image"].size == 8
    flips = [
        ts.recipes.load(path, **{key: 0.25}).augment.views["image"]
        for key in ("views.*.augment.HorizontalFlip.p", "views.image.augment.0.p")
    ]
    assert all("p=0.25" in repr(chain) for chain in flips)


def test_two_views_may_be_yoked(picture_folder, own):
    path = own(
        "crop:\n      RandomResizedCrop: {size: 16}", "count: 2\n    crop: {RandomResizedCrop: {size: 16, seed: 1}}"
    )
    batch = next(iter(ts.recipes.load(path).dataset(picture_folder)))

    assert torch.equal(batch["image_0"], batch["image_1"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size: 8", "batch_size: 0", r"line 4: batch_size must be an integer, 1 or more; got 0"),
        ("batch_size: 8", "batch_size: true", r"line 4: batch_size must be an integer"),
        ("batch_size: 8", "batch_size: 8\nsize: 3", r"line 5: a recipe has no key 'size'; it has paper"),
        ('paper: "None"\n', "", r"line 1: a recipe needs the key 'paper'"),
        ("batch_size: 8", "batch_size:", r"line 4: batch_size of a recipe has no value"),
        ("    crop:", "    counts: 2\n    crop:", r"line 7: a view has no key 'counts'"),
        ("    crop:", "    count: 0\n    crop:", r"line 7: count must be an integer, 1 or more"),
        ("batch_size: 8", "batch_size: 8\nseed: -1", r"line 5: seed must be an integer, 0 or more; got -1"),
        ("    crop:", "    mask: JEPA\n    crop:", r"line 7: there is no mask 'JEPA'; there are BlockMask"),
        ("views:\n  image:", "mix: CutMix\nviews:\n  left:", r"line 5: mix needs one view with the name 'image'"),
        ("RandomResizedCrop", "RandomCrop", r"line 8: there is no crop 'RandomCrop'; there are CenterCrop"),
        ("size: 16", "size: 16, scales: [1, 2]", r"line 8: RandomResizedCrop has no argument 'scales'; it has size"),
        ("size: 16", "size: 16, scale: [0.5, 2]", r"line 8: RandomResizedCrop: scale is a share"),
        ("size: 16", "size: -1", r"line 8: RandomResizedCrop: "),
        ("size: 16", "scale: [0.5, 1]", r"line 8: RandomResizedCrop: .*missing.*'size'"),
        ("- HorizontalFlip", "- Flip", r"line 10: there is no transform 'Flip'"),
        ("p: 0.2", "p: 1.2", r"line 11: RandomGrayscale: p must be a probability, from 0 to 1; got 1.2"),
        ("p: 0.2", "p: often", r"line 11: RandomGrayscale: "),
        ("- Normalize", "- Normalize: {dtype: int8}", r"line 12: dtype must be one of"),
        ("- Normalize", "- {Normalize: {}, ToFloat: {}}", r"line 12: a transform is one name with its arguments"),
        ("      - Horiz", "      Horiz", r"own\.yaml, line "),
        ("batch_size: 8", "batch_size: 8\nbatch_size: 9", r"line 5: the key 'batch_size' is there twice"),
        ("views:", "views: !!python/name:os.system", r"line 5: a recipe is plain data"),
        ("{size: 16}", "&a {size: 16, ratio: *a}", r"own\.yaml, line 8"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(own, old, new, message):
    with pytest.raises(ts.FormatError, match=message):
        ts.recipes.load(own(old, new))


def test_values_are_not_shared_by_aliases(own):
    path = own("{size: 16}", "&crop {size: 16}\n    other: *crop")

    with pytest.raises(ts.FormatError, match="line 9: a recipe has no aliases"):
        ts.recipes.load(path)


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("batch", 3, ts.FormatError, "override batch: a recipe has no key 'batch'"),
        ("batch_size", "many", ts.FormatError, "override batch_size: batch_size must be an integer"),
        ("views.left.crop.CenterCrop.size", 3, ValueError, "views has no 'left'; it has image"),
        ("views.image.augment.Solar.p", 3, ValueError, "views.image.augment has no 'Solar'; it has HorizontalFlip"),
        ("views.image.augment.RandomGrayscale.p", 3, ts.FormatError, "p must be a probability"),
    ],
)
def test_an_override_that_is_wrong_is_named(own, key, value, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ts.recipes.load(own(), **{key: value})


def test_an_unknown_recipe_says_which_there_are(tmp_path):
    with pytest.raises(ts.FormatError, match=r"no recipe 'simclear'. Did you mean 'simclr'\? There are barlow-twins"):
        ts.recipes.load("simclear")
    with pytest.raises(ts.FormatError, match="There is no recipe at"):
        ts.recipes.load(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ts.FormatError, match="empty"):
        ts.recipes.load(tmp_path / "empty.yaml")


def test_an_installed_package_has_the_recipes(tmp_path):
    pytest.importorskip("hatchling")
    # Without a compiler, to be quick: the kernel has tests of its own.
    environment = os.environ | {"CC": "no-such-compiler"}
    options = {"cwd": ROOT, "env": environment, "check": True, "capture_output": True, "timeout": 120}
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], **options)
    (wheel,) = tmp_path.glob("*.whl")
    code = "import torchslip as ts; print(ts.__file__, [ts.recipes.load(name).name for name in ts.recipes.names()])"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "installed"], **options)
    done = subprocess.run(
        [sys.executable, "-c", code],
        **(options | {"cwd": tmp_path, "env": environment | {"PYTHONPATH": str(tmp_path / "installed")}}),
    )

    assert str(tmp_path) in done.stdout.decode()
    assert str(sorted(PUBLISHED)) in done.stdout.decode()


def test_the_documentation_lists_every_recipe_and_its_examples_run(tmp_path, picture_folder, monkeypatch):
    text = DOCS.read_text()
    assert set(PUBLISHED) <= set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train").symlink_to(picture_folder)
    (tmp_path / "own.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    monkeypatch.chdir(tmp_path)

    for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        # Four pictures are enough to see that it runs.
        exec(example.replace("batch_size=32", "batch_size=2").replace('train"', 'train", indices=range(4)'), {})
