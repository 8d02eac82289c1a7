"""`python -m torchslip.cli`."""

from torchslip.cli import main

main()
