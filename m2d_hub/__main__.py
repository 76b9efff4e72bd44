"""``python -m m2d_hub``: the commands, where the folder of scripts is not on the path."""

from .cli.main import main

if __name__ == "__main__":
    main()
