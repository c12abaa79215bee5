"""`python cli.py …` from a checkout: the command sam-inspect."""

from sam_inspect.cli import main

main()
