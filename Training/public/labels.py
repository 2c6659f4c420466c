"""What a collection's clinical table says about the stage of a patient."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.tables import TableError
from LiverFibrosisStagingLib.stages import StageRange


@dataclass(frozen=True)
class Label:
    """The METAVIR stages that are possible for a patient.

    stages: ANY_STAGE if nothing is known. meaning: one sentence, what the label is and where its
    conversion is from. text: the entry of the table from which the label is, "" if the table has
    none. findings: what else the table says about the liver.
    """

    patient: str
    stages: StageRange
    meaning: str
    text: str
    findings: Mapping[str, str] = field(default_factory=dict, hash=False)


def one_per_patient(
    path: Path, labels: Iterable[tuple[int, Label]], problems: Iterable[tuple[int, str]]
) -> list[Label]:
    """The labels, each patient once, in the order of the table.

    labels, problems: with their lines. A patient may occur again with the same label, as in tables
    with a row per sample. Raises TableError with all problems.
    """
    first: dict[str, tuple[int, Label]] = {}
    found = list(problems)
    for line, label in labels:
        other_line, other = first.setdefault(label.patient, (line, label))
        if other != label:
            found.append(
                (line, f"patient {label.patient} has other values than in line {other_line}.")
            )
    if found:
        raise TableError(path, [f"line {line}: {problem}" for line, problem in sorted(found)])
    if not first:
        raise TableError(path, ["The table has no patient."])
    return [label for _, label in first.values()]
