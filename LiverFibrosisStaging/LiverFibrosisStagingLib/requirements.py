"""Asks for and installs what staging needs beyond what comes with Slicer.

Speaks to Slicer, but only when `ensure` is called: never at import or startup.
"""

import logging
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

from .errors import StagingError

OFFLINE = (
    "Without internet: on a computer that has it, and the same system and Python {python}, run\n"
    "    pip download {quoted} -d wheels\n"
    "copy the folder wheels, and in Slicer's Python console (Ctrl+3) run\n"
    "    slicer.util.pip_install(['--no-index', '--find-links', '/path/to/wheels', {listed}])\n"
    "then click Stage again."
)


class RequirementsError(StagingError):
    """What staging needs could not be installed; `details` say how to do it by hand."""

    def __init__(self, sentence: str, details: str) -> None:
        super().__init__(sentence)
        self.details = details


def missing(path: str | Path) -> list[str]:
    """The lines of a requirements file that are not satisfied."""

    def installed(requirement: Requirement) -> bool:
        try:
            return requirement.specifier.contains(version(requirement.name), prereleases=True)
        except PackageNotFoundError:
            return False

    text = Path(path).read_text(encoding="utf-8")
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not installed(Requirement(line))]


def ensure(path: str | Path) -> None:
    """Install what requirements.txt names, unless it is there; the user is asked first.

    Raises RequirementsError where the user declines or the installation fails.
    """
    lacking = missing(path)
    if not lacking:
        return
    logging.info("Missing: %s", ", ".join(lacking))
    try:
        _install(path, lacking)
    except Exception as error:  # pip, its process and the network fail in many ways
        raise _refusal(lacking, str(error)) from error


def _install(path: str | Path, lacking: list[str]) -> None:
    import slicer
    from slicer.i18n import tr as _

    try:
        from slicer.packaging import load_requirements, pip_ensure  # Slicer 5.12 and later
    except ImportError:
        question = _(
            "Staging needs {names} from the Python Package Index (about 20 MB). Install it now?"
        ).format(names=", ".join(lacking))
        if not slicer.util.confirmOkCancelDisplay(question, _("Liver Fibrosis Staging")):
            raise RuntimeError(_("Installing was declined.")) from None
        slicer.util.pip_install(lacking)
    else:
        pip_ensure(load_requirements(str(path)), requester=_("Liver Fibrosis Staging"))


def _refusal(lacking: list[str], reason: str) -> RequirementsError:
    import platform

    python = ".".join(platform.python_version_tuple()[:2])
    offline = OFFLINE.format(
        python=python,
        quoted=" ".join(f'"{line}"' for line in lacking),
        listed=", ".join(map(repr, lacking)),
    )
    return RequirementsError(
        f"Staging needs {', '.join(lacking)}, which is not installed: the details say how to "
        "install it, also without internet.",
        f"{reason}\n\n{offline}",
    )
