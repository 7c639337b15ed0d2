"""The detector: one record for each image, in input order; memory use does not grow with the number of images."""

import functools
import io
import os
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union, overload

import numpy as np
from PIL import Image

from .. import ckpt, images
from ..errors import UserError, nearest
from ..labels import zone_around
from ..parallel import cpus, in_order
from . import asked, backends, decision, default
from . import vote as _vote
from .cascade import Cascade, open_first, score_margin_of
from .ensemble import Ensemble
from .network import Network
from .scorer import Scorer
from .verdict import Verdict, Verdicts
from .vote import VOTE_RULES, Fusion, unsure_zone

NOT_OF_RULES = ("positive", "real", "own_order", "precision")  # options of a network that a rule does not have
ON_ERROR = ("fail", "real", "generated", "skip")
# One image, as Detector.score takes it.
Source = Union[str, "os.PathLike[str]", bytes, BinaryIO, Image.Image, np.ndarray]


def open_scorer(path: Union[str, Path], name: str, **options: Any) -> Scorer:
    """A :class:`Network`, or a rule of :mod:`aidet.rules` if the path names one (``rule:size``, ``x.rule.json``)."""
    from . import rules

    if not rules.is_rule(path):
        return Network(path, name, **options)
    if options.get("precision") not in (None, "float32"):
        raise UserError(f"precision (={options['precision']!r}) is for networks; {name!r} is a rule")
    backends.check(options.get("backend", "auto"), options.get("device", "auto"))
    return rules.open_rule(path, name, **{k: v for k, v in options.items() if k not in NOT_OF_RULES})


class Detector(Ensemble):
    """One or more models, their votes and their fusion.

    Parameters
    ----------
    *checkpoints : str or Path
        ``.ckpt`` files with sidecars, exported ``.onnx`` files, or rules (:mod:`aidet.rules`); or one ``.yaml``, a
        fusion file that names its models. Default: the detector that ships with the package.
    backend : {"auto", "onnxruntime", "openvino", "mindspore"}
    votes : int, optional
        Views of each image and model. Default: the sidecar's ``voting``, else 1.
    vote : {"soft", "hard"}
        See :func:`aidet.detector.vote.combine_views`.
    fuse : {"soft", "hard", "soft-or", "score"} or path of a YAML file
        See :class:`aidet.detector.vote.Fusion`.
    threshold : float, optional
        Generated if ``prob > threshold``. Default: the sidecar's with one model and soft votes, else 0.5.
    operating_point : {"few-false-alarms", "balanced", "few-misses"}, optional
        The threshold that the sidecar of each model states for this purpose; not with ``threshold``.
    unsure : (float, float), "LOW,HIGH" or "none", optional
        Zone of the probability in which the decision is ``unsure``. Default: :func:`aidet.labels.zone_around` the
        threshold.
    views : str, optional
        ``random``, ``native``, ``grid``, ``pyramid``, ``five`` or a pipeline line: :class:`aidet.detector.views.Views`.
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
        A faster model of the same checkpoint (``export.py --int8`` or ``--bf16``) that is run first; if its score is so
        close to a threshold that an error within its stated margin could change the decision, the checkpoint itself
        decides. Needs one model on ONNX Runtime or OpenVINO, and no stability mode.
    seed : int
        Seed of the random views.
    workers : int, optional
        Threads that decode, transform and (with ONNX Runtime) run the network; default: the CPUs this process may use.
    batch_size : int
        Images in one network call on Ascend and GPU. On a CPU, a batch contains the views of only one image, so that a
        result cannot depend on other images.
    device : {"auto", "Ascend", "GPU", "CPU"}
    positive, real : str or int, optional
        Names or numbers, separated by commas, of the classes that mean generated, or real; see
        :func:`aidet.labels.class_order`.
    own_order : bool, optional
        A model whose sidecar says it keeps its own order in spite of them; default: if there are several models.
    precision : {"float32", "bfloat16", "int8"}, optional
        See :func:`aidet.detector.backends.open_model`.
    on_error : {"fail", "real", "generated", "skip"}
        ``real`` and ``generated`` give an unusable input that label; its status still says what was wrong.
    say : callable, optional
        Takes each message for the user, one line of text. Default: messages go to the logger ``aidet`` of
        :mod:`logging`, at INFO (an ONNX graph is made) or WARNING (a slower back end is used), and appear only if the
        application has enabled that logger.
    max_pixels, truncated :
        See :class:`aidet.images.Reading`.
    transform : str, optional
        For ``.onnx`` files from elsewhere, which need ``positive`` or ``real``, too: the pipeline line that makes their
        input.

    Attributes
    ----------
    models : list of aidet.detector.scorer.Scorer
    names : list of str
        Names of the models in result files.
    threshold : float
    operating_point : str or None
        Name of the sidecar's operating point that the threshold is; None if it is none of them.
    points : dict of str to float
        Thresholds at the operating points of a single model with soft votes, by name.
    prior : float or None
        Share of generated images for which the probability holds, as the sidecar of a single model with soft votes
        states it. None with early exit, whose score is not that of all views.
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
        An unknown choice, a value out of range, or a model that cannot be opened.

    Examples
    --------
    >>> import logging
    >>> logging.basicConfig(level=logging.INFO)  # show the detector's messages
    >>> detector = Detector("a.ckpt", votes=7)

    A detector can be pickled: it is opened again, from the same files and with the same arguments, where it is loaded.
    """

    def __init__(
        self,
        *checkpoints: Union[str, Path],
        backend: str = "auto",
        votes: Optional[int] = None,
        vote: str = "soft",
        fuse: Union[str, Path] = "soft",
        threshold: Optional[float] = None,
        operating_point: Optional[str] = None,
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
        real: Union[None, int, str] = None,
        own_order: Optional[bool] = None,
        precision: Optional[str] = None,
    ) -> None:
        given = {n: v for n, v in locals().items() if n not in ("self", "checkpoints", "__class__")}
        # A copy opens the same files, in whatever folder it is opened.
        places = {n: asked.absolute(given[n]) for n in ("fuse", "cascade")}
        self._made_from = tuple(map(asked.absolute, checkpoints)), {**given, **places}
        checkpoints, fuse, spec = asked.fusion(checkpoints or (default.path(),), fuse)
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
        stated: ckpt.Sidecar = spec["decisions"]
        if operating_point is not None:
            asked.check_point(operating_point, threshold, spec)
        threshold = spec.get("threshold") if threshold is None else threshold
        if threshold is not None:
            threshold = _threshold(threshold)
        zone = spec.get("unsure") if unsure is None else unsure
        given_zone = unsure_zone(zone)  # report a wrong one before any model is loaded
        points = stated.operating_points
        # A fusion file may say what a score means and where the line is, of several models or of one.
        fused = len(names) > 1 or bool(points) or stated.calibration != (1.0, 0.0) or stated.prior is not None
        calibration = stated.calibration if fused else None
        fusion = functools.partial(
            Fusion, spec.get("fuse", "soft"), names, spec.get("weights"), calibration=calibration, voted=vote == "hard"
        )
        fusion(spec.get("thresholds"))  # report a wrong name before any model is loaded
        options: Dict[str, Any] = {"votes": votes, "kind": views, "flips": flips, "seed": seed}
        options.update(backend=backend, device=device, say=say, precision=precision)
        options.update(positive=positive, real=real, own_order=len(checkpoints) > 1 if own_order is None else own_order)
        own = asked.of_foreign(checkpoints, transform)
        self.models = [open_scorer(p, name, **options, **more) for p, name, more in zip(checkpoints, names, own)]
        asked.check_rules(self.models, given)
        own_thresholds = {m.name: m.threshold_at(None if points else operating_point) for m in self.models}
        self.fusion = fusion({**own_thresholds, **(spec.get("thresholds") or {})})
        alone = not fused and vote == "soft"
        if points:
            line = decision.as_stated(stated, threshold, operating_point)
        elif alone:
            chosen, line_of_one = bool(spec.get("thresholds")), self.fusion.thresholds[names[0]]
            line = decision.of_model(self.models[0], line_of_one, threshold, operating_point, chosen)
        else:
            line = decision.Decision(0.5 if threshold is None else threshold, operating_point)
        self.threshold, self.operating_point, self.points = line
        # The probability holds for the views that it was measured with, and for one fused score only.
        as_measured = vote == "soft" and not early_exit and all(m.as_measured for m in self.models)
        moved = fused and (self.fusion.how == "hard" or bool(operating_point and not points))
        own_prior = stated.prior if fused else self.models[0].prior
        self.prior = own_prior if as_measured and not moved else None
        self.unsure = zone_around(self.threshold) if zone is None else given_zone
        self.cascade = self._cascade(cascade, early_exit, options) if one_by_one else None
        used = [m.views for m in self.models if m.views is not None]
        self.votes, self.views = (common_value(getattr(v, n) for v in used) for n in ("votes", "kind"))

    @property
    def calibrated(self) -> Tuple[float, float]:
        """``(scale, offset)`` of the final score: a single model's own, or that of the fusion or its file."""
        own = self.models[0] if self.fusion.plain else self.fusion
        return own.scale, own.offset

    def _cascade(self, path, early_exit, options):
        exact = self.models[0]
        first, margin, apart = None, 0.0, None
        if path is not None:
            # The file says what it runs on: the engine and precision that its margin was measured with.
            own = {**options, "backend": "auto", "device": "auto", "precision": None}
            first, margin = open_first(path, exact, lambda path: Network(path, exact.name, **own))

        def decide(scores, weights, moved=0.0):
            fused = self._fuse([scores], [weights])[0] + moved * self.fusion.scale
            return _vote.verdict(fused, self.threshold, self.unsure)[1:]

        if first is not None and self.vote == "soft" and not early_exit and self.fusion.follows:
            apart = score_margin_of(first.backend, exact.views, exact.scale / first.scale)
        return Cascade(exact, decide, early_exit, first, margin, apart)

    def __reduce__(self):
        return _opened, self._made_from

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

    @overload  # a text or bytes is also an iterable, of what is no source
    def score(  # type: ignore[overload-overlap]
        self, sources: Source, root: Union[None, str, Path] = ...
    ) -> Verdict: ...

    @overload
    def score(self, sources: Iterable[Source], root: Union[None, str, Path] = ...) -> Verdicts: ...

    def score(
        self, sources: Union[Source, Iterable[Source]], root: Union[None, str, Path] = None
    ) -> Union[Verdict, Verdicts]:
        """Score one image or several.

        Parameters
        ----------
        sources : source, or iterable of sources
            A source is a path, the bytes of an image file, a binary file object, a PIL image, or a uint8 array of shape
            (H, W) or (H, W, C) with 1, 3 or 4 channels. An array with one more dimension counts as several.
        root : str or Path, optional
            Names are paths relative to this folder. The name seeds the random views, so with the same names ``score``
            and ``infer.py`` agree. Default: paths as given; what has no path is called ``image 0``, ``image 1`` ...

        Returns
        -------
        Verdict or Verdicts
            One verdict for one source; for several, a list with one for each, in their order. An image that cannot be
            used has a verdict, too: its ``status`` is the reason.

        Raises
        ------
        TypeError
            Something that is not a source; the message says what is.

        Examples
        --------
        >>> detector.score("photo.jpg").decision
        'real'
        >>> detector.score(["a.jpg", "b.png"]).to_frame()  # needs pandas
        """
        alone = _is_source(sources)
        found = Verdicts(self.stream(_named([sources] if alone else sources, root)))
        return found[0] if alone else found


_NO_SOURCE = "cannot score {}; wanted a path, bytes, a binary file, a PIL image or a uint8 array, or a list of these"


def _is_source(value):
    if isinstance(value, np.ndarray):
        return value.ndim < 4
    return isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)) or hasattr(value, "read")


def _named(sources, root):
    """(name, source) of each source, as Detector.stream takes them."""
    if not isinstance(sources, Iterable):
        raise TypeError(_NO_SOURCE.format(f"a {type(sources).__name__}"))
    for i, source in enumerate(sources):
        if not _is_source(source):
            raise TypeError(_NO_SOURCE.format(f"item {i}, a {type(source).__name__}"))
        path = isinstance(source, (str, os.PathLike))
        name = os.fspath(source) if path else f"image {i}"
        if path and root is not None:
            name = Path(os.path.relpath(name, root)).as_posix()
        yield name, io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source


def _opened(checkpoints, options):
    """Open a detector again, for pickle."""
    return Detector(*checkpoints, **options)


def common_value(values: Iterable[Any]) -> Any:
    """The common value, or all values as a list if they differ; None if there are none."""
    values = list(values)
    return values[0] if len(set(values)) == 1 else values or None


def model_names(paths: Sequence[Union[str, Path]]) -> List[str]:
    """Short, unique names: the file's stem, with its folder if several files have the same stem."""
    stems = [Path(p).stem.replace(":", "-") for p in paths]
    names = [s if stems.count(s) == 1 else f"{Path(p).resolve().parent.name}/{s}" for p, s in zip(paths, stems)]
    return [n if names.count(n) == 1 else f"{n}#{names[: i + 1].count(n)}" for i, n in enumerate(names)]


def _at_least_one(name, value):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} (={value!r}) must be a whole number >= 1")
    return value


def _threshold(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UserError(f"threshold (={value!r}) must be between 0 and 1")
    return float(value)
