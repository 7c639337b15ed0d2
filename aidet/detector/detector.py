"""The detector: one record for each image, in input order; memory use does not grow with the number of images."""

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from .. import images, labels
from ..errors import UserError, nearest
from ..parallel import cpus, in_order
from ..records import Record
from . import backends
from . import vote as _vote
from .cascade import Cascade, open_first
from .network import Network, combined, split
from .scorer import Scorer
from .views import STABILITY
from .vote import FUSIONS, VOTE_RULES, Fusion, read_fusion, unsure_zone

ON_ERROR = ("fail", "real", "generated", "skip")


@dataclass
class Verdict(Record):
    """A :class:`~aidet.records.Record` with the details behind it.

    Attributes
    ----------
    views : dict of str to list of float
        Calibrated scores of the views, per model.
    weights : dict of str to list of float
        Weight of each view, for the models that weight their views.
    stability : dict of str to float
        In stability mode, the fused probability of the image ("original", first) and of each re-saved or resized
        version, by the operation that made it.
    """

    views: Dict[str, List[float]] = field(default_factory=dict)
    weights: Dict[str, List[float]] = field(default_factory=dict)
    stability: Dict[str, float] = field(default_factory=dict)

    @property
    def spread(self) -> Optional[float]:
        """Range of the probabilities of stability mode; None if the image was scored without it."""
        return max(self.stability.values()) - min(self.stability.values()) if self.stability else None


def open_scorer(path: Union[str, Path], name: str, **options: Any) -> Scorer:
    """A :class:`Network`, or a rule of :mod:`aidet.rules` if the path names one (``rule:size``, ``x.rule.json``)."""
    from . import rules

    return rules.open_rule(path, name, **options) if rules.is_rule(path) else Network(path, name, **options)


class Detector:
    """One or more models, their votes and their fusion.

    Parameters
    ----------
    *checkpoints : str or Path
        ``.ckpt`` files with sidecars, exported ``.onnx`` files, or rules (:mod:`aidet.rules`).
    backend : {"auto", "onnxruntime", "mindspore"}
    votes : int, optional
        Views of each image and model. Default: the sidecar's ``voting``, else 1.
    vote : {"soft", "hard"}
        See :func:`aidet.detector.vote.combine_views`.
    fuse : {"soft", "hard", "soft-or", "score"} or path of a YAML file
        See :class:`aidet.detector.vote.Fusion`.
    threshold : float, optional
        Generated if ``prob > threshold``. Default: the sidecar's with one model and soft votes, else 0.5.
    unsure : (float, float) or "LOW,HIGH", optional
        Zone of the probability in which the decision is ``unsure``.
    views : str, optional
        ``random``, ``native``, ``grid``, ``pyramid`` or a pipeline line, see :class:`aidet.detector.views.Views`.
        Default: the sidecar's ``voting``, else ``random``.
    flips : bool
        Also score every view mirrored.
    stability : bool
        Also score re-saved and resized versions of each image.
    early_exit : bool
        Score only as many views as the decision needs. The decision is the one that all views would have given; the
        score is that of the scored views only. Needs one model, and no stability mode. See
        :class:`aidet.detector.cascade.Cascade`.
    cascade : str or Path, optional
        An eight-bit model of the same checkpoint (``export.py --int8``) that is run first; if its score is so close to
        a threshold that an error within its stated margin could change the decision, the checkpoint itself decides.
        Needs one model on ONNX Runtime, and no stability mode.
    seed : int
        Seed of the random views.
    workers : int, optional
        Threads that decode, transform and (with ONNX Runtime) run the network; default: the CPUs this process may use.
    batch_size : int
        Images in one network call on Ascend and GPU. On a CPU, a batch contains the views of only one image, so that a
        result cannot depend on other images.
    device : {"auto", "Ascend", "GPU", "CPU"}
    on_error : {"fail", "real", "generated", "skip"}
        ``real`` and ``generated`` give an unusable input that label; its status still says what was wrong.
    say : callable, optional
        Takes each message for the user, one line of text. Default: messages go to the logger ``aidet`` of
        :mod:`logging`, at INFO (an ONNX graph is made) or WARNING (a slower back end is used), and appear only if the
        application has enabled that logger.

    max_pixels, truncated :
        See :class:`aidet.images.Reading`.
    transform, positive : str, int or str, optional
        For ``.onnx`` files from elsewhere: the pipeline line that makes their input, and the index of the output that
        means *generated* (of a single output also ``real``).

    Attributes
    ----------
    models : list of aidet.detector.scorer.Scorer
    names : list of str
        Names of the models in result files.
    threshold : float
    unsure : (float, float) or None
    votes, views :
        The values that the models use, as given or from their sidecars; a list if the models differ, None if no model
        has views.
    reading : aidet.images.Reading
        How images are read.
    cascade : aidet.detector.cascade.Cascade or None
        None if every view is always scored by every model.

    Raises
    ------
    UserError
        No checkpoint, an unknown choice, a value out of range, or a model that cannot be opened.

    Examples
    --------
    >>> import logging
    >>> logging.basicConfig(level=logging.INFO)  # show the detector's messages
    >>> detector = Detector("a.ckpt", votes=7)
    """

    def __init__(
        self,
        *checkpoints: Union[str, Path],
        backend: str = "auto",
        votes: Optional[int] = None,
        vote: str = "soft",
        fuse: Union[str, Path] = "soft",
        threshold: Optional[float] = None,
        unsure: Union[None, str, Tuple[float, float]] = None,
        views: Optional[str] = None,
        flips: bool = False,
        stability: bool = False,
        early_exit: bool = False,
        cascade: Union[None, str, Path] = None,
        seed: int = 42,
        workers: Optional[int] = None,
        batch_size: int = 32,
        device: str = "auto",
        on_error: str = "fail",
        say: backends.Say = None,
        max_pixels: int = images.MAX_PIXELS,
        truncated: str = "error",
        transform: Optional[str] = None,
        positive: Union[None, int, str] = None,
    ) -> None:
        if not checkpoints:
            raise UserError("no checkpoint given; name at least one")
        if vote not in VOTE_RULES:
            raise UserError(nearest(vote, VOTE_RULES, "vote"))
        if on_error not in ON_ERROR:
            raise UserError(nearest(on_error, ON_ERROR, "on_error"))
        self.reading = images.Reading(max_pixels, truncated)
        self.workers = cpus() if workers is None else _at_least_one("workers", workers)
        self.batch_size = _at_least_one("batch_size", batch_size)
        self.vote, self.stability, self.on_error = vote, stability, on_error
        # Early exit and the cascade need views that are made one at a time.
        one_by_one = early_exit or cascade is not None
        if one_by_one and (len(checkpoints) > 1 or stability):
            what = "early_exit" if early_exit else "cascade"
            raise UserError(f"{what} takes one model and no stability mode, which need every view's score")
        self.names = names = model_names(checkpoints)
        spec = {"fuse": fuse} if fuse in FUSIONS else read_fusion(fuse)
        threshold = spec.get("threshold") if threshold is None else threshold
        if threshold is not None:
            threshold = _threshold(threshold)
        self.unsure = unsure_zone(spec.get("unsure") if unsure is None else unsure)
        fusion = functools.partial(Fusion, spec.get("fuse", "soft"), names, spec.get("weights"))
        fusion(spec.get("thresholds"))  # report a wrong name before any model is loaded
        options = {"votes": votes, "kind": views, "flips": flips, "seed": seed}
        options.update(backend=backend, device=device, say=say)
        own = _of_foreign(checkpoints, transform=transform, positive=positive)
        self.models = [open_scorer(p, name, **options, **more) for p, name, more in zip(checkpoints, names, own)]
        if one_by_one and self.models[0].views is None:
            raise UserError(f"early_exit and cascade are for networks with views; {names[0]!r} is a rule")
        self.fusion = fusion({**{m.name: m.threshold for m in self.models}, **(spec.get("thresholds") or {})})
        alone = len(names) == 1 and vote == "soft"
        self.threshold = threshold if threshold is not None else self.fusion.thresholds[names[0]] if alone else 0.5
        self.cascade = self._cascade(cascade, early_exit, options) if one_by_one else None
        used = [m.views for m in self.models if m.views is not None]
        self.votes, self.views = (common_value(getattr(v, n) for v in used) for n in ("votes", "kind"))

    def _cascade(self, path, early_exit, options):
        exact = self.models[0]
        first, margin = None, 0.0
        if path is not None:
            first, margin = open_first(path, exact, lambda path: Network(path, exact.name, **options))

        def decide(scores, weights):
            return _vote.verdict(self._fuse([scores], [weights])[0], self.threshold, self.unsure)[1:]

        return Cascade(exact, decide, early_exit, first, margin)

    # --- one image ---------------------------------------------------------------------------------------------------
    def _prepare(self, stability, item):
        """(key, source) -> (key, views, None, note), or (key, None, reason, "") if the source cannot be decoded."""
        key, source = item
        try:
            image, note = self.reading.read(source)
        except images.ImageError as error:
            return key, None, str(error), ""
        if self.cascade is not None:
            return key, self.models[0].views.later(image, key), None, note
        return key, [m.prepare(image, key, stability) for m in self.models], None, note

    def _score(self, prepared):
        key, views, reason, note = prepared
        if reason is not None:
            return self._error(key, reason)
        if self.cascade is not None:
            weights = self.models[0].weigh(make() for make in views)
            seen = self.cascade.scores(views, weights)
            return self._verdict(key, [[seen]], [[None if weights is None else weights[: len(seen)]]], note)
        scores = [split(m.run(sum(v, [])), v) for m, v in zip(self.models, views)]
        return self._verdict(key, scores, self._weights(views), note)

    def _weights(self, views):
        """For each model, the weights of the views of each version."""
        return [[m.weigh(version) for version in versions] for m, versions in zip(self.models, views)]

    def _error(self, key, reason):
        label = labels.NAMES.index(self.on_error) if self.on_error in labels.NAMES else None
        return Verdict(key, label=label, status=f"error: {reason}")

    def _verdict(self, key, scores, weights, note):
        """``scores`` and ``weights``: for each model, one array per version, with the image itself first."""
        if not all(np.isfinite(s).all() for versions in scores for s in versions):
            return self._error(key, "the network's output is not a finite number")
        fused = [self._fuse(*version) for version in zip(zip(*scores), zip(*weights))]
        score, per_model = fused[0]
        prob, label, decision = _vote.verdict(score, self.threshold, self.unsure)
        views = {m.name: m.calibrate(versions[0]).tolist() for m, versions in zip(self.models, scores)}
        counted = {m.name: versions[0].tolist() for m, versions in zip(self.models, weights) if versions[0] is not None}
        result = Verdict(key, score, prob, label, decision, "ok", per_model, views, counted)
        result.note = note
        if len(fused) > 1:
            probs = [float(labels.sigmoid(score)) for score, _ in fused]
            result.stability = dict(zip(("original", *STABILITY), probs))
        return result

    def _fuse(self, scores, weights):
        """Scores and weights of each model's views -> (fused score, score of each model)."""
        thresholds = self.fusion.thresholds
        each = {
            m.name: combined(m, s, self.vote, thresholds[m.name], w) for m, s, w in zip(self.models, scores, weights)
        }
        return self.fusion(each), each

    def score_of_first(self, verdict: Verdict, votes: int) -> float:
        """The score that a verdict of this detector would have with only the first ``votes`` views of each model."""
        scores = [m.uncalibrate(np.array(verdict.views[m.name][:votes])) for m in self.models]
        return self._fuse(scores, [verdict.weights.get(m.name, [])[:votes] or None for m in self.models])[0]

    # --- many --------------------------------------------------------------------------------------------------------
    def stream(self, items: Iterable[Tuple[str, Any]], stability: Optional[bool] = None) -> Iterator[Verdict]:
        """Score inputs one after the other.

        Parameters
        ----------
        items : iterable of (str, source)
            Key (the path that appears in the result and seeds the views), and a source that
            :func:`aidet.images.decode` accepts. Only a few items are read ahead.
        stability : bool, optional
            Whether to score re-saved and resized versions, too; default: the detector's own setting.

        Yields
        ------
        Verdict
            One for each item, in their order.

        Raises
        ------
        UserError
            Stability mode was requested from a detector with early exit or a cascade.
        """
        stability = self.stability if stability is None else stability
        if stability and self.cascade is not None:
            raise UserError("stability mode needs every view's score; make the detector without early_exit and cascade")
        prepare = functools.partial(self._prepare, stability)
        if all(m.threadsafe for m in self.models):
            yield from in_order(lambda item: self._score(prepare(item)), items, self.workers)
            return
        group = []
        grouped = self.cascade is None and any(m.device != "CPU" for m in self.models)
        chunk = self.batch_size if grouped else 1
        for prepared in in_order(prepare, items, self.workers):
            group.append(prepared)
            if len(group) == chunk:
                yield from self._score_group(group)
                group = []
        yield from self._score_group(group)

    def _score_group(self, group):
        """Score prepared images in shared batches, for devices that benefit from large batches."""
        good = [g for g in group if g[2] is None]
        if len(good) < 2:
            yield from map(self._score, group)
            return
        columns = []
        for i, model in enumerate(self.models):
            versions = [version for _, views, _, _ in good for version in views[i]]
            most = max(sum(map(len, views[i])) for _, views, _, _ in good)
            scores = iter(split(model.run(sum(versions, []), piece=self.batch_size * most), versions))
            columns.append([[next(scores) for _ in views[i]] for _, views, _, _ in good])
        rows = zip(zip(*columns), (self._weights(views) for _, views, _, _ in good))
        for key, _, reason, note in group:
            yield self._error(key, reason) if reason is not None else self._verdict(key, *next(rows), note)

    def score(self, sources: Iterable[Any], root: Union[None, str, Path] = None) -> List[Verdict]:
        """Score files, PIL images or uint8 arrays.

        Parameters
        ----------
        sources : iterable
            Paths, open images or arrays (H, W[, 3]).
        root : str or Path, optional
            Names are paths relative to this folder. The name seeds the random views, so with the same names ``score``
            and ``infer.py`` agree. Default: paths as given.

        Returns
        -------
        list of Verdict
            One for each source, in their order.

        Raises
        ------
        TypeError
            A single path instead of a list.
        """
        if isinstance(sources, (str, os.PathLike)):
            raise TypeError("score takes a list of sources; for one file write score([path])")

        def items():
            for i, source in enumerate(sources):
                path = isinstance(source, (str, os.PathLike))
                name = os.fspath(source) if path else f"image {i}"
                yield (Path(os.path.relpath(name, root)).as_posix() if path and root is not None else name), source

        return list(self.stream(items()))


def common_value(values: Iterable[Any]) -> Any:
    """The common value, or all values as a list if they differ; None if there are none."""
    values = list(values)
    return values[0] if len(set(values)) == 1 else values or None


def model_names(paths: Sequence[Union[str, Path]]) -> List[str]:
    """Short, unique names: the file's stem, with its folder if several files have the same stem."""
    stems = [Path(p).stem.replace(":", "-") for p in paths]
    names = [s if stems.count(s) == 1 else f"{Path(p).resolve().parent.name}/{s}" for p, s in zip(paths, stems)]
    return [n if names.count(n) == 1 else f"{n}#{names[: i + 1].count(n)}" for i, n in enumerate(names)]


def _of_foreign(checkpoints, **given):
    """For each checkpoint the options that only an ONNX file from elsewhere takes."""
    given = {name: value for name, value in given.items() if value is not None}
    onnx = [str(path).endswith(".onnx") for path in checkpoints]
    if given and not any(onnx):
        raise UserError(f"--{next(iter(given))} is for ONNX files from elsewhere; a checkpoint's sidecar has it")
    return [given if plain else {} for plain in onnx]


def _at_least_one(name, value):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} (={value!r}) must be a whole number >= 1")
    return value


def _threshold(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UserError(f"threshold (={value!r}) must be between 0 and 1")
    return float(value)
