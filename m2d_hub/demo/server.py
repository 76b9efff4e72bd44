"""Serving the demo page to this computer's own addresses and names only."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from m2d_hub.corpus.index import EmbeddingIndex
from m2d_hub.io import require_extra
from m2d_hub.model import M2D

if TYPE_CHECKING:
    import uvicorn


class Guard:
    """ASGI middleware that refuses the requests of other web sites.

    A web site whose name resolves to this computer could read the page: its requests have that name as Host,
    or another Origin. Addresses are answered, because they do not resolve to others.
    """

    def __init__(self, app: Any, host: str) -> None:
        self.app, self.names = app, {host.lower(), "localhost", socket.gethostname().lower()}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse

        app = self.app
        if scope["type"] != "lifespan" and not self._is_own(scope["headers"]):
            app = PlainTextResponse("This page answers requests to its own address only.", 403)
        await app(scope, receive, send)

    def _is_own(self, headers: list[tuple[bytes, bytes]]) -> bool:
        values = [(name, value.decode("latin-1")) for name, value in headers]
        hosts, origins = ([value for name, value in values if name == key] for key in (b"host", b"origin"))
        if len(hosts) != 1 or any(origin != f"http://{hosts[0]}" for origin in origins):
            return False
        try:
            name = urlsplit(f"//{hosts[0]}").hostname or ""
            return name in self.names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def require_demo() -> None:
    """Raise a ConfigError that names the extra to install if gradio or matplotlib is missing."""
    # Before the import, so that gradio sends nothing and keeps no history.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False")
    require_extra("demo", "the demo page")


def create_server(
    model: M2D, name: str, library: EmbeddingIndex | None, host: str, port: int
) -> uvicorn.Server:
    """Build the demo page of a model called ``name``, and a server for it.

    Similar sounds are searched for in ``library``, unless it is None.
    """
    import gradio
    import uvicorn
    from fastapi import FastAPI

    from m2d_hub.demo.page import MAX_FILE_MB, Answers, build_page

    uploads = tempfile.TemporaryDirectory(prefix="m2d-hub-demo-")
    os.environ["GRADIO_TEMP_DIR"] = uploads.name

    @contextlib.asynccontextmanager
    async def uploads_removed(_: FastAPI) -> AsyncIterator[None]:
        with uploads:  # within the server, since it ends the process on SIGTERM
            yield

    app = gradio.mount_gradio_app(
        FastAPI(lifespan=uploads_removed),
        build_page(Answers(model, library), name),
        "/",
        footer_links=[],
        max_file_size=MAX_FILE_MB << 20,
        ssr_mode=False,
        enable_monitoring=False,
        theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    config = uvicorn.Config(
        Guard(app, host), host, port, log_level="warning", proxy_headers=False, timeout_graceful_shutdown=1
    )
    return uvicorn.Server(config)
