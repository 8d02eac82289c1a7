"""Building the kernel at installation, and what is said where that cannot be done."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
from pathlib import Path

import pytest

from torchslip.decode import _turbo, backends, make_decoder

pytest.importorskip("hatchling")

SCRIPT = Path(__file__).parents[1] / "hatch_build.py"


@pytest.fixture
def build():
    spec = importlib.util.spec_from_file_location("hatch_build", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build


def status():
    return next(each for each in backends() if each.name == "turbo")


def test_it_is_built_or_the_reason_is_left(build, tmp_path: Path):
    result = build(tmp_path)

    assert list(tmp_path.iterdir()) == [result]
    if result.suffix == ".so":
        assert ctypes.CDLL(result).turbo_interface_version() == 4
    else:
        assert "was not built" in result.read_text()


def test_without_a_compiler_the_command_that_installs_one_is_left(build, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")

    text = build(tmp_path).read_text()

    assert "no C compiler was found" in text and "install" in text


@pytest.mark.skipif(not shutil.which("false"), reason="no command that always fails")
def test_without_headers_the_command_that_installs_them_is_left(build, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CC", "false")

    text = build(tmp_path).read_text()

    assert "headers were not found" in text and "install" in text and "libjpeg-turbo" in text


def test_a_new_build_replaces_the_old_reason(build, tmp_path: Path):
    (tmp_path / "not_built.txt").write_text("old")

    result = build(tmp_path)

    assert list(tmp_path.iterdir()) == [result] and result.read_bytes() != b"old"


def test_without_the_kernel_torchvision_decodes_and_the_reason_is_said(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(_turbo, "LIBRARY", tmp_path / "none.so")
    monkeypatch.setattr(_turbo, "WHY_NOT_BUILT", tmp_path / "not_built.txt")
    assert "pip install -e ." in status().why_not
    (tmp_path / "not_built.txt").write_text("No compiler was found. Do this.\n")

    assert not status().available and status().why_not == "No compiler was found. Do this."
    assert make_decoder("auto").name == "torchvision"
    with pytest.raises(RuntimeError, match=r"turbo: No compiler was found\. Do this\."):
        make_decoder("turbo")


def test_a_broken_library_is_a_reason_and_no_crash(tmp_path: Path, monkeypatch):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(_turbo, "LIBRARY", broken)
    _turbo._kernel.cache_clear()

    try:
        assert "cannot be loaded" in status().why_not and "pip install" in status().why_not
    finally:
        _turbo._kernel.cache_clear()
