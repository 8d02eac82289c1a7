"""JPEG files with restart markers, written without loss: `index_jpeg` and ``pack(pixels="jpeg-indexed")``."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sanitizer import build_sanitized
from torchvision.io import decode_jpeg

import torchslip as ts
from torchslip.cli import main
from torchslip.decode import backends, index_jpeg, read_header
from torchslip.errors import MissingDependencyError, SampleError

STATUS = next(each for each in backends() if each.name == "turbo")
ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(not STATUS.available, reason=STATUS.why_not or "available"),
    # torchvision 0.29 announces that its decoders will leave for TorchCodec.
    pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning"),
]


def picture(width=200, height=120, mode="RGB", seed=0):
    """Waves with film grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * a + y * b) for a, b in rng.uniform(0.01, 0.1, (3, 2))]
    pixels = 128 + 90 * np.stack(waves, axis=-1) + rng.normal(0, 5, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(width=200, height=120, mode="RGB", **options):
    out = io.BytesIO()
    picture(width, height, mode).save(out, "JPEG", **options)
    return out.getvalue()


def with_sampling(data, factors):
    """The same MCUs, with other sampling factors of luma: as many blocks in each, elsewhere."""
    at = data.index(b"\xff\xc0") + 11
    return data[:at] + bytes([factors]) + data[at + 1 :]


def opened(data):
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


def interval_of(data):
    """What the DRI segment says; 0 without one."""
    at = data.find(b"\xff\xdd\x00\x04")
    return int.from_bytes(data[at + 4 : at + 6], "big") if at >= 0 else 0


def markers(data):
    """The numbers of the restart markers, in order."""
    scan = data[data.index(b"\xff\xda") :]
    return [after - 0xD0 for before, after in pairwise(scan) if before == 255 and 0xD0 <= after < 0xD8]


def assert_equal_pictures(one, other):
    """For two decoders, of which one gives the raw colours of CMYK; and the tables that their quality depends on."""
    ours, theirs = opened(one), opened(other)
    assert ours.mode == theirs.mode and ours.quantization == theirs.quantization
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in (one, other)]
    assert torch.equal(*(decode_jpeg(each) for each in tensors))


SOURCES = {
    "4:2:0": jpeg(),
    "4:2:2": jpeg(subsampling="4:2:2"),
    "4:4:4": jpeg(subsampling="4:4:4"),
    "4:1:1": with_sampling(jpeg(256, 128), 0x41),
    "4:4:0": with_sampling(jpeg(256, 128, subsampling="4:2:2"), 0x12),
    "gray": jpeg(mode="L"),
    "cmyk": jpeg(mode="CMYK"),
    "progressive": jpeg(progressive=True),
    "progressive gray": jpeg(mode="L", progressive=True),
    "best": jpeg(quality=100, subsampling="4:4:4"),
    "rows": jpeg(restart_marker_rows=1),
    "blocks": jpeg(restart_marker_blocks=5),
}


@pytest.mark.parametrize("optimize", [True, False, None])
@pytest.mark.parametrize("name", SOURCES)
def test_every_decoder_gives_the_pixels_of_the_source(name, optimize):
    result = index_jpeg(SOURCES[name], optimize=optimize)

    assert_equal_pictures(result, SOURCES[name])
    assert "progressive" not in opened(result).info and read_header(result) == read_header(SOURCES[name])


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_indexed_already_is_written_alike(name):
    result = index_jpeg(SOURCES[name])

    assert index_jpeg(result) == result


@pytest.mark.parametrize(
    ("width", "options", "interval"),
    [
        (1, {}, 1),
        (16, {}, 1),
        (17, {}, 2),
        (48, {}, 3),
        (64, {}, 4),
        (65, {}, 1),
        (96, {}, 3),
        (16 * 25, {}, 1),
        (64, {"subsampling": "4:4:4"}, 4),
        (24, {"subsampling": "4:4:4"}, 3),
        (64, {"mode": "L"}, 8),
        (56, {"mode": "L"}, 7),
        (72, {"mode": "L"}, 3),
        (8 * 11, {"mode": "L"}, 1),
    ],
)
def test_the_interval_is_the_longest_that_divides_a_row(width, options, interval):
    result = index_jpeg(jpeg(width, 37, **options))
    mcu_px = 8 if options else 16
    mcus = -(-width // mcu_px) * -(-37 // mcu_px)

    assert interval_of(result) == interval
    assert markers(result) == [number % 8 for number in range(-(-mcus // interval) - 1)]


def test_wide_mcus_make_no_wide_tiles():
    assert interval_of(index_jpeg(SOURCES["4:1:1"])) == 2


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (8, 8), (15, 17), (131, 97), (33, 500), (500, 33)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_odd_sizes_are_kept(size, subsampling):
    data = jpeg(*size, subsampling=subsampling)

    assert_equal_pictures(index_jpeg(data), data)


def test_profile_exif_and_comment_are_kept():
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = bytes(range(256)) * 300  # two segments
    data = jpeg(exif=exif, icc_profile=profile, comment=b"seen in spring", dpi=(300, 200))
    result = opened(index_jpeg(data))

    assert result.getexif()[0x0112] == 6 and result.info["icc_profile"] == profile
    assert result.info["comment"] == b"seen in spring" and result.info["dpi"] == (300, 200)
    assert result.app == opened(data).app and result.applist == opened(data).applist


@pytest.mark.parametrize("factors", [b"RGB", b"\x00\x01\x02"])
def test_colours_are_told_as_the_source_tells_them(factors):
    """By the numbers of the components, without any segment: what JFIF would say is another thing."""
    data = jpeg(subsampling="4:4:4")
    data = data[:2] + data[2 + 2 + int.from_bytes(data[4:6], "big") :]
    for number, name in enumerate(factors):
        frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
        data = bytearray(data)
        data[frame + 10 + 3 * number] = data[scan + 5 + 2 * number] = name
        data = bytes(data)

    result = index_jpeg(data)

    assert_equal_pictures(result, data)
    assert b"JFIF" not in result and b"Adobe" not in result


def test_a_file_of_several_pictures_becomes_one_of_the_first():
    out = io.BytesIO()
    picture(seed=1).save(out, "MPO", save_all=True, append_images=[picture(seed=2)])
    result = index_jpeg(out.getvalue())

    assert opened(out.getvalue()).format == "MPO" and opened(result).format == "JPEG"
    assert np.array_equal(np.asarray(opened(result)), np.asarray(opened(out.getvalue())))


def test_tables_made_for_the_picture_more_than_pay_for_the_markers(photos):
    files = [path.read_bytes() for path in sorted(photos.glob("*/*/*"))[:20]]
    plain = [reencoded(data) for data in files]
    own, standard = ([index_jpeg(data, optimize=each) for data in plain] for each in (True, False))
    sizes = [sum(map(len, each)) for each in (plain, own, standard)]

    assert sizes[1] < sizes[0] < sizes[2] < 1.03 * sizes[0]


def test_tables_are_made_for_a_picture_only_where_that_saves_4_kb():
    small, large = jpeg(256, 256, quality=95), jpeg(1600, 1200, quality=95)

    assert index_jpeg(small) == index_jpeg(small, optimize=False)
    assert index_jpeg(large) == index_jpeg(large, optimize=True)
    assert len(index_jpeg(large)) <= len(index_jpeg(large, optimize=False)) - 4096


def reencoded(data):
    out = io.BytesIO()
    opened(data).convert("RGB").resize((384, 256)).save(out, "JPEG", quality=95, subsampling="4:2:0")
    return out.getvalue()


WHOLE = SOURCES["4:2:0"]
SCANS = SOURCES["progressive"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be indexed"),
        (b"\xff\xd8", "truncated"),
        (WHOLE[:300], "truncated"),
        (WHOLE[: len(WHOLE) // 2], "truncated"),
        (WHOLE[:-2], "truncated"),
        (SCANS[: len(SCANS) // 2], "truncated"),
        (SCANS[: SCANS.rindex(b"\xff\xda")] + b"\xff\xd9", "lacks some of its progressive scans"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "Not a JPEG"),
        (WHOLE.replace(b"\xff\xc0\x00\x11\x08\x00\x78", b"\xff\xc0\x00\x11\x08\xff\xdc", 1)[:-2], "truncated"),
        (WHOLE.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c", 1), "precision 12"),
        (
            WHOLE.replace(b"\xff\xc0\x00\x11\x08\x00\x78\x00\xc8", b"\xff\xc0\x00\x11\x08\xff\xdc\xff\xdc", 1),
            "more than 268 million pixels",
        ),
    ],
)
def test_what_is_no_whole_jpeg_is_an_error_that_says_so(data, reason):
    with pytest.raises(SampleError, match=reason):
        index_jpeg(data)


def test_thousands_of_scans_are_refused():
    start = SCANS.rindex(b"\xff\xda")

    with pytest.raises(SampleError, match="more than 500 scans"):
        index_jpeg(SCANS[:start] + SCANS[start:-2] * 600 + SCANS[-2:])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_packed_folder_has_the_same_pixels_and_all_its_jpeg_files_are_indexed(picture_folder, tmp_path):
    ts.pack(picture_folder, tmp_path / "out", pixels="jpeg-indexed")
    before, after = ts.ImageFolder(picture_folder), ts.MDS(tmp_path / "out")

    for old, new in zip(before.fetch(range(42)), after.fetch(range(42)), strict=True):
        old, new = old["image"], new["image"]
        if read_header(old).format == "jpeg":
            assert_equal_pictures(old, new)
            assert interval_of(new)
        else:
            assert old == new
    assert (
        after.image_sizes("image").tolist()
        == ts.MDS(plain_pack(picture_folder, tmp_path)).image_sizes("image").tolist()
    )


def plain_pack(folder, tmp_path):
    return ts.pack(folder, tmp_path / "plain").path


@pytest.mark.parametrize("decoder", ["turbo", "torchvision"])
def test_batches_are_those_of_the_source(picture_folder, tmp_path, decoder):
    ts.pack(picture_folder, tmp_path / "out", pixels="jpeg-indexed")
    batches = [
        list(
            ts.ImageDataset(path, views=ts.RandomResizedCrop(64), batch_size=14, shuffle=True, seed=3, decoder=decoder)
        )
        for path in (picture_folder, tmp_path / "out")
    ]

    for one, other in zip(*batches, strict=True):
        assert torch.equal(one["image"], other["image"]) and torch.equal(one["label"], other["label"])


def test_pictures_that_are_made_jpeg_or_smaller_are_indexed_too(picture_folder, tmp_path):
    for name, rule in {"jpeg": "jpeg", "small": ts.Resize(shorter=32)}.items():
        ts.pack(picture_folder, tmp_path / name, image=rule, pixels="jpeg-indexed")
        ts.pack(picture_folder, tmp_path / f"{name} plain", image=rule)
        pairs = zip(*(ts.MDS(tmp_path / each).fetch(range(42)) for each in (name, f"{name} plain")), strict=True)
        for indexed, plain in pairs:
            assert read_header(indexed["image"]) == read_header(plain["image"])
            assert np.array_equal(*(np.asarray(opened(each["image"])) for each in (indexed, plain)))
            assert interval_of(indexed["image"]) or read_header(indexed["image"]).format != "jpeg"


def test_any_executor_writes_the_same_bytes(picture_folder, tmp_path):
    options = {"pixels": "jpeg-indexed", "shard_bytes": "64kb"}
    ts.pack(picture_folder, tmp_path / "default", **options)
    for name, executor in {"threads": ThreadPoolExecutor(4), "processes": ProcessPoolExecutor(2)}.items():
        with executor:
            ts.pack(picture_folder, tmp_path / name, executor=executor, **options)
        assert contents(tmp_path / name) == contents(tmp_path / "default")


def test_it_is_another_dataset_than_that_of_the_files_as_they_are(picture_folder, tmp_path):
    ts.pack(picture_folder, tmp_path / "out")
    with pytest.raises(FileExistsError, match="another dataset"):
        ts.pack(picture_folder, tmp_path / "out", pixels="jpeg-indexed")

    ts.pack(picture_folder, tmp_path / "out", pixels="jpeg-indexed", exist_ok=True)
    packed = ts.MDS(tmp_path / "out").sidecar.packed
    assert packed["pixels"] == "jpeg-indexed" and packed["indexer"].startswith("libjpeg-turbo ")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cut.jpg").write_bytes(WHOLE[:-700])

    for check in (True, False):
        with pytest.raises(SampleError, match=r"cut\.jpg.*truncated"):
            ts.pack(tmp_path / "in", tmp_path / f"out {check}", pixels="jpeg-indexed", verify=check)


def test_without_the_kernel_the_remedy_is_told(tmp_path, picture_folder, monkeypatch):
    from torchslip.decode import _turbo

    monkeypatch.setattr(_turbo, "LIBRARY", tmp_path / "none.so")
    monkeypatch.setattr(_turbo, "WHY_NOT_BUILT", tmp_path / "not_built.txt")

    with pytest.raises(MissingDependencyError, match=r"jpeg-indexed.*pip install -e \."):
        ts.pack(picture_folder, tmp_path / "out", pixels="jpeg-indexed")
    with pytest.raises(MissingDependencyError, match="compiled kernel"):
        index_jpeg(WHOLE)
    assert not (tmp_path / "out").exists()


def test_the_command_line_packs_so_too(picture_folder, tmp_path, monkeypatch):
    command = ["torchslip", "pack", picture_folder, tmp_path / "out", "--pixels", "jpeg-indexed"]
    monkeypatch.setattr(sys, "argv", [str(each) for each in command])
    with pytest.raises(SystemExit) as ended:
        main()

    ts.pack(picture_folder, tmp_path / "same", pixels="jpeg-indexed")
    assert ended.value.code == 0 and contents(tmp_path / "out") == contents(tmp_path / "same")


@pytest.mark.parametrize("cases", [1500, pytest.param(40000, marks=pytest.mark.slow)])
def test_fuzzed_files_pass_the_address_sanitizer_and_keep_their_coefficients(tmp_path, cases):
    build_sanitized(tmp_path / "fuzz", ROOT / "tests/transcode_fuzz.c", include=ROOT / "torchslip/decode/turbo")
    for number, data in enumerate(SOURCES.values()):
        (tmp_path / f"{number}.jpg").write_bytes(data)

    command = [tmp_path / "fuzz", str(cases), "7", *sorted(tmp_path.glob("*.jpg"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90 + cases / 100)

    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) > cases // 4
