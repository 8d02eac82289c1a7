"""`DataModule`: torchslip's datasets in a Lightning `Trainer`, resumed where the training stood.

Needs Lightning 2, as the package ``lightning`` or ``pytorch_lightning``; where there are both, import the one whose
`Trainer` you use before this module.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torchslip.errors import MissingDependencyError
from torchslip.loading import DataLoader, ImageDataset
from torchslip.order import DistributedBatchSampler, Topology
from torchslip.recipes import Evaluation, Recipe, load
from torchslip.sources import Source
from torchslip.sources import open as open_source

__all__ = ["DataModule"]

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _find_base() -> Any:
    """The `LightningDataModule` of the Lightning that is in use: a trainer takes only that of its own package."""
    for package in sorted(_PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(package).LightningDataModule
        except ModuleNotFoundError as error:
            if error.name not in (package, package.partition(".")[0]):
                raise
    raise MissingDependencyError(
        "torchslip.lightning needs Lightning, which is not installed: pip install 'torchslip[lightning]'"
    )


class _Passes:
    """A `ts.DataLoader` as a trainer iterates it: a pass begins when its first batch is asked for.

    Lightning makes iterators earlier than it needs them, two for some epochs, and before it knows the epoch. It is not
    a torch `DataLoader` for Lightning, which would put a sampler of its own into one.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self._begin()
        yield from self.loader

    @property
    def _iterator(self) -> Any:
        """Where Lightning looks for persistent workers, to end them with the training."""
        return self.loader._iterator

    @_iterator.setter
    def _iterator(self, iterator: None) -> None:
        self.loader._iterator = iterator

    def _begin(self) -> None:
        # The same crops in every evaluation, so that their results can be compared.
        self.loader.set_epoch(0)


class _TrainingPasses(_Passes):
    """Takes the epoch and the number of batches that count from the trainer; carries the state for its checkpoints."""

    def __init__(self, loader: DataLoader, trainer: Any) -> None:
        super().__init__(loader)
        stateful = loader.dataset if isinstance(loader.dataset, ImageDataset) else loader.batch_sampler
        if not isinstance(stateful, ImageDataset | DistributedBatchSampler):
            raise TypeError(
                "A training resumes only from an ImageDataset or a DistributedBatchSampler; this loader has "
                f"{type(loader.dataset).__name__} and {type(loader.batch_sampler).__name__}."
            )
        self._stateful = stateful
        self._trainer = trainer
        self._progress = trainer.fit_loop.epoch_loop.batch_progress.current
        self._done_before: int | None = None

    def _begin(self) -> None:
        # `Trainer(overfit_batches=...)` wants the same batches in every epoch.
        self.loader.set_epoch(0 if self._trainer.overfit_batches else self._trainer.current_epoch)
        self._done_before = self._progress.processed

    def state_dict(self) -> dict[str, Any]:
        """The state after the batches that the model was trained on.

        The batch in work when a training step raises was delivered, but is not among them: Lightning repeats it.
        """
        if self._done_before is None:
            return self.loader.state_dict()
        return self._stateful.state_at(max(self._progress.processed - self._done_before, 0))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state` in the trainer's epoch.

        Raises:
            StateError: If the state belongs to another dataset, seed, order or version.
        """
        self.loader.load_state_dict(state)
        if state["epoch"] != self._trainer.current_epoch:
            return
        # Lightning ends an epoch by counting its batches, which are others on another number of ranks.
        shift = len(self.loader) - self._stateful.share.count(state["position"]) - self._progress.processed
        for name in ("ready", "started", "processed", "completed"):
            setattr(self._progress, name, getattr(self._progress, name) + shift)


@dataclass(frozen=True, slots=True)
class _Planned:
    """A dataset that a recipe makes when the ranks are known."""

    source: Source
    batch_size: int | None
    recipe: Recipe
    evaluation: Evaluation | None = None

    def dataset(self) -> ImageDataset:
        if self.evaluation is None:
            return self.recipe.dataset(self.source, batch_size=self.batch_size)
        size = self.batch_size or max(1, self.recipe.batch_size // Topology.resolve(None, None).world_size)
        return self.evaluation.dataset(self.source, batch_size=size)


_Data = ImageDataset | DataLoader | Source | str | os.PathLike[str]


class DataModule(_find_base()):  # type: ignore[misc]
    """A `LightningDataModule` of torchslip's datasets.

    ::

        data = DataModule(train=train, val=val, num_workers=8)
        trainer.fit(model, data)
        trainer.fit(model, data, ckpt_path="last.ckpt")     # goes on with the next batch

    A checkpoint, whenever it is written, holds the position after the last batch that the model was trained on; it
    resumes on any other number of devices and workers, and with another batch size. Every epoch of the trainer is the
    epoch of the same number here, so nobody calls `set_epoch`. Ranks get their shares of every batch, and Lightning
    adds no sampler of its own.

    Validation, test and prediction take epoch 0 every time: the same samples and crops.

    With a recipe, paths are enough, and the model gets finished views::

        data = DataModule(recipe="simclr", train="data/train", val="data/val", batch_size=256, num_workers=8)

    The recipe's views are cropped in the workers; its augmentation, masks and mixing happen after the transfer, on the
    device of the model (`on_after_batch_transfer`), by the trainer's epoch, so that they resume exactly too.
    Evaluations are prepared as the recipe's `evaluation` says.

    Args:
        train: An `ImageDataset` with a `batch_size`, or a `ts.DataLoader` of your own; with a recipe also a path or a
            `Source`.
        recipe: The name of a recipe, its file, or what `ts.recipes.load` returned.
        batch_size: Samples per rank and batch, for what is given as a path or `Source`; default: the recipe's, divided
            over the ranks.
        val: As `train`, for validation; a list for several.
        test: The same for `Trainer.test`.
        predict: The same for `Trainer.predict`.
        loader_arguments: For the `ts.DataLoader` that is made around each dataset: `num_workers`, `pin_memory`, ...

    Raises:
        TypeError: If something is neither a dataset nor a loader of torchslip.
        ValueError: If there is a `batch_size` and no recipe, or an evaluation that the recipe does not describe.
        FormatError: If the recipe is wrong, or a path cannot be opened.
        MissingDependencyError: When this module is imported and Lightning is not installed.
    """

    def __init__(
        self,
        train: _Data | None = None,
        *,
        recipe: Recipe | str | os.PathLike[str] | None = None,
        batch_size: int | None = None,
        val: _Data | Sequence[_Data] | None = None,
        test: _Data | Sequence[_Data] | None = None,
        predict: _Data | Sequence[_Data] | None = None,
        **loader_arguments: Any,
    ) -> None:
        super().__init__()
        if recipe is None and batch_size is not None:
            raise ValueError("batch_size needs a recipe; without one it belongs to the dataset.")
        self.recipe = recipe if recipe is None or isinstance(recipe, Recipe) else load(os.fspath(recipe))
        self._batch_size = batch_size
        self.loader_arguments = loader_arguments
        self._passes: _TrainingPasses | None = None
        self._loaded: Mapping[str, Any] | None = None
        # Lightning takes a method of the class for a stage that is wanted, so there is one only where there is data.
        if train is not None:
            self.train_dataloader = partial(self._training, self._plan("train", train))
        for stage, given in (("val", val), ("test", test), ("predict", predict)):
            if isinstance(given, Sequence) and not isinstance(given, str):
                setattr(
                    self, f"{stage}_dataloader", partial(self._evaluations, [self._plan(stage, each) for each in given])
                )
            elif given is not None:
                setattr(self, f"{stage}_dataloader", partial(self._evaluation, self._plan(stage, given)))
        if self.recipe is not None:
            # Not a method either: a model that prepares its batches itself would then be overruled.
            self.on_after_batch_transfer = partial(self._prepare, self.recipe)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: the state of the training loader, if there is one."""
        return {} if self._passes is None else {"train": self._passes.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state out of a checkpoint, for the training that begins now; evaluations do not need it."""
        # Lightning gives a loader its state only in the middle of an epoch; then another dataset would go unnoticed.
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self._loaded = state_dict.get("train")

    def _plan(self, stage: str, given: Any) -> ImageDataset | DataLoader | _Planned:
        evaluation = None if self.recipe is None or stage == "train" else self.recipe.evaluation
        if self.recipe is not None and stage != "train" and evaluation is None:
            raise ValueError(f"The recipe {self.recipe.name} describes no evaluation, so there is no {stage} data.")
        if isinstance(given, ImageDataset | DataLoader):
            return given
        if self.recipe is not None and isinstance(given, str | os.PathLike):
            given = open_source(given)
        if self.recipe is None or not isinstance(given, Source):
            raise TypeError(
                f"{stage} must be an ImageDataset or a ts.DataLoader, got {type(given).__name__}. A path needs a "
                "recipe. For an ImageMapDataset, pass ts.DataLoader(dataset, "
                "batch_sampler=ts.DistributedBatchSampler(...))."
            )
        return _Planned(given, self._batch_size, self.recipe, evaluation)

    def _prepare(self, recipe: Recipe, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Views that are finished, on the device of the model."""
        if self.trainer.training:
            assert self._passes is not None
            return recipe.prepare(batch, epoch=self._passes.loader.epoch)
        return batch if recipe.evaluation is None else recipe.evaluation.prepare(batch)

    def _loader(self, given: ImageDataset | DataLoader | _Planned) -> DataLoader:
        if isinstance(given, DataLoader):
            return given
        return DataLoader(given.dataset() if isinstance(given, _Planned) else given, **self.loader_arguments)

    def _training(self, given: ImageDataset | DataLoader | _Planned) -> _TrainingPasses:
        self._passes = _TrainingPasses(self._loader(given), self.trainer)
        if self._loaded is not None:
            self._passes.load_state_dict(self._loaded)
            self._loaded = None
        return self._passes

    def _evaluation(self, given: ImageDataset | DataLoader | _Planned) -> _Passes:
        return _Passes(self._loader(given))

    def _evaluations(self, given: Sequence[ImageDataset | DataLoader | _Planned]) -> list[_Passes]:
        return [self._evaluation(each) for each in given]
