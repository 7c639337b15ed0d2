"""Starting the application: a private folder for uploads, no telemetry, headers that keep the browser at home."""

import atexit
import os
import shutil
import signal
import sys
import tempfile
import threading

from ..errors import UserError
from . import uploads

# Nothing is loaded from, or sent to, any other host, whatever a component of the page would like to do.
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
PYTHON = (3, 10)
SESSIONS = 200  # whose history and settings are kept; the oldest go first
WAITING = 2000  # sessions whose list of unfinished events is kept, as many as Gradio keeps lists of messages of


class Guard:
    """ASGI middleware: security headers, and no fetching of other hosts through Gradio's file route.

    Parameters
    ----------
    app : ASGI application
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].lower()
        # Gradio streams http addresses given to this route, which would make the server a proxy.
        refused = "/proxy=" in path or ("/file=" in path and "://" in path.replace(":/", "://"))

        started = False

        async def guarded(message):
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        if refused:
            await guarded({"type": "http.response.start", "status": 403, "headers": []})
            await guarded({"type": "http.response.body", "body": b"refused"})
            return
        try:
            await self.app(scope, receive, guarded)
        except Exception as error:  # what Gradio's routes raise on requests they were not made for
            if started:
                raise
            print(f"refused {scope['method']} {path[:100]!r}: {type(error).__name__}", file=sys.stderr, flush=True)
            await guarded({"type": "http.response.start", "status": 400, "headers": [(b"content-type", b"text/plain")]})
            await guarded({"type": "http.response.body", "body": b"this request makes no sense here"})


class Pending(dict):
    """Gradio's unfinished events (sets of ids) by session, without the sessions that have none.

    Gradio forgets a session's set when its connection breaks off, never when all its events are finished; and every
    call of the HTTP interface is a session of its own.
    """

    def __setitem__(self, session, events):
        super().__setitem__(session, events)
        if len(self) > WAITING:
            for old in [s for s, left in self.items() if not left and s != session]:
                del self[old]

    def __missing__(self, session):
        return set()


def prepare():
    """Environment of Gradio, before it is imported; gives the private folder that everything uploaded goes to."""
    folder = tempfile.mkdtemp(prefix="aidet-app-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ.update(
        GRADIO_TEMP_DIR=folder,
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_RUN_HISTORY="False",
        GRADIO_ALLOWED_PATHS="",
        # Gradio keeps the times of 10,000 events and after each makes a table of them all, which nobody reads here.
        GRADIO_ANALYTICS_MAX_EVENTS="100",
        GRADIO_ANALYTICS_CACHE_FREQUENCY=str(10**9),
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
    )
    # Gradio asks its own address once at the start; a proxy of the system must not be asked for it.
    for name in ("NO_PROXY", "no_proxy"):
        known = os.environ.get(name)
        os.environ[name] = "127.0.0.1,localhost" + (f",{known}" if known else "")
    return folder


def require_gradio():
    """A clear line where Gradio 6 is not there."""
    from ..runtime import version_of

    if sys.version_info < PYTHON:
        found = ".".join(map(str, sys.version_info[:2]))
        raise UserError(f"the application needs Python 3.10 or newer, this is {found}; infer.py works here")
    version = version_of("gradio")
    if version is None or int(version.split(".")[0]) != 6:
        raise UserError(f"the application needs Gradio 6, found {version}; run: pip install 'aidet[onnx]'")


def serve(checkpoints, host="127.0.0.1", port=7860, language=None, limits=None, **options):
    """Start the application and stay until it is stopped.

    Parameters
    ----------
    checkpoints : list of str or Path
    host : str
        ``0.0.0.0`` opens it to the network; there is no login.
    port : int
        0: any free one.
    language : {"en", "zh"}, optional
    limits : uploads.Limits, optional
    **options
        Of :class:`aidet.app.service.Service`.

    Raises
    ------
    UserError
        Gradio is missing, the port is taken, a checkpoint cannot be used.
    """
    require_gradio()
    from .service import Service

    served = Service(checkpoints, limits or uploads.Limits(), **options)
    folder = prepare()
    page = launch(served, folder, host, port, language)
    print(f"AIDet: {page.local_url} ({', '.join(served.detector.names)}); Ctrl-C stops it", flush=True)
    stop = threading.Event()
    # A service manager's or container's "stop" must leave no uploads behind, as Ctrl-C does not.
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        stop.wait()
    finally:
        page.close(verbose=False)


def launch(served, folder, host="127.0.0.1", port=7860, language=None):
    """Build the page and listen; gives the ``gradio.Blocks``, which ``close()`` stops."""
    from starlette.middleware import Middleware

    from ..engine import cpus
    from . import cards
    from . import page as pages

    page = pages.build(served, language, folder)
    page.queue(default_concurrency_limit=max(2, cpus()), max_size=100)
    if isinstance(getattr(page._queue, "pending_event_ids_session", None), dict):
        page._queue.pending_event_ids_session = Pending(page._queue.pending_event_ids_session)
    try:
        page.launch(
            server_name=host,
            server_port=port or free_port(host),
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inbrowser=False,
            ssr_mode=False,
            run_history=False,
            mcp_server=False,
            # Gradio keeps a copy of the page for each session, and every call of the HTTP interface is one: of its
            # 10,000 some gigabytes would be held.
            state_session_capacity=SESSIONS,
            show_error=True,
            footer_links=[],
            allowed_paths=[],
            blocked_paths=[],
            max_file_size=served.limits.upload_megabytes * uploads.MB,
            theme=pages.theme(),
            css=cards.CSS,
            app_kwargs={"middleware": [Middleware(Guard)]},
        )
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error}; choose another --port") from None
    return page


def free_port(host):
    """A port that nobody listens on at this moment."""
    import socket

    with socket.socket() as s:
        s.bind((host, 0))
        return s.getsockname()[1]
