"""Headless Chromium for the tests of the report, driven by its DevTools protocol over a pipe.

https://chromedevtools.github.io/devtools-protocol: JSON messages that end with a zero byte, on the
file descriptors 3 and 4 of the browser. No package and no driver is needed for that.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # which root, as in a container, cannot have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
)
LIMIT = 600  # seconds until a browser is taken to hang, also on a busy machine


def find() -> str | None:
    """The browser's path; None without a browser, or where it cannot inherit descriptors."""
    return None if os.name == "nt" else next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page in a browser of its own; what it logs and requests is in `log` and `requests`."""

    def __init__(self, browser: str) -> None:
        self.log: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        self._number = 0
        self._rest = b""
        self._answers: dict[int, dict] = {}
        # The browser's own processes may still write in it for a moment after their end.
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()
        os.set_blocking(self._from, False)
        # The shell moves the two descriptors to the numbers that the browser expects.
        self._process = subprocess.Popen(
            [
                "bash",  # a plain sh knows descriptors up to 9 only
                "-c",
                f'exec "$@" 3<&{to_browser} 4>&{from_browser}',
                "bash",
                browser,
                *OPTIONS,
                f"--user-data-dir={self._profile.name}",
            ],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a file in a window of a size, and wait until it is loaded."""
        self.resize(width, height)
        self.prefer(dark)
        self._loaded = False
        self.send("Page.navigate", url=path.as_uri())
        self._until(lambda: self._read() or self._loaded)

    def resize(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def prefer(self, dark: bool) -> None:
        """The system's colour scheme."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def evaluate(self, script: str):
        """The value of an expression, or of the promise that it is."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        self._until(lambda: self.evaluate(script))

    def key(self, name: str, code: int) -> None:
        """Press a key; `code` is its Windows virtual key code."""
        for kind in ("rawKeyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code
            )

    def wheel(self, selector: str, by: float) -> None:
        """Turn the wheel over the middle of an element."""
        x, y = self.evaluate(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView(); "
            "const b = e.getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.send("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=by)

    def screenshot(self, height: int | None = None) -> bytes:
        """PNG of the whole page, or of its upper part."""
        clip = {**self.send("Page.getLayoutMetrics")["cssContentSize"], "scale": 1}
        clip["height"] = height or clip["height"]
        found = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(found["data"])

    def pdf(self, width: float, height: float) -> bytes:
        """The page, printed on paper of this size in inches."""
        found = self.send(
            "Page.printToPDF",
            paperWidth=width,
            paperHeight=height,
            printBackground=False,
            preferCSSPageSize=False,
        )
        return base64.b64decode(found["data"])

    def send(self, method: str, **params):
        """Send a command and return its result."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        self._until(lambda: self._read() or number in self._answers, pause=0.002)
        answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _read(self) -> None:
        """Take in what the browser has sent."""
        try:
            self._rest += os.read(self._from, 1 << 20)
        except BlockingIOError:
            return
        *messages, self._rest = self._rest.split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._note(message["method"], message["params"])

    def _note(self, event: str, params: dict) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Runtime.exceptionThrown":
            self.log.append(json.dumps(params["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled":
            self.log.append(json.dumps(params["args"]))
        elif event == "Log.entryAdded":
            self.log.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"][:80])

    def _until(self, done, pause: float = 0.02) -> None:
        end = time.monotonic() + LIMIT
        while not done():
            assert self._process.poll() is None, "the browser has ended"
            if time.monotonic() > end:
                raise TimeoutError("the browser hangs")
            time.sleep(pause)

    def close(self) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()
