"""Serving the demo page to its own address only."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from m2d_hub.corpus.index import EmbeddingIndex
from m2d_hub.errors import ConfigError
from m2d_hub.io import require_extra
from m2d_hub.model import M2D

MAX_STORED_BYTES = 1 << 30  # of all uploads
_PORTS = range(7860, 7960)


class Guard:
    """ASGI middleware that refuses requests of other web sites, and uploads beyond the limits.

    A web site whose name resolves to this computer could read the page. Its requests have another Host, or
    another Origin.
    """

    def __init__(self, app: Any, host: str, uploads: Path, max_request_bytes: int) -> None:
        self.app, self.uploads, self.max_request_bytes = app, uploads, max_request_bytes
        self.is_wildcard = host in ("0.0.0.0", "::")  # noqa: S104 - requested by the user
        self.names = {"localhost", socket.gethostname().lower()} if self.is_wildcard else {host.lower()}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        refusal = None if scope["type"] == "lifespan" else self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            status, text = refusal
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": text.encode()})

    def _refusal(self, scope: Any) -> tuple[int, str] | None:
        """Return the HTTP status and text with which a request is refused, or None."""
        headers = [(name, value.decode("latin-1")) for name, value in scope["headers"]]
        hosts, origins = ([value for name, value in headers if name == key] for key in (b"host", b"origin"))
        is_own = len(hosts) == 1 and self._is_own(hosts[0], *scope["server"])
        if not is_own or any(origin != f"http://{hosts[0]}" for origin in origins):
            return 403, "This page answers requests to its own address only."
        if scope.get("method") == "POST":
            length = dict(headers).get(b"content-length", "")
            if not length.isdigit() or int(length) > self.max_request_bytes:
                return 413, "The request is too large, or has no Content-Length."
            stored = sum(file.stat().st_size for file in self.uploads.rglob("*") if file.is_file())
            if scope["path"].endswith("/upload") and stored + int(length) > MAX_STORED_BYTES:
                return 507, "Too many files are stored; try again in an hour."
        return None

    def _is_own(self, host: str, address: str, port: int) -> bool:
        """Return True if a Host header names the address at which a request arrived."""
        try:
            parts = urlsplit(f"//{host}")
            name, given_port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        names = {*self.names, address}
        if ipaddress.ip_address(address).is_loopback:
            names.add("localhost")
        # Behind a router or in a container, the address is another one; an address cannot be rebound.
        return given_port == port and (name in names or (self.is_wildcard and _is_address(name)))


def require_demo() -> None:
    """Raise a ConfigError that names the extra to install if gradio or matplotlib is missing."""
    # Before the import, so that gradio sends nothing and keeps no history.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False")
    require_extra("demo", "the demo page")


def create_server(
    model: M2D, name: str, library: EmbeddingIndex | None, *, host: str = "127.0.0.1", port: int | None = None
) -> tuple[Any, socket.socket]:
    """Build the demo page and bind its port.

    Args:
        model: Model of the page.
        name: Name of the model, for the heading.
        library: Index of a folder in which similar sounds are searched for; None for none.
        host: Address to bind.
        port: Port to bind; None for the first free one from 7860.

    Returns:
        A ``uvicorn.Server``, and the socket to run it with.

    Raises:
        ConfigError: gradio is not installed, or the address cannot be bound.
    """
    require_demo()
    import gradio
    import uvicorn
    from fastapi import FastAPI

    from m2d_hub.demo.page import MAX_FILE_MB, Answers, build_page

    listener = _bind(host, port)
    uploads = tempfile.TemporaryDirectory(prefix="m2d-hub-demo-")
    os.environ["GRADIO_TEMP_DIR"] = uploads.name

    @contextlib.asynccontextmanager
    async def uploads_removed(_: FastAPI) -> AsyncIterator[None]:
        with uploads:  # within the server, since it ends the process on SIGTERM
            yield

    max_file_bytes = MAX_FILE_MB << 20
    app = gradio.mount_gradio_app(
        FastAPI(lifespan=uploads_removed),
        build_page(Answers(model, library), name),
        "/",
        footer_links=[],
        max_file_size=max_file_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    guard = Guard(app, host, Path(uploads.name), max_file_bytes + (1 << 16))
    config = uvicorn.Config(guard, log_level="warning", proxy_headers=False, timeout_graceful_shutdown=1)
    return uvicorn.Server(config), listener


def _bind(host: str, port: int | None) -> socket.socket:
    ports = _PORTS if port is None else [port]
    for candidate in ports:
        with contextlib.suppress(OSError, UnicodeError):
            family, _, _, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address[:2], family=family)
    raise ConfigError(
        f"{host}, port {port or f'{_PORTS[0]} to {_PORTS[-1]}'}, cannot be bound: the port is in use, or the "
        "address is not one of this computer; use another --port or --host."
    )


def url_of(listener: socket.socket) -> str:
    """Return the URL of the page on a bound socket."""
    address, port = listener.getsockname()[:2]
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - replaced
    return f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
