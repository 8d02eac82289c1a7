"""`verify` finds whatever was changed, and names shard and sample; `measure` counts every pixel."""

import gzip
import shutil
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from mds_samples import COLUMNS, sample
from PIL import Image

import torchslip as ts
from torchslip.errors import FormatError, SampleError
from torchslip.pack import measure, verify


@pytest.fixture(scope="module")
def packed(picture_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "set"
    ts.pack(picture_folder, out, shard_bytes="200kb", statistics=True)
    return out


@pytest.fixture
def copy(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "copy")
    return tmp_path / "copy"


def decoded(source):
    """The pixels of all pictures, as the dataset gives them."""
    dataset = ts.ImageDataset(source, views=ts.Decode(), batch_size=8, decoder="torchvision")
    return [picture.numpy() for batch in dataset for picture in batch["image"]]


def test_a_whole_dataset_has_no_problem(packed, picture_folder):
    for dataset in (packed, ts.MDS(packed), picture_folder):
        assert verify(dataset).problems == [] and verify(dataset).samples == 42
    assert verify(packed).hashed and not verify(picture_folder).hashed


@pytest.mark.parametrize("options", [{"compression": "zstd"}, {"hashes": None}, {"compression": "gz", "hashes": None}])
def test_every_encoding_and_compression_can_be_verified(tmp_path, options):
    with ts.MDSWriter(columns=COLUMNS, out=tmp_path / "set", size_limit="20kb", **options) as writer:
        for index in range(20):
            writer.write(sample(index))

    assert verify(tmp_path / "set").problems == []


def test_a_damaged_picture_is_named_with_its_shard_and_sample(copy):
    source = ts.MDS(copy)
    path, _, row = source.locate(20).partition(", sample ")
    data = bytearray((copy / path).read_bytes())
    image = source.fetch([20])[0]["image"]
    at = data.find(image)
    data[at + len(image) // 2 : at + len(image)] = bytes(len(image) - len(image) // 2)
    (copy / path).write_bytes(data)
    (hash_problem, *problems) = verify(copy).problems

    assert hash_problem.where == path and hash_problem.sample is None and "sha1" in hash_problem.reason
    assert [(each.where, each.sample) for each in problems] == [(path, 20)]
    assert int(row) == 20 - sum(ts.MDS(copy).shard_sizes[: int(path[-9:-4])])


@pytest.mark.parametrize("damage", ["missing", "cut", "longer", "offsets"])
def test_a_shard_that_cannot_be_read_is_one_problem(copy, damage):
    path = copy / "shard.00001.mds"
    data = path.read_bytes()
    changed = {"cut": data[:-1], "longer": data + b"\0", "offsets": data[:4] + b"\xff" * 8 + data[12:]}
    path.unlink() if damage == "missing" else path.write_bytes(changed[damage])
    found = verify(copy).problems

    assert {each.where for each in found} == {str(path)} and {each.sample for each in found} == {None}
    reason = {"missing": "No such file", "cut": "bytes; the index says", "longer": "bytes; the index says"}
    assert reason.get(damage, "offsets") in found[-1].reason


def test_a_compressed_shard_that_is_damaged_is_found(tmp_path, picture_folder):
    ts.pack(picture_folder, tmp_path / "set", compression="gz", hashes=None)
    path = tmp_path / "set" / "shard.00000.mds.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[2000] ^= 1
    size = path.stat().st_size
    path.write_bytes(bytes(size))
    (problem,) = verify(tmp_path / "set").problems

    assert problem.where == str(path) and "gz" in problem.reason


def test_every_changed_byte_is_found_where_there_are_hashes(copy):
    rng = np.random.default_rng(0)
    for path in (*copy.glob("*.mds"), copy / "torchslip.sidecar"):
        data = path.read_bytes()
        at = int(rng.integers(len(data)))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert str(path) in {problem.where for problem in verify(copy).problems}
        path.write_bytes(data)
    assert verify(copy).problems == []


def test_bad_files_of_a_folder_are_listed(tmp_path, picture_folder):
    shutil.copytree(picture_folder, tmp_path / "folder")
    bad = sorted((tmp_path / "folder").glob("*/*"))[7]
    bad.write_bytes(bad.read_bytes()[:-60])
    (problem,) = verify(tmp_path / "folder").problems

    assert (problem.where, problem.sample) == (str(bad), 7)


def test_processes_find_the_same(copy):
    (copy / "shard.00001.mds").write_bytes(b"")
    with ProcessPoolExecutor(2) as executor:
        assert verify(copy, executor=executor) == verify(copy)


def test_what_is_no_dataset_is_an_error(tmp_path):
    with pytest.raises(FormatError, match="no such path"):
        verify(tmp_path / "nowhere")


def test_the_statistics_are_those_of_all_pixels(packed, picture_folder):
    found = measure(picture_folder)
    pictures = decoded(picture_folder)
    values = np.concatenate([picture.reshape(3, -1) for picture in pictures], axis=1) / 255

    assert found.pixels == values.shape[1] and found.images == 42
    np.testing.assert_allclose(found.mean, values.mean(axis=1), atol=2e-3)  # torchvision decodes some JPEG differently
    np.testing.assert_allclose(found.std, values.std(axis=1), atol=2e-3)
    assert found.sizes.tolist() == [list(picture.shape[1:]) for picture in pictures]
    assert found.bytes.tolist() == [len(record["image"]) for record in ts.MDS(packed).fetch(range(42))]


def test_the_sums_are_exact(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    Image.fromarray(pixels[:20]).save(tmp_path / "a.png")
    Image.fromarray(pixels[20:]).save(tmp_path / "b.png")
    found = measure(tmp_path)

    np.testing.assert_allclose(found.mean, pixels.mean((0, 1)) / 255, rtol=1e-14)
    np.testing.assert_allclose(found.std, pixels.std((0, 1)) / 255, rtol=1e-13)
    assert (found.histogram == [np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(3)]).all()


def test_statistics_do_not_depend_on_the_workers_and_packing_computes_the_same(packed):
    found = measure(packed)
    with ProcessPoolExecutor(2) as executor:
        again = measure(packed, executor=executor)

    assert (again.mean, again.std, again.pixels) == (found.mean, found.std, found.pixels)
    assert ts.MDS(packed).sidecar.statistics == {
        "image": {"pixels": found.pixels, "mean": list(found.mean), "std": list(found.std)}
    }


def test_an_image_that_cannot_be_measured_stops_or_is_listed(tmp_path):
    Image.new("RGB", (4, 4), "white").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(SampleError, match=r"Sample 1 cannot be measured: .*b\.png"):
        measure(tmp_path)
    found = measure(tmp_path, on_error="skip")

    assert found.mean == (1, 1, 1) and found.std == (0, 0, 0)
    assert [(each["id"], each["where"]) for each in found.skipped] == [(1, str(tmp_path / "b.png"))]


def test_nothing_to_measure_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(FormatError, match="no image to measure"):
        measure(tmp_path, on_error="skip")
    with pytest.raises(ValueError, match="image_field must be one of"):
        measure(tmp_path, image_field="label")
