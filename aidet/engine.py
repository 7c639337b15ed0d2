"""The detector: from files to one record each, in their order, with memory that does not grow with their number."""

import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np

from . import backends, ckpt, files, images, labels, onnx_export
from . import vote as _vote
from .errors import UserError, nearest
from .records import Record

ON_ERROR = ("fail", "real", "generated", "skip")
# A score whose probability is 0 or 1 in float64: what a view that was not looked at could have said at most.
SURE = 50.0


@dataclass
class Verdict(Record):
    """A :class:`~aidet.records.Record` with what led to it.

    Attributes
    ----------
    views : dict of str to list of float
        Scores of every view, per model.
    weights : dict of str to list of float
        How much every view counted, for the models whose views do not count alike.
    stability : dict of str to float
        In stability mode, the fused probability of the image and of its re-saved and resized versions, by what was
        done ("original" first).
    """

    views: Dict[str, List[float]] = field(default_factory=dict)
    weights: Dict[str, List[float]] = field(default_factory=dict)
    stability: Dict[str, float] = field(default_factory=dict)

    @property
    def spread(self) -> Optional[float]:
        """Largest minus smallest probability of stability mode; None outside it."""
        return max(self.stability.values()) - min(self.stability.values()) if self.stability else None


class Network:
    """One checkpoint (or exported ``.onnx``) ready to score images.

    Parameters
    ----------
    path : str or Path
    name : str
        How result files call it.
    backend, device, say :
        See :func:`aidet.backends.open_model`.
    **views
        See :class:`aidet.vote.Views`.
    """

    def __init__(self, path, name, backend="auto", device="auto", say=None, **views):
        self.path, self.name = Path(path), name
        onnx = self.path.suffix == ".onnx"
        self.sidecar = sidecar = onnx_export.sidecar_of(path) if onnx else ckpt.Sidecar.read(path)
        self.order = sidecar.detector_order
        transform, voting = sidecar.detector_transform, sidecar.voting.settings(**views)
        self.views = _vote.Views(transform, line=sidecar.views_line, **voting)
        self.threshold = sidecar.threshold
        self.scale, self.offset = sidecar.calibration
        self.backend = backends.open_model(sidecar, backend, self.views.size, device, say)
        self.threadsafe, self.device = self.backend.threadsafe, self.backend.device
        self.backend_name = self.backend.name
        # An exported file states the hash of the checkpoint it was made from, also where it was quantised since.
        self.identity = files.sha256(self.path) if onnx else sidecar.identity

    def prepare(self, image, key, stability=False):
        """PIL image -> list of lists of views: the image's own; in stability mode its changed versions', too."""
        return [self.views(i, key) for i in [image, *(_vote.changed_images(image) if stability else [])]]

    def run(self, views, piece=backends.PIECE):
        """Views -> scores, float64 (V,). Equal shapes go together, ``piece`` at a time."""
        scores = np.empty(len(views))
        by_shape = {}
        for i, view in enumerate(views):
            by_shape.setdefault(view.shape, []).append(i)
        for places in by_shape.values():
            for start in range(0, len(places), piece):
                some = places[start : start + piece]
                batch = views[some[0]][None] if len(some) == 1 else np.stack([views[i] for i in some])
                scores[some] = self.scores_of(batch)
        return scores

    def scores_of(self, batch):
        """float32 (N, 3, h, w) -> scores (N,)."""
        return labels.score_from_logits(self.backend(batch), self.order)

    def calibrate(self, score):
        """Scores as the network and the vote give them -> as the sidecar's ``calibration`` says they are to be read."""
        return self.scale * (score - self.offset)

    def uncalibrate(self, score):
        """The other way."""
        return score / self.scale + self.offset


def open_detector(path, name, **options):
    """A :class:`Network`, or a rule of :mod:`aidet.rules` where the path names one (``rule:size``, ``x.rule.json``)."""
    from . import rules

    return rules.open_rule(path, name, **options) if rules.is_rule(path) else Network(path, name, **options)


class Detector:
    """One or several models, their votes and their fusion.

    Parameters
    ----------
    *checkpoints : str or Path
        ``.ckpt`` files with sidecars, exported ``.onnx`` files, or rules (:mod:`aidet.rules`).
    backend : {"auto", "onnxruntime", "mindspore"}
    votes : int, optional
        Views of each image and model. Default: the sidecar's ``voting``, else 1.
    vote : {"soft", "hard"}
        See :func:`aidet.vote.combine_views`.
    fuse : {"soft", "hard", "soft-or", "score"} or path of a YAML file
        See :class:`aidet.vote.Fusion`.
    threshold : float, optional
        Generated where ``prob > threshold``. Default: the sidecar's with one model and soft votes, else 0.5.
    unsure : (float, float) or "LOW,HIGH", optional
    views : str, optional
        ``random``, ``native``, ``grid``, ``pyramid`` or a pipeline line, see :class:`aidet.vote.Views`. Default: the
        sidecar's ``voting``, else ``random``.
    flips, stability : bool
    early_exit : bool
        Look at no more views than the decision needs: it is the one that all views would have given, the score is that
        of the views seen (Teerapittayanon et al. 2016 leave a network early in this way). One model, no stability mode.
    cascade : str or Path, optional
        An eight-bit model of the same checkpoint (``export.py --int8``) that looks first; where its score is so near to
        a boundary that its stated margin could change the decision, the checkpoint itself decides. One model on ONNX
        Runtime, no stability mode.
    seed : int
        Of the random views.
    workers : int, optional
        Threads that decode, transform and (with ONNX Runtime) run the network; default: the CPUs this process may use.
    batch_size : int
        Images in one network call on Ascend and GPU. On a CPU the views of one image are one call, so that no result
        can depend on its neighbours.
    device : {"auto", "Ascend", "GPU", "CPU"}
    on_error : {"fail", "real", "generated", "skip"}
        ``real`` and ``generated`` give an unusable input that label; its status still says what was wrong.
    say : callable, optional
        Takes a line for the user; default: print to stderr.

    Raises
    ------
    UserError
    """

    def __init__(
        self,
        *checkpoints,
        backend="auto",
        votes=None,
        vote="soft",
        fuse="soft",
        threshold=None,
        unsure=None,
        views=None,
        flips=False,
        stability=False,
        early_exit=False,
        cascade=None,
        seed=42,
        workers=None,
        batch_size=32,
        device="auto",
        on_error="fail",
        say=None,
    ):
        if not checkpoints:
            raise UserError("no checkpoint given; name at least one")
        if vote not in _vote.VOTES:
            raise UserError(nearest(vote, _vote.VOTES, "vote"))
        if on_error not in ON_ERROR:
            raise UserError(nearest(on_error, ON_ERROR, "on_error"))
        self.workers = cpus() if workers is None else _at_least_one("workers", workers)
        self.batch_size = _at_least_one("batch_size", batch_size)
        self.vote, self.stability, self.early_exit, self.on_error = vote, stability, early_exit, on_error
        # Views one by one, and with them what can do without some of them.
        self.one_by_one = early_exit or cascade is not None
        if self.one_by_one and (len(checkpoints) > 1 or stability):
            what = "early_exit" if early_exit else "cascade"
            raise UserError(f"{what} takes one model and no stability mode, which need every view's score")
        settings = {"votes": votes, "kind": views, "flips": flips, "seed": seed}
        names = model_names(checkpoints)
        spec = {"fuse": fuse} if fuse in _vote.FUSIONS else _vote.read_fusion(fuse)
        threshold = spec.get("threshold") if threshold is None else threshold
        if threshold is not None:
            threshold = _threshold(threshold)
        self.unsure = _vote.unsure_zone(spec.get("unsure") if unsure is None else unsure)
        how = spec.get("fuse", "soft")
        _vote.Fusion(how, names, spec.get("weights"), spec.get("thresholds"))  # wrong names are said before loading
        common = {"backend": backend, "device": device, "say": say, **settings}
        self.models = [open_detector(path, name, **common) for path, name in zip(checkpoints, names)]
        own = {m.name: m.threshold for m in self.models}
        if self.one_by_one and not hasattr(self.models[0], "views"):
            raise UserError(f"early_exit and cascade are for networks with views; {names[0]!r} is a rule")
        self.first, self.margin, self.twice = None, 0.0, Count()
        if cascade is not None:
            self._open_first(cascade, common)
        self.fusion = _vote.Fusion(how, names, spec.get("weights"), {**own, **(spec.get("thresholds") or {})})
        alone = len(names) == 1 and vote == "soft"
        self.threshold = threshold if threshold is not None else self.fusion.thresholds[names[0]] if alone else 0.5
        self.names = names
        used = [m.views for m in self.models if hasattr(m, "views")]
        # What the models voted with, whether asked for or their own: one value where they agree.
        self.votes, self.views = (one(getattr(v, n) for v in used) for n in ("votes", "kind"))

    # --- one image ---------------------------------------------------------------------------------------------------
    def _prepare(self, item):
        key, source = item
        try:
            image = images.decode(source)
        except images.ImageError as error:
            return key, None, str(error)
        if self.one_by_one:
            return key, self.models[0].views.later(image, key), None
        return key, [m.prepare(image, key, self.stability) for m in self.models], None

    def _score(self, prepared):
        key, views, reason = prepared
        if reason is not None:
            return self._error(key, reason)
        if self.one_by_one:
            weights = weights_of(self.models[0], (make() for make in views))
            seen = self._looked(views, weights)
            return self._verdict(key, [[seen]], [[None if weights is None else weights[: len(seen)]]])
        scores = [split(m.run(sum(v, [])), v) for m, v in zip(self.models, views)]
        return self._verdict(key, scores, self._weights(views))

    def _weights(self, views):
        """Weights of each model's groups of views."""
        return [[weights_of(m, group) for group in groups] for m, groups in zip(self.models, views)]

    def _open_first(self, path, common):
        """The eight-bit network of a cascade, which has to be of the checkpoint's own weights."""
        from . import quantize

        exact = self.models[0]
        if exact.backend_name != "onnxruntime":
            raise UserError(f"cascade is for ONNX Runtime on a CPU; {exact.name} runs on {exact.backend_name}")
        if Path(path).suffix != ".onnx":
            raise UserError(f"cascade (={str(path)!r}) must be an .onnx of export.py --int8")
        self.first = Network(path, exact.name, **common)
        # Both state the checkpoint; that of a checkpoint without the statement is its own hash.
        if self.first.sidecar.sha256 != (exact.sidecar.sha256 or exact.identity):
            raise UserError(f"cascade (={str(path)!r}) was not made from {str(exact.path)!r}; export that with --int8")
        self.margin = quantize.margin_of(self.first.backend, path, exact.views) / exact.scale

    def _looked(self, views, weights):
        """Scores of one image's views, of the cascade's first network where they settle the decision."""
        if self.first is not None:
            seen = self._enough(self.first, views, weights, self.margin)
            if self._settled(seen, len(views) - len(seen), weights, self.margin):
                return seen
            self.twice.add()
        return self._enough(self.models[0], views, weights)

    def _enough(self, model, views, weights, margin=0.0):
        """Scores of the first views, as many as settle the decision; ``views``: functions that make them."""
        seen = np.zeros(0)
        while len(seen) < len(views) and np.isfinite(seen).all():
            left = len(views) - len(seen)
            more = self._needed(seen, left, weights, margin) if self.early_exit else left
            if not more:
                break
            seen = np.append(seen, model.run([make() for make in views[len(seen) : len(seen) + more]]))
        return seen

    def _needed(self, seen, left, weights, margin):
        """The smallest number of the views left that could settle the decision, 0 where it is settled."""
        for more in range(0 if len(seen) else 1, left):
            ends = (np.append(seen, np.full(more, s)) for s in (-SURE, SURE))
            if any(self._settled(end, left - more, weights, margin) for end in ends):
                return more
        return left

    def _settled(self, seen, left, weights, margin=0.0):
        """Whether the decision stays, whatever the views left say and however far within ``margin`` the seen ones err.

        Every vote is monotone in each view's score, so the ends tell: all surely real, all surely generated.
        """
        low, high = (np.append(seen + s * margin, np.full(left, s * SURE)) for s in (-1, 1))
        return bool(np.isfinite(seen).all()) and self._decision(low, weights) == self._decision(high, weights)

    def _decision(self, scores, weights):
        """(label, decision) of one model's views."""
        return _vote.verdict(self._fuse([scores], [weights])[0], self.threshold, self.unsure)[1:]

    def _error(self, key, reason):
        label = labels.NAMES.index(self.on_error) if self.on_error in labels.NAMES else None
        return Verdict(key, label=label, status=f"error: {reason}")

    def _verdict(self, key, scores, weights):
        """``scores``, ``weights``: for each model those of its views: of the image, then of its changed versions."""
        if not all(np.isfinite(s).all() for groups in scores for s in groups):
            return self._error(key, "the network's output is not a finite number")
        columns = [self._fuse(*column) for column in zip(zip(*scores), zip(*weights))]
        score, per_model = columns[0]
        prob, label, decision = _vote.verdict(score, self.threshold, self.unsure)
        views = {m.name: m.calibrate(groups[0]).tolist() for m, groups in zip(self.models, scores)}
        counted = {m.name: groups[0].tolist() for m, groups in zip(self.models, weights) if groups[0] is not None}
        result = Verdict(key, score, prob, label, decision, "ok", per_model, views, counted)
        if self.stability:
            probs = [float(labels.sigmoid(fused)) for fused, _ in columns]
            result.stability = dict(zip(("original", *_vote.STABILITY), probs))
        return result

    def _fuse(self, scores, weights):
        """Views' scores and weights of each model to the fused score, and one score for each model."""
        thresholds = self.fusion.thresholds
        each = {
            m.name: combined(m, s, self.vote, thresholds[m.name], w) for m, s, w in zip(self.models, scores, weights)
        }
        return self.fusion(each), each

    def score_of_first(self, verdict, votes):
        """Score of a :class:`Verdict` of this detector had it taken only the first ``votes`` views of each model."""
        scores = [m.uncalibrate(np.array(verdict.views[m.name][:votes])) for m in self.models]
        return self._fuse(scores, [verdict.weights.get(m.name, [])[:votes] or None for m in self.models])[0]

    # --- many --------------------------------------------------------------------------------------------------------
    def stream(self, items):
        """Score inputs one after the other.

        Parameters
        ----------
        items : iterable of (str, source)
            Key (the path that stands in the result, and that seeds the views) and what :func:`aidet.images.decode`
            takes. Read a few items ahead, never as a whole.

        Yields
        ------
        Verdict
            One for each item, in their order.
        """
        safe = all(m.threadsafe for m in self.models)
        if safe:
            yield from in_order(lambda item: self._score(self._prepare(item)), items, self.workers)
            return
        group = []
        grouped = not self.one_by_one and any(m.device != "CPU" for m in self.models)
        chunk = self.batch_size if grouped else 1
        for prepared in in_order(self._prepare, items, self.workers):
            group.append(prepared)
            if len(group) == chunk:
                yield from self._score_group(group)
                group = []
        yield from self._score_group(group)

    def _score_group(self, group):
        """Score prepared images together, where a device gains from large calls."""
        good = [g for g in group if g[2] is None]
        if len(good) < 2:
            yield from map(self._score, group)
            return
        columns = []
        for i, model in enumerate(self.models):
            groups = [group for _, views, _ in good for group in views[i]]
            most = max(sum(map(len, views[i])) for _, views, _ in good)
            scores = iter(split(model.run(sum(groups, []), piece=self.batch_size * most), groups))
            columns.append([[next(scores) for _ in views[i]] for _, views, _ in good])
        rows = zip(zip(*columns), (self._weights(views) for _, views, _ in good))
        for key, _, reason in group:
            yield self._error(key, reason) if reason is not None else self._verdict(key, *next(rows))

    def score(self, sources, root=None):
        """Score files, PIL images or uint8 arrays.

        Parameters
        ----------
        sources : iterable
            Paths, open images or arrays (H, W[, 3]).
        root : str or Path, optional
            Folder that paths are named relative to; the name seeds the random views, so that ``score`` and ``infer.py``
            agree. Default: names as given.

        Returns
        -------
        list of Verdict
            One for each source, in their order.
        """
        if isinstance(sources, (str, os.PathLike)):
            raise TypeError("score takes a list of sources; for one file write score([path])")

        def items():
            for i, source in enumerate(sources):
                path = isinstance(source, (str, os.PathLike))
                name = os.fspath(source) if path else f"image {i}"
                yield (Path(os.path.relpath(name, root)).as_posix() if path and root is not None else name), source

        return list(self.stream(items()))


class Count:
    """A number that several threads add to."""

    def __init__(self):
        self.value, self.lock = 0, threading.Lock()

    def add(self):
        with self.lock:
            self.value += 1


def combined(model, scores, vote, threshold, weights=None):
    """One score of a model from its views' scores; calibrated after a soft vote, before a hard one."""
    if vote == "hard":
        return _vote.combine_views(model.calibrate(scores), vote, threshold, weights)
    return model.calibrate(_vote.combine_views(scores, vote, weights=weights))


def weights_of(model, views):
    """How much each view of one image counts for a model; None where all count alike, as for a rule."""
    return model.views.weigh(views) if hasattr(model, "views") else None


def one(values):
    """The value that all share, else the list of them; None where there is none."""
    values = list(values)
    return values[0] if len(set(values)) == 1 else values or None


def split(scores, groups):
    """Scores of views that stood one after the other, by the groups they came from."""
    return np.split(scores, np.cumsum([len(g) for g in groups])[:-1])


def in_order(work, items, workers):
    """``map`` over threads with a window, so that neither inputs nor results pile up; results in order."""
    items = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="aidet") as pool:
        window = deque()
        try:
            for item in items:
                window.append(pool.submit(work, item))
                if len(window) >= 4 * workers:
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            for future in window:
                future.cancel()


def model_names(paths):
    """Short distinct names: the file's stem, with its folder where stems repeat."""
    stems = [Path(p).stem.replace(":", "-") for p in paths]
    names = [s if stems.count(s) == 1 else f"{Path(p).resolve().parent.name}/{s}" for p, s in zip(paths, stems)]
    return [n if names.count(n) == 1 else f"{n}#{names[: i + 1].count(n)}" for i, n in enumerate(names)]


def cpus():
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _at_least_one(name, value):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} (={value!r}) must be a whole number >= 1")
    return value


def _threshold(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UserError(f"threshold (={value!r}) must be between 0 and 1")
    return float(value)
