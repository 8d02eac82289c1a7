"""What holds for every transform of `torchslip.augment`."""

from __future__ import annotations

import pickle

import pytest
import torch
from augment_registry import CHANGES_SHAPE, CHANGES_TYPE, LEAVES_RANGE, TRANSFORMS, ids, pictures

from torchslip import augment as A

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


@pytest.fixture(params=TRANSFORMS)
def name(request):
    return request.param


@pytest.fixture
def transform(name):
    return TRANSFORMS[name]()


def same(left, right):
    """As equal as float32 computed in groups of other sizes is; bytes may stand at the border of rounding."""
    atol = 1 if left.dtype == torch.uint8 else 2e-5
    return torch.allclose(left.double(), right.double(), rtol=0, atol=atol)


def test_every_public_transform_is_in_the_registry():
    public = {
        name for name in A.__all__ if isinstance(getattr(A, name), type) and issubclass(getattr(A, name), A.Transform)
    }
    covered = {name.split()[0] for name in TRANSFORMS} | {"MultiView", "Transform", "NormalizeLGN"}
    assert public <= covered


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_known_parameters_replay_exactly(transform, dtype):
    images = pictures(dtype=dtype)
    out, params = transform(images, ids(), epoch=3, return_params=True)
    assert torch.equal(transform.apply(images, params), out)


def test_an_image_is_transformed_alike_in_any_batch(transform):
    images, numbers = pictures(dtype=torch.float32), ids()
    whole = transform(images, numbers, epoch=3)
    alone = torch.cat([transform(images[row : row + 1], numbers[row : row + 1], epoch=3) for row in (4, 0, 2)])
    assert same(whole[[4, 0, 2]], alone)


def test_other_seeds_views_and_epochs_draw_other_parameters(transform):
    params = [
        transform.sample(ids(64), **options)
        for options in ({}, {"seed": 1}, {"view": 1}, {"view": "local_0"}, {"epoch": 1}, {"epoch": 2})
    ]
    for key in params[0]:
        differing = [not torch.equal(left[key], right[key]) for left in params for right in params if left is not right]
        assert all(differing), key


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_type_range_and_shape_are_kept(name, transform, dtype):
    images = pictures(dtype=dtype)
    out = transform(images, ids())
    assert out.dtype == dtype or name in CHANGES_TYPE
    assert out.shape == images.shape or name in CHANGES_SHAPE
    assert name in LEAVES_RANGE or (out.min() >= 0 and out.max() <= (255 if out.dtype == torch.uint8 else 1.001))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_callers_images_stay_as_they_are(transform, dtype):
    images = pictures(dtype=dtype)
    before = images.clone()
    out = transform(images, ids())
    out.zero_()
    assert torch.equal(images, before)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (31, 2), (5, 5), (65, 33)])
def test_odd_and_tiny_sizes_work(name, transform, size):
    out = transform(pictures(3, *size), ids(3))
    assert out.isfinite().all()


def test_an_empty_batch_stays_empty(transform):
    out, params = transform(pictures(6)[:0], ids(6)[:0], return_params=True)
    assert len(out) == 0
    assert all(len(value) == 0 for value in params.values())


def test_gradients_reach_every_image(transform):
    images = pictures(dtype=torch.float32).requires_grad_()
    transform(images, ids()).sum().backward()
    assert images.grad.isfinite().all()


def test_with_a_graph_the_pixels_are_the_same(transform):
    images = pictures(dtype=torch.float32)
    assert same(transform(images.clone().requires_grad_(), ids()), transform(images, ids()))


def test_compiles_without_a_break_in_the_graph(transform):
    torch._dynamo.reset()
    compiled = torch.compile(transform, backend="eager", fullgraph=True)
    assert same(compiled(pictures(), ids(), epoch=2), transform(pictures(), ids(), epoch=2))


def test_a_pickled_copy_does_the_same(transform):
    copy = pickle.loads(pickle.dumps(transform))
    assert torch.equal(copy(pictures(), ids()), transform(pictures(), ids()))


def test_large_batches_are_processed_in_parts_with_the_same_result(transform):
    images = pictures(5, 240, 230)
    alone = torch.cat([transform(images[row : row + 1], ids(5)[row : row + 1]) for row in range(5)])
    assert same(transform(images, ids(5)), alone)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same_parameters_without_waiting(transform):
    images, numbers = pictures(dtype=torch.float32), ids()
    expected, params = transform(images, numbers, return_params=True)
    images, numbers = images.cuda(), numbers.cuda()
    transform(images, numbers)  # constants are copied to the device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        out, drawn = transform(images, numbers, return_params=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.allclose(drawn[key].cpu().double(), params[key].double(), atol=1e-6) for key in params)
    assert torch.allclose(out.cpu(), expected, atol=1e-3)
