"""Real process groups: the topology is found when the dataset is used, and reaches every kind of worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

import torchslip as ts

WORLD = 2


def _train(rank: int, folder: str, store: str, out: str, start_method: str) -> None:
    # The dataset is made before the process group, as in a Lightning DataModule.
    dataset = ts.ImageDataset(folder, views=ts.CenterCrop(8), batch_size=4, shuffle=True, seed=3)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    try:
        loader = ts.DataLoader(dataset, num_workers=1, multiprocessing_context=start_method)
        batches = [batch["sample_id"].tolist() for batch in loader]
        Path(out, f"{rank}.json").write_text(json.dumps([len(dataset), batches, loader.state_dict()]))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_two_processes_see_each_sample_once_and_agree_on_the_state(picture_folder, tmp_path, start_method):
    arguments = (str(picture_folder), str(tmp_path / "store"), str(tmp_path), start_method)
    mp.spawn(_train, arguments, nprocs=WORLD)
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD)]

    (length, batches, state), (other_length, other_batches, other_state) = results
    assert length == other_length == len(batches) == len(other_batches) == 6
    assert sorted(i for batch in batches + other_batches for i in batch) == list(range(42))
    assert state == other_state

    alone = ts.ImageDataset(picture_folder, views=ts.CenterCrop(8), batch_size=8, shuffle=True, seed=3)
    for number, batch in enumerate(alone):
        assert sorted(batches[number] + other_batches[number]) == sorted(batch["sample_id"].tolist())
