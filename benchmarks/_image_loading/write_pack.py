"""Pack a folder of pictures: ``python -m _image_loading.write_pack FOLDER OUT PIXELS``; what is there is kept."""

from __future__ import annotations

import sys
from typing import Any

import torchslip as ts


def main() -> None:
    folder, out, pixels = sys.argv[1:]
    options: dict[str, Any] = {"pixels": pixels}
    ts.pack(folder, out, verify=False, exist_ok=True, **options)


if __name__ == "__main__":
    main()
