"""Prepare bodies for painted fibrosis; see `insilico/prepare.py`."""

import sys

from insilico.prepare import main

if __name__ == "__main__":
    sys.exit(main())
