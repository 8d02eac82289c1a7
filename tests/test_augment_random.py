"""The random numbers of augmentation: those of torchslip.random, on any device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from augment_registry import ids, one_thread, pictures  # noqa: F401

import torchslip.random
from torchslip import augment as A
from torchslip.random import derive_key


@pytest.mark.parametrize("epoch", [0, 1, 2**31 + 7, 2**32 - 1])
def test_numbers_are_those_of_torchslip_random(epoch):
    samples = torch.tensor([0, 1, 2, 2**31, 2**32 - 1, 2**40 + 3, 2**63 - 1])
    keys = [(derive_key(17, "a"), 0), (derive_key("b"), 5), (2**64 - 1, 2**32 - 1)]
    expected = [torchslip.random.uniform(samples.numpy(), key=key, epoch=epoch, block=block) for key, block in keys]
    drawn = A.uniform(samples, keys=tuple(keys), epoch=epoch)
    assert np.array_equal(drawn.numpy(), np.floor(np.concatenate(expected, 1) * 2**24) / 2**24)


def test_the_first_coin_of_a_transform_is_pinned():
    expected = torchslip.random.uniform(ids().numpy(), key=derive_key(17, "augment", 0, "HorizontalFlip"), epoch=4)
    params = A.HorizontalFlip(0.4, seed=17).sample(ids(), epoch=4)
    assert params["applied"].tolist() == (expected[:, 0] < 0.4).tolist()


def test_an_epoch_may_be_given_for_each_image():
    flip = A.HorizontalFlip()
    epochs = torch.arange(6)
    each = [flip.sample(ids()[row : row + 1], epoch=row)["applied"] for row in range(6)]
    assert flip.sample(ids(), epoch=epochs)["applied"].tolist() == torch.cat(each).tolist()


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_the_rate_is_p(p):
    applied = A.RandomGrayscale(p).sample(torch.arange(20_000)).get("applied", torch.ones(20_000))
    deviation = (p * (1 - p) / 20_000) ** 0.5
    assert abs(applied.float().mean() - p) <= 4.5 * deviation


def test_images_seeds_views_and_epochs_are_independent():
    many = torch.arange(5000)
    draws = [A.Brightness(seed=seed).sample(many, epoch=epoch, view=view)["factor"]
             for seed, epoch, view in [(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2)]]  # fmt: skip
    neighbours = [torch.stack((each[:-1], each[1:])) for each in draws[:1]]
    correlations = torch.corrcoef(torch.stack(draws)).fill_diagonal_(0)
    assert correlations.abs().max() < 0.06
    assert torch.corrcoef(neighbours[0])[0, 1].abs() < 0.06


def test_numbers_are_uniform():
    factors = A.Brightness((0.0, 1.0)).sample(torch.arange(50_000))["factor"].sort().values
    assert (factors - torch.linspace(0, 1, 50_000)).abs().max() < 0.01


def test_a_transform_of_another_kind_changes_no_draw_of_the_others():
    short = A.Compose([A.HorizontalFlip(), A.GaussianBlur(5)], seed=3).sample(ids())
    long = A.Compose([A.HorizontalFlip(), A.Rotate(), A.GaussianBlur(5)], seed=3).sample(ids())
    assert all(torch.equal(short[key], long[key]) for key in short)


def test_two_of_a_kind_in_a_chain_draw_independently():
    params = A.Compose([A.Brightness(), A.Brightness()]).sample(ids())
    assert not torch.equal(params["Brightness/factor"], params["Brightness_2/factor"])


def test_transforms_with_a_seed_of_their_own_are_yoked():
    flip = A.HorizontalFlip(seed=5)
    left, right = A.Compose([flip, A.Brightness()], seed=1), A.Compose([A.Brightness(), flip], seed=2)
    one, other = left.sample(ids(), view="a"), right.sample(ids(), view="b")
    assert torch.equal(one["HorizontalFlip/applied"], other["HorizontalFlip/applied"])
    assert not torch.equal(one["Brightness/factor"], other["Brightness/factor"])


def test_without_ids_random_transforms_refuse_and_others_work():
    with pytest.raises(ValueError, match="pass ids=batch"):
        A.HorizontalFlip()(pictures())
    assert A.Normalize()(pictures()).dtype == torch.float32


def test_ids_must_match_the_images():
    with pytest.raises(ValueError, match="got 5 ids for 6 images"):
        A.HorizontalFlip()(pictures(), ids(5))


@pytest.mark.parametrize("images", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.int32), [1, 2]])
def test_what_is_no_batch_of_pictures_is_refused(images):
    with pytest.raises(TypeError, match="Images must be"):
        A.HorizontalFlip()(images, ids(1))
