"""Chains, choices and views; what they compute together, and where that shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from augment_registry import ids, one_thread, pictures  # noqa: F401

import torchslip as ts
from torchslip import augment as A

FLOATS = pictures(dtype=torch.float32)
MUTED = FLOATS * 0.4 + 0.3


def both(transforms, images):
    return [A.Compose(transforms, fuse=fuse)(images, ids()) for fuse in (True, False)]


@pytest.mark.parametrize("graph", [False, True])
def test_fused_colors_equal_the_unfused_where_nothing_is_clipped(graph):
    colors = [A.Brightness(0.1), A.Contrast(0.1), A.RandomGrayscale(), A.ColorJitterYIQ(0.1, 0.1, 0.1, 0.1, p=0.5)]
    images = MUTED.clone().requires_grad_(graph)
    for chain in (colors, [*colors, A.Normalize()], [A.Saturation(0.2, p=0.5), A.Invert(), A.Contrast(0.3, p=0.5)]):
        fused, unfused = both(chain, images)
        assert torch.allclose(fused, unfused, atol=1e-5)


def test_fused_colors_are_clipped_before_they_are_normalized():
    chain = A.Compose([A.Brightness((3.0, 3.0)), A.Contrast((2.0, 2.0)), A.Normalize((0.5,) * 3, (0.5,) * 3)])
    out = chain(FLOATS, ids())
    assert out.min() >= -1.0001
    assert out.max() <= 1.0001


def test_fused_geometry_equals_the_unfused_for_smooth_images_away_from_the_border():
    y, x = torch.meshgrid(torch.linspace(0, 1, 80), torch.linspace(0, 1, 80), indexing="ij")
    smooth = torch.stack((x, y, (x + y) / 2)).expand(6, 3, 80, 80)
    fused, unfused = both([A.HorizontalFlip(), A.Rotate(15), A.Zoom((0.8, 0.9)), A.Affine(5, shear=5, p=0.5)], smooth)
    assert (fused - unfused).abs()[:, :, 25:55, 25:55].max() < 2e-3


def test_flips_in_fused_geometry_are_exact_where_nothing_else_is_applied():
    out, params = A.Compose([A.HorizontalFlip(), A.Rotate(p=0)])(FLOATS, ids(), return_params=True)
    flipped = params["HorizontalFlip/applied"][:, None, None, None]
    assert torch.allclose(out, torch.where(flipped, FLOATS.flip(3), FLOATS), atol=1e-4)


def test_geometry_with_other_borders_is_not_fused():
    apart = [A.Rotate(40, padding="zeros"), A.Rotate(40, padding="border")]
    assert torch.equal(*both(apart, FLOATS))


def test_bytes_are_rounded_once_in_a_fused_chain_and_differ_little():
    chain = [A.ColorJitter(0.2, 0.2, 0.2, 0.05), A.GaussianBlur(5), A.Brightness(0.1), A.Solarize(p=0)]
    fused, unfused = both(chain, pictures())
    assert fused.dtype == unfused.dtype == torch.uint8
    assert (fused.int() - unfused.int()).abs().max() <= 3


def test_the_usual_chain_on_a_batch_of_the_loader(picture_folder):
    dataset = ts.ImageDataset(picture_folder, views=ts.RandomResizedCrop(32), batch_size=8, seed=3)
    jitter = ts.augment.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)
    chain = ts.augment.Compose([ts.augment.HorizontalFlip(), jitter, ts.augment.Normalize()], seed=17)
    for batch in ts.DataLoader(dataset):
        out = chain(batch)
        assert out["image"].shape == (len(batch["sample_id"]), 3, 32, 32)
        assert out["image"].dtype == torch.float32
        assert batch["image"].dtype == torch.uint8
        assert torch.equal(out["image"], chain(batch["image"], batch["sample_id"]))


def test_the_epoch_comes_from_the_call_or_the_batch_or_set_epoch():
    chain = A.Compose([A.Brightness()])
    batch = {"image": FLOATS, "sample_id": ids()}
    expected = chain(batch, epoch=5)["image"]
    assert torch.equal(chain(batch | {"epoch": 5})["image"], expected)
    assert torch.equal(chain(batch | {"epoch": torch.full((6,), 5)})["image"], expected)
    assert torch.equal(chain(batch | {"epoch": 2}, epoch=5)["image"], expected)
    chain.set_epoch(5)
    assert torch.equal(chain(batch)["image"], expected)


def test_random_apply_leaves_the_other_images_as_they_are():
    out, params = A.RandomApply([A.Invert(p=1), A.GaussianBlur(5)], 0.5)(pictures(), ids(), return_params=True)
    assert 0 < params["applied"].sum() < 6
    for row in range(6):
        assert torch.equal(out[row], pictures()[row]) != params["applied"][row]


def test_one_of_applies_what_it_chose():
    choice = A.OneOf([A.Invert(p=1), A.VerticalFlip(p=1), A.HorizontalFlip(p=1)], [1, 1, 2])
    out, params = choice(pictures(), ids(), return_params=True)
    expected = (255 - pictures(), pictures().flip(2), pictures().flip(3))
    assert all(torch.equal(out[row], expected[params["choice"][row]][row]) for row in range(6))


def test_one_of_chooses_by_weight():
    drawn = A.OneOf([A.Invert(), A.Invert(), A.Invert()], [1, 0, 3]).sample(torch.arange(20_000))["choice"]
    shares = torch.bincount(drawn, minlength=3) / 20_000
    assert torch.allclose(shares, torch.tensor([0.25, 0.0, 0.75]), atol=0.015)


def test_what_changes_the_type_cannot_be_applied_to_some_images():
    with pytest.raises(ValueError, match="Put ToFloat and Normalize outside"):
        A.RandomApply([A.Normalize()], 0.5)(pictures(), ids())


def test_mixing_cannot_stand_in_a_chain():
    with pytest.raises(TypeError, match="Mixup needs the whole batch"):
        A.Compose([A.Mixup()])


def test_views_are_augmented_each_by_its_own_chain_and_name():
    chain = A.Compose([A.Brightness()])
    augment = A.MultiView({"global_0": chain, "global_1": chain, "local_0": A.Normalize()}, seed=3)
    batch = {"global_0": FLOATS, "global_1": FLOATS, "local_0": pictures(6, 9, 9), "sample_id": ids(), "label": 1}
    out, params = augment(batch, epoch=2, return_params=True)
    assert torch.equal(out["global_0"], chain(FLOATS, ids(), epoch=2, view="global_0", seed=3))
    assert not torch.equal(out["global_0"], out["global_1"])
    assert out["local_0"].dtype == torch.float32
    assert out["label"] == 1
    assert torch.equal(augment.apply(batch, params)["global_1"], out["global_1"])


def test_views_compile_without_a_break_in_the_graph():
    torch._dynamo.reset()
    chain = A.Compose([A.HorizontalFlip(), A.Brightness(), A.Normalize()])
    augment = A.MultiView({"a": chain, "b": chain}, source="image")
    batch = {"image": pictures(), "sample_id": ids()}
    compiled = torch.compile(augment, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(batch, epoch=2)["b"], augment(batch, epoch=2)["b"], atol=1e-5)


def test_views_of_one_entry_and_yoked_chains():
    yoked = A.Compose([A.Brightness()], seed=9)
    augment = A.MultiView({"a": yoked, "b": yoked, "c": A.Compose([A.Brightness()])}, source="image", seed=3)
    out = augment({"image": FLOATS, "sample_id": ids()})
    assert torch.equal(out["a"], out["b"])
    assert not torch.equal(out["a"], out["c"])


def test_a_missing_view_is_named():
    with pytest.raises(ValueError, match=r"needs batch\['local_0'\]"):
        A.MultiView({"local_0": A.Normalize()})({"image": FLOATS, "sample_id": ids()})
    with pytest.raises(ValueError, match="MultiView"):
        A.Normalize()({"global_0": FLOATS, "sample_id": ids()})


def test_parameters_go_into_the_batch_and_replay_on_masks():
    chain = A.Compose([A.HorizontalFlip(), A.RandomApply([A.VerticalFlip()], 0.5)])
    batch, params = chain({"image": pictures(), "sample_id": ids()}, return_params=True)
    batch |= {f"image/{key}": values for key, values in params.items()}
    assert all(len(values) == 6 for values in batch.values())
    masks = pictures()[:, :1]
    assert torch.equal(chain.apply(masks, params), batch["image"][:, :1])


def test_apply_with_a_function_is_that_of_modules():
    seen = []
    A.Compose([A.Brightness(), A.Invert()]).apply(lambda module: seen.append(type(module).__name__))
    assert seen == ["Brightness", "Invert", "ModuleList", "Compose"]


def test_the_examples_of_the_page_run(tmp_path, picture_folder):
    page = Path(__file__).parents[1] / "docs" / "augment.md"
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(picture_folder)
    command = [sys.executable, "-W", "error", "-c", code + "\nprint(batch['image'].dtype)"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.float32"
