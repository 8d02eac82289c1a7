"""What `import torchslip` does, and what it leaves to be done later."""

from __future__ import annotations

import subprocess
import sys

import torchslip


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip()


def test_import_is_quick_beyond_torch():
    # Time of its own processor, the least of three: other processes share the machine. 0.22 s (2026-11).
    code = "import torch.utils.data, time; t = time.process_time(); import torchslip; print(time.process_time() - t)"

    assert min(float(run(code)) for _ in range(3)) < 0.3


def test_import_touches_no_gpu_and_loads_neither_torchvision_nor_pillow():
    code = (
        "import sys, threading, torch, torchslip; print(torch.cuda.is_initialized(), threading.active_count(), "
        "any(name in sys.modules for name in ('torchvision', 'PIL', 'rich', 'typer', 'yaml', 'torchslip.augment')))"
    )

    assert run(code) == "False 1 False"


def test_submodules_are_imported_when_they_are_asked_for():
    code = "import torchslip as ts; print(ts.augment.__name__, ts.recipes.__name__, hasattr(ts, 'augmentation'))"

    assert run(code) == "torchslip.augment torchslip.recipes False"


def test_public_names_exist():
    assert all(hasattr(torchslip, name) for name in torchslip.__all__)
