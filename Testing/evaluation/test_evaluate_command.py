"""The command evaluate on made-up tables: numbers, files, what is left out, refusals."""

import csv
import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, roc_auc_score

pytest.importorskip("matplotlib")
from batch_tables import SHA, batch_rows, write_rows

from LiverFibrosisStagingLib.__main__ import main
from LiverFibrosisStagingLib.batch.table_files import read_results
from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.evaluation import evaluate as module
from LiverFibrosisStagingLib.evaluation import figures
from LiverFibrosisStagingLib.evaluation.evaluate import FIGURES, FILES, evaluate
from LiverFibrosisStagingLib.evaluation.reading import read_evaluated
from LiverFibrosisStagingLib.evaluation.signs import directions, published_cuts
from LiverFibrosisStagingLib.model import read_card
from LiverFibrosisStagingLib.resources import default_model_path
from LiverFibrosisStagingLib.stages import GROUPS, STAGES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 cases and their reference standard, of which some cannot be evaluated; another table."""
    folder = tmp_path_factory.mktemp("evaluate")
    results, truth = batch_rows()
    results[3] |= {"status": "failed", "reason": "The CT has 3 slices.", "stage": ""}
    truth[5]["stage"] = ""
    truth = [*truth[:-2], {"case": "MUSTERMANN", "stage": "F1"}]
    write_rows(folder / "results.csv", results)
    write_rows(folder / "truth.csv", truth, ["case", "stage"])
    other = batch_rows(seed=3, noise=1.5)[0]
    write_rows(folder / "other.csv", other[:50])
    return folder


@pytest.fixture(scope="module")
def out(folder):
    command = ["evaluate", folder / "results.csv", "--truth", folder / "truth.csv"]
    command += ["--compare", folder / "other.csv", "--label", "Made <up>", "-o", folder / "out"]
    assert main([*map(str, command)]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def found(out):
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture
def no_figures(monkeypatch):
    """Figures are drawn, but not saved."""
    monkeypatch.setattr(figures, "save", lambda figure, stem: None)


@pytest.fixture
def small_figures(monkeypatch):
    """Figures are saved as PNG only, with few pixels."""

    def save(figure, stem):
        figure.savefig(stem.with_suffix(".png"), dpi=20)

    monkeypatch.setattr(figures, "save", save)


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def evaluated(tmp_path, results, truth, columns=None, **options):
    write_rows(tmp_path / "results.csv", results)
    columns = columns or [*truth[0]]
    write_rows(tmp_path / "truth.csv", truth, columns)
    paths = (tmp_path / "results.csv", tmp_path / "truth.csv", tmp_path / "out")
    return evaluate(*paths, repeats=20, **options)


def test_every_file_is_written_and_no_figure_is_blank(out):
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written == set(FILES)
    for name in FIGURES:
        with Image.open(out / "figures" / f"{name}.png") as image:
            colors = image.convert("RGB").getcolors(1 << 24)
            white = sum(count for count, color in colors if color == (255, 255, 255))
            assert len(colors) > 20, name
            assert 0.1 < white / (image.width * image.height) < 0.995, name
    page = (out / "evaluation.html").read_text(encoding="utf-8")
    assert "Research use only" in page and "a made-up cohort, no patients" in page
    assert "Made &lt;up&gt;" in page and "Made <up>" not in page
    for path in [*(out / "tables").glob("*.csv"), out / "left_out.csv"]:
        assert all("Research use only" in row["notice"] for row in read(path)), path


def test_measures_are_those_of_the_table(folder, found):
    truth = {row["case"]: row["stage"] for row in read(folder / "truth.csv")}
    rows = [r for r in read(folder / "results.csv") if r["status"] == "done" and r["case"] in truth]
    rows = [row for row in rows if truth[row["case"]]]
    for which, chosen in (
        ("all cases", rows),
        ("supported cases", [row for row in rows if row["supported"] == "true"]),
    ):
        stage = np.array([STAGES.index(truth[row["case"]]) for row in chosen])
        measured = found["network"][which]
        assert measured["cases"] == len(chosen)
        same = np.array([STAGES.index(row["stage"]) for row in chosen]) == stage
        assert measured["stages"]["accuracy"]["value"] == pytest.approx(same.mean(), rel=1e-5)
        for name, first in GROUPS.items():
            score = np.array([float(row[name]) for row in chosen])
            group, point = measured["groups"][name], found["operating_points"][name]
            area = roc_auc_score(stage >= first, score)
            assert group["auc"]["value"] == pytest.approx(area, rel=1e-5)
            accuracy = accuracy_score(stage >= first, score >= point)
            assert group["accuracy"]["value"] == pytest.approx(accuracy, rel=1e-5)
    stage = np.array([STAGES.index(truth[row["case"]]) for row in rows])
    liver = np.array([float(row["liver_volume_ml"]) for row in rows])
    area = found["signs"]["liver_volume_ml"]["groups"]["advanced"]["auc"]["value"]
    assert area == pytest.approx(roc_auc_score(stage >= 3, -liver), rel=1e-5)
    weights = found["location_maps"]["weights_by_predicted_stage"]["liver"]["F4"]
    f4 = [float(row["liver_mean"]) for row in rows if row["stage"] == "F4"]
    assert weights["cases"] == len(f4)
    assert weights["median"] == pytest.approx(np.median(f4), rel=1e-5)


def test_it_states_what_it_was_given(folder, found):
    for name in ("results", "truth"):
        digest = hashlib.sha256((folder / f"{name}.csv").read_bytes()).hexdigest()
        assert found["inputs"][name]["sha256"] == digest
    assert [model["sha256"] for model in found["models"]] == [SHA]
    assert found["options"] == {"label": "Made <up>", "repeats": 2000, "seed": 0}
    assert "optimistic" in found["operating_points"]["source"]
    assert found["comparison"]["cases"] == 48  # of the other table's 50
    assert found["comparison"]["groups"]["advanced"]["first"] > 0.5


def test_what_is_left_out_is_listed_and_names_of_the_truth_are_not(out, found):
    listed = [(row["case"], row["reason"]) for row in read(out / "left_out.csv")]
    assert listed == [
        ("case003", "not staged: The CT has 3 slices."),
        ("case005", "the reference standard has no stage"),
        ("case058", "not in the reference standard"),
        ("case059", "not in the reference standard"),
        ("", "line 60 of the reference standard: not in the results"),
    ]
    assert sum(found["left_out"].values()) == len(listed)
    for path in out.rglob("*"):
        if path.is_file():
            assert b"MUSTERMANN" not in path.read_bytes(), path


def test_the_same_inputs_give_the_same_numbers(folder, tmp_path, monkeypatch):
    class Tomorrow(module.date):
        @classmethod
        def today(cls):
            return cls(2031, 5, 7)

    really, kept = figures.save, ("aucs", "confusion")
    monkeypatch.setattr(figures, "save", lambda f, stem: stem.name in kept and really(f, stem))
    paths = (folder / "results.csv", folder / "truth.csv")
    evaluate(*paths, tmp_path / "a", repeats=50)
    monkeypatch.setattr(module, "date", Tomorrow)
    evaluate(*paths, tmp_path / "b", repeats=50)
    first, second = ((tmp_path / n / "metrics.json").read_text().splitlines() for n in "ab")
    different = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    assert len(different) == 1 and "2031-05-07" in different[0][1]
    for name in ("figures/aucs.svg", "figures/confusion.png", "tables/signs.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_signs_are_oriented_by_what_is_published_not_by_these_cases(tmp_path, no_figures):
    results, truth = batch_rows(40)
    for row, reference in zip(results, truth):
        row["spleen_volume_ml"] = 1000 - 100 * STAGES.index(reference["stage"])
        row["lsvr"] = 0.2 + 0.1 * STAGES.index(reference["stage"])
    found = evaluated(tmp_path, results, truth)["signs"]
    assert found["spleen_volume_ml"]["groups"]["advanced"]["auc"]["value"] == 0
    assert found["liver_volume_ml"]["rises"] is False
    cut = found["lsvr"]["groups"]["cirrhosis"]
    assert (cut["cutoff"], cut["sensitivity"]["value"]) == (0.35, 1)
    assert "Furusato" in cut["cutoff_source"]
    assert cut["specificity"]["value"] == 0.5  # 0.2 and 0.3, of 0.2 to 0.5
    assert "optimistic" in found["lsvr"]["groups"]["advanced"]["cutoff_source"]


def test_directions_are_the_published_ones():
    rising = {key for key, sign in directions().items() if sign > 0}
    assert {"spleen_volume_ml", "lsvr", "nodularity_mm10", "spleen_liver_ratio"} <= rising
    assert {"liver_volume_ml", "liver_ml_per_m2"} == set(directions()) - rising
    assert not {"liver_mean_hu", "nodularity_edge_mm"} & set(directions())
    assert set(published_cuts("lsvr")) == {"cirrhosis"}


def test_operating_points_are_those_of_the_model(tmp_path, no_figures):
    path = default_model_path()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    points = read_card(path).calibration["operating_points"]
    results, truth = batch_rows(40)
    for row in results:
        row["model_sha256"] = digest
    for options in ({}, {"model": path}):  # found by its hash, or given
        found = evaluated(tmp_path, results, truth, **options)
        assert found["operating_points"]["source"] == "of the model"
        assert found["operating_points"]["advanced"] == pytest.approx(points["advanced"], rel=1e-5)
        score = np.array([float(row["advanced"]) for row in results])
        at = np.array([row["stage"] in ("F3", "F4") for row in truth])
        sensitivity = (score[at] >= points["advanced"]).mean()
        measured = found["network"]["all cases"]["groups"]["advanced"]["sensitivity"]["value"]
        assert measured == pytest.approx(sensitivity, rel=1e-5)
    with pytest.raises(StagingError, match="not the model of the results"):
        evaluated(tmp_path, results, truth, model=default_model_path("LFS_single.onnx"))
    for row in results:
        row |= {"model_sha256": "", "model": read_card(path).name}
    found = evaluated(tmp_path, results, truth, model=path)
    assert found["operating_points"]["source"] == "of the model"


def test_a_case_is_positive_if_the_results_say_so(tmp_path, no_figures):
    """The rounded probability of a case exactly at its point may lie below the point."""
    path = default_model_path()
    points = read_card(path).calibration["operating_points"]
    results, truth = batch_rows(40)
    for row in results:
        row["model_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        for name in GROUPS:
            row[f"{name}_positive"] = str(row[name] >= points[name]).lower()

    def advanced():
        found = evaluated(tmp_path, results, truth)
        return found["network"]["all cases"]["groups"]["advanced"]

    at = [row["stage"] in ("F3", "F4") for row in truth]
    missed = next(row for row, own in zip(results, at) if own and row["advanced"] < 0.4)
    before = advanced()
    missed["advanced_positive"] = "true"
    after = advanced()
    more = after["sensitivity"]["value"] - before["sensitivity"]["value"]
    assert more == pytest.approx(1 / sum(at), abs=1e-5)
    missed["advanced_positive"] = ""  # not said of all cases
    write_rows(tmp_path / "results.csv", results)
    assert read_evaluated(tmp_path / "results.csv", tmp_path / "truth.csv").positive is None


def test_several_models_are_a_warning(tmp_path, no_figures):
    results, truth = batch_rows(20)
    results[7] |= {"model_sha256": "1" * 64, "trained_on": "Others."}
    found = evaluated(tmp_path, results, truth)
    assert len(found["models"]) == 2 and "from 2 models" in found["warnings"][0]
    assert found["trained_on"] == "a made-up cohort, no patients; Others"


@pytest.mark.parametrize(
    "kept", [["F2"], ["F0", "F1"], ["F0", "F4"], ["one case"]], ids=["F2", "F0-1", "F0+4", "one"]
)
def test_small_groups_are_not_defined(kept, tmp_path, small_figures):
    results, truth = batch_rows(10)
    pairs = [pair for pair in zip(results, truth) if pair[1]["stage"] in kept]
    if kept == ["one case"]:
        pairs = [(results[0] | {"supported": "false", "liver_mean": ""}, truth[0])]
    pairs[0][0]["trained_on"] = r"bought for 5 $ \frac{ and 6 $"  # no formula
    found = evaluated(tmp_path, *map(list, zip(*pairs)), label="$x_{$ " * 20)
    out = tmp_path / "out"
    for path in out.rglob("*.csv"):
        assert "nan" not in path.read_text().lower(), path
    assert "not defined" in (out / "evaluation.html").read_text()
    json.loads((out / "metrics.json").read_text(), parse_constant=pytest.fail)
    cirrhosis = found["network"]["all cases"]["groups"]["cirrhosis"]
    assert (cirrhosis["auc"]["value"] is None) == ("F4" not in kept)
    assert cirrhosis["auc"]["low"] is None
    spleen = found["signs"]["spleen_volume_ml"]["groups"]["cirrhosis"]
    assert (spleen is None) == ("F4" not in kept)


def test_another_programs_table_needs_few_columns(tmp_path, no_figures):
    results, truth = batch_rows(20)
    expected = evaluated(tmp_path, results, truth)
    needed = ("case", "status", "stage", *STAGES)
    short = [{name: row[name] for name in needed} for row in results]
    write_rows(tmp_path / "short.csv", short, needed)
    paths = (tmp_path / "short.csv", tmp_path / "truth.csv", tmp_path / "short")
    found = evaluate(*paths, compare=tmp_path / "results.csv", repeats=20)
    assert found["network"]["all cases"] == expected["network"]["all cases"]
    assert found["network"]["supported cases"] is None
    assert not any(sign["cases"] for sign in found["signs"].values())
    assert found["trained_on"] == "not stated in the results"
    assert found["comparison"]["groups"]["advanced"]["p"] == 1


def test_semicolons_numbers_and_parquet(tmp_path, no_figures):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    results, truth = batch_rows(20)
    results[2]["case"], truth[2]["case"] = "'-2", "-2"  # as the table writes it for spreadsheets
    expected = evaluated(tmp_path, results, truth)
    lines = [f"{row['case']};{row['stage'][1]}" for row in truth]
    text = "\n".join(["case;stage", *lines])
    (tmp_path / "german.csv").write_text(text, encoding="utf-8-sig")
    typed = pandas.read_csv(tmp_path / "results.csv", dtype={"case": str})
    typed.to_parquet(tmp_path / "results.parquet")
    pandas.DataFrame(truth).assign(stage=[int(row["stage"][1]) for row in truth]).to_parquet(
        tmp_path / "truth.parquet"
    )
    read_results(tmp_path / "results.csv")  # it is a table as batch writes it
    for names in (("results.csv", "german.csv"), ("results.parquet", "truth.parquet")):
        found = evaluate(*(tmp_path / name for name in names), tmp_path / "again", repeats=20)
        assert found["network"] == expected["network"]
        assert found["signs"] == expected["signs"]


def test_cts_of_one_patient_are_drawn_together(tmp_path, no_figures):
    results, truth = batch_rows(40)
    results = [row | {"case": f"{row['case']}_{n}"} for row in results for n in range(3)]
    truth = [
        row | {"case": f"{row['case']}_{n}", "patient": row["case"]}
        for row in truth
        for n in range(3)
    ]
    with_patients = evaluated(tmp_path, results, truth)["network"]["all cases"]
    for row in truth:
        row["patient"] = ""
    naive = evaluated(tmp_path, results, truth)["network"]["all cases"]
    assert (with_patients["patients"], naive["patients"]) == (40, 120)
    wide, narrow = (
        one["groups"]["advanced"]["accuracy"]["high"] - one["groups"]["advanced"]["accuracy"]["low"]
        for one in (with_patients, naive)
    )
    assert wide > 1.3 * narrow


REFUSALS = {
    "twice in the results": ("results", lambda r, t: r.append(dict(r[0])), "lines 2 and 12"),
    "twice in the truth": ("truth", lambda r, t: t.append(dict(t[0])), "lines 2 and 12"),
    "no stage": ("truth", lambda r, t: t[4].update(stage="F5"), "line 6: the stage is 'F5'"),
    "half a stage": ("truth", lambda r, t: t[4].update(stage="2.5"), "the stage is '2.5'"),
    "not numbers": ("results", lambda r, t: r[2].update(F3="high"), "line 4: F3 is 'high'"),
    "no distribution": ("results", lambda r, t: r[2].update(F3=0.9, F4=0.9), "add up to 1"),
    "no probability": ("results", lambda r, t: r[2].update(F3=""), "add up to 1"),
    "unknown prediction": ("results", lambda r, t: r[2].update(stage="F9"), "the stage is 'F9'"),
    "no case": ("results", lambda r, t: r[2].update(case=""), "line 4: no case"),
    "newer schema": ("results", lambda r, t: r[2].update(schema=99), "line 4: schema 99"),
    "none in common": ("results", lambda r, t: [x.update(case="x" + x["case"]) for x in t], "none"),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_refusals(why, tmp_path, capsys):
    results, truth = batch_rows(10)
    file, change, message = REFUSALS[why]
    change(results, truth)
    with pytest.raises(StagingError, match=message) as refusal:
        evaluated(tmp_path, results, truth)
    assert f"{file}.csv" in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_missing_files_columns_and_matplotlib_are_refused(tmp_path, capsys, monkeypatch):
    results, _ = batch_rows(10)
    write_rows(tmp_path / "results.csv", results)
    write_rows(tmp_path / "truth.csv", [{"case": "a", "grade": "F1"}], ["case", "grade"])
    command = ["evaluate", str(tmp_path / "results.csv"), "-o", str(tmp_path / "out"), "--truth"]
    assert main([*command, str(tmp_path / "truth.csv")]) == 1
    assert "no column stage; the columns case, stage are needed." in capsys.readouterr().err
    (tmp_path / "truth.csv").write_text("")
    assert main([*command, str(tmp_path / "truth.csv")]) == 1
    assert "no rows" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "gone.csv")]) == 1
    assert "gone.csv: cannot be read" in capsys.readouterr().err
    (tmp_path / "bad.parquet").write_bytes(b"PAR0")
    assert main([*command, str(tmp_path / "bad.parquet")]) == 1
    assert "a CSV or Parquet file is needed" in capsys.readouterr().err
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    assert main([*command, str(tmp_path / "truth.csv")]) == 1
    assert "need matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
