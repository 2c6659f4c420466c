"""Make phantoms; see `cohort/phantom_cohort.py`."""

import sys

from cohort.phantom_cohort import main

if __name__ == "__main__":
    sys.exit(main())
