"""Lists and patterns as input of batch, and what it would do (--dry-run)."""

import sys

import numpy as np
import pytest
from bad_inputs import hu_array, image, liver_array, write, write_slices

from LiverFibrosisStagingLib import StagingError
from LiverFibrosisStagingLib.__main__ import main
from LiverFibrosisStagingLib.batch import cases as cases_module
from LiverFibrosisStagingLib.batch.cases import read_cohort
from LiverFibrosisStagingLib.batch.lists import read_list
from LiverFibrosisStagingLib.imaging.body import Body

HU, MASK = hu_array(2), liver_array(12)[:2]
LINES = [
    {"ct": "a.nii.gz", "liver": "m.nii.gz:5", "case": "P1", "height_cm": 180, "weight_kg": 80.5},
    {"ct": "b/ct.nii.gz", "liver": None, "case": None, "height_cm": None, "weight_kg": None},
]


@pytest.mark.parametrize("package", ["pandas", "pyarrow"])
def test_parquet_list_is_that_of_the_same_csv(package, tmp_path):
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    pandas.DataFrame(LINES).to_csv(tmp_path / "list.csv", index=False)
    if package == "pandas":
        pandas.DataFrame(LINES).to_parquet(tmp_path / "list.parquet")
    else:
        table = pyarrow.Table.from_pylist(LINES)
        pyarrow.parquet.write_table(table, tmp_path / "list.parquet")
    first, second = read_list(tmp_path / "list.parquet")
    assert [first, second] == read_list(tmp_path / "list.csv")
    assert (first.name, first.ct, first.body) == ("P1", tmp_path / "a.nii.gz", Body(180, 80.5))
    assert (second.name, second.liver, second.body) == ("ct", None, None)
    assert read_cohort(tmp_path / "list.parquet").cases == (first, second)


def test_damaged_parquet_list_and_missing_package_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    (tmp_path / "list.parquet").write_text("ct\na.nii\n")
    with pytest.raises(StagingError, match=r"cannot be read .*a list of CTs is needed"):
        read_list(tmp_path / "list.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StagingError, match="needs the package pyarrow, which is not installed"):
        read_list(tmp_path / "list.parquet")


@pytest.fixture
def cohort(tmp_path):
    root = tmp_path / "cohort"
    for name in ("site/p1_ct", "site/p1_liver", "p2_ct", "late", "other/p3_ct", "other/p4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write(root / f"{name}.nii.gz", MASK if name.endswith("liver") else HU)
    for number in "12":
        uids = {"0020|000d": f"1.{number}"}
        write_slices(root / f"d{number}" / "CT", image(hu_array(10)), uids, uid=f"1.{number}.1")
    return root


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("**/*_ct.nii.gz", ["other/p3", "p2", "site"]),
        ("*/*_ct.nii.gz", ["other/p3", "site"]),
        ("d?", ["d1", "d2"]),
        ("d[1]/CT/*.dcm", ["d1"]),
        ("*", ["d1", "d2", "late", "other/p3", "other/p4", "p2", "site"]),
    ],
)
def test_patterns_choose_cts_and_masks_are_found_beside_them(pattern, names, cohort):
    found = read_cohort(cohort / pattern)
    assert sorted(case.name for case in found.cases) == sorted(names) and not found.left_out
    for case in found.cases:
        liver = cohort / "site" / "p1_liver.nii.gz" if case.name == "site" else None
        assert case.liver == liver
    assert read_cohort(cohort / pattern, cohort / "other").cases == tuple(
        case for case in found.cases if not case.name.startswith("other")
    )


def test_pattern_without_match_is_refused(tmp_path):
    with pytest.raises(StagingError, match="no file or folder matches this pattern"):
        read_cohort(tmp_path / "*" / "ct.nii.gz")


def test_dry_run_reads_no_voxels_and_writes_nothing(cohort, tmp_path, monkeypatch, capsys):
    write(cohort / "p9_liver.nii.gz", HU)  # a CT by its voxels, as late and p4 beside another
    write_slices(cohort / "d1" / "scout", image(np.zeros((2, 8, 8), np.int16)), uid="1.1.9")
    tags = {"0020|000d": "1.1"}
    write_slices(cohort / "d1" / "short", image(np.zeros((2, 8, 8), np.int16)), tags, uid="1.1.8")
    assert len(read_cohort(cohort).cases) == 8
    before = sorted(tmp_path.rglob("*"))

    def refuse(*_):
        raise AssertionError("voxels are read")

    monkeypatch.setattr(cases_module, "holds_ct", refuse)
    assert main(["batch", str(cohort), "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    shown = capsys.readouterr().out
    for line in (
        f"site: {cohort / 'site' / 'p1_ct.nii.gz'}",
        f"    liver {cohort / 'site' / 'p1_liver.nii.gz'}, spleen with the liver",
        "    liver automatic, spleen automatic",
        "    series taken: no phase in its description; at least 10 slices",
        f"    {cohort / 'd1' / 'short' / 'IM000.dcm'}: CT series, fewer than 10 slices",
        f"    {cohort / 'p9_liver.nii.gz'}: image file, a mask's name, but of no case; "
        "batch will look at its voxels",
    ):
        assert line in shown.splitlines(), line
    assert "5 cases, 5 left out; nothing was staged or written. Research use only" in shown
