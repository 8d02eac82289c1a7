"""The weights of mosaicml-streaming: the same samples of each stream as there, and the same length of an epoch.

The peer lives in an environment of its own, whose python ``TORCHSLIP_MOSAIC_PYTHON`` names; docs/development.md says
how to make it.
"""

import json
import os
import random
import subprocess

import pytest

from torchslip.order import choose_per_source

PEER = """
import json, sys
import numpy as np
from streaming import Stream

for lengths, weights, epoch_size in json.load(sys.stdin):
    streams = [Stream(local="unused", **each) for each in weights]
    Stream.apply_weights(streams, np.array(lengths), epoch_size, 9176)
    print(json.dumps([int(stream.choose) for stream in streams]))
"""


def draw(rng):
    """Lengths, weights of one kind, and an epoch size where that is allowed."""
    lengths = [rng.randint(1, 5000) for _ in range(rng.randint(1, 6))]
    kind = rng.choice(["proportion", "unspecified", "absolute"])
    if kind == "absolute":
        weights = [rng.choice([{"repeat": 3 * rng.random()}, {"choose": rng.randint(1, 9000)}, {}]) for _ in lengths]
        return lengths, weights, None
    weights = [{"proportion": rng.choice([rng.random(), rng.randint(1, 9)])} for _ in lengths]
    epoch_size = rng.choice([None, rng.randint(1, 10_000)])
    return lengths, weights if kind == "proportion" else [{}] * len(lengths), epoch_size


def test_streams_get_as_many_samples_as_in_mosaicml_streaming():
    python = os.environ.get("TORCHSLIP_MOSAIC_PYTHON")
    if not python:
        pytest.skip("TORCHSLIP_MOSAIC_PYTHON does not name the python of an environment with mosaicml-streaming")
    rng = random.Random(0)
    cases = [draw(rng) for _ in range(200)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", PEER], input=json.dumps(cases), capture_output=True, text=True, timeout=150, env=environment
    )
    assert done.returncode == 0, done.stderr
    for (lengths, weights, epoch_size), line in zip(cases, done.stdout.splitlines(), strict=True):
        kinds = {kind for each in weights for kind in each}
        ours = choose_per_source(
            lengths, epoch_size=epoch_size, **{kind: [each.get(kind) for each in weights] for kind in kinds}
        )
        theirs = json.loads(line)
        # There, numpy's random numbers say which streams get one more where proportions are no whole samples.
        rounding = bool(kinds & {"proportion"}) or epoch_size is not None
        assert sum(ours) == sum(theirs)
        assert all(abs(count - other) <= rounding for count, other in zip(ours, theirs, strict=True))
