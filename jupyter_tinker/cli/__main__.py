"""`python -m jupyter_tinker.cli`."""

from . import main

if __name__ == "__main__":
    main()
