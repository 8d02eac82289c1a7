"""The compiled decoder, beyond the contract of every backend in test_decoders.py."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sanitizer import build_sanitized

import torchslip as ts
from torchslip.decode import Draws, Placement, View, backends, make_decoder, read_header, store_planes

STATUS = next(each for each in backends() if each.name == "turbo")
ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not STATUS.available, reason=STATUS.why_not or "available")

if STATUS.available:
    from torchslip.decode._turbo import TurboDecoder


def picture(seed: int, *, width: int = 320, height: int = 240, format: str = "JPEG", **options: object) -> bytes:
    """A smooth pattern with film grain, different for every seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * a + y * b) for a, b in rng.uniform(0.01, 0.1, (3, 2))]
    pixels = 128 + 90 * np.stack(waves, axis=-1) + rng.normal(0, 5, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, format, **options)
    return buffer.getvalue()


def place(images: list[bytes], view: View) -> Placement:
    sizes = np.array([(read_header(data).height, read_header(data).width) for data in images])
    return view.place(sizes, Draws(np.arange(len(images)), seed=0, view="image", epoch=0))


def decode(
    images: list[bytes], *placements: Placement, fill: int = 77, decoder: str | None = None, **options: object
) -> list[list[torch.Tensor]]:
    outputs = [[torch.full((3, *size), fill, dtype=torch.uint8) for size in each.size.tolist()] for each in placements]
    made = make_decoder(decoder) if decoder else TurboDecoder(**options)
    failures = made.decode(images, [read_header(data) for data in images], placements, outputs)
    assert not failures
    return outputs


def equal(one: list[list[torch.Tensor]], other: list[list[torch.Tensor]]) -> bool:
    return all(
        torch.equal(a, b) for mine, yours in zip(one, other, strict=True) for a, b in zip(mine, yours, strict=True)
    )


def test_auto_is_turbo():
    assert make_decoder().name == "turbo"


def test_the_kernel_takes_every_jpeg_that_it_says_it_takes(picture_folder: Path, monkeypatch):
    monkeypatch.setattr("torchslip.decode._turbo.TorchvisionDecoder", None)
    files = [path.read_bytes() for path in sorted(picture_folder.glob("*/*"))]
    images = [data for data in files if read_header(data).components in (1, 3)]

    assert len(images) == 18
    decode(images, place(images, ts.RandomResizedCrop(64)), threads=2)


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_any_number_of_threads_gives_the_same_bytes(threads):
    images = [picture(seed) for seed in range(24)]
    placement = place(images, ts.RandomResizedCrop(96))

    assert equal(decode(images, placement, threads=threads), decode(images, placement, threads=1))


@pytest.mark.parametrize("passes", ["portable", "avx2"])
@pytest.mark.parametrize("size", [37, 96, 224])
def test_portable_and_vector_passes_give_the_same_bytes(size, passes, monkeypatch):
    images = [picture(seed) for seed in range(16)]
    placement = place(images, ts.RandomResizedCrop(size))
    best = decode(images, placement)
    monkeypatch.setenv("TORCHSLIP_TURBO_PASSES", passes)

    assert equal(decode(images, placement), best)


RESTARTS = [{}, {"restart_marker_blocks": 1}, {"restart_marker_blocks": 3}, {"restart_marker_rows": 1}]


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("restarts", RESTARTS, ids=str)
def test_our_entropy_decoder_gives_the_bytes_of_libjpegs(subsampling, restarts, monkeypatch):
    images = [
        picture(seed, width=283, height=211, subsampling=subsampling, quality=95, optimize=seed % 2 == 0, **restarts)
        for seed in range(6)
    ]
    placements = [place(images, view) for view in (ts.RandomResizedCrop(64), ts.CenterCrop(50), ts.Decode())]
    ours = decode(images, *placements)
    monkeypatch.setenv("TORCHSLIP_TURBO_ENTROPY", "libjpeg")

    assert equal(decode(images, *placements), ours)


def contents(name: str) -> np.ndarray:
    """uint8 ``[211, 283]``: what makes long codes, full blocks, empty blocks, and large differences between blocks."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:211, :283]
    pixels = {
        "noise": rng.integers(0, 256, y.shape),
        "flat": np.full(y.shape, 90),
        "blocks": 255 * ((x // 8 + y // 8) % 2),
        "pixels": 255 * ((x + y) % 2),
        "specks": 255 * (rng.random(y.shape) < 0.003),
        "half": np.where(x < 140, 128 + 60 * np.sin(x * y / 99), rng.integers(0, 256, y.shape)),
    }
    return pixels[name].astype(np.uint8)


@pytest.mark.parametrize("optimize", [False, True], ids=["usual tables", "own tables"])
@pytest.mark.parametrize("quality", [5, 60, 100])
def test_our_entropy_decoder_gives_the_bytes_of_libjpegs_for_extreme_contents(quality, optimize, monkeypatch):
    images = []
    for name in ("noise", "flat", "blocks", "pixels", "specks", "half"):
        for mode in ("L", "RGB"):
            buffer = io.BytesIO()
            Image.fromarray(contents(name)).convert(mode).save(buffer, "JPEG", quality=quality, optimize=optimize)
            images.append(buffer.getvalue())
    placements = [place(images, view) for view in (ts.RandomResizedCrop(40), ts.CenterCrop(50), ts.Decode())]
    ours = decode(images, *placements, threads=1)
    monkeypatch.setenv("TORCHSLIP_TURBO_ENTROPY", "libjpeg")

    assert equal(decode(images, *placements, threads=1), ours)


def test_a_tile_between_restart_markers_is_read_without_the_others():
    image = picture(3, width=256, height=256, restart_marker_blocks=4)  # 16 MCUs of 16 pixels in a row
    box = np.array([[130, 140, 40, 40]])
    (whole,) = decode([image], Placement.of_crops(box, box[:, 2:]))[0]
    markers = [i for i in range(len(image)) if image[i] == 0xFF and 0xD0 <= image[i + 1] <= 0xD7]
    blank = bytearray(image)
    # Every tile but those of rows 128 to 175 and columns 128 to 191, which the crop and its edge lie in.
    for tile, (begin, end) in enumerate(pairwise(markers), 1):
        if not (8 <= tile // 4 <= 10 and tile % 4 == 2):
            blank[begin + 2 : end] = bytes(end - begin - 2)
    (alone,) = decode([bytes(blank)], Placement.of_crops(box, box[:, 2:]))[0]

    assert torch.equal(alone, whole)


def test_views_together_are_what_each_gives_alone_at_full_scale():
    images = [picture(seed, width=900, height=700) for seed in range(4)]
    views = (ts.RandomResizedCrop(224), ts.ResizeCrop(20, 20), ts.ResizeCrop(64, (90, 30)), ts.CenterCrop(50))
    placements = [place(images, view) for view in views]

    together = decode(images, *placements, scaled_decode=False)

    assert equal(together, [decode(images, placement, scaled_decode=False)[0] for placement in placements])


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_region_has_the_pixels_of_the_whole_picture(subsampling, progressive):
    image = picture(5, width=147, height=93, subsampling=subsampling, progressive=progressive)
    (whole,) = decode([image], place([image], ts.Decode()))[0]
    rng = np.random.default_rng(0)

    for _ in range(100):
        bottom, right = rng.integers(1, (94, 148))
        top, left = rng.integers(0, (bottom, right))
        box = np.array([[top, left, bottom - top, right - left]])
        (crop,) = decode([image], Placement.of_crops(box, box[:, 2:]))[0]
        assert torch.equal(crop, whole[:, top:bottom, left:right])


def test_resampling_is_that_of_torch_within_one_level():
    rng = np.random.default_rng(0)
    image = picture(6, width=301, height=203, quality=95)
    for _ in range(60):
        height, width = rng.integers(1, (204, 302))
        box = np.array([[203 - height, 301 - width, height, width]])
        placement = Placement.of_crops(box, rng.integers(1, 280, (1, 2)))
        (mine,), (torchs,) = (
            decode([image], placement, scaled_decode=False)[0],
            decode([image], placement, decoder="torchvision")[0],
        )

        assert (mine.int() - torchs.int()).abs().max() <= 1


def test_an_even_surface_stays_even():
    buffer = io.BytesIO()
    Image.new("RGB", (333, 222), (200, 100, 50)).save(buffer, "JPEG", quality=95)
    image = buffer.getvalue()
    (whole,) = decode([image], place([image], ts.Decode()))[0]

    (resized,) = decode([image], place([image], ts.ResizeCrop((71, 97), (71, 97))))[0]

    assert torch.equal(resized, whole[:, :71, :97])


def test_other_formats_in_a_batch_go_to_the_other_decoder():
    images = [picture(0), picture(1, format="PNG"), picture(2), picture(3, format="WEBP"), picture(4)]
    placement = place(images, ts.RandomResizedCrop(64))

    outputs = decode(images, placement)[0]

    for row, output in enumerate(outputs):
        alone = Placement(
            *(part[[row]] for part in (placement.box, placement.resized, placement.window, placement.size))
        )
        assert torch.equal(output, decode([images[row]], alone)[0][0])
    assert torch.equal(outputs[1], decode(images, placement, decoder="torchvision")[0][1])


@pytest.mark.parametrize("threads", [1, 4])
def test_damaged_rows_fail_alone_for_the_reason_of_the_other_decoder(threads):
    images = [picture(seed) for seed in range(9)]
    images[2] = images[2][: len(images[2]) // 2]
    images[5] = images[5][:-2]
    images[7] = images[7][:2] + b"\xff\xfe\x00\x04xx" + images[7][2:]  # a comment: nothing wrong
    placement = place(images, ts.RandomResizedCrop((64, 48)))
    outputs = [[torch.zeros(3, 64, 48, dtype=torch.uint8) for _ in images]]
    headers = [read_header(data) for data in images]

    failures = TurboDecoder(threads=threads).decode(images, headers, [placement], outputs)

    assert sorted(failures) == [2, 5] and all("truncated" in str(error) for error in failures.values())
    assert sorted(make_decoder("torchvision").decode(images, headers, [placement], outputs)) == [2, 5]
    assert all(outputs[0][row].any() for row in range(9) if row not in failures)


def test_a_cut_below_the_crop_is_an_error_too():
    image = picture(0)
    placement = Placement.of_crops(np.array([[0, 0, 16, 16]]), np.array([[8, 8]]))
    output = [[torch.empty(3, 8, 8, dtype=torch.uint8)]]

    assert list(TurboDecoder().decode([image[:-900]], [read_header(image)], [placement], output)) == [0]


def test_a_header_that_lies_about_the_size_is_an_error():
    image = picture(0)
    header = read_header(picture(0, width=200, height=100))
    placement = Placement.of_crops(np.array([[0, 0, 16, 16]]), np.array([[8, 8]]))

    failures = TurboDecoder().decode([image], [header], [placement], [[torch.empty(3, 8, 8, dtype=torch.uint8)]])

    assert "320" in str(failures[0])


def test_no_picture_shows_anything_of_the_one_before():
    """Neither pixels nor tables: without its own Huffman tables a file must not be decoded with those of another."""
    others = [picture(seed, quality=30 + seed, optimize=True) for seed in range(8)]
    image = picture(9, width=70, height=50)
    bare = image
    while (at := bare.find(b"\xff\xc4")) >= 0:
        bare = bare[:at] + bare[at + 2 + int.from_bytes(bare[at + 2 : at + 4], "big") :]
    box = Placement.of_crops(np.array([[3, 5, 40, 60]]), np.array([[33, 44]]))
    first = decode([image], box, fill=0, threads=1)

    decode(others, place(others, ts.Decode()), threads=1)

    assert equal(decode([image], box, fill=255, threads=1), first)
    # The tables that it lacks are the standard ones.
    assert equal(decode([bare], box, threads=1), first)


def square(image: bytes, side: int, top: int = 0, left: int = 0, crop: int = 640) -> Placement:
    return Placement.of_crops(np.array([[top, left, crop, crop]]), np.array([[side, side]]))


def test_only_crops_of_two_and_a_half_times_the_output_are_decoded_at_a_smaller_scale():
    image = picture(3, width=640, height=640, quality=95)

    def differs(side: int, ratio: bool | float = True) -> bool:
        placement = square(image, side)
        return not equal(
            decode([image], placement, scaled_decode=ratio), decode([image], placement, scaled_decode=False)
        )

    assert not differs(257)
    assert differs(256) and differs(128) and differs(64)
    assert not differs(321, ratio=2) and differs(320, ratio=2)
    assert not differs(161, ratio=4) and differs(160, ratio=4)


def test_a_least_ratio_below_two_is_refused():
    with pytest.raises(ValueError, match=r"at least 2.*got 1\.5"):
        TurboDecoder(scaled_decode=1.5)


@pytest.mark.parametrize("side", [320, 300, 217, 160, 111, 80, 55])
def test_smooth_pictures_are_the_same_at_every_scale(side):
    """Straight slopes and slow waves: a shift of half a pixel, or a second blur, is more than this allows."""
    y, x = np.mgrid[:640, :640]
    pixels_of_output = 640 / side
    waves = 60 * np.sin(x * 2 * np.pi / (8 * pixels_of_output) + 1) + 60 * np.cos(
        y * 2 * np.pi / (12 * pixels_of_output)
    )
    buffer = io.BytesIO()
    pixels = np.stack((128 + waves, x * 0.2 + y * 0.15 + 20, 250 - x * 0.3), axis=-1)
    Image.fromarray(pixels.round().astype(np.uint8)).save(buffer, "JPEG", quality=99, subsampling="4:4:4")
    image = buffer.getvalue()

    for top, left, crop in ((0, 0, 640), (0, 0, max(2 * side, 603)), (37, 35, max(2 * side, 603))):
        if top + crop > 640:
            continue
        placement = square(image, side, top, left, crop)
        apart = (
            decode([image], placement, scaled_decode=2)[0][0].int()
            - decode([image], placement, scaled_decode=False)[0][0].int()
        )
        assert apart.abs().max() <= 3 and apart.abs().float().mean() <= 0.48


@pytest.mark.parametrize(
    ("side", "ratio", "mean", "hardest_mean", "largest"),
    [(96, 2, 2, 10, 96), (48, 2, 2, 10, 96), (48, 2.5, 1.6, 8, 64), (48, 4, 0.6, 3, 32)],
)
def test_photographs_at_a_smaller_scale_differ_from_full_scale_by_what_is_said(
    side, ratio, mean, hardest_mean, largest, photos: Path
):
    rng = np.random.default_rng(side)
    crops = []
    for path in sorted(photos.glob("*/*/*"))[::8]:
        image = path.read_bytes()
        header = read_header(image)
        if header.components != 3 or min(header.height, header.width) < 1.1 * ratio * side:
            continue
        height, width = (int(side * rng.uniform(ratio, 1.1 * ratio)) for _ in range(2))
        box = [[rng.integers(header.height - height + 1), rng.integers(header.width - width + 1), height, width]]
        placement = Placement.of_crops(np.array(box), np.array([[side, side]]))
        scaled, full = (decode([image], placement, scaled_decode=each)[0][0].float() for each in (ratio, False))
        crops.append((scaled - full).abs())

    assert len(crops) > 60
    assert np.mean([float(each.mean()) for each in crops]) <= mean
    assert max(each.mean() for each in crops) <= hardest_mean and max(each.max() for each in crops) <= largest


def test_views_share_a_scale_where_that_is_less_work():
    image = picture(3, width=640, height=640, quality=95)
    small, native = square(image, 160), square(image, 96, crop=96)

    together = decode([image], small, square(image, 640))[0]
    apart = decode([image], small)[0]
    exact = decode([image], small, scaled_decode=False)[0]
    assert equal([together], [exact]) and not equal([together], [apart])

    large = picture(3, width=2000, height=2000, quality=30)
    whole = square(large, 64, crop=2000)
    together = decode([large], native, whole)
    assert equal(together, [decode([large], native)[0], decode([large], whole)[0]])


def test_a_dataset_takes_a_decoder_with_options(picture_folder: Path):
    from torchslip.decode import TurboDecoder

    def first(decoder: object) -> torch.Tensor:
        return next(iter(ts.ImageDataset(picture_folder, views=ts.ResizeCrop(12, 12), batch_size=42, decoder=decoder)))[
            "image"
        ]

    exact = first(TurboDecoder(scaled_decode=False))

    assert (exact.int() - first("torchvision").int()).abs().max() <= 8
    assert not torch.equal(exact, first("turbo"))


def test_outputs_may_have_any_layout():
    image = picture(3)
    placement = place([image], ts.ResizeCrop(100, (120, 90)))
    (plain,) = decode([image], placement)[0]
    wide = torch.full((130, 100, 3), 9, dtype=torch.uint8)
    inside = wide[5:125, 5:95].permute(2, 0, 1)

    assert not TurboDecoder().decode([image], [read_header(image)], [placement], [[inside]])
    assert torch.equal(inside, plain)
    inside.fill_(9)
    assert (wide == 9).all()


def test_an_impossible_number_of_threads_is_refused():
    with pytest.raises(ValueError, match="threads must be at least 1"):
        TurboDecoder(threads=0)


def test_processes_forked_in_between_decode_too(tmp_path: Path):
    for seed in range(12):
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / f"{seed}.jpg").write_bytes(picture(seed))
    dataset = ts.ImageDataset(tmp_path, views=ts.RandomResizedCrop(32), batch_size=3, shuffle=True, seed=1)
    here = [batch["image"] for batch in ts.DataLoader(dataset)]

    dataset.set_epoch(0)
    there = [batch["image"] for batch in ts.DataLoader(dataset, num_workers=2)]

    assert equal([here], [there])


def test_fuzzed_files_and_geometry_pass_the_address_sanitizer(tmp_path: Path):
    folder = ROOT / "torchslip/decode/turbo"
    parts = [path for path in sorted(folder.glob("*.c")) if path.name != "turbo.c"]
    build_sanitized(tmp_path / "fuzz", ROOT / "tests/turbo_fuzz.c", *parts, include=folder)
    options = {
        "baseline": {"quality": 90},
        "progressive": {"progressive": True},
        "full_chroma": {"subsampling": "4:4:4"},
        "half_chroma": {"subsampling": "4:2:2"},
        "restart": {"restart_marker_rows": 1},
        "tiles": {"restart_marker_blocks": 3, "quality": 95},
    }
    for name, each in options.items():
        (tmp_path / f"{name}.jpg").write_bytes(picture(1, width=131, height=97, **each))
    (tmp_path / "tiny.jpg").write_bytes(picture(1, width=7, height=5))
    for mode in ("L", "CMYK"):
        Image.open(tmp_path / "baseline.jpg").convert(mode).save(tmp_path / f"{mode}.jpg")

    for path in sorted(tmp_path.glob("*.jpg")):
        path.with_suffix(".planes").write_bytes(store_planes(path.read_bytes(), read_header(path.read_bytes())))

    command = [tmp_path / "fuzz", "2500", "7", *sorted(tmp_path.glob("*.*"))]
    digests = []
    for byte in (0, 255):
        fresh_memory = {"ASAN_OPTIONS": f"max_malloc_fill_size={1 << 30}:malloc_fill_byte={byte}"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=80, env=os.environ | fresh_memory)
        assert done.returncode == 0, done.stdout + done.stderr
        digests.append(done.stdout)

    assert digests[0] == digests[1] and int(digests[0].split()[0]) > 800


def test_loading_the_package_compiles_nothing():
    code = "import sys, torchslip, torchslip.decode; print('torchslip.decode._turbo' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "False\n"
