"""`torchslip run`: does this recipe train on these pictures, how fast, and what does the network see?"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torchslip.cli._grid import save_picture
from torchslip.cli._progress import training_progress
from torchslip.cli._recipe_arguments import choose_device, load_recipe, normalization_of, open_training_data
from torchslip.cli._recipe_training import RecipeTraining, Step
from torchslip.errors import FormatError
from torchslip.recipes import Recipe
from torchslip.show import draw_grid, to_pictures

__all__ = ["run_recipe"]

_SHOWN = 32


def run_recipe(
    console: Console,
    *,
    recipe: str,
    overrides: Sequence[str],
    data: str,
    method: str | None,
    steps: int,
    out: Path,
    batch_size: int,
    size: int | None,
    device: str | None,
    workers: int,
) -> None:
    """Train a small network by a recipe; leave a picture of every view and ``run.json`` in `out`.

    Raises:
        FormatError: If the recipe, an argument or the data is wrong.
        TorchslipError: If the training diverges.
    """
    place = choose_device(device)
    source, path = open_training_data(data)
    loaded = load_recipe(recipe, overrides, size=size, batch_size=min(batch_size, len(source)))
    if not 2 <= loaded.batch_size <= len(source):
        raise FormatError(
            f"The batch size must be from 2 to the {len(source)} pictures of {path}; it is {loaded.batch_size}."
        )
    training = RecipeTraining(loaded, source, method=method, steps=steps, device=place, workers=workers)
    out.mkdir(parents=True, exist_ok=True)
    console.print(
        f"{loaded.name}: {len(source):,} pictures of {escape(path)}, {loaded.batch_size} in a batch, "
        f"{_describe_views(loaded)}; {steps:,} steps on {place}.",
        highlight=False,
    )
    losses = []
    with training_progress(console) as progress:
        bar = progress.add_task("train", total=steps, note="")
        for step in training.run():
            if step.number == 1:
                _save_views(loaded, step, training.dataset.classes, out)
            losses.append(step.loss)
            progress.update(bar, completed=step.number, note=_note(training, step))
    report = _report(training, losses)
    (out / "run.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(_table(report))
    console.print(f"What the network saw: {', '.join(f'{view}.png' for view in loaded.views)} in {escape(str(out))}")


def _describe_views(recipe: Recipe) -> str:
    sizes: dict[Any, int] = {}
    for view in recipe.views.values():
        size = getattr(view, "size", "whole")
        sizes[size] = sizes.get(size, 0) + 1
    return "views of " + ", ".join(f"{count} x {size}" for size, count in sizes.items()) + " px"


def _save_views(recipe: Recipe, step: Step, classes: Sequence[str], out: Path) -> None:
    """A grid of every view of the first batch, as the network was given it."""
    for view in recipe.views:
        pictures = to_pictures(step.batch, view, limit=_SHOWN, **normalization_of(recipe, view))
        captions = [f"#{sample}" for sample in step.batch["sample_id"].tolist()]
        labels = step.batch.get("label")
        if classes and labels is not None and not labels.is_floating_point():
            captions = [f"{classes[label]} {each}" for label, each in zip(labels.tolist(), captions, strict=True)]
        save_picture(draw_grid(list(zip(pictures, captions[:_SHOWN], strict=True))), out / f"{view}.png")


def _report(training: RecipeTraining, losses: Sequence[float]) -> dict[str, Any]:
    clock, last = training.clock, losses[-max(1, len(losses) // 10) :]
    report = {
        "recipe": training.recipe.name,
        "method": type(training.method).__name__,
        "device": str(training.device),
        "steps": len(losses),
        "batch_size": training.recipe.batch_size,
        "first_loss": losses[0],
        "final_loss": sum(last) / len(last),
        "skipped_samples": training.dataset.stats()["skipped_samples"],
        **dataclasses.asdict(clock),
    }
    if clock.images:
        report["images_per_second"] = clock.images / clock.seconds
    return report


def _table(report: dict[str, Any]) -> Table:
    table = Table(show_header=False, title=f"torchslip run {report['recipe']}", title_justify="left")
    table.add_row("loss", f"{report['first_loss']:.4g} at first, {report['final_loss']:.4g} in the last tenth")
    if report["images"]:
        seconds = report["seconds"]
        table.add_row("speed", f"{report['images_per_second']:,.0f} images/s, with all views, training included")
        table.add_row("waiting for data", f"{report['waiting_seconds'] / seconds:.0%} of the time after the first step")
        table.add_row("augmentation", f"{report['preparing_seconds'] / seconds:.0%}, on {report['device']}")
    return table


def _note(training: RecipeTraining, step: Step) -> str:
    clock = training.clock
    if not clock.seconds:
        return f"loss {step.loss:.3f}"
    return (
        f"loss {step.loss:.3f}  {clock.images / clock.seconds:,.0f} images/s  "
        f"waiting {clock.waiting_seconds / clock.seconds:.0%}"
    )
