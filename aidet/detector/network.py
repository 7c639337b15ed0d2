"""One checkpoint or exported file, ready to score images."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np
from PIL import Image

from .. import ckpt, files, labels
from ..errors import UserError
from ..export import onnx_graph
from . import backends, foreign
from .scorer import Scorer
from .views import Views
from .vote import combine_views


class Network(Scorer):
    """A checkpoint, or an exported ``.onnx``, that is ready to score images.

    Parameters
    ----------
    path : str or Path
    name : str
        Its name in result files.
    backend, device, say, precision :
        See :func:`aidet.detector.backends.open_model`.
    transform : str, optional
        The pipeline of an ``.onnx`` from elsewhere, see :func:`aidet.detector.foreign.opened`.
    positive, real : str or int, optional
        Classes that mean generated, or real, if the sidecar does not say it or says something else; see
        :func:`aidet.labels.class_order`.
    own_order : bool
        A sidecar that says it is believed in spite of ``positive`` and ``real``.
    **views
        See :class:`aidet.detector.views.Views`.

    Raises
    ------
    UserError
        The file cannot be read, is not a detector, or cannot be run.
    """

    views: Views
    backend: Union[backends.OnnxRuntime, backends.OpenVino, backends.MindSpore]

    def __init__(
        self,
        path: Union[str, Path],
        name: str,
        backend: str = "auto",
        device: str = "auto",
        say: backends.Say = None,
        transform: Optional[str] = None,
        positive: Union[None, int, str] = None,
        real: Union[None, int, str] = None,
        own_order: bool = False,
        precision: Optional[str] = None,
        **views: Any,
    ) -> None:
        self.path, self.name = Path(path), name
        onnx = self.path.suffix == ".onnx"
        session = None
        if transform is not None:
            backends.check(backend, device, precision)
            if backend not in ("auto", "onnxruntime") or device not in ("auto", "CPU") or precision is not None:
                raise UserError(
                    f"{str(path)!r}: an ONNX file from elsewhere runs on ONNX Runtime on the CPU, as it is; leave out "
                    "--backend, --device and --precision"
                )
            self.sidecar, session = foreign.opened(path, transform, positive, real)
            self.order = self.sidecar.detector_order
        else:
            self.sidecar = onnx_graph.sidecar_of(path) if onnx else ckpt.Sidecar.read(path)
            self.order = self.sidecar.order_named(positive, real, always=not own_order)
        sidecar = self.sidecar
        line, voting = sidecar.detector_transform, sidecar.voting.settings(**views)
        self.views = Views(line, line=sidecar.views_line, **voting)
        own = Views(line, line=sidecar.views_line, **sidecar.voting.settings())
        self.as_measured = all(getattr(self.views, n) == getattr(own, n) for n in ("votes", "kind", "flips", "weights"))
        self.threshold, self.point, self.prior = sidecar.threshold, sidecar.operating_point, sidecar.prior
        self.points = {name: point.threshold for name, point in sidecar.operating_points.items()}
        self.evidence = sidecar.evidence
        self.scale, self.offset = sidecar.calibration
        self.backend = session or backends.open_model(sidecar, backend, self.views.size, device, say, precision)
        self.threadsafe, self.device = self.backend.threadsafe, self.backend.device
        self.backend_name = self.backend.name
        # An exported file states the hash of the checkpoint it was made from, even if it was quantised afterwards.
        self.identity = files.sha256(self.path) if onnx else sidecar.identity

    def views_of(self, image: Image.Image, key: str) -> List[np.ndarray]:
        """The views that the model votes over: list of float32 (3, h, w)."""
        return self.views(image, key)

    def run(self, views: Sequence[np.ndarray], piece: Optional[int] = None) -> np.ndarray:
        """Views -> raw scores, float64 (V,). Views of the same shape are run in batches of at most ``piece``."""
        piece = piece or backends.PIECE
        scores = np.empty(len(views))
        by_shape: Dict[Any, Any] = {}
        for i, view in enumerate(views):
            by_shape.setdefault(view.shape, []).append(i)
        for places in by_shape.values():
            for start in range(0, len(places), piece):
                some = places[start : start + piece]
                batch = views[some[0]][None] if len(some) == 1 else np.stack([views[i] for i in some])
                scores[some] = self.scores_of(batch)
        return scores

    def scores_of(self, batch: np.ndarray) -> np.ndarray:
        """float32 (N, 3, h, w) -> raw scores (N,)."""
        assert self.order is not None  # set above; a rule, which has none, has a scores_of of its own
        return labels.score_from_logits(self.backend(batch), self.order)


def combined(
    model: Scorer, scores: np.ndarray, vote: str, threshold: float, weights: Optional[np.ndarray] = None
) -> float:
    """One score of a model from its views' scores; they are calibrated after a soft vote, or before a hard one."""
    if vote == "hard":
        return combine_views(model.calibrate(scores), vote, threshold, weights)
    return model.calibrate(combine_views(scores, vote, weights=weights))


def split(scores: np.ndarray, groups: Sequence[Sequence]) -> List[np.ndarray]:
    """Split the scores of concatenated groups of views back into one array per group."""
    return np.split(scores, np.cumsum([len(g) for g in groups])[:-1])
