"""A Lightning training that was interrupted goes on as if it had not been; ranks divide every batch."""

from __future__ import annotations

import json
import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

import lightning.pytorch
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

import torchslip as ts
from torchslip.lightning import DataModule

# A resumed run here saves no checkpoints of its own, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")

EPOCHS, STEPS, SAMPLES = 2, 11, 42
DOCS = Path(__file__).parents[1] / "docs/lightning.md"
RUN = Path(__file__).with_name("lightning_run.py")


class Recorder(lightning.pytorch.LightningModule):
    """Writes down which samples it was trained on, batch by batch."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.fail_at = fail_at
        self.trained: list[tuple[int, list[int]]] = []

    def training_step(self, batch, number):
        if self.global_step == self.fail_at:
            raise ArithmeticError("loss is nan")
        self.trained.append((self.current_epoch, batch["sample_id"].tolist()))
        return self.weight * batch["image"].float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveOnException(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer, module, exception):
        trainer.save_checkpoint(self.path)


class Evaluator(Recorder):
    """Writes down the pictures that it was evaluated on as well."""

    def __init__(self) -> None:
        super().__init__()
        self.evaluated: list[torch.Tensor] = []

    def validation_step(self, batch, number, dataloader_idx=0):
        self.evaluated.append(batch["image"])

    test_step = validation_step


def make(folder, **options):
    arguments = {"views": ts.RandomResizedCrop(8), "batch_size": 4, "shuffle": True, "seed": 17} | options
    return ts.ImageDataset(folder, **arguments)


def trainer(*callbacks, **options):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    saving = {"enable_checkpointing": any(isinstance(each, ModelCheckpoint) for each in callbacks)}
    arguments = {"accelerator": "cpu", "devices": 1, "max_epochs": EPOCHS}
    return lightning.pytorch.Trainer(callbacks=list(callbacks), **(arguments | quiet | saving | options))


def fit(data, *callbacks, ckpt_path=None, model=None, **options):
    model = Recorder() if model is None else model
    trainer(*callbacks, **options).fit(model, data, ckpt_path=ckpt_path)
    return model.trained


def every_step(folder):
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)


def ids_of(trained):
    return [sample for _, batch in trained for sample in batch]


@pytest.fixture(scope="module")
def whole(picture_folder, tmp_path_factory):
    """What an uninterrupted run was trained on, and the folder with its checkpoints after every step."""
    folder = tmp_path_factory.mktemp("whole")
    return fit(DataModule(make(picture_folder)), every_step(folder)), folder


def test_an_epoch_of_the_trainer_is_the_epoch_of_the_same_number(picture_folder, whole):
    loader = ts.DataLoader(make(picture_folder))
    expected = [(epoch, batch["sample_id"].tolist()) for epoch in range(EPOCHS) for batch in loader]

    assert whole[0] == expected
    assert fit(DataModule(make(picture_folder), num_workers=2)) == expected


def test_resume_at_every_step_equals_no_interruption(picture_folder, whole):
    trained, folder = whole
    for step in range(1, EPOCHS * STEPS + 1):
        rest = fit(DataModule(make(picture_folder)), ckpt_path=folder / f"step={step}.ckpt")
        assert rest == trained[step:], step


@pytest.mark.parametrize("step", [3, STEPS])
def test_resume_with_workers_that_prefetch_equals_no_interruption(picture_folder, tmp_path, whole, step):
    fit(DataModule(make(picture_folder), num_workers=2), every_step(tmp_path), max_steps=step)
    rest = fit(DataModule(make(picture_folder), num_workers=1), ckpt_path=tmp_path / f"step={step}.ckpt")

    assert rest == whole[0][step:]


@pytest.mark.parametrize("decode", ["workers", "device"])
def test_batches_that_lie_on_the_device_already_are_trained_on_and_resumed_too(picture_folder, tmp_path, whole, decode):
    ahead = {"num_workers": 1, "device": "cpu", "decode": decode}
    begun = fit(DataModule(make(picture_folder), **ahead), every_step(tmp_path), max_steps=3)
    rest = fit(DataModule(make(picture_folder), **ahead), ckpt_path=tmp_path / "step=3.ckpt")

    assert begun + rest == whole[0]


def test_persistent_workers_go_on_with_the_next_epoch_and_end_with_the_training(picture_folder, whole):
    data = DataModule(make(picture_folder), val=make(picture_folder), num_workers=1, persistent_workers=True)

    assert fit(data, model=Evaluator()) == whole[0]
    assert multiprocessing.active_children() == []


def test_loaders_that_are_made_anew_in_every_epoch_change_nothing(picture_folder, whole):
    assert fit(DataModule(make(picture_folder)), reload_dataloaders_every_n_epochs=1) == whole[0]


def test_resume_between_accumulated_steps_equals_no_interruption(picture_folder, tmp_path, whole):
    options = {"accumulate_grad_batches": 2}
    assert fit(DataModule(make(picture_folder)), every_step(tmp_path), **options) == whole[0]

    # Eleven batches in an epoch make six steps: the last one has a single batch.
    for step, batches in ((1, 2), (5, 10), (6, 11), (7, 13)):
        rest = fit(DataModule(make(picture_folder)), ckpt_path=tmp_path / f"step={step}.ckpt", **options)
        assert rest == whole[0][batches:], step


@pytest.mark.parametrize("step", [0, 5, STEPS - 1, STEPS])
def test_the_batch_of_a_step_that_failed_is_repeated(picture_folder, tmp_path, whole, step):
    model = Recorder(fail_at=step)
    with pytest.raises(ArithmeticError, match="loss is nan"):
        fit(DataModule(make(picture_folder), num_workers=1), SaveOnException(tmp_path / "failed.ckpt"), model=model)
    rest = fit(DataModule(make(picture_folder)), ckpt_path=tmp_path / "failed.ckpt")

    assert model.trained + rest == whole[0]


@pytest.mark.parametrize("interval", [0.5, 1.0, 4])
def test_resume_from_what_a_validation_saved_equals_no_interruption(picture_folder, tmp_path, whole, interval):
    data = DataModule(make(picture_folder), val=make(picture_folder, shuffle=False))
    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, save_on_train_epoch_end=False)
    assert fit(data, saving, model=Evaluator(), val_check_interval=interval) == whole[0]

    saved = sorted(tmp_path.iterdir())
    assert len(saved) == {0.5: 4, 1.0: 2, 4: 4}[interval]
    for path in saved:
        data = DataModule(make(picture_folder), val=make(picture_folder, shuffle=False))
        rest = fit(data, ckpt_path=path, model=Evaluator(), val_check_interval=interval)
        assert rest == whole[0][int(path.stem.partition("=")[2]) :], path.name


def test_resume_of_shortened_epochs_equals_no_interruption(picture_folder, tmp_path):
    short = {"limit_train_batches": 4, "max_epochs": 3}
    trained = fit(DataModule(make(picture_folder)), every_step(tmp_path), **short)

    for step in range(1, 13):
        rest = fit(DataModule(make(picture_folder)), ckpt_path=tmp_path / f"step={step}.ckpt", **short)
        assert rest == trained[step:], step


@pytest.mark.parametrize("batch_size", [1, 3, 8, 42])
def test_resume_with_another_batch_size_leaves_out_nothing_and_ends_the_epoch(picture_folder, whole, batch_size):
    trained, folder = whole
    for step in (1, 8, STEPS):
        data = DataModule(make(picture_folder, batch_size=batch_size), val=make(picture_folder))
        rest = fit(data, ckpt_path=folder / f"step={step}.ckpt", model=(model := Evaluator()))
        assert ids_of(rest) == ids_of(trained[step:])
        assert len(model.evaluated) >= STEPS * (EPOCHS - (step == STEPS))  # every epoch that ended was evaluated


def test_a_trainer_that_goes_on_takes_the_next_epoch(picture_folder, whole):
    model, data, run = Recorder(), DataModule(make(picture_folder)), trainer(max_epochs=1)
    run.fit(model, data)
    run.fit_loop.max_epochs = EPOCHS
    run.fit(model, data)

    assert model.trained == whole[0]


@pytest.mark.parametrize("step", [5, STEPS])
@pytest.mark.parametrize(("options", "difference"), [({"seed": 18}, "seed: 17"), ({"shuffle": False}, "shuffled/1")])
def test_a_checkpoint_of_another_order_is_refused(picture_folder, whole, step, options, difference):
    with pytest.raises(ts.StateError, match=difference):
        fit(DataModule(make(picture_folder, **options)), ckpt_path=whole[1] / f"step={step}.ckpt")


def test_an_evaluation_leaves_the_next_training_at_its_start(picture_folder, whole):
    data = DataModule(make(picture_folder), val=make(picture_folder))
    trainer().validate(Evaluator(), data, ckpt_path=whole[1] / "step=5.ckpt", verbose=False)

    assert fit(data, model=Evaluator()) == whole[0]


def test_a_loader_of_a_map_dataset_resumes_too(picture_folder, tmp_path, whole):
    def data():
        dataset = ts.ImageMapDataset(picture_folder, views=ts.RandomResizedCrop(8), seed=17)
        order = ts.Shuffled(dataset, seed=17)
        sampler = ts.DistributedBatchSampler(order, batch_size=4, fingerprint=dataset.source.fingerprint)
        return DataModule(ts.DataLoader(dataset, batch_sampler=sampler, num_workers=1))

    assert fit(data(), every_step(tmp_path)) == whole[0]
    for step in (1, 5, STEPS, STEPS + 3):
        assert fit(data(), ckpt_path=tmp_path / f"step={step}.ckpt") == whole[0][step:]


def test_every_evaluation_sees_the_same_pixels(picture_folder):
    data = DataModule(make(picture_folder), val=make(picture_folder), test=[make(picture_folder)])
    model = Evaluator()
    fit(data, model=model)
    trainer().test(model, data, verbose=False)
    sanity, first, second, test = model.evaluated[:2], *(model.evaluated[n : n + STEPS] for n in (2, 13, 24))

    for one, two, three in zip(first, second, test, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    assert torch.equal(sanity[1], first[1])


def test_overfitting_repeats_the_same_batches(picture_folder):
    trained = fit(DataModule(make(picture_folder)), overfit_batches=3)

    assert [epoch for epoch, _ in trained] == [0, 0, 0, 1, 1, 1]
    assert ids_of(trained[:3]) == ids_of(trained[3:])


class ViewRecorder(Recorder):
    """Writes down the sums of all views too."""

    def training_step(self, batch, number):
        loss = super().training_step(batch | {"image": batch["global_0"]}, number)
        epoch, ids = self.trained[-1]
        self.trained[-1] = (epoch, ids, [batch[view].sum().item() for view in ("global_0", "global_1", "local_0")])
        return loss


class ViewEvaluator(ViewRecorder, Evaluator):
    """Writes down what it was evaluated on as well."""


def of_recipe(folder, **options):
    recipe = ts.recipes.load("dino", **{"views.local.count": 1}).resized(16)
    return DataModule(folder, recipe=recipe, batch_size=4, **options)


def test_a_recipe_prepares_the_batches_by_epoch_and_resumes_exactly(picture_folder, tmp_path):
    whole = fit(of_recipe(picture_folder), every_step(tmp_path), model=ViewRecorder())
    recipe = of_recipe(picture_folder).recipe
    loader = ts.DataLoader(recipe.dataset(picture_folder, batch_size=4))
    first, later = (recipe.prepare(next(iter(loader)), epoch=epoch) for epoch in range(EPOCHS))

    steps = len(whole) // EPOCHS
    for batch, (_, ids, (total, *_)) in ((first, whole[0]), (later, whole[steps])):
        assert batch["sample_id"].tolist() == ids
        assert batch["global_0"].sum().item() == pytest.approx(total, rel=1e-4)
    for step in (3, steps, steps + 4):
        data = of_recipe(picture_folder, num_workers=int(step == 3))
        assert fit(data, ckpt_path=tmp_path / f"step={step}.ckpt", model=ViewRecorder()) == whole[step:], step


def test_a_recipe_prepares_evaluations_as_its_paper_does(picture_folder):
    model, data = ViewEvaluator(), of_recipe(picture_folder, val=[picture_folder, str(picture_folder)])
    fit(data, model=model, max_epochs=1, num_sanity_val_steps=0, limit_train_batches=2)
    evaluation = data.recipe.evaluation
    expected = evaluation.prepare(next(iter(evaluation.dataset(picture_folder, batch_size=4))))["image"]

    assert len(model.evaluated) == 2 * STEPS
    torch.testing.assert_close(model.evaluated[0], expected)
    torch.testing.assert_close(model.evaluated[STEPS], expected)


def test_what_a_recipe_needs_is_said(picture_folder, tmp_path):
    (tmp_path / "own.yaml").write_text(
        "paper: ours\nparameters: ours\ndifferences: []\nbatch_size: 4\n"
        "views: {image: {crop: {CenterCrop: {size: 8}}, augment: [ToFloat]}}\n"
    )
    with pytest.raises(ValueError, match="own describes no evaluation, so there is no val data"):
        DataModule(picture_folder, recipe=tmp_path / "own.yaml", val=picture_folder)
    with pytest.raises(ValueError, match="batch_size needs a recipe"):
        DataModule(make(picture_folder), batch_size=4)
    with pytest.raises(ts.FormatError, match="no recipe 'simclear'"):
        DataModule(picture_folder, recipe="simclear")


def run_elsewhere(folder, out, devices, package="lightning.pytorch"):
    """What every rank was trained on, batch by batch, and evaluated on."""
    script = out / "run.py"
    script.write_text(RUN.read_text().replace("lightning.pytorch", package))
    command = [sys.executable, script, folder, out, str(devices)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return zip(*(json.loads((out / f"{rank}.json").read_text()) for rank in range(devices)), strict=True)


def test_two_processes_see_each_sample_once_and_one_goes_on(picture_folder, tmp_path, whole):
    trained, evaluated = run_elsewhere(picture_folder, tmp_path, devices=2)
    both = [[i for pair in zip(*batches, strict=True) for i in pair] for batches in zip(*trained, strict=True)]
    assert [i for batch in both for i in batch] == ids_of(whole[0])
    assert sorted(evaluated[0] + evaluated[1]) == sorted(EPOCHS * list(range(SAMPLES)))

    alone = fit(DataModule(make(picture_folder)), ckpt_path=tmp_path / "step=4.ckpt")
    assert ids_of(alone) == ids_of(whole[0])[4 * 6 :]


def test_the_other_package_of_lightning_takes_it_too(picture_folder, tmp_path, whole):
    trained, _ = run_elsewhere(picture_folder, tmp_path, devices=1, package="pytorch_lightning")

    assert [i for batch in trained[0] for i in batch] == ids_of(whole[0])


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`:UserWarning")
def test_the_example_of_the_documentation_runs(picture_folder, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for name in ("train", "val"):
        (tmp_path / "data" / name).symlink_to(picture_folder)
    monkeypatch.chdir(tmp_path)
    example = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[0]
    exec(example.replace("every_n_train_steps=100", "every_n_train_steps=1"), {"model": (model := Evaluator())})

    assert [epoch for epoch, _ in model.trained] == [0, 0, 1, 1]
    assert (tmp_path / "checkpoints/last.ckpt").is_file()


class PairRecorder(Evaluator):
    """Takes the views of SimCLR."""

    def training_step(self, batch, number):
        assert batch["view_0"].dtype == torch.float32
        return super().training_step(batch | {"image": batch["view_1"]}, number)


def test_the_example_with_a_recipe_runs(picture_folder, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for name in ("train", "val"):
        (tmp_path / "data" / name).symlink_to(picture_folder)
    monkeypatch.chdir(tmp_path)
    example = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    names = {"DataModule": DataModule, "model": (model := PairRecorder()), "trainer": trainer(fast_dev_run=True)}
    exec(example.replace("batch_size=32, num_workers=2", "batch_size=7"), names)

    assert len(model.trained) == len(model.evaluated) == 1
    assert model.evaluated[0].shape == (7, 3, 224, 224)


def test_what_is_neither_a_dataset_nor_a_loader_is_refused(picture_folder):
    with pytest.raises(TypeError, match=r"train must be an ImageDataset or a ts\.DataLoader, got PosixPath"):
        DataModule(picture_folder)
    with pytest.raises(TypeError, match=r"val must be .* got ImageMapDataset"):
        DataModule(val=[ts.ImageMapDataset(picture_folder)])


def test_without_lightning_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules |= dict.fromkeys(('lightning', 'pytorch_lightning'))\n"
        "import torchslip\ntry:\n    import torchslip.lightning\n"
        "except torchslip.MissingDependencyError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert "pip install 'torchslip[lightning]'" in done.stdout


def test_import_torchslip_leaves_lightning_alone():
    code = "import sys, torchslip; print([n for n in sys.modules if 'lightning' in n])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"
