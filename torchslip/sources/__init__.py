"""What is stored: the `Source` protocol, the formats that fulfil it, and `open`, which finds the right one."""

from torchslip.sources._concatenated import Concatenated
from torchslip.sources._field_index import FieldIndex, FieldIndexBuilder, index_values
from torchslip.sources._folder import IMG_EXTENSIONS, ImageFolder, LabelMode
from torchslip.sources._mixture import Mixture, mix
from torchslip.sources._objects import ObjectKind, Objects
from torchslip.sources._open import FORMATS, Format, open, source_of
from torchslip.sources._source import FieldKind, Record, Schema, Source, checked_indices, image_fields, lend, locate
from torchslip.sources.mds import MDS

__all__ = [
    "FORMATS",
    "IMG_EXTENSIONS",
    "MDS",
    "Concatenated",
    "FieldIndex",
    "FieldIndexBuilder",
    "FieldKind",
    "Format",
    "ImageFolder",
    "LabelMode",
    "Mixture",
    "ObjectKind",
    "Objects",
    "Record",
    "Schema",
    "Source",
    "checked_indices",
    "image_fields",
    "index_values",
    "lend",
    "locate",
    "mix",
    "open",
    "source_of",
]
