"""What the panel's controls show: texts, tables, and which controls are enabled.

Widgets come in as `ui`, results as summaries (staging.json); nothing is computed or stored here.
"""

import re
import traceback
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from ..dicom_output.writing import FILES as DICOM_FILES
from ..errors import StagingError, WrongPhase
from ..model import read_card
from ..report.summary import ABOUT_POINTS, at_point, point_sentence
from ..resources import default_model_path
from ..result import DICOM_FOLDER, FILES
from ..stages import EXPECTED, GROUPS, STAGES
from . import result_sections
from .mrml import find_segments, is_from_dicom
from .scene_display import Display
from .scene_nodes import find_part
from .suggestions import drawn_on
from .worker import Progress

# What the location map can explain, in the order of the panel's list.
EXPLAINED = (*STAGES, *GROUPS, EXPECTED)


def explained_names() -> list[str]:
    """The texts of the list, in the order of EXPLAINED."""
    groups = {
        "significant": _("Significant fibrosis (F2-F4)"),
        "advanced": _("Advanced fibrosis (F3-F4)"),
        "cirrhosis": _("Cirrhosis (F4) versus F0-F3"),
    }
    return [
        *(_("Stage {stage}").format(stage=stage) for stage in STAGES),
        *(groups[name] for name in GROUPS),
        _("Expected stage (more fibrosis versus less)"),
    ]


def fill_inputs(ui: Any, volume: Any, segmentation: Any, busy: bool) -> None:
    """Show which input is missing and which segments are used, or that a job is running."""
    missing, sentence = volume is None, _("Choose a CT volume to stage.")
    ui.missingLabel.text = sentence
    ui.missingLabel.visible = missing and not busy
    ui.foundLabel.text = _found_text(segmentation or find_part(volume, "organs"), volume)
    ui.progressWidget.visible = busy
    inputs = (ui.inputVolumeSelector, ui.segmentationSelector, ui.segmentsSelector)
    body = (ui.heightSpinBox, ui.weightSpinBox)
    others = (ui.anyPhaseCheckBox, ui.modelPathLineEdit, ui.threadsSpinBox, ui.deviceComboBox)
    for widget in (*inputs, *body, *others):
        _allow(widget, _waiting() if busy else None)
    ui.stageButton.text = _("&Cancel") if busy else _("&Stage")
    if busy:
        _allow(ui.stageButton, None)
        ui.stageButton.toolTip = _("Stop; the scene and earlier files stay as they are.")
    else:
        _allow(ui.stageButton, sentence if missing else None)


def fill_devices(ui: Any, devices: list[str], chosen: str) -> None:
    """Offer devices (`session.DEVICES`), if there are several."""
    names = {
        "cpu": _("Processor"),
        "cuda": _("NVIDIA GPU (CUDA)"),
        "directml": _("GPU (DirectML)"),
        "coreml": _("Apple CoreML"),
    }
    ui.deviceComboBox.addItems([names[device] for device in devices])
    ui.deviceComboBox.setCurrentIndex(devices.index(chosen))
    ui.deviceLabel.visible = ui.deviceComboBox.visible = len(devices) > 1


def offer_any_phase(ui: Any, refused: bool) -> None:
    """Offer to stage a CT that was refused for its phase; for another one, the tick is removed."""
    ui.anyPhaseCheckBox.visible = refused
    if not refused:
        ui.anyPhaseCheckBox.checked = False


def fill_summary(ui: Any, summary: Mapping[str, Any]) -> None:
    """Show a result's summary in the panel's widgets."""
    supported, sections = summary["supported"], result_sections
    ui.stageLabel.text = summary["stage"]
    ui.stageLabel.visible = ui.probabilitiesWidget.enabled = supported
    ui.unsupportedLabel.text = "" if supported else sections.unsupported_html(summary)
    ui.unsupportedLabel.visible = not supported
    _fill_text(ui.attentionLabel, sections.attention_text(summary))
    ui.researchUseLabel.text = summary["research_use"]
    for name, value in {**summary["probabilities"], **summary["scores"]}.items():
        getattr(ui, f"{name}Bar").value = round(1000 * value)
        getattr(ui, f"{name}Value").text = f"{100 * value:.0f} %"
    for name in GROUPS:
        _fill_point(ui, summary, name)
    ui.patternLabel.text = sections.pattern_html(summary)
    ui.measurementsLabel.text, ui.referenceLabel.text = sections.regions_html(summary)
    ui.agreementLabel.text = summary["agreement"]["sentence"]
    ui.signsLabel.text = sections.signs_html(summary)
    ui.checksCollapsibleButton.text = sections.checks_title(summary)
    ui.checksCollapsibleButton.collapsed = not sections.attention_text(summary)
    _fill_text(ui.checksLabel, sections.checks_html(summary))
    _fill_text(ui.warningsLabel, sections.warnings_html(summary))
    ui.behindLabel.text = _provenance_html(summary)
    ui.explainedComboBox.setCurrentIndex(EXPLAINED.index(summary["location_map"]["explained"]))


def _fill_point(ui: Any, summary: Mapping[str, Any], name: str) -> None:
    """Mark a group's operating point on its bar, with yes or no beside it and words in the tip."""
    found, bar, number = at_point(summary, name), getattr(ui, f"{name}Bar"), f"{name}Value"
    getattr(ui, f"{name}Point").visible = found is not None
    tip = _tip_of_use(bar)
    if found is not None:
        thousandths = round(1000 * found["point"])
        bar.layout().setStretch(0, thousandths)
        bar.layout().setStretch(2, 1000 - thousandths)
        answer = _("yes") if found["positive"] else _("no")
        getattr(ui, number).text = f"{getattr(ui, number).text}, {answer}"
        trained = _("The model was trained on: {data}").format(data=summary["model"]["trained_on"])
        tip = f"{tip} {point_sentence(summary, name)} {ABOUT_POINTS} {trained}"
    for part in ("Label", "Bar", "Value"):
        getattr(ui, f"{name}{part}").toolTip = tip


def fill_state(ui: Any, volume: Any, has_summary: bool, at_hand: bool, busy: bool) -> None:
    """Show whether there is a result, and enable the controls for it, or show why not.

    has_summary: the scene contains a result. at_hand: the result itself is in memory, which
    explaining and saving need.
    """
    ui.resultWidget.visible = ui.sectionsWidget.visible = has_summary
    ui.overlayWidget.enabled = has_summary
    ui.emptyLabel.visible = not has_summary
    if volume is None:
        ui.emptyLabel.text = _("No result yet; choose a CT.")
    else:
        ui.emptyLabel.text = _("{name} is not staged yet.").format(name=volume.GetName())
    first = None if has_summary else _("There is no result yet; stage the CT first.")
    again = _(
        "Stage the CT again to use this: the scene stores the result's table and map. The "
        "network's feature maps are kept only for the CT that was staged last, and are not saved "
        "with the scene."
    )
    waiting = _waiting() if busy else None
    sliders, boxes = (ui.opacitySlider, ui.thresholdSlider), (ui.outlineCheckBox, ui.legendCheckBox)
    for widget in (*sliders, *boxes, ui.jumpButton):
        _allow(widget, first)
    for widget, possible in (
        (ui.explainedComboBox, at_hand),
        (ui.saveButton, at_hand),
        (ui.reportButton, at_hand),
        (ui.smoothCheckBox, at_hand or find_part(volume, "smooth") is not None),
    ):
        _allow(widget, first or (None if possible else again) or waiting)
    foreign = _("The CT was not loaded from Slicer's DICOM database.")
    from_dicom = volume is not None and is_from_dicom(volume)
    lacking = first or (None if at_hand else again)
    _allow(ui.dicomButton, lacking or (None if from_dicom else foreign) or waiting)
    compared = find_part(volume, "percentiles_plot") is not None
    _allow(ui.showSignsPlotButton, None if compared else _("No sign has published groups here."))


def display_of(parameters: Any) -> Display:
    """The display settings in the parameter node."""
    return Display(
        opacity=parameters.opacity / 100,
        hidden_below=parameters.threshold / 100,
        smooth=parameters.smooth,
        outline=parameters.outline,
        legend=parameters.legend,
    )


def result_folder(chosen: str, volume: Any) -> Path:
    """The folder for a CT's result: a subfolder of the chosen one, named after the CT.

    The name is valid on Windows, macOS and Linux. A chosen folder that has this name already is
    used itself.
    """
    name = re.sub(r"[^\w.+-]+", "_", volume.GetName())[:80].strip("._") or "CT"
    if re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name):
        name = f"_{name}"
    return Path(chosen) if Path(chosen).name == name else Path(chosen) / name


def question_before_saving(folder: Path) -> str | None:
    """The question before files in a folder are replaced, or None where none would be."""
    written = (*FILES, *DICOM_FILES, *(f"{DICOM_FOLDER}/{name}" for name in DICOM_FILES))
    if not any((folder / name).exists() for name in written):
        return None
    return _("{folder} already contains a result. Replace it?").format(folder=folder)


def error_text(error: BaseException) -> tuple[str, str]:
    """What the user reads about an error: a sentence, and its details."""
    details = "".join(traceback.format_exception(error))
    if isinstance(error, WrongPhase):
        text = _('{refusal} To stage it all the same, tick "Stage in spite of the phase".')
        return text.format(refusal=error), details
    if isinstance(error, StagingError):
        return str(error), getattr(error, "details", details)
    return _("An unexpected error occurred: {error}").format(error=error), details


def progress_text(progress: Progress) -> str:
    """The step, its details if there are any, and the time left where it is known."""
    name, colon, details = progress.step.partition(":")
    step = f"{_(name)}{colon}{details}"
    if progress.seconds_left is None:
        return f"{step} ..."
    seconds = max(1, round(progress.seconds_left))
    return _("{step} ... about {seconds} s left").format(step=step, seconds=seconds)


def card_html(path: str) -> str:
    """The description in a model file (without a path: the shipped one), or the reason why the
    file cannot be used.
    """
    try:
        card = read_card(path or default_model_path())
    except StagingError as error:
        return escape(str(error))
    lines = [
        (_("Name"), card.name),
        (_("Intended use"), card.intended_use),
        (_("Trained on"), card.trained_on),
    ]
    cases = card.training.get("cases_per_stage")
    if cases:
        counts = ", ".join(f"{stage}: {count}" for stage, count in zip(STAGES, cases))
        lines.append((_("Cases"), counts))
    for name, auc in card.training.get("auc", {}).items():
        text = "{value:.2f} ({low:.2f}-{high:.2f})".format(**auc)
        lines.append((_("AUC, {group}").format(group=name), text))
    for key, title in (
        ("evaluated_on", _("Evaluated on")),
        ("date", _("Date")),
        ("code_version", _("Code version")),
    ):
        if key in card.training:
            lines.append((title, str(card.training[key])))
    size = " x ".join(map(str, card.patch_size))
    spacing = " x ".join(f"{step:g}" for step in card.spacing_mm)
    inputs = _("{size} voxels of {spacing} mm, {low:g} to {high:g} HU").format(
        size=size, spacing=spacing, low=card.window_hu[0], high=card.window_hu[1]
    )
    return _definition_html([*lines, (_("Input"), inputs)])


def _allow(widget: Any, reason: str | None) -> None:
    """Enable a widget, or disable it with the reason as its tooltip."""
    tip = _tip_of_use(widget)
    widget.enabled = reason is None
    widget.toolTip = tip if reason is None else reason


def _tip_of_use(widget: Any) -> str:
    """The tooltip in the .ui file, which is remembered before it is replaced."""
    tip = widget.property("toolTipOfUse")
    if tip is None:
        tip = widget.toolTip
        widget.setProperty("toolTipOfUse", tip)
    return tip


def _fill_text(label: Any, text: str) -> None:
    """Show a text; a label without one takes no room."""
    label.text = text
    label.visible = bool(text)


def _waiting() -> str:
    return _("A job is running; wait until it is done, or cancel it.")


def _found_text(segmentation_node: Any, volume_node: Any) -> str:
    """Which segments are used as liver and spleen, or why none are."""
    if segmentation_node is None:
        return _("liver and spleen will be segmented automatically")
    try:
        liver, spleen = (find_segments(segmentation_node, organ) for organ in ("liver", "spleen"))
    except StagingError as error:
        return str(error)
    segmentation = segmentation_node.GetSegmentation()
    names = [
        ", ".join(segmentation.GetSegment(segment_id).GetName() for segment_id in organ)
        for organ in (liver, spleen)
    ]
    if not liver:
        return _('No liver: name a segment "Liver" or set its terminology.')
    if spleen:
        found = _("{liver}; {spleen}").format(liver=names[0], spleen=names[1])
    else:
        found = _("{liver}; no spleen, which the shipped model needs").format(liver=names[0])
    other = drawn_on(segmentation_node)
    if volume_node is None or other in (None, volume_node):
        return found
    return _("{found} (drawn on another CT: {name})").format(found=found, name=other.GetName())


def _provenance_html(summary: Mapping[str, Any]) -> str:
    lines = [
        (_("Model"), summary["model"]["name"]),
        (_("Trained on"), summary["model"]["trained_on"]),
        (_("Staged"), f"{summary['date'][:16].replace('T', ' ')} UTC"),
    ]
    if "ensemble" in summary:
        lines.insert(0, (_("Networks"), _agreement(summary["ensemble"], summary["stage"])))
    return _definition_html(lines)


def _agreement(ensemble: Mapping[str, Any], stage: str) -> str:
    low, high = (f"{100 * end:.0f} %" for end in ensemble["range"][stage])
    return _(
        "{agreeing} of {members} predict {stage}, with probabilities of {low} to {high}"
    ).format(
        stage=stage, low=low, high=high, agreeing=ensemble["agreeing"], members=ensemble["members"]
    )


def _definition_html(lines: list[tuple[str, str]]) -> str:
    return "<br>".join(f"<b>{escape(term)}:</b> {escape(text)}" for term, text in lines)
