"""Cancelling: every step listens, more often in a longer scan, and leaves nothing behind."""

import gc
import sys
import threading
import weakref
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from bad_inputs import image, write_slices
from tiny_models import masked_model, written

from LiverFibrosisStagingLib import Cancelled, StagingModel, stage, staging
from LiverFibrosisStagingLib.errors import cancellable
from LiverFibrosisStagingLib.imaging.reading import read_ct, source_files
from LiverFibrosisStagingLib.report import documents
from LiverFibrosisStagingLib.report.pdf import write_pdf
from LiverFibrosisStagingLib.result import _side_by_side
from LiverFibrosisStagingLib.signs.nodularity import edge_pieces

HELPERS = ("check_cancel", "check", "begin")
BY_THE_CLOCK = ("cancellable", "watch")  # they ask every few milliseconds, however often that is


class Token:
    """A cancel token that notes which functions ask it; set when one asks for the n-th time."""

    def __init__(self, function=None, number=0):
        self.asked, self._set, self._wanted = Counter(), False, (function, number)

    def is_set(self):
        frame = sys._getframe(1)
        while frame.f_code.co_name in HELPERS:
            frame = frame.f_back
        function = frame.f_code.co_name
        self.asked[function] += 1
        self._set |= (function, self.asked[function]) == self._wanted
        return self._set


class Outlining:
    """A network that finds what is bright: the liver on the patient's right, the spleen left."""

    card = SimpleNamespace(name="o", spacing_mm=(8, 8, 8), multiple_of=2, window_hu=(-150, 250))
    sha256 = ""

    def run(self, volume, cancel):
        liver, spleen = (np.zeros(volume.shape, np.float32) for _ in range(2))
        middle = volume.shape[2] // 2
        bright = volume > (85 + 150) / 400
        liver[..., :middle], spleen[..., middle:] = bright[..., :middle], bright[..., middle:]
        return np.stack([1 - liver - spleen, liver, spleen])


@pytest.fixture(scope="module")
def abdomen():
    from small_scene import make_abdomen

    return make_abdomen()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    return StagingModel.load(written(masked_model(True), path))


@pytest.fixture
def run(abdomen, tiny, tmp_path, monkeypatch):
    """Stage the abdomen, with every slice repeated, from its file and with automatic organs."""
    monkeypatch.setattr(staging, "shipped_network", lambda *_: Outlining())

    def staged(cancel, repeated=1):
        path = tmp_path / f"{repeated}.nii.gz"
        if not path.exists():
            sitk.WriteImage(sitk.Expand(abdomen[0], [1, 1, repeated]), path)
        return stage(path, model=tiny, cancel=cancel, any_phase=True)

    return staged


@pytest.fixture(scope="module")
def result(abdomen, tiny):
    return stage(*abdomen, tiny, any_phase=True)


def last_questions(token):
    """The last question of each function; the first one where their number is left to the clock."""
    return [(name, 1 if name in BY_THE_CLOCK else n) for name, n in token.asked.items()]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def no_thread_more_than(before):
    for thread in set(threading.enumerate()) - before:
        thread.join(60)  # of a file that was being read
        assert not thread.is_alive()


def test_a_stage_ends_at_any_question_and_leaves_no_thread(run, tmp_path):
    token, before = Token(), set(threading.enumerate())
    run(token)
    questions = [each for each in last_questions(token) if each[0] != "watch"]
    assert len(questions) > 12
    for question in questions:
        with pytest.raises(Cancelled):
            run(Token(*question))
        no_thread_more_than(before)


def test_saving_ends_at_any_question_and_keeps_the_earlier_result(result, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "can_write_pdf", lambda: False)
    folder, token = tmp_path / "out", Token()
    result.save(folder, report=True, cancel=token)
    earlier = contents(folder)
    for question in last_questions(token):
        with pytest.raises(Cancelled):
            result.save(folder, report=True, cancel=Token(*question))
        assert contents(tmp_path) == earlier
    with pytest.raises(Cancelled):
        result.save(tmp_path / "a" / "b", cancel=Token("_write_maps", 2))
    assert list(tmp_path.iterdir()) == [folder]


def test_no_part_of_saving_begins_after_a_cancel():
    last = threading.Event()

    def cancelled():
        raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        _side_by_side(lambda: last.wait(1), cancelled, last.set)
    assert not last.is_set()


def test_a_pdf_is_given_up_between_its_pages(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure
    pages = "LiverFibrosisStagingLib.report.pdf.pdf_pages"
    monkeypatch.setattr(pages, lambda *_: [figure(), figure()])
    token, file = Token(), tmp_path / "report.pdf"
    write_pdf(file, SimpleNamespace(headline=""), (), token)
    assert token.asked["_pdf"] == 2
    file.unlink()
    for number in (1, 2):
        with pytest.raises(Cancelled):
            write_pdf(file, SimpleNamespace(headline=""), (), Token("_pdf", number))
        assert not file.exists()


@pytest.fixture(scope="module")
def from_dicom(tiny, abdomen, tmp_path_factory):
    """A result whose CT was read from DICOM, and the files."""
    folder = tmp_path_factory.mktemp("dicom") / "series"
    (ct, *masks), made = abdomen, {"0020|0052": "1.2.3.9", "0020|000d": "1.2.3"}
    ct = read_ct(write_slices(folder, ct, made))
    return stage(ct, *masks, tiny, any_phase=True), source_files(ct)


@pytest.mark.parametrize("package", ["matplotlib", "highdicom"])
def test_saving_does_not_wait_for_what_cannot_be_interrupted(
    package, from_dicom, tmp_path, monkeypatch
):
    pytest.importorskip(package)
    begun, go_on, cancel = threading.Event(), threading.Event(), threading.Event()

    def endless(*_):
        begun.set()
        assert go_on.wait(60)
        raise ValueError

    replaced = {"matplotlib": "report.pdf.pdf_pages", "highdicom": "dicom_output.writing.report"}
    monkeypatch.setattr(f"LiverFibrosisStagingLib.{replaced[package]}", endless)
    before, (result, files) = set(threading.enumerate()), from_dicom
    threading.Thread(target=lambda: begun.wait(60) and cancel.set()).start()
    with pytest.raises(Cancelled):
        result.save(
            tmp_path / "out",
            report=package == "matplotlib",
            dicom=files if package == "highdicom" else None,
            cancel=cancel,
        )
    assert not go_on.is_set() and not (tmp_path / "out").exists()
    go_on.set()
    no_thread_more_than(before)


def test_dicom_is_given_up_between_its_objects(from_dicom, tmp_path):
    pytest.importorskip("highdicom")
    token, (result, files) = Token(), from_dicom
    result.write_dicom(tmp_path, files, token)
    assert (token.asked["objects"], token.asked["write_dicom"]) == (3, 3)
    for question in (("objects", 1), ("objects", 2), ("objects", 3), ("write_dicom", 1)):
        (folder := tmp_path / "-".join(map(str, question))).mkdir()
        with pytest.raises(Cancelled):
            result.write_dicom(folder, files, Token(*question))
        assert not list(folder.iterdir())


def test_a_longer_scan_is_asked_more_often(run, abdomen, tmp_path):
    short, long = Token(), Token()
    run(short).save(tmp_path / "short", cancel=short)
    run(long, 2).save(tmp_path / "long", cancel=long)
    edge_pieces(*abdomen[:2], 110.0, long)
    for step in (
        *("lowest_and_highest", "_voxels_sha256"),
        *("_voxels_on_ct", "_write_maps", "_write_organs"),
    ):
        assert long.asked[step] >= 1.7 * short.asked[step] >= 30, step
    assert long.asked["_slices"] >= 1.7 * short.asked["_slices"]
    # One question for each slice of a coarse grid, and for each slab of the liver.
    assert short.asked["linear"] >= 100 and long.asked["edge_pieces"] >= 30


def test_each_file_of_a_dicom_folder_is_a_moment_to_cancel(abdomen, tmp_path):
    ct, token = abdomen[0], Token()
    folder = write_slices(tmp_path / "series", ct)
    assert read_ct(folder, token).GetSize() == ct.GetSize()
    assert token.asked["files_of"] == ct.GetSize()[2]
    with pytest.raises(Cancelled):
        read_ct(folder, Token("files_of", 20))


def test_reading_is_left_to_its_thread_and_its_image_is_dropped():
    go_on, cancel, images = threading.Event(), threading.Event(), []

    def read():
        cancel.set()
        assert go_on.wait(60)
        made = image(np.zeros((2, 2, 2)))
        images.append(weakref.ref(made))
        return made

    before = set(threading.enumerate())
    with pytest.raises(Cancelled):
        cancellable(read, cancel)
    assert not images  # it still reads
    assert cancellable(lambda: 7, threading.Event()) == 7  # and holds up nobody
    go_on.set()
    no_thread_more_than(before)
    gc.collect()
    assert [each() for each in images] == [None]


def test_an_error_of_reading_is_passed_on():
    def fail():
        raise KeyError("a")

    with pytest.raises(KeyError):
        cancellable(fail, threading.Event())
