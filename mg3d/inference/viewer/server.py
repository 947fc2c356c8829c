"""Web server of the viewer: a static page, and a JSON interface for scans by id.

Everything but the static page requires the token of this run, so other users of the machine and other web pages cannot read
scans. Nothing is logged.
"""

import hmac
import json
import re
import secrets
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from mg3d.inference.viewer.session import RequestError, ViewerSession

STATIC = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/niivue.umd.js": ("niivue.umd.js", "text/javascript; charset=utf-8"),
}
"""Path -> file in the folder `static` and its type. No other file is served."""
_HEADERS = {
    "Content-Security-Policy": (  # no other origin; NiiVue embeds its fonts as data URIs
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_MAX_BODY_BYTES = 1_000_000
_SCAN, _NIFTI, _MAP = (re.compile(p) for p in (r"/api/scan/(\d{1,9})", r"/scan/(\d{1,9})\.nii", r"/map/([\w-]{1,40})\.nii"))


class ViewerServer(ThreadingHTTPServer):
    """Server at `address`; set `session`, then call `serve_forever`.

    Args:
        port: 0 chooses a free one.

    Raises:
        ValueError: the address cannot be used.
    """

    daemon_threads = True
    session: ViewerSession

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"cannot listen on {host}:{port} ({str(reason).lower()}). Choose another --port or --host."
            ) from None
        self.address = f"http://{host}:{self.server_port}/#token={self.token}"
        """Browsers do not send the part after #, so the token is in no request line."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print only the type of an unexpected error: its message may identify a patient."""
        kind = sys.exc_info()[0]
        if kind is not None and not issubclass(kind, ConnectionError | TimeoutError):
            print(f"mg3d: a request failed ({kind.__name__})", file=sys.stderr)


class MalformedRequest(RequestError):
    """The body of a request is not of the expected form."""


class _Handler(BaseHTTPRequestHandler):
    server: ViewerServer
    server_version, sys_version = "mg3d", ""
    timeout = 60

    def log_message(self, *_: Any) -> None:
        """Log nothing: requests would show who viewed which scan."""

    def do_GET(self) -> None:
        if self.path in STATIC:
            name, content_type = STATIC[self.path]
            self._send((resources.files("mg3d.inference.viewer") / "static" / name).read_bytes(), content_type)
        else:
            self._respond(self._get)

    def do_POST(self) -> None:
        self._respond(self._post)

    def _respond(self, compute: Callable[[], tuple[bytes, str] | None]) -> None:
        if not hmac.compare_digest(self.headers.get("X-Token", "").encode(), self.server.token.encode()):
            self._fail(HTTPStatus.FORBIDDEN, "open the address printed at the start of the viewer, which contains the token")
            return
        try:
            result = compute()
        except RequestError as error:
            malformed = isinstance(error, MalformedRequest)
            self._fail(HTTPStatus.BAD_REQUEST if malformed else HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, f"the request failed ({type(error).__name__})")
        else:
            if result is None:
                self._fail(HTTPStatus.NOT_FOUND, "not found")
            else:
                self._send(*result)

    def _get(self) -> tuple[bytes, str] | None:
        session = self.server.session
        if self.path == "/api/scans":
            return _json(session.overview())
        if match := _SCAN.fullmatch(self.path):
            return _json(session.scan(int(match[1])))
        if match := _NIFTI.fullmatch(self.path):
            return session.nifti(int(match[1])), "application/octet-stream"
        if match := _MAP.fullmatch(self.path):
            return session.map(match[1]), "application/octet-stream"
        return None

    def _post(self) -> tuple[bytes, str] | None:
        if self.path != "/api/map":
            return None
        try:
            size = int(self.headers.get("Content-Length", 0))
            if not 0 <= size <= _MAX_BODY_BYTES:  # a negative size would be read until the connection ends
                raise ValueError(f"a body of {size} bytes")
            request = json.loads(self.rfile.read(size))
            scan_id, sentence = int(request["scan"]), str(request["sentence"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise MalformedRequest('expected {"scan": id, "sentence": text}') from None
        return _json(self.server.session.ground(scan_id, sentence))

    def _fail(self, status: HTTPStatus, reason: str) -> None:
        self._send(*_json({"error": reason}), status)

    def _send(self, content: bytes, content_type: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(len(content)), **_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _json(value: Any) -> tuple[bytes, str]:
    return json.dumps(value).encode(), "application/json"
