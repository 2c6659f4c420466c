"""Measure on phantoms how well location maps show the region that carries the signal.

    python Training/truth.py texture=RUN_T,COHORT_T/manifest.csv ... --shuffled RUN_0 -o FOLDER

Each RUN is a run of train.py on a cohort of phantoms in which only one effect depends on the stage
(phantom.py --effects); RUN_0 is a run with --shuffle-labels, as a control. On the F4 phantoms in
the test part of fold 0, the location map of F4 is compared with the true region: the region's share
of the map's weight, its share of the body's volume, and their ratio, which is its mean relative
weight. A map that does not depend on the region has a ratio of 1. Ratios are measured for two
target layers and two methods. The cases of one pair of networks are not independent: the quartiles
say nothing about other networks. `check_insilico.py --single-signs` measures several networks.

FOLDER receives truth.csv, truth.md and truth.png/.pdf.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from cases.manifest import Case, read_manifest
from common.resume import RunError, check_not_trained_on
from common.tables import write_csv, write_markdown
from evaluation.figures import save
from lfs.export import describe
from LiverFibrosisStagingLib import StagingError, StagingModel
from LiverFibrosisStagingLib.analysis import measure
from LiverFibrosisStagingLib.explaining import ForwardPass
from LiverFibrosisStagingLib.gradcam_onnx.onnx_file import read_onnx
from LiverFibrosisStagingLib.location_map import merge_patches
from LiverFibrosisStagingLib.stages import RESEARCH_USE, STAGES
from LiverFibrosisStagingLib.staging import stage

REGIONS = {"texture": "liver", "surface": "liver_surface", "spleen": "spleen"}
METHODS = ("gradcam", "hirescam")
LABELS = {"trained": "true labels", "shuffled": "shuffled labels"}
F4 = len(STAGES) - 1
FOLD = "fold_0/LFS.onnx"


class Weight(NamedTuple):
    """Shares of the map's weight and of the body's volume in the true region, for one case."""

    effect: str
    layer: str
    method: str
    network: str
    case: str
    share: float
    volume: float

    @property
    def ratio(self) -> float:
        """The region's mean relative weight."""
        return self.share / self.volume


def weights(effect: str, network: str, file: Path, cases: Sequence[Case]) -> list[Weight]:
    """Weights in the effect's region for every case, target layer and method."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for layer, model in _layers(file, Path(folder)).items():
            for case in tqdm(cases, f"{effect}, {network}, {layer}", unit="CT"):
                forward_pass = stage(case.ct, case.liver, case.spleen, model, "F4").forward_pass
                for method in METHODS:
                    share, volume = _inside(forward_pass, method, REGIONS[effect])
                    found.append(Weight(effect, layer, method, network, case.name, share, volume))
    return found


def f4_test_cases(run: Path, manifest: Path) -> list[Case]:
    """The F4 cases in the test part of fold 0 of a run.

    Raises RunError if the run has another cohort than the manifest.
    """
    path = run / "folds.json"
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        files, test = plan["files"], set(plan["folds"][0]["test"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise RunError(f"{path}: it is damaged or of another version; train again.") from None
    cases = read_manifest(manifest)
    if files != {case.name: case.content() for case in cases}:
        raise RunError(f"{manifest}: it is another cohort than that of {run}.")
    return [case for case in cases if case.name in test and case.stage == F4]


def table(found: Sequence[Weight]) -> list[list[str]]:
    """A row for each effect, layer and method, with true and with shuffled labels."""
    header = ["Signal in", "Layer", "Method", "CTs", "Volume", "Weight", "Ratio (quartiles)"]
    lines = [[*header, "Shuffled labels: ratio (quartiles)"]]
    for effect, layer, method in dict.fromkeys(w[:3] for w in found):
        trained, shuffled = (
            [w for w in found if w[:4] == (effect, layer, method, network)]
            for network in ("trained", "shuffled")
        )
        first, second = ([w.ratio for w in part] for part in (trained, shuffled))
        volume, share = (f"{100 * np.median([w[i] for w in trained]):.1f} %" for i in (6, 5))
        cells = [REGIONS[effect].replace("_", " "), layer, method, str(len(trained)), volume, share]
        lines.append([*cells, _quartiles(first), _quartiles(second)])
    return lines


def figure(found: Sequence[Weight]) -> Figure:
    """Ratios by effect, layer and method, with true and with shuffled labels."""
    effects = list(dict.fromkeys(w.effect for w in found))
    settings = list(dict.fromkeys((w.layer, w.method) for w in found))
    drawn = Figure(figsize=(4.2 * len(effects), 4.4), layout="constrained")
    for axes, effect in zip(drawn.subplots(1, len(effects), squeeze=False)[0], effects):
        for number, network in enumerate(("trained", "shuffled")):
            ratios = [
                [w.ratio for w in found if (w.effect, w.layer, w.method, w.network) == key]
                for key in ((effect, *setting, network) for setting in settings)
            ]
            color = ("#d95f02", "#999999")[number]
            places = np.arange(len(settings)) + 0.36 * number - 0.18
            boxes = axes.boxplot(ratios, positions=places, widths=0.3, patch_artist=True)
            for box in boxes["boxes"]:
                box.set(facecolor=color, alpha=0.6)
            axes.plot([], [], "s", color=color, alpha=0.6, label=LABELS[network])
        axes.axhline(1, color="black", lw=0.8, ls=":")
        axes.set(title=f"Signal in the {REGIONS[effect].replace('_', ' ')}")
        names = ["\n".join([*layer.split(), method]) for layer, method in settings]
        axes.set_xticks(range(len(settings)), names, fontsize=9)
        axes.set_ylabel("weight in the region / its volume")
        axes.legend(frameon=False)
    return drawn


def _layers(file: Path, folder: Path) -> dict[str, StagingModel]:
    """The model, and a copy whose target layer is the last convolution's activation."""
    operators = StagingModel.load(file).card.tail
    last = operators.index("Conv") + 1  # the activation after it
    tensor = [node.outputs[0] for node in read_onnx(file).nodes if node.name.startswith("tail")]
    other = folder / "last.onnx"
    other.write_bytes(file.read_bytes())
    describe(other, {"target_layer": tensor[last], "tail": operators[last + 1 :]})
    return {"third convolution": StagingModel.load(file), "last": StagingModel.load(other)}


def _inside(forward_pass: ForwardPass, method: str, region: str) -> tuple[float, float]:
    model, grid = forward_pass.model, forward_pass.grid
    maps = [model.location_map(forward, (F4,), method)[0] for forward in forward_pass.forwards]
    found = measure(merge_patches(maps, grid, model.card.patch_size), grid)
    body = sum(found[name]["volume_ml"] for name in ("liver", "spleen", "rest"))
    return found[region]["share"], found[region]["volume_ml"] / body


def _quartiles(values: Sequence[float]) -> str:
    low, median, high = np.percentile(values, (25, 50, 75))
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def _write(found: Sequence[Weight], folder: Path) -> list[list[str]]:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [[*Weight._fields, "ratio"], *([*w, w.ratio] for w in found)]
    write_csv(folder / "truth.csv", rows)
    lines = table(found)
    notice = f"Networks trained on phantoms, no patient. {RESEARCH_USE}"
    write_markdown(folder / "truth.md", lines, notice)
    save(figure(found), folder, "truth", "phantoms with one effect each, no patient")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", nargs="+", metavar="EFFECT=RUN,MANIFEST", help=f"EFFECT: {', '.join(REGIONS)}"
    )
    parser.add_argument("--shuffled", type=Path, required=True, metavar="RUN", help="the control")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    runs: dict[str, tuple[Path, Path]] = {}
    for text in options.runs:
        effect, _, rest = text.partition("=")
        run, _, manifest = rest.partition(",")
        if effect not in REGIONS or not (Path(run) / FOLD).is_file() or not manifest:
            parser.error(f"{text!r}: EFFECT=RUN,MANIFEST is needed, and RUN must contain {FOLD}")
        runs[effect] = Path(run), Path(manifest)
    found = []
    try:
        for effect, (run, manifest) in runs.items():
            cases = f4_test_cases(run, manifest)
            for network, other in (("trained", run), ("shuffled", options.shuffled)):
                check_not_trained_on(other / FOLD, {case.name: case.ct for case in cases})
                found += weights(effect, network, other / FOLD, cases)
    except (StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    for line in _write(found, options.output):
        print("  ".join(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
