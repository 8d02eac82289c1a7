"""The demo's training process: trains from a plan, reports on standard output, and can be stopped and resumed.

The plan is the only argument, as JSON. Every report is one line of JSON with an ``event``: ``start``, ``batch``,
``pass`` (the training part of an epoch, or what was left of it), ``epoch``, ``done`` or ``error``.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import torchslip as ts
from torchslip.cli._demo_data import Split, split_pictures
from torchslip.cli._grid import save_grid
from torchslip.cli._waiting import Waiting

__all__ = ["SIZE_PX", "Plan", "batch_size_for"]

SIZE_PX = 64
_SHOWN = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """What one training process does.

    Attributes:
        data: The image folder.
        limit: How many pictures of it are taken.
        epochs: How many epochs the whole training has.
        stop_epoch: Where to stop: the epoch, ...
        stop_batch: ... and the number of batches delivered by then.
        state: The file that the state is saved to, or resumed from.
        resume: Resume from `state` and go on to the end; otherwise begin and stop.
        sheet: Where to write a picture of the first batch.
        workers: Worker processes of the loader.
    """

    data: str
    limit: int
    epochs: int
    stop_epoch: int
    stop_batch: int
    state: str
    resume: bool
    sheet: str
    workers: int

    def to_json(self) -> str:
        """The argument of the training process."""
        return json.dumps(asdict(self))


def batch_size_for(pictures: int) -> int:
    """32, or less where that would leave fewer than four batches."""
    return max(1, min(32, pictures // 4))


class _Network(nn.Sequential):
    """Four convolutions and a linear layer: 0.14 million parameters."""

    def __init__(self, classes: int) -> None:
        widths = (3, 24, 48, 96, 96)
        blocks = [
            nn.Sequential(
                nn.Conv2d(
                    before, after, 5 if before == 3 else 3, stride=2, padding=2 if before == 3 else 1, bias=False
                ),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            )
            for before, after in pairwise(widths)
        ]
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
        super().__init__(nn.InstanceNorm2d(3), *blocks, *head)


class _Training:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.split: Split = split_pictures(plan.data, limit=plan.limit)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(17)
        # Threads that spin while a worker has their core make a small network ten times slower.
        torch.set_num_threads(max(torch.get_num_threads() - plan.workers, 1))
        self.model = _Network(len(self.split.classes)).to(memory_format=torch.channels_last).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, weight_decay=0.01)
        self._batch_size = batch_size_for(len(self.split.train_ids))
        self.train = ts.ImageDataset(
            self.split.train,
            views=ts.RandomResizedCrop(SIZE_PX, scale=(0.35, 1.0)),
            batch_size=self._batch_size,
            shuffle=True,
            seed=17,
            indices=self.split.train_ids,
            on_error="skip",
        )
        self.loader = ts.DataLoader(
            self.train,
            num_workers=plan.workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=plan.workers > 0,
        )
        self.val = ts.ImageDataset(
            self.split.val,
            views=ts.ResizeCrop(SIZE_PX, SIZE_PX),
            batch_size=128,
            indices=self.split.val_ids,
            on_error="skip",
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, plan.epochs * len(self.train))

    def run(self) -> None:
        """Train from the beginning to the stop, or from the stop to the end."""
        if self.plan.resume:
            self._load()
        epoch, position = self.loader.epoch, self.loader.state_dict()["position"]
        trained = position // self._batch_size
        _report("start", device=self.device.type, epoch=epoch, trained=trained)
        while epoch < self.plan.epochs:
            if self._run_epoch(epoch, trained):
                break
            epoch, trained = epoch + 1, 0
        skipped = self.train.stats()["skipped_samples"] + self.val.stats()["skipped_samples"]
        gpu_peak_bytes = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
        _report("done", skipped=skipped, gpu_peak_bytes=gpu_peak_bytes)

    def _run_epoch(self, epoch: int, trained: int) -> bool:
        """Train the rest of the epoch after `trained` batches; returns whether it stopped before the end."""
        self.model.train()
        stop_batch = self.plan.stop_batch if epoch == self.plan.stop_epoch and not self.plan.resume else None
        begin, waiting, images = time.perf_counter(), Waiting(), 0
        for batch in waiting.on(self.loader):
            if not self.plan.resume and epoch == trained == 0:
                self._show(batch)
            loss = self._step(batch)
            images += len(batch["sample_id"])
            trained += 1
            _report("batch", epoch=epoch, trained=trained, loss=loss, sample_ids=batch["sample_id"].tolist())
            if trained == stop_batch:
                break
        seconds = time.perf_counter() - begin
        _report("pass", epoch=epoch, images=images, seconds=seconds, waited_seconds=waiting.seconds)
        if trained == stop_batch:
            self._save()
            return True
        _report("epoch", epoch=epoch, accuracy=self._accuracy())
        return False

    def _step(self, batch: dict[str, Any]) -> float:
        labels = batch["label"].to(self.device)
        loss = F.cross_entropy(self.model(self._images(batch)), labels, label_smoothing=0.05)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        # Waits for the GPU, so that its work is not counted as waiting for data.
        return loss.item()

    def _images(self, batch: dict[str, Any]) -> torch.Tensor:
        images: torch.Tensor = batch["image"].to(self.device, non_blocking=True)
        return images.float().div_(127.5).sub_(1)

    @torch.no_grad()
    def _accuracy(self) -> float:
        self.model.eval()
        correct = 0
        for batch in ts.DataLoader(self.val, num_workers=self.plan.workers):
            predicted = self.model(self._images(batch)).argmax(dim=1).cpu()
            correct += int((predicted == batch["label"]).sum())
        return correct / len(self.split.val_ids)

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "loader": self.loader.state_dict(),
        }
        unfinished = Path(f"{self.plan.state}.unfinished")
        torch.save(state, unfinished)
        unfinished.replace(self.plan.state)

    def _load(self) -> None:
        state = torch.load(self.plan.state, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.loader.load_state_dict(state["loader"])

    def _show(self, batch: dict[str, Any]) -> None:
        captions = [self.split.classes[label] for label in batch["label"].tolist()]
        pictures = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in batch["image"]]
        save_grid(list(zip(pictures, captions, strict=True))[:_SHOWN], self.plan.sheet, tile_px=2 * SIZE_PX)


def _report(event: str, **values: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


def _main() -> int:
    try:
        _Training(Plan(**json.loads(sys.argv[1]))).run()
    except (ts.TorchslipError, OSError) as error:
        _report("error", text=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
