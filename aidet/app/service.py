"""Scoring for the application: one detector for many concurrent requests, without Gradio."""

import base64
import copy
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, TypeVar, Union

from PIL import Image

from .. import Detector, __version__, images, labels
from ..detector import Localization, Localizer, Verdict, explain, vote
from ..detector.localization import sixteen_bits
from ..errors import UserError
from ..records import Record
from . import metadata, pictures, uploads

NOTE = (
    "A verdict is an estimate, not proof: it says what this detector saw in the pixels, not who made the image, and it "
    "is wrong for some images. Do not use it alone against anyone."
)
Zone = Union[str, Tuple[float, float]]
AnyRecord = TypeVar("AnyRecord", bound=Record)
# Of a larger image the middle part with so many pixels is re-saved: WebP of 48 megapixels takes half a minute.
RESAVED = 12_000_000
# Images above this many pixels get a heat map with finer cells: a view covers only a small part of them.
LARGE = 2_000_000


class Batch(NamedTuple):
    """The records of a batch, a thumbnail of each ("" if there is none), and the files of archives left out."""

    records: List[Verdict]
    thumbnails: List[str]
    left_out: List[Tuple[str, str]]


class Heat(NamedTuple):
    """The image with its heat map, and the probability without its strongest part."""

    picture: Image.Image
    without: float


class Service:
    """A detector behind the page and the HTTP interface.

    Parameters
    ----------
    checkpoints : list of str or Path
    limits : uploads.Limits, optional
    unsure : (float, float) or "LOW,HIGH", optional
        Default: the detector's own.
    localizer : str or Path, optional
        What shows which parts of an image are generated; without it that is not offered.
    **options
        Options of :class:`aidet.Detector`.

    Attributes
    ----------
    detector : aidet.Detector
    localizer : aidet.Localizer or None
    threshold : float
    unsure : (float, float)

    Raises
    ------
    UserError
        A checkpoint or an option cannot be used.
    """

    def __init__(
        self,
        checkpoints: Sequence[Union[str, Path]],
        limits: Optional[uploads.Limits] = None,
        unsure: Optional[Zone] = None,
        localizer: Union[None, str, Path] = None,
        **options: Any,
    ) -> None:
        self.limits = limits or uploads.Limits()
        # MindSpore must always be called from the same thread; ONNX Runtime may be called from any.
        self._only = ThreadPoolExecutor(1, thread_name_prefix="aidet-model")
        self.detector = self._only.submit(
            lambda: Detector(*checkpoints, unsure=unsure, stability=True, max_pixels=self.limits.pixels, **options)
        ).result()
        self.localizer = None if localizer is None else self._only.submit(self._opened, localizer, options).result()
        self.safe = all(m.threadsafe for m in self.detector.models)
        self.threshold = self.detector.threshold
        self.unsure = self.detector.unsure or (self.threshold, self.threshold)
        self._heat = threading.Semaphore(2)  # a heat map scores 65 images; two at a time leave room for verdicts

    def _opened(self, localizer, options):
        same = {name: options[name] for name in ("backend", "device", "say", "truncated", "workers") if name in options}
        return Localizer(localizer, max_pixels=self.limits.pixels, **same)

    def _run(self, work):
        return work() if self.safe else self._only.submit(work).result()

    # --- one image ---------------------------------------------------------------------------------------------------
    def verdict(
        self,
        source: Union[str, Path],
        name: str = "image",
        threshold: Optional[float] = None,
        unsure: Optional[Zone] = None,
        stability: bool = True,
    ) -> Verdict:
        """Score one image.

        Parameters
        ----------
        source : str or Path
            The uploaded file.
        name : str
            Its original name, which seeds the random views, so that ``infer.py`` on a file of that name agrees.
        threshold : float, optional
        unsure : (float, float) or "LOW,HIGH", optional
        stability : bool
            Also score re-saved and resized versions.

        Returns
        -------
        aidet.detector.Verdict
            Its status says what is wrong with an unusable file.

        Raises
        ------
        UserError
            ``threshold`` or ``unsure`` out of range.
        """
        record, image = self.look(source, name)
        if image is not None and stability and record.ok:
            record.stability = self.resaved(image, name)
        return self.decided(record, threshold, unsure)

    def look(self, source: Union[str, Path], name: str = "image") -> Tuple[Verdict, Optional[Image.Image]]:
        """The verdict without re-saved versions, and the decoded image; None if the file cannot be used."""
        key, checked = uploads.safe_name(name), uploads.checked(source, self.limits)
        try:
            image, note = self.detector.reading.read(checked)  # type: ignore[arg-type]  # Unusable reads as a file
        except images.ImageError as error:
            return self.detector.unusable(key, str(error)), None
        record = self._run(lambda: list(self.detector.stream([(key, image)], False))[0])
        record.note = note
        return record, image

    def resaved(self, image: Image.Image, name: str = "image") -> Dict[str, float]:
        """The probabilities of re-saved and resized versions (``Verdict.stability``).

        Of an image above :data:`RESAVED` pixels, they are those of its :func:`middle`.
        """
        item = (uploads.safe_name(name), middle(image))
        return self._run(lambda: list(self.detector.stream([item], True))[0]).stability

    def decided(self, record: AnyRecord, threshold: Optional[float] = None, unsure: Optional[Zone] = None) -> AnyRecord:
        """A copy of a record with the same scores, decided with another threshold and unsure zone."""
        record = copy.copy(record)
        if record.ok:
            assert record.score is not None  # as in every row that is ok
            threshold, unsure = self.rule(threshold, unsure)
            record.prob, record.label, record.decision = vote.verdict(record.score, threshold, unsure)
            if record.reason:
                record.decision = "unsure"
            if isinstance(record, Verdict):
                record.threshold = threshold
        return record

    def rule(
        self, threshold: Optional[float] = None, unsure: Optional[Zone] = None
    ) -> Tuple[float, Tuple[float, float]]:
        """(threshold, (low, high)), with the detector's own values for those not given.

        A value that equals the detector's own to three digits, as the page shows it, is the detector's own. Without
        ``unsure`` a zone that was not chosen moves with the threshold.

        Raises
        ------
        UserError
            A value that is not a number or is out of range.
        """
        threshold = self.threshold if threshold is None else threshold
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
            raise UserError(f"threshold (={threshold!r}) must be between 0 and 1")
        threshold = self.threshold if threshold == round(self.threshold, 3) else float(threshold)
        if unsure is None:
            chosen = self.unsure != labels.zone_around(self.threshold)
            return threshold, self.unsure if chosen else labels.zone_around(threshold)
        zone = vote.unsure_zone(unsure) or (threshold, threshold)
        own = tuple(round(end, 3) for end in zone) == tuple(round(end, 3) for end in self.unsure)
        return threshold, self.unsure if own else zone

    def heat(self, source: Union[str, Path], name: str = "image") -> Heat:
        """The image overlaid with its occlusion map.

        Raises
        ------
        images.ImageError
            The file cannot be used.
        """
        checked = uploads.checked(source, self.limits)
        image = self.detector.reading.decode(checked)  # type: ignore[arg-type]  # Unusable reads as a file
        key, grid = uploads.safe_name(name), explain.GRID * (2 if image.width * image.height > LARGE else 1)
        with self._heat:
            score = self._run(lambda: list(self.detector.stream([(key, image)], False))[0].score)
            heat = self._run(lambda: explain.occlusion(self.detector, image, key, grid))
        strongest = heat.flat[abs(heat).argmax()]
        return Heat(pictures.overlay(heat, image), float(labels.sigmoid(score - strongest)))

    def localize(self, source: Union[str, Path]) -> Tuple[Localization, Image.Image]:
        """Where an image is generated, and the image.

        Raises
        ------
        images.ImageError
            The file cannot be used.
        UserError
            There is no localizer.
        """
        localizer = self.localizer
        if localizer is None:
            raise UserError("no localizer here; start the application with --localizer A.ckpt")
        image = localizer.reading.decode(uploads.checked(source, self.limits))  # type: ignore[arg-type]  # as in heat
        with self._heat:
            if localizer.threadsafe:
                return localizer.localize(image), image
            return self._only.submit(localizer.localize, image).result(), image

    # --- many --------------------------------------------------------------------------------------------------------
    def batch(
        self,
        files: Sequence[Union[str, Path]],
        names: Optional[Sequence[str]] = None,
        threshold: Optional[float] = None,
        unsure: Optional[Zone] = None,
        progress: Optional[Callable[[int, int], Any]] = None,
        thumbnails: bool = False,
    ) -> Batch:
        """Score files and the images inside zip archives; one record each, in their order.

        Parameters
        ----------
        files : list of str or Path
        names : list of str, optional
        threshold, unsure : optional
        progress : callable, optional
            Takes (done, total).
        thumbnails : bool
            Also make small pictures.

        Raises
        ------
        UserError
            Nothing to score, too many images, or an archive that cannot be read.
        """
        batch, small = uploads.Batch(files, names, self.limits), []

        def seen():
            for name, source in batch:
                small.append(pictures.thumbnail(source, self.detector.reading) if thumbnails else "")
                yield name, source

        def work():
            records = []
            for record in self.detector.stream(seen(), stability=False):
                records.append(self.decided(record, threshold, unsure))
                if progress is not None:
                    progress(len(records), len(batch))
            return records

        return Batch(self._run(work), small, batch.left_out)

    def lines(self, threshold: float) -> Dict[str, float]:
        """Threshold of each model and its views; for a single model with soft votes that of the page.

        A fusion file may read the score of its one model otherwise than the model does.
        """
        own, fusion = self.detector, self.detector.fusion
        if len(own.names) > 1 or own.vote != "soft":
            return fusion.thresholds
        if not fusion.plain and 0 < threshold < 1:
            threshold = float(labels.sigmoid(labels.logit(threshold) / fusion.scale + fusion.offset))
        return {own.names[0]: threshold}

    # --- what it is --------------------------------------------------------------------------------------------------
    def about(self) -> Dict[str, Any]:
        """Models, their hashes, threshold and limits: what a caller needs to reproduce a verdict."""
        own = self.detector
        stated = {"operating_point": own.operating_point, "operating_points": own.points, "prior": own.prior}
        return {
            "aidet": __version__,
            "models": [
                {
                    "name": m.name,
                    "identity": m.identity,
                    "backend": m.backend_name,
                    "threshold": self.lines(self.threshold)[m.name],
                }
                for m in self.detector.models
            ],
            "vote": self.detector.vote,
            "fuse": self.detector.fusion.how,
            "threshold": self.threshold,
            **{name: value for name, value in stated.items() if value},
            "unsure": list(self.unsure),
            **({} if self.localizer is None else {"localizer": _about(self.localizer)}),
            "limits": vars(self.limits),
            "labels": list(labels.NAMES),
            "note": NOTE,
        }


def _about(localizer):
    own = localizer.settings
    return {
        "name": localizer.path.stem, "identity": localizer.identity, "backend": localizer.backend_name,
        "threshold": own.threshold, "min_area": own.min_area, "grid": own.grid,
    }  # fmt: skip


def located(name: str, found: Localization) -> Dict[str, Any]:
    """A localization as the HTTP interface returns it.

    Returns
    -------
    dict
        ``file, status, found, words, area, where, score, probability``, ``size`` (width and height), ``grid`` (pixels
        along each side of a cell), ``map`` (a 16-bit grey PNG in base64, one pixel a cell, 65535 for probability 1) and
        ``note``; see docs/app.md.
    """
    png = io.BytesIO()
    Image.fromarray(sixteen_bits(found.cells)).save(png, "PNG")
    facts = found.to_dict()
    facts["probability"] = facts.pop("prob")
    picture = base64.b64encode(png.getvalue()).decode("ascii")
    return {
        "file": uploads.safe_name(name), "status": "ok", **facts, "size": list(found.size), "grid": found.grid,
        "map": picture, "note": NOTE,
    }  # fmt: skip


def middle(image: Image.Image) -> Image.Image:
    """The image itself, or the middle part of the same shape that has :data:`RESAVED` pixels."""
    share = (RESAVED / (image.width * image.height)) ** 0.5
    if share >= 1:
        return image
    width, height = int(image.width * share), int(image.height * share)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def part_of(image: Image.Image) -> str:
    """Size of the :func:`middle` of an image, as the cards show it; "" if it is the whole image."""
    part = middle(image)
    return "" if part is image else f"{part.width} x {part.height}"


def flips(record: Verdict, threshold: float) -> List[str]:
    """Names of the re-saved and resized versions whose label differs from that of the image itself.

    The image is the whole one, as on the page, also where the versions are those of its :func:`middle`.
    """
    if not record.stability:
        return []
    assert record.prob is not None  # as in every row that is ok
    first, others = record.prob > threshold, {k: p for k, p in record.stability.items() if k != "original"}
    return [name for name, value in others.items() if (value > threshold) != first]


def as_json(
    record: Verdict,
    threshold: float,
    unsure: Tuple[float, float],
    findings: Optional[Sequence[metadata.Finding]] = None,
) -> Dict[str, Any]:
    """A verdict as the HTTP interface returns it.

    Returns
    -------
    dict
        ``file, status, decision, label, probability, score, threshold, unsure, models, stability, spread, changes,
        metadata, file_note, note``; ``prior, statement`` if the detector states a prior, ``reason`` if it has a rule on
        too little evidence; see docs/app.md.
    """
    models = {
        name: {
            "score": score,
            "probability": float(labels.sigmoid(score)),
            "views": record.views.get(name, []),
        }
        for name, score in record.scores.items()
    }
    result: Dict[str, Any] = {
        "file": record.path,
        "status": record.status,
        "decision": record.decision or None,
        "label": record.label,
        "probability": record.prob,
        "score": record.score,
        "threshold": threshold,
        "unsure": list(unsure),
        "models": models,
        "stability": record.stability,
        "spread": record.spread,
        "changes": flips(record, threshold),
        "file_note": record.note,
        "note": NOTE,
    }
    if record.prior is not None:
        result.update(prior=record.prior, statement=record.statement)
    if record.reason is not None:
        result["reason"] = record.reason
    if findings is not None:
        result["metadata"] = [vars(f) for f in findings]
    return result


def findings_of(source: Union[str, Path]) -> List[metadata.Finding]:
    """Metadata of an upload; an empty list if the file cannot be opened."""
    try:
        return metadata.read(source)
    except OSError:
        return []
