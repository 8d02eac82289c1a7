"""Each transform against torchvision, Pillow or SciPy, image by image with the same parameters."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from augment_registry import ids, one_thread, pictures  # noqa: F401
from PIL import Image, ImageOps
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from torchslip import augment as A

BYTES, FLOATS = pictures(), pictures(dtype=torch.float32)
HEIGHT, WIDTH = BYTES.shape[2:]
COLOR = {
    "brightness": TF.adjust_brightness,
    "contrast": TF.adjust_contrast,
    "saturation": TF.adjust_saturation,
    "hue": TF.adjust_hue,
}


def assert_agrees(transform, reference, images, *, atol, share=1.0):
    """`reference(image, params of that image)`; `share` of all values must agree."""
    out, params = transform(images, ids(), return_params=True)
    rows = [{key: values[row] for key, values in params.items()} for row in range(len(images))]
    expected = torch.stack([reference(image, row) for image, row in zip(images, rows, strict=True)])
    agree = (out.double() - expected.double()).abs() <= atol
    assert out.dtype == expected.dtype
    assert agree.double().mean() >= share, (out.double() - expected.double()).abs().max()


@pytest.mark.parametrize("kind", [A.Brightness, A.Contrast, A.Saturation])
def test_blends_are_torchvisions(kind):
    name = kind.__name__.lower()

    def reference(image, own):
        return COLOR[name](image, own["factor"].item())

    assert_agrees(kind(0.8), reference, FLOATS, atol=1e-5)
    # Truncation turns a difference in the last bit of a product into one level.
    assert_agrees(kind(0.8), reference, BYTES, atol=1)
    assert_agrees(kind(0.8), reference, BYTES, atol=0, share=1.0 if kind is A.Brightness else 0.99)


@pytest.mark.parametrize("order", ["random", "fixed"])
def test_color_jitter_is_torchvisions(order):
    def reference(image, own):
        for number in own["order"].tolist() if order == "random" else range(4):
            name = list(COLOR)[number]
            image = COLOR[name](image, own[name].item())
        return image

    assert_agrees(A.ColorJitter(0.8, 0.8, 0.8, 0.5, order=order), reference, FLOATS, atol=1e-5)


def test_every_order_of_color_jitter_comes_equally_often():
    order = A.ColorJitter(1, 1, 1, 0.5).sample(torch.arange(24_000))["order"]
    counts = order.unique(dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert (counts - 1000).abs().max() < 150


@pytest.mark.parametrize("turns", [-0.5, -0.2, 0.0, 1 / 3, 0.5])
def test_hue_of_every_color_is_torchvisions(turns):
    steps = torch.linspace(0, 1, 18)
    colors = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij")).reshape(1, 3, 18, -1)
    out = A.ColorJitter(hue=(turns, turns))(colors, torch.zeros(1, dtype=torch.int64))
    assert torch.allclose(out, TF.adjust_hue(colors, turns), atol=1e-5)


def test_hue_in_yiq_turns_colors_and_keeps_their_luma():
    out = A.ColorJitterYIQ(hue=(0.25, 0.25))(FLOATS * 0.2 + 0.4, ids())
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert torch.allclose((out * weights).sum(1), ((FLOATS * 0.2 + 0.4) * weights).sum(1), atol=2e-3)
    whole_turn = A.Compose([A.ColorJitterYIQ(hue=(0.25, 0.25))] * 4, fuse=False)
    assert torch.allclose(whole_turn(FLOATS * 0.2 + 0.4, ids()), FLOATS * 0.2 + 0.4, atol=1e-5)


def test_without_hue_yiq_jitter_is_torchvisions_in_fixed_order():
    def reference(image, own):
        for name in ("brightness", "contrast", "saturation"):
            image = COLOR[name](image, own[name].item())
        return image

    assert_agrees(A.ColorJitterYIQ(0.2, 0.2, 0.2), reference, FLOATS * 0.4 + 0.3, atol=2e-3)


@pytest.mark.parametrize("images", [BYTES, FLOATS])
def test_exact_transforms_are_torchvisions(images):
    def when_applied(function):
        return lambda image, own: function(image, own) if own["applied"] else image

    bound = 255 if images.dtype == torch.uint8 else 1.0
    assert_agrees(A.HorizontalFlip(), when_applied(lambda x, own: TF.horizontal_flip(x)), images, atol=0)
    assert_agrees(A.VerticalFlip(), when_applied(lambda x, own: TF.vertical_flip(x)), images, atol=0)
    assert_agrees(A.Invert(), when_applied(lambda x, own: TF.invert(x)), images, atol=0)
    assert_agrees(A.Solarize(p=0.5), when_applied(lambda x, own: TF.solarize(x, 0.5 * bound)), images, atol=0)
    assert_agrees(
        A.Posterize((1, 7), p=0.7), when_applied(lambda x, own: TF.posterize(x, own["bits"].item())), images, atol=1e-6
    )
    assert_agrees(A.Equalize(), when_applied(lambda x, own: TF.equalize(x)), images, atol=1e-6)
    assert_agrees(A.RandomGrayscale(0.5), when_applied(lambda x, own: TF.rgb_to_grayscale(x, 3)), images, atol=1e-5)
    assert_agrees(
        A.AutoContrast(), when_applied(lambda x, own: TF.autocontrast(x)), images, atol=1e-5 if bound == 1 else 1
    )


def test_equalize_is_pillows():
    dark = (BYTES // 3).contiguous()
    expected = [np.asarray(ImageOps.equalize(Image.fromarray(x.permute(1, 2, 0).numpy()))) for x in dark]
    out = A.Equalize(p=1)(dark, ids()).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(out, np.stack(expected))


@pytest.mark.parametrize("images", [BYTES, FLOATS])
def test_sharpness_is_torchvisions(images):
    bytes_ = images.dtype == torch.uint8
    reference = lambda image, own: TF.adjust_sharpness(image, own["factor"].item())  # noqa: E731
    assert_agrees(A.Sharpness((0.0, 2.0), p=1), reference, images, atol=1 if bytes_ else 1e-5)
    assert_agrees(A.Sharpness((0.0, 2.0), p=1), reference, images, atol=0 if bytes_ else 1e-5, share=0.99)


@pytest.mark.parametrize("images", [BYTES, FLOATS])
@pytest.mark.parametrize("size", [3, 9, 23])
def test_gaussian_blur_is_torchvisions(images, size):
    def reference(image, own):
        return TF.gaussian_blur(image, [size, size], [own["sigma"].item()] * 2)

    exact = images.dtype != torch.uint8
    assert_agrees(A.GaussianBlur(size, (0.1, 4.0)), reference, images, atol=1e-5 if exact else 1)


def test_normalize_is_torchvisions():
    expected = TF.normalize(TF.to_dtype(BYTES, torch.float32, scale=True), A.IMAGENET_MEAN, A.IMAGENET_STD)
    assert torch.allclose(A.Normalize()(BYTES), expected, atol=1e-5)
    assert torch.allclose(A.ToFloat()(BYTES), FLOATS, atol=1e-6)


@pytest.mark.parametrize("mode", [InterpolationMode.BILINEAR, InterpolationMode.NEAREST])
def test_rotate_and_affine_are_torchvisions(mode):
    def rotated(image, own):
        return TF.rotate(image, own["degrees"].item(), interpolation=mode)

    def moved(image, own):
        shift = [own["shift"][0].item() * WIDTH, own["shift"][1].item() * HEIGHT]
        return TF.affine(
            image, own["degrees"].item(), shift, own["scale"].item(), own["shear"].tolist(), interpolation=mode
        )

    smooth = TF.gaussian_blur(FLOATS, [9, 9])
    name = mode.value
    # The nearest pixel is a matter of rounding half way between two.
    share = 1.0 if name == "bilinear" else 0.995
    assert_agrees(A.Rotate(90, interpolation=name), rotated, smooth, atol=2e-5, share=share)
    affine = A.Affine(40, translate=(0.2, 0.3), scale=(0.5, 2), shear=20, shear_y=10, interpolation=name)
    assert_agrees(affine, moved, smooth, atol=2e-5, share=share)


def test_a_quarter_turn_moves_pixels_only():
    square = pictures(6, 32, 32)
    out, params = A.Rotate(angles=(90,))(square, ids(), return_params=True)
    assert torch.equal(out, torch.rot90(square, 1, (2, 3)))
    assert params["degrees"].tolist() == [90.0] * 6


def test_zoom_shows_the_middle_larger():
    square = pictures(1, 64, 64, dtype=torch.float32)
    out = A.Zoom((0.5, 0.5))(square, ids(1))
    expected = torch.nn.functional.interpolate(square[:, :, 16:48, 16:48], scale_factor=2, mode="bilinear")
    assert torch.allclose(out[:, :, 2:-2, 2:-2], expected[:, :, 2:-2, 2:-2], atol=1e-5)


def test_rotate_object_moves_the_centre_to_the_target():
    spot = torch.zeros(6, 3, 41, 61)
    spot[:, :, 20, 30] = 1
    out, params = A.RotateObject(scale=(1, 1), padding="zeros", p=1)(spot, ids(), return_params=True)
    y, x = torch.meshgrid(torch.arange(41) + 0.5, torch.arange(61) + 0.5, indexing="ij")
    mass = out[:, 0] / out[:, 0].sum((1, 2), keepdim=True)
    found = torch.stack(((mass * x).sum((1, 2)) / 61, (mass * y).sum((1, 2)) / 41), 1)
    assert torch.allclose(found, params["target"], atol=0.02)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.1, -0.2)])
def test_optical_distortion_is_the_radial_model(shift):
    def reference(image, own):
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        u, v = (x - (WIDTH - 1) / 2) / WIDTH - shift[0], (y - (HEIGHT - 1) / 2) / HEIGHT - shift[1]
        square = u**2 + v**2
        stretch = 1 + own["distortion"].item() * (square + square**2)
        place = (
            (v * stretch + shift[1]) * HEIGHT + (HEIGHT - 1) / 2,
            (u * stretch + shift[0]) * WIDTH + (WIDTH - 1) / 2,
        )
        planes = [scipy.ndimage.map_coordinates(plane, place, order=1, mode="grid-constant") for plane in image.numpy()]
        return torch.from_numpy(np.stack(planes))

    assert_agrees(A.OpticalDistortion((-0.5, 0.5), shift=shift), reference, FLOATS, atol=2e-5)


@pytest.mark.parametrize(("policy", "names"), [(A.RandAugment(2, 20), 2), (A.TrivialAugment(), 1)])
@pytest.mark.parametrize("seed", range(3))
def test_policies_apply_torchvisions_operations(policy, names, seed):
    from torchvision.transforms.v2 import RandAugment

    apply = RandAugment()._apply_image_or_video_transform
    images, numbers = pictures(40, 32, 48), ids(40) + seed
    out, params = policy(images, numbers, return_params=True)
    assert params["operation"].shape == (40, names)
    for row in range(40):
        expected = images[row]
        for operation, magnitude in zip(params["operation"][row], params["magnitude"][row], strict=True):
            name, size = A.OPERATIONS[operation], {"TranslateX": 48, "TranslateY": 32}
            strength = magnitude.item() * size.get(name, 1)
            expected = apply(expected, name, strength, InterpolationMode.NEAREST, {torch.Tensor: None})
        differing = (out[row].int() - expected.int()).abs() > 2
        assert differing.double().mean() < 0.02, name


def test_augmix_mixes_the_image_and_its_chains():
    out, params = A.AugMix(1, alpha=1.0, depth=1)(BYTES, ids(), return_params=True)
    assert torch.allclose(params["weight"].sum(1), torch.ones(6))
    same = {key: values.clone() for key, values in params.items()} | {
        "operation": torch.zeros_like(params["operation"])
    }
    unchanged = A.AugMix(1, alpha=1.0, depth=1).apply(BYTES, same)
    assert (unchanged.int() - BYTES.int()).abs().max() <= 1
    assert not torch.equal(out, BYTES)
