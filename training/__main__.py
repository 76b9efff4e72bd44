"""``python -m m2d_training``, which ``torchrun -m`` and ``accelerate launch -m`` start."""

from .cli.main import main

if __name__ == "__main__":
    main()
