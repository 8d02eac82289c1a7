"""`Objects` and `ImageDataset` on links: the pictures of a bucket are those of the folder."""

import multiprocessing
import pickle
import re
import shutil

import numpy as np
import pytest
from torch.utils.data import DataLoader

import torchslip as ts
from torchslip.errors import SampleError
from torchslip.storage import open_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Snapshots of one test are not those of another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def upload(folder, url):
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            target = open_folder(f"{url}/{path.parent.relative_to(folder)}".removesuffix("/."))
            target.upload(path)
    return url


@pytest.fixture
def train(bucket, picture_folder):
    """The pictures in a bucket."""
    return upload(picture_folder, f"{bucket}/train")


def same_records(a, b):
    return all(a.fetch([i]) == b.fetch([i]) for i in range(len(a)))


def test_pictures_of_a_bucket_are_those_of_the_folder(train, picture_folder):
    source, folder = ts.open(train), ts.ImageFolder(picture_folder)
    assert isinstance(source, ts.Objects) and isinstance(source, ts.Source)
    assert (len(source), source.schema, source.classes) == (len(folder), folder.schema, folder.classes)
    assert source.fetch(range(42)) == folder.fetch(range(42))
    assert source.targets.tolist() == folder.targets.tolist()
    assert source.class_to_idx == folder.class_to_idx
    assert source.sizes.tolist() == folder.sizes.tolist()
    assert source.locate(0) == f"{train}/{folder.relative_path(0)}"


def test_a_link_to_a_folder_of_this_machine_is_read_too(picture_folder):
    source = ts.open(f"{picture_folder}@refresh")
    assert isinstance(source, ts.Objects)
    assert source.fetch(range(42)) == ts.ImageFolder(picture_folder).fetch(range(42))


def test_a_dataset_reads_a_link(train, picture_folder):
    options = {"views": ts.CenterCrop(32), "batch_size": 7, "shuffle": True, "seed": 3}
    remote, local = ts.ImageDataset(f"{train}/@refresh", **options), ts.ImageDataset(picture_folder, **options)
    assert remote.source.classes == ["discs", "stripes", "tiles"]
    for ours, theirs in zip(remote, local, strict=True):
        assert (ours["image"] == theirs["image"]).all() and (ours["label"] == theirs["label"]).all()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_read_a_bucket(train, method, fork_server_of_now):
    dataset = ts.ImageDataset(train, views=ts.CenterCrop(32), batch_size=14)
    dataset.source.fetch([0])  # the parent has a client and threads by now
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=method)
    assert sorted(np.concatenate([batch["sample_id"] for batch in loader]).tolist()) == list(range(42))


def test_plain_links_and_the_hash_give_the_same_until_a_refresh(train, picture_folder):
    source = ts.open(train)
    open_folder(f"{train}/discs").upload(picture_folder / "tiles" / "00-baseline.jpg", "new.jpg")
    again, pinned = ts.open(train), ts.open(source.snapshot.link)
    assert len(source) == len(again) == len(pinned) == 42
    assert source.fingerprint == again.fingerprint == pinned.fingerprint
    fresh = ts.open(f"{train}@refresh")
    assert len(fresh) == 43 and fresh.fingerprint != source.fingerprint
    assert ts.open(train).fingerprint == fresh.fingerprint
    assert same_records(pinned, source)


@pytest.mark.parametrize("place", ["bucket", "folder"])
def test_what_changed_since_the_snapshot_is_an_error_and_never_other_bytes(request, tmp_path, picture_folder, place):
    if place == "bucket":
        base = request.getfixturevalue("train")
    else:
        shutil.copytree(picture_folder, base := tmp_path / "train")
    source = ts.Objects(f"{base}@refresh")
    folder, size = open_folder(f"{base}/discs"), source.sizes[0]
    folder.write("00-baseline.jpg", bytes(int(size)))  # as large as before
    folder.write("01-progressive.jpg", b"other")
    folder.remove(["02-full_chroma.jpg"])
    for index, reason in ((0, "changed since the snapshot"), (1, "it has 5 bytes and had"), (2, "[Nn]o such")):
        with pytest.raises(SampleError, match=f"(?s)Sample {index} cannot be read.*{reason}"):
            source.fetch([index, 3])
    fresh = ts.Objects(f"{base}@refresh")
    assert fresh.snapshot.hash != source.snapshot.hash
    assert fresh.fetch([0, 1]) == [{"image": bytes(int(size)), "label": 0}, {"image": b"other", "label": 0}]
    with pytest.raises(SampleError, match="changed since the snapshot"):
        ts.Objects(source.snapshot.link).fetch([0])


def test_every_picture_arrives_from_a_server_that_fails_now_and_then(proxy, train, picture_folder):
    source = ts.open(train)
    proxy.set(methods=("GET",), latency_seconds=0.005, status_every=7, reset_every=5, short_every=6)
    assert source.fetch(range(42)) == ts.ImageFolder(picture_folder).fetch(range(42))


def test_an_error_names_the_sample_and_the_url(proxy, train, monkeypatch):
    monkeypatch.setenv("TORCHSLIP_STORAGE_ATTEMPTS", "2")
    source = ts.open(train)
    proxy.set(status_every=1)
    with pytest.raises(SampleError, match=rf"Sample \d+ cannot be read: .*failed 2 times.*: {train}/discs/0\d"):
        source.fetch(range(5))


def test_a_pickled_source_is_small_and_reads_the_same(train):
    source = ts.open(train)
    pickled = pickle.dumps(source)
    assert len(pickled) < 2000
    assert pickle.loads(pickled).fetch([5]) == source.fetch([5])


def test_objects_that_are_no_pictures_are_left_out_of_pictures(tmp_path, picture_folder):
    shutil.copytree(picture_folder, tmp_path / "train")
    (tmp_path / "train/discs/notes.txt").write_text("no picture")
    everything = ts.resolve(tmp_path / "train")
    pictures = ts.Objects(everything)
    assert (len(everything), len(pictures)) == (43, 42)
    assert pictures.fetch(range(42)) == ts.ImageFolder(picture_folder).fetch(range(42))
    assert pickle.loads(pickle.dumps(pictures)).targets.tolist() == pictures.targets.tolist()


def test_bytes_are_all_objects(tmp_path):
    for name in ("a/1.bin", "a/2.txt", "b/3"):
        open_folder(tmp_path / "data" / name[0]).write(name[2:], name.encode())
    source = ts.Objects(tmp_path / "data", kind="bytes")
    assert source.schema == {"data": "bytes", "label": "int"}
    assert source.fetch([2, 0]) == [{"data": b"b/3", "label": 1}, {"data": b"a/1.bin", "label": 0}]


def test_equal_pictures_at_two_places_have_one_fingerprint(bucket, picture_folder):
    upload(picture_folder, f"{bucket}/a")
    upload(picture_folder, f"{bucket}/b")
    assert ts.open(f"{bucket}/a").fingerprint == ts.open(f"{bucket}/b").fingerprint


def test_an_empty_bucket_is_an_error_that_names_it(bucket):
    with pytest.raises(FileNotFoundError, match=re.escape(f"{bucket}/nothing")):
        ts.open(f"{bucket}/nothing")


def test_an_unknown_kind_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="kind must be one of image, bytes; got 'video'"):
        ts.Objects(tmp_path, kind="video")


def fetch_in_child(source, results):
    results.put(source.fetch([0])[0]["label"])


def test_threads_of_the_parent_are_not_needed_in_a_fork(train):
    source = ts.open(train)
    source.fetch(range(8))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=fetch_in_child, args=(source, results))
    child.start()
    assert results.get(timeout=60) == 0
    child.join(60)
