"""The cursor: a state applies here, or says what differs; it is never silently ignored."""

import io
import json

import numpy as np
import pytest
import torch

from torchslip.errors import StateError, TorchslipError
from torchslip.order import STATE_VERSION, Cursor, DistributedBatchSampler, Sequential, Shuffled, Subset

BLOCKS = {"window": 2, "blocks": 10}


def sampler_of(order, fingerprint="folder:1"):
    return DistributedBatchSampler(order, batch_size=4, fingerprint=fingerprint)


def state_of(order=None, **changes):
    sampler = sampler_of(order or Shuffled(50, seed=17))
    next(iter(sampler))
    return sampler.state_dict() | changes


@pytest.mark.parametrize("order", [Sequential(50), Subset(range(50)), Shuffled(50, seed=17), Shuffled(50, **BLOCKS)])
def test_a_state_is_one_position_and_what_identifies_it(order):
    assert state_of(order) == {
        "version": STATE_VERSION,
        "epoch": 0,
        "position": 4,
        "fingerprints": {"source": "folder:1", **order.fingerprint},
    }


def test_a_state_is_plain_data():
    state, file = state_of(), io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == json.loads(json.dumps(state)) == state


def test_an_epoch_of_any_integer_type_is_saved_as_a_plain_one():
    sampler = sampler_of(Shuffled(50, seed=17))
    sampler.set_epoch(np.int64(3))
    assert json.loads(json.dumps(sampler.state_dict()))["epoch"] == 3


def test_loading_a_state_leaves_it_alone():
    state = state_of()
    before = json.dumps(state)
    sampler = sampler_of(Shuffled(50, seed=17))
    sampler.load_state_dict(state)
    list(sampler)
    assert json.dumps(state) == before


@pytest.mark.parametrize(
    ("order", "named"),
    [
        (Shuffled(50, seed=18), ["seed: 17 in the state, 18 here"]),
        (Shuffled(51, seed=17), ["length: 50 in the state, 51 here"]),
        (Sequential(50), ["order: 'shuffled/1' in the state, 'sequential' here", "seed: 17 in the state, None here"]),
        (Shuffled(50, seed=17, **BLOCKS), ["window: None in the state, 2 here", "blocks: None in the state, 10 here"]),
        (Shuffled(Subset(range(50)), seed=17), ["of order: None in the state, 'subset' here", "of indices: None"]),
    ],
)
def test_a_state_of_another_order_is_an_error_that_names_each_difference(order, named):
    with pytest.raises(StateError) as caught:
        sampler_of(order).load_state_dict(state_of())
    assert all(difference in str(caught.value) for difference in named)
    assert "source" not in str(caught.value)


@pytest.mark.parametrize("here", ["folder:2", None])
def test_a_state_of_another_dataset_is_an_error_that_names_both(here):
    with pytest.raises(StateError, match=f"source: 'folder:1' in the state, {here!r} here"):
        sampler_of(Shuffled(50, seed=17), here).load_state_dict(state_of())


def test_all_differences_are_named_at_once():
    with pytest.raises(StateError) as caught:
        sampler_of(Shuffled(60, seed=18, window=3), "folder:2").load_state_dict(state_of())
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines() if " in the state, " in line] == [
        "source",
        "length",
        "seed",
        "window",
        "blocks",
    ]


@pytest.mark.parametrize("version", [0, STATE_VERSION + 1, "1", None])
def test_a_state_of_another_version_is_an_error_that_names_both(version):
    with pytest.raises(StateError, match=f"has version {version}, this torchslip reads version {STATE_VERSION}"):
        sampler_of(Shuffled(50, seed=17)).load_state_dict(state_of(version=version))


@pytest.mark.parametrize(
    "state",
    [
        None,
        3,
        [],
        "state",
        {},
        {"epoch": 3},
        {"state": {}, "param_groups": []},
        {1: 2},
        state_of(fingerprints=None),
        state_of(fingerprints=["source", "order"]),
        state_of(fingerprints={}),
        state_of(epoch=-1),
        state_of(epoch="0"),
        state_of(epoch=0.0),
        state_of(position=-1),
        state_of(position=None),
        state_of(position=[4]),
        state_of(position=51),
    ],
    ids=repr,
)
def test_garbage_is_an_error_and_changes_nothing(state):
    sampler = sampler_of(Shuffled(50, seed=17))
    before = sampler.state_dict()
    with pytest.raises(StateError):
        sampler.load_state_dict(state)
    assert sampler.state_dict() == before


@pytest.mark.parametrize("key", ["version", "epoch", "position", "fingerprints"])
def test_a_state_that_lacks_something_is_an_error_that_names_it(key):
    state = state_of()
    del state[key]
    with pytest.raises(StateError, match=f"not a state of torchslip: {key} missing"):
        sampler_of(Shuffled(50, seed=17)).load_state_dict(state)


def test_a_state_error_is_a_value_error_of_torchslip():
    assert issubclass(StateError, TorchslipError)
    assert issubclass(StateError, ValueError)


def test_a_cursor_is_a_value():
    cursor = Cursor.from_state_dict(state_of(), expected=state_of()["fingerprints"])
    assert cursor == Cursor(0, 4, state_of()["fingerprints"])
    assert cursor.state_dict() == state_of()
    assert repr(cursor) == "Cursor(epoch=0, position=4)"
    with pytest.raises(AttributeError):
        cursor.epoch = 1
