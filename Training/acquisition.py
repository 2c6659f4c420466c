"""Check whether the acquisition alone tells the stage; see `evaluation/acquisition.py`."""

import sys

from evaluation.acquisition import main

if __name__ == "__main__":
    sys.exit(main())
