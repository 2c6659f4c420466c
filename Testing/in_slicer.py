"""Walk through the whole panel in a real Slicer, with a picture of every step.

    Slicer --no-splash --python-script Testing/in_slicer.py

Only the repository is needed: the module is loaded from it if Slicer does not have it yet. Each
step starts with its own scene, does what a user does, waits until it is done and checks the result.
Dialogs are recorded and answered automatically. Missing packages (onnxruntime) are installed, after
the question was declined once.

Settings, as environment variables:
    LFS_WALK_FOLDER   where pictures and walk.txt go (default: a new folder)
    LFS_WALK_LIMIT    how many seconds one wait may take (default: 300)
    LFS_WALK_STEPS    names of steps with commas, to walk only these

Exit code: 0 all steps passed, 1 a step failed, 2 none failed but steps were skipped.
"""

import os
import sys
import tempfile
from pathlib import Path

import slicer

sys.path.insert(0, str(Path(__file__).resolve().parent))

from in_slicer_batches import STEPS
from in_slicer_walk import Walk


def main() -> int:
    """Walk; returns the exit code."""
    wanted = [name for name in os.environ.get("LFS_WALK_STEPS", "").split(",") if name]
    unknown = set(wanted) - {each.name for each in STEPS}
    if unknown:
        print(f"no such steps: {', '.join(sorted(unknown))}")
        return 1
    folder = os.environ.get("LFS_WALK_FOLDER") or tempfile.mkdtemp(prefix="walk")
    Path(folder).mkdir(parents=True, exist_ok=True)
    walk = Walk(Path(folder).resolve(), float(os.environ.get("LFS_WALK_LIMIT", "300")))
    code = walk.run([each for each in STEPS if not wanted or each.name in wanted])
    walk.close()
    return code


if __name__ == "__main__":
    exit_code = 1
    try:
        exit_code = main()
    finally:
        slicer.util.exit(exit_code)
