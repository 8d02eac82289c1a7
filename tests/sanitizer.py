"""Builds C programs with the sanitizers of the compiler."""

import shutil
import subprocess
from pathlib import Path

import pytest

FLAGS = ("-std=c11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
TRIVIAL = "#include <stddef.h>\n#include <stdio.h>\n#include <jpeglib.h>\nint main(void) { return 0; }\n"


def build_sanitized(program: Path, *sources: Path, include: Path) -> None:
    """Compile `sources` to `program`; skip the test where even an empty program cannot be built so."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    libraries = ("-ljpeg", "-lm", "-pthread")
    trivial = program.with_suffix(".c")
    trivial.write_text(TRIVIAL)
    done = _run(compiler, *FLAGS, trivial, "-o", program, *libraries)
    if done.returncode:
        pytest.skip(f"nothing can be built with the address sanitizer: {done.stderr.strip().splitlines()[-1]}")
    done = _run(compiler, *FLAGS, f"-I{include}", *sources, "-o", program, *libraries)
    assert done.returncode == 0, done.stderr


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
