"""Masks as labels of files, unknown and optional columns, folds and sites of a manifest."""

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("matplotlib")
from cases import report as cohort_report
from cases.folds import split
from cases.manifest import Criteria, ManifestError, apply, read_manifest
from cases.requirements import (
    check_for_training,
    file_problems,
    main,
    one_fold_per_site,
    patients_by_group,
)
from LiverFibrosisStagingLib.stages import StageRange


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Many different CTs, and label images: 1 and 2; 1 only; 1, 2, 5 and 6."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(12):
        image = sitk.Image(3, 3, 3, sitk.sitkInt16)
        image[0, 0, 0] = number
        sitk.WriteImage(image, str(folder / f"ct{number}.nii.gz"))
    for name, labels in (("both", [1, 2]), ("one", [1]), ("many", [1, 2, 5, 6])):
        array = np.zeros((3, 3, 3), np.uint8)
        array.flat[: len(labels)] = labels
        sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{name}.nii.gz"))
    return folder


def manifest(folder, rows, header="patient,ct,stage,liver,spleen"):
    path = folder / "cohort.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def masks(folder, liver, spleen):
    (case,) = read_manifest(manifest(folder, [f"p,ct0.nii.gz,F1,{liver},{spleen}"]))
    return case


@pytest.mark.parametrize(
    ("liver", "spleen"),
    [
        ("both.nii.gz", ""),
        ("both.nii.gz", "both.nii.gz"),
        ("both.nii.gz", "both.nii.gz:2"),
        ("both.nii.gz:1", "both.nii.gz:2"),
        ("many.nii.gz:1+5", "many.nii.gz:2+6"),
        ("many.nii.gz:1+5", "both.nii.gz:2"),
        ("one.nii.gz", "both.nii.gz:2"),
    ],
)
def test_organs_of_one_file(files, liver, spleen):
    case = masks(files, liver, spleen)
    assert case.liver == files / liver and (case.spleen or "") == (spleen and files / spleen)
    assert list(file_problems([case])) == []


@pytest.mark.parametrize(
    ("liver", "spleen"),
    [
        ("one.nii.gz", "one.nii.gz"),
        ("one.nii.gz", "one.nii.gz:1"),
        ("both.nii.gz:2", "both.nii.gz"),
    ],
)
def test_one_mask_for_both_organs_is_refused(files, liver, spleen):
    (problem,) = file_problems([masks(files, liver, spleen)])
    assert problem.startswith("line 2: liver and spleen are the same mask in ")


@pytest.mark.parametrize(
    ("liver", "spleen", "expected"),
    [
        ("many.nii.gz:1+5", "many.nii.gz:5", "line 2: liver and spleen are both the label 5"),
        ("none.nii.gz:1", "", "line 2: the liver file none.nii.gz:1 does not exist"),
        ("both.nii.gz:0", "", "line 2: liver is both.nii.gz:0; 0 is the background"),
        ("ct0.nii.gz:1", "", "line 2: liver and ct are the same file, ct0.nii.gz"),
    ],
)
def test_labels_that_cannot_be_used(files, liver, spleen, expected):
    with pytest.raises(ManifestError) as refused:
        masks(files, liver, spleen)
    assert refused.value.problems[0].startswith(expected)


def test_the_content_of_a_mask_includes_its_labels(files):
    found = {
        tuple(masks(files, *pair).content())
        for pair in (
            ("many.nii.gz", ""),
            ("many.nii.gz:1", ""),
            ("many.nii.gz:1+5", ""),
            ("many.nii.gz:1", "many.nii.gz:2"),
        )
    }
    assert len(found) == 4
    other = files / "copy.nii.gz"
    other.write_bytes((files / "many.nii.gz").read_bytes())
    one, two = (masks(files, f"{name}.nii.gz:5", "") for name in ("many", "copy"))
    assert one.content() == two.content()


def test_optional_and_unknown_columns(files, capsys):
    header = "patient,ct,stage,splen,site,scanner,kernel,thickness,fold,label,bmi,"
    row = "p,ct0.nii.gz,F1-F2,one.nii.gz,A,GE LightSpeed,STANDARD,2.5,3,Ishak groups of X.,27,"
    (case,) = read_manifest(manifest(files, [row], header))
    assert (case.site, case.scanner, case.kernel) == ("A", "GE LightSpeed", "STANDARD")
    assert (case.thickness, case.fold, case.label) == (2.5, "3", "Ishak groups of X.")
    assert case.others == {"splen": "one.nii.gz", "bmi": "27"} and case.spleen is None
    said = capsys.readouterr().err
    assert "'splen' (is spleen meant?)" in said and "'bmi'" in said
    with pytest.raises(ManifestError, match="line 2: thickness is 'thin'; mm from"):
        read_manifest(manifest(files, [row.replace("2.5", "thin")], header))


def cohort(files, values, header):
    """Twelve cases of the stages F0 and F4 in turn, with further values."""
    rows = [
        f"p{i},ct{i}.nii.gz,{'F4' if i % 2 else 'F0'},{value}" for i, value in enumerate(values)
    ]
    path = manifest(files, rows, f"patient,ct,stage,{header}")
    return read_manifest(path), path


def test_the_folds_of_the_manifest_are_used(files):
    cases, path = cohort(files, [("10", "9", "b")[i % 3] for i in range(12)], "fold")
    check_for_training(cases, path, folds=5)
    tests = [[cases[i].fold for i in fold.test] for fold in split(cases, 5)]
    assert tests == [["9"] * 4, ["10"] * 4, ["b"] * 4]
    for fold in split(cases):
        assert sorted([*fold.train, *fold.validation, *fold.test]) == list(range(12))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("p3,ct3.nii.gz,F4,1", "p3,ct3.nii.gz,F4,"), "line 5: the fold is missing"),
        (("p3,", "p2,"), "line 5: patient p2 is in the fold '1', but in '0' in line 4"),
        ((",1\n", ",0\n"), "All cases are in the fold '0'"),
    ],
)
def test_folds_that_cannot_be_used(files, change, expected):
    _, path = cohort(files, [i % 2 for i in range(12)], "fold")
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ManifestError) as refused:
        check_for_training(read_manifest(path), path)
    assert any(problem.startswith(expected) for problem in refused.value.problems)


def test_a_fold_without_which_one_class_is_left_is_refused(files):
    cases, path = cohort(files, ["ab"[i % 2] for i in range(12)], "fold")
    with pytest.raises(ManifestError, match="Without the fold 'a', no group of stages has 2"):
        check_for_training(cases, path)


def test_each_site_is_a_fold(files):
    cases, path = cohort(files, ["xyz"[i % 3] for i in range(12)], "site")
    folds = split(one_fold_per_site(cases, path))
    assert [{cases[i].site for i in fold.test} for fold in folds] == [{"x"}, {"y"}, {"z"}]
    for values, expected in (
        (["x"] * 12, "All cases are from one site"),
        (["x"] * 5 + [""] + ["y"] * 6, "line 7: the site is missing"),
    ):
        cases, path = cohort(files, values, "site")
        with pytest.raises(ManifestError, match=expected):
            one_fold_per_site(cases, path)


def test_ranges_count_where_they_decide(files):
    stages = ["F0-F1", "F2-F4", "F0-F3", "F4", "F1-F2", "F0-F4"]
    rows = [f"p{i},ct{i}.nii.gz,{stage},," for i, stage in enumerate(stages)]
    path = manifest(files, rows)
    inclusion = apply(read_manifest(path), Criteria())
    assert [why for _, why in inclusion.excluded] == ["stage unknown (F0-F4)"]
    cases = inclusion.included
    assert patients_by_group(cases) == {
        "significant": (1, 2, 2),
        "advanced": (2, 1, 2),
        "cirrhosis": (3, 1, 1),
    }
    table = cohort_report.table_1(cases)
    names = ["F0", "F1", "F2", "F3", "F4", "F0-F1", "F0-F3", "F1-F2", "F2-F4", "All"]
    assert table[0][1:] == names
    assert table[1][1:] == ["0", "0", "0", "0", "1", "1", "1", "1", "1", "5"]
    words = "\n".join(t.get_text() for t in cohort_report.flow_chart(inclusion).axes[0].texts)
    assert "F4 1, F0-F1 1, F0-F3 1, F1-F2 1, F2-F4 1" in words and "1 stage unknown" in words


def test_cirrhosis_yes_or_no_is_enough(files):
    rows = [f"p{i},ct{i}.nii.gz,{'F4' if i % 2 else 'F0-F3'},," for i in range(12)]
    path = manifest(files, rows)
    check_for_training(read_manifest(path), path)
    path.write_text(path.read_text().replace("F4,", "F2-F4,"))
    with pytest.raises(ManifestError, match="No group of stages has 5 patients with"):
        check_for_training(read_manifest(path), path)


def test_table_1_has_the_acquisition_where_it_is_stated(files):
    cases, _ = cohort(
        files, ["A,B30f,2" if i % 2 else ",,3" for i in range(12)], "site,kernel,thickness"
    )
    table = {row[0]: row[1:] for row in cohort_report.table_1(cases)}
    assert table["Site: A"] == ["0 (0 %)", "0", "0", "0", "6 (100 %)", "6 (50 %)"]
    assert table["Kernel: not stated"][0] == "6 (100 %)"
    assert table["Slice thickness, mm: mean (SD)"][-1] == "2.5 (0.5)"
    assert not any(name.startswith("Scanner") for name in table)


def test_the_command_reports_what_a_cohort_has(files, capsys):
    values = [f"{'one.nii.gz' if i else ''},{'xy'[i % 3 > 0]}" for i in range(12)]
    cases, path = cohort(files, values, "liver,site")
    assert main([str(path)]) == 0
    printed = capsys.readouterr().out
    assert "Stages: F0 6, F4 6." in printed and "F4: 6 patients without, 6 with." in printed
    assert "1 CTs without a liver mask (line 2): the shipped V-Net" in printed
    assert "Sites: x 4, y 8." in printed and "Folds" not in printed
    assert StageRange(0, 4) not in {case.stages for case in cases}
