"""A training on CPU processes that Lightning starts; writes what each rank saw: `test_lightning.py` runs it."""

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
        self.evaluated: list[int] = []

    def training_step(self, batch, number):
        self.trained.append(batch["sample_id"].tolist())
        return self.weight * batch["image"].float().mean()

    def validation_step(self, batch, number):
        self.evaluated += batch["sample_id"].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train_data(folder: str) -> ts.ImageDataset:
    return ts.ImageDataset(folder, views=ts.RandomResizedCrop(8), batch_size=3, shuffle=True, seed=17)


def val_data(folder: str) -> ts.DataLoader:
    """The loader of a map-style dataset: Lightning would put a sampler of its own into one of torch's."""
    dataset = ts.ImageMapDataset(folder, views=ts.CenterCrop(8))
    sampler = ts.DistributedBatchSampler(ts.Sequential(dataset), batch_size=4)
    return ts.DataLoader(dataset, batch_sampler=sampler)


if __name__ == "__main__":
    folder, out, devices = sys.argv[1:]
    model = Recorder()
    trainer = lightning.pytorch.Trainer(
        accelerator="cpu",
        devices=int(devices),
        strategy="ddp",
        max_epochs=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(out, "{step}", every_n_train_steps=4, save_top_k=-1)],
    )
    trainer.fit(model, DataModule(train_data(folder), val=val_data(folder)))
    Path(out, f"{trainer.global_rank}.json").write_text(json.dumps([model.trained, model.evaluated]))
