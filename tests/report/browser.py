"""Opens a page in headless Chromium and reads back what came of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from html import unescape
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
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=10000",
)

# Runs in a copy of the page; what it finds becomes text of the document, which --dump-dom prints. Bokeh's canvases are in
# shadow roots. `then` is JavaScript that acts on the page first, as a reader would.
_PROBE = """
<script>
(async function () {
  const waited = () => document.documentElement.dataset.ready === "yes";
  for (let tries = 0; tries < 200 && !waited(); tries++) await new Promise((done) => setTimeout(done, 25));
  await new Promise((done) => setTimeout(done, 300));
  const found = {};
  %s
  const canvases = [];
  (function walk(node) {
    for (const each of node.querySelectorAll("*")) {
      if (each.tagName === "CANVAS") canvases.push([each.clientWidth, each.clientHeight]);
      if (each.shadowRoot) walk(each.shadowRoot);
    }
  })(document);
  const page = document.scrollingElement;
  Object.assign(found, {
    ready: waited(), width: innerWidth, scroll_width: page.scrollWidth, canvases: canvases, title: document.title,
    resources: performance.getEntriesByType("resource").map((entry) => entry.name.slice(0, 80)),
    background: getComputedStyle(document.body).backgroundColor,
    hacked: Boolean(window.hacked),
    images: [...document.images].map((image) => [image.complete, image.naturalWidth]),
  });
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(found);
  document.body.appendChild(out);
  if (parent !== window) parent.postMessage(out.textContent, "*");
})();
</script>
"""

_FRAME = """<!doctype html><body><iframe src="page.html" width="%d" height="4000" style="border:0"></iframe><script>
addEventListener("message", (message) => {
  const out = document.createElement("pre"); out.id = "probe"; out.textContent = message.data; document.body.appendChild(out);
});
</script></body>"""


def look(page: Path, *, width: int = 1600, dark: bool = False, then: str = "") -> dict[str, Any]:
    """What a reader of ``page`` gets to see; skips the test where there is no Chromium.

    Arguments:
        page: an HTML file.
        width: of the viewport in pixels. A window is never narrower than 500 pixels, so the page is put into a frame.
        dark: whether the reader prefers a dark scheme.
        then: JavaScript run first; it may store into ``found``.

    Returns:
        What the probe found, and ``console``: the lines the page wrote to the console.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on PATH to open the report in")
    with tempfile.TemporaryDirectory() as folder:
        content = page.read_text(encoding="utf-8")
        copy = Path(folder) / "page.html"
        copy.write_text(content.replace("</body>", _PROBE.replace("%s", then) + "</body>"), encoding="utf-8")
        frame = Path(folder) / "frame.html"
        frame.write_text(_FRAME % width, encoding="utf-8")
        answer = subprocess.run(
            [
                program,
                *_FLAGS,
                f"--user-data-dir={folder}/profile",
                f"--window-size={max(width, 500)},3000",
                *(["--blink-settings=preferredColorScheme=0"] if dark else []),
                "--dump-dom",
                (frame if width < 500 else copy).as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    probe = re.search(r'<pre id="probe">(.*?)</pre>', answer.stdout, re.DOTALL)
    assert probe, f"the page did not come to rest:\n{answer.stderr[-2000:]}"
    console = [line for line in answer.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(unescape(probe[1])) | {"console": console}
