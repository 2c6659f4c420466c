"""CTs of a cohort are examined by several processes, and not again by a repeated command."""

import json

import pytest
import SimpleITK as sitk
from bad_inputs import hu_array, image, liver_array

pytest.importorskip("highdicom")
pytest.importorskip("matplotlib")
from public_copies import LIVER, ct, masks, seg, slices_of, workbook

from public import examination
from public.command import main

HCC = ("TCIA_ID", "Evidence_of_cirh", "CPS", "hepatitis")


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Two CTs with masks, one of them without contrast, and one that is incomplete."""
    root = tmp_path_factory.mktemp("collection")
    unenhanced = hu_array()
    unenhanced[liver_array() > 0] -= 60
    for number, hu in ((1, hu_array()), (2, unenhanced), (3, hu_array())):
        folder = ct(root / "images" / f"{number}", f"HCC_00{number}", f"{number}", hu=hu)
        drawn = {LIVER: masks()[LIVER]}
        seg(root / "images" / f"seg{number}" / "1.dcm", slices_of(folder), drawn)
    sorted((root / "images" / "3").iterdir())[12].unlink()
    rows = [(f"HCC_00{number}", 1, "A", "NA") for number in (1, 2, 3)]
    return root / "images", workbook(root / "t.xlsx", HCC, *rows)


def files_after(images, table, folder, workers):
    """The files that the command writes, by name."""
    arguments = ["hcc-tace-seg", "--images", str(images), "--table", str(table)]
    output = folder / "manifest.csv"
    assert main([*arguments, "-o", str(output), "--workers", str(workers)]) == 0
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pdf")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_several_processes_write_what_one_writes(collection, tmp_path, capsys):
    (tmp_path / "a").mkdir()
    one = files_after(*collection, tmp_path / "a", 1)
    said = capsys.readouterr()
    (tmp_path / "b").mkdir()
    assert files_after(*collection, tmp_path / "b", 2) == one
    assert "slices are missing" in said.err and "slices are missing" in capsys.readouterr().err
    assert {"manifest.csv", "masks/HCC_001.nii.gz", "flow.csv"} <= set(one)
    assert b"HCC_001" in one["manifest.csv"] and b"HCC_002" not in one["manifest.csv"]
    assert b"another phase by its HU" in one["exclusions.csv"]


def test_a_ct_is_examined_once_and_again_if_its_record_is_damaged(tmp_path, monkeypatch):
    scan, liver = image(hu_array()), image(liver_array())
    calls = []

    def checks(*images):
        calls.append(images)
        return "portal-venous", ()

    monkeypatch.setattr(examination, "input_checks", checks)
    found = examination.examined(scan, liver, None, tmp_path)
    assert found == ("portal venous", "", "")
    assert examination.examined(scan, liver, None, tmp_path) == found and len(calls) == 1
    (record,) = (tmp_path / "checked").iterdir()
    assert set(json.loads(record.read_text())) == {"phase", "unusable", "said"}
    record.write_text('{"phase":')
    assert examination.examined(scan, liver, None, tmp_path) == found and len(calls) == 2
    # Another CT, mask, grid or description is another examination.
    other = hu_array()
    other[0, 0, 0] += 1
    smaller = liver_array()
    smaller[:8] = 0
    moved, named = sitk.Image(scan), sitk.Image(scan)
    moved.SetOrigin((1, 2, 3))
    named.SetMetaData("0008|103e", "arterial")
    again = sitk.Image(liver)
    again.CopyInformation(moved)
    for images in (
        (image(other), liver),
        (scan, image(smaller)),
        (moved, again),
        (named, liver),
    ):
        examination.examined(*images, None, tmp_path)
    assert len(calls) == 6
