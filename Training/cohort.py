"""Make the manifest of a public collection as downloaded; see `public/command.py`."""

import sys

from public.command import main

if __name__ == "__main__":
    sys.exit(main())
