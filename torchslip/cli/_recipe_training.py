"""Training a small network by a recipe, for so many steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch

import torchslip as ts
from torchslip.cli._masked_methods import METHODS
from torchslip.cli._methods import Method
from torchslip.cli._waiting import Waiting
from torchslip.errors import FormatError, TorchslipError
from torchslip.recipes import Recipe

__all__ = ["Clock", "RecipeTraining", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a training.

    Attributes:
        number: From 1.
        epoch: From 0.
        loss: Before the step.
        batch: What the network was given.
    """

    number: int
    epoch: int
    loss: float
    batch: dict[str, Any]


@dataclass(slots=True)
class Clock:
    """Where the time of a training went, after its first step, which starts workers and warms up.

    Attributes:
        images: Samples that were trained on, each with all its views.
        seconds: All of the time.
        waiting_seconds: For batches.
        preparing_seconds: In the augmentation, on the device of the network.
    """

    images: int = 0
    seconds: float = 0.0
    waiting_seconds: float = 0.0
    preparing_seconds: float = 0.0


class RecipeTraining:
    """A small network, the batches of a recipe and an optimizer.

    Args:
        recipe: Its batch size is taken as it is.
        source: To train on.
        method: A key of `METHODS`; default: the recipe's name.
        steps: How many; the learning rate falls to 0 over them.
        device: Of the network and the augmentation.
        workers: Of the loader.
        indices: Train on these samples only.
        learning_rate: Of AdamW, at its highest.

    Raises:
        FormatError: If there is no such method, or the recipe lacks what it needs.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: ts.Source,
        *,
        method: str | None = None,
        steps: int,
        device: torch.device,
        workers: int = 0,
        indices: npt.ArrayLike | None = None,
        learning_rate: float = 1e-3,
    ) -> None:
        self.recipe, self.steps, self.device, self.clock = recipe, steps, device, Clock()
        name = recipe.name if method is None else method
        if name not in METHODS:
            raise FormatError(f"There is no method {name!r} to train; choose one with --method: {', '.join(METHODS)}.")
        self.dataset = recipe.dataset(source, indices=indices)
        self.loader = ts.DataLoader(
            self.dataset,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
        )
        if device.type == "cpu" and workers:
            # Threads that spin while a worker has their core make a small network ten times slower.
            torch.set_num_threads(max(torch.get_num_threads() - workers, 1))
        torch.manual_seed(recipe.seed)
        # Labels of a source that does not name its classes: as many as ImageNet has.
        self.method: Method = METHODS[name](recipe, self._channels(), len(self.dataset.classes) or 1000).to(device)
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in self.method.parameters() if parameter.requires_grad],
            lr=learning_rate,
            weight_decay=0.05,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, learning_rate, total_steps=max(steps, 2), pct_start=0.1
        )

    def run(self) -> Iterator[Step]:
        """Train, step by step.

        Raises:
            TorchslipError: If the loss is not a number any more.
        """
        number, waiting, begin = 0, Waiting(), time.perf_counter()
        self.method.train()
        while number < self.steps:
            for batch in waiting.on(self.loader):
                number += 1
                before = time.perf_counter()
                batch = self._prepare(batch)
                prepared_seconds = time.perf_counter() - before
                loss = self._step(batch)
                if math.isnan(loss):
                    raise TorchslipError(f"The loss of step {number} is not a number; the training has diverged.")
                if number > 1:
                    self.clock.images += len(batch["sample_id"])
                    self.clock.preparing_seconds += prepared_seconds
                    self.clock.seconds, self.clock.waiting_seconds = time.perf_counter() - begin, waiting.seconds
                yield Step(number, self.loader.epoch, loss, batch)
                if number == 1:
                    waiting.seconds, begin = 0.0, time.perf_counter()
                if number == self.steps:
                    return

    def _prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        moved = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
        ready = self.recipe.prepare(moved, epoch=self.loader.epoch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return ready

    def _step(self, batch: dict[str, Any]) -> float:
        loss = self.method(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.method.after_step()
        # Waits for the GPU, so that its work is not counted as waiting for data.
        return float(loss.item())

    def _channels(self) -> int:
        """Of the pictures after the augmentation, found out by a black one."""
        chain = self.recipe.augment.views[next(iter(self.recipe.views))]
        return int(chain(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)).shape[1])
