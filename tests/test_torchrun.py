"""The script of docs/lightning.md under torchrun: killed in the middle of an epoch, gone on with by other processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import torch

import torchslip as ts

DOCS = Path(__file__).parents[1] / "docs/lightning.md"
LOOP = "        for step, batch in enumerate(loader, start=1):\n"
BATCH_SIZE, EPOCHS = 3, 2

# Writes down what every rank sees, and dies at a given step as a process does that the machine takes down.
WITNESS = """
            import json, pathlib, signal, sys
            with pathlib.Path(f"{sys.argv[1]}-{dist.get_rank()}.txt").open("a") as seen:
                print(json.dumps(batch["sample_id"].tolist()), file=seen)
            if (epoch, step, dist.get_rank()) == (0, int(sys.argv[2]), 1):
                os.kill(os.getpid(), signal.SIGKILL)
"""


def write_script(folder):
    (script,) = (
        block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "main()" in block
    )
    assert LOOP in script
    assert "batch_size=8" in script
    script = script.replace("batch_size=8", f"batch_size={BATCH_SIZE}").replace(LOOP, LOOP + WITNESS)
    (folder / "train.py").write_text(script)


def torchrun(folder, name, *, processes, die_at=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, "train.py", name, str(die_at)], cwd=folder, capture_output=True, text=True, timeout=150
    )
    ranks = [(folder / f"{name}-{rank}.txt").read_text().splitlines() for rank in range(processes)]
    return done, [[json.loads(line) for line in lines] for lines in ranks]


def in_order(ranks):
    """The global sequence from the batches of every rank: samples are dealt one by one."""
    return [i for batches in zip(*ranks, strict=True) for row in zip(*batches, strict=True) for i in row]


def test_a_killed_training_goes_on_with_other_processes_and_sees_each_sample_once(picture_folder, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train").symlink_to(picture_folder)
    write_script(tmp_path)

    killed, before = torchrun(tmp_path, "before", processes=2, die_at=6)
    assert killed.returncode != 0
    assert "SIGKILL" in killed.stderr
    position = torch.load(tmp_path / "last.pt")["loader"]["position"]
    saved = position // (2 * BATCH_SIZE)
    assert 0 < saved < 6

    ended, after = torchrun(tmp_path, "after", processes=3)
    assert ended.returncode == 0, ended.stderr
    alone = ts.ImageDataset(picture_folder, views=ts.RandomResizedCrop(8), batch_size=6, shuffle=True, seed=17)
    expected = [i for _ in range(EPOCHS) for batch in alone for i in batch["sample_id"].tolist()]
    seen = in_order([batches[:saved] for batches in before]) + in_order(after)
    assert seen[:42] == expected[:42]
    # Three ranks of three samples leave the last six of a whole epoch out: tail="drop".
    assert seen[42:] == expected[42:78]
