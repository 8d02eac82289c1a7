"""What holds for every transform of `torchslip.augment`."""

from __future__ import annotations

import pickle

import pytest
import torch
from augment_registry import (  # noqa: F401
    CHANGES_SHAPE,
    CHANGES_TYPE,
    LEAVES_RANGE,
    MASKS,
    MIXES,
    TRANSFORMS,
    ids,
    one_thread,
    pictures,
    run,
)

from torchslip import augment as A


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
    covered = {name.split()[0] for name in TRANSFORMS} | {"MultiView", "Transform"}
    assert public <= covered


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_known_parameters_replay_exactly(transform, dtype):
    images = pictures(dtype=dtype)
    out, params = run(transform, images, ids(), epoch=3)
    assert torch.equal(transform.apply(images, params), out)


@pytest.mark.parametrize("name", sorted({*TRANSFORMS} - MIXES - {"JEPAMask"}))
def test_an_image_is_transformed_alike_in_any_batch(transform):
    images, numbers = pictures(dtype=torch.float32), ids()
    whole, _ = run(transform, images, numbers, epoch=3)
    alone = torch.cat([run(transform, images[row : row + 1], numbers[row : row + 1], epoch=3)[0] for row in (4, 0, 2)])
    assert same(whole[[4, 0, 2]], alone)


def test_other_seeds_views_and_epochs_draw_other_parameters(transform):
    params = [
        transform.sample(ids(64), **options)
        for options in ({}, {"seed": 1}, {"view": 1}, {"view": "local_0"}, {"epoch": 1}, {"epoch": 2})
    ]
    # What a range of one value or a probability of one leaves constant is none of chance.
    for key in (key for key, values in params[0].items() if len(values.unique(dim=0)) > 1):
        differing = [not torch.equal(left[key], right[key]) for left in params for right in params if left is not right]
        assert all(differing), key


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_type_range_and_shape_are_kept(name, transform, dtype):
    images = pictures(dtype=dtype)
    out, _ = run(transform, images, ids())
    assert out.dtype == dtype or name in CHANGES_TYPE
    assert out.shape == images.shape or name in CHANGES_SHAPE
    assert name in LEAVES_RANGE or (out.min() >= 0 and out.max() <= (255 if out.dtype == torch.uint8 else 1.001))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_callers_images_stay_as_they_are(transform, dtype):
    images = pictures(dtype=dtype)
    before = images.clone()
    out, _ = run(transform, images, ids())
    out.zero_()
    assert torch.equal(images, before)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (31, 2), (5, 5), (65, 33)])
def test_odd_and_tiny_sizes_work(name, transform, size):
    out, _ = run(transform, pictures(3, *size), ids(3))
    assert out.isfinite().all()


def test_an_empty_batch_stays_empty(transform):
    out, params = run(transform, pictures(6)[:0], ids(6)[:0])
    assert len(out) == 0
    assert all(len(value) == 0 for value in params.values())


def test_gradients_reach_every_image(transform):
    images = pictures(dtype=torch.float32).requires_grad_()
    run(transform, images, ids())[0].sum().backward()
    assert images.grad.isfinite().all()


def test_with_a_graph_the_pixels_are_the_same(transform):
    images = pictures(dtype=torch.float32)
    assert same(run(transform, images.clone().requires_grad_(), ids())[0], run(transform, images, ids())[0])


@pytest.mark.slow
def test_compiles_without_a_break_in_the_graph(transform):
    torch._dynamo.reset()
    compiled = torch.compile(lambda *batch: run(transform, *batch, epoch=2)[0], backend="eager", fullgraph=True)
    assert same(compiled(pictures(), ids()), run(transform, pictures(), ids(), epoch=2)[0])


def test_a_chain_compiles_without_a_break_in_the_graph():
    torch._dynamo.reset()
    chain = A.Compose(
        [
            A.HorizontalFlip(),
            A.Rotate(20, p=0.5),
            A.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
            A.RandomGrayscale(0.2),
            A.OneOf([A.GaussianBlur(9), A.Solarize(p=1)]),
            A.RandomErasing(),
            A.Normalize(),
        ]
    )
    compiled = torch.compile(chain, backend="eager", fullgraph=True)
    assert same(compiled(pictures(), ids(), epoch=2), chain(pictures(), ids(), epoch=2))


def test_a_pickled_copy_does_the_same(transform):
    copy = pickle.loads(pickle.dumps(transform))
    assert torch.equal(run(copy, pictures(), ids())[0], run(transform, pictures(), ids())[0])


@pytest.mark.parametrize("name", sorted({*TRANSFORMS} - MIXES - MASKS))
def test_large_batches_are_processed_in_parts_with_the_same_result(transform):
    images = pictures(3, 240, 230)
    alone = torch.cat([transform(images[row : row + 1], ids(3)[row : row + 1]) for row in range(3)])
    assert same(transform(images, ids(3)), alone)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same_parameters_without_waiting(transform):
    images, numbers = pictures(dtype=torch.float32), ids()
    expected, params = run(transform, images, numbers)
    images, numbers = images.cuda(), numbers.cuda()
    run(transform, images, numbers)  # constants are copied to the device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        out, drawn = run(transform, images, numbers)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.allclose(drawn[key].cpu().double(), params[key].double(), atol=1e-6) for key in params)
    assert torch.allclose(out.cpu(), expected, atol=1e-3)
