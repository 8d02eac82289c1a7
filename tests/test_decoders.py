"""The contract of every decoder backend: the pixels of Pillow, cropped and resized as torchvision v2 does it."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import torchslip as ts
from torchslip.decode import BACKENDS, Draws, Placement, backends, make_decoder, read_header
from torchslip.errors import SampleError

AVAILABLE = [backend.name for backend in backends() if backend.available]
SCALING = {backend.name for backend in backends() if "scale" in backend.capabilities}
VIEWS = {
    "random": ts.RandomResizedCrop(64),
    "wide": ts.RandomResizedCrop((48, 96), scale=(0.3, 1.0)),
    "direct": ts.DirectRandomResizedCrop(224),
    "center": ts.CenterCrop(100),
    "resize_crop": ts.ResizeCrop(128, 112),
    "stretch": ts.ResizeCrop((40, 90), (40, 80)),
    "bordered": ts.ResizeCrop(32, (64, 48)),
    "square": ts.ResizeShortCropLong(72, x_range=(0, 1), y_range=(0, 1)),
    "whole": ts.Decode(),
}


def pillow_rgb(data: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        image.info.pop("transparency", None)
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def decode(backend: str, data: bytes, view: ts.View, sample_id: int = 3) -> tuple[torch.Tensor, Placement]:
    header = read_header(data)
    placement = view.place(
        np.array([[header.height, header.width]]), Draws(np.array([sample_id]), seed=0, view="image", epoch=0)
    )
    output = torch.full((3, *placement.size[0].tolist()), 77, dtype=torch.uint8)
    failures = make_decoder(backend).decode([data], [header], [placement], [[output]])
    if failures:
        raise failures[0]
    return output, placement


def expected(data: bytes, view: ts.View, placement: Placement) -> torch.Tensor:
    """What a torchvision user would have written."""
    pixels = pillow_rgb(data)
    if isinstance(view, ts.CenterCrop):
        return v2.CenterCrop(view.size)(pixels)
    if isinstance(view, ts.ResizeCrop):
        return v2.Compose([v2.Resize(view.resize, antialias=True), v2.CenterCrop(view.size)])(pixels)
    if isinstance(view, ts.Decode):
        return pixels
    return F.resized_crop(pixels, *placement.box[0].tolist(), placement.size[0].tolist(), antialias=True)


def agrees(backend: str, data: bytes, view: ts.View, sample_id: int = 3) -> bool:
    """Whether the pixels are those of the contract in `torchslip.decode.Decoder`."""
    output, placement = decode(backend, data, view, sample_id)
    apart = (output.int() - expected(data, view, placement).int()).abs().float()
    reduced = backend in SCALING and (placement.box[:, 2:] >= 2.5 * placement.resized).all()
    return bool(apart.mean() <= (8 if reduced else 1) and apart.max() <= (64 if reduced else 8))


def difference(backend: str, data: bytes, view: ts.View, sample_id: int = 3) -> torch.Tensor:
    output, placement = decode(backend, data, view, sample_id)
    return (output.int() - expected(data, view, placement).int()).abs()


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("backend", AVAILABLE)
def test_every_encoding_gives_the_pixels_of_pillow_and_torchvision(backend, view, picture_folder: Path):
    for path in sorted(picture_folder.glob("*/*")):
        assert agrees(backend, path.read_bytes(), view), path.name


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("backend", AVAILABLE)
def test_photographs_agree_within_the_stated_tolerance(backend, view, photos: Path):
    for number, path in enumerate(sorted(photos.glob("val/*/*"))[::9]):
        assert agrees(backend, path.read_bytes(), view, sample_id=number), path.name


def encode(picture: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def sketch(width: int = 60, height: int = 40) -> Image.Image:
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)
    return Image.fromarray(np.stack((ramp, ramp[::-1], 255 - ramp), axis=-1).astype(np.uint8))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "BMP", "JPEG", "PPM"])
@pytest.mark.parametrize("backend", AVAILABLE)
def test_formats_are_told_by_their_bytes(backend, format):
    data = encode(sketch(), format)

    assert (difference(backend, data, ts.Decode()) <= 8).all()
    assert (read_header(data).height, read_header(data).width) == (40, 60)


@pytest.mark.parametrize("backend", AVAILABLE)
def test_palettes_with_transparency_do_not_warn(backend):
    data = encode(sketch().quantize(16), "PNG", transparency=bytes(range(16)))

    assert not difference(backend, data, ts.Decode()).any()


@pytest.mark.parametrize("backend", AVAILABLE)
def test_an_animation_gives_its_first_frame(backend):
    frames = [sketch(), sketch().transpose(Image.Transpose.ROTATE_180)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])

    assert not difference(backend, data, ts.Decode()).any()


@pytest.mark.parametrize("backend", AVAILABLE)
def test_the_header_is_found_behind_an_exif_thumbnail(backend):
    thumbnail = encode(sketch(16, 12), "JPEG")
    plain = encode(sketch(), "JPEG")
    app1 = b"Exif\0\0" + thumbnail
    data = plain[:2] + b"\xff\xe1" + (len(app1) + 2).to_bytes(2, "big") + app1 + plain[2:]

    assert (read_header(data).height, read_header(data).width) == (40, 60)
    assert torch.equal(decode(backend, data, ts.Decode())[0], decode(backend, plain, ts.Decode())[0])


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (17, 31)])
def test_tiny_and_odd_pictures_decode(backend, size):
    data = encode(sketch(*size), "JPEG", quality=95)

    for view in VIEWS.values():
        assert (difference(backend, data, view) <= 8).all()


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("damage", ["truncated", "empty", "not a picture", "header only", "wrong size"])
def test_a_damaged_file_is_an_error_of_its_own_row_and_harms_no_other(backend, damage, photos_or_sketch: bytes):
    good = photos_or_sketch
    bad = {
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "not a picture": b"GIF89 but not really" * 9,
        "header only": good[:400],
        "wrong size": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0\0\0\1\0" + bytes(50),
    }[damage]
    try:
        headers = [read_header(data) for data in (good, bad, good)]
    except SampleError as error:
        assert str(error)
        return
    sizes = np.array([(header.height, header.width) for header in headers])
    placement = VIEWS["random"].place(sizes, Draws(np.arange(3), seed=0, view="image", epoch=0))
    outputs = [torch.zeros(3, 64, 64, dtype=torch.uint8) for _ in range(3)]

    failures = make_decoder(backend).decode([good, bad, good], headers, [placement], [outputs])

    assert list(failures) == [1] and str(failures[1])
    assert outputs[0].any() and outputs[2].any()


@pytest.fixture
def photos_or_sketch() -> bytes:
    rng = np.random.default_rng(0)
    noisy = np.asarray(sketch(300, 200), np.int16) + rng.integers(-20, 20, (200, 300, 3), np.int16)
    return encode(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), "JPEG", quality=90)


@pytest.mark.parametrize("backend", AVAILABLE)
def test_several_views_of_one_decode_are_what_each_gives_alone(backend, picture_folder: Path):
    data = next(picture_folder.glob("discs/*baseline.jpg")).read_bytes()
    header = read_header(data)
    draws = Draws(np.array([3]), seed=0, view="image", epoch=0)
    placements = [view.place(np.array([[header.height, header.width]]), draws) for view in VIEWS.values()]
    outputs = [[torch.empty(3, *place.size[0].tolist(), dtype=torch.uint8)] for place in placements]

    assert not make_decoder(backend).decode([data], [header], placements, outputs)
    for view, (output,), place in zip(VIEWS.values(), outputs, placements, strict=True):
        alone = decode(backend, data, view)[0]
        if backend in SCALING and (place.box[:, 2:] >= 2.5 * place.resized).all():  # perhaps at the scale of another
            assert (output.float() - alone.float()).abs().mean() <= 1
        else:
            assert torch.equal(output, alone)


@pytest.mark.parametrize("backend", AVAILABLE)
def test_decoders_pickle(backend, photos_or_sketch: bytes):
    decoder = pickle.loads(pickle.dumps(make_decoder(backend)))

    assert decoder.name == backend == make_decoder(backend).name


def test_without_the_jpeg_operator_pillow_decodes(monkeypatch, photos_or_sketch: bytes):
    from torchslip.decode import _torchvision

    with_operator = decode("torchvision", photos_or_sketch, ts.Decode())[0]
    monkeypatch.setattr(_torchvision, "jpeg_operator", lambda: None)

    assert torch.equal(decode("torchvision", photos_or_sketch, ts.Decode())[0], pillow_rgb(photos_or_sketch))
    assert (with_operator.int() - pillow_rgb(photos_or_sketch).int()).abs().max() <= 8
    assert "Pillow" in backends()[list(BACKENDS).index("torchvision")].why_not


def test_an_unknown_decoder_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"auto, .*torchvision.*got 'magic'"):
        make_decoder("magic")


def test_truncated_pictures_stay_errors_whatever_pillow_is_told(monkeypatch, photos_or_sketch: bytes):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)

    with pytest.raises(Exception, match=r"(?i)truncated|incomplete|premature"):
        decode("torchvision", photos_or_sketch[:3000], ts.Decode())
