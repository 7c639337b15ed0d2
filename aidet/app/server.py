"""Starting the application: a private upload folder, no telemetry, headers that forbid requests to other hosts."""

import atexit
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Union

from ..errors import UserError
from . import uploads

# The browser loads nothing from and sends nothing to any other host, whatever a component of the page attempts.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
PLAIN = (b"content-type", b"text/plain")
EVENT = re.compile(r"/gradio_api/call/(?:v2/)?[^/=]+/([^/]+)$")  # the answer of a call
PYTHON = (3, 10)
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "socks_proxy")
SESSIONS = 200  # maximum number of sessions whose history and settings are kept; the oldest are dropped first
WAITING = 2000  # maximum number of sessions whose unfinished events are kept; Gradio keeps messages of as many


class Guard:
    """ASGI middleware: sets security headers and blocks requests to other hosts through Gradio's file route.

    Parameters
    ----------
    app : ASGI application
    pending : dict of str to set, optional
        Gradio's events by session whose answers were not fetched yet. A request for the answer of any other is refused:
        Gradio would let it wait for ever, or break the connection.
    """

    def __init__(self, app: Any, pending: Optional[Dict[str, Any]] = None) -> None:
        self.app, self.pending = app, pending

    async def __call__(self, scope: Dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].lower()
        # Gradio streams any http address given to this route, which would make the server an open proxy.
        refused = "/proxy=" in path or ("/file=" in path and "://" in path.replace(":/", "://"))

        started = False

        async def guarded(message):
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        event = EVENT.search(path) if scope["method"] == "GET" else None
        if event is not None and self.pending is not None and not any(event[1] in own for own in self.pending.values()):
            await guarded({"type": "http.response.start", "status": 404, "headers": [PLAIN]})
            body = b"no such event, or its answer was fetched already; make the call again"
            await guarded({"type": "http.response.body", "body": body})
            return

        if refused:
            await guarded({"type": "http.response.start", "status": 403, "headers": []})
            await guarded({"type": "http.response.body", "body": b"refused"})
            return
        try:
            await self.app(scope, receive, guarded)
        except Exception as error:  # what Gradio's routes raise on malformed requests
            if started:
                raise
            print(f"refused {scope['method']} {path[:100]!r}: {type(error).__name__}", file=sys.stderr, flush=True)
            await guarded({"type": "http.response.start", "status": 400, "headers": [PLAIN]})
            await guarded({"type": "http.response.body", "body": b"this request makes no sense here"})


class Pending(dict):
    """Gradio's unfinished events (sets of ids) by session, without the sessions that have none.

    Gradio drops a session's set when its connection breaks, but not when all its events are finished; and every call
    of the HTTP interface is a separate session.
    """

    def __setitem__(self, session, events):
        super().__setitem__(session, events)
        if len(self) > WAITING:
            for old in [s for s, left in self.items() if not left and s != session]:
                del self[old]

    def __missing__(self, session):
        return set()


def prepare() -> str:
    """Set Gradio's environment before it is imported; returns the private folder for all uploads."""
    folder = tempfile.mkdtemp(prefix="aidet-app-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ.update(
        GRADIO_TEMP_DIR=folder,
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_RUN_HISTORY="False",
        GRADIO_ALLOWED_PATHS="",
        # By default Gradio keeps the times of 10,000 events and tabulates them after each event; this is not used here.
        GRADIO_ANALYTICS_MAX_EVENTS="100",
        GRADIO_ANALYTICS_CACHE_FREQUENCY=str(10**9),
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
    )
    # Gradio requests its own address once at startup, which must not go through a system proxy, and its HTTP client
    # does not start at all with a SOCKS proxy. Nothing else is ever requested, so no proxy is needed.
    for name in [n for n in os.environ if n.lower() in PROXIES]:
        del os.environ[name]
    return folder


def require_gradio() -> None:
    """Raise a :class:`UserError` unless Gradio 6 can be used."""
    from ..runtime import version_of

    if sys.version_info < PYTHON:
        found = ".".join(map(str, sys.version_info[:2]))
        raise UserError(f"the application needs Python 3.10 or newer, this is {found}; infer.py works here")
    version = version_of("gradio")
    if version is None or int(version.split(".")[0]) != 6:
        found = "which is not installed" if version is None else f"found {version}"
        raise UserError(f"the application needs Gradio 6, {found}; run: pip install 'aidet[onnx]'")


def serve(
    checkpoints: Sequence[Union[str, Path]],
    host: str = "127.0.0.1",
    port: int = 7860,
    language: Optional[str] = None,
    limits: Optional[uploads.Limits] = None,
    **options: Any,
) -> None:
    """Start the application and run it until it is stopped.

    Parameters
    ----------
    checkpoints : list of str or Path
    host : str
        ``0.0.0.0`` makes it accessible from the network; there is no login.
    port : int
        0: any free port.
    language : {"en", "zh"}, optional
    limits : uploads.Limits, optional
    **options
        Options of :class:`aidet.app.service.Service`.

    Raises
    ------
    UserError
        Gradio is missing, the port is in use, or a checkpoint cannot be used.
    """
    require_gradio()
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    check_address(host, port)  # before the models are opened, which takes seconds
    from .service import Service

    served = Service(checkpoints, limits or uploads.Limits(), **options)
    folder = prepare()
    page = launch(served, folder, host, port, language)
    print(f"AIDet: {page.local_url} ({', '.join(served.detector.names)}); Ctrl-C stops it", flush=True)
    stop = threading.Event()
    # A "stop" by a service manager or container must, like Ctrl-C, leave no uploads behind.
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        stop.wait()
    finally:
        page.close(verbose=False)


def launch(served: Any, folder: str, host: str = "127.0.0.1", port: int = 7860, language: Optional[str] = None) -> Any:
    """Build the page and listen.

    Parameters
    ----------
    served : aidet.app.service.Service
    folder : str
        From :func:`prepare`.
    host, port, language :
        See :func:`serve`.

    Returns
    -------
    gradio.Blocks
        ``close()`` stops it.

    Raises
    ------
    UserError
        The server cannot listen on this address.
    """
    from starlette.middleware import Middleware

    from ..parallel import cpus
    from . import page as pages
    from . import style

    page = pages.build(served, language, folder)
    page.queue(default_concurrency_limit=max(2, cpus()), max_size=100)
    pending = None
    if isinstance(getattr(page._queue, "pending_event_ids_session", None), dict):
        pending = page._queue.pending_event_ids_session = Pending(page._queue.pending_event_ids_session)
    try:
        page.launch(
            server_name=f"[{host}]" if ":" in host else host,  # Gradio puts it into an address as it stands
            server_port=port or free_port(host),
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inbrowser=False,
            ssr_mode=False,
            run_history=False,
            mcp_server=False,
            # Gradio keeps a copy of the page for each session, and every call of the HTTP interface is a session. Its
            # default of 10,000 sessions would need several gigabytes.
            state_session_capacity=SESSIONS,
            show_error=True,
            footer_links=[],
            allowed_paths=[],
            blocked_paths=[],
            max_file_size=served.limits.upload_megabytes * uploads.MB,
            theme=pages.theme(),
            css=style.CSS,
            app_kwargs={"middleware": [Middleware(Guard, pending=pending)]},
        )
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error}; choose another --port") from None
    return page


def check_address(host: str, port: int) -> None:
    """Try to listen on an address, for the reason that Gradio does not give.

    Raises
    ------
    UserError
        An unknown name, an address of another machine, or a port that is in use or needs more rights.
    """
    import errno
    import socket

    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {host!r}: {why}; give 127.0.0.1 for this machine alone, or 0.0.0.0 for the network"
        ) from None
    family, kind, protocol, _, address = found[0]
    try:
        with socket.socket(family, kind, protocol) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
            one.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"cannot listen on {host}:{port}: the port is in use; choose another --port") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(
                f"--host {host!r} is no address of this machine; give 127.0.0.1, or 0.0.0.0 for the network"
            ) from None
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port") from None


def free_port(host: str) -> int:
    """A port that is free at this moment."""
    import socket

    family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as s:
        s.bind(address)
        return s.getsockname()[1]
