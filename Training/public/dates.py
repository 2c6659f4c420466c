"""Dates of clinical tables."""

import re
from datetime import date, datetime

# Year first; the time of day, as databases export it, may follow if it is midnight.
_ISO = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})(?:[ T]0{2}:00(?::00(?:\.0+)?)?)?")
_DAY_FIRST = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})")
_EITHER_FIRST = re.compile(r"(\d{1,2})[/-](\d{1,2})[/-](\d{4})")


def date_of(text: str, form: str | None = None) -> date:
    """The date written as 2021-03-05, 20210305 or 5.3.2021, or in a format of `strptime`.

    05/03/2021 is a date only with a format, 25/03/2021 also without one. Raises ValueError with
    what is wrong for any other text, and for a date before 1900 or in the future.
    """
    found = _parsed(text, form)
    if found.year < 1900 or found > date.today():
        raise ValueError("a date from 1900 to today is needed")
    return found


def _parsed(text: str, form: str | None) -> date:
    if form is not None:
        try:
            return datetime.strptime(text, form).date()
        except ValueError:
            if not _ISO.fullmatch(text):  # as a cell with a date in Excel is read
                raise ValueError(f"a date in the format {form} is needed") from None
    if match := _ISO.fullmatch(text):
        year, month, day = map(int, match.groups())
    elif match := _DAY_FIRST.fullmatch(text):
        day, month, year = map(int, match.groups())
    elif match := _EITHER_FIRST.fullmatch(text):
        day, month, year = map(int, match.groups())
        if day <= 12 and month <= 12 and day != month:
            raise ValueError("day and month can be exchanged; give --date-format, as in %d/%m/%Y")
        if month > 12:
            day, month = month, day
    else:
        raise ValueError("a date such as 2021-03-05, 20210305 or 5.3.2021 is needed")
    try:
        return date(year, month, day)
    except ValueError:
        raise ValueError("there is no such day") from None
