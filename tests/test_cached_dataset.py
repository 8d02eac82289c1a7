"""Datasets with a cache give what they give without one, bit for bit, and resume each other's states."""

import multiprocessing
import pickle
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from cached_children import Slow

import torchslip as ts
from torchslip.errors import SampleError, StateError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs flock")

VIEWS = {"global": ts.RandomResizedCrop(32), "local": ts.RandomResizedCrop(16, scale=(0.05, 0.4))}
OPTIONS = {"views": VIEWS, "batch_size": 5, "shuffle": True, "seed": 17, "return_params": True}


def make(source, cache=None, **options):
    return ts.ImageDataset(source, cache=cache, **{**OPTIONS, **options})


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        if isinstance(values, torch.Tensor):
            assert values.dtype == other[name].dtype and torch.equal(values, other[name]), name
        else:
            assert values == other[name]


def assert_same_passes(one, other, passes=2):
    for _ in range(passes):
        for here, there in zip(one, other, strict=True):
            assert_same(here, there)


@pytest.fixture
def broken(picture_folder, tmp_path):
    """Pictures of which three cannot be read, each in its own way."""
    root = tmp_path / "broken"
    shutil.copytree(picture_folder, root)
    (root / "discs" / "00-baseline.jpg").write_bytes(b"no picture")
    cut = root / "stripes" / "03-half_chroma.jpeg"
    cut.write_bytes(cut.read_bytes()[:-300])
    (root / "tiles" / "07-plain.png").write_bytes(b"")
    return root


@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"window": 1}, {"indices": range(3, 30)}, {"tail": "pad"}])
def test_a_cached_dataset_gives_the_same_batches(picture_folder, tmp_path, options):
    if "window" in options:
        options = options | {"shuffle": True}
    plain, cached = make(picture_folder, **options), make(picture_folder, tmp_path / "cache", **options)

    assert cached.classes == plain.classes and cached.source.targets.tolist() == plain.source.targets.tolist()
    assert cached.fingerprints == plain.fingerprints
    assert_same_passes(plain, cached)


def test_pictures_are_read_from_the_packed_form(picture_folder, tmp_path):
    shutil.copytree(picture_folder, tmp_path / "pictures")
    plain = list(make(tmp_path / "pictures"))
    cached = make(tmp_path / "pictures", tmp_path / "cache")
    for path in (tmp_path / "pictures").rglob("*.*"):
        path.unlink()

    for here, there in zip(plain, cached, strict=True):
        assert_same(here, there)


def test_blocks_of_a_windowed_order_are_those_of_the_source(picture_folder, tmp_path):
    ts.pack(picture_folder, tmp_path / "set", shard_bytes="100kb")
    plain = make(tmp_path / "set", window=2)
    cached = make(tmp_path / "set", ts.PackedCache(root=tmp_path / "cache", shard_bytes="30kb"), window=2)

    assert plain.fingerprints == cached.fingerprints
    assert_same_passes(plain, cached, passes=1)


def test_a_mixture_keeps_its_order(picture_folder, tmp_path):
    def mixture():
        return ts.mix([picture_folder, picture_folder], weights=[0.7, 0.3], seed=3, source_exhausted="repeat")

    assert_same_passes(make(mixture(), shuffle=False), make(mixture(), tmp_path / "cache", shuffle=False))


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_workers_of_any_kind_read_the_cache(picture_folder, tmp_path, start):
    plain, cached = make(picture_folder), make(picture_folder, tmp_path / "cache")
    loader = ts.DataLoader(cached, num_workers=2, multiprocessing_context=start)

    assert_same_passes(plain, loader, passes=1)


def test_states_go_from_one_to_the_other_and_back_at_every_step(picture_folder, tmp_path):
    whole = list(make(picture_folder))
    for step in range(0, len(whole), 3):
        for first, second in ((None, tmp_path / "cache"), (tmp_path / "cache", None)):
            begun = make(picture_folder, first)
            batches = iter(begun)
            for _ in range(step):
                next(batches)
            resumed = make(picture_folder, second)
            resumed.load_state_dict(begun.state_dict())
            for here, there in zip(whole[step:], resumed, strict=True):
                assert_same(here, there)


def test_other_pixels_have_another_state(picture_folder, tmp_path):
    cache = ts.PackedCache(root=tmp_path / "cache", image=ts.Resize(shorter=24))
    small = make(picture_folder, cache)
    with pytest.raises(StateError):
        small.load_state_dict(make(picture_folder).state_dict())
    make(picture_folder, cache).load_state_dict(small.state_dict())


def test_pictures_that_cannot_be_read_are_replaced_by_the_same_ones(broken, tmp_path):
    plain, cached = (make(broken, cache, on_error="skip") for cache in (None, tmp_path / "cache"))
    assert_same_passes(plain, cached)

    assert cached.stats()["skipped_samples"] == plain.stats()["skipped_samples"] > 0


def test_pictures_that_cannot_be_read_are_the_same_errors(broken, tmp_path):
    texts = []
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(SampleError) as error:
            list(make(broken, cache, shuffle=False))
        texts.append(str(error.value))

    assert texts[0] == texts[1] and str(broken) in texts[0]


def test_what_is_damaged_in_the_cache_comes_from_the_source(picture_folder, tmp_path, caplog):
    cached = make(picture_folder, tmp_path / "cache")
    for path in Path(cached.source.packed.root).glob("shard.*"):
        path.write_bytes(b"damaged")
    assert_same_passes(make(picture_folder), cached, passes=1)

    assert [record.levelname for record in caplog.records if "packed_cache_unreadable" in record.message] == ["WARNING"]


def test_a_cached_source_pickles_and_is_a_source(picture_folder, tmp_path):
    source = ts.PackedCache(root=tmp_path / "cache")(ts.ImageFolder(picture_folder))
    copy = pickle.loads(pickle.dumps(source))

    assert isinstance(copy, ts.Source) and copy.fetch([3, 40]) == ts.ImageFolder(picture_folder).fetch([3, 40])
    assert {value: len(ids) for value, ids in copy.index("label").items()} == {0: 14, 1: 14, 2: 14}


def test_pictures_in_a_bucket_are_read_once(picture_folder, bucket, proxy, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    from torchslip.pack import sync

    sync(picture_folder, f"{bucket}/pictures")
    cached = make(f"{bucket}/pictures", ts.PackedCache(root=tmp_path / "cache", remote=f"{bucket}/packed"))
    proxy.set(methods=("GET", "HEAD"))
    first, second = list(cached), list(make(f"{bucket}/pictures", tmp_path / "cache"))
    other = make(f"{bucket}/pictures", ts.PackedCache(root=tmp_path / "other", remote=f"{bucket}/packed"))

    # To open it, it is looked for an index once.
    assert not any(f"/pictures/{name}/" in path for _, path in proxy.faults.seen for name in cached.classes)
    for here, there in zip(first, other, strict=True):
        assert_same(here, there)
    assert len(first) == len(second) == 9


def test_map_datasets_have_caches_too(picture_folder, tmp_path):
    plain, cached = (
        ts.ImageMapDataset(picture_folder, views=ts.CenterCrop(16), cache=cache) for cache in (None, tmp_path / "cache")
    )
    for index in (0, 17, 41):
        assert_same(plain[index], cached[index])


def test_true_is_the_cache_folder_of_the_user(picture_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert Path(make(picture_folder, True).source.packed.root).parent == tmp_path / "torchslip" / "packed"
    assert type(make(picture_folder, False).source) is ts.ImageFolder


def test_what_is_no_cache_is_refused(picture_folder):
    with pytest.raises(TypeError, match=r"cache must be True, a path or a ts.PackedCache; got 3"):
        make(picture_folder, 3)
    with pytest.raises(ValueError, match="label_mode is an option of the source"):
        ts.PackedCache(options={"label_mode": "none"})


def open_cached(folder, cache, barrier, results):
    barrier.wait(60)
    dataset = make(folder, cache)
    results.put([batch["sample_id"].tolist() for batch in dataset])


def test_ranks_of_one_machine_pack_once(picture_folder, tmp_path):
    context = multiprocessing.get_context("forkserver")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = (picture_folder, tmp_path / "cache", barrier, results)
    ranks = [context.Process(target=open_cached, args=arguments, daemon=True) for _ in range(3)]
    for rank in ranks:
        rank.start()
    expected = [batch["sample_id"].tolist() for batch in make(picture_folder)]
    assert [results.get(timeout=90) for _ in ranks] == [expected] * 3
    for rank in ranks:
        rank.join(30)
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_records_of_any_kind_come_back_as_they_were(tmp_path):
    source = Slow(tmp_path / "log", seconds=0)
    cached = ts.PackedCache(root=tmp_path / "cache")(source)

    assert cached.fetch([5, 0, 5]) == source.fetch([5, 0, 5])
    with pytest.raises(IndexError):
        cached.fetch([len(source)])


def await_packed(source, seconds=60):
    deadline = time.monotonic() + seconds
    while source.packed is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_packing_in_the_background_delays_nobody_and_changes_nothing(picture_folder, tmp_path):
    plain = make(picture_folder)
    cached = make(picture_folder, ts.PackedCache(root=tmp_path / "cache", background=True))
    assert cached.source.packed is None
    assert_same_passes(plain, cached, passes=1)
    await_packed(cached.source)
    assert_same_passes(plain, cached, passes=1)

    assert type(make(picture_folder, tmp_path / "cache").source.packed) is ts.MDS


def test_worker_processes_change_to_the_packed_form_when_it_is_done(tmp_path):
    source = Slow(tmp_path / "log", seconds=0.0)
    cached = ts.PackedCache(root=tmp_path / "cache", background=True)(source)
    workers = pickle.loads(pickle.dumps(cached))
    assert workers.fetch(range(9)) == source.fetch(range(9))
    await_packed(workers)
    before = source.log.read_text()

    assert workers.fetch(range(9)) == Slow("/dev/null").fetch(range(9)) and source.log.read_text() == before


def pack_in_background(source, root, started):
    cached = ts.PackedCache(root=root, background=True, shard_bytes=6000)(source)
    while not source.log.exists():
        time.sleep(0.01)
    started.set()
    assert cached.packed is None
    time.sleep(60)


def test_it_ends_with_the_process_that_began_it_and_is_gone_on_with(tmp_path):
    context = multiprocessing.get_context("forkserver")
    source, started = Slow(tmp_path / "log", seconds=0.05), context.Event()
    process = context.Process(target=pack_in_background, args=(source, tmp_path / "cache", started))
    process.start()
    assert started.wait(60)
    process.kill()
    process.join(30)
    # The lock is free as soon as the packing has ended.
    done = ts.cached(Slow(tmp_path / "log"), root=tmp_path / "cache", shard_bytes=6000, timeout_seconds=10)

    assert done.fetch(range(len(source))) == Slow("/dev/null").fetch(range(len(source)))


def test_what_cannot_be_done_in_the_background_is_refused(tmp_path, picture_folder):
    with pytest.raises(ValueError, match="image='keep'"):
        ts.PackedCache(background=True, image="jpeg")
    source = Slow(tmp_path / "log")
    source.hook = lambda: None
    with pytest.raises(TypeError, match="must pickle"):
        ts.PackedCache(root=tmp_path / "cache", background=True)(source)
