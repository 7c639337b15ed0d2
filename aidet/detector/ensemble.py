"""From the views of an image to its verdict: every model scores, votes are combined, models are fused."""

from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from .. import images, labels
from . import vote as _vote
from .cascade import Cascade
from .network import combined, split
from .scorer import Scorer
from .verdict import Verdict
from .views import STABILITY
from .vote import Fusion


class Ensemble:
    """One or more models, the votes over their views, and their fusion: what :class:`aidet.Detector` decides with.

    Attributes
    ----------
    models : list of aidet.detector.scorer.Scorer
    fusion : aidet.detector.vote.Fusion
    vote : {"soft", "hard"}
    threshold : float
    unsure : (float, float) or None
    prior : float or None
        Share of generated images for which the probability holds; None if it was not calibrated for one.
    on_error : {"fail", "real", "generated", "skip"}
    reading : aidet.images.Reading
        How files are read.
    cascade : aidet.detector.cascade.Cascade or None
    batch_size : int
        Images in one network call on Ascend and GPU.
    """

    models: List[Scorer]
    fusion: Fusion
    vote: str
    threshold: float
    unsure: Optional[Tuple[float, float]]
    prior: Optional[float]
    on_error: str
    reading: images.Reading
    cascade: Optional[Cascade]
    batch_size: int

    def _prepare(self, stability, item):
        """(key, source) -> (key, views, error, note, lacking); without views, but with an error, if it is no image."""
        key, source = item
        try:
            image, note = self.reading.read(source)
        except images.ImageError as error:
            return key, None, str(error), "", None
        if self.cascade is not None:
            later = self.models[0].views.later(image, key)
            return key, later, None, note, self._lacking(image, [(make() for make in later)])
        views = [m.prepare(image, key, stability) for m in self.models]
        return key, views, None, note, self._lacking(image, [versions[0] for versions in views])

    def _lacking(self, image, views):
        """Why all models lack evidence in an image; "" if one has enough, None if one has no rule (it always has)."""
        found = [m.lacking(image, own) for m, own in zip(self.models, views)]
        return None if None in found else found[0] if all(found) else ""

    def _score(self, prepared):
        key, views, error, note, lacking = prepared
        if error is not None:
            return self.unusable(key, error)
        if self.cascade is not None:
            weights = self.models[0].weigh(make() for make in views)
            seen = self.cascade.scores(views, weights)
            return self._verdict(key, [[seen]], [[None if weights is None else weights[: len(seen)]]], note, lacking)
        scores = [split(m.run(sum(v, [])), v) for m, v in zip(self.models, views)]
        return self._verdict(key, scores, self._weights(views), note, lacking)

    def _weights(self, views):
        """For each model, the weights of the views of each version."""
        return [[m.weigh(version) for version in versions] for m, versions in zip(self.models, views)]

    @property
    def ruled(self) -> bool:
        """Whether there is a rule on too little evidence: every model states one."""
        return all(m.evidence is not None for m in self.models)

    def unusable(self, key: str, error: str) -> Verdict:
        """The verdict on an input that is no image that can be used, for the reason ``error``."""
        label = labels.NAMES.index(self.on_error) if self.on_error in labels.NAMES else None
        reason = "" if self.ruled else None
        return Verdict(key, label=label, status=f"error: {error}", reason=reason, prior=self.prior)

    def _verdict(self, key, scores, weights, note, lacking):
        """``scores`` and ``weights``: for each model, one array per version, with the image itself first."""
        if not all(np.isfinite(s).all() for versions in scores for s in versions):
            return self.unusable(key, "the network's output is not a finite number")
        fused = [self._fuse(*version) for version in zip(zip(*scores), zip(*weights))]
        score, per_model = fused[0]
        prob, label, decision = _vote.verdict(score, self.threshold, self.unsure)
        views = {m.name: m.calibrate(versions[0]).tolist() for m, versions in zip(self.models, scores)}
        counted = {m.name: versions[0].tolist() for m, versions in zip(self.models, weights) if versions[0] is not None}
        stability = {}
        if len(fused) > 1:
            probs = [float(labels.sigmoid(score)) for score, _ in fused]
            stability = dict(zip(("original", *STABILITY), probs))
        return Verdict(
            key, score, prob, label, "unsure" if lacking else decision, "ok", per_model, stability, note, lacking,
            view_scores=views, weights=counted, threshold=self.threshold, prior=self.prior,
        )  # fmt: skip

    def _fuse(self, scores, weights):
        """Scores and weights of each model's views -> (fused score, score of each model)."""
        thresholds = self.fusion.thresholds
        each = {
            m.name: combined(m, s, self.vote, thresholds[m.name], w) for m, s, w in zip(self.models, scores, weights)
        }
        return self.fusion(each), each

    def score_of_first(self, verdict: Verdict, votes: int) -> float:
        """The score that a verdict of this detector would have with only the first ``votes`` views of each model."""
        scores = [m.uncalibrate(np.array(verdict.view_scores[m.name][:votes])) for m in self.models]
        return self._fuse(scores, [verdict.weights.get(m.name, [])[:votes] or None for m in self.models])[0]

    def stated(self) -> Dict[str, Any]:
        """What a score depends on beside image and seed, as JSON: for logs that a later run may continue."""
        models = {m.name: {"identity": m.identity, **m.stated()} for m in self.models}
        return {"models": models, "vote": self.vote, "fusion": self.fusion.stated()}

    def _score_group(self, group):
        """Score prepared images in shared batches, for devices that benefit from large batches."""
        good = [g for g in group if g[2] is None]
        if len(good) < 2:
            yield from map(self._score, group)
            return
        columns = []
        for i, model in enumerate(self.models):
            versions = [version for _, views, *_ in good for version in views[i]]
            most = max(sum(map(len, views[i])) for _, views, *_ in good)
            scores = iter(split(model.run(sum(versions, []), piece=self.batch_size * most), versions))
            columns.append([[next(scores) for _ in views[i]] for _, views, *_ in good])
        rows = zip(zip(*columns), (self._weights(views) for _, views, *_ in good))
        for key, _, error, note, lacking in group:
            yield self.unusable(key, error) if error is not None else self._verdict(key, *next(rows), note, lacking)
