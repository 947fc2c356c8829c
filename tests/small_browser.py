"""Headless Chromium, controlled by WebDriver, for tests of web pages."""

import base64
import io
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import numpy as np
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--window-size=1400,900",
)  # fmt: skip
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""Key of element references in the W3C WebDriver protocol."""


class Browser:
    """One browser window."""

    def __init__(self, driver, folder):
        self._base = driver
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={folder}"]}
        always = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._base += "/session/" + self._ask("/session", {"capabilities": {"alwaysMatch": always}})["sessionId"]

    def _ask(self, path, question=None, method=None):
        body = None if question is None else json.dumps(question).encode()
        request = urllib.request.Request(self._base + path, body, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, address):
        self._ask("/url", {"url": address})

    def find(self, selector):
        return "/element/" + self._ask("/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def click(self, selector):
        self._ask(self.find(selector) + "/click", {})

    def type(self, selector, text):
        self._ask(self.find(selector) + "/value", {"text": text})

    def run(self, script):
        return self._ask("/execute/sync", {"script": script, "args": []})

    def wait(self, condition, seconds=30):
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, f"not after {seconds} s: {condition}"
            time.sleep(0.1)

    def picture(self, selector=None):
        """Screenshot of the window or of an element, RGB [rows, columns, 3]."""
        png = base64.b64decode(self._ask((self.find(selector) if selector else "") + "/screenshot"))
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def complaints(self):
        """Errors in the console of the page."""
        return [entry["message"] for entry in self._ask("/se/log", {"type": "browser"}) if entry["level"] == "SEVERE"]

    def close(self):
        self._ask("", method="DELETE")


@contextmanager
def browsing(folder):
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = next(line.rstrip(".\n").split()[-1] for line in driver.stdout if "on port" in line and "success" in line)
        browser = Browser(f"http://127.0.0.1:{port}", folder)
        yield browser
        browser.close()
    finally:
        driver.terminate()
        driver.wait(10)
