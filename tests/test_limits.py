"""What follows from arguments, profile and machine; `Constraints`, `RuntimeConfig`."""

import pytest

import torchslip as ts
from torchslip.loading import PROFILES
from torchslip.loading._limits import RAM_VARIABLE, Machine, derive_limits

MIB, GIB = 1 << 20, 1 << 30
MACHINE = Machine(memory_bytes=64 * GIB, base_bytes=400 * MIB, environment={})


def limits(machine=MACHINE, **arguments):
    return derive_limits(machine, **arguments)


@pytest.mark.parametrize(
    ("name", "inflight_mib", "prefetch"), [("safe", 128, 1), ("balanced", 256, 2), ("throughput", 512, 4)]
)
def test_a_profile_sets_caps_and_starting_points_within_its_rails(name, inflight_mib, prefetch):
    found = limits(profile=name)
    assert found.max_inflight_bytes == inflight_mib * MIB
    assert found.knobs["prefetch_batches"] == prefetch
    assert all(low <= found.knobs[knob] <= high for knob, (low, high) in found.rails.items())
    assert found.max_ram_bytes == int(PROFILES[name].ram_fraction * 64 * GIB) - GIB


def test_an_unknown_profile_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match=r"safe, balanced, throughput; got 'fast'"):
        limits(profile="fast")


def test_explicit_always_wins_over_derived():
    found = limits(
        profile="safe",
        constraints=ts.Constraints(max_inflight_bytes="1gb", max_ram_bytes="8gb"),
        runtime=ts.RuntimeConfig(prefetch_batches=32),
    )
    assert (found.max_inflight_bytes, found.max_ram_bytes) == (GIB, 8 * GIB)
    assert found.knobs["prefetch_batches"] == 32
    assert found.rails["prefetch_batches"] == (32, 32)  # nor does autotune move it
    assert found.knobs["max_queue_batches"] == 32


@pytest.mark.parametrize(
    ("inflight", "largest"), [("1gb", 64 * MIB), ("64mb", 16 * MIB), ("10mb", 10 * MIB // 3), (1000, 333)]
)
def test_the_largest_batch_follows_from_the_cap_and_three_always_fit(inflight, largest):
    found = limits(constraints=ts.Constraints(max_inflight_bytes=inflight))
    assert found.max_batch_bytes == largest
    assert found.target_batch_bytes == -(-largest * 9 // 10)


def test_what_decides_the_composition_of_batches_never_depends_on_the_machine():
    small = Machine(memory_bytes=600 * MIB, base_bytes=390 * MIB, environment={})
    arguments = {"max_ram_gb": 0.5, "profile": "balanced"}
    assert limits(small, **arguments).max_batch_bytes == limits(**arguments).max_batch_bytes
    assert limits(small, **arguments).max_inflight_bytes < limits(max_ram_gb=2).max_inflight_bytes


def test_max_ram_gb_and_max_ram_bytes_exclude_each_other():
    with pytest.raises(ValueError, match="either max_ram_gb or constraints"):
        limits(max_ram_gb=4, constraints=ts.Constraints(max_ram_bytes=GIB))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"constraints": ts.Constraints(max_inflight_bytes=4 * GIB), "max_ram_gb": 2},
            "max_inflight_bytes=4294967296 cannot",
        ),
        ({"max_ram_gb": 0.25}, "max_ram_gb allows 268435456 bytes, of which the process uses 419430400"),
        ({"max_ram_gb": 0}, "max_ram_gb must be above 0"),
        ({"max_batch_bytes": GIB}, "max_batch_bytes=1073741824 cannot be above max_inflight_bytes=268435456"),
        (
            {"max_batch_bytes": 100, "target_batch_bytes": 200},
            "target_batch_bytes=200 cannot be above max_batch_bytes=100",
        ),
        ({"max_batch_bytes": "many"}, "max_batch_bytes must be a number of bytes"),
    ],
)
def test_an_impossible_combination_is_an_error_that_says_which(arguments, text):
    with pytest.raises(ValueError, match=text):
        limits(**arguments)


@pytest.mark.parametrize("bad", [{"max_inflight_bytes": 0}, {"max_ram_bytes": -1}, {"max_inflight_bytes": "8 things"}])
def test_constraints_are_sizes(bad):
    with pytest.raises(ValueError, match="above 0, or text"):
        ts.Constraints(**bad)


@pytest.mark.parametrize("bad", [{"prefetch_batches": 0}, {"want": 1.5}, {"max_queue_batches": -1}])
def test_a_runtime_config_counts(bad):
    with pytest.raises(ValueError, match="integer of at least 1"):
        ts.RuntimeConfig(**bad)


def test_the_environment_lowers_the_memory_limit_and_never_raises_it():
    low = Machine(64 * GIB, 400 * MIB, {RAM_VARIABLE: "2gb"})
    assert limits(low, max_ram_gb=8).max_ram_bytes == 2 * GIB
    assert limits(low, max_ram_gb=8).ram_knob == RAM_VARIABLE
    assert limits(low, max_ram_gb=1.5).max_ram_bytes == 1.5 * GIB
    with pytest.raises(ValueError, match=RAM_VARIABLE):
        limits(Machine(64 * GIB, 0, {RAM_VARIABLE: "lots"}))


def test_a_machine_with_less_memory_than_the_profile_asks_for_still_works():
    found = limits(Machine(GIB, 300 * MIB, {}), profile="throughput")
    assert found.max_ram_bytes >= 300 * MIB + found.max_inflight_bytes
