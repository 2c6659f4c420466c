"""Evaluate an exported model on a cohort; see `evaluation/evaluate.py`."""

import sys

from evaluation.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
