"""Opens a page in headless Chromium, acts as a reader would, and reads back what came of it.

Speaks the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/) over a pair of pipes.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)

# Chromium reads commands from descriptor 3 and writes answers to 4.
_LAUNCH = (
    "import fcntl, os, sys\n"
    "ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]\n"
    "os.dup2(ends[0], 3); os.dup2(ends[1], 4)\n"
    "os.execv(sys.argv[3], sys.argv[3:])\n"
)

# Bokeh's canvases are in shadow roots; of its two per plot only the lower one is painted without a selection.
_LOOK = """(() => {
  const canvases = [];
  (function walk(node) {
    for (const each of node.querySelectorAll("*")) {
      if (each.tagName === "CANVAS" && each.width && each.height) {
        const pixels = each.getContext("2d").getImageData(0, 0, each.width, each.height).data;
        if (pixels.some((value, place) => place % 4 === 3 && value)) {
          canvases.push([each.clientWidth, each.clientHeight]);
        }
      }
      if (each.shadowRoot) walk(each.shadowRoot);
    }
  })(document);
  return {
    width: innerWidth, scroll_width: document.scrollingElement.scrollWidth, canvases,
    title: document.title, hacked: Boolean(window.hacked),
    background: getComputedStyle(document.body).backgroundColor,
    images: [...document.images].map((image) => [image.complete, image.naturalWidth]),
  };
})()"""


class Page:
    """One page in one browser.

    Arguments:
        commands, answers: ends of the pipes.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._rest, self._number, self._session = b"", 0, ""
        self.console: list[str] = []
        self.requests: list[str] = []

    def open(self, page: Path, width: int, height: int, dark: bool) -> None:
        """Shows a page and waits until its plots are drawn."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=page.absolute().as_uri())
        deadline = time.monotonic() + 300
        while not self.run("document.documentElement?.dataset.ready === 'yes'"):
            assert time.monotonic() < deadline, f"the page did not come to rest: {self.console}"
            time.sleep(0.05)
        # Two frames later what was asked for has been painted.
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def look(self) -> dict[str, Any]:
        """Sizes, painted canvases, title, background, images."""
        return self.run(_LOOK)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def point_at(self, x: float, y: float) -> None:
        """Moves the mouse there, in pixels of the viewport."""
        for nudge in (0, 1):
            self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x + nudge, y=y)
        time.sleep(0.2)

    def picture(self, path: Path) -> None:
        """Saves the whole page as PNG."""
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._commands, content) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], 60)
            assert ready, "the browser does not answer"
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser has gone"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, content = event.get("method", ""), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.console.append(str(content["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning", "assert"):
            self.console.append(str(content["args"]))
        elif method == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            self.console.append(content["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"][:200])


@contextlib.contextmanager
def opened(page: Path, *, width: int = 1600, height: int = 1000, dark: bool = False) -> Iterator[Page]:
    """Shows ``page`` in a browser of its own; skips the test where there is no Chromium.

    Arguments:
        page: an HTML file.
        width: of the viewport, pixels.
        height: of the viewport, pixels.
        dark: whether the reader prefers a dark scheme.
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no chromium on PATH to open the report in")
    to_browser, from_browser = os.pipe(), os.pipe()
    theirs, ours = (to_browser[0], from_browser[1]), (to_browser[1], from_browser[0])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _LAUNCH,
                *map(str, theirs),
                program,
                *_FLAGS,
                f"--user-data-dir={profile}",
            ],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in theirs:
            os.close(end)
        try:
            shown = Page(*ours)
            shown.open(page, width, height, dark)
            yield shown
        finally:
            for end in ours:  # the browser ends when its pipe does
                os.close(end)
            try:
                browser.wait(10)
            except subprocess.TimeoutExpired:
                browser.kill()
                browser.wait()


if __name__ == "__main__":  # python tests/report/browser.py REPORT.html FOLDER: pictures of it to look at
    for wide in (400, 1600):
        for is_dark in (False, True):
            with opened(Path(sys.argv[1]), width=wide, dark=is_dark) as view:
                view.picture(Path(sys.argv[2]) / f"{wide}-{'dark' if is_dark else 'light'}.png")
