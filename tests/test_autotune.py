"""The controller of how far to read ahead: against a model of a source with a clock of its own, and for real."""

import time

import numpy as np
import pytest
from bytes_sources import Numbers
from hypothesis import given
from hypothesis import strategies as st

import torchslip as ts
from torchslip.loading import PROFILES
from torchslip.loading._autotune import Autotune, Signals

KNOBS = {"prefetch_batches": 2, "max_queue_batches": 64, "want": 1}
RAILS = PROFILES["balanced"].rails


def controller(knobs=KNOBS, rails=RAILS):
    return Autotune(dict(knobs), rails)


def signals(rate=100.0, wait=0.5, memory=0.3, inflight=0.3):
    return Signals(rate, wait, memory, inflight)


def drive(tuner, rate_of, ticks, wait=0.8):
    """Let a model deliver ``rate_of(knobs)`` bytes per second; returns the reasons."""
    return [tuner.tick(signals(rate_of(tuner.knobs), wait)).reason for _ in range(ticks)]


def parallel(knobs):
    return knobs["prefetch_batches"] * knobs["want"]


def test_it_climbs_to_the_rails_where_everything_helps():
    tuner = controller()
    drive(tuner, lambda knobs: 100.0 * parallel(knobs), 8)
    assert tuner.knobs == {"prefetch_batches": 8, "max_queue_batches": 64, "want": 4}


def test_it_stops_where_the_source_gives_no_more():
    tuner = controller()
    drive(tuner, lambda knobs: 100.0 * min(parallel(knobs), 4), 40)
    assert parallel(tuner.knobs) in (2, 4, 8)  # 8 while it tries again, 2 while it questions what it has
    assert drive(tuner, lambda knobs: 400.0, 20).count("probe") <= 3


def test_what_does_not_help_is_taken_back_at_once():
    tuner = controller()
    assert drive(tuner, lambda knobs: 100.0, 2) == ["probe", "revert"]
    assert tuner.knobs == KNOBS


def test_what_hurts_is_tried_ever_more_seldom():
    tuner = controller()
    reasons = drive(tuner, lambda knobs: 100.0 / parallel(knobs), 400)
    assert reasons.count("probe") == reasons.count("revert") <= 30
    assert tuner.knobs == KNOBS


def test_a_small_gain_must_be_seen_twice():
    tuner = controller()
    rates = iter([100.0, 110.0, 110.0, 100.0, 110.0, 70.0])
    reasons = [tuner.tick(signals(rate)).reason for rate in rates]
    assert reasons[:3] == ["probe", "confirm", "probe"]
    tuner = controller()
    assert [tuner.tick(signals(rate)).reason for rate in (100.0, 120.0, 80.0)] == ["probe", "confirm", "revert"]
    assert tuner.knobs == KNOBS


def test_what_does_not_help_any_more_is_given_back():
    tuner = controller()
    drive(tuner, lambda knobs: 100.0 * parallel(knobs), 20)
    assert parallel(tuner.knobs) >= 16
    reasons = drive(tuner, lambda knobs: 3200.0, 200)
    assert parallel(tuner.knobs) <= 4
    assert "question" in reasons


@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.25])
def test_it_never_costs_5_percent_and_finds_nearly_all_there_is_however_noisy_the_machine(profile, noise):
    """As means over seeds: of a source that gets slower, one that does not care, and one that gets faster."""
    start = PROFILES[profile].start

    def gain(rate_of, seed):
        draw, tuner = np.random.default_rng(seed), controller(start, PROFILES[profile].rails)
        rates = []
        for _ in range(300):
            rates.append(rate_of(tuner.knobs))
            tuner.tick(signals(rates[-1] * draw.uniform(1 - noise, 1 + noise), 0.8))
        return np.mean(rates) / rate_of(start)

    slower = [gain(lambda knobs: parallel(knobs) ** -0.15, seed) for seed in range(8)]
    faster = [gain(parallel, seed) for seed in range(8)]
    most = np.prod([PROFILES[profile].rails[name][1] for name in ("prefetch_batches", "want")]) / parallel(start)
    assert np.mean(slower) > 0.97 and min(slower) > 0.95
    assert min(faster) > 0.9 * most


def test_a_consumer_that_does_not_wait_is_left_alone():
    tuner = controller()
    assert {tuner.tick(signals(wait=0.01)).reason for _ in range(50)} == {"keeping_up"}
    assert tuner.knobs == KNOBS


def test_at_the_cap_it_does_not_climb():
    assert controller().tick(signals(inflight=0.99)).reason == "at_cap"


def test_memory_comes_first_and_one_knob_at_a_time():
    """The original could never reach its soft cut, moved three knobs at once, and took a full pipeline for danger."""
    tuner = controller({"prefetch_batches": 8, "max_queue_batches": 64, "want": 4})
    seen = []
    for _ in range(12):
        before = dict(tuner.knobs)
        decision = tuner.tick(signals(rate=1e9, memory=0.9))
        seen.append(decision.reason)
        assert sum(before[name] != tuner.knobs[name] for name in before) <= 1
    assert tuner.knobs == {"prefetch_batches": 1, "max_queue_batches": 16, "want": 1}
    assert set(seen) == {"memory", "at_rail"}


def test_a_knob_that_was_given_never_moves():
    rails = {**RAILS, "prefetch_batches": (3, 3)}
    tuner = controller({**KNOBS, "prefetch_batches": 3}, rails)
    drive(tuner, lambda knobs: 100.0 * parallel(knobs), 20)
    tuner.tick(signals(memory=0.99))
    assert tuner.knobs["prefetch_batches"] == 3


@given(
    st.sampled_from(sorted(PROFILES)),
    st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1), st.floats(0, 1.2), st.floats(0, 1)), max_size=80),
)
def test_one_knob_per_tick_within_its_rails_and_always_a_reason(profile, history):
    tuner = Autotune(dict(PROFILES[profile].start), PROFILES[profile].rails)
    for values in history:
        before = dict(tuner.knobs)
        decision = tuner.tick(Signals(*values))
        changed = [name for name in before if before[name] != tuner.knobs[name]]
        assert decision.reason and len(changed) <= 1
        assert changed in ([], [decision.knob])
        assert all(low <= tuner.knobs[name] <= high for name, (low, high) in tuner.rails.items())


@pytest.mark.parametrize("workers", [0, 2])
def test_it_climbs_for_real_where_each_object_takes_its_time(caplog, workers):
    caplog.set_level("INFO", "torchslip.proof")
    slow = Numbers(np.full(6000, 500), seconds=0.004)
    tuned = ts.BytesDataset(slow, batch_size=8, profile="balanced")
    began = time.monotonic()
    for _ in ts.DataLoader(tuned, num_workers=workers):
        if tuned.stats()["effective_prefetch_batches"] > 2 or time.monotonic() - began > 20:
            break
    stats = tuned.stats()
    assert stats["effective_prefetch_batches"] > 2
    assert stats["autotune_adjustments_total"] > 0
    if workers:
        return  # the events are logged there
    events = [record.args for record in caplog.records if record.args["event"] == "autotune_runtime_adjustment"]
    assert {"reason": "probe", "knob": "prefetch_batches", "prefetch_batches": 4}.items() <= events[0].items()


@pytest.mark.parametrize("options", [{"autotune": False}, {"runtime": ts.RuntimeConfig(prefetch_batches=2, want=1)}])
def test_without_autotune_nothing_moves(options):
    fixed = ts.BytesDataset(Numbers(np.full(600, 500), seconds=0.002), batch_size=8, **options)
    for _ in fixed:
        pass
    assert fixed.stats()["effective_prefetch_batches"] == fixed.stats()["prefetch_batches"] == 2
    assert fixed.stats()["effective_want"] == 1
