"""Pictures that are stored as planes: the pixels of the JPEG they come from, in every colour that is asked for."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import torchslip as ts
from torchslip.augment import yuv_to_rgb
from torchslip.decode import Decode, Draws, Placement, View, backends, make_decoder, read_header, store_planes
from torchslip.errors import SampleError

AVAILABLE = [backend.name for backend in backends() if backend.available]
needs_kernel = pytest.mark.skipif("turbo" not in AVAILABLE, reason="the kernel is not built")
VIEWS = {
    "random": ts.RandomResizedCrop(64),
    "enlarged": ts.DirectRandomResizedCrop(224),
    "center": ts.CenterCrop(77),
    "small": ts.ResizeCrop(9, 9),
    "stretched": ts.ResizeCrop((40, 90), (40, 80)),
    "bordered": ts.ResizeCrop(31, (65, 49)),
    "square": ts.ResizeShortCropLong(72, x_range=(0, 1), y_range=(0, 1)),
    "whole": ts.Decode(),
}
FORMS = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:4:4": {"subsampling": "4:4:4"},
    "progressive": {"progressive": True},
    "restart": {"restart_marker_rows": 1},
    "gray": {"gray": True},
    "4:4:0": {"subsampling": "4:2:2", "factors": 0x12},
}
SIZES = [(147, 93), (160, 121), (7, 5), (5, 9), (4, 4), (2, 3), (1, 1), (50, 1), (1, 50)]


def picture(width: int = 147, height: int = 93, *, gray: bool = False, factors: int = 0, **options: object) -> bytes:
    """A JPEG of waves in colours that nowhere leave the range of RGB.

    Pillow writes no other `factors` of luma; with another place for each block, its files become such, of other sizes.
    """
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * a + y * b) for a, b in ((0.05, 0.3), (0.21, 0.02), (0.13, 0.11))]
    image = Image.fromarray((128 + 50 * np.stack(waves, axis=-1)).astype(np.uint8))
    buffer = io.BytesIO()
    (image.convert("L") if gray else image).save(buffer, "JPEG", quality=95, **options)
    data = bytearray(buffer.getvalue())
    if factors:
        at = data.index(b"\xff\xc0")
        columns, rows = (
            -(-side // (8 * factor)) for side, factor in ((width, data[at + 11] >> 4), (height, data[at + 11] & 15))
        )
        data[at + 11] = factors
        data[at + 5 : at + 9] = struct.pack(">2H", 8 * rows * (factors & 15) - 1, 8 * columns * (factors >> 4) - 1)
    return bytes(data)


def stored(data: bytes) -> bytes:
    return store_planes(data, read_header(data))


def place(data: bytes, view: View, sample_id: int = 3) -> Placement:
    header = read_header(data)
    draws = Draws(np.array([sample_id]), seed=0, view="image", epoch=0)
    return view.place(np.array([[header.height, header.width]]), draws)


def decode(backend: str, data: bytes, *places: Placement, output: str = "rgb", fill: int = 77) -> list[torch.Tensor]:
    """All parts of all views of one picture."""
    sizes = [each.size[0].tolist() for each in places]
    shapes = [(1 if output == "planes" else 3, *size) for size in sizes]
    if output == "planes":
        shapes += [(2, -(-height // 2), -(-width // 2)) for height, width in sizes]
    outputs = [[torch.full(shape, fill, dtype=torch.uint8)] for shape in shapes]
    made = make_decoder(backend)
    if backend == "turbo":  # stored planes have no smaller scale
        made = type(made)(scaled_decode=False)
    failures = made.decode([data], [read_header(data)], places, outputs, output=output)
    if failures:
        raise failures[0]
    return [tensor for (tensor,) in outputs]


def apart(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> int:
    pairs = list(zip(ours, theirs, strict=True))
    assert all(one.shape == other.shape for one, other in pairs)
    return max(int((one.int() - other.int()).abs().max()) if one.numel() else 0 for one, other in pairs)


@needs_kernel
@pytest.mark.parametrize(
    ("size", "form"),
    [(size, form) for size in SIZES for form in FORMS if size == SIZES[0] or form not in ("progressive", "restart")],
    ids=str,
)
@pytest.mark.parametrize("backend", AVAILABLE)
def test_every_view_has_the_pixels_of_the_jpeg_within_one_level(backend, size, form):
    jpeg = picture(*size, **FORMS[form])
    planes = stored(jpeg)

    for view in VIEWS.values():
        placement = place(jpeg, view)
        difference = apart(decode(backend, planes, placement), decode(backend, jpeg, placement))
        assert difference <= 1
    assert not apart(decode(backend, planes, place(jpeg, Decode())), decode("turbo", jpeg, place(jpeg, Decode())))


@needs_kernel
@pytest.mark.parametrize("form", ["4:2:0", "4:2:2", "4:4:4"])
def test_crops_at_every_offset_have_the_pixels_of_the_whole_picture(form):
    jpeg = picture(**FORMS[form])
    planes = stored(jpeg)
    (whole,) = decode("turbo", jpeg, place(jpeg, Decode()))
    rng = np.random.default_rng(0)

    for _ in range(100):
        bottom, right = rng.integers(1, (94, 148))
        top, left = rng.integers(0, (bottom, right))
        box = np.array([[top, left, bottom - top, right - left]])
        (crop,) = decode("turbo", planes, Placement.of_crops(box, box[:, 2:]))
        assert torch.equal(crop, whole[:, top:bottom, left:right])


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_photographs_are_within_one_level_of_their_jpeg(view, photos: Path):
    if "turbo" not in AVAILABLE:
        pytest.skip("the kernel is not built")
    for number, path in enumerate(sorted(photos.glob("val/*/*"))[::9]):
        jpeg = path.read_bytes()
        if read_header(jpeg).components == 4:
            continue
        placement = place(jpeg, view, number)
        difference = apart(decode("turbo", stored(jpeg), placement), decode("turbo", jpeg, placement))
        assert difference <= 1, path.name


@needs_kernel
@pytest.mark.parametrize("output", ["yuv", "planes"])
@pytest.mark.parametrize("form", FORMS)
def test_all_backends_and_stored_forms_give_the_same_colours(form, output):
    jpeg = picture(**FORMS[form])
    planes = stored(jpeg)

    for view in VIEWS.values():
        placement = place(jpeg, view)
        expected = decode("torchvision", planes, placement, output=output)
        assert apart(decode("turbo", planes, placement, output=output), expected) <= 2
        for backend in AVAILABLE:
            assert apart(decode(backend, jpeg, placement, output=output), expected) <= 3


@pytest.mark.parametrize("backend", AVAILABLE)
def test_the_colours_become_rgb_again(backend):
    data = stored(picture())

    for view in VIEWS.values():
        placement = place(data, view)
        assert (
            apart([yuv_to_rgb(*decode(backend, data, placement, output="yuv"))], decode(backend, data, placement)) <= 4
        )
    # Where the view has as many pixels as the picture or more, chroma of half the size loses little.
    for view in (VIEWS["enlarged"], VIEWS["whole"]):
        placement = place(data, view)
        again, (rgb,) = yuv_to_rgb(*decode(backend, data, placement, output="planes")), decode(backend, data, placement)
        assert (again.float() - rgb.float()).abs().mean() <= 2


@pytest.mark.parametrize("backend", AVAILABLE)
def test_planes_are_the_means_of_the_pixels_that_are_shown(backend):
    data = stored(picture())
    box = np.array([[11, 13, 60, 70]])
    placement = Placement(box, np.array([[31, 43]]), np.array([[-3, -5]]), np.array([[39, 57]]))
    (yuv,) = decode(backend, data, placement, output="yuv")
    y, uv = decode(backend, data, placement, output="planes")

    assert torch.equal(y[0], yuv[0])
    shown = np.zeros((40, 58), bool)
    shown[3:34, 5:48] = True
    padded = np.pad(yuv[1:].numpy().astype(float), ((0, 0), (0, 1), (0, 1)))
    pairs = (padded * shown).reshape(2, 20, 2, 29, 2).sum((2, 4))
    counts = shown.reshape(20, 2, 29, 2).sum((1, 3))
    expected = np.where(counts, pairs / np.maximum(counts, 1), 128)
    assert np.abs(uv.numpy() - expected).max() <= 1.5
    assert (yuv[:, ~torch.from_numpy(shown[:39, :57])] == torch.tensor([[0], [128], [128]])).all()


@needs_kernel
@pytest.mark.parametrize("output", ["rgb", "yuv", "planes"])
@pytest.mark.parametrize("size", [37, 96, 224])
def test_portable_and_vector_passes_give_the_same_bytes(size, output, monkeypatch):
    data = [stored(picture(*each, **FORMS[form])) for form in FORMS for each in ((147, 93), (640, 500))]
    views = [ts.RandomResizedCrop(size), ts.ResizeCrop(size // 5, size // 5), ts.ResizeCrop(9, 30)]
    best = [decode("turbo", each, *(place(each, view) for view in views), output=output) for each in data]

    for passes in ("portable", "avx2"):
        monkeypatch.setenv("TORCHSLIP_TURBO_PASSES", passes)
        for each, parts in zip(data, best, strict=True):
            places = [place(each, view) for view in views]
            assert not apart(decode("turbo", each, *places, output=output, fill=3), parts)


@needs_kernel
@pytest.mark.parametrize("output", ["rgb", "yuv", "planes"])
def test_views_together_in_threads_are_what_each_gives_alone(output):
    from torchslip.decode._turbo import TurboDecoder

    data = [stored(picture(100 + 7 * i, 90 + 5 * i, **each)) for i, each in enumerate(FORMS.values())]
    headers = [read_header(each) for each in data]
    sizes = np.array([(each.height, each.width) for each in headers])
    draws = Draws(np.full(len(data), 3), seed=0, view="image", epoch=0)
    places = [view.place(sizes, draws) for view in VIEWS.values()]
    alone = [decode("turbo", each, *(place(each, view) for view in VIEWS.values()), output=output) for each in data]
    for threads in (1, 5):
        outputs = [[torch.zeros_like(parts[i]) for parts in alone] for i in range(len(alone[0]))]
        assert not TurboDecoder(threads=threads).decode(data, headers, places, outputs, output=output)
        for row, parts in enumerate(alone):
            assert not apart([each[row] for each in outputs], parts)


@needs_kernel
@pytest.mark.parametrize("output", ["rgb", "yuv", "planes"])
def test_outputs_may_have_any_layout(output):
    data = stored(picture())
    placement = place(data, VIEWS["bordered"])
    plain = decode("turbo", data, placement, output=output)
    wide = [torch.full((each.shape[1] + 4, each.shape[2] + 6, each.shape[0]), 9, dtype=torch.uint8) for each in plain]
    inside = [each[2:-2, 3:-3].permute(2, 0, 1) for each in wide]

    made = make_decoder("turbo").decode(
        [data], [read_header(data)], [placement], [[each] for each in inside], output=output
    )

    assert not made and not apart(inside, plain)
    for each in inside:
        each.fill_(9)
    assert all((each == 9).all() for each in wide)


@pytest.mark.parametrize("backend", AVAILABLE)
def test_other_chroma_is_stored_as_that_of_4_2_0(backend):
    jpeg = picture(subsampling="4:2:0", factors=0x41)
    data = stored(jpeg)

    assert tuple(data[5:8]) == (2, 2, 3)
    difference = (
        decode(backend, data, place(data, Decode()))[0].float() - decode(backend, jpeg, place(data, Decode()))[0]
    )
    assert difference.abs().mean() <= 8


def test_the_layout_is_the_documented_one():
    data = stored(picture(11, 7))

    assert struct.unpack("<4s4B2I", data[:16]) == (b"TSPL", 1, 2, 2, 3, 7, 11)
    assert len(data) == 16 + 7 * 11 + 2 * 4 * 6
    assert len(stored(picture(11, 7, gray=True))) == 16 + 7 * 11
    with Image.open(io.BytesIO(picture(11, 7))) as image:
        image.draft("YCbCr", image.size)
        luma = np.asarray(image)[..., 0]
    assert np.abs(np.frombuffer(data, np.uint8)[16 : 16 + 77].reshape(7, 11) - luma.astype(int)).max() <= 1


@pytest.mark.parametrize("backend", AVAILABLE)
def test_samples_that_are_cut_off_or_lie_are_errors_of_their_own(backend):
    good = stored(picture())
    head = bytearray(good[:16])
    lies = [good[:-1], good + b"\0", good[:17]]
    for at, value in ((7, 1), (5, 1), (6, 1), (8, 94), (12, 148), (9, 1)):
        lies.append(bytes(head[:at]) + bytes([value]) + good[at + 1 :])
    for lie in lies:
        box = np.array([[0, 0, 16, 16]] * 3)
        outputs = [torch.zeros(3, 8, 8, dtype=torch.uint8) for _ in range(3)]
        headers = [read_header(each) for each in (good, lie, good)]
        failures = make_decoder(backend).decode(
            [good, lie, good], headers, [Placement.of_crops(box, np.full((3, 2), 8))], [outputs]
        )
        assert list(failures) == [1] and "bytes" in str(failures[1])
        assert torch.equal(outputs[0], outputs[2]) and outputs[0].any()


@pytest.mark.parametrize(
    ("at", "value"), [(4, 2), (5, 0), (5, 3), (6, 4), (7, 2), (7, 0), (8, 0), (10, 1), (12, 0)], ids=str
)
def test_a_damaged_header_is_refused_before_anything_is_reserved(at, value):
    data = bytearray(stored(picture(200, 90)))
    data[at] = value

    if at in (8, 12):
        data[at + 1] = 0
    with pytest.raises(SampleError, match=r"header|version"):
        read_header(bytes(data))
    with pytest.raises(SampleError, match="cut off"):
        read_header(b"TSPL\1\2\2")


@needs_kernel
def test_a_header_of_another_picture_is_an_error():
    data, other = stored(picture()), stored(picture(99, 80))
    failures = make_decoder("turbo").decode(
        [data], [read_header(other)], [place(other, Decode())], [[torch.empty(3, 80, 99, dtype=torch.uint8)]]
    )

    assert "header" in str(failures[0])


@pytest.mark.parametrize("shape", [(3, 8, 9), (2, 3, 7, 5), (4, 3, 1, 1)], ids=str)
def test_yuv_to_rgb_is_the_conversion_of_jpeg(shape):
    rng = np.random.default_rng(1)
    yuv = torch.from_numpy(rng.integers(0, 256, shape, np.uint8))
    flat = yuv.movedim(-3, -1).reshape(-1, 1, 3).numpy()
    y, cb, cr = (flat[..., i].astype(float) for i in range(3))
    exact = np.stack(
        (
            y + 1.402 * (cr - 128),
            y - 0.344136286 * (cb - 128) - 0.714136286 * (cr - 128),
            y + 1.772 * (cb - 128),
        ),
        axis=-1,
    )

    ours = yuv_to_rgb(yuv).movedim(-3, -1).reshape(-1, 1, 3).numpy()

    assert np.abs(ours - exact.clip(0, 255)).max() <= 0.51


def test_yuv_to_rgb_refuses_what_is_none():
    with pytest.raises(ValueError, match=r"\[\.\.\., 3, H, W\]"):
        yuv_to_rgb(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"chroma must be uint8 \[2, 2, 3, 3\]"):
        yuv_to_rgb(torch.zeros(2, 1, 5, 5, dtype=torch.uint8), torch.zeros(2, 2, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="uint8"):
        yuv_to_rgb(torch.zeros(2, 3, 4, 4))
