"""Every CT of a cohort is a case, with its own masks and a unique name."""

import csv
import os

import numpy as np
import pytest
from bad_inputs import hu_array, image, liver_array, write, write_slices

from LiverFibrosisStagingLib import StagingError
from LiverFibrosisStagingLib.batch.cases import find_cases
from LiverFibrosisStagingLib.batch.cohort import usable_name
from LiverFibrosisStagingLib.batch.lists import read_list
from LiverFibrosisStagingLib.imaging.body import Body

HU, MASK = hu_array(2), liver_array(12)[:2]
SERIES = image(hu_array(10))


def make(root, *names):
    """Files by name: masks by the end of the name, otherwise CTs."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        stem = path.name.lower().removesuffix(".gz").rpartition(".")[0]
        write(path, MASK if stem.endswith(("liver", "spleen", "seg")) else HU)


def found(root, **options):
    return {
        case.name: tuple(p and os.path.relpath(p, root) for p in (case.ct, case.liver, case.spleen))
        for case in find_cases(root, **options).cases
    }


def cts(root):
    return sorted(ct for ct, _, _ in found(root).values())


def test_names_that_differ_little_are_cases_of_their_own(tmp_path):
    names = ["A.mha", "a.nii.gz", "a.nrrd", "p.1.nii.gz", "p_1.nii.gz"]
    make(tmp_path, *names)
    assert cts(tmp_path) == names
    keys = [name.casefold() for name in found(tmp_path)]
    assert len(set(keys)) == 5


@pytest.mark.parametrize("name", ["B.NII.GZ", "b.Nrrd", "b.nhdr", "b.mhd", "b.MHA", "b.nii"])
def test_every_format_is_found_in_any_letter_case(name, tmp_path):
    write(tmp_path / name.lower(), HU)
    (tmp_path / name.lower()).rename(tmp_path / name)
    assert cts(tmp_path) == [name]  # and the data file beside a header is none


@pytest.mark.parametrize(
    "name", ["segment1.nii.gz", "ct_of_liver.nii.gz", "liver.nrrd", "p1_seg.mha", "SEG.nii.gz"]
)
def test_ct_with_a_masks_name_is_a_case(name, tmp_path):
    write(tmp_path / name, HU)
    assert cts(tmp_path) == [name]
    write(tmp_path / "other.nii.gz", HU)
    assert cts(tmp_path) == sorted([name, "other.nii.gz"])
    assert all(liver is None for _, liver, _ in found(tmp_path).values())


def test_cts_beside_a_named_one_or_in_a_dicom_folder_are_cases(tmp_path):
    make(tmp_path, "own/ct.nrrd", "own/late.nrrd")
    write(tmp_path / "own" / "vessels.nrrd", MASK)
    write(tmp_path / "own" / "pet.nrrd", np.abs(HU).astype(np.float32))
    write_slices(tmp_path / "dicom", SERIES)
    make(tmp_path, "dicom/more.nii.gz", "dicom/sub/again.nii.gz")
    write(tmp_path / "dicom" / "vessels.nrrd", MASK)
    expected = ["dicom", "dicom/more.nii.gz", "dicom/sub/again.nii.gz"]
    assert cts(tmp_path) == [*expected, "own/ct.nrrd", "own/late.nrrd"]


def test_masks_and_other_images_without_a_ct_are_no_cases(tmp_path):
    make(tmp_path, "a.nii.gz", "b_liver.nii.gz", "b.seg.nrrd")
    assert cts(tmp_path) == ["a.nii.gz"]


def test_unreadable_file_is_a_row_unless_it_is_the_ones_mask(tmp_path):
    (tmp_path / "x_liver.nii.gz").write_text("Dear radiologist")
    assert cts(tmp_path) == ["x_liver.nii.gz"]
    make(tmp_path, "one/ct.nii.gz")
    (tmp_path / "one" / "seg.nii.gz").write_text("Dear radiologist")
    assert found(tmp_path)["one"] == ("one/ct.nii.gz", "one/seg.nii.gz", None)


def test_masks_are_those_with_the_best_match_of_names(tmp_path):
    make(tmp_path, "p.1.nii.gz", "p_1.nii.gz", "p.1_liver.nii.gz", "p_1_seg.nii.gz")
    make(tmp_path, "A.mha", "a.nii.gz", "a_liver.nii.gz", "A_spleen.nii.gz")
    make(tmp_path, "Q.nii.gz", "q_liver.nii.gz", "r.nii.gz", "r.seg.nrrd", "r_spleen.seg.nrrd")
    make(tmp_path, "t_ct.nii.gz", "t_ct_liver.nii.gz", "t_spleen.nii.gz")
    given = {ct: masks for ct, *masks in found(tmp_path).values()}
    assert given == {
        "t_ct.nii.gz": ["t_ct_liver.nii.gz", "t_spleen.nii.gz"],
        "p.1.nii.gz": ["p.1_liver.nii.gz", None],
        "p_1.nii.gz": ["p_1_seg.nii.gz", None],
        "A.mha": [None, "A_spleen.nii.gz"],
        "a.nii.gz": ["a_liver.nii.gz", None],
        "Q.nii.gz": ["q_liver.nii.gz", None],
        "r.nii.gz": ["r.seg.nrrd", "r_spleen.seg.nrrd"],
    }


def test_mask_has_the_ending_of_its_ct_where_that_decides(tmp_path):
    make(tmp_path, "a.nii.gz", "a.nrrd", "a_liver.nrrd", "a_spleen.mha")
    assert {ct: masks for ct, *masks in found(tmp_path).values()} == {
        "a.nii.gz": [None, "a_spleen.mha"],
        "a.nrrd": ["a_liver.nrrd", "a_spleen.mha"],
    }


def test_dicom_folders_have_their_own_masks(tmp_path):
    for name in ("p.1", "p_1"):
        write_slices(tmp_path / name, SERIES, {"0020|000d": f"1.2.{len(name)}{name[1] == '_'}"})
    make(tmp_path, "p.1_liver.nii.gz", "p_1_seg.nii.gz", "p_1/spleen.nii.gz")
    assert found(tmp_path) == {
        "p.1": ("p.1", "p.1_liver.nii.gz", None),
        "p_1": ("p_1", "p_1_seg.nii.gz", "p_1/spleen.nii.gz"),
    }


def test_letter_case_of_masks_and_folders(tmp_path):
    make(tmp_path, "One/CT.nii.gz", "One/Liver.nii.gz")
    make(tmp_path, "two/scan.nii.gz", "two/SCAN_Liver.nii.gz", "two/Scan_SPLEEN.nii.gz")
    assert found(tmp_path) == {
        "One": ("One/CT.nii.gz", "One/Liver.nii.gz", None),
        "two": ("two/scan.nii.gz", "two/SCAN_Liver.nii.gz", "two/Scan_SPLEEN.nii.gz"),
    }


def test_hidden_files_and_earlier_results_are_no_cases(tmp_path):
    make(tmp_path, "a.nii.gz", "._a.nii.gz", ".hidden/b.nii.gz")
    make(tmp_path, "old/location_map.nrrd", "old/organs.seg.nrrd")
    (tmp_path / "old" / "staging.json").write_text("{}")
    assert cts(tmp_path) == ["a.nii.gz"]
    make(tmp_path, "out/a.nii.gz")
    assert len(find_cases(tmp_path, tmp_path / "out").cases) == 1


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights")
def test_linked_folders_are_searched_once(tmp_path):
    make(tmp_path, "far/p1/ct.nii.gz")
    write_slices(tmp_path / "far" / "p2", SERIES)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "p1").symlink_to(tmp_path / "far" / "p1")
    (tmp_path / "here" / "p2").symlink_to(tmp_path / "far" / "p2")
    (tmp_path / "here" / "loop").symlink_to(tmp_path / "here")
    (tmp_path / "here" / "broken.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    assert list(found(tmp_path / "here")) == ["broken", "p1", "p2"]


def test_folder_that_cannot_be_listed_is_a_row(tmp_path, monkeypatch):
    make(tmp_path, "a.nii.gz", "locked/b.nii.gz")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert cts(tmp_path) == ["a.nii.gz", "locked"]


@pytest.mark.parametrize(
    ("name", "usable"),
    [
        ("p1", "p1"),
        ("site A/p 1", "site A/p 1"),
        ("hcc002_cirrA_pv", "hcc002_cirrA_pv"),
        ("CON", "_CON"),
        ("nul.1/Com1", "_nul.1/_Com1"),
        ("console", "console"),
        ("a:b?*", "a-b--"),
        ("p1. ", "p1"),
        ("a\\b", "a/b"),
        ("a\x00\udcffb", "a--b"),
        ("...", "case"),
        ("Mu\u0308ller", "M\u00fcller"),
    ],
)
def test_names_are_usable_everywhere(name, usable):
    assert usable_name(name) == usable


def listed(folder, text):
    (folder / "list.csv").write_text(text)
    return [case.name for case in read_list(folder / "list.csv")]


def test_names_in_lists_are_kept_and_others_made(tmp_path):
    text = "ct,case\nx.nii.gz,P 1\np1/ct.nii.gz,\np2/ct.nii.gz,\ny.NRRD,\nz.nii,site/aux\n"
    assert listed(tmp_path, text) == ["P 1", "p1/ct", "p2/ct", "y", "site/_aux"]
    assert listed(tmp_path, "ct\na.nii\na.nrrd\n") == ["a", "a-2"]


@pytest.mark.parametrize("names", [("p1", "P1"), ("a.", "a"), ("/x", "b"), ("a/../b", "c")])
def test_names_in_lists_that_clash_are_refused(names, tmp_path):
    with pytest.raises(StagingError, match="twice, or it is not valid"):
        listed(tmp_path, f"ct,case\n1.nii,{names[0]}\n2.nii,{names[1]}\n")


def test_segments_height_and_weight_of_a_list(tmp_path):
    (tmp_path / "list.csv").write_text(
        "ct,segments,height_cm,weight_kg\na.nii.gz,parts,180,80\nb.nii.gz,,,\n"
    )
    first, second = read_list(tmp_path / "list.csv")
    assert (first.segments, first.body) == (tmp_path / "parts", Body(180, 80))
    assert (second.segments, second.body) == (None, None)
    for values, words in (
        ("180,", "line 2: Only the height is given; the weight is needed too"),
        ("1.8,80", "line 2: The height is 1.8 cm; 100 to 230 cm are plausible"),
        ("tall,80", "line 2: height and weight are 'tall' and '80'; numbers in cm and kg"),
    ):
        (tmp_path / "list.csv").write_text(f"ct,height_cm,weight_kg\na.nii.gz,{values}\n")
        with pytest.raises(StagingError, match=words):
            read_list(tmp_path / "list.csv")


def test_numbered_names_do_not_clash_with_other_cases(tmp_path):
    make(tmp_path, "a.nii.gz", "a.nrrd", "a-2.nii.gz", "A-2.mha")
    names = {ct: name for name, (ct, _, _) in found(tmp_path).items()}
    assert names["a.nii.gz"] == "a"
    assert len({name.casefold() for name in names.values()}) == 4


def test_names_that_may_be_persons_get_a_pseudonym(tmp_path):
    make(tmp_path, "DOE^JANE.nii.gz", "DOE_JANE_1950/ct.nii.gz", "p1.nii.gz", "hcc002_cirrA_pv.mha")
    write_slices(tmp_path / "jane", SERIES, {"0010|0010": "DOE^JANE"})
    cases = {case.ct.name: case for case in find_cases(tmp_path).cases}
    assert (cases["p1.nii.gz"].name, cases["hcc002_cirrA_pv.mha"].name) == ("p1", "hcc002_cirrA_pv")
    for ct in ("DOE^JANE.nii.gz", "ct.nii.gz", "jane"):
        assert cases[ct].pseudonym and cases[ct].name.startswith("case-")
    again = {case.ct.name: case for case in find_cases(tmp_path).cases}
    assert again == cases
    everyone = find_cases(tmp_path, pseudonyms=True).cases
    assert all(case.pseudonym for case in everyone) and len({c.name for c in everyone}) == 5
    assert cases["jane"].name in {case.name for case in everyone}


def test_names_in_lists_stay_unless_they_may_be_persons(tmp_path):
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("ct", "case"),
                ("DOE^JANE.nii", "P7"),
                ("b.nii", "Doe^Jane"),
                ("c.nii", "Doe Jane 1950"),
            ]
        )
    names = [case.name for case in read_list(tmp_path / "list.csv")]
    assert names[0] == "P7" and all(name.startswith("case-") for name in names[1:])


def write_parts(folder, values=MASK):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, 9):
        write(folder / f"liver_segment_{number}.nii.gz", values)


def test_masks_of_liver_segments_are_segments_of_their_case_and_no_cases(tmp_path):
    """As TotalSegmentator writes them: beside the CT, in a folder of the case, beside DICOM."""
    make(tmp_path, "one/ct.nii.gz", "two/scan.nii.gz", "two/scan_liver.nii.gz", "several/a.nrrd")
    make(tmp_path, "several/b.nrrd")
    for number, place in enumerate(("three/dicom", "four"), start=3):
        uids = {"0020|000d": f"1.2.{number}.1", "0020|000e": f"1.2.{number}.2"}
        write_slices(tmp_path / place, SERIES, uids)
    write_parts(tmp_path / "one" / "segments")
    write_parts(tmp_path / "two")
    write_parts(tmp_path / "three" / "segments")
    write_parts(tmp_path / "four" / "segments")
    write_parts(tmp_path / "several" / "segments")  # of which of the two is not known
    write_parts(tmp_path / "alone")
    (tmp_path / "one" / "segments" / "liver_segment_3.nii.gz").write_bytes(b"damaged")
    segments = {
        case.name: case.segments and case.segments.relative_to(tmp_path).as_posix()
        for case in find_cases(tmp_path).cases
    }
    assert segments == {
        "one": "one/segments",
        "two": "two",
        "three": "three/segments",
        "four": "four/segments",
        "several/a": None,
        "several/b": None,
    }


def test_a_ct_with_the_name_of_a_liver_segment_is_a_case(tmp_path):
    make(tmp_path, "p/liver_segment_1.nii.gz")
    (case,) = find_cases(tmp_path).cases
    assert case.ct.name == "liver_segment_1.nii.gz" and case.segments is None
