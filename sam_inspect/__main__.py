"""`python -m sam_inspect` is the command `sam-inspect`."""

from sam_inspect.cli import main

main()
