"""The viewer's server: one page with its script, and answers about cases by id.

Only requests that name this server in `Host` are heard, so a stranger's page whose name resolves to loopback reaches nothing.
All but the page itself needs the token of this run, so that neither other users of the machine nor other pages read a scan.
Nothing is logged.
"""

import hmac
import json
import re
import secrets
import sys
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from socket import AF_INET, AF_INET6
from typing import Any

from mg3d.inference.viewer.cases import Cases, Unusable

PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/niivue.umd.js": ("niivue.umd.js", "text/javascript; charset=utf-8"),
}
"""Path -> file of the folder `static` and its type. There is no other file that a path can name."""
_HEADERS = {
    # NiiVue carries its fonts as data URIs; all else comes from here.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LONGEST_QUESTION = 10_000
"""Bytes."""
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_CASE, _SCAN, _MAP = (re.compile(form) for form in (r"/api/case/(\d{1,9})", r"/scan/(\d{1,9})\.nii", r"/map/([\w-]{1,40})\.nii"))


class Viewer(ThreadingHTTPServer):
    """Answers at `address` until `shutdown`; serve with `serve_forever`.

    Args:
        host: what to bind to.
        port: 0 = any that is free.
        names: further names under which the server may be asked for, as a proxy's.

    Raises:
        OSError: it cannot be bound.
    """

    daemon_threads = True

    def __init__(self, cases: Cases, *, host: str = "127.0.0.1", port: int = 0, names: Sequence[str] = ()) -> None:
        self.cases, self.token = cases, secrets.token_urlsafe(24)
        self.address_family = AF_INET6 if ":" in host else AF_INET
        super().__init__((host, port), _Answer)
        written = f"[{host}]" if ":" in host else host
        self.hosts = {f"{name.lower()}:{self.server_port}" for name in (*_LOOPBACK, written)} | {name.lower() for name in names}
        # A browser leaves the port out where it is the usual one.
        self.hosts |= {name.rpartition(":")[0] for name in self.hosts} if self.server_port == 80 else set()
        self.address = f"http://{written}:{self.server_port}/#token={self.token}"
        """What to open. Browsers keep what follows # to themselves, so the token is in no request line."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The kind of an error that was foreseen nowhere, and no more: its words may be a patient's."""
        kind = sys.exc_info()[0]
        if kind is not None and not issubclass(kind, ConnectionError | TimeoutError):
            print(f"mg3d: a request failed ({kind.__name__})", file=sys.stderr)


class _Answer(BaseHTTPRequestHandler):
    server: Viewer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mg3d", ""
    timeout = 60

    def log_message(self, *_: Any) -> None:
        """Nothing: a log of who looked at which scan when is one too many."""

    def do_GET(self) -> None:
        if not self._is_for_us():
            return
        if self.path in PAGE:
            name, kind = PAGE[self.path]
            self._send((resources.files("mg3d.inference.viewer") / "static" / name).read_bytes(), kind)
        elif self._may_ask():
            self._answer(self._get)

    def do_POST(self) -> None:
        if self._is_for_us() and self._may_ask():
            self._answer(self._post)

    def _is_for_us(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) == 1 and hosts[0].lower() in self.server.hosts:
            return True
        self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server answers only under its own address")
        return False

    def _may_ask(self) -> bool:
        given = self.headers.get("X-Token", "").encode()
        if hmac.compare_digest(given, self.server.token.encode()):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, "open the address that was printed when the viewer was started, with its token")
        return False

    def _answer(self, ask: Callable[[], tuple[bytes, str] | None]) -> None:
        try:
            answer = ask()
        except Unusable as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"this could not be answered ({type(error).__name__})")
        else:
            if answer is None:
                self._refuse(HTTPStatus.NOT_FOUND, "there is nothing of that name")
            else:
                self._send(*answer)

    def _get(self) -> tuple[bytes, str] | None:
        cases = self.server.cases
        if self.path == "/api/cases":
            return _json(cases.overview())
        if found := _CASE.fullmatch(self.path):
            return _json(cases.case(int(found[1])))
        if found := _SCAN.fullmatch(self.path):
            return cases.nifti(int(found[1])), "application/octet-stream"
        if found := _MAP.fullmatch(self.path):
            return cases.map(found[1]), "application/octet-stream"
        return None

    def _post(self) -> tuple[bytes, str] | None:
        if self.path != "/api/map":
            return None
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,9}", length) or int(length) > _LONGEST_QUESTION:
            raise Unusable(f"expected a question of at most {_LONGEST_QUESTION} bytes")
        try:
            asked = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise Unusable("expected a question in JSON") from None
        case, sentence = (asked.get(name) for name in ("case", "sentence")) if isinstance(asked, dict) else (None, None)
        if type(case) is not int or not isinstance(sentence, str):
            raise Unusable('expected {"case": number, "sentence": text}')
        return _json(self.server.cases.ground(case, sentence))

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True  # a question that was not read would be taken for the next request
        self._send(*_json({"error": why}), status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), **_HEADERS}
        for name, value in headers.items() | ({("Connection", "close")} if self.close_connection else set()):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _json(value: Any) -> tuple[bytes, str]:
    """Text that is no markup, even where a browser were to take it for a page."""
    text = json.dumps(value)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode(), "application/json"
