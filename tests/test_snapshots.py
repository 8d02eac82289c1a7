"""`resolve` and `Snapshot`: links, labels, hashes, what changes and what is damaged."""

import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import tempfile

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli import run

import torchslip as ts
from torchslip.cli import main
from torchslip.errors import FormatError
from torchslip.storage import open_folder, parse_link

FILES = {
    "cat/1.jpg": b"one",
    "cat/2.jpg": b"two",
    "cat/deep/er/3.jpg": b"three",
    "cat-b/4.jpg": b"four",
    "dog/5.txt": b"",
}


def fill(base, files=FILES):
    for name, data in files.items():
        folder, _, file = name.rpartition("/")
        open_folder(f"{base}/{folder}".rstrip("/")).write(file, data)
    return base


def keys_of(snapshot):
    return list(snapshot.keys())


@pytest.fixture(params=["local", "memory", "moto"])
def base(request, tmp_path):
    """An empty place of every kind."""
    if request.param == "moto":
        return f"{request.getfixturevalue('bucket')}/data"
    if request.param == "memory":
        request.addfinalizer(fsspec.filesystem("memory").store.clear)
        return "memory://data"
    return str(tmp_path / "data")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store on this machine, and not the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "store"


def test_a_snapshot_has_every_object_in_the_order_of_the_keys(base, store):
    snapshot = ts.resolve(fill(base), store=store)
    assert list(snapshot.keys()) == sorted(FILES, key=str.encode)
    assert [snapshot.key(index) for index in range(len(snapshot))] == list(snapshot.keys())
    assert snapshot.sizes.tolist() == [len(FILES[key]) for key in keys_of(snapshot)]
    assert (len(snapshot), snapshot.total_bytes) == (len(FILES), sum(map(len, FILES.values())))
    assert [snapshot.read(index) for index in range(len(snapshot))] == [FILES[key] for key in keys_of(snapshot)]


def test_a_label_is_the_place_of_the_first_folder_among_all_sorted(base, store):
    snapshot = ts.resolve(fill(base), store=store)
    assert snapshot.classes == ["cat", "cat-b", "dog"]
    assert snapshot.labels.tolist() == [snapshot.classes.index(key.split("/")[0]) for key in keys_of(snapshot)]
    assert snapshot.labels_of([4, 0]).tolist() == snapshot.labels[[4, 0]].tolist()


def test_five_classes_are_numbered_as_they_are_sorted(base, store):
    fill(base, {f"class{number}/{i}.bin": b"x" for number in (3, 1, 5, 2, 4) for i in range(3)})
    snapshot = ts.resolve(base, store=store)
    assert snapshot.classes == ["class1", "class2", "class3", "class4", "class5"]
    assert snapshot.labels.tolist() == [label for label in range(5) for _ in range(3)]
    assert ts.resolve(f"{base}@refresh", store=store).hash == snapshot.hash


def test_only_the_top_is_another_dataset_than_all_of_it(base, store):
    fill(base, {"top.bin": b"x", "deep/one.bin": b"y"})
    options = {"store": store, "label_mode": "none"}
    everything = ts.resolve(base, **options)
    top = ts.resolve(base, recursive=False, **options)
    assert list(top.keys()) == ["top.bin"]
    assert top.hash != everything.hash == ts.resolve(base, **options).hash
    assert ts.resolve(base, recursive=False, **options).hash == top.hash


def test_a_plain_link_means_what_it_meant_until_it_is_refreshed(base, store):
    before = ts.resolve(fill(base), store=store)
    fill(base, {"dog/6.jpg": b"new"})
    assert ts.resolve(base, store=store).hash == before.hash
    after = ts.resolve(f"{base}@refresh", store=store)
    assert len(after) == len(before) + 1
    assert ts.resolve(base, store=store).hash == after.hash
    assert len(ts.resolve(before.link, store=store)) == len(before)


def test_spaces_and_a_slash_at_the_end_make_no_other_link(base, store):
    hashes = {ts.resolve(link, store=store).hash for link in (fill(base), f"{base}/", f" {base}/ ")}
    fill(base, {"dog/6.jpg": b"new"})
    ts.resolve(f"{base}/@refresh", store=store)
    assert ts.resolve(base, store=store).hash not in hashes and len(hashes) == 1


def test_equal_data_at_two_places_has_equal_hashes(base, store):
    fill(f"{base}/a")
    fill(f"{base}/b", dict(reversed(FILES.items())))
    assert ts.resolve(f"{base}/a", store=store).hash == ts.resolve(f"{base}/b", store=store).hash


def test_a_hash_of_one_place_reads_equal_data_at_another(tmp_path, store):
    snapshot = ts.resolve(fill(tmp_path / "a"), store=store)
    fill(tmp_path / "b")
    moved = ts.resolve(f"{tmp_path / 'b'}@sha256:{snapshot.hash}", store=store)
    assert [moved.read(index) for index in range(len(moved))] == [FILES[key] for key in keys_of(moved)]


@pytest.mark.parametrize("change", ["size", "bytes", "name", "less", "more"])
def test_other_data_have_another_hash(base, store, change):
    before = ts.resolve(fill(base), store=store)
    folder = open_folder(f"{base}/cat")
    if change in ("name", "less"):
        folder.remove(["1.jpg"])
    if change != "less":
        name = {"name": "0.jpg", "more": "9.jpg"}.get(change, "1.jpg")
        folder.write(name, b"longer" if change == "size" else b"eno")
    assert ts.resolve(f"{base}@refresh", store=store).hash != before.hash


def test_a_file_that_was_written_again_is_other_data_whatever_link_asks(tmp_path, store):
    base = fill(tmp_path / "data")
    before = ts.resolve(base, store=store)
    os.utime(base / "cat/1.jpg", ns=(1, 1))
    other = ts.resolve(base, store=store, label_mode="imagefolder")  # never asked before, of the same objects
    again = ts.resolve(f"{base}@refresh", store=store)
    assert before.hash not in (other.hash, again.hash)
    at = list(other.keys()).index("cat/1.jpg")
    assert other.read(at) == again.read(at) == b"one"
    assert ts.resolve(f"{base}@refresh", store=store).hash == again.hash


# Labels.


MIXED = {"readme.txt": b"x", "cat/1.jpg": b"one", "dog/2.jpg": b"two"}


def test_a_mixed_layout_is_an_error_that_says_how_to_choose(base, store):
    with pytest.raises(FormatError, match=r"(?s)(cat/1\.jpg and readme\.txt).*label_mode='imagefolder'.*'none'"):
        ts.resolve(fill(base, MIXED), store=store)


@pytest.mark.parametrize(("mode", "objects", "classes"), [("imagefolder", 2, ["cat", "dog"]), ("none", 3, [])])
def test_the_label_mode_chooses_what_a_mixed_layout_means(base, store, mode, objects, classes):
    snapshot = ts.resolve(fill(base, MIXED), store=store, label_mode=mode)
    assert (len(snapshot), snapshot.classes) == (objects, classes)
    assert (snapshot.labels is None) == (mode == "none")


def test_an_object_without_a_class_is_an_error_if_labels_are_required(base, store):
    with pytest.raises(FormatError, match=r"readme\.txt lies in no sub-folder"):
        ts.resolve(fill(base, MIXED), store=store, require_labels=True)
    open_folder(base).remove(["readme.txt"])
    assert ts.resolve(base, store=store, require_labels=True).classes == ["cat", "dog"]


def test_one_class_is_a_class(base, store):
    assert ts.resolve(fill(base, {"cat/1.jpg": b"one"}), store=store).classes == ["cat"]


@pytest.mark.parametrize(
    "options",
    [
        {"label_mode": "folders"},
        {"label_mode": "imagefolder", "recursive": False},
        {"label_mode": "none", "require_labels": True},
        {"require_labels": True, "recursive": False},
    ],
    ids=str,
)
def test_options_that_exclude_each_other_are_an_error(tmp_path, store, options):
    with pytest.raises(ValueError, match="label"):
        ts.resolve(fill(tmp_path / "data"), store=store, **options)


def test_extensions_choose_and_their_case_does_not_matter(base, store):
    fill(base, {"cat/a.JPG": b"1", "cat/b.txt": b"2", "dog/c.png": b"3", "dog/jpg": b"4"})
    snapshot = ts.resolve(base, store=store, extensions=[".jpg", ".PNG"])
    assert list(snapshot.keys()) == ["cat/a.JPG", "dog/c.png"]
    everything = ts.resolve(base, store=store)
    assert everything.ends_with([".jpg", ".png"]).tolist() == [True, False, True, False]


# What is not there, or not what it should be.


def test_nothing_there_is_an_error_that_names_it(base, store):
    with pytest.raises(FileNotFoundError, match=re.escape(base)):
        ts.resolve(base, store=store)


def test_nothing_of_the_wanted_kind_is_an_error_that_names_both(base, store):
    with pytest.raises(FileNotFoundError, match=rf"\.png in.*{re.escape(base)}"):
        ts.resolve(fill(base), store=store, extensions=[".png"])


def test_an_unknown_hash_is_an_error(base, store):
    with pytest.raises(FileNotFoundError, match=f"sha256:{'0' * 64} in the store"):
        ts.resolve(f"{base}@sha256:{'0' * 64}", store=store)


@pytest.mark.parametrize("digest", ["", "abc", "A" * 64, "g" * 64, "0" * 63, "0" * 65, "0" * 64 + "@refresh"])
def test_a_hash_that_is_none_is_an_error(digest, store):
    if digest.endswith("@refresh"):
        assert parse_link(f"base@sha256:{digest}").refresh
        return
    with pytest.raises(ValueError, match="64 lower-case hexadecimal digits"):
        ts.resolve(f"base@sha256:{digest}", store=store)


@pytest.mark.parametrize("link", ["@refresh", f"@sha256:{'0' * 64}", "  "])
def test_a_link_without_a_base_is_an_error(link, store):
    with pytest.raises(ValueError, match="must name a folder or URL"):
        ts.resolve(link, store=store)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20))
def test_another_text_after_an_at_sign_belongs_to_the_base(name):
    link = parse_link(f"s3://bucket/a@{name}")
    assert link.hash is None
    assert link.refresh == (name.strip() == "refresh")
    assert link.refresh or link.base == f"s3://bucket/a@{name}".strip().rstrip("/")


def manifest_of(store, snapshot):
    return store / "manifests" / snapshot.hash


@pytest.mark.parametrize("damage", ["tampered", "truncated", "empty", "longer"])
def test_a_manifest_that_is_not_what_it_was_is_an_error_and_is_never_read(tmp_path, store, damage):
    snapshot = ts.resolve(fill(tmp_path / "data"), store=store)
    path = manifest_of(store, snapshot)
    data = path.read_bytes()
    path.write_bytes(
        {
            "tampered": data.replace(b"cat/1.jpg", b"cat/1.JS\n"),
            "truncated": data[: len(data) // 2],
            "empty": b"",
            "longer": data + b"x",
        }[damage]
    )
    for link in (snapshot.link, str(tmp_path / "data")):
        with pytest.raises(FormatError, match=rf"(?s)hash.*{snapshot.hash}"):
            ts.resolve(link, store=store)
    with pytest.raises(FormatError):
        len(pickle.loads(pickle.dumps(snapshot)))
    assert ts.resolve(f"{tmp_path / 'data'}@refresh", store=store).hash == snapshot.hash  # and is whole again
    assert path.read_bytes() == data


def test_pins_that_are_damaged_are_an_error(tmp_path, store):
    snapshot = ts.resolve(fill(tmp_path / "data"), store=store)
    (path,) = (store / "pins").glob(f"*/{snapshot.hash}")
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(FormatError, match="pins"):
        ts.resolve(snapshot.link, store=store)


def test_a_pointer_that_is_damaged_is_an_error_that_names_the_file(tmp_path, store):
    ts.resolve(fill(tmp_path / "data"), store=store)
    (path,) = (store / "links").glob("*.json")
    path.write_text("{")
    with pytest.raises(FormatError, match=re.escape(str(path))):
        ts.resolve(tmp_path / "data", store=store)


def test_a_manifest_that_was_removed_is_made_anew(tmp_path, store):
    snapshot = ts.resolve(fill(tmp_path / "data"), store=store)
    manifest_of(store, snapshot).unlink()
    assert ts.resolve(tmp_path / "data", store=store).hash == snapshot.hash


def test_a_link_in_a_circle_is_an_error(tmp_path, store):
    fill(tmp_path / "data")
    (tmp_path / "data/cat/again").symlink_to(tmp_path / "data")
    with pytest.raises(FormatError, match="its files have no end"):
        ts.resolve(tmp_path / "data", store=store)


def test_links_are_followed_and_special_files_left_out(tmp_path, store):
    fill(tmp_path / "data")
    shutil.move(tmp_path / "data/dog", tmp_path / "elsewhere")
    (tmp_path / "data/dog").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "data/dog/pipe")
    snapshot = ts.resolve(tmp_path / "data", store=store)
    assert list(snapshot.keys()) == sorted(FILES, key=str.encode)
    assert snapshot.read(len(snapshot) - 1) == b""


# The store.


def test_a_store_in_a_bucket_is_shared_and_what_is_fetched_from_it_is_checked(bucket, tmp_path, monkeypatch):
    base, store = fill(tmp_path / "data"), f"{bucket}/snapshots"
    hashes = []
    for machine in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        hashes.append(ts.resolve(base, store=store).hash)
        fill(base, {"dog/new.jpg": b"not seen by the second machine"})
    assert hashes[0] == hashes[1]
    open_folder(f"{store}/manifests").write(hashes[0], b"tampered")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "three"))
    with pytest.raises(FormatError, match=hashes[0]):
        ts.resolve(base, store=store)


def test_nothing_is_left_in_the_store_but_what_it_keeps(tmp_path, store):
    base = fill(tmp_path / "data")
    for files in ({}, {"dog/6.jpg": b"6"}, {"dog/7.jpg": b"7"}):
        ts.resolve(f"{fill(base, files)}@refresh", store=store)
    with pytest.raises(FormatError):
        ts.resolve(f"{fill(base, MIXED)}@refresh", store=store)
    found = sorted(path.relative_to(store).parts[0] for path in store.rglob("*") if path.is_file())
    assert found == [*["links"] * 2, *["manifests"] * 3, *["pins"] * 3]


def test_two_servers_have_their_own_snapshots_of_buckets_of_one_name(
    moto_url, rclone_url, rclone_folder, store, s3_keys
):
    name = f"bucket-{random.SystemRandom().randrange(10**9)}"
    hashes = []
    for url, data in ((moto_url, b"one"), (rclone_url, b"other")):
        options = {"endpoint_url": url}
        if url == rclone_url:
            (rclone_folder / name).mkdir()
        else:
            fsspec.filesystem("s3", **options).mkdir(name)
        open_folder(f"s3://{name}", options).write("a.bin", data)
        hashes.append(ts.resolve(f"s3://{name}", storage_options=options, store=store).hash)
    assert hashes[0] != hashes[1]


def test_a_bucket_of_files_is_listed_as_it_is(rclone_url, rclone_folder, store, s3_keys, monkeypatch):
    monkeypatch.setenv("S3_ENDPOINT_URL", rclone_url)
    name = f"bucket-{random.SystemRandom().randrange(10**9)}"
    fill(rclone_folder / name / "data")
    snapshot = ts.resolve(f"s3://{name}/data", store=store)
    assert list(snapshot.keys()) == sorted(FILES, key=str.encode)
    assert [snapshot.read(index) for index in range(len(snapshot))] == [FILES[key] for key in keys_of(snapshot)]


def test_a_list_of_several_pages_is_whole(bucket, store):
    fs = fsspec.filesystem("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"])
    names = [f"{number % 7}/{number:05}.bin" for number in range(1100)]
    fs.pipe({f"{bucket}/many/{name}": b"" for name in names})
    assert list(ts.resolve(f"{bucket}/many", store=store).keys()) == sorted(names)


def test_a_list_that_fails_now_and_then_is_whole(proxy, bucket, store):
    fill(f"{bucket}/data")
    proxy.set(status_every=2, reset_every=3)
    assert list(ts.resolve(f"{bucket}/data", store=store).keys()) == sorted(FILES, key=str.encode)


# Names and numbers.

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)
KEYS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(KEYS, st.binary(max_size=5), min_size=1, max_size=20))
def test_any_keys_are_kept_in_order_with_their_sizes(files):
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    files = {key: data for key, data in files.items() if not _is_above_another(key, files) and _is_plain(key)}
    if not files:
        return
    fs.pipe({f"/random/{key}": data for key, data in files.items()})
    with tempfile.TemporaryDirectory() as store:
        snapshot = ts.resolve("memory://random@refresh", store=store, label_mode="none")
        assert list(snapshot.keys()) == sorted(files, key=str.encode)
        assert snapshot.sizes.tolist() == [len(files[key]) for key in keys_of(snapshot)]
    fs.store.clear()


def _is_above_another(key, files):
    return any(other.startswith(f"{key}/") for other in files)


def _is_plain(key):
    return all(part.strip(".") and part == part.strip() for part in key.split("/"))


def test_a_snapshot_pickles_as_a_path_and_a_hash(tmp_path, store):
    fill(tmp_path / "data", {f"{number // 100}/{number}.bin": b"" for number in range(1000)})
    snapshot = ts.resolve(tmp_path / "data", store=store)
    pickled = pickle.dumps(snapshot)
    assert len(pickled) < 1000
    assert list(pickle.loads(pickled).keys()) == list(snapshot.keys())


MANY = """
import resource, sys, fsspec, torchslip as ts
from fsspec.spec import AbstractFileSystem

class Many(AbstractFileSystem):
    protocol = "many"

    def ls(self, path, detail=True, **options):
        if path.count("/") == 1:
            return [{"name": f"{path}/{i:04}", "size": 0, "type": "directory"} for i in range(int(path[5:]) // 1000)]
        return [
            {"name": f"{path}/picture-{i:05}.jpg", "size": i, "type": "file", "ETag": f"{i:032x}"} for i in range(1000)
        ]

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("many://").rstrip("/")

fsspec.register_implementation("many", Many)

def peak_of(count):
    snapshot = ts.resolve(f"many://here/{count}", store=sys.argv[1])
    assert len(snapshot) == count and snapshot.key(count - 1).endswith("/picture-00999.jpg")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

print(-peak_of(1000) + peak_of(int(sys.argv[2])))
"""


@pytest.mark.parametrize("count", [200_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_listing_takes_less_memory_than_an_object_for_each_key(tmp_path, count):
    # The key of an object alone is a string of 77 bytes in Python, and with its size, etag and tuple about 300. What is
    # mapped to check the result counts here (66 bytes each), though it can be dropped; 100,000 are sorted at a time.
    command = [sys.executable, "-c", MANY, tmp_path / "store", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=True)
    assert int(done.stdout) < 70 * count + (60 << 20)


def test_the_command_prints_what_a_link_means(tmp_path, store):
    snapshot = ts.resolve(fill(tmp_path / "data"), store=store)
    text = run("resolve", f"{tmp_path / 'data'}@refresh", "--store", store)
    assert text.splitlines()[0].strip() == f"sha256:{snapshot.hash}"
    assert re.search(r"objects +5", text) and re.search(r"bytes +15", text) and re.search(r"cat-b\W+1\b", text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["{base}"], "no object in: {base}"), (["x@sha256:12"], "64 lower-case"), (["x", "--label-mode", "y"], "got 'y'")],
)
def test_the_command_says_what_is_wrong(tmp_path, store, arguments, message, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    arguments = [each.format(base=tmp_path / "data") for each in arguments]
    monkeypatch.setattr(sys, "argv", ["torchslip", "resolve", *arguments, "--store", str(store)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert message.format(base=tmp_path / "data") in re.sub(r"[\s│]+", " ", capsys.readouterr().err)
