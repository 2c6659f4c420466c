"""The long fuzz test: damaged files of every format and damaged models, for a given time.

python Testing/fuzz.py --minutes 5 [--seed 7] [--only plain.nii dicom]

Prints the outcome for each format's mutants; exit code 1 if any was neither read nor refused with a
message. Testing/imaging/test_fuzz.py runs a few hundred of each.
"""

import argparse
import sys
import tempfile
from pathlib import Path

TESTING = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTING), str(TESTING.parent / "LiverFibrosisStaging")]

from fuzz_models import model_targets, shipped_targets  # noqa: E402
from fuzz_targets import image_targets  # noqa: E402
from fuzzing import hunt  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--count", type=int, default=10**9, help="mutants of each format at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="formats; all by default")
    options = parser.parse_args()
    findings = 0
    with tempfile.TemporaryDirectory() as folder:
        kinds = (image_targets, model_targets, shipped_targets)
        targets = {name: t for kind in kinds for name, t in kind(Path(folder)).items()}
        targets = {name: targets[name] for name in options.only or targets}
        seconds = 60.0 * options.minutes / len(targets)
        for name, target in targets.items():
            tally = hunt(target, options.seed, options.count, seconds)
            findings += len(tally.findings)
            print(
                f"{name}: {tally.read} read, {tally.refused} refused in {len(tally.sentences)} "
                f"different sentences, {len(tally.findings)} findings",
                flush=True,
            )
            for finding in tally.findings:
                print(f"  {finding}", flush=True)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
