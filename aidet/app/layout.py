"""The components of the page and where they stand. Imported with :mod:`aidet.app.page`, never before."""

from pathlib import Path
from typing import Optional

import gradio as gr

from . import cards, examples, service
from .words import LANGUAGES, say


def _heading(value):
    # The "#" of the heading is part of the component, not of the translated text.
    return gr.Markdown(f"# {value}", elem_id="title")


def empty(language: str) -> str:
    """The card before there is a verdict."""
    note = f'<p class="aidet-note">{say(language, "not")}</p>'
    return f'<div class="aidet-card"><p>{say(language, "empty")}</p>{note}</div>'


class Layout:
    """The components of the page; to be made inside ``gradio.Blocks``.

    Parameters
    ----------
    served : service.Service
    language : {"en", "zh"}, optional
        Of the texts before the browser's language is known; default ``en``.
    folder : Path
        Where uploads and examples lie.
    """

    def __init__(self, served: service.Service, language: Optional[str], folder: Path) -> None:
        self.served, self.folder = served, folder
        self.start = language or "en"
        self.texts: list = []  # (component, {property: words key}, values)
        self._head()
        self.examined, self.rows, self.scored = gr.State(None), gr.State([]), gr.State(None)
        with gr.Tabs():
            with self._tab("tab_one"):
                self._one()
            with self._tab("tab_many"):
                self._many()
            with self._tab("tab_history"):
                self._history()
            with self._tab("tab_about"):
                models = ", ".join(f"{m.name} ({m.backend_name})" for m in served.detector.models)
                votes = max((m.views.count for m in served.detector.models if m.views is not None), default=1)
                asked = ("verdict", "batch", "heat", *["localize"] * (served.localizer is not None), "about")
                told = {"models": models, "votes": votes, "calls": " ".join(f"`/{name}`" for name in asked)}
                self._word(gr.Markdown, "about", "value", told)

    def _word(self, kind, key, prop="value", values=None, /, **more):
        """A component with one property whose text changes with the language."""
        component = kind(**{prop: say(self.start, key, **(values or {}))}, **more)
        self.texts.append((component, {prop: key}, values or {}))
        return component

    def _tab(self, key):
        return self._word(gr.Tab, key, "label", id=key)

    def _head(self):
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=260):
                self._word(_heading, "title")
                self._word(gr.Markdown, "intro")
            with gr.Column(scale=1, min_width=230):
                self.language = gr.Radio(
                    [(word, code) for code, word in LANGUAGES.items()],
                    value=self.start,
                    label=" / ".join(say(code, "language") for code in LANGUAGES),
                    container=False,
                    elem_id="language",
                )

    def _one(self):
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=310):
                self._picture()
            with gr.Column(scale=5, min_width=320):
                self.card = gr.HTML(empty(self.start), elem_id="verdict", padding=False)
            with gr.Column(scale=4, min_width=310):
                self._where()
                self.heat = gr.HTML(cards.blank(self.start, "heat_empty"), elem_id="heat", padding=False)
        self._sliders()
        with gr.Tabs():
            with self._tab("votes"):
                self.votes = gr.HTML(elem_id="votes", padding=False)
            with self._tab("stability"):
                self.stability = gr.HTML(elem_id="stability", padding=False)
            with self._tab("traces"):
                self.traces = gr.HTML(elem_id="traces", padding=False)
            with self._tab("metadata"):
                self.metadata = gr.HTML(elem_id="metadata", padding=False)

    def _where(self):
        """A switch from the heat map to the map of the localizer, if there is one."""
        self.located = gr.State(None)
        self.switch = self.where = None
        if self.served.localizer is not None:
            self.switch = self._word(
                gr.Checkbox, "where", "label", value=False, container=False, elem_id="where-switch"
            )
            self.where = gr.HTML(cards.blank(self.start, "where_empty"), elem_id="where", padding=False, visible=False)

    def _picture(self):
        self.image = self._word(
            gr.Image,
            "upload",
            "label",
            type="filepath",
            image_mode=None,
            sources=["upload", "clipboard"],
            height=290,
            buttons=[],
            elem_id="image",
        )
        self.examples = examples.found(self.folder)
        # Gradio removes what is older than ``delete_cache`` says, and the examples stay as long as the page.
        self.image.keep_in_cache.update(str(path) for e in self.examples for path in (e.path, e.thumbnail))
        self._word(gr.Markdown, "examples", elem_id="examples")
        with gr.Row(elem_id="example-row"):
            self.chosen = [
                self._word(gr.Button, e.caption, icon=str(e.thumbnail), elem_classes="aidet-example", min_width=90)
                for e in self.examples
            ]

    def _sliders(self):
        with self._word(gr.Accordion, "settings", "label", open=False, elem_id="settings"):
            bounds = {"minimum": 0, "maximum": 1, "step": 0.005}
            low, high = self.served.unsure
            values = {"threshold": self.served.threshold, "low": low, "high": high}
            self.rule = [
                self._word(gr.Slider, key, "label", value=round(value, 3), elem_id=key, **bounds)
                for key, value in values.items()
            ]
            self.reset = self._word(gr.Button, "reset", size="sm")

    def _many(self):
        self.files = self._word(
            gr.File, "files", "label", file_count="multiple", height=180, elem_id="files", file_types=["image", ".zip"]
        )
        self._word(gr.Markdown, "limits", "value", vars(self.served.limits))
        self.run = self._word(gr.Button, "run", variant="primary", elem_id="run")
        self.summary = gr.Markdown(elem_id="summary")
        self.table = gr.HTML(elem_id="table", padding=False)
        self.link = gr.HTML(elem_id="download", padding=False)
        self._word(gr.Markdown, "not")

    def _history(self):
        self._word(gr.Markdown, "history_help")
        self.past = gr.HTML(elem_id="history", padding=False)
        self.past_link = gr.HTML(elem_id="history-download", padding=False)
        self.clear = self._word(gr.Button, "clear", size="sm")
