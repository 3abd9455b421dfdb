"""The explorer as a server of this machine alone."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from threading import Event, Thread
from types import TracebackType
from typing import Self

import numpy as np
from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.server.server import Server
from jinja2 import Environment, Template
from tornado.web import HTTPError, RequestHandler

from skyvec.explorer.scene import Scene
from skyvec.explorer.session import Session
from skyvec_schemas.errors import ConfigurationError, InfrastructureError

_SEARCHES = 1
"""At a time: each takes all cores."""


class Explorer:
    """A running server; ``with`` ends it, and so does `close`."""

    def __init__(self, scene: Scene, *, host: str, port: int, exposed: bool) -> None:
        refuse_others(host, exposed=exposed)
        self.scene = scene
        _compile(scene)
        self._searches = ThreadPoolExecutor(_SEARCHES)
        self._ready, self._problem = Event(), ""
        self._loop: asyncio.AbstractEventLoop | None = None
        # On a machine of many people loopback is theirs, too: who knows the address may look.
        self._prefix = f"/{secrets.token_urlsafe(16)}"
        self._host, self._port, self._exposed = host, port, exposed
        self._thread = Thread(target=self._run, name="skyvec-explorer", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._problem:
            raise InfrastructureError(
                f"cannot listen there ({self._problem})",
                where=f"{host}:{port}",
                remedy="Choose another --port, or 0 for any that is free",
            )

    @property
    def url(self) -> str:
        """Where the page is."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}{self._prefix}/"

    def wait(self) -> None:
        """Serve until the process is interrupted."""
        while self._thread.is_alive():
            self._thread.join(timeout=1)

    def close(self) -> None:
        """Serve no more."""
        if self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._searches.shutdown(wait=False, cancel_futures=True)
        self.scene.cutouts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def _run(self) -> None:
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        server = None
        try:
            server = self._server()
            server.start()
            self._loop.call_soon(self._ready.set)
            self._loop.run_forever()
        except OSError as problem:
            self._problem = problem.strerror or str(problem)
        finally:
            self._ready.set()
            if server is not None:
                server.stop()
            self._loop.close()

    def _server(self) -> Server:
        application = Application(FunctionHandler(self._open))
        self._port = _port_to_bind(self._host, self._port)
        names = {self._host, "127.0.0.1", "localhost"}
        names |= {socket.gethostname(), socket.getfqdn()} if self._exposed else set()
        cutout = (r"/cutout/(\d{1,2})/(\d{1,18})/([^/]+)", _CutoutHandler, {"explorer": self})
        return Server(
            {"/": application}, address=self._host, port=self._port, prefix=self._prefix,
            extra_patterns=[cutout], allow_websocket_origin=sorted(f"{name}:{self._port}" for name in names),
        )  # fmt: skip

    def _open(self, document: Document) -> None:
        document.title = f"{self.scene.vectors.name}: skyvec explorer"
        document.template = page_template()
        document.template_variables.update(script=script(), standalone=False, data="null")
        Session(self.scene, document, self._searches)

    async def picture(self, order: int, pixel: int, object_id: str) -> bytes | str:
        """PNG of an object, or why there is none."""
        which = self.scene.cutouts.find(order, pixel, object_id)
        if which is None:
            return "no such object in this pixel"
        return await asyncio.wrap_future(self.scene.cutouts.ask(np.array([which]))[0])


class _CutoutHandler(RequestHandler):
    """Picture by HEALPix pixel and id; what is asked for names no file."""

    def initialize(self, explorer: Explorer) -> None:
        self._explorer = explorer

    async def get(self, order: str, pixel: str, object_id: str) -> None:
        found = await self._explorer.picture(int(order), int(pixel), object_id)
        if isinstance(found, str):
            raise HTTPError(404, reason="No picture", log_message=found)
        self.set_header("Content-Type", "image/png")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "private, max-age=3600")
        self.write(found)


def refuse_others(host: str, *, exposed: bool) -> None:
    """Only this machine may ask, unless its owner says otherwise.

    Raises
    ------
    ConfigurationError
        If ``host`` is an address by which others reach this machine, or none at all.
    """
    try:
        own = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        own = False
    if not own and not exposed:
        raise ConfigurationError(
            "is not a loopback address: others could read the catalog there",
            where=f"host {host!r}",
            remedy="Leave it out and reach it through `ssh -L`, or add --expose",
        )


def _compile(scene: Scene) -> None:
    """Datashader's kernels are compiled as they are first used, which is not to be at a click."""
    for colour in {None: None, scene.colour: scene.column(scene.colour)}.values():
        for plane in scene.planes.values():
            plane.cloud.draw(plane.fitted(16, 16), colour)


def _port_to_bind(host: str, port: int) -> int:
    """Known before the server binds it, since the origins that it accepts name it; 0: any."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as trial:
        return int(trial.getsockname()[1])


def page_template() -> Template:
    """The page around the planes, served and exported alike."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_text("page.html.j2"))


def script() -> str:
    """What the page does in a browser."""
    return _text("page.js")


def _text(name: str) -> str:
    return resources.files("skyvec.explorer").joinpath(name).read_text(encoding="utf-8")


__all__ = ("Explorer", "page_template", "refuse_others", "script")
