"""Make phantoms; see `cohort/phantom.py`."""

import sys

from cohort.phantom import main

if __name__ == "__main__":
    sys.exit(main())
