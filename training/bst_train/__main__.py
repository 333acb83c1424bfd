"""Entry point of `python3 -m training.bst_train`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
