"""What a detector says about one image, and about many."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from ..errors import UserError
from ..labels import sigmoid
from ..records import Record
from . import wording

if TYPE_CHECKING:
    import pandas


@dataclass
class Verdict(Record):
    """A :class:`~aidet.records.Record` with the details behind it.

    Attributes
    ----------
    view_scores : dict of str to list of float
        Calibrated scores of the views, per model.
    weights : dict of str to list of float
        Weight of each view, for the models that weight their views.
    threshold : float or None
        Above this ``prob`` the label is 1; None if the image could not be used.
    prior : float or None
        Share of generated images for which ``prob`` holds (0.5: equal odds); None if the detector states none.
    """

    view_scores: Dict[str, List[float]] = field(default_factory=dict)
    weights: Dict[str, List[float]] = field(default_factory=dict)
    threshold: Optional[float] = None
    prior: Optional[float] = None

    @property
    def percent(self) -> Optional[str]:
        """``prob`` as text on its own side of the threshold, such as ``71%``; None without a stated prior."""
        if self.prob is None or self.prior is None or self.threshold is None:
            return None
        return wording.percent_beside(self.prob, (self.threshold,))

    @property
    def statement(self) -> Optional[str]:
        """The verdict in words: ``71% likely generated (at equal odds); called generated above 80%``.

        For an image with too little evidence, the reason. None if there is neither such a reason nor a stated prior.
        """
        if self.reason:
            return f"too little evidence: {self.reason}"
        if self.prob is None or self.prior is None or self.threshold is None:
            return None
        return wording.statement(self.prob, self.threshold, self.prior)

    @property
    def views(self) -> Dict[str, List[float]]:
        """Calibrated probabilities of the views, per model, each in [0, 1]."""
        return {name: sigmoid(scores).tolist() for name, scores in self.view_scores.items()}

    @property
    def spread(self) -> Optional[float]:
        """Range of the probabilities of stability mode; None if the image was scored without it."""
        return max(self.stability.values()) - min(self.stability.values()) if self.stability else None

    @property
    def probability(self) -> Optional[float]:
        """Another name of ``prob``, in [0, 1]; None if the image could not be used."""
        return self.prob

    def to_dict(self) -> Dict[str, Any]:
        """Every attribute by its name, with the probabilities of the views; only numbers, strings, lists and dicts.

        ``json`` can write it. ``threshold``, ``prior`` and ``statement`` are there if the detector states a prior,
        ``reason`` if it has a rule on too little evidence, ``local`` if a localizer has seen the image.
        """
        found = {**asdict(self), "views": self.views, "statement": self.statement}
        absent = {"view_scores"}
        if self.prior is None:
            absent |= {"threshold", "prior", "statement"}
        absent.update(name for name in ("reason", "local") if getattr(self, name) is None)
        return {key: value for key, value in found.items() if key not in absent}


class Verdicts(List[Verdict]):
    """A list of verdicts, one for each image."""

    def to_frame(self) -> "pandas.DataFrame":
        """A table with a row for each image, in their order.

        Returns
        -------
        pandas.DataFrame
            The columns of ``scores.csv``: path, score, prob, label (nullable integers), decision, status, and
            ``score_NAME`` for each model if there are several; ``reason`` if the detector has a rule on too little
            evidence.

        Raises
        ------
        UserError
            pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError("to_frame needs pandas, which is not installed; run: pip install pandas") from None
        columns = ("path", "score", "prob", "label", "decision", "status")
        frame = pandas.DataFrame([[getattr(v, name) for name in columns] for v in self], columns=list(columns))
        frame["label"] = frame["label"].astype("Int64")
        models = list(dict.fromkeys(name for v in self for name in v.scores))
        for name in models if len(models) > 1 else ():
            frame[f"score_{name}"] = [v.scores.get(name) for v in self]
        if any(v.reason is not None for v in self):
            frame["reason"] = [v.reason or "" for v in self]
        return frame.astype({"score": float, "prob": float})
