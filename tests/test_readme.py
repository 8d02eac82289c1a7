"""The examples of the README do what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_of_the_readme_run(tmp_path, picture_folder):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(picture_folder)
    (resume,) = (line for block in blocks for line in block.splitlines() if "load_state_dict(" in line)
    resumed = f"{resume}\nprint([len(b['label']) for b in loader], batch['image'].shape, state['position'])"
    code = "\n".join(blocks).replace(resume, resumed) + "\nprint(sorted(mixed.schema), batch['image'].dtype)"

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[10] torch.Size([32, 3, 64, 64]) 32",
        "['image', 'label', 'source'] torch.uint8",
    ]


def test_the_first_example_is_short():
    first = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[0]

    assert len(first.strip().splitlines()) <= 10
