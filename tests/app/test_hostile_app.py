"""What the application keeps of its visitors is limited. For attacks and load on a running server: make torture."""

import pytest

from aidet.app import server


def test_sessions_whose_events_are_finished_are_forgotten(monkeypatch):
    monkeypatch.setattr(server, "WAITING", 50)
    pending = server.Pending()
    waiting = ["first", *(f"{i}" for i in range(0, 1000, 100))]
    for session in ["first", *(str(i) for i in range(1000))]:
        # As gradio.queueing.Queue does: make an empty set, then add the event; most events finish at once.
        pending[session] = set()
        pending[session].add("event")
        if session not in waiting:
            pending[session].remove("event")
        assert len(pending) <= 50 + 1
    assert set(waiting) <= set(pending), "a session that still waits must be kept"
    assert len(pending["forgotten"]) == 0 and "forgotten" not in pending


def test_gradio_keeps_them_where_they_are_looked_for():
    """Another version of Gradio may use another name; then the server's memory would grow again."""
    gradio = pytest.importorskip("gradio")
    with gradio.Blocks() as page:
        pass
    page.queue()
    assert type(page._queue.pending_event_ids_session) is dict
    for name in ("ANALYTICS_MAX_EVENTS", "ANAYLTICS_CACHE_FREQUENCY"):
        assert isinstance(getattr(page._queue, name), int)
