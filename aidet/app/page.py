"""The page and the HTTP interface, in Gradio 6. Imported when the application starts, never before."""

import functools
import os
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import gradio as gr

from .. import images
from ..detector import Verdict
from ..errors import UserError
from ..records import COLUMNS
from . import cards, examples, pictures, service, uploads
from .words import LANGUAGES, language_of, say

HISTORY = 1000  # maximum number of rows that a browser window keeps
HIDDEN = {"api_visibility": "private", "show_progress": "hidden"}


def build(served: service.Service, language: Optional[str] = None, folder: Union[None, str, Path] = None) -> gr.Blocks:
    """Build the page.

    Parameters
    ----------
    served : service.Service
    language : {"en", "zh"}, optional
        Default: the browser's language.
    folder : str or Path, optional
        The only folder from which an input may come. Default: Gradio's upload folder.

    Returns
    -------
    gradio.Blocks
    """
    with gr.Blocks(title="AIDet", analytics_enabled=False, delete_cache=(900, 5400)) as page:
        Page(page, served, language, Path(folder or os.environ["GRADIO_TEMP_DIR"]).resolve())
        interface(served, Path(folder or os.environ["GRADIO_TEMP_DIR"]).resolve())
    return page


def received(payload: Dict[str, Any], folder: Path) -> Tuple[Path, str]:
    """(path, name) of an upload from Gradio.

    Gradio refuses paths outside its upload folder. They are checked again here, because a bug in Gradio would expose
    every file on the server.

    Raises
    ------
    UserError
        The path is outside ``folder`` or is not a file.
    """
    path = Path(payload["path"]).resolve()
    if folder not in path.parents or not path.is_file():
        raise UserError("the file is not one that was uploaded; send it again")
    return path, uploads.safe_name(payload.get("orig_name") or path.name)


def asked_for(request: gr.Request) -> str:
    """The browser's preferred language."""
    return language_of(request.headers.get("accept-language"))


def theme() -> gr.themes.Base:
    """A theme with the fonts of the user's system, so that no font is downloaded."""
    fonts = {"font": ["system-ui", "-apple-system", "Segoe UI", "Noto Sans SC", "Microsoft YaHei", "sans-serif"]}
    return gr.themes.Soft(**fonts, font_mono=["ui-monospace", "monospace"], primary_hue="blue", neutral_hue="slate")


def _heading(value):
    # The "#" of the heading is part of the component, not of the translated text.
    return gr.Markdown(f"# {value}", elem_id="title")


def _columns(language, *more):
    return [say(language, f"column_{c}") for c in (*more, "file", "verdict", "probability", "status")]


def _empty(language):
    note = f'<p class="aidet-note">{say(language, "not")}</p>'
    return f'<div class="aidet-card"><p>{say(language, "empty")}</p>{note}</div>'


class Page:
    """The components of the page and what happens on it.

    Parameters
    ----------
    page : gradio.Blocks
    served, language, folder :
        See :func:`build`.
    """

    def __init__(self, page: gr.Blocks, served: service.Service, language: Optional[str], folder: Path) -> None:
        self.served, self.folder = served, folder
        self.start = language or "en"
        self.texts: list = []  # (component, {property: words key}, values)
        self._head()
        self.examined, self.rows = gr.State(None), gr.State([])
        with gr.Tabs():
            with self._tab("tab_one"):
                self._one()
            with self._tab("tab_many"):
                self._many()
            with self._tab("tab_history"):
                self._history()
            with self._tab("tab_about"):
                models = ", ".join(f"{m.name} ({m.backend_name})" for m in served.detector.models)
                first = served.detector.models[0]
                votes = 1 if first.views is None else first.views.count
                self._word(gr.Markdown, "about", values={"models": models, "votes": votes})
        self._events()
        if language is None:
            page.load(asked_for, None, self.language, **HIDDEN)

    # --- components --------------------------------------------------------------------------------------------------
    def _word(self, kind, key, prop="value", values=None, **more):
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
            with gr.Column(scale=4, min_width=300):
                self.image = self._word(
                    gr.Image,
                    "upload",
                    "label",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=340,
                    buttons=[],
                    elem_id="image",
                )
                shown = examples.files(self.folder)
                if shown:
                    made = gr.Examples(
                        [[str(p)] for p in shown],
                        [self.image],
                        example_labels=[p.stem for p in shown],
                        label=say(self.start, "examples"),
                        api_visibility="private",
                    )
                    self.texts.append((made.dataset, {"label": "examples"}, {}))
            with gr.Column(scale=5, min_width=300):
                self.card = gr.HTML(_empty(self.start), elem_id="verdict")
                with gr.Tabs():
                    with self._tab("votes"):
                        self.votes = gr.HTML(elem_id="votes")
                    with self._tab("stability"):
                        self.stability = gr.HTML(elem_id="stability")
                    with self._tab("heat"):
                        self._word(gr.Markdown, "heat_help")
                        self.heat_button = self._word(gr.Button, "heat_button", elem_id="heat-button", size="sm")
                        self.heat = gr.Image(
                            show_label=False, interactive=False, height=360, elem_id="heat", buttons=[]
                        )
                    with self._tab("traces"):
                        self._word(gr.Markdown, "traces_help")
                        with gr.Row():
                            plain = {"interactive": False, "height": 300, "min_width": 220, "buttons": ["fullscreen"]}
                            self.spectrum = self._word(gr.Image, "spectrum", "label", elem_id="spectrum", **plain)
                            self.residual = self._word(gr.Image, "residual", "label", elem_id="residual", **plain)
                    with self._tab("metadata"):
                        self.metadata = gr.HTML(elem_id="metadata")
                self._sliders()

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
        self._word(gr.Markdown, "limits", values=vars(self.served.limits))
        self.run = self._word(gr.Button, "run", variant="primary", elem_id="run")
        self.summary = gr.Markdown(elem_id="summary")
        self.table = gr.Dataframe(**self._frame(self.start), elem_id="table")
        self.link = gr.HTML(elem_id="download")
        self._word(gr.Markdown, "not")

    def _frame(self, language, *more):
        return {
            "headers": _columns(language, *more),
            "type": "array",
            "interactive": False,
            "wrap": True,
            "max_height": 420,
            "show_label": False,
        }

    def _history(self):
        self._word(gr.Markdown, "history_help")
        self.past = gr.Dataframe(**self._frame(self.start, "time"), elem_id="history")
        self.past_link = gr.HTML(elem_id="history-download")
        self.clear = self._word(gr.Button, "clear", size="sm")

    # --- events ------------------------------------------------------------------------------------------------------
    def _events(self):
        told = [*self.rule, self.language]
        shown = [self.card, self.votes, self.stability, self.metadata]
        history = [self.rows, self.past, self.past_link]
        self.image.change(
            self.on_image,
            [self.image, *told, self.rows],
            [*shown, self.spectrum, self.residual, self.heat, self.examined, *history],
            preprocess=False,
            api_visibility="private",
            show_progress_on=[self.card],
        )
        # One event for all three sliders, so that after several quick moves the result of the last one is shown.
        moves = [slider.change for slider in self.rule]
        gr.on(moves, self.on_rule, [self.examined, *told], shown, trigger_mode="always_last", **HIDDEN)
        self.reset.click(self.on_reset, None, self.rule, **HIDDEN)
        self.heat_button.click(
            self.on_heat, [self.examined, self.language], self.heat, api_visibility="private", show_progress="full"
        )
        self.run.click(
            self.on_batch,
            [self.files, *told, self.rows],
            [self.summary, self.table, self.link, *history],
            preprocess=False,
            api_visibility="private",
            show_progress_on=[self.summary],
        )
        self.clear.click(lambda language: self.history([], language), [self.language], history, **HIDDEN)
        texts = [component for component, _, _ in self.texts]
        self.language.change(
            self.on_language,
            [self.examined, *told, self.rows],
            [*texts, *shown, self.table, self.past, self.past_link],
            **HIDDEN,
        )

    def on_image(
        self, payload: Optional[Dict[str, Any]], threshold: float, low: float, high: float, language: str, rows: list
    ) -> tuple:
        """Score a new image, or clear the page when the image was removed."""
        if payload is None:
            cleared = (_empty(language), "", "", "", None, None, None, None)
            return (*cleared, *self.history(rows, language))
        path, name = told(received)(payload, self.folder)
        record = self.served.verdict(path, name)
        examined = {"record": record, "path": str(path), "findings": service.findings_of(path)}
        views: List[Any] = [None, None]
        if record.ok:
            image = self.served.detector.reading.decode(path)
            views = [pictures.spectrum(image), pictures.residual(image)]
        decided = self.served.decided(record, *self.zone(threshold, low, high))
        return (
            *self.show(examined, threshold, low, high, language),
            *views,
            None,
            examined,
            *self.history(self.add(rows, [decided]), language),
        )

    @staticmethod
    def zone(threshold: float, low: float, high: float) -> Tuple[float, Tuple[float, float]]:
        """Slider values -> threshold and zone; the ends of the zone are swapped if they were moved past each other."""
        return threshold, (min(low, high), max(low, high))

    def show(
        self, examined: Optional[Dict[str, Any]], threshold: float, low: float, high: float, language: str
    ) -> Tuple[str, str, str, str]:
        """The cards of an examined image."""
        if examined is None:
            return _empty(language), "", "", ""
        threshold, unsure = self.zone(threshold, low, high)
        record = self.served.decided(examined["record"], threshold, unsure)
        return (
            cards.verdict(language, record, threshold, unsure, examined["findings"]),
            cards.votes(language, record, threshold),
            cards.stability(language, record, threshold),
            cards.metadata(language, examined["findings"]),
        )

    def on_rule(
        self, examined: Optional[Dict[str, Any]], threshold: float, low: float, high: float, language: str
    ) -> Tuple[str, str, str, str]:
        """Show the new decision on the same scores after a slider was moved."""
        return self.show(examined, threshold, low, high, language)

    def on_reset(self) -> List[float]:
        """Set the sliders to the detector's own threshold and zone."""
        return [round(self.served.threshold, 3), *self.served.unsure]

    def on_heat(self, examined: Optional[Dict[str, Any]], language: str) -> Any:
        """Occlusion map of the examined image."""
        if examined is None or not examined["record"].ok:
            gr.Info(say(language, "empty"))
            return None
        return told(self.served.heat)(examined["path"], examined["record"].path)

    def on_batch(
        self,
        payload: Any,
        threshold: float,
        low: float,
        high: float,
        language: str,
        rows: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:
        """Score many images; Gradio takes the progress bar from the default value."""
        if not payload:
            return (say(language, "no_files"), [], "", *self.history(rows, language))
        items = [told(received)(one, self.folder) for one in payload]
        paths, names = [p for p, _ in items], [n for _, n in items]
        rule = self.zone(threshold, low, high)
        try:
            found = self.served.batch(paths, names, *rule, progress=lambda i, n: progress((i, n)))
        except UserError as error:
            return (str(error), [], "", *self.history(rows, language))
        counts = {k: sum(r.decision == k for r in found) for k in ("generated", "real", "unsure")}
        summary = say(language, "summary", count=len(found), bad=sum(not r.ok for r in found), **counts)
        table = [self.cells(row[1:], language) for row in self.add([], found)]
        link = cards.csv_link(language, cards.score_rows(found), COLUMNS, "scores.csv")
        return (f"**{summary}**", table, link, *self.history(self.add(rows, found), language))

    # --- history -----------------------------------------------------------------------------------------------------
    @staticmethod
    def add(rows: List[list], found: Sequence[Verdict]) -> List[list]:
        """History rows (time, file, decision, probability, status), the new ones first."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        new = [[now, *cards.row(r)] for r in found]
        return [*new, *rows][:HISTORY]

    @staticmethod
    def cells(row: Sequence[str], language: str) -> List[str]:
        """A row with the decision in the page's language."""
        *before, decision, probability, status = row
        return [*before, say(language, decision) if decision else "", probability, status]

    def history(self, rows: List[list], language: str) -> Tuple[List[list], List[list], str]:
        """(state, table, link)."""
        table = [self.cells(row, language) for row in rows]
        link = cards.csv_link(language, rows, ("time", "file", "decision", "probability", "status"), "history.csv")
        return rows, table, link or f"<p>{say(language, 'history_empty')}</p>"

    def on_language(self, examined: Any, threshold: float, low: float, high: float, language: str, rows: Any) -> Any:
        """Show every text of the page in the chosen language."""
        updates = []
        for _, keys, values in self.texts:
            prop, key = next(iter(keys.items()))
            text = say(language, key, **values)
            updates.append(gr.update(**{prop: f"# {text}" if key == "title" else text}))
        shown = self.show(examined, threshold, low, high, language)
        _, table, link = self.history(rows, language)
        past = gr.update(value=table, headers=_columns(language, "time"))
        return (*updates, *shown, gr.update(headers=_columns(language)), past, link)


def told(work: Callable) -> Callable:
    """Decorator: turn a user error into the message that Gradio shows and the HTTP interface returns."""

    @functools.wraps(work)
    def run(*arguments):
        try:
            return work(*arguments)
        except (UserError, images.ImageError) as error:
            raise gr.Error(str(error), print_exception=False) from None

    return run


# --- HTTP ------------------------------------------------------------------------------------------------------------
def interface(served: service.Service, folder: Path) -> None:
    """Add the documented endpoints; hidden components hold their inputs and outputs."""
    with gr.Group(visible=False):
        image, files = gr.File(label="image"), gr.File(label="files", file_count="multiple")
        threshold, low, high = (gr.Number(label=n, value=None) for n in ("threshold", "unsure_low", "unsure_high"))
        resaved = gr.Checkbox(label="stability", value=True)
        answer, picture, call = gr.JSON(label="result"), gr.Image(label="heat map", format="png"), gr.Button()

    def rule_of(threshold, low, high):
        if (low is None) != (high is None):
            raise UserError("give both unsure_low and unsure_high, or neither")
        return served.rule(threshold, None if low is None else (low, high))

    def verdict(image, threshold=None, unsure_low=None, unsure_high=None, stability=True):
        """The verdict on one image file."""
        path, name = uploaded(image)
        rule = rule_of(threshold, unsure_low, unsure_high)
        record = served.verdict(path, name, *rule, stability=stability)
        return service.as_json(record, *rule, service.findings_of(path))

    def batch(files, threshold=None, unsure_low=None, unsure_high=None):
        """The verdicts on many image files and zip archives, in their order."""
        items = [uploaded(one) for one in files or []]
        rule = rule_of(threshold, unsure_low, unsure_high)
        found = served.batch([p for p, _ in items], [n for _, n in items], *rule)
        return {"images": [service.as_json(r, *rule) for r in found], "note": service.NOTE}

    def heat(image):
        """An occlusion map over the image, as a PNG."""
        return served.heat(*uploaded(image))

    def about():
        """Models, threshold, unsure zone and limits of this server."""
        return served.about()

    def uploaded(payload):
        if payload is None:
            raise UserError("no image given")
        return received(payload, folder)

    rule = [threshold, low, high]
    for work, inputs, output in (
        (verdict, [image, *rule, resaved], answer),
        (batch, [files, *rule], answer),
        (heat, [image], picture),
        (about, [], answer),
    ):
        call.click(
            told(work),
            inputs,
            output,
            api_name=work.__name__,
            api_description=work.__doc__,
            preprocess=False,
        )
