"""Histological scores as ranges of METAVIR stages; the expected ranges are written by hand."""

import pytest

from public.histology import SCORES, score_named, stages_of

# Levels of each system -> first and last METAVIR stage.
LEVELS = {
    "metavir": "0 00, 1 11, 2 22, 3 33, 4 44, F0 00, f3 33",
    "ishak": "0 00, 1 11, 2 11, 3 22, 4 33, 5 44, 6 44",
    "scheuer": "0 00, 1 11, 2 22, 3 33, 4 44",
    "batts-ludwig": "0 00, 1 11, 2 22, 3 33, 4 44",
    "nash-crn": "0 00, 1 11, 1a 11, 1B 11, 1c 11, 2 22, 3 33, 4 44, F2 22",
}
RANGES = [
    ("metavir", "F2-F3", 2, 3),
    ("metavir", " 2 \u2013 3 ", 2, 3),
    ("metavir", "F1 to F3", 1, 3),
    ("metavir", "\u2265F2", 2, 4),
    ("metavir", ">= 2", 2, 4),
    ("metavir", ">F2", 3, 4),
    ("metavir", "<F2", 0, 1),
    ("metavir", "\u2264 F3", 0, 3),
    ("metavir", "F3/4", 3, 4),
    ("metavir", "F3/F4", 3, 4),
    ("metavir", "stage 2", 2, 2),
    ("metavir", "METAVIR F2", 2, 2),
    ("metavir", "A1F2", 2, 2),
    ("metavir", "F3 A2", 3, 3),
    ("metavir", "A2/F3-F4", 3, 4),
    ("metavir", "Cirrhosis", 4, 4),
    ("ishak", "cirrhosis", 4, 4),
    ("ishak", "no  cirrhosis", 0, 3),
    ("ishak", "no fibrosis", 0, 0),
    ("ishak", "3-4", 2, 3),
    ("ishak", "1-2", 1, 1),
    ("ishak", "2-3", 1, 2),
    ("ishak", "5/6", 4, 4),
    ("ishak", ">=3", 2, 4),
    ("ishak", ">4", 4, 4),
    ("ishak", "<3", 0, 1),
    ("nash-crn", "1a-1c", 1, 1),
    ("nash-crn", "1b/2", 1, 2),
    ("nash-crn", ">1", 2, 4),
    ("nash-crn", ">=1b", 1, 4),
    ("nash-crn", "<1", 0, 0),
]
ODD = [
    *(("metavir", text) for text in ("", "F5", "5", "F", "2.5", "F2-", "F3-F2", "<0", ">4", "1a")),
    *(("metavir", text) for text in ("IV", "?", "F2?", "unknown", "A2", "-1", "F2 F3", "probable")),
    *(("metavir", text) for text in ("not cirrhosis", "F2-F3-F4", "12", "F2A4")),
    ("ishak", "7"),
    ("ishak", "A1F2"),
    ("nash-crn", "1d"),
    ("nash-crn", "2a"),
    ("nash-crn", "1c-1a"),
    ("scheuer", "6"),
]


@pytest.mark.parametrize("name", SCORES)
def test_every_level_has_its_stages(name):
    for entry in LEVELS[name].split(", "):
        text, ends = entry.split()
        assert stages_of(text, SCORES[name]) == tuple(map(int, ends)), text
    for level in SCORES[name].metavir:
        assert f"{level.upper()} " in LEVELS[name].upper()


@pytest.mark.parametrize(("name", "text", "lowest", "highest"), RANGES)
def test_ranges_bounds_and_words(name, text, lowest, highest):
    assert stages_of(text, SCORES[name]) == (lowest, highest)


@pytest.mark.parametrize(("name", "text"), ODD)
def test_anything_else_is_refused(name, text):
    with pytest.raises(ValueError, match="the histology is"):
        stages_of(text, SCORES[name])


@pytest.mark.parametrize(("name", "text"), [("ishak", "3/6"), ("metavir", "F2/4")])
def test_a_stage_of_a_total_is_not_read_as_a_range(name, text):
    with pytest.raises(ValueError, match="which may be one stage of"):
        stages_of(text, SCORES[name])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("METAVIR", "metavir"),
        ("Batts & Ludwig", "batts-ludwig"),
        ("Batts-Ludwig", "batts-ludwig"),
        ("NASH_CRN", "nash-crn"),
        ("Kleiner", "nash-crn"),
    ],
)
def test_names_of_systems(text, name):
    assert score_named(text) is SCORES[name]


def test_an_unknown_system_is_refused():
    with pytest.raises(ValueError, match="the score is 'Knodell'; one of metavir, ishak,"):
        score_named("Knodell")


def test_the_label_says_where_the_stages_are_from():
    assert "Goodman" not in SCORES["metavir"].meaning
    sources = {
        "ishak": "Goodman",
        "scheuer": "Scheuer",
        "batts-ludwig": "1995;19:1409",
        "nash-crn": "Kleiner",
    }
    for name, source in sources.items():
        assert source in SCORES[name].meaning
        assert SCORES[name].meaning.endswith(".")
