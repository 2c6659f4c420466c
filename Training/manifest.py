"""Check a cohort's manifest; see `cases/manifest.py`."""

import sys

from cases.manifest import main

if __name__ == "__main__":
    sys.exit(main())
