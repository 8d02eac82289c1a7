"""`ts.show_batch`: whatever has pictures in a batch becomes one picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import torchslip as ts

GAP, TILE = 6, 32


def tile(sheet, column, row=0):
    """The middle of a tile: what the bicubic resizing leaves alone."""
    left, top = GAP + column * (TILE + GAP), GAP + row * (TILE + 16 + GAP)
    return np.asarray(sheet)[top + 8 : top + TILE - 8, left + 8 : left + TILE - 8]


def flat(*colors, dtype=torch.float32):
    """Pictures of one colour each: ``[B, 3, 32, 32]``."""
    return torch.tensor(colors, dtype=dtype)[:, :, None, None].expand(-1, -1, TILE, TILE)


def test_bytes_floats_and_normalised_pictures_look_the_same():
    colors = [(255, 0, 51), (0, 102, 204)]
    floats = flat(*colors) / 255
    kinds = {
        "bytes": flat(*colors, dtype=torch.uint8),
        "floats": floats,
        "half": floats.half(),
        "list": list(flat(*colors, dtype=torch.uint8)),
        "normalised": ts.augment.Normalize()(floats),
    }
    sheet = ts.show_batch({**kinds, "sample_id": torch.tensor([7, 8])}, tile_px=TILE)

    for row, color in enumerate(colors):
        for column in range(len(kinds)):
            assert np.abs(tile(sheet, column, row).astype(int) - color).max() <= 1


def test_one_view_fills_rows_of_eight_and_a_limit_holds():
    batch = {"image": torch.zeros(20, 3, 8, 8, dtype=torch.uint8), "label": torch.zeros(20, dtype=torch.int64)}

    assert ts.show_batch(batch, tile_px=TILE).size == (8 * 38 + 6, 3 * 54 + 6)
    assert ts.show_batch(batch, tile_px=TILE, limit=3, classes=["cat"]).size == (3 * 38 + 6, 54 + 6)


def test_what_a_mask_hides_is_gray():
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    mask[0, :, 1] = True
    for extra in ({"image_mask": mask}, {"image_context": ~mask}):
        sheet = ts.show_batch({"image": flat((255, 0, 0), dtype=torch.uint8), **extra}, tile_px=TILE)
        seen, hidden = np.split(tile(sheet, 0), 2, axis=1)
        assert (seen[:, :4] == (255, 0, 0)).all()
        assert np.ptp(hidden[:, 4:], axis=2).max() < 40


def test_channels_of_a_retina_become_gray(picture_folder):
    batch = next(iter(ts.ImageDataset(picture_folder, views=ts.CenterCrop(16), batch_size=4)))
    sheet = ts.show_batch(ts.augment.RGBToLGN()(batch), tile_px=TILE)

    assert np.ptp(tile(sheet, 0), axis=2).max() == 0


def test_a_batch_of_a_recipe_is_shown_whole(picture_folder):
    recipe = ts.recipes.load("lejepa").resized(16)
    dataset = recipe.dataset(picture_folder, batch_size=3)
    batch = recipe.prepare(next(iter(dataset)))

    assert ts.show_batch(batch, tile_px=TILE, classes=dataset.classes).size == (8 * 38 + 6, 3 * 54 + 6)


def test_a_batch_without_pictures_is_refused():
    with pytest.raises(ValueError, match=r"The batch has no pictures: .* among \['label'\]"):
        ts.show_batch({"label": torch.zeros(3)})
