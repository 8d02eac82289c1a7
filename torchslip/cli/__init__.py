"""The command line: `torchslip demo`, `torchslip inspect`, `torchslip doctor`."""

from torchslip.cli._app import main

__all__ = ["main"]
