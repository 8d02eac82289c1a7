"""Crop geometry: the distributions, what draws depend on, and what they don't."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

import torchslip as ts
from torchslip.decode import Draws, Placement

IDS = np.arange(4000)


def place(view: ts.View, size: tuple[int, int], *, ids: np.ndarray = IDS, seed: int = 0, name: str | int = "image",
          epoch: int = 0) -> Placement:  # fmt: skip
    sizes = np.broadcast_to(np.array(size), (len(ids), 2))
    return view.place(sizes, Draws(ids, seed=seed, view=name if view.seed is None else view.seed, epoch=epoch))


def torchvision_boxes(size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]) -> np.ndarray:
    picture = torch.empty(1, *size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draw = v2.RandomResizedCrop(8, scale=scale, ratio=ratio).make_params
        boxes = [draw([picture]) for _ in IDS]
    return np.array([[box["top"], box["left"], box["height"], box["width"]] for box in boxes])


@pytest.mark.parametrize("size", [(375, 500), (224, 224), (60, 640), (9, 7), (1, 1)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.05, 0.4), (0.9, 1.0)])
def test_random_resized_crop_has_the_distribution_of_torchvision(size, scale):
    expected = torchvision_boxes(size, scale, (3 / 4, 4 / 3))
    boxes = place(ts.RandomResizedCrop(8, scale=scale), size).box

    for ours, theirs in zip(boxes.T, expected.T, strict=True):
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-4


def test_the_fallback_is_the_largest_central_crop_within_the_ratio():
    # no crop of 90 % fits a picture eight times as wide as high, so all are fallbacks
    placement = place(ts.RandomResizedCrop(8, scale=(0.9, 1.0)), (50, 400))

    assert (placement.box == (0, (400 - 67) // 2, 50, 67)).all()


@pytest.mark.parametrize("view", [ts.RandomResizedCrop(8), ts.DirectRandomResizedCrop(8)])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2, 3), (300, 400), (4000, 31)])
def test_crops_lie_inside_the_picture(view, size):
    box = place(view, size).box

    assert (box[:, :2] >= 0).all() and (box[:, 2:] >= 1).all()
    assert (box[:, :2] + box[:, 2:] <= size).all()


@pytest.mark.parametrize("size", [(400, 500), (200, 900)])
def test_direct_crops_keep_to_scale_and_ratio_where_it_can_be(size):
    view = ts.DirectRandomResizedCrop(8, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    height, width = place(view, size).box[:, 2:].T

    area = height * width / (size[0] * size[1])
    assert area.min() > 0.075 and area.max() <= 1.0
    assert (width / height).min() > 0.74 and (width / height).max() < 1.35


def test_direct_crops_of_a_square_picture_have_nearly_the_distribution_of_torchvision():
    scale = (0.08, 0.7)  # all of which fits a square picture at any of the ratios, so nothing is rejected
    ours = place(ts.DirectRandomResizedCrop(8, scale=scale), (400, 400)).box
    theirs = place(ts.RandomResizedCrop(8, scale=scale), (400, 400), seed=1).box

    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4


def test_a_crop_depends_on_the_sample_alone_not_on_its_batch():
    view = ts.RandomResizedCrop(8)
    together = place(view, (300, 400)).box
    alone = [place(view, (300, 400), ids=IDS[row : row + 1]).box[0] for row in (0, 7, 3999)]

    assert (together[[0, 7, 3999]] == alone).all()


def centres(seed: int = 0, name: str = "image", epoch: int = 0, shift: int = 0) -> np.ndarray:
    box = place(ts.RandomResizedCrop(8), (3000, 4000), ids=IDS + shift, seed=seed, name=name, epoch=epoch).box
    return np.concatenate((box[:, :2] + box[:, 2:] / 2, box[:, 2:]), axis=1)


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"name": "image2"}, {"epoch": 1}, {"shift": 1}, {"shift": 1 << 32}, {"seed": -1}], ids=str
)
def test_neighbouring_samples_seeds_views_and_epochs_are_independent(other):
    one, two = centres(), centres(**other)

    for column in range(4):
        # 4,000 pairs: a correlation beyond 0.08 has a probability of 4e-7
        assert abs(np.corrcoef(one[:, column], two[:, column])[0, 1]) < 0.08


def test_views_with_the_same_seed_are_yoked():
    large = place(ts.RandomResizedCrop(8, scale=(0.4, 1.0), seed=5), (3000, 4000), name="a").box
    small = place(ts.RandomResizedCrop(8, scale=(0.05, 0.2), seed=5), (3000, 4000), name="b").box
    room = np.array((3000, 4000))

    relative = [box[:, :2] / np.maximum(room - box[:, 2:], 1) for box in (large, small)]
    kept = (large[:, 2:] < room - 100).all(axis=1)  # the position in almost no room is all rounding
    assert np.abs(relative[0] - relative[1])[kept].max() < 0.02
    assert (place(ts.RandomResizedCrop(8, seed=5), (30, 40), name="a").box
            == place(ts.RandomResizedCrop(8, seed=5), (30, 40), name="b").box).all()  # fmt: skip


def test_resize_short_crop_long_is_a_square_of_the_short_side_at_the_drawn_place():
    box = place(ts.ResizeShortCropLong(96, x_range=(0.25, 0.75), y_range=(0, 1)), (300, 700)).box

    assert (box[:, 0] == 0).all() and (box[:, 2:] == 300).all()
    assert box[:, 1].min() == 100 and box[:, 1].max() == 300
    assert stats.kstest((box[:, 1] - 100) / 200, "uniform").pvalue > 1e-4


def test_a_size_per_batch_is_one_size_and_changes_from_batch_to_batch():
    view = ts.ResizeShortCropLong((32, 64))
    sizes = [view.output_size(Draws(IDS, seed=0, view="image", epoch=0, batch_key=key)) for key in range(400)]

    assert {side for pair in sizes for side in pair} == set(range(32, 65))
    assert all(height == width for height, width in sizes)


def test_a_size_per_image_is_uniform_over_the_range():
    placement = place(ts.ResizeShortCropLong((32, 64), per="image"), (300, 700))

    counts = np.bincount(placement.size[:, 0])[32:]
    assert len(counts) == 33 and stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize(
    "make",
    [
        lambda: ts.RandomResizedCrop(0),
        lambda: ts.RandomResizedCrop((1, 2, 3)),
        lambda: ts.RandomResizedCrop(8, scale=(0.5, 0.1)),
        lambda: ts.RandomResizedCrop(8, scale=(0.5, 1.5)),
        lambda: ts.RandomResizedCrop(8, ratio=(0.0, 1.0)),
        lambda: ts.CenterCrop(-1),
        lambda: ts.ResizeCrop(0, 8),
        lambda: ts.ResizeShortCropLong((9, 8)),
        lambda: ts.ResizeShortCropLong(8, x_range=(0.5, 1.5)),
        lambda: ts.ResizeShortCropLong((8, 9), per="pixel"),
    ],
)
def test_impossible_views_are_refused_with_what_was_given(make):
    with pytest.raises(ValueError, match="got"):
        make()
