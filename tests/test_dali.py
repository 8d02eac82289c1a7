"""What is the DALI decoder's own; that it keeps the contract of all decoders is tested in `test_decoders.py`."""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import torchslip as ts
from torchslip.decode import Draws, Placement, backends, make_decoder, read_header

STATUS = next(each for each in backends() if each.name == "dali")
needs_dali = pytest.mark.skipif(not STATUS.available, reason=STATUS.why_not)


def jpeg(seed: int, width: int = 90, height: int = 70) -> bytes:
    rng, buffer = np.random.default_rng(seed), io.BytesIO()
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize((width, height))
    coarse.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def decode(
    images: list[bytes], view: ts.View, *, decoder: str = "dali", first_id: int = 0
) -> tuple[list[torch.Tensor], Any]:
    headers = [read_header(image) for image in images]
    sizes = np.array([(header.height, header.width) for header in headers])
    ids = np.arange(first_id, first_id + len(images))
    place: Placement = view.place(sizes, Draws(ids, seed=0, view="image", epoch=0))
    outputs = [torch.zeros(3, *size, dtype=torch.uint8) for size in place.size.tolist()]
    return outputs, make_decoder(decoder).decode(images, headers, [place], [outputs])


def test_auto_never_takes_it():
    assert make_decoder("auto").name in ("turbo", "torchvision")


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.setitem(sys.modules, "nvidia.dali.fn", None)

    assert "pip install 'torchslip[dali]'" in next(each for each in backends() if each.name == "dali").why_not
    with pytest.raises(RuntimeError, match=r"dali: DALI is not installed .* pip install 'torchslip\[dali\]'"):
        make_decoder("dali")


VIEWS = [ts.RandomResizedCrop(24), ts.ResizeCrop(32, (64, 48)), ts.ResizeCrop((9, 1), (12, 1)), ts.CenterCrop(260)]


@needs_dali
@pytest.mark.parametrize("view", VIEWS, ids=repr)
def test_it_gives_the_bytes_of_torchvision(view):
    images = [jpeg(seed, 300, 200) for seed in range(8)]
    ours, failures = decode(images, view)

    assert not failures
    assert all(torch.equal(a, b) for a, b in zip(ours, decode(images, view, decoder="torchvision")[0], strict=True))


@needs_dali
def test_resampling_by_dali_as_on_a_gpu_is_that_of_torchvision():
    from torchslip.decode._dali_graph import Graph, Stages, restore_edges

    images = [jpeg(seed, 200 + 30 * seed, 300) for seed in range(8)]
    sizes = np.array([(header.height, header.width) for header in map(read_header, images)])
    places = [view.place(sizes, Draws(np.arange(8), seed=0, view="image", epoch=0)) for view in VIEWS]
    stages = [Stages.of(place) for place in places]
    pictures = Graph(stages, capacity=8, threads=1).run([np.frombuffer(image, np.uint8) for image in images], places)

    for view, place, stage, ours in zip(VIEWS, places, stages, pictures, strict=True):
        stack = torch.stack([torch.from_numpy(np.array(ours.at(row))) for row in range(8)])
        restore_edges(stack, place, np.arange(8))
        assert stage.resize == (view is not VIEWS[-1])
        for mine, theirs in zip(stack.permute(0, 3, 1, 2), decode(images, view, decoder="torchvision")[0], strict=True):
            assert (mine.int() - theirs.int()).abs().max() <= 2


@needs_dali
def test_a_picture_is_the_same_in_any_batch():
    view = ts.RandomResizedCrop(24)
    images = [jpeg(seed, 60 + 9 * seed) for seed in range(9)]
    together, _ = decode(images, view)

    for number in (3, 7, 0):  # smaller batches and then larger ones
        (alone,), _ = decode(images[number : number + 1], view, first_id=number)
        assert torch.equal(alone, together[number])
    assert all(torch.equal(a, b) for a, b in zip(decode(images, view)[0], together, strict=True))


@needs_dali
def test_damaged_pictures_are_found_in_a_batch_and_change_no_other():
    images = [jpeg(seed) for seed in range(9)]
    whole, _ = decode(images, ts.CenterCrop(40))
    bad = {1: images[1][:700], 6: images[6][:700], 7: images[7][:1200]}
    outputs, failures = decode([bad.get(row, image) for row, image in enumerate(images)], ts.CenterCrop(40))

    assert sorted(failures) == [1, 6, 7] and all(map(str, failures.values()))
    assert all(torch.equal(outputs[row], whole[row]) for row in set(range(9)) - set(bad))


@needs_dali
def test_threads_of_one_process_decode_at_once():
    images, results = [jpeg(seed) for seed in range(4)], {}
    expected, _ = decode(images, ts.CenterCrop(40))

    def work(number: int) -> None:
        results[number] = [decode(images, ts.CenterCrop(40))[0] for _ in range(5)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 4
    assert all(
        torch.equal(a, b) for runs in results.values() for run in runs for a, b in zip(run, expected, strict=True)
    )


@needs_dali
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_of_a_process_that_has_decoded_decode_too(picture_folder, method):
    dataset = ts.ImageDataset(picture_folder, views=ts.RandomResizedCrop(16), batch_size=14, decoder="dali")
    here = list(ts.DataLoader(dataset))  # the graphs of this process are of no use to a fork of it
    dataset.set_epoch(0)
    there = list(ts.DataLoader(dataset, num_workers=1, multiprocessing_context=method, timeout=60))

    assert len(here) == len(there) == 3
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(here, there, strict=True))


@needs_dali
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_from_another_thread_lives():
    """It drops what belonged to the thread that decoded, before it runs a line of Python."""
    decode([jpeg(0)], ts.CenterCrop(32))
    ended = []

    def fork() -> None:
        child = multiprocessing.get_context("fork").Process(target=len, args=("",))
        child.start()
        child.join(60)
        ended.append(child.exitcode)

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join(90)

    assert ended == [0]


@needs_dali
def test_a_number_of_threads_below_one_is_refused():
    from torchslip.decode._dali import DaliDecoder

    with pytest.raises(ValueError, match="at least 1"):
        DaliDecoder(threads=0)
