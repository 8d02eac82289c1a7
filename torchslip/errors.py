"""The exceptions of torchslip.

::

    TorchslipError
    ├── FormatError (ValueError)        a path or file is not what it should be
    ├── SampleError (RuntimeError)      one sample cannot be read or decoded
    ├── StateError (ValueError)         a saved state belongs to something else
    ├── MemoryLimitError (MemoryError)  a limit on memory was reached, before the system's
    ├── StorageError (OSError)          a server or disk did not do what it was asked, also when asked again
    └── MissingDependencyError (ImportError)    an optional package is not installed

Everything else is a built-in type: `ValueError` for a bad argument, `IndexError` for a sample id out of range.
Each class takes one message, so that an error raised in a worker process reaches the training loop whole.
"""

__all__ = [
    "FormatError",
    "MemoryLimitError",
    "MissingDependencyError",
    "SampleError",
    "StateError",
    "StorageError",
    "TorchslipError",
]


class TorchslipError(Exception):
    """Base class of every exception that torchslip defines."""


class FormatError(TorchslipError, ValueError):
    """A path cannot be opened as a dataset, or its bytes contradict its format."""


class SampleError(TorchslipError, RuntimeError):
    """One sample cannot be read or decoded; the text names its id, its path and the reason."""


class StateError(TorchslipError, ValueError):
    """A saved state does not belong to this dataset, order or version; the text names what differs."""


class MemoryLimitError(TorchslipError, MemoryError):
    """The process with its workers uses more memory than it may; the text has the figures and what to change."""


class MissingDependencyError(TorchslipError, ImportError):
    """An optional dependency is needed; the text has the command that installs it."""


class StorageError(TorchslipError, OSError):
    """A folder or URL could not be read or written; the text names it, how often it was tried and the last cause."""
