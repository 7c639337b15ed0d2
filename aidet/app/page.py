"""The page and the HTTP interface, in Gradio 6. Imported when the application starts, never before."""

import collections
import functools
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import gradio as gr

from ..detector import Verdict
from ..errors import UserError
from . import calls, cards, layout, pictures, service, style
from .words import language_of, say

HISTORY = 1000  # maximum number of rows that a browser window keeps
SESSIONS = 200  # maximum number of windows whose last image is remembered
# On a narrow screen the verdict is below the image: the page moves there when it is made.
TO_THE_VERDICT = """() => {
  const card = document.querySelector('#verdict [data-decision], #verdict .aidet-error');
  const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
  if (card && innerWidth < 768) card.scrollIntoView({behavior: calm ? 'auto' : 'smooth', block: 'start'});
}"""
HIDDEN = {"api_visibility": "private", "show_progress": "hidden"}

# A screen reader reads a new verdict and the summary of a batch out; parts that come later must say so beforehand.
ANNOUNCED = (
    """() => document.querySelectorAll('#verdict, #summary').forEach(e => e.setAttribute('aria-live', 'polite'))"""
)


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
        calls.interface(served, Path(folder or os.environ["GRADIO_TEMP_DIR"]).resolve())
    calls.in_one_line(page)
    return page


def asked_for(request: gr.Request) -> str:
    """The browser's preferred language."""
    return language_of(request.headers.get("accept-language"))


def theme() -> gr.themes.Base:
    """A theme with the fonts of the user's system, so that no font is downloaded."""
    fonts = {"font": ["system-ui", "-apple-system", "Segoe UI", "Noto Sans SC", "Microsoft YaHei", "sans-serif"]}
    base = gr.themes.Soft(**fonts, font_mono=["ui-monospace", "monospace"], primary_hue="blue", neutral_hue="slate")
    return base.set(**style.THEME)


def _of(request):
    """The window that a request comes from."""
    return getattr(request, "session_hash", None)


class Page(layout.Layout):
    """The components of the page and what happens on it.

    Parameters
    ----------
    page : gradio.Blocks
    served, language, folder :
        See :func:`build`.
    """

    def __init__(self, page: gr.Blocks, served: service.Service, language: Optional[str], folder: Path) -> None:
        super().__init__(served, language, folder)
        self.latest: Dict[Any, str] = collections.OrderedDict()  # window -> its last image
        self._events()
        page.load(None, None, None, js=ANNOUNCED, api_visibility="private")
        if language is None:
            page.load(asked_for, None, self.language, **HIDDEN)

    # --- events ------------------------------------------------------------------------------------------------------
    def _events(self):
        told = [*self.rule, self.language]
        shown = [self.card, self.votes, self.stability, self.metadata]
        history = [self.rows, self.past, self.past_link]
        batch = [self.summary, self.table, self.link]
        card = {"api_visibility": "private", "show_progress_on": [self.card]}
        first = self.image.change(
            self.on_image,
            [self.image, *told, self.rows],
            [*shown, self.traces, self.heat, self.examined, *history],
            preprocess=False,
            **card,
        )
        # What takes long only goes into the state. An event of its own shows it, with the sliders and the language of
        # that moment: they may have been changed meanwhile.
        more = first.then(self.on_resaved, self.examined, self.examined, **HIDDEN)
        more = more.then(self.on_rule, [self.examined, *told], shown, **HIDDEN)
        more = more.then(self.on_heat, self.examined, self.examined, **HIDDEN)
        more.then(self.map_of, [self.examined, self.language], self.heat, **HIDDEN)
        if self.switch is not None:
            seen = [self.examined, self.located, self.switch, self.language]
            shown_there = [self.heat, self.where, self.located]
            for event in (self.switch.change, self.language.change, first.then):
                event(self.on_where, seen, shown_there, **HIDDEN)
        first.then(None, None, None, js=TO_THE_VERDICT, api_visibility="private")
        for button, example in zip(self.chosen, self.examples):
            button.click(functools.partial(str, example.path), None, self.image, **HIDDEN)
        # One event for all three sliders, so that after several quick moves the result of the last one is shown.
        moves = [slider.change for slider in self.rule]
        gr.on(moves, self.on_rule, [self.examined, *told], shown, trigger_mode="always_last", **HIDDEN)
        self.reset.click(self.on_reset, None, self.rule, **HIDDEN)
        done = self.run.click(
            self.on_batch,
            [self.files, *told, self.rows],
            [self.summary, self.table, self.link, self.scored, *history],
            preprocess=False,
            api_visibility="private",
            show_progress_on=[self.summary],
        )
        seen = [self.past, self.past_link]
        done.then(self.on_scored, [self.scored, self.rows, self.language], [*batch, *seen], **HIDDEN)
        self.clear.click(lambda language: self.history([], language), [self.language], history, **HIDDEN)
        texts = [component for component, _, _ in self.texts]
        self.language.change(
            self.on_language,
            [self.examined, *told, self.rows, self.scored],
            [*texts, *shown, self.traces, self.heat, *batch, self.past, self.past_link],
            **HIDDEN,
        )

    def on_image(
        self,
        payload: Optional[Dict[str, Any]],
        threshold: float,
        low: float,
        high: float,
        language: str,
        rows: list,
        request: gr.Request,
    ) -> tuple:
        """Score a new image, or clear the page when the image was removed."""
        self.remember(request, payload)
        if payload is None:
            cleared = (layout.empty(language), "", "", "", "", cards.blank(language, "heat_empty"), None)
            return (*cleared, *self.history(rows, language))
        path, name = calls.told(calls.received)(payload, self.folder)
        record, image = self.served.look(path, name)
        examined = {"record": record, "path": str(path), "findings": service.findings_of(path), "window": _of(request)}
        examined["checking"] = record.ok
        if image is not None:
            made = (pictures.spectrum(image), pictures.residual(image))
            examined["traces"] = [pictures.uri(picture, 92) for picture in made]
        decided = self.served.decided(record, *self.zone(threshold, low, high))
        return (
            *self.show(examined, threshold, low, high, language),
            self.traces_of(examined, language),
            cards.blank(language, "heat_wait" if record.ok else "heat_empty"),
            examined,
            *self.history(self.add(rows, [decided]), language),
        )

    def remember(self, request: gr.Request, payload: Optional[Dict[str, Any]]) -> None:
        """Note a window's image, so that what is made for the one before it is not shown beside it."""
        self.latest[_of(request)] = str(Path(payload["path"]).resolve()) if payload else ""
        while len(self.latest) > SESSIONS:
            self.latest.pop(next(iter(self.latest)), None)

    def current(self, examined: Optional[Dict[str, Any]]) -> bool:
        """Whether a window still shows this image, and it could be scored."""
        return bool(examined and examined["record"].ok and self.latest.get(examined["window"]) == examined["path"])

    def on_resaved(self, examined: Optional[Dict[str, Any]]) -> Any:
        """Score the re-saved versions of an image whose verdict is shown."""
        if examined is None or not self.current(examined):
            return gr.skip()
        record, image = self.served.look(examined["path"], examined["record"].path)
        if image is not None:
            examined["part"] = service.part_of(image)
            record.stability = self.served.resaved(image, record.path)
        return {**examined, "record": record, "checking": False} if self.current(examined) else gr.skip()

    def on_heat(self, examined: Optional[Dict[str, Any]]) -> Any:
        """Make the heat map of an image whose verdict is shown."""
        if examined is None or not self.current(examined):
            return gr.skip()
        heat = calls.told(self.served.heat)(examined["path"], examined["record"].path)
        return {**examined, "heat": (pictures.uri(heat.picture), heat.without)} if self.current(examined) else gr.skip()

    def on_where(
        self, examined: Optional[Dict[str, Any]], located: Optional[Dict[str, Any]], wanted: bool, language: str
    ) -> Any:
        """Show the map of the localizer in the place of the heat map, or the heat map again."""
        heat, there = gr.update(visible=not wanted), {"visible": wanted}
        if examined is None or not examined["record"].ok:
            yield heat, gr.update(value=cards.blank(language, "where_empty"), **there), None
            return
        located = located if located is not None and located["path"] == examined["path"] else None
        if wanted and located is None:
            yield heat, gr.update(value=cards.blank(language, "where_wait"), **there), None
            located = self.locate(examined["path"])
            if not self.current(examined):
                return
        shown = cards.where(language, **located["shown"]) if located else cards.blank(language, "where_empty")
        yield heat, gr.update(value=shown, **there), located

    def locate(self, path: str) -> Dict[str, Any]:
        """What the page shows of an image's generated parts."""
        found, image = calls.told(self.served.localize)(path)
        pair = {"image": pictures.uri(pictures.preview(image)), "layer": pictures.png_uri(pictures.layer(found))}
        return {"path": path, "shown": {**pair, "found": found.found, "area": found.area, "reason": found.reason}}

    @staticmethod
    def map_of(examined: Optional[Dict[str, Any]], language: str) -> str:
        """The heat map of an examined image, or what stands in its place."""
        if examined is None or not examined["record"].ok:
            return cards.blank(language, "heat_empty")
        if "heat" not in examined:
            return cards.blank(language, "heat_wait")
        picture, without = examined["heat"]
        return cards.heat_map(language, picture, without, examined["record"].prob)

    @staticmethod
    def traces_of(examined: Optional[Dict[str, Any]], language: str) -> str:
        """Spectrum and noise of an examined image."""
        return cards.traces(language, *examined["traces"]) if examined and "traces" in examined else ""

    @staticmethod
    def zone(threshold: float, low: float, high: float) -> Tuple[float, Tuple[float, float]]:
        """Slider values -> threshold and zone; the ends of the zone are swapped if they were moved past each other."""
        return threshold, (min(low, high), max(low, high))

    def show(
        self, examined: Optional[Dict[str, Any]], threshold: float, low: float, high: float, language: str
    ) -> Tuple[str, str, str, str]:
        """The cards of an examined image."""
        if examined is None:
            return layout.empty(language), "", "", ""
        threshold, unsure = self.zone(threshold, low, high)
        record, part = self.served.decided(examined["record"], threshold, unsure), examined.get("part", "")
        return (
            cards.verdict(language, record, threshold, unsure, examined["findings"], part, examined["checking"]),
            cards.votes(language, record, self.served.lines(threshold)),
            cards.stability(language, record, threshold, part),
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
            return (say(language, "no_files"), "", "", None, *self.history(rows, language))
        items = [calls.told(calls.received)(one, self.folder) for one in payload]
        paths, names = [p for p, _ in items], [n for _, n in items]
        rule = self.zone(threshold, low, high)
        try:
            found, small, left = self.served.batch(
                paths, names, *rule, progress=lambda i, n: progress((i, n)), thumbnails=True
            )
        except UserError as error:
            return (cards.plain(str(error)), "", "", None, *self.history(rows, language))
        scored = {
            "rows": [["", *cards.row(r)] for r in found],
            "small": small,
            "left": left,
            "counts": {k: sum(r.decision == k for r in found) for k in ("generated", "real", "unsure")},
            "csv": cards.score_rows(found),
            "columns": cards.score_columns(found),
        }
        return (*self.batch_of(scored, language), scored, *self.history(self.add(rows, found), language))

    def on_scored(self, scored: Optional[Dict[str, Any]], rows: List[list], language: str) -> Any:
        """Show a batch and the history in the language of this moment; scoring may have taken minutes."""
        shown = [gr.skip()] * 3 if scored is None else self.batch_of(scored, language)
        return (*shown, *self.history(rows, language)[1:])

    @staticmethod
    def batch_of(scored: Optional[Dict[str, Any]], language: str) -> Tuple[str, str, str]:
        """(summary, table, link) of a batch."""
        if scored is None:
            return "", "", ""
        rows, counts = scored["rows"], scored["counts"]
        bad = sum(not decision for _, _, decision, _, _ in rows)
        summary = say(language, "summary", count=len(rows), bad=bad, **counts)
        lines = [f"**{summary}**", *filter(None, [cards.left_out(language, scored["left"])])]
        link = cards.csv_link(language, scored["csv"], scored["columns"], "scores.csv")
        return "\n\n".join(lines), cards.table(language, rows, scored["small"]), link

    # --- history -----------------------------------------------------------------------------------------------------
    @staticmethod
    def add(rows: List[list], found: Sequence[Verdict]) -> List[list]:
        """History rows (time, file, decision, probability, status), the new ones first."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        new = [[now, *cards.row(r)] for r in found]
        return [*new, *rows][:HISTORY]

    def history(self, rows: List[list], language: str) -> Tuple[List[list], str, str]:
        """(state, table, link)."""
        table = cards.table(language, rows, label="tab_history")
        link = cards.csv_link(language, rows, ("time", "file", "decision", "probability", "status"), "history.csv")
        return rows, table, link or f"<p>{say(language, 'history_empty')}</p>"

    def on_language(
        self, examined: Any, threshold: float, low: float, high: float, language: str, rows: Any, scored: Any
    ) -> Any:
        """Show every text of the page in the chosen language."""
        updates = []
        for _, keys, values in self.texts:
            prop, key = next(iter(keys.items()))
            text = say(language, key, **values)
            updates.append(gr.update(**{prop: f"# {text}" if key == "title" else text}))
        shown = self.show(examined, threshold, low, high, language)
        _, table, link = self.history(rows, language)
        batch = self.batch_of(scored, language)
        more = (self.traces_of(examined, language), self.map_of(examined, language))
        return (*updates, *shown, *more, *batch, table, link)
