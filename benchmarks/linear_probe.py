"""Does a network that SimCLR trained for some minutes know more than one that was never trained?

The recipe `simclr`, at a small size, trains the small network of `torchslip run` on pictures without their labels. Then
both backbones, the trained one and untrained ones, turn the pictures into features, as the recipe's evaluation prepares
them, and two classifiers are fitted to the features and labels of the training pictures:

* a linear probe: logistic regression on standardised features, by L-BFGS, with a penalty on the weights that is chosen
  on a fifth of the training pictures;
* the nearest neighbours: 20 of them, by cosine, each with one vote.

Their accuracy on the pictures kept for validation is reported. Untrained backbones are given the statistics of the
training pictures in their batch normalisations first, as the trained one has them; there are several, with other seeds.

The pictures are those of `torchslip demo`, drawn, in 8 classes, or a folder of your own. The training is as long as
`--minutes` allows: five steps are timed, and the learning rate falls to 0 over as many steps as that gives. The seconds
depend on the machine; with `--steps` a run can be repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _machine import commit, describe_machine, versions

import torchslip as ts
from torchslip.cli._demo_data import Split, split_pictures
from torchslip.cli._demo_pictures import draw_pictures
from torchslip.cli._recipe_training import RecipeTraining

NEIGHBOURS = 20
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def features_of(training: RecipeTraining, split: Split, *, learn_statistics: bool) -> list[torch.Tensor]:
    """Features and labels of the training pictures, then of the validation pictures."""
    found: list[torch.Tensor] = []
    if learn_statistics:
        for norm in training.method.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.momentum = None  # the mean over all batches
        encode(training, split.train, split.train_ids, train_mode=True)
    for source, ids in ((split.train, split.train_ids), (split.val, split.val_ids)):
        found += encode(training, source, ids, train_mode=False)
    return found


@torch.no_grad()
def encode(training: RecipeTraining, source: ts.Source, ids: np.ndarray, *, train_mode: bool) -> list[torch.Tensor]:
    training.method.train(train_mode)
    evaluation = training.recipe.evaluation
    # In an order without pattern, so that a batch has pictures of all classes.
    order = np.random.default_rng(0).permutation(ids)
    dataset = evaluation.dataset(source, batch_size=100, indices=order)
    features, labels = [], []
    for batch in ts.DataLoader(dataset):
        images = evaluation.prepare(batch)["image"].to(training.device)
        features.append(training.method.features(images).cpu())
        labels.append(batch["label"])
    return [torch.cat(features), torch.cat(labels)]


def linear_probe(train: torch.Tensor, labels: torch.Tensor, val: torch.Tensor, val_labels: torch.Tensor) -> float:
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    train, val = (train - mean) / std, (val - mean) / std
    kept = torch.arange(len(train)) % 5 == 0
    scores = [accuracy(fit(train[~kept], labels[~kept], penalty), train[kept], labels[kept]) for penalty in PENALTIES]
    return accuracy(fit(train, labels, PENALTIES[int(np.argmax(scores))]), val, val_labels)


def fit(features: torch.Tensor, labels: torch.Tensor, penalty: float) -> torch.nn.Linear:
    model = torch.nn.Linear(features.shape[1], int(labels.max()) + 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(model(features), labels) + penalty * model.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return model


@torch.no_grad()
def accuracy(model: torch.nn.Linear, features: torch.Tensor, labels: torch.Tensor) -> float:
    return float((model(features).argmax(1) == labels).float().mean())


def nearest_neighbours(train: torch.Tensor, labels: torch.Tensor, val: torch.Tensor, val_labels: torch.Tensor) -> float:
    nearest = (F.normalize(val, dim=1) @ F.normalize(train, dim=1).T).topk(NEIGHBOURS).indices
    votes = F.one_hot(labels[nearest], int(labels.max()) + 1).sum(1)
    return float((votes.argmax(1) == val_labels).float().mean())


def measure(training: RecipeTraining, split: Split, *, learn_statistics: bool) -> dict[str, float]:
    found = features_of(training, split, learn_statistics=learn_statistics)
    return {"linear": linear_probe(*found), "neighbours": nearest_neighbours(*found)}


def make(split: Split, options: argparse.Namespace, *, steps: int, seed: int) -> RecipeTraining:
    recipe = ts.recipes.load("simclr", batch_size=options.batch_size, seed=seed).resized(options.size)
    return RecipeTraining(
        recipe,
        split.train,
        steps=steps,
        device=torch.device(options.device),
        workers=options.workers,
        indices=split.train_ids,
    )


def seconds_per_step(split: Split, options: argparse.Namespace) -> float:
    training = make(split, options, steps=6, seed=0)
    for step in training.run():
        if step.number == 1:
            begin = time.perf_counter()
    return (time.perf_counter() - begin) / 5


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    if options.data is None:
        draw_pictures(folder / "pictures")
    split = split_pictures(options.data or folder / "pictures", limit=options.limit)
    steps = options.steps or max(10, int(options.minutes * 60 / seconds_per_step(split, options)))
    print(
        f"{len(split.train_ids)} pictures to train on, {len(split.val_ids)} to measure with; {steps} steps", flush=True
    )
    untrained = [
        measure(make(split, options, steps=1, seed=seed), split, learn_statistics=True) for seed in range(options.seeds)
    ]
    training, losses = make(split, options, steps=steps, seed=0), []
    begin = time.perf_counter()
    for step in training.run():
        losses.append(step.loss)
        if step.number % 50 == 0:
            print(f"step {step.number}: loss {np.mean(losses[-50:]):.3f}", flush=True)
    seconds = time.perf_counter() - begin
    return {
        "options": {name: str(value) for name, value in vars(options).items() if name != "out"},
        "pictures": {"train": len(split.train_ids), "val": len(split.val_ids), "classes": split.classes},
        "chance": split.chance,
        "steps": steps,
        "epochs": steps * options.batch_size / len(split.train_ids),
        "seconds": seconds,
        "images_per_second": steps * options.batch_size / seconds,
        "losses": [float(np.mean(part)) for part in np.array_split(losses, min(20, len(losses)))],
        "untrained": untrained,
        "trained": measure(training, split, learn_statistics=False),
        "machine": describe_machine(),
        "versions": versions("torch", "torchvision", "numpy"),
        "commit": commit(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of pictures by class; default: the demo's, drawn")
    parser.add_argument("--limit", type=int, default=4000, help="so many pictures of a large folder")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training")
    parser.add_argument("--steps", type=int, help="instead of --minutes")
    parser.add_argument("--size", type=int, default=64, help="of the crops, in pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3, help="how many untrained networks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the figures to this file, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(options, Path(folder))
    for name in ("linear", "neighbours"):
        before = ", ".join(f"{each[name]:.1%}" for each in result["untrained"])
        print(f"{name}: {result['trained'][name]:.1%} trained; {before} untrained; {result['chance']:.1%} by chance")
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
