"""What a detector says of one image, and of many."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from ..errors import UserError
from ..labels import sigmoid
from ..records import Record

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
    """

    view_scores: Dict[str, List[float]] = field(default_factory=dict)
    weights: Dict[str, List[float]] = field(default_factory=dict)

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
        """Every attribute by its name, of the views their probabilities; numbers, texts, lists and dicts only.

        ``json`` can write it.
        """
        found = asdict(self)
        del found["view_scores"]
        return {**found, "views": self.views}


class Verdicts(List[Verdict]):
    """A list of verdicts, one for each image."""

    def to_frame(self) -> "pandas.DataFrame":
        """A table with a row for each image, in their order.

        Returns
        -------
        pandas.DataFrame
            The columns of ``scores.csv``: path, score, prob, label (nullable integers), decision, status, and
            ``score_NAME`` for each model if there are several.

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
        return frame.astype({"score": float, "prob": float})
