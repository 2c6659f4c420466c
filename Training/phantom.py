"""Make phantoms; see `cases/phantom_cohort.py`."""

import sys

from cases.phantom_cohort import main

if __name__ == "__main__":
    sys.exit(main())
