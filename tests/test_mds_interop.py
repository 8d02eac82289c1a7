"""MDS and mosaicml-streaming: what one writes the other reads, and equal input gives equal bytes.

The peer lives in an environment of its own, whose python ``TORCHSLIP_MOSAIC_PYTHON`` names; docs/development.md says
how to make it. The golden files in test_mds_reader need no peer.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from mds_samples import COLUMNS, SIMPLE_COLUMNS, digest, digests, sample

from torchslip.pack import MDSWriter, merge_index, pack
from torchslip.sources import MDS
from torchslip.sources.mds import COMPRESSIONS, HASHES, parse_encoding

SAMPLES = 24
OPTIONS = {
    "plain": {},
    "small": {"size_limit": 20_000},
    "oversized": {"size_limit": "6kb", "hashes": ["sha256"]},
    "zstd": {"compression": "zstd:7", "hashes": ["sha1", "xxh64"], "size_limit": "30kb"},
    "bz2": {"compression": "bz2", "hashes": ["xxh3_128"], "size_limit": None},
    "br": {"compression": "br:5", "hashes": ["blake2s"]},
    "snappy": {"compression": "snappy", "size_limit": 1 << 15},
    "gz": {"compression": "gz:3", "hashes": ["md5"], "size_limit": 1 << 15},
}
TEXT = {"a": "int", "b": "str", "c": "float"}
TEXT_ROWS = [{"a": index, "b": f"é{index}", "c": index / 3} for index in range(20)]


@pytest.fixture(scope="module")
def peer():
    python = os.environ.get("TORCHSLIP_MOSAIC_PYTHON")
    if not python:
        pytest.skip("TORCHSLIP_MOSAIC_PYTHON does not name the python of an environment with mosaicml-streaming")

    def run(*jobs):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [python, str(Path(__file__).with_name("mds_peer.py"))],
            input=json.dumps(jobs),
            capture_output=True,
            text=True,
            timeout=150,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


@pytest.fixture(scope="module")
def theirs(peer, tmp_path_factory):
    """One dataset of all encodings per set of options, and what the peer itself reads from two of them."""
    root = tmp_path_factory.mktemp("theirs")
    peer(*({"do": "write", "out": str(root / name), "samples": SAMPLES, "options": o} for name, o in OPTIONS.items()))
    return root


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    root = tmp_path_factory.mktemp("ours")
    for name, options in OPTIONS.items():
        write(root / name, SAMPLES, COLUMNS, **options)
    return root


def write(out, samples, columns, **options):
    with MDSWriter(columns=columns, out=out, **options) as writer:
        for index in range(samples):
            writer.write(sample(index, columns))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("gz", "oversized")])
def test_equal_samples_give_equal_files(ours, theirs, name):
    assert contents(ours / name) == contents(theirs / name)


@pytest.mark.parametrize("name", OPTIONS)
def test_what_they_write_we_read(theirs, tmp_path, name):
    source = MDS(theirs / name, cache=tmp_path, allow_pickle=True, validate_hash=bool(OPTIONS[name].get("hashes")))
    assert len(source) == SAMPLES
    for index, record in enumerate(source.fetch(range(SAMPLES))):
        wanted = sample(index)
        for column, encoding in COLUMNS.items():
            if source.schema[column] in ("image", "bytes"):
                if isinstance(wanted[column], bytes):
                    assert record[column] == wanted[column]
                elif encoding == "png":
                    assert digest(parse_encoding("png").decode(record[column])) == digest(wanted[column])
            elif source.schema[column] == "array":
                assert digest(record[column]) == digest(np.ascontiguousarray(wanted[column]))
            elif source.schema[column] == "float":
                kind = np.dtype(encoding if encoding.startswith("float") else "float64").type
                assert record[column] == kind(wanted[column])
            else:
                assert record[column] == (str(wanted[column]) if encoding == "str_decimal" else wanted[column])


@pytest.fixture(scope="module")
def their_digests(ours, peer):
    """What the peer reads from our datasets, in one run: digests of each sample by dataset."""
    jobs = [
        {"do": "stream" if "compression" in options else "read", "root": str(ours / name)}
        for name, options in OPTIONS.items()
    ]
    lines = peer(*jobs)
    return {name: lines[number * SAMPLES :][:SAMPLES] for number, name in enumerate(OPTIONS)}


@pytest.mark.parametrize("name", OPTIONS)
def test_what_we_write_they_read(their_digests, name):
    expected = []
    for index in range(SAMPLES):
        record = {}
        for column, value in sample(index).items():
            encoding = parse_encoding(COLUMNS[column])
            record[column] = encoding.decode(encoding.encode(value))
        expected.append(digests(record))
    assert their_digests[name] == expected


def test_they_read_what_was_packed_and_its_columns_are_theirs(ours, peer, picture_folder, tmp_path):
    """Beside a sidecar; images of any format in a column of encoding jpeg."""
    pack(ours / "zstd", tmp_path / "again", shard_bytes=20_000)
    pack(picture_folder, tmp_path / "folder", shard_bytes=200_000, compression="zstd")
    lines = peer(*({"do": "stream", "root": str(tmp_path / name)} for name in ("again", "folder")))

    expected = []
    for record in MDS(tmp_path / "folder").fetch(range(42)):
        image = parse_encoding("jpeg").decode(record["image"])
        expected.append(digests({"image": image, "label": record["label"]}))
    assert lines[SAMPLES:] == expected
    theirs_of_ours = peer({"do": "stream", "root": str(ours / "zstd")})
    assert [without_pixels(line) for line in lines[:SAMPLES]] == [without_pixels(line) for line in theirs_of_ours]


def without_pixels(line):
    """A column of pixels is packed as PNG files, which give another mode for some of them."""
    return {name: value for name, value in json.loads(line).items() if name != "pixels"}


def test_an_empty_shard_of_theirs_is_passed_over(theirs):
    source = MDS(theirs / "oversized")
    assert source.shard_sizes[0] == 0
    assert source.fetch([0])[0]["count"] == sample(0)["count"]


def test_large_shards_are_equal_where_their_compressor_uses_threads(peer, tmp_path):
    columns = {"text": "str"}
    rows = [{"text": f"{number} " * 300_000} for number in range(7)]
    peer(
        *(
            {"do": "write", "out": str(tmp_path / f"theirs-{name}"), "columns": columns, "rows": rows}
            | {"indices": list(range(7)), "options": {"compression": name}}
            for name in ("zstd:1", "zstd")
        )
    )
    for name in ("zstd:1", "zstd"):
        with MDSWriter(columns=columns, out=tmp_path / f"ours-{name}", compression=name) as writer:
            for each in rows:
                writer.write(each)
        assert contents(tmp_path / f"ours-{name}") == contents(tmp_path / f"theirs-{name}")


@pytest.mark.slow
def test_every_compression_and_every_hash_gives_equal_files(peer, tmp_path):
    options = [{"compression": name} for name in COMPRESSIONS if not name.startswith("gz")]
    options += [{"hashes": [name]} for name in HASHES]
    peer(
        *(
            {"do": "write", "out": str(tmp_path / f"theirs-{number}"), "samples": 50, "columns": SIMPLE_COLUMNS}
            | {"options": {**each, "size_limit": 4000}}
            for number, each in enumerate(options)
        )
    )
    for number, each in enumerate(options):
        write(tmp_path / f"ours-{number}", 50, SIMPLE_COLUMNS, size_limit=4000, **each)
        assert contents(tmp_path / f"ours-{number}") == contents(tmp_path / f"theirs-{number}"), each


def test_indexes_that_either_merged_are_read_by_both(peer, tmp_path):
    for part in ("0", "1"):
        for root in ("mine", "yours"):
            write(tmp_path / root / part, 5, SIMPLE_COLUMNS)
    merge_index(tmp_path / "mine")
    lines = peer(
        {"do": "merge", "root": str(tmp_path / "yours")},
        {"do": "read", "root": str(tmp_path / "mine")},
        {"do": "read", "root": str(tmp_path / "yours")},
    )
    assert lines[:10] == lines[10:]
    mine, yours = MDS(tmp_path / "mine"), MDS(tmp_path / "yours")
    assert mine.fetch(range(10)) == yours.fetch(range(10))


@pytest.mark.parametrize("form", ["json", "xsv", "csv", "tsv"])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_their_shards_of_text_are_read(peer, tmp_path, form, compression):
    options = {"size_limit": 100, "compression": compression, "hashes": ["sha1"]}
    if form == "xsv":
        options["separator"] = "::"
    job = {"do": "write", "format": form, "out": str(tmp_path / "out"), "columns": TEXT, "rows": TEXT_ROWS}
    peer(job | {"indices": list(range(20)), "options": options})
    source = MDS(tmp_path / "out", cache=tmp_path / "cache", validate_hash=True)
    assert source.schema == TEXT
    assert len(source.shard_sizes) > 2
    assert source.fetch(range(20)) == TEXT_ROWS
