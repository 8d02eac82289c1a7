"""A training on two CPU processes, which Lightning starts; writes what each rank saw: `test_lightning.py` runs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning.pytorch
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import torchslip as ts
from torchslip.lightning import DataModule


class Recorder(lightning.pytorch.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[list[int]] = []

    def training_step(self, batch, number):
        self.trained.append(batch["sample_id"].tolist())
        return self.weight * batch["image"].float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make(folder: str, kind: str) -> ts.ImageDataset | ts.DataLoader:
    options = {"views": ts.RandomResizedCrop(8), "seed": 17}
    if kind == "iterable":
        return ts.ImageDataset(folder, batch_size=3, shuffle=True, **options)
    dataset = ts.ImageMapDataset(folder, **options)
    order = ts.Shuffled(dataset, seed=17)
    sampler = ts.DistributedBatchSampler(order, batch_size=3, fingerprint=dataset.source.fingerprint)
    return ts.DataLoader(dataset, batch_sampler=sampler)


if __name__ == "__main__":
    folder, out, kind = sys.argv[1:]
    model = Recorder()
    trainer = lightning.pytorch.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(out, "{step}", every_n_train_steps=4, save_top_k=-1)],
    )
    trainer.fit(model, DataModule(make(folder, kind)))
    Path(out, f"{trainer.global_rank}.json").write_text(json.dumps(model.trained))
