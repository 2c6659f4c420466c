"""A model that sees only the acquisition finds a planted shortcut, and is quiet without one."""

import csv
import json

import numpy as np
import pytest

pytest.importorskip("sklearn")
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from evaluation import acquisition
from evaluation.acquisition import (
    ALL,
    FOLDS,
    LEVEL,
    SPLITS,
    features_of,
    main,
    predictions,
    shortcut,
    splits_of,
    table,
)
from LiverFibrosisStagingLib.errors import StagingError

NAMES = ("site", "kernel", "thickness", "slices")


def cohort(seed: int, patients: int = 60, scans: int = 1, kernel_of_f4: float = 0, missing=0.0):
    """Rows, stages and patients; in a share of F4 the kernel is another one."""
    rng = np.random.default_rng(seed)
    rows, stages, codes = [], [], []
    for number in range(patients):
        stage = int(rng.choice(5, p=(0.15, 0.2, 0.2, 0.15, 0.3)))
        site = str(rng.choice(list("ABCDE"), p=(0.4, 0.3, 0.2, 0.05, 0.05)))
        for _ in range(rng.integers(1, scans + 1)):
            sharp = stage == 4 and rng.random() < kernel_of_f4
            row = {
                "site": site,
                "kernel": "I70f" if sharp else str(rng.choice(["B30f", "STANDARD"])),
                "thickness": str(rng.choice((1.0, 2.5, 5.0))),
                "slices": str(rng.integers(90, 300)),
            }
            rows.append({k: "" if rng.random() < missing else v for k, v in row.items()})
            stages.append(stage)
            codes.append(f"P{number}")
    return rows, NAMES, stages, codes


@pytest.fixture(scope="module")
def planted():
    return shortcut(*cohort(1, kernel_of_f4=0.8), permutations=299, repeats=300)


def test_a_planted_shortcut_is_found_and_named(planted):
    f4 = planted["auc"][ALL]["cirrhosis"]
    assert f4["low"] > 0.6 and f4["p"] <= 0.01
    kernel = planted["auc"]["kernel"]["cirrhosis"]
    assert kernel["low"] > 0.6
    assert all(
        planted["auc"][name]["cirrhosis"]["value"] < kernel["value"] - 0.15
        for name in ("site", "thickness", "slices")
    )
    warning = planted["warnings"][-1]
    assert f"predicts F4: kernel alone with an AUC of {kernel['value']:.2f} [" in warning
    assert f"together with an AUC of {f4['value']:.2f} [{f4['low']:.2f}, " in warning
    assert not any(name in warning for name in ("site", "thickness", "slices"))


def test_a_middle_value_is_found_which_a_straight_line_would_miss():
    rng = np.random.default_rng(0)
    stages = np.repeat((0, 4), 40)
    thickness = np.where(stages == 4, 2.5, rng.choice((1.0, 5.0), 80))
    assert abs(roc_auc_score(stages == 4, thickness) - 0.5) < 0.15
    rows = [{"thickness": value} for value in thickness]
    found = shortcut(rows, ["thickness"], stages, np.arange(80), permutations=99, repeats=100)
    assert found["auc"][ALL]["cirrhosis"]["value"] == 1.0
    assert found["auc"][ALL]["cirrhosis"]["low"] == pytest.approx(0.025 ** (1 / 40))  # not 1


def test_no_more_warnings_without_a_shortcut_than_promised():
    cohorts = [cohort(seed, scans=1 + seed % 3) for seed in range(100, 120)]
    warned = sum(
        bool(shortcut(*one, permutations=199, repeats=100, seed=n)["warnings"])
        for n, one in enumerate(cohorts)
    )
    assert warned <= binom.ppf(0.999, len(cohorts), LEVEL)


def test_p_values_without_a_shortcut_are_spread_evenly():
    """The corrected p is at most one half in about half of the cohorts."""
    smallest = []
    for seed in range(40):
        rows, _, stages, patients = cohort(seed, scans=2)
        features = features_of(rows, ["site", "thickness"])[0]
        p = acquisition._p_values(
            splits_of(np.array(patients), seed),
            list(features.values()),
            np.array(stages),
            np.array(patients),
            ["significant", "advanced", "cirrhosis"],
            99,
            seed,
        )
        smallest.append(p.min())
    below = sum(p <= 0.5 for p in smallest)
    assert binom.ppf(0.001, 40, 0.5) <= below <= binom.ppf(0.999, 40, 0.5)


def test_auc_is_that_of_scikit_learn_within_the_test_parts():
    rows, names, stages, patients = cohort(3, scans=2, kernel_of_f4=0.4)
    truth = np.array(stages) == 4
    features = np.hstack(list(features_of(rows, names)[0].values()))
    splits = splits_of(np.array(patients))
    won = pairs = 0.0
    for (_, test), score in zip(splits, predictions(splits, features, truth[:, None])):
        count = truth[test].sum() * (~truth[test]).sum()
        if count:
            won += roc_auc_score(truth[test], score[:, 0]) * count
            pairs += count
    found = shortcut(rows, names, stages, patients, permutations=9, repeats=50)
    assert found["auc"][ALL]["cirrhosis"]["value"] == pytest.approx(won / pairs, abs=1e-12)


def test_a_patient_is_never_on_both_sides_and_every_case_is_tested():
    _, _, stages, patients = cohort(4, scans=4)
    patients = np.array(patients)
    splits = splits_of(patients)
    assert len(splits) == FOLDS * SPLITS
    for train, test in splits:
        assert not set(patients[train]) & set(patients[test])
    tested = np.bincount(np.concatenate([test for _, test in splits]))
    assert (tested == SPLITS).all() and len(tested) == len(stages)


def test_stages_are_permuted_with_their_patients():
    _, _, stages, patients = cohort(4, scans=4)
    patients = np.array(patients)
    for permuted in acquisition._permuted(np.array(stages), patients, 20, 0):
        assert all(len(set(permuted[patients == one])) == 1 for one in set(patients))
    # A patient's stages stay together in their order where they differ between the CTs.
    stage, patient = np.array([0, 4, 1, 3, 0, 4]), np.array(list("aabbcc"))
    for permuted in acquisition._permuted(stage, patient, 20, 0):
        pairs = sorted(permuted.reshape(3, 2).tolist())
        assert pairs == [[0, 4], [0, 4], [1, 3]]


def test_a_repeated_patient_is_no_evidence():
    """A chance agreement among twelve patients is no better for ten equal CTs of each."""
    rng = np.random.default_rng(0)
    warned = 0
    for seed in range(10):
        site = rng.permutation(np.repeat(list("AB"), 6))
        rows = [{"site": one} for one in site.repeat(10)]
        stages, patients = np.repeat((0, 4), 60), np.arange(12).repeat(10)
        found = shortcut(rows, ["site"], stages, patients, permutations=99, repeats=50, seed=seed)
        warned += bool(found["warnings"])
    assert warned <= 3


def test_missing_values_are_values():
    found = shortcut(*cohort(5, missing=0.3, kernel_of_f4=0.9), permutations=99, repeats=100)
    assert found["auc"][ALL]["cirrhosis"]["low"] > 0.5
    # A number that only F4 lacks tells the stage as much as one that only F4 has.
    rows = [{"kvp": None if n < 30 else 100 + n % 2} for n in range(60)]
    stages = [4] * 30 + [0] * 30
    found = shortcut(rows, ["kvp"], stages, range(60), permutations=99, repeats=100)
    assert found["auc"][ALL]["cirrhosis"]["value"] == 1.0


def test_one_class_or_too_few_patients_are_not_defined():
    rows, names, _, patients = cohort(6)
    found = shortcut(rows, names, [4] * len(rows), patients, permutations=9, repeats=50)
    assert {one["value"] for one in found["auc"][ALL].values()} == {None}
    assert not found["warnings"] and "not defined" in table(found)[1]
    # Four patients with F4 are too few.
    stages = [
        4 if code in {"P0", "P1", "P2", "P3"} else 2 * (n % 2) for n, code in enumerate(patients)
    ]
    found = shortcut(rows, names, stages, patients, permutations=9, repeats=50)
    assert found["auc"][ALL]["cirrhosis"]["value"] is None
    assert found["patients"]["cirrhosis"]["with"] == 4
    assert found["auc"][ALL]["significant"]["low"] is not None


def test_columns_are_numbers_or_categories():
    rows = [
        {"a": "1,5" if n % 2 else "2.5", "b": "x" if n % 2 else "7", "c": "same", "d": f"id{n}"}
        for n in range(12)
    ]
    kept, left_out = features_of(rows, list("abcd"))
    assert kept["a"].shape == (12, 5) and kept["b"].shape == (12, 2)
    assert set(left_out) == {"c", "d"}
    with pytest.raises(StagingError, match="c is the same in all cases"):
        features_of(rows, ["c"])


def test_infrequent_categories_are_one():
    sites = ["A"] * 20 + ["B"] * 20 + ["C", "D", "E", "F"]
    kept, _ = features_of([{"site": site} for site in sites], ["site"])
    assert kept["site"].shape == (44, 3) and kept["site"][-4:, -1].all()


def write(path, rows, stages, patients):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["patient", "stage", *NAMES])
        writer.writeheader()
        for row, stage, patient in zip(rows, stages, patients):
            writer.writerow({**row, "stage": f"F{stage}", "patient": patient})
    return path


def test_command(tmp_path, capsys):
    rows, _, stages, patients = cohort(1, kernel_of_f4=0.8)
    path = write(tmp_path / "secret.csv", rows, stages, patients)
    assert main([str(path), "--columns", "kernel", "slices", "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "predicts F4: kernel alone" in printed and "Research use only" in printed
    text = (tmp_path / "out" / "acquisition.json").read_text(encoding="utf-8")
    found = json.loads(text)
    assert list(found["auc"]) == [ALL, "kernel", "slices"]
    with (tmp_path / "out" / "acquisition.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 9 and {line["stages"] for line in lines} == {"F2-F4", "F3-F4", "F4"}
    of_kernel = next(x for x in lines if x["property"] == "kernel" and x["stages"] == "F4")
    assert float(of_kernel["auc"]) == found["auc"]["kernel"]["cirrhosis"]["value"]
    assert "secret" not in text and "P1" not in text


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        ({"stage": "F5"}, [], "line 2: the stage is 'F5'"),
        ({"patient": ""}, [], "line 2: the patient is empty"),
        ({}, ["--columns", "dose"], "no column dose"),
        ({}, ["--stage", "metavir"], "no column metavir"),
    ],
)
def test_refusals(tmp_path, capsys, change, options, sentence):
    path = tmp_path / "table.csv"
    row = {"patient": "a", "stage": "F1", "kernel": "x", **change}
    path.write_text(f"{','.join(row)}\n{','.join(row.values())}\n", encoding="utf-8")
    assert main([str(path), *options, "-o", str(tmp_path / "out")]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
