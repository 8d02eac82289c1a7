"""Rectangles, canvases, noise, the retina, mixing and patch masks."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from augment_registry import ids, one_thread, pictures  # noqa: F401

from torchslip import augment as A

FLOATS = pictures(dtype=torch.float32)
MANY = torch.arange(4000)


def test_erasing_overwrites_one_rectangle_of_the_drawn_area():
    erase = A.RandomErasing((0.1, 0.3), value=0.0, p=1)
    out, params = erase(FLOATS * 0 + 1, ids(), return_params=True)
    erased = out[:, 0] == 0
    for mask, area in zip(erased, params["area"], strict=True):
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == rows * columns
        assert abs(mask.float().mean() - area) < 0.05


@pytest.mark.parametrize(("distribution", "mean", "std"), [("uniform", 0.5, 12**-0.5), ("normal", 0.0, 1.0)])
def test_erasing_with_noise_draws_every_pixel(distribution, mean, std):
    erase = A.RandomErasing((1, 1), (1, 1), fill="noise", distribution=distribution, p=1)
    out = erase(torch.zeros(2, 3, 64, 64), ids(2))
    assert abs(out.mean() - mean) < 0.02
    assert abs(out.std() - std) < 0.02
    assert torch.corrcoef(out.flatten(1)).fill_diagonal_(0).abs().max() < 0.03


def test_patch_shuffle_only_moves_cells():
    images = pictures(6, 32, 48)
    out, params = A.PatchShuffle((2, 4), p=1)(images, ids(), return_params=True)
    for before, after, choice in zip(images, out, params["choice"], strict=True):
        tall, wide = ((16, 24), (8, 12))[choice]
        grids = [x.unfold(1, tall, tall).unfold(2, wide, wide) for x in (before, after)]
        cells = [grid.permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1).numpy() for grid in grids]
        assert sorted(map(bytes, cells[0])) == sorted(map(bytes, cells[1]))
    assert not torch.equal(images, out)


def test_every_permutation_of_cells_comes():
    rank = A.PatchShuffle(2, p=1).sample(MANY)["rank"]
    counts = rank[:, :4].argsort(1).unique(dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert (counts - 4000 / 24).abs().max() < 60


def test_embedding_shows_the_picture_at_its_place():
    out, params = A.Embed((50, 70), x=(0, 1), y=(0, 1), fill=0.2, alpha=True)(pictures(), ids(), return_params=True)
    for image, canvas, place in zip(pictures(), out, params["place"], strict=True):
        left, top = (place * torch.tensor([70 - 46, 50 - 33])).round().int().tolist()
        assert torch.equal(canvas[:3, top : top + 33, left : left + 46], image)
        assert canvas[3].sum() == 255 * 33 * 46
        assert (canvas[:3, canvas[3] == 0] == 51).all()


def test_embedding_at_listed_places_on_a_smaller_canvas_crops():
    out = A.Embed((10, 12), places=((0.0, 1.0),))(pictures(), ids())
    assert torch.equal(out, pictures()[:, :, -10:, :12])


def test_rgba_is_blended_by_alpha():
    alpha = torch.rand(6, 1, 33, 46)
    out = A.BackgroundBlend("constant", fill=(0.1, 0.2, 0.3))(torch.cat((FLOATS, alpha), 1), ids())
    background = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    assert torch.allclose(out, FLOATS * alpha + background * (1 - alpha), atol=1e-6)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_noise_has_the_spectrum_of_its_exponent(exponent):
    keys = torch.arange(60).view(30, 2)
    field = A.power_law_noise(keys, torch.full((30,), exponent), 1, 128, 128)
    power = torch.fft.rfft2(field).abs().square().mean((0, 1))
    frequency = (torch.fft.fftfreq(128)[:, None] ** 2 + torch.fft.rfftfreq(128) ** 2).sqrt()
    inside = (frequency > 0.03) & (frequency < 0.4)
    slope = np.polyfit(frequency[inside].log().numpy(), power[inside].log().numpy(), 1)[0]
    assert abs(slope + exponent) < 0.1
    assert torch.allclose(field.std((2, 3)), torch.ones(30, 1), atol=1e-3)


def test_the_mask_shows_a_disc():
    out = A.CircularMask(0.4, edge=0.1, fill=0.5)(torch.ones(1, 3, 100, 140))[0, 0]
    y, x = torch.meshgrid(torch.arange(100) - 49.5, torch.arange(140) - 69.5, indexing="ij")
    distance = (x**2 + y**2).sqrt() / 100
    assert (out[distance < 0.3] == 1).all()
    assert (out[distance > 0.4] == 0.5).all()
    assert out[(distance - 0.35).abs() < 0.004].sub(0.75).abs().max() < 0.05


def test_white_is_one_for_every_cone_and_nothing_for_opponent_cells():
    white = torch.full((1, 3, 40, 40), 255, dtype=torch.uint8)
    assert torch.allclose(A.SRGBToLMS()(white), torch.ones(1, 3, 40, 40), atol=1e-5)
    assert A.RGBToLGN()(white).abs().max() < 1e-4


def test_cones_respond_as_cat02_says():
    # Of sRGB (0.5, 0.2, 0.8), by the matrices of IEC 61966-2-1 and CIECAM02 in double precision.
    linear = np.array([((v + 0.055) / 1.055) ** 2.4 for v in (0.5, 0.2, 0.8)])
    xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    cat02 = np.array([[0.7328, 0.4296, -0.1624], [-0.7036, 1.6975, 0.0061], [0.003, 0.0136, 0.9834]])
    expected = (cat02 @ xyz @ linear) / (cat02 @ xyz @ np.ones(3))
    out = A.SRGBToLMS()(torch.tensor([0.5, 0.2, 0.8]).view(1, 3, 1, 1)).flatten()
    assert np.allclose(out.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("cells", "center", "surround", "sigmas"),
    [
        (A.LMSToParvo(), lambda x: x[:, :2], lambda x: x[:, [1, 0]], (1.5, 5.0)),
        (A.LMSToMagno(), lambda x: x[:, :2].mean(1, True), lambda x: x[:, :2].mean(1, True), (2.5, 5.0)),
        (A.LMSToKonio(), lambda x: x[:, 2:], lambda x: x[:, :2].mean(1, True), (2.5, 6.5)),
    ],
)
def test_cells_respond_to_the_difference_of_gaussians(cells, center, surround, sigmas):
    smooth = []
    for part, sigma in zip((center, surround), sigmas, strict=True):
        options = {"mode": "mirror", "radius": (0, 0, *[int(np.ceil(3 * sigma))] * 2)}
        smooth.append(scipy.ndimage.gaussian_filter(part(FLOATS).numpy(), (0, 0, sigma, sigma), **options))
    out = cells(FLOATS)
    assert np.allclose(out[:, : smooth[0].shape[1]].numpy(), smooth[0] - smooth[1], atol=1e-5)


def test_the_lgn_has_five_rectified_channels():
    lms = A.SRGBToLMS()(FLOATS)
    parts = torch.cat([kind(rectify="relu")(lms) for kind in (A.LMSToParvo, A.LMSToMagno, A.LMSToKonio)], 1)
    assert torch.equal(A.RGBToLGN()(FLOATS), parts)
    assert torch.equal(A.RGBToMagno()(FLOATS), parts[:, 2:4])


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 4.0])
def test_weights_have_the_beta_distribution(alpha):
    weights = A.Mixup(alpha).sample(MANY)["weight"].double().numpy()
    # Float32 rounds weights next to 1 up to it.
    inner = weights[(weights > 1e-6) & (weights < 1 - 1e-6)]
    law = scipy.stats.beta(alpha, alpha)
    share = law.cdf(1 - 1e-6) - law.cdf(1e-6)
    assert abs(len(inner) / 4000 - share) < 0.03
    assert scipy.stats.kstest(inner, lambda x: (law.cdf(x) - law.cdf(1e-6)) / share).pvalue > 1e-3


@pytest.mark.parametrize("count", [1, 5, 6])
def test_mixup_adds_images_and_labels_by_their_weight(count):
    batch = {"image": FLOATS[:count], "label": torch.arange(count), "sample_id": ids(count)}
    out, params = A.Mixup(0.8, num_classes=7)(batch, return_params=True)
    weight = params["weight"][:, None, None, None]
    assert torch.allclose(out["image"], FLOATS[:count] * weight + FLOATS[:count].roll(-1, 0) * (1 - weight), atol=1e-6)
    own, weight = torch.eye(7)[:count], params["weight"][:, None]
    assert torch.allclose(out["label"], own * weight + own.roll(-1, 0) * (1 - weight), atol=1e-6)


def test_cutmix_weighs_labels_by_the_pixels_that_remain():
    plain = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 31, 45)
    batch = {"image": plain / 6, "label": torch.arange(6), "sample_id": ids()}
    out = A.CutMix()(batch)
    own = (out["image"] == batch["image"]).double().mean((1, 2, 3))
    assert torch.allclose(out["label_weight"].double(), own, atol=1e-6)
    assert out["label_partner"].tolist() == [1, 2, 3, 4, 5, 0]
    assert torch.equal(out["label"], batch["label"])


def test_smoothed_labels_sum_to_one():
    batch = {"image": pictures(), "label": torch.arange(6), "sample_id": ids()}
    labels = A.MixupOrCutMix(num_classes=10, label_smoothing=0.1)(batch)["label"]
    assert torch.allclose(labels.sum(1), torch.ones(6))
    assert torch.allclose(labels.min(1).values, torch.full((6,), 0.01))


def test_both_kinds_of_mixing_come_by_their_share():
    params = A.MixupOrCutMix(switch=0.3, p=0.6).sample(torch.arange(20_000))
    assert abs(params["cutmix"].float().mean() - 0.3) < 0.015
    assert abs(params["applied"].float().mean() - 0.6) < 0.015


def test_mae_hides_the_same_number_of_patches_everywhere():
    mask = A.PatchMask(14, ratio=0.75, seed=2)({"sample_id": MANY}, epoch=1)["mask"]
    assert (mask.sum((1, 2)) == 147).all()
    assert (mask.float().mean(0) - 0.75).abs().max() < 0.04


def test_blocks_hide_no_more_than_was_drawn_and_come_near_it():
    mask = A.BlockMask(14, ratio=(0.3, 0.3), p=1)(MANY)["mask"].sum((1, 2))
    assert mask.max() <= 0.3 * 196
    assert mask.float().mean() > 0.25 * 196
    assert abs((A.BlockMask(14, p=0.5)(MANY)["mask"].sum((1, 2)) == 0).float().mean() - 0.5) < 0.03


def test_jepa_targets_are_equal_blocks_outside_of_the_context():
    masks = A.JEPAMask(14)({"sample_id": MANY})
    targets, context = masks["targets"], masks["context"]
    assert targets.shape == (4000, 4, 14, 14)
    sizes = targets.sum((2, 3))
    assert (sizes == sizes[0, 0]).all()
    assert 0.12 * 196 < sizes[0, 0] < 0.22 * 196
    rows, columns = targets.any(3).sum(2), targets.any(2).sum(2)
    assert torch.equal(rows * columns, sizes)
    assert not (targets.any(1) & context).any()
    assert context.sum((1, 2)).min() > 0


def test_applied_masks_blacken_patches():
    images = pictures(6, 28, 28) | 1
    mask = A.PatchMask(14)
    params = mask.sample(ids())
    shown = (mask.apply(images, params)[:, 0] > 0).unflatten(1, (14, 2)).unflatten(3, (14, 2))[:, :, 0, :, 0]
    assert torch.equal(shown, ~params["mask"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: A.Brightness(-1),
        lambda: A.ColorJitter(hue=0.6),
        lambda: A.GaussianBlur(4),
        lambda: A.GaussianBlur(5, (0, 1)),
        lambda: A.HorizontalFlip(1.5),
        lambda: A.Rotate(padding="wrap"),
        lambda: A.Zoom((0, 1)),
        lambda: A.Posterize(9),
        lambda: A.RandomErasing((0.5, 2)),
        lambda: A.RandomErasing(fill="blue"),
        lambda: A.PatchShuffle(0),
        lambda: A.Embed(0),
        lambda: A.BackgroundBlend("sky"),
        lambda: A.CircularMask(0),
        lambda: A.LMSToParvo(5, 1),
        lambda: A.Mixup(0),
        lambda: A.Mixup(label_smoothing=0.1),
        lambda: A.RandAugment(magnitude=31),
        lambda: A.AugMix(0),
        lambda: A.PatchMask(0),
        lambda: A.BlockMask(ratio=(0.5, 0.1)),
        lambda: A.JEPAMask(targets=8),
        lambda: A.OneOf([]),
        lambda: A.MultiView({}),
        lambda: A.Normalize((0.5,), (0.0,)),
        lambda: A.OneOf([A.Invert()], [0]),
        lambda: A.ColorJitter(order="any"),
    ],
)
def test_arguments_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match=r"must|may|needs"):
        make()
