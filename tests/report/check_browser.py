"""The page in headless Chromium; not collected by itself, as CI has no browser:

pytest -n 0 tests/report/check_browser.py                    a made report
REPORT=reports/smoke/index.html pytest -n 0 tests/report/check_browser.py

CHROMIUM names the program if it is not `chromium`; SCREENSHOTS a folder for pictures.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from forgetmenot.report import published
from forgetmenot.report.build import build

PAPERS = Path(__file__).parents[2] / "reports" / "papers"


FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
    "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """One tab of headless Chromium, driven through its debugging pipe.

    `events` has everything that the page caused: requests, console, log.
    """

    def __init__(self, program: str, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()

        def pipes() -> None:  # Chromium reads from 3 and writes to 4
            read, write = os.dup(theirs[0]), os.dup(ours[1])
            os.dup2(read, 3)
            os.dup2(write, 4)

        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}"],
            preexec_fn=pipes,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs[0])
        os.close(ours[1])
        self._in, self._out = os.fdopen(theirs[1], "wb", 0), os.fdopen(ours[0], "rb", 0)
        self._rest, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(20)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._in.write(json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == self._number:
                assert "error" not in found, (method, found["error"])
                result: dict[str, Any] = found["result"]
                return result

    def open(self, page: Path, width: int, height: int = 844) -> None:
        """Show a page at a width in pixels and wait until it is loaded."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._receive()
        time.sleep(0.2)
        self.evaluate("1")  # what is still on its way

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return found["result"].get("value")

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Write what is seen, or the whole page, as PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = self._out.read(1 << 16)
            assert part, "Chromium has ended"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        if "method" in found:
            self.events.append(found)
        return found


@pytest.fixture
def page(write_results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if "REPORT" in os.environ:
        return Path(os.environ["REPORT"]).resolve()
    monkeypatch.chdir(tmp_path)
    spec = write_results({"gdn": 0.3, "gdn_attn": 0.9, "gdn_lte": 0.6})
    spec["tables"][0]["published"] = "gated_deltanet.s_niah"
    build(spec, published.read_all(PAPERS), tmp_path / "reports" / "smoke")
    return tmp_path / "reports" / "smoke" / "index.html"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    assert program, "no Chromium here; name one with CHROMIUM=/path/to/it"
    with Browser(program, tmp_path / "profile") as browser:
        yield browser


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_whole_quiet_and_alone(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    requests = {
        event["params"]["request"]["url"]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    }
    asked = {url for url in requests if not url.startswith("data:")}
    assert asked == {page.as_uri()}
    noise = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert [event for event in browser.events if event["method"] in noise] == []
    empty = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
    assert browser.evaluate(empty) == []
    lost = (
        "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href'))"
        ".filter(h => !document.getElementById(h.slice(1)))"
    )
    assert browser.evaluate(lost) == []
    files = browser.evaluate("[...document.links].map(a => a.href).filter(h => !h.includes('#'))")
    assert files
    missing = [url for url in files if not Path(url.removeprefix("file://")).exists()]
    assert missing == []
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    # The page itself never scrolls sideways: wide tables do so inside their frames.
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    # While a frame scrolls, the models' names stay at its left edge.
    lost_names = (
        "[...document.querySelectorAll('.frame')].filter(f => f.scrollWidth > f.clientWidth)"
        ".flatMap(f => { f.scrollLeft = 60; const left = f.getBoundingClientRect().left;"
        "const rows = 'tbody tr:not(.group):not(.reason) > td:first-child';"
        "const names = [...f.querySelectorAll(rows)]"
        ".filter(c => Math.abs(c.getBoundingClientRect().left - left) > 2);"
        "f.scrollLeft = 0; return names.map(c => c.innerText) })"
    )
    assert browser.evaluate(lost_names) == []
    if width == 1280:  # our own tables fit; so may others' and the graph, but need not
        wide = (
            "[...document.querySelectorAll('h3[id^=table-] ~ .frame')]"
            ".filter(f => f.scrollWidth > f.clientWidth).map(f => f.innerText.slice(0, 80))"
        )
        assert browser.evaluate(wide) == []
    small = (
        "[...document.querySelectorAll('p, li, td, figcaption')]"
        ".filter(e => parseFloat(getComputedStyle(e).fontSize) < 12).length"
    )
    assert browser.evaluate(small) == 0
    if "SCREENSHOTS" in os.environ:
        folder = Path(os.environ["SCREENSHOTS"])
        browser.screenshot(folder / f"page-{width}.png")
        for place in ("claims", "tables", "figures", "training", "limits", "dag", "runs"):
            browser.evaluate(f"document.getElementById('{place}').scrollIntoView()")
            browser.screenshot(folder / f"page-{width}-{place}.png")
