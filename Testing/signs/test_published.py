"""The published values: every one has a source, and damaged files are refused."""

import json

import pytest
from conftest import ROOT

from LiverFibrosisStagingLib.errors import StagingError
from LiverFibrosisStagingLib.imaging.dicom_series import PORTAL_VENOUS
from LiverFibrosisStagingLib.resources import published_signs_path
from LiverFibrosisStagingLib.signs.published import published_signs, read_published_signs


@pytest.fixture
def tables():
    return json.loads(published_signs_path().read_text(encoding="utf-8"))


def read(tables, folder):
    path = folder / "signs.json"
    path.write_text(json.dumps(tables), encoding="utf-8")
    return read_published_signs(path)


def test_every_row_has_a_source_with_citation_cohort_and_technique(tables):
    published = published_signs()
    rows = [*published.groups, *published.intervals, *published.cutoffs, *published.accuracies]
    assert len(rows) == sum(
        len(tables[name]) for name in ("groups", "intervals", "cutoffs", "accuracies")
    )
    for row in rows:
        source = row.source
        assert source.citation and source.cohort and source.technique and source.n > 0
        assert source.link.startswith("https://")
    assert {row.source.key for row in rows} == set(published.sources), "a source without a row"


@pytest.mark.parametrize(
    ("sign", "source", "expected"),
    [
        (
            "spleen_volume_ml",
            "10.1007/s00330-016-4648-0",
            {
                "F0": (215, 89),
                "F1": (295, 153),
                "F2": (292, 197),
                "F3": (510, 403),
                "F4": (791, 450),
            },
        ),
        ("liver_volume_ml", "10.1007/s00330-016-4648-0", {"F0": (1674, 320), "F4": (1631, 691)}),
        (
            "lsvr",
            "10.1007/s00330-016-4648-0",
            {
                "F0": (0.26, 0.06),
                "F1": (0.25, 0.08),
                "F2": (0.33, 0.12),
                "F3": (0.39, 0.15),
                "F4": (0.56, 0.30),
            },
        ),
        (
            "lsvr",
            "10.1097/RCT.0000000000000389",
            {"no cirrhosis": (0.27, 0.07), "cirrhosis": (0.55, 0.29)},
        ),
        (
            "nodularity_mm10",
            "scholars.duke.edu",
            {"F0-F1": (2.26, 0.44), "F2": (2.35, 0.37), "F3": (2.42, 0.38), "F4": (3.19, 0.89)},
        ),
    ],
)
def test_groups_are_those_of_the_publication(sign, source, expected):
    found = {
        group.group: (group.mean, group.sd)
        for group in published_signs().groups
        if group.sign.key == sign and source in group.source.link
    }
    assert set(found) == set(expected)
    for group, values in found.items():  # some are given with another digit
        assert values == pytest.approx(expected[group], abs=0.51 if sign.endswith("_ml") else 0.005)


def test_groups_sum_to_their_cohort():
    published = published_signs()
    for sign, source in (
        ("spleen_volume_ml", "pickhardt_2017"),
        ("lsvr", "pickhardt_2017"),
        ("lsvr", "furusato_hunt_2016"),
        ("nodularity_mm10", "nodularity_hcv"),
    ):
        groups = [g for g in published.groups if (g.sign.key, g.source.key) == (sign, source)]
        assert sum(group.n for group in groups) == published.sources[source].n


def test_intervals_cutoffs_and_skew():
    published = published_signs()
    limits = {interval.sign.key: interval for interval in published.intervals}
    assert (limits["spleen_volume_ml"].low, limits["spleen_volume_ml"].high) == (81.1, 322.0)
    # The source gives the liver-to-spleen ratio, 3.96 to 13.78.
    assert 1 / limits["spleen_liver_ratio"].high == pytest.approx(3.96, abs=0.005)
    assert 1 / limits["spleen_liver_ratio"].low == pytest.approx(13.78, abs=0.01)
    steatosis = [c for c in published.cutoffs if c.sign.key == "liver_mean_hu"]
    assert [(c.value, round(c.sensitivity, 2), round(c.specificity, 2)) for c in steatosis] == [
        (80, 0.86, 0.90),
        (90, 0.95, 0.75),
    ]
    assert {c.phase for c in steatosis} == {PORTAL_VENOUS}
    assert published.signs["spleen_volume_ml"].shape == "log-normal"
    assert "skew" in published.signs["spleen_volume_ml"].remark
    assert not published.signs["nodularity_mm10"].comparable


def test_the_docs_list_every_row_with_its_source():
    rows = (ROOT / "docs" / "signs.md").read_text(encoding="utf-8").splitlines()

    def listed(source, *cells):
        found = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
        link = f"[{source.name}]({source.link})"
        assert any(link in row and all(map(row.__contains__, cells)) for row in found), cells

    published = published_signs()
    for group in published.groups:
        listed(group.source, group.group, f"{group.mean:g} ± {group.sd:g}", f"{group.n}")
    for interval in published.intervals:
        listed(interval.source, interval.group, f"{interval.low:g} to {interval.high:g}")
    for cutoff in published.cutoffs:
        shares = (f"{100 * share:.1f} %" for share in (cutoff.sensitivity, cutoff.specificity))
        listed(cutoff.source, cutoff.finding, f"{cutoff.side} {cutoff.value:g}", *shares)
    for accuracy in published.accuracies:
        signs = " and ".join(sign.name for sign in accuracy.signs)
        listed(accuracy.source, signs, accuracy.finding, f"{accuracy.auc:g}", accuracy.set)
    for source in published.sources.values():
        about = " ".join(filter(None, (f"{source.citation}.", source.remark)))
        listed(source, f"{source.n}", source.cohort, source.technique, about)


def test_a_group_may_have_no_published_size(tables, tmp_path):
    tables["groups"][0]["n"] = None
    assert read(tables, tmp_path).groups[0].n is None


@pytest.mark.parametrize(
    ("table", "column", "value", "words"),
    [
        ("groups", "source", "", "source is ''; the key of a source is needed"),
        ("groups", "source", "nobody_1999", "the key of a source"),
        ("groups", "source", None, "the key of a source"),
        ("groups", "sign", "spleen_length", "the key of a sign"),
        ("groups", "group", "F5", "one of 'F0'"),
        ("groups", "mean", 0, "a number above 0"),
        ("groups", "mean", "215", "a number is needed"),
        ("groups", "sd", -1, "a number above 0"),
        ("groups", "sd", float("nan"), "a number"),
        ("groups", "mean", True, "a number"),
        ("groups", "n", 3.5, "a whole number"),
        ("groups", "n", 0, "above 0"),
        ("groups", "n", 100000, "at most as many as in the source"),
        ("intervals", "low", 400, "the lower limit has to come first"),
        ("intervals", "share", 95, "a share above 0 and up to 1"),
        ("cutoffs", "side", "above", "one of 'below'"),
        ("cutoffs", "sensitivity", 81.5, "a share"),
        ("cutoffs", "phase", "", "not empty"),
        ("accuracies", "signs", [], "a list of keys"),
        ("accuracies", "signs", ["spleen_length"], "the key of a sign"),
        ("accuracies", "auc", 1.5, "a share"),
        ("sources", "citation", "", "not empty"),
        ("sources", "link", "10.1007/s00330-016-4648-0", "https://"),
        ("sources", "technique", " ", "text"),
        ("signs", "shape", "gamma", "one of 'normal'"),
        ("signs", "comparable", "yes", "true or false"),
        ("signs", "decimals", -1, "from 0 on"),
    ],
)
def test_impossible_values_are_refused(tables, tmp_path, table, column, value, words):
    tables[table][0][column] = value
    with pytest.raises(StagingError, match=r"signs\.json: ") as refused:
        read(tables, tmp_path)
    assert words in str(refused.value)


def test_missing_and_unknown_columns_tables_and_repeated_rows_are_refused(tables, tmp_path):
    def refused(words, change):
        changed = json.loads(json.dumps(tables))
        change(changed)
        with pytest.raises(StagingError, match=words):
            read(changed, tmp_path)

    refused("groups, row 1: exactly", lambda t: t["groups"][0].pop("source"))
    refused("groups, row 1: exactly", lambda t: t["groups"][0].update(median=200))
    refused("groups, row 2: exactly", lambda t: t["groups"].insert(1, "F0"))
    refused("groups, row 19: repeats", lambda t: t["groups"].append(t["groups"][0] | {"sd": 1}))
    refused("sources, row 7: repeats", lambda t: t["sources"].append(t["sources"][0]))
    refused("the tables signs", lambda t: t.pop("cutoffs"))
    refused("the tables signs", lambda t: t.update(notes=[]))
    refused("cutoffs is not a list", lambda t: t.update(cutoffs=[]))


def test_a_file_that_is_not_json_is_refused(tmp_path):
    for content in (b"{", b"\xff\xfe", b"[]"):
        (tmp_path / "signs.json").write_bytes(content)
        with pytest.raises(StagingError, match="needed"):
            read_published_signs(tmp_path / "signs.json")
    with pytest.raises(StagingError, match="cannot be read"):
        read_published_signs(tmp_path / "none.json")


def test_an_unknown_sign_is_refused():
    with pytest.raises(StagingError, match="'spleen'; one of spleen_volume_ml"):
        published_signs().sign("spleen")
