"""`open_folder`: the same operations on a disk and on servers, and what happens when servers fail."""

import multiprocessing
import os
import pickle
import random
import re
import time

import fsspec
import pytest
import s3_servers

from torchslip.errors import StorageError
from torchslip.storage import Retry, is_remote, open_folder

DATA = bytes(range(256)) * 40
LARGE = random.Random(0).randbytes((1 << 24) + 12345)  # more than one part of a download


@pytest.fixture(params=["local", "memory", "moto", "rclone"])
def folder(request, tmp_path, s3_keys, monkeypatch):
    """A folder of every kind; the buckets are real servers'."""
    if request.param == "local":
        return open_folder(tmp_path / "folder")
    if request.param == "memory":
        request.addfinalizer(fsspec.filesystem("memory").store.clear)
        return open_folder("memory://folder")
    url = request.getfixturevalue(f"{request.param}_url")
    monkeypatch.setenv("S3_ENDPOINT_URL", url)
    return open_folder(f"s3://{s3_servers.make_bucket(url)}/some/prefix/")


def test_what_is_written_is_there(folder):
    folder.write("a.bin", DATA)
    folder.write("b.bin", b"")
    assert folder.names() == ["a.bin", "b.bin"]
    assert (folder.read("a.bin"), folder.read("b.bin")) == (DATA, b"")
    assert (folder.stat("a.bin").bytes, folder.stat("b.bin").bytes) == (len(DATA), 0)


def test_a_range_is_exactly_what_was_asked_for(folder):
    folder.write("a.bin", DATA)
    for start, stop in ((0, 1), (0, len(DATA)), (len(DATA) - 1, len(DATA)), (100, 5000), (7, 7)):
        assert folder.read_range("a.bin", start, stop) == DATA[start:stop]


@pytest.mark.parametrize(("start", "stop"), [(10, len(DATA) + 1), (len(DATA), len(DATA) + 5), (10**7, 10**7 + 1)])
def test_a_range_behind_the_end_is_an_error_that_says_how_long_the_file_is(folder, start, stop):
    folder.write("a.bin", DATA)
    with pytest.raises(StorageError, match=rf"a\.bin has {len(DATA)} bytes; bytes {start} to {stop} were asked for"):
        folder.read_range("a.bin", start, stop)


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4)])
def test_an_impossible_range_is_an_error(folder, start, stop):
    with pytest.raises(ValueError, match=f"got start={start}, stop={stop}"):
        folder.read_range("a.bin", start, stop)


@pytest.mark.parametrize("data", [DATA, b"", LARGE], ids=["small", "empty", "large"])
def test_a_download_is_the_whole_file(folder, tmp_path, data):
    (tmp_path / "copy").write_bytes(b"older and longer" * 5000)
    folder.write("a.bin", data)
    folder.download("a.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_an_upload_is_the_whole_file(folder, tmp_path):
    (tmp_path / "a.bin").write_bytes(LARGE)
    folder.upload(tmp_path / "a.bin")
    assert folder.stat("a.bin").bytes == len(LARGE)
    assert folder.read("a.bin") == LARGE


def test_what_is_not_there_is_an_error_that_names_it(folder, tmp_path):
    for operation in (folder.stat, folder.read, lambda name: folder.download(name, tmp_path / "copy")):
        with pytest.raises(FileNotFoundError, match=f"{re.escape(str(folder))}/missing"):
            operation("missing")
    assert not (tmp_path / "copy").exists() or (tmp_path / "copy").read_bytes() == b""


def test_a_new_version_has_another_stat(folder):
    folder.write("a.bin", b"first")
    before = folder.stat("a.bin")
    time.sleep(0.01)
    folder.write("a.bin", b"other")
    assert folder.stat("a.bin") != before


def test_removed_files_are_gone_and_missing_ones_are_passed_over(folder):
    folder.write("a.bin", DATA)
    folder.remove(["missing", "a.bin"])
    assert folder.names() == []


def test_a_name_is_taken_as_it_is(folder):
    for name in ("with space.bin", "ünï.bin", "100%25.bin", "a+b&c=d.bin", "q?x=1.bin", "[x]*.bin"):
        folder.write(name, name.encode())
        assert folder.read(name) == folder.read_range(name, 0, len(name.encode())) == name.encode()


def test_a_pickled_folder_reads_the_same(folder):
    folder.write("a.bin", DATA)
    assert pickle.loads(pickle.dumps(folder)).read("a.bin") == DATA


@pytest.mark.parametrize("url", ["s3://bucket/x", "memory://x", "https://example.com/x", "gs://bucket"])
def test_a_url_is_remote(url):
    assert is_remote(url)


@pytest.mark.parametrize("path", ["folder", "/folder", "C:\\folder", "file:///folder", "local://folder"])
def test_a_path_is_not_remote(path):
    assert not is_remote(path)


def read_in_child(folder, results):
    begin = time.monotonic()
    data = folder.read("a.bin")
    results.put((os.getpid(), len(data), time.monotonic() - begin))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_read_at_once_after_their_parent_has_read(bucket, method, fork_server_of_now):
    folder = open_folder(bucket)
    folder.write("a.bin", DATA)
    assert folder.read("a.bin") == DATA
    context = multiprocessing.get_context(method)
    results = context.Queue()
    count = 3 if method == "fork" else 1  # the others import torch anew
    children = [context.Process(target=read_in_child, args=(folder, results)) for _ in range(count)]
    for child in children:
        child.start()
    found = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join(60)
    assert [size for _, size, _ in found] == [len(DATA)] * count
    assert len({pid for pid, _, _ in found} | {os.getpid()}) == count + 1
    assert folder.read("a.bin") == DATA


# Every n-th answer is bad in one way. Each must be read whole all the same, or not at all.
FAULTS = [
    {"status_every": 3, "status": 503},
    {"status_every": 3, "status": 500},
    {"status_every": 3, "status": 429},
    {"reset_every": 3},
    {"short_every": 3},
    {"lie_every": 3},
    {"latency_seconds": 0.01, "reset_every": 4, "status_every": 3, "short_every": 5},
]


@pytest.fixture
def faulty(proxy, bucket):
    """A folder with a file, behind a proxy."""
    folder = open_folder(bucket, retry={"first_pause_seconds": 0.01})
    folder.write("a.bin", DATA)
    return folder


@pytest.mark.parametrize("faults", FAULTS, ids=lambda faults: "-".join(faults))
def test_every_byte_arrives_from_a_server_that_fails_now_and_then(proxy, faulty, tmp_path, faults):
    proxy.set(methods=("GET", "HEAD"), **faults)
    for start in range(0, 2000, 200):
        assert faulty.read_range("a.bin", start, start + 300) == DATA[start : start + 300]
    assert [faulty.read("a.bin") for _ in range(5)] == [DATA] * 5
    faulty.download("a.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA


@pytest.mark.parametrize("faults", [{"status_every": 2}, {"reset_every": 2}], ids=lambda faults: "-".join(faults))
def test_every_byte_is_stored_by_a_server_that_fails_now_and_then(proxy, faulty, tmp_path, faults):
    (tmp_path / "b.bin").write_bytes(LARGE)
    proxy.set(methods=("PUT", "POST", "DELETE"), **faults)
    faulty.write("a.bin", DATA * 2)
    faulty.upload(tmp_path / "b.bin")
    assert (faulty.read("a.bin"), faulty.read("b.bin")) == (DATA * 2, LARGE)


@pytest.mark.parametrize("fault", ["status_every", "reset_every", "short_every", "lie_every"])
def test_a_server_that_always_fails_is_an_error_with_the_url_the_attempts_and_the_cause(proxy, faulty, tmp_path, fault):
    faults = proxy.set(**{fault: 1})
    folder = open_folder(str(faulty), retry={"attempts": 3, "first_pause_seconds": 0.01})
    with pytest.raises(
        StorageError, match=rf"{faulty}/a\.bin failed 3 times in .* s; the last error was \w+"
    ) as caught:
        folder.read_range("a.bin", 0, 1000)
    assert caught.value.__cause__ is not None
    assert len(faults.seen) == 3
    with pytest.raises(StorageError):
        folder.download("a.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b""


@pytest.mark.parametrize(("status", "error"), [(404, FileNotFoundError), (403, PermissionError)])
def test_what_will_not_pass_is_tried_once(proxy, faulty, status, error):
    faults = proxy.set(status_every=1, status=status)
    with pytest.raises(error, match=r"a\.bin"):
        faulty.read("a.bin")
    assert len(faults.seen) == 1


def test_the_deadline_ends_what_takes_too_long(proxy, faulty):
    proxy.set(slow_every=1, slow_seconds=60)
    folder = open_folder(str(faulty), retry={"deadline_seconds": 1})
    begin = time.monotonic()
    with pytest.raises(StorageError, match="Timeout"):
        folder.read("a.bin")
    assert time.monotonic() - begin < 30


def test_a_slow_first_byte_is_waited_for(proxy, faulty):
    faults = proxy.set(slow_every=1, slow_seconds=1)
    assert faulty.read("a.bin") == DATA
    assert len(faults.seen) == 1


def test_a_server_that_is_not_there_is_an_error_that_names_it(s3_keys):
    folder = open_folder("s3://bucket/x", {"endpoint_url": "http://127.0.0.1:9"}, retry={"attempts": 2})
    with pytest.raises(StorageError, match=r"s3://bucket/x/a failed 2 times .*127\.0\.0\.1.*refused"):
        folder.read("a")


def test_credentials_that_are_missing_are_an_error_at_once(moto_url, s3_keys, monkeypatch):
    for name in s3_servers.KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="Unable to locate credentials"):
        open_folder("s3://bucket/x", {"endpoint_url": moto_url}).read("a")


def test_a_file_that_changes_during_its_download_is_an_error(proxy, faulty, tmp_path):
    faulty.write("a.bin", LARGE)
    direct = open_folder(str(faulty), {"endpoint_url": proxy.upstream_url})

    def replace():
        direct.write("a.bin", LARGE[::-1])

    proxy.set(before_answer={2: replace})  # the first GET has been answered
    with pytest.raises(StorageError, match=r"a\.bin changed while it was read"):
        faulty.download("a.bin", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b""


# Where options come from; the first that is there wins.
ENDPOINTS = ["storage_options", "client_kwargs", "S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]


@pytest.mark.parametrize("first", range(len(ENDPOINTS)), ids=ENDPOINTS.__getitem__)
def test_the_endpoint_that_is_given_closest_wins(moto_url, s3_keys, monkeypatch, first):
    wrong, options = "http://127.0.0.1:9", {}
    for number, name in enumerate(ENDPOINTS[first:]):
        url = wrong if number else moto_url
        if name == "storage_options":
            options["endpoint_url"] = url
        elif name == "client_kwargs" and "endpoint_url" not in options:
            options["client_kwargs"] = {"endpoint_url": url}
        elif name != "client_kwargs":
            monkeypatch.setenv(name, url)
    folder = open_folder(f"s3://{s3_servers.make_bucket(moto_url)}", options, retry=Retry(attempts=1))
    folder.write("a.bin", DATA)
    assert folder.names() == ["a.bin"]


@pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_requests_are_signed_for_the_region_and_with_the_keys_of_the_environment(proxy, faulty, monkeypatch, variable):
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv(variable, "eu-north-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-the-session")
    faults = proxy.set()
    open_folder(str(faulty)).read("a.bin")
    (headers,) = faults.headers
    assert "AKIAEXAMPLE/" in headers["Authorization"]
    assert "/eu-north-1/s3/" in headers["Authorization"]
    assert headers["X-Amz-Security-Token"] == "token-of-the-session"


def test_keys_that_are_given_win_over_the_environment(proxy, faulty):
    faults = proxy.set()
    open_folder(str(faulty), {"key": "GIVEN", "secret": "x"}).read("a.bin")
    assert "GIVEN/" in faults.headers[0]["Authorization"]


def test_attempts_come_from_arguments_then_options_then_the_environment(proxy, faulty, monkeypatch):
    monkeypatch.setenv("TORCHSLIP_STORAGE_ATTEMPTS", "2")
    options = {"retry": {"attempts": 3, "first_pause_seconds": 0}}
    for attempts, arguments in (
        (2, {}),
        (3, {"storage_options": options}),
        (4, {"storage_options": options, "retry": {"attempts": 4}}),
    ):
        faults = proxy.set(status_every=1)
        with pytest.raises(StorageError, match=f"failed {attempts} times"):
            open_folder(str(faulty), **arguments).read("a.bin")
        assert len(faults.seen) == attempts


@pytest.mark.parametrize("retry", [{"attempts": 0}, {"deadline_seconds": 0}, {"deadline_seconds": -1}])
def test_an_impossible_retry_is_an_error(retry):
    with pytest.raises(ValueError, match="must be greater than 0"):
        open_folder("s3://bucket", retry=retry)


def test_the_users_random_numbers_stay_as_they_are(proxy, faulty):
    random.seed(1)
    state = random.getstate()
    proxy.set(status_every=2)
    assert [faulty.read("a.bin") for _ in range(3)] == [DATA] * 3
    assert random.getstate() == state
