"""A headless Chromium, driven through the pipe of its DevTools protocol, that says which pages ran injected code."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REBOUND = "rebound.example"
"""A name that a page of another site has pointed at this machine."""
FLAGS = [
    f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-proxy-server",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]


class Browser:
    """One tab. Code that a page runs may call `injected(number)`.

    Attributes:
        ran: The numbers that `injected` was called with, since `open`.
        requests: URLs that the network was asked for since `open`, without those that a policy has stopped.
    """

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        start = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'  # where Chromium expects the two pipes
        words = [*FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", start, CHROMIUM, *words],
            pass_fds=(commands, answers),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands)
        os.close(answers)
        self._unread, self._sent, self._session = b"", 0, ""
        self.ran: list[int] = []
        self._requests: dict[str, str] = {}
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.send(f"{domain}.enable")
        self.send("Runtime.addBinding", name="reported")
        source = "globalThis.injected = number => reported(String(number))"
        self.send("Page.addScriptToEvaluateOnNewDocument", source=source)

    @property
    def requests(self) -> list[str]:
        return [url for url in self._requests.values() if not url.startswith(("data:", "blob:"))]

    def send(self, method: str, **params: Any) -> Any:
        """Return the answer to a command, and take note of the events before it."""
        self._sent += 1
        message: dict[str, Any] = {"id": self._sent, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._note(answer.get("method"), answer.get("params", {}))

    def open(self, url: str, ready: str = "document.readyState === 'complete'", timeout: float = 90) -> None:
        """Open a page and wait until a JavaScript expression is true."""
        self.ran.clear()
        self._requests.clear()
        self.send("Page.navigate", url=url)
        self.wait(ready, timeout)

    def wait(self, ready: str, timeout: float = 90) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + timeout
        while not self.value(f"Boolean({ready})"):
            assert time.monotonic() < end, f"never true: {ready}\n{self.value('document.body.innerText')[:2000]}"
            time.sleep(0.1)

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited; None while the page is being replaced."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def _read(self) -> Any:
        while b"\0" not in self._unread:
            block = os.read(self._answers, 1 << 20)
            assert block, "Chromium has ended"
            self._unread += block
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _note(self, event: str | None, params: dict[str, Any]) -> None:
        if event == "Runtime.bindingCalled":
            self.ran.append(int(params["payload"]))
        elif event == "Network.requestWillBeSent":
            self._requests[params["requestId"]] = params["request"]["url"]
        elif event == "Network.loadingFailed" and params.get("blockedReason") == "csp":
            self._requests.pop(params["requestId"], None)
