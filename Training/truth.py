"""Do the location maps lie where the signal is? Measured where that is known: on phantoms.

    python Training/truth.py texture=RUN_T,COHORT_T/manifest.csv ... --shuffled RUN_0 -o FOLDER

Each RUN is a run of train.py on a cohort of phantoms of which only that effect follows the stage
(phantom.py --effects), RUN_0 one with --shuffle-labels. On the F4 phantoms that fold 0 held out,
the map that explains F4 is compared with the true region: share of the map's weight in it, share of
the body's volume, and their ratio, which is the region's mean relative weight. 1 is what chance
gives; the network with shuffled labels shows what anatomy alone gives. That for each target layer
and method.

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
from scipy.stats import wilcoxon
from tqdm import tqdm

from cohort.manifest import Case, ManifestError, read_manifest
from common.resume import RunError, check_unseen
from common.tables import write_csv
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
    """Of one case: share of the map's weight and of the body's volume in the true region."""

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
    """Weights in the effect's region, of every case, target layer and method."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for layer, model in _layers(file, Path(folder)).items():
            for case in tqdm(cases, f"{effect}, {network}, {layer}", unit="CT"):
                seen = stage(case.ct, case.liver, case.spleen, model, "F4").forward_pass
                for method in METHODS:
                    share, volume = _inside(seen, method, REGIONS[effect])
                    found.append(Weight(effect, layer, method, network, case.name, share, volume))
    return found


def held_out(run: Path, manifest: Path) -> list[Case]:
    """The F4 cases that fold 0 of a run held out.

    Raises RunError where the manifest is not that of the run's cohort.
    """
    plan = json.loads((run / "folds.json").read_text(encoding="utf-8"))
    cases = read_manifest(manifest)
    if plan.get("files") != {case.name: case.content() for case in cases}:
        raise RunError(f"{manifest}: this is not the cohort that {run} was trained on.")
    held = set(plan["folds"][0]["held"])
    return [case for case in cases if case.name in held and case.stage == F4]


def table(found: Sequence[Weight]) -> list[list[str]]:
    """A line for each effect, layer and method: trained against shuffled labels."""
    header = ["Signal in", "Layer", "Method", "CTs", "Volume", "Weight", "Ratio (quartiles)"]
    lines = [[*header, "Shuffled labels: ratio (quartiles)", "Wilcoxon p"]]
    for effect, layer, method in dict.fromkeys(w[:3] for w in found):
        ours, theirs = (
            [w for w in found if w[:4] == (effect, layer, method, network)]
            for network in ("trained", "shuffled")
        )
        first, second = ([w.ratio for w in part] for part in (ours, theirs))
        volume, share = (f"{100 * np.median([w[i] for w in ours]):.1f} %" for i in (6, 5))
        p = wilcoxon(first, second).pvalue
        cells = [REGIONS[effect].replace("_", " "), layer, method, str(len(ours)), volume, share]
        lines.append([*cells, _quartiles(first), _quartiles(second), f"{p:.2g}"])
    return lines


def figure(found: Sequence[Weight]) -> Figure:
    """Ratios by effect: trained beside shuffled, for each layer and method."""
    effects = list(dict.fromkeys(w.effect for w in found))
    ways = list(dict.fromkeys((w.layer, w.method) for w in found))
    drawn = Figure(figsize=(4.2 * len(effects), 4.4), layout="constrained")
    for axes, effect in zip(drawn.subplots(1, len(effects), squeeze=False)[0], effects):
        for number, network in enumerate(("trained", "shuffled")):
            ratios = [
                [w.ratio for w in found if (w.effect, w.layer, w.method, w.network) == key]
                for key in ((effect, *way, network) for way in ways)
            ]
            color = ("#d95f02", "#999999")[number]
            places = np.arange(len(ways)) + 0.36 * number - 0.18
            boxes = axes.boxplot(ratios, positions=places, widths=0.3, patch_artist=True)
            for box in boxes["boxes"]:
                box.set(facecolor=color, alpha=0.6)
            axes.plot([], [], "s", color=color, alpha=0.6, label=LABELS[network])
        axes.axhline(1, color="black", lw=0.8, ls=":")
        axes.set(title=f"Signal in the {REGIONS[effect].replace('_', ' ')}")
        names = ["\n".join([*layer.split(), method]) for layer, method in ways]
        axes.set_xticks(range(len(ways)), names, fontsize=9)
        axes.set_ylabel("weight in the region / its volume")
        axes.legend(frameon=False)
    return drawn


def _layers(file: Path, folder: Path) -> dict[str, StagingModel]:
    """The model as it is, and with the last convolution's activation as its target layer."""
    operators = StagingModel.load(file).card.tail
    last = operators.index("Conv") + 1  # the activation after it
    tensor = [node.outputs[0] for node in read_onnx(file).nodes if node.name.startswith("tail")]
    other = folder / "last.onnx"
    other.write_bytes(file.read_bytes())
    describe(other, {"target_layer": tensor[last], "tail": operators[last + 1 :]})
    return {"third convolution": StagingModel.load(file), "last": StagingModel.load(other)}


def _inside(seen: ForwardPass, method: str, region: str) -> tuple[float, float]:
    maps = [seen.model.location_map(forward, (F4,), method)[0] for forward in seen.forwards]
    location = merge_patches(maps, seen.grid, seen.model.card.patch_size)
    found = measure(location, seen.grid)
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
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    notice = f"Networks trained on phantoms, no patient. {RESEARCH_USE}"
    (folder / "truth.md").write_text(f"{text}\n\n{notice}\n", encoding="utf-8")
    save(figure(found), folder, "truth", "phantoms with one effect each, no patient")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", nargs="+", metavar="EFFECT=RUN,MANIFEST", help=f"of {', '.join(REGIONS)}"
    )
    parser.add_argument("--shuffled", type=Path, required=True, metavar="RUN")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    runs: dict[str, tuple[Path, Path]] = {}
    for text in options.runs:
        effect, _, rest = text.partition("=")
        run, _, manifest = rest.partition(",")
        if effect not in REGIONS or not (Path(run) / FOLD).is_file() or not manifest:
            parser.error(f"{text!r}: needed is EFFECT=RUN,MANIFEST, with RUN/{FOLD} there")
        runs[effect] = Path(run), Path(manifest)
    found = []
    try:
        for effect, (run, manifest) in runs.items():
            cases = held_out(run, manifest)
            for network, other in (("trained", run), ("shuffled", options.shuffled)):
                check_unseen(other / FOLD, {case.name: case.ct for case in cases})
                found += weights(effect, network, other / FOLD, cases)
    except (ManifestError, StagingError, OSError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    for line in _write(found, options.output):
        print("  ".join(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
