"""Compiles the decoding kernel when torchslip is installed, if a C compiler and libjpeg-turbo are there.

Without them the installation succeeds all the same; ``torchslip doctor`` then says what was missing.
``python hatch_build.py`` compiles it into a checkout.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
FOLDER = Path("torchslip/decode/turbo")
LIBRARY, REASON = "libtorchslip_turbo.so", "not_built.txt"
SOURCES = (
    *("turbo.c", "region.c", "entropy.c", "entropy_tables.c", "entropy_blocks.c", "scale.c", "transcode.c"),
    *("weights.c", "resize.c", "resize_x86.c", "resize_avx512.c"),
    *("planes.c", "chroma.c", "fine.c", "color.c", "color_x86.c", "raw.c"),
)
FLAGS = ("-std=c11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra")
HEADERS_OF = {
    "apt-get": "apt-get install libjpeg62-turbo-dev (Debian) or libjpeg-turbo8-dev (Ubuntu)",
    "dnf": "dnf install libjpeg-turbo-devel",
    "conda": "conda install -c conda-forge libjpeg-turbo",
    "brew": "brew install jpeg-turbo",
}
COMPILER_OF = {
    "apt-get": "apt-get install gcc",
    "dnf": "dnf install gcc",
    "conda": "conda install -c conda-forge c-compiler",
    "brew": "xcode-select --install",
}


class KernelError(Exception):
    """The kernel cannot be built; the text says why and what to do."""


class CustomBuildHook(BuildHookInterface[Any]):
    """Puts the kernel, or the reason why there is none, next to its sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build into the checkout for an editable installation, else into a folder of its own and from there."""
        if version == "editable":
            folder = ROOT / FOLDER
        else:
            self._temporary = tempfile.TemporaryDirectory()
            folder = Path(self._temporary.name)
        result = build(folder)
        if version != "editable":
            build_data["force_include"][os.fspath(result)] = (FOLDER / result.name).as_posix()
        if result.name == LIBRARY:
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"
        else:
            self.app.display_warning(result.read_text(encoding="utf-8"))


def build(folder: Path) -> Path:
    """Compile into `folder`; the path of the library, or of the text that says why there is none."""
    for old in (LIBRARY, REASON):
        (folder / old).unlink(missing_ok=True)
    try:
        return compile_kernel(folder)
    except KernelError as error:
        reason = folder / REASON
        reason.write_text(f"{error}\n", encoding="utf-8")
        return reason


def compile_kernel(folder: Path) -> Path:
    """Compile, load and check the library.

    Raises:
        KernelError: If anything is missing.
    """
    if os.name != "posix":
        raise KernelError("The kernel is not built on Windows yet; decoder='torchvision' does its work.")
    compiler = find_compiler()
    include, libraries = find_libjpeg()
    probe = run([*compiler, *include, "-E", "-x", "c", "-"], "#include <stdio.h>\n#include <jpeglib.h>\n")
    if probe.returncode:
        raise KernelError(remedy("libjpeg-turbo's headers were not found", HEADERS_OF))
    sources = [os.fspath(ROOT / FOLDER / name) for name in SOURCES]
    library = folder / LIBRARY
    # Renamed when it is whole, for processes that have the old one loaded.
    fresh = folder / f"{LIBRARY}.new"
    done = run([*compiler, *FLAGS, *include, *sources, "-o", os.fspath(fresh), *libraries, "-ljpeg", "-lm", "-pthread"])
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if "error" in line or "cannot find" in line]
        raise KernelError(remedy(f"the compiler failed ({(last or ['no message'])[0].strip()})", HEADERS_OF))
    fresh.replace(library)
    try:
        kernel = ctypes.CDLL(os.fspath(library))
    except OSError as error:
        library.unlink()
        raise KernelError(remedy(f"the library does not load ({error})", HEADERS_OF)) from error
    message = ctypes.create_string_buffer(kernel.turbo_message_bytes())
    if kernel.turbo_check(message):
        library.unlink()
        raise KernelError(remedy(f"libjpeg refuses it ({message.value.decode('latin-1')})", HEADERS_OF))
    return library


def find_compiler() -> list[str]:
    """The command of a C compiler: that of ``CC``, else the first one there is.

    Raises:
        KernelError: If there is none.
    """
    named = os.environ.get("CC")
    for command in [named] if named else ["cc", "gcc", "clang"]:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return [*words, *shlex.split(os.environ.get("CFLAGS", ""))]
    raise KernelError(remedy("no C compiler was found", COMPILER_OF))


def find_libjpeg() -> tuple[list[str], list[str]]:
    """Compiler options for its headers and for its library, where they lie outside the standard folders."""
    include, libraries = [], shlex.split(os.environ.get("LDFLAGS", ""))
    prefixes = [os.environ.get("CONDA_PREFIX"), sys.prefix, "/opt/homebrew/opt/jpeg-turbo", "/usr/local/opt/jpeg-turbo"]
    for prefix in dict.fromkeys(Path(each) for each in prefixes if each):
        if (prefix / "include/jpeglib.h").is_file():
            include.append(f"-I{prefix / 'include'}")
            libraries += [f"-L{prefix / 'lib'}", f"-Wl,-rpath,{prefix / 'lib'}"]
    return include, libraries


def remedy(what: str, packages: dict[str, str]) -> str:
    """`what` was missing, and the commands that mend it."""
    if os.environ.get("CONDA_PREFIX"):
        install = packages["conda"]
    else:
        install = next((packages[tool] for tool in ("apt-get", "dnf", "brew") if shutil.which(tool)), None)
        install = install or "install a C compiler and libjpeg-turbo with its headers"
    return (
        f"The kernel was not built when torchslip was installed: {what}. To mend it: {install}; "
        "then pip install --force-reinstall --no-deps --no-cache-dir --no-binary torchslip torchslip "
        "(in a checkout: pip install -e .)."
    )


def run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Run the compiler."""
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    result = build(ROOT / FOLDER)
    sys.stdout.write(f"{result}\n" if result.name == LIBRARY else result.read_text(encoding="utf-8"))
