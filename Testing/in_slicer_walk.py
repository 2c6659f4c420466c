"""The walk of in_slicer.py: the user's actions, the state of the panel, the report."""

import importlib
import shutil
import sys
import threading
import time
import traceback
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import qt
import slicer

ROOT = Path(__file__).resolve().parents[1]
MODULE = "LiverFibrosisStaging"
STAGES = ("F0", "F1", "F2", "F3", "F4")
CONTROLS = ("QPushButton", "QCheckBox", "QComboBox", "ctkSliderWidget", "qMRMLNodeComboBox")
PASSED, FAILED, SKIPPED = "ok", "FAILED", "skipped"


@dataclass(frozen=True)
class Step:
    """A step: its function, its initial state (empty, loaded or staged), whether it computes."""

    run: Callable[["Walk"], None]
    begin: str
    computes: bool

    @property
    def name(self) -> str:
        """The name in the report."""
        return self.run.__name__.replace("_", " ")


STEPS: list[Step] = []


def step(begin: str, computes: bool = True) -> Callable:
    """Decorator: the next step of the walk."""

    def register(run: Callable[["Walk"], None]) -> Callable:
        STEPS.append(Step(run, begin, computes))
        return run

    return register


def check(holds: Any, otherwise: str) -> None:
    """Raise AssertionError with a sentence where something does not hold."""
    if not holds:
        raise AssertionError(otherwise)


class Dialogs:
    """In place of Slicer's dialogs: their texts are recorded, and they are answered at once."""

    def __init__(self, limit: float) -> None:
        self._limit, self._since = limit, None
        self.errors: list[str] = []
        self.questions: list[str] = []
        self.decline = False  # how questions are answered
        self.folder = ""  # what is chosen where a folder is asked for
        self.opened: list[str] = []  # files that were to be opened in the browser
        util = slicer.util
        util.errorDisplay = self._error
        util.infoDisplay = util.warningDisplay = lambda text, *_, **__: None
        util.confirmOkCancelDisplay = util.confirmYesNoDisplay = self._question
        util.messageBox = self._message_box
        util.restart = lambda: self.errors.append("Slicer wants to be started again")
        self._timer = qt.QTimer()
        self._timer.setInterval(500)
        self._timer.connect("timeout()", self._close_others)
        self._timer.start()

    def clear(self) -> None:
        """Clear the recorded texts; questions are answered with yes again."""
        self.errors.clear()
        self.questions.clear()
        self.opened.clear()
        self.decline = False

    def choose_folders(self) -> None:
        """Have `qt.QFileDialog` in the module's files answer with `folder`, and record what they
        open in the browser.
        """

        class Qt:
            QFileDialog = types.SimpleNamespace(getExistingDirectory=lambda *_: self.folder)
            QDesktopServices = types.SimpleNamespace(openUrl=self._open)

            def __getattr__(self, name: str) -> Any:
                return getattr(qt, name)

        for name, module in list(sys.modules.items()):
            if name.startswith(MODULE) and vars(module).get("qt") is qt:
                module.qt = Qt()

    def _error(self, text: str, *_: Any, **__: Any) -> None:
        self.errors.append(text)

    def _question(self, text: str, *_: Any, **__: Any) -> bool:
        self.questions.append(text)
        return not self.decline

    def _open(self, url: Any) -> bool:
        self.opened.append(url.toLocalFile())
        return True

    def _message_box(self, text: str, parent: Any = None, **properties: Any) -> Any:
        box, buttons = qt.QMessageBox, properties.get("standardButtons")
        yes = box.Yes if buttons and buttons & box.Yes else box.Ok
        no = box.No if buttons and buttons & box.No else box.Cancel
        return yes if self._question(text) else no

    def _close_others(self) -> None:
        """Close message boxes of other origin, and other windows that are modal for too long."""
        widget = slicer.app.activeModalWidget()
        if widget is None:
            self._since = None
            return
        self._since = self._since or time.monotonic()
        is_message = widget.className() in ("QMessageBox", "ctkMessageBox")
        if is_message or time.monotonic() - self._since > self._limit:
            text = widget.text if is_message else f"closed after {self._limit:g} s"
            self.errors.append(f"{widget.windowTitle}: {text}")
            widget.close()


class Heartbeat:
    """The longest time that the main thread did not serve a 5 ms timer, and how often it did."""

    def __init__(self) -> None:
        self._timer, self._last, self.longest, self.count = qt.QTimer(), 0.0, 0.0, 0
        self._timer.setInterval(5)
        self._timer.connect("timeout()", self.beat)

    def start(self) -> None:
        """Begin to count."""
        self._last, self.longest = time.monotonic(), 0.0
        self._timer.start()

    def beat(self) -> None:
        """The timer is served."""
        now = time.monotonic()
        self.longest, self._last = max(self.longest, now - self._last), now
        self.count += 1

    def stop(self) -> None:
        """Stop counting; `longest` is in seconds."""
        self.beat()
        self._timer.stop()


class Walk:
    """The open panel and the user's actions."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self.dialogs, self.heartbeat = Dialogs(limit), Heartbeat()
        self.notes: list[str] = []
        self.raised: list[str] = []  # uncaught, in slots and observers
        self.outcomes: list[str] = []
        (folder / "walk.txt").unlink(missing_ok=True)
        sys.excepthook = self._keep_exception
        self._load_module()
        slicer.util.selectModule(MODULE)
        self.panel = slicer.util.getModuleWidget(MODULE)
        self.ui, self.logic = self.panel.ui, self.panel.logic
        self.module = sys.modules[MODULE]
        self.dialogs.choose_folders()
        self._settings = (self.ui.modelPathLineEdit.currentPath, self.ui.threadsSpinBox.value)
        self.ui.modelPathLineEdit.currentPath = ""
        self.settle()

    def close(self) -> None:
        """Leave an empty scene and the user's settings."""
        slicer.mrmlScene.Clear(0)
        self.ui.modelPathLineEdit.currentPath, self.ui.threadsSpinBox.value = self._settings

    def _load_module(self) -> None:
        if not hasattr(slicer.modules, MODULE.lower()):
            factory = slicer.app.moduleManager().factoryManager()
            factory.registerModule(qt.QFileInfo(str(ROOT / MODULE / f"{MODULE}.py")))
            check(factory.loadModules([MODULE]), f"Slicer cannot load {MODULE} from {ROOT}")
            importlib.import_module(MODULE).registerSampleData()  # startup is over
        version = f"{slicer.app.majorVersion}.{slicer.app.minorVersion}"
        self.say(f"Slicer {version}, {slicer.util.modulePath(MODULE)}")

    def _keep_exception(self, kind: type, error: BaseException, trace: Any) -> None:
        self.raised.append("".join(traceback.format_exception_only(kind, error)).strip())
        sys.__excepthook__(kind, error, trace)

    # ------------------------------------------------------------------------ running

    def run(self, steps: list[Step]) -> int:
        """Run steps and report; returns the exit code."""
        for number, each in enumerate(steps, 1):
            self._run(each, number)
        counts = Counter(self.outcomes)
        skipped = f", {counts[SKIPPED]} skipped" if counts[SKIPPED] else ""
        self.say(f"{counts[PASSED]} passed, {counts[FAILED]} failed{skipped}: {self.folder}")
        return 1 if counts[FAILED] else 2 if counts[SKIPPED] else 0

    def _run(self, each: Step, number: int) -> None:
        began, self.notes = time.monotonic(), []
        self.dialogs.clear()
        self.raised.clear()
        self.heartbeat.start()
        try:
            if each.computes and self.lacking():
                outcome, reason = SKIPPED, f"{', '.join(self.lacking())} is not installed"
            else:
                self._begin(each.begin)
                each.run(self)
                check(not self.dialogs.errors, f"unexpected error: {self.dialogs.errors}")
                check(not self.raised, f"raised: {self.raised}")
                outcome, reason = PASSED, "; ".join(self.notes)
        except Exception as error:
            traceback.print_exc()
            outcome = FAILED
            reason = f"{type(error).__name__}: {error} {'; '.join(self.raised)}".strip()
        self.heartbeat.stop()
        self.picture(f"{number:02d}-{each.name.replace(' ', '-')}")
        took = f"{time.monotonic() - began:.1f} s, longest pause {self.heartbeat.longest:.2f} s"
        self.say(f"{outcome:8}{each.name} ({took}){': ' if reason else ''}{reason}")
        self.outcomes.append(outcome)
        if outcome == FAILED:
            slicer.mrmlScene.Clear(0)

    def say(self, line: str) -> None:
        """Print a line, and keep it beside the pictures."""
        print(line, flush=True)
        with open(self.folder / "walk.txt", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def picture(self, name: str) -> None:
        """Save what the main window shows."""
        slicer.app.processEvents()
        slicer.util.forceRenderAllViews()
        path = self.folder / f"{name}.png"
        if not slicer.util.mainWindow().grab().save(str(path)):
            self.say(f"        {path.name} could not be written")

    def wait(self, until: Callable[[], Any], what: str) -> None:
        """Let Slicer and the worker run until a condition holds."""
        end = time.monotonic() + self.limit
        while not until():
            check(time.monotonic() < end, f"{what}: not within {self.limit:g} s")
            slicer.app.processEvents()
            time.sleep(0.01)

    def settle(self) -> None:
        """Let layouts and their animations come to rest."""
        end = time.monotonic() + 0.5
        self.wait(lambda: time.monotonic() > end, "half a second")

    def lacking(self) -> list[str]:
        """What staging needs and is not installed."""
        from LiverFibrosisStagingLib.scene.requirements import missing

        return missing(self.panel.resourcePath("requirements.txt"))

    def _begin(self, begin: str) -> None:
        if begin == "staged" and self.has_result() and self.ui.saveButton.enabled:
            return
        slicer.mrmlScene.Clear(0)
        if begin == "empty":
            return
        self.choose(*self.module.loadSample())
        if begin == "staged":
            self.stage()

    # ------------------------------------------------------------------------ a user's hands

    def choose(self, volume: Any, segmentation: Any) -> None:
        """Choose the inputs in the panel."""
        self.ui.inputVolumeSelector.setCurrentNode(volume)
        self.ui.segmentationSelector.setCurrentNode(segmentation)

    def click(self, name: str, what: str) -> None:
        """Click a button or check box and wait until the panel is idle again."""
        button = getattr(self.ui, name)
        check(button.enabled, f"{name} is disabled: {button.toolTip}")
        button.click()
        self.wait(lambda: not self.busy(), what)

    def stage(self) -> None:
        """Stage what is chosen; a result must be there."""
        self.click("stageButton", "staging")
        check(not self.dialogs.errors, f"refused: {self.dialogs.errors}")
        check(self.has_result(), "staging ended without a result")

    def start_staging(self) -> None:
        """Stage, but only wait until the network is at work."""
        self.ui.stageButton.click()
        self.wait(lambda: self.ui.progressBar.value >= 300, "the network at work")
        check(self.busy(), "staging was over before it could be interrupted")

    def load_ct(self, name: str) -> Any:
        """Load the sample's CT from a file of another name, as a user loads a CT."""
        (source,) = (ROOT / MODULE / "Resources" / "SampleData").glob("*_ct.nii.gz")
        path = self.folder / f"{name}.nii.gz"
        shutil.copyfile(source, path)
        volume = slicer.util.loadVolume(str(path))
        path.unlink()
        self.settle()
        return volume

    # ------------------------------------------------------------------------ what is there

    def busy(self) -> bool:
        """Whether the panel is at work."""
        return not self.ui.progressWidget.isHidden()

    def has_result(self) -> bool:
        """Whether the panel shows a result."""
        return not self.ui.resultWidget.isHidden()

    def volume(self) -> Any:
        """The chosen CT."""
        return self.ui.inputVolumeSelector.currentNode()

    def tips(self, enabled: bool) -> dict[str, str]:
        """Tool tips of the controls that are enabled, or of those that are not."""
        file = ElementTree.parse(self.panel.resourcePath(f"UI/{MODULE}.ui"))
        names = [each.get("name") for each in file.iter("widget") if each.get("class") in CONTROLS]
        widgets = {name: getattr(self.ui, name) for name in names}
        return {name: w.toolTip for name, w in widgets.items() if w.enabled == enabled}

    def check_reasons(self, enabled_tips: dict[str, str]) -> None:
        """Controls that are disabled say why; enabled_tips: what they say while they are not."""
        for name, tip in self.tips(enabled=False).items():
            check(tip and tip != enabled_tips.get(name), f"{name} is disabled without a reason")

    def part(self, part: str) -> Any:
        """The node that is a part of the chosen CT's result."""
        from LiverFibrosisStagingLib.scene.scene_nodes import find_part

        return find_part(self.volume(), part)

    def bars(self) -> list[int]:
        """The five probabilities, in thousandths."""
        return [getattr(self.ui, f"{stage}Bar").value for stage in STAGES]

    def slices(self) -> list[Any]:
        """The logics of the layout's slice views."""
        layout = slicer.app.layoutManager()
        return [layout.sliceWidget(name).sliceLogic() for name in layout.sliceViewNames()]

    def check_views(self, part: str = "bands") -> None:
        """Every slice view shows the chosen CT and over it the map."""
        for logic in self.slices():
            view = logic.GetSliceCompositeNode()
            shown = {"bands": view.GetLabelVolumeID(), "smooth": view.GetForegroundVolumeID()}
            check(view.GetBackgroundVolumeID() == self.volume().GetID(), "a view shows no CT")
            check(self.part(part) is not None, f"the scene holds no {part}")
            check(shown[part] == self.part(part).GetID(), f"a view does not show the {part}")

    def check_refused(self, *words: str) -> None:
        """One error was shown, one sentence with these words; nothing else happened."""
        check(len(self.dialogs.errors) == 1, f"not one error but {self.dialogs.errors}")
        sentence = self.dialogs.errors.pop()
        check("\n" not in sentence.strip(), f"more than a sentence: {sentence}")
        check(all(word in sentence for word in words), f"the sentence lacks {words}: {sentence}")
        check(not self.has_result(), "a result is shown in spite of the refusal")
        self.notes.append(sentence)


def in_scene() -> Counter:
    """How many nodes of which class there are."""
    return Counter(node.GetClassName() for node in slicer.util.getNodesByClass("vtkMRMLNode"))


def of_class(name: str) -> list[Any]:
    """The nodes of just this class."""
    return [node for node in slicer.util.getNodesByClass(name) if node.GetClassName() == name]


def column_of(table: Any, name: str) -> list[str]:
    """A text column of a table node."""
    values = table.GetTable().GetColumnByName(name)
    return [values.GetValue(row) for row in range(table.GetNumberOfRows())]


def at_rest() -> bool:
    """Whether no thread of the module is alive."""
    return not any(MODULE in thread.name for thread in threading.enumerate())
