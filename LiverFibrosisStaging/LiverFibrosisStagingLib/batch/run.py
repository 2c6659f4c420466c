"""Staging of a cohort: one result folder per case, and one table of all cases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CancelToken, StagingError
from ..files import check_writable
from ..model import StagingModel
from ..report.summary import SURFACE_MM
from ..resources import default_model_path
from ..stages import explained_stages
from ..staging import check_surface
from .case_row import case_row
from .cases import read_cases
from .table_files import check_parquet, write_results, write_table_csv


def stage_folder(
    source: str | Path,
    output: str | Path,
    model: StagingModel | str | Path | None = None,
    explain: str = "predicted",
    progress: Callable[[float, str], None] | None = None,
    cancel: CancelToken | None = None,
    pseudonyms: bool = False,
    notify: Callable[[str], None] | None = None,
    surface_mm: float = SURFACE_MM,
    reports: bool = False,
    strict: bool = False,
    any_phase: bool = False,
    parquet: bool = False,
    finished: Callable[[dict[str, Any], int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Stage every case of a folder or a CSV list; returns the rows of `output`/results.csv.

    source: a folder (see `find_cases` for how masks are found) or a CSV file with the columns ct
    and, optionally, liver, spleen, case, segments, height_cm and weight_kg; relative paths start at
    the file's folder. A case that cannot be staged, for whatever reason, is a row with status
    "failed" and the reason. A case with an existing result from the same files, model, options and
    software (`fingerprint.fingerprint`) is not staged again. The table is written after each case.

    No output, including the rows, contains names of patients, or of the inputs' files and folders.
    pseudonyms: give every case a pseudonym, not only those whose names may be those of persons
    (`find_cases`). notify: called with messages for the screen, which can contain such names: the
    case of each pseudonym, and why a case failed. surface_mm, strict, any_phase: as for `stage`.
    reports: write a report for each case, as `StagingResult.save` does; a finished case without one
    is staged again. parquet: write the table as results.parquet too, which needs pyarrow. finished:
    called with each row when its case is finished, the number of finished cases and of all.

    At the end, columns.csv, which explains the table's columns, and summary.html are written.

    Raises StagingError if the source contains no case or the output cannot be written, and
    Cancelled; finished cases are kept.
    """
    explained_stages(explain, 0)
    check_surface(surface_mm)
    if parquet:
        check_parquet()
    source, output = Path(source), Path(output)
    cases = read_cases(source, output, pseudonyms)
    check_writable(output)
    if not isinstance(model, StagingModel):
        model = StagingModel.load(default_model_path() if model is None else model)
    notify = (lambda _: None) if notify is None else notify
    for case in cases:
        if case.pseudonym:
            notify(f"{case.name} is {case.ct}.")
    options = {
        "explain": explain,
        "surface_mm": float(surface_mm),
        "strict": strict,
        "any_phase": any_phase,
    }
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(cases):

        def within(fraction: float, step: str, number: int = number, name: str = case.name) -> None:
            if progress is not None:
                progress((number + fraction) / len(cases), f"{name}: {step}")

        rows.append(case_row(case, output, model, options, within, cancel, notify, reports))
        if finished is not None:
            finished(rows[-1], len(rows), len(cases))
        try:
            write_table_csv(output, rows)
        except StagingError as refusal:  # may be open in a spreadsheet; retried after the next case
            notify(str(refusal))
    write_results(output, rows, parquet)
    return rows
