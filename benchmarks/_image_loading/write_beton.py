"""Write a folder of pictures as FFCV stores them: ``python -m _image_loading.write_beton FOLDER OUT``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
from PIL import Image


class _Pictures:
    def __init__(self, folder: Path) -> None:
        self._files = sorted(path for path in folder.rglob("*") if path.is_file())
        self._classes = sorted({path.parent for path in self._files})

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        file = self._files[index]
        with Image.open(file) as image:
            # FFCV's writer hangs on a grayscale picture.
            return np.asarray(image.convert("RGB")), self._classes.index(file.parent)


def main() -> None:
    folder, out = map(Path, sys.argv[1:])
    draft = out.with_suffix(".draft")
    image = RGBImageField(write_mode="proportion", compress_probability=1.0, jpeg_quality=95)
    DatasetWriter(str(draft), {"image": image, "label": IntField()}).from_indexed_dataset(_Pictures(folder))
    draft.rename(out)


if __name__ == "__main__":
    main()
