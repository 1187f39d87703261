"""A headless Chromium for tests, driven over the DevTools protocol through two pipes, and a command for pictures.

python -m tests.tools.chromium PAGE.html PICTURE.png [--width 1200] [--height 1410] [--dark]
"""

import argparse
import base64
import fcntl
import io
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 60  # seconds that an answer may take, on a machine that has other work too


class Tab:
    """One tab. `events` are all that the browser told of it since it was opened, in their order."""

    def __init__(self, reading: int, writing: int):
        self.reading, self.writing = reading, writing
        self.rest, self.asked, self.session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol, and return what it answers."""
        self.asked += 1
        message: dict[str, Any] = {"id": self.asked, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while (found := self._read()).get("id") != self.asked:
            self.events.append(found)
        assert "error" not in found, (method, found["error"])
        return found["result"]

    def show(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False, still: bool = True) -> None:
        """Load a page in a window of `width` x `height` CSS pixels; `still` for a reader who wants no motion."""
        features = {"prefers-color-scheme": "dark" if dark else "light"}
        features["prefers-reduced-motion"] = "reduce" if still else "no-preference"
        values = [{"name": name, "value": value} for name, value in features.items()]
        self.ask("Emulation.setEmulatedMedia", features=values)
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.ask("Emulation.setDeviceMetricsOverride", **size, mobile=width < 600)
        self.events.clear()
        found = self.ask("Page.navigate", url=page.resolve().as_uri())
        assert "errorText" not in found, (page, found["errorText"])
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression, as JSON holds it."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key that is named as in JavaScript, as a person would."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        code = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35}[key]
        shared = {"key": key, "windowsVirtualKeyCode": code}
        self.ask("Input.dispatchKeyEvent", type="keyDown", text=text, **shared)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **shared)

    def picture(self, whole: bool = False) -> bytes:
        """Return what stands in the window, or the `whole` page, as PNG."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(found["data"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            assert select.select([self.reading], [], [], PATIENCE)[0], f"the browser says nothing for {PATIENCE} s"
            more = os.read(self.reading, 1 << 20)
            assert more, "the browser has ended"
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)


def find_chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_tab(program: str) -> Iterator[Tab]:
    """Yield a tab of a new browser with an empty profile; both go at the end."""
    # Chromium reads commands from 3 and writes answers to 4, so the ends of the pipes are kept out of their way.
    commands, answers = ([fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in os.pipe()] for _ in range(2))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        actions = [(os.POSIX_SPAWN_DUP2, commands[0], 3), (os.POSIX_SPAWN_DUP2, answers[1], 4)]
        actions += [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_RDWR, 0) for stream in (1, 2)]
        command = [program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        child = os.posix_spawn(program, command, os.environ, file_actions=actions, setpgroup=0)
        os.close(commands[0])
        os.close(answers[1])
        try:
            yield Tab(answers[0], commands[1])
        finally:
            os.close(commands[1])
            os.close(answers[0])
            os.killpg(child, signal.SIGTERM)
            _wait(child)


def _wait(child: int, seconds: float = 10) -> None:
    """Wait for the browser to end, and end it by force after some seconds."""
    last = time.monotonic() + seconds
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > last:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=1410)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--whole", action="store_true", help="the page to its end")
    parser.add_argument("--at", metavar="SELECTOR", help="what to scroll to")
    options = parser.parse_args()
    program = find_chromium()
    if program is None:
        raise SystemExit(f"none of {', '.join(NAMES)} is installed")
    with open_tab(program) as tab:
        tab.show(options.page, width=options.width, height=options.height, dark=options.dark)
        if options.at:
            tab.run(f"document.querySelector({json.dumps(options.at)}).scrollIntoView()")
        picture = Image.open(io.BytesIO(tab.picture(options.whole)))
    picture.convert("RGB").quantize(256).save(options.picture, optimize=True)  # a third of the size


if __name__ == "__main__":
    main()
