"""Headless Chromium controlled by chromedriver (W3C WebDriver protocol)."""

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
"""Key of element references in the protocol."""


class Browser:
    """One page."""

    def __init__(self, driver, folder):
        self._base = driver
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={folder}"]}
        always = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._base += "/session/" + self._call("/session", {"capabilities": {"alwaysMatch": always}})["sessionId"]

    def _call(self, path, content=None, method=None):
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._base + path, body, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]

    def open(self, address):
        self._call("/url", {"url": address})

    def find(self, selector):
        return "/element/" + self._call("/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def click(self, selector):
        self._call(self.find(selector) + "/click", {})

    def type(self, selector, text):
        self._call(self.find(selector) + "/value", {"text": text})

    def run(self, script):
        return self._call("/execute/sync", {"script": script, "args": []})

    def wait(self, condition, seconds=30):
        """Until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, f"not after {seconds} s: {condition}"
            time.sleep(0.1)

    def screenshot(self, selector=None):
        """RGB [rows, columns, 3] of the window or of an element."""
        png = base64.b64decode(self._call((self.find(selector) if selector else "") + "/screenshot"))
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def errors(self):
        """Errors on the console of the page."""
        return [entry["message"] for entry in self._call("/se/log", {"type": "browser"}) if entry["level"] == "SEVERE"]

    def close(self):
        self._call("", method="DELETE")


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
