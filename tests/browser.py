"""A headless Chromium for tests, driven over its debugging protocol with the websocket client that dask brings.

Unlike `--dump-dom` this needs no script in the page, so the page's own content policy stands; and it tells console
messages, network requests and broken pictures as the browser saw them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed; apt-get install chromium runs this test"
)
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--remote-debugging-port=0", "--remote-allow-origins=*"),
)
_STARTS_S, _ANSWERS_S = 60, 60
_LOOK = """(() => {
  const images = [...document.images];
  return {
    width: innerWidth, scroll: document.documentElement.scrollWidth,
    images: images.length, loaded: images.filter(i => i.complete && i.naturalWidth > 0).length,
    tables: Object.fromEntries([...document.querySelectorAll('table')].map(t => [t.id, t.tBodies[0].rows.length])),
    lines: Object.fromEntries([...document.querySelectorAll('figure.chart, figure.small')].map(
      (f, n) => [n + ' ' + f.textContent.trim().slice(0, 40), f.querySelectorAll('polyline').length])),
    sections: [...document.querySelectorAll('h2')].map(h => h.textContent),
    flat: [...document.querySelectorAll('figure svg')].filter(s => s.getBoundingClientRect().height < 40).length,
    ground: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    text: document.body.innerText,
  };
})()"""


@dataclass
class Look:
    """A page as it was shown. seen: what `_LOOK` read; problems: errors and warnings of console and log, failures and
    exceptions; requests: addresses that were asked for besides the page and its data."""

    seen: dict[str, Any]
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Browser:
    """One running Chromium."""

    def __init__(self, port: int) -> None:
        self._port = port

    def look(self, path: Path, *, width: int, dark: bool = False, picture: Path | None = None) -> Look:
        """Opens a file at this width (CSS pixels) in light or dark, and says what is there; picture: a PNG of the whole
        page."""
        return asyncio.run(self._look(path, width, dark, picture))

    async def _look(self, path: Path, width: int, dark: bool, picture: Path | None) -> Look:
        from tornado.websocket import websocket_connect

        asked = urllib.request.Request(f"http://127.0.0.1:{self._port}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(asked, timeout=_ANSWERS_S) as answer:
            address = json.load(answer)["webSocketDebuggerUrl"]
        socket = await websocket_connect(address, max_message_size=2**30)
        out, number, loaded = Look({}), 0, False

        async def tell(method: str, **parameters: Any) -> dict[str, Any]:
            nonlocal number
            number += 1
            await socket.write_message(json.dumps({"id": number, "method": method, "params": parameters}))
            while True:
                message = await read()
                if message.get("id") == number:
                    assert "error" not in message, (method, message["error"])
                    return message["result"]

        async def read() -> dict[str, Any]:
            nonlocal loaded
            text = await asyncio.wait_for(socket.read_message(), _ANSWERS_S)
            assert text is not None, "the browser closed the connection"
            message = json.loads(text)
            loaded |= message.get("method") == "Page.loadEventFired"
            _note(out, message, path)
            return message

        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                await tell(f"{domain}.enable")
            await tell(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
            )
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            await tell("Emulation.setEmulatedMedia", features=[scheme])
            await tell("Page.navigate", url=path.as_uri())
            while not loaded:
                await read()
            await tell("Runtime.evaluate", expression="document.fonts.ready.then(() => 0)", awaitPromise=True)
            found = await tell("Runtime.evaluate", expression=_LOOK, returnByValue=True)
            out.seen = found["result"]["value"]
            if picture is not None:
                size = (await tell("Page.getLayoutMetrics"))["cssContentSize"]
                clip = {"x": 0, "y": 0, "width": width, "height": min(size["height"], 16000), "scale": 1}
                shot = await tell("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
                picture.write_bytes(base64.b64decode(shot["data"]))
            await tell("Page.close")
        finally:
            socket.close()
        return out


def _note(out: Look, message: dict[str, Any], path: Path) -> None:
    """Keeps what a page must not do."""
    method, said = message.get("method"), message.get("params", {})
    if method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
        out.problems.append(json.dumps(said["args"]))
    elif method == "Runtime.exceptionThrown":
        out.problems.append(json.dumps(said["exceptionDetails"]))
    elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
        out.problems.append(said["entry"]["text"])
    elif method == "Network.requestWillBeSent":
        address = said["request"]["url"]
        if not address.startswith("data:") and address.split("#")[0] != path.as_uri():
            out.requests.append(address)
    elif method == "Network.loadingFailed":
        out.problems.append(f"loading failed: {said['errorText']}")


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Starts Chromium with a new profile in the folder, and ends it."""
    with (profile.parent / "chromium.log").open("w") as log:
        process = subprocess.Popen([str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}"], stdout=log, stderr=log)
        try:
            port = profile / "DevToolsActivePort"
            deadline = time.monotonic() + _STARTS_S
            while not (port.is_file() and port.read_text().strip()):
                assert process.poll() is None, (profile.parent / "chromium.log").read_text()[-2000:]
                assert time.monotonic() < deadline, "Chromium did not start"
                time.sleep(0.1)
            yield Browser(int(port.read_text().split()[0]))
        finally:
            process.terminate()
            process.wait(30)
