"""`DataModule`: torchslip's datasets in a Lightning `Trainer`, resumed where the training stood.

Needs Lightning 2, as the package ``lightning`` or ``pytorch_lightning``; where there are both, import the one whose
`Trainer` you use before this module.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torchslip.errors import MissingDependencyError
from torchslip.loading import DataLoader, ImageDataset
from torchslip.order import DistributedBatchSampler

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

    Args:
        train: An `ImageDataset` with a `batch_size`, or a `ts.DataLoader` of your own.
        val: The same for validation; a list for several.
        test: The same for `Trainer.test`.
        predict: The same for `Trainer.predict`.
        loader_arguments: For the `ts.DataLoader` that is made around each dataset: `num_workers`, `pin_memory`, ...

    Raises:
        TypeError: If something is neither a dataset nor a loader of torchslip.
        MissingDependencyError: When this module is imported and Lightning is not installed.
    """

    def __init__(
        self,
        train: ImageDataset | DataLoader | None = None,
        *,
        val: ImageDataset | DataLoader | Sequence[ImageDataset | DataLoader] | None = None,
        test: ImageDataset | DataLoader | Sequence[ImageDataset | DataLoader] | None = None,
        predict: ImageDataset | DataLoader | Sequence[ImageDataset | DataLoader] | None = None,
        **loader_arguments: Any,
    ) -> None:
        super().__init__()
        self.loader_arguments = loader_arguments
        self._passes: _TrainingPasses | None = None
        self._loaded: Mapping[str, Any] | None = None
        # Lightning takes a method of the class for a stage that is wanted, so there is one only where there is data.
        if train is not None:
            _check_type("train", train)
            self.train_dataloader = partial(self._training, train)
        for stage, given in (("val", val), ("test", test), ("predict", predict)):
            if given is not None:
                for each in given if isinstance(given, Sequence) else [given]:
                    _check_type(stage, each)
                setattr(self, f"{stage}_dataloader", partial(self._evaluation, given))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: the state of the training loader, if there is one."""
        return {} if self._passes is None else {"train": self._passes.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state out of a checkpoint, for the training that begins now; evaluations do not need it."""
        # Lightning gives a loader its state only in the middle of an epoch; then another dataset would go unnoticed.
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self._loaded = state_dict.get("train")

    def _loader(self, given: ImageDataset | DataLoader) -> DataLoader:
        return given if isinstance(given, DataLoader) else DataLoader(given, **self.loader_arguments)

    def _training(self, given: ImageDataset | DataLoader) -> _TrainingPasses:
        self._passes = _TrainingPasses(self._loader(given), self.trainer)
        if self._loaded is not None:
            self._passes.load_state_dict(self._loaded)
            self._loaded = None
        return self._passes

    def _evaluation(self, given: ImageDataset | DataLoader | Sequence[ImageDataset | DataLoader]) -> Any:
        if isinstance(given, Sequence):
            return [_Passes(self._loader(each)) for each in given]
        return _Passes(self._loader(given))


def _check_type(name: str, given: object) -> None:
    if not isinstance(given, ImageDataset | DataLoader):
        raise TypeError(
            f"{name} must be an ImageDataset or a ts.DataLoader, got {type(given).__name__}. For an ImageMapDataset, "
            "pass ts.DataLoader(dataset, batch_sampler=ts.DistributedBatchSampler(...))."
        )
