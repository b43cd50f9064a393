"""`python -m sluiceway`."""

from sluiceway.cli import main

main()
