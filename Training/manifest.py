"""Check a cohort's manifest; see `cases/requirements.py`."""

import sys

from cases.requirements import main

if __name__ == "__main__":
    sys.exit(main())
