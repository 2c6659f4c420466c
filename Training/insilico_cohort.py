"""Paint a cohort of known stages into bodies; see `insilico/cohort.py`."""

import sys

from insilico.cohort import main

if __name__ == "__main__":
    sys.exit(main())
