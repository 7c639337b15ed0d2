"""Scoring for the application: one detector, many requests at a time, no Gradio."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

from .. import Detector, __version__, explain, images, labels, vote
from ..errors import UserError
from . import metadata, pictures, uploads

NOTE = (
    "A verdict is an estimate, not proof: it says what this detector saw in the pixels, not who made the image, and it "
    "is wrong for some images. Do not use it alone against anyone."
)
# Half of the default zone on both sides of the threshold, in log-odds: 0.38 to 0.62 around 0.5.
UNSURE = 0.5


class Service:
    """A detector behind the page and the HTTP interface.

    Parameters
    ----------
    checkpoints : list of str or Path
    limits : uploads.Limits, optional
    unsure : (float, float) or "LOW,HIGH", optional
        Default: what a fusion file says, else the threshold moved by 0.5 in log-odds to both sides.
    **options
        Of :class:`aidet.Detector`.

    Attributes
    ----------
    threshold : float
    unsure : (float, float)
    """

    def __init__(self, checkpoints, limits=None, unsure=None, **options):
        self.limits = limits or uploads.Limits()
        # MindSpore is to be called from one thread, always the same; ONNX Runtime from any.
        self._only = ThreadPoolExecutor(1, thread_name_prefix="aidet-model")
        self.detector = self._only.submit(
            lambda: Detector(*checkpoints, unsure=unsure, stability=True, **options)
        ).result()
        self.safe = all(m.threadsafe for m in self.detector.models)
        self.plain = copy.copy(self.detector)
        self.plain.stability = False
        self.threshold = self.detector.threshold
        self.unsure = self.detector.unsure or zone_around(self.threshold)
        self._heat = threading.Semaphore(2)  # a heat map is some hundred passes; two at a time leave room for verdicts

    def _run(self, work):
        return work() if self.safe else self._only.submit(work).result()

    # --- one image ---------------------------------------------------------------------------------------------------
    def verdict(self, source, name="image", threshold=None, unsure=None, stability=True):
        """Score one image.

        Parameters
        ----------
        source : str or Path
            The file as uploaded.
        name : str
            What it was called: it seeds the random views, so that ``infer.py`` on a file of that name agrees.
        threshold : float, optional
        unsure : (float, float), optional
        stability : bool
            Score re-saved and resized versions, too.

        Returns
        -------
        aidet.engine.Verdict
            Its status says what was wrong with an unusable file.
        """
        detector = self.detector if stability else self.plain
        item = (uploads.safe_name(name), uploads.checked(source, self.limits))
        record = self._run(lambda: list(detector.stream([item]))[0])
        return self.decided(record, threshold, unsure)

    def decided(self, record, threshold=None, unsure=None):
        """A copy of a record with the decision under another threshold and zone; scores stay."""
        record = copy.copy(record)
        if record.ok:
            threshold, unsure = self.rule(threshold, unsure)
            record.prob, record.label, record.decision = vote.verdict(record.score, threshold, unsure)
        return record

    def rule(self, threshold=None, unsure=None):
        """(threshold, (low, high)) with what was not given filled in; values are checked."""
        threshold = self.threshold if threshold is None else threshold
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
            raise UserError(f"threshold (={threshold!r}) must be between 0 and 1")
        return float(threshold), vote.unsure_zone(self.unsure if unsure is None else unsure)

    def heat(self, source, name="image"):
        """Occlusion map over the image; PIL image.

        Raises
        ------
        images.ImageError
        """
        image = images.decode(uploads.checked(source, self.limits))
        with self._heat:
            heat = self._run(lambda: explain.occlusion(self.plain, image, uploads.safe_name(name)))
        return pictures.overlay(heat, image)

    # --- many --------------------------------------------------------------------------------------------------------
    def batch(self, files, names=None, threshold=None, unsure=None, progress=None):
        """Score files and the images inside zip archives; one record each, in their order.

        Parameters
        ----------
        files : list of str or Path
        names : list of str, optional
        threshold, unsure : optional
        progress : callable, optional
            Takes (done, total).

        Raises
        ------
        UserError
            Nothing to score, too many images, an archive that cannot be read.
        """
        batch = uploads.Batch(files, names, self.limits)

        def work():
            records = []
            for record in self.plain.stream(batch):
                records.append(self.decided(record, threshold, unsure))
                if progress is not None:
                    progress(len(records), len(batch))
            return records

        return self._run(work)

    # --- what it is --------------------------------------------------------------------------------------------------
    def about(self):
        """Models, their hashes, threshold, limits: what a caller needs to repeat a verdict."""
        return {
            "aidet": __version__,
            "models": [
                {"name": m.name, "identity": m.identity, "backend": m.backend_name, "threshold": m.threshold}
                for m in self.detector.models
            ],
            "vote": self.detector.vote,
            "fuse": self.detector.fusion.how,
            "threshold": self.threshold,
            "unsure": list(self.unsure),
            "limits": vars(self.limits),
            "labels": list(labels.NAMES),
            "note": NOTE,
        }


def zone_around(threshold):
    """The default unsure zone; nothing is unsure where the threshold is 0 or 1."""
    middle = labels.logit(threshold)
    return tuple(round(float(labels.sigmoid(middle + d)), 3) for d in (-UNSURE, UNSURE))


def flips(record, threshold):
    """Names of the re-saved and resized versions that lie on the other side of the threshold than the image itself."""
    first = record.stability.get("original")
    return [name for name, value in record.stability.items() if (value > threshold) != (first > threshold)]


def as_json(record, threshold, unsure, findings=None):
    """A record as the HTTP interface gives it.

    Returns
    -------
    dict
        ``file, status, decision, label, probability, score, threshold, unsure, models, stability, spread, changes,
        metadata, note``; see docs/app.md.
    """
    models = {
        name: {
            "score": score,
            "probability": float(labels.sigmoid(score)),
            "views": [float(labels.sigmoid(v)) for v in record.views.get(name, [])],
        }
        for name, score in record.scores.items()
    }
    result = {
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
        "note": NOTE,
    }
    if findings is not None:
        result["metadata"] = [vars(f) for f in findings]
    return result


def findings_of(source):
    """Metadata of an upload; nothing where the file cannot be opened."""
    try:
        return metadata.read(source)
    except OSError:
        return []
