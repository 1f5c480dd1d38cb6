"""A headless Chromium, steered from Python over two pipes, with nothing installed beside it."""

import base64
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time

# What Debian, Ubuntu, Fedora and Google call it.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --remote-debugging-pipe "
    "--disable-background-networking --disable-component-update --disable-sync --hide-scrollbars"
).split()

# The browser reads from file number 3 and writes to 4. Other numbers are taken first, lest one of
# the pipes has one of these.
_START = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for pipe, number in zip(pipes, (3, 4)):
    os.dup2(pipe, number)
    os.close(pipe)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find():
    """Returns the program, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """A browser with one tab; a context manager.

    Args:
        timeout_s: How long any answer may take.
    """

    def __init__(self, *, timeout_s=60):
        self.timeout_s = timeout_s
        self.numbers = itertools.count(1)
        self.rest = b""
        self.session = None

    def __enter__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        reads, self.to_browser = os.pipe()
        self.from_browser, writes = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, str(reads), str(writes), find(), *FLAGS]
            + [f"--user-data-dir={self.profile.name}", "about:blank"],
            pass_fds=(reads, writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(reads)
        os.close(writes)
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self.session = attached["sessionId"]
            self.call("Page.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.to_browser)
        os.close(self.from_browser)
        self.profile.cleanup()

    def call(self, method, **parameters):
        """Calls a method of the DevTools protocol and returns its result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next_message()
            if answer.get("id") == number:
                break
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _next_message(self):
        deadline = time.monotonic() + self.timeout_s
        while b"\0" not in self.rest:
            left = max(0, deadline - time.monotonic())
            ready, _, _ = select.select([self.from_browser], [], [], left)
            part = os.read(self.from_browser, 2**16) if ready else b""
            if ready and not part:
                raise RuntimeError(f"The browser ended with exit code {self.process.wait()}.")
            if not part:
                raise TimeoutError(f"The browser did not answer within {self.timeout_s} s.")
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def evaluate(self, expression):
        """Returns the value of a JavaScript expression, of a promise what it comes to."""
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return result["result"].get("value")

    def open(self, url, *, until="document.readyState === 'complete'"):
        """Goes to a page and waits until a JavaScript expression is true there."""
        self.call("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} && ({until})")

    def wait(self, condition):
        """Waits until a JavaScript expression is true."""
        deadline = time.monotonic() + self.timeout_s
        while not self.evaluate(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"Not true within {self.timeout_s} s: {condition}")
            time.sleep(0.02)

    # ---- as a person does it -----------------------------------------------------------------

    def screen(self, width, height, *, is_phone=False, is_dark=False):
        """Sets the size of the window, whether it is a phone's, and the scheme of colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if is_phone else 1,
            mobile=is_phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=is_phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def drag(self, points, *, finger=False):
        """Draws along points (x, y) of the window, with the mouse or a finger."""
        kinds = ["Pressed", *["Moved"] * (len(points) - 1)]
        for kind, (x, y) in zip(kinds, points, strict=True):
            if finger:
                name = {"Pressed": "touchStart", "Moved": "touchMove"}[kind]
                self.call("Input.dispatchTouchEvent", type=name, touchPoints=[{"x": x, "y": y}])
            else:
                self._mouse(kind, x, y)
        if finger:
            self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        else:
            self._mouse("Released", *points[-1])

    def _mouse(self, kind, x, y):
        self.call(
            "Input.dispatchMouseEvent",
            type=f"mouse{kind}",
            x=x,
            y=y,
            button="left",
            buttons=int(kind != "Released"),
            clickCount=1,
        )

    def press(self, *keys):
        """Presses keys, one after the other; names as in JavaScript's `event.key`."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def screenshot(self, path):
        """Writes a picture of the whole page, a .png file."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        pathlib.Path(path).write_bytes(base64.b64decode(data))
