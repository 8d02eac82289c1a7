"""Many processes that resolve one link: one lists, all get its result, and who is killed keeps nobody waiting."""

import logging
import multiprocessing
import os
import signal
import time

import pytest
import s3_servers

import torchslip as ts
from torchslip.storage import open_folder

DEADLINE = 60
FORK = multiprocessing.get_context("fork")


class Place:
    """Objects behind a proxy, which makes listing slow, and a store on a disk or behind it too."""

    def __init__(self, proxy, store):
        name = s3_servers.make_bucket(proxy.upstream_url)
        self.base, self.proxy = f"s3://{name}/data", proxy
        self.store = store or f"s3://{name}/store"
        self.has_conditions = True
        folder = open_folder(self.base)
        for key in "abc":
            folder.write(key, key.encode())

    def make_listing_slow(self, seconds):
        return self.proxy.set(latency_seconds=seconds, only="prefix=data")


KINDS = ["disk", "bucket", "bucket without conditions"]


@pytest.fixture(params=KINDS[:2])
def place(request, tmp_path, shared_proxy, s3_keys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("S3_ENDPOINT_URL", shared_proxy.url)
    if request.param == "bucket without conditions":
        monkeypatch.setattr(shared_proxy, "dropped_headers", ("if-match", "if-none-match"))
    shared_proxy.set()
    place = Place(shared_proxy, str(tmp_path / "store") if request.param == "disk" else None)
    place.has_conditions = request.param != "bucket without conditions"
    yield place
    shared_proxy.set()


def resolve_in_child(link, options, barrier, results):
    events = []
    handler = logging.Handler()
    handler.emit = lambda record: events.append(record.args["event"])
    logging.getLogger("torchslip.proof").addHandler(handler)
    logging.getLogger("torchslip.proof").setLevel(logging.INFO)
    open_folder(options["store"]).names()  # the client is made before the start
    barrier.wait(DEADLINE)
    try:
        digest = ts.resolve(link, **options).hash
    except Exception as error:
        digest = repr(error)
    results.put((digest, events))


class Crowd:
    """Processes that resolve one link at the same time."""

    def __init__(self, count, link, **options):
        barrier, self.results = FORK.Barrier(count), FORK.Queue()
        arguments = (link, {"timeout_seconds": DEADLINE, **options}, barrier, self.results)
        self.processes = [FORK.Process(target=resolve_in_child, args=arguments, daemon=True) for _ in range(count)]
        for process in self.processes:
            process.start()

    def finish(self):
        found = [self.results.get(timeout=2 * DEADLINE) for _ in self.processes]
        for process in self.processes:
            process.join(DEADLINE)
        return {digest for digest, _ in found}, [events for _, events in found]


def listers(events):
    return sum("snapshot_indexer_elected" in each for each in events)


def wait_for(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("place", "link"),
    [("disk", "{base}"), ("disk", "{base}@refresh"), ("bucket", "{base}@refresh"), (KINDS[2], "{base}")],
    indirect=["place"],
)
def test_of_twelve_processes_one_lists_and_all_get_one_hash(place, link):
    if link.endswith("@refresh"):
        before = ts.resolve(place.base, store=place.store)
        open_folder(place.base).write("d", b"new")
    place.make_listing_slow(1.5)
    hashes, events = Crowd(12, link.format(base=place.base), store=place.store).finish()
    (digest,) = hashes
    assert ts.resolve(place.base, store=place.store).hash == digest
    if "refresh" in link:
        assert digest != before.hash
    # A store without conditional writes cannot promise more than one result.
    assert listers(events) == 1 or not place.has_conditions


def test_a_refresh_never_gets_what_was_there_before_it_was_asked_for(place):
    before = ts.resolve(place.base, store=place.store)
    faults = place.make_listing_slow(1)
    first = Crowd(1, f"{place.base}@refresh", store=place.store)
    wait_for(lambda: faults.seen)  # it holds the lease, and has listed nothing yet
    open_folder(place.base).write("d", b"new")
    second = ts.resolve(f"{place.base}@refresh", store=place.store)
    assert second.hash != before.hash
    assert first.finish()[0] == {second.hash}


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_who_is_killed_while_it_lists_keeps_the_others_no_longer_than_its_lease(place):
    faults = place.make_listing_slow(50)
    crowd = Crowd(1, place.base, store=place.store, lease_seconds=1)
    wait_for(lambda: faults.seen)
    os.kill(crowd.processes[0].pid, signal.SIGKILL)
    crowd.processes[0].join(DEADLINE)
    place.proxy.set()
    hashes, events = Crowd(3, place.base, store=place.store, lease_seconds=1, timeout_seconds=20).finish()
    assert hashes == {ts.resolve(place.base, store=place.store).hash}
    assert listers(events) >= 1


def test_who_lists_for_longer_than_a_lease_keeps_it(place):
    faults = place.make_listing_slow(2.5)
    first = Crowd(1, place.base, store=place.store, lease_seconds=1)
    wait_for(lambda: faults.seen)
    hashes, events = Crowd(2, place.base, store=place.store, lease_seconds=1).finish()
    assert first.finish()[0] == hashes
    assert listers(events) == 0


def test_who_waits_too_long_gets_an_error_that_says_for_what(place):
    faults = place.make_listing_slow(1)
    crowd = Crowd(1, place.base, store=place.store)
    wait_for(lambda: faults.seen)
    with pytest.raises(TimeoutError, match=f"Another process has been listing {place.base}"):
        ts.resolve(place.base, store=place.store, timeout_seconds=0.2)
    crowd.finish()


def test_who_fails_to_list_lets_the_next_one_try(place):
    place.proxy.set(status_every=1, status=403, only="prefix=data")
    for _ in range(2):
        with pytest.raises(PermissionError, match=place.base):
            ts.resolve(place.base, store=place.store, timeout_seconds=5)
    place.proxy.set()
    assert len(ts.resolve(place.base, store=place.store, timeout_seconds=5)) == 3
