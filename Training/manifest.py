"""Check a cohort's manifest; see `cohort/manifest.py`."""

import sys

from cohort.manifest import main

if __name__ == "__main__":
    sys.exit(main())
