"""What several test modules use: real photographs, and a folder of drawn pictures in every common encoding."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import s3_servers
from hypothesis import settings
from PIL import Image, ImageDraw

# The same examples in every run, and no time limit for one on a busy machine.
settings.register_profile("torchslip", deadline=None, derandomize=True)
settings.load_profile("torchslip")

CHILDREN = ("cache", "cached", "lease", "mds", "pack")
# A session has one fork server, so what it imports is said before any test starts it. New processes then begin at once,
# and a kill after some milliseconds is no kill of imports.
if sys.platform != "win32":
    multiprocessing.set_forkserver_preload(
        [*("torchslip.pack", "torchslip.storage", "s3fs"), *(f"{name}_children" for name in CHILDREN)]
    )

SHARED_DATA = Path(__file__).parents[1] / "../shared/data"

# file name, Pillow mode, options of Image.save
ENCODINGS = (
    ("baseline.jpg", "RGB", {"quality": 90}),
    ("progressive.jpg", "RGB", {"quality": 85, "progressive": True}),
    ("full_chroma.jpg", "RGB", {"quality": 95, "subsampling": "4:4:4"}),
    ("half_chroma.jpeg", "RGB", {"quality": 75, "subsampling": "4:2:2"}),
    ("restart.JPG", "RGB", {"quality": 85, "restart_marker_rows": 1}),
    ("grayscale.jpg", "L", {"quality": 90}),
    ("cmyk.jpg", "CMYK", {"quality": 90}),
    ("plain.png", "RGB", {}),
    ("palette.png", "P", {}),
    ("alpha.png", "RGBA", {}),
    ("deep.png", "I;16", {}),
    ("lossy.webp", "RGB", {"quality": 80}),
    ("plain.bmp", "RGB", {}),
    ("plain.tiff", "RGB", {"compression": "tiff_lzw"}),
)


@pytest.fixture
def fork_server_of_now() -> Iterator[None]:
    """A fork server that has the environment of this test."""
    if sys.platform == "win32":
        pytest.skip("there is no fork server on Windows")
    from multiprocessing import forkserver

    forkserver._forkserver._stop()
    yield
    forkserver._forkserver._stop()


@pytest.fixture(scope="session")
def photos() -> Path:
    """Real photographs as ``{train,val}/class/file.jpg``; without them, the tests that need them are skipped."""
    path = Path(os.environ.get("TORCHSLIP_TEST_DATA", SHARED_DATA)) / "photos"
    if not path.is_dir():
        pytest.skip(f"no photographs at {path}; set TORCHSLIP_TEST_DATA to the folder that holds photos/")
    return path


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 14 pictures each, one per encoding, from 8 x 11 to 500 x 375 pixels; read only."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, shape in (("discs", "ellipse"), ("stripes", "line"), ("tiles", "rectangle")):
        (root / name).mkdir()
        for number, (file, mode, options) in enumerate(ENCODINGS):
            width, height = _size_px(rng, number, name)
            picture = _encode_mode(_draw(rng, shape, width, height), mode)
            picture.save(root / name / f"{number:02}-{file}", **options)
    return root


def _size_px(rng: np.random.Generator, number: int, name: str) -> tuple[int, int]:
    if number == 0:
        return {"discs": (500, 375), "stripes": (8, 11), "tiles": (333, 77)}[name]
    width, height = rng.integers(40, 400, 2).tolist()
    return width, height


def _draw(rng: np.random.Generator, shape: str, width: int, height: int) -> Image.Image:
    """A gradient between two colours with some film grain, and twelve figures of random colour and place on it."""
    x, y = np.linspace(0, 1, width), np.linspace(0, 1, height)[:, None]
    slope = (x * rng.random() + y * rng.random())[..., None]
    start, end = rng.integers(0, 256, (2, 3))
    pixels = start + (end - start) * slope / 2 + rng.normal(0, 4, (height, width, 3))
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(12):
        left, right = sorted(rng.integers(0, width, 2).tolist())
        top, bottom = sorted(rng.integers(0, height, 2).tolist())
        color = tuple(rng.integers(0, 256, 3).tolist())
        getattr(draw, shape)((left, top, right, bottom), fill=color, width=3)
    return picture


def _encode_mode(picture: Image.Image, mode: str) -> Image.Image:
    if mode == "P":
        return picture.quantize(64)
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        return picture
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 257)
    return picture.convert(mode)


@pytest.fixture(scope="session")
def moto_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server in memory."""
    with s3_servers.moto(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture(scope="session")
def rclone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its sub-folders are the buckets of the server at `rclone_url`."""
    return tmp_path_factory.mktemp("buckets")


@pytest.fixture(scope="session")
def rclone_url(rclone_folder: Path) -> Iterator[str]:
    """The address of an S3 server of real files."""
    with s3_servers.rclone(rclone_folder) as url:
        yield url


@pytest.fixture
def s3_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that S3 clients need, and nothing of the user's."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "S3_"))]:
        monkeypatch.delenv(name)
    for name, value in s3_servers.KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(moto_url: str, s3_keys: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new bucket at the server in memory, which S3_ENDPOINT_URL names."""
    monkeypatch.setenv("S3_ENDPOINT_URL", moto_url)
    name = s3_servers.make_bucket(moto_url)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def shared_proxy(moto_url: str) -> Iterator[s3_servers.FaultyProxy]:
    """One for all tests: clients for it are made once."""
    proxy = s3_servers.FaultyProxy(moto_url)
    yield proxy
    proxy.close()


@pytest.fixture
def proxy(
    bucket: str, shared_proxy: s3_servers.FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[s3_servers.FaultyProxy]:
    """What stands between the clients and `bucket`; without faults until the test sets some."""
    monkeypatch.setenv("S3_ENDPOINT_URL", shared_proxy.url)
    shared_proxy.set()
    yield shared_proxy
    shared_proxy.set()
