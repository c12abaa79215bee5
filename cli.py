from sam_inspect.cli import main

main()
