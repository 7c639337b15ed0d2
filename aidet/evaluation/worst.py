"""The worst errors of an evaluation: the images, and maps of the regions that the detector relied on."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from .. import archives, files, images, report, runtime
from ..cli import to_stderr
from ..detector import explain
from ..errors import UserError
from ..labels import GENERATED, NAMES, REAL
from .evaluation import Evaluation

OFF = "none"
ASK = "name the model with --explain A.ckpt"


class Maps:
    """The models whose maps the report can show, and the reasons why maps of other models are missing.

    Parameters
    ----------
    asked : list of str, optional
        ``--explain``: checkpoints, or ``["none"]``. Default: the checkpoints that produced the scores, if the facts of
        the run name files that still exist with the same SHA-256. Those get only Grad-CAM or attention roll-out, which
        take one or two passes per image; occlusion takes 65 passes of all views and runs only for models given here.
    run : dict, optional
        Facts of the run that produced the scores, see :func:`aidet.runinfo.read`.
    reading : aidet.images.Reading, optional
        How the images are read.

    Attributes
    ----------
    reading : aidet.images.Reading
    files : list of str
    missing : list of str
        One sentence for each model without maps: the reason.
    asked : bool
    shown : int
        Number of images that have maps.
    methods : list of str
        Keys of :data:`aidet.detector.explain.METHODS`.

    Raises
    ------
    UserError
        ``none`` together with checkpoints.
    """

    def __init__(
        self,
        asked: Optional[Sequence[str]] = None,
        run: Optional[Dict[str, Any]] = None,
        reading: Optional[images.Reading] = None,
    ) -> None:
        self.reading = reading or images.Reading()
        self.files: List[str] = []
        self.missing: List[str] = []
        self.asked = bool(asked)
        self.shown = 0
        self.methods: List[str] = []
        self._detector: Any = None
        self._orders: List[Optional[List[str]]] = []  # sides of the outputs of each file, as they were scored
        if asked and OFF in asked:
            if len(asked) > 1:
                others = ", ".join(a for a in asked if a != OFF)
                raise UserError(f"--explain {OFF} cannot be combined with {others}; choose one")
            self._none(f"--explain {OFF}")
        elif asked:
            self.files = list(asked)
        elif run is None:
            self._none(f"there is no run.json of infer.py for these scores beside them; {ASK}")
        else:
            for model in run["models"]:
                why = _unusable(model)
                if why:
                    self.missing.append(f"No map of {model['name']}: {why}.")
                else:
                    self.files.append(model["file"])
                    self._orders.append(model.get("order"))

    def of(self, image: Image.Image, key: str) -> List[Tuple[str, np.ndarray, str]]:
        """Maps of one decoded image.

        Returns
        -------
        list of (str, ndarray, str)
            As in :func:`aidet.detector.explain.maps`; empty if there are none, and :attr:`missing` gives the reason.
        """
        if not self.files:
            return []
        try:
            if self._detector is None:
                self._detector = self._open()
            found = explain.maps(self._detector, image, key, fallback=self.asked)
        except Exception as error:
            if self.asked:
                raise
            # MindSpore raises many exception types. Maps that were not requested must not stop an evaluation.
            self._none(" ".join(str(error).split())[:200])
            return []
        if not found:
            self._none(f"the network has no map of its own; --explain {self.files[0]} makes an occlusion map instead")
        self.shown += bool(found)
        self.methods += [method for _, _, method in found if method not in self.methods]
        return found

    def _open(self):
        from ..detector import detector

        # Only occlusion scores images: the other maps need no ONNX Runtime graph.
        settings: Dict[str, Any] = {} if self.asked else {"backend": "mindspore", "device": "CPU"}
        settings.update(vars(self.reading))
        orders = [order for order in self._orders if order]
        if orders and orders.count(orders[0]) == len(self.files):
            # --positive and --real of the run may have said something else than the sidecar.
            sides = {name: ",".join(str(i) for i, side in enumerate(orders[0]) if side == name) for name in NAMES}
            settings.update(positive=sides[NAMES[GENERATED]] or None, real=sides[NAMES[REAL]] or None, own_order=False)
        return detector.Detector(*self.files, say=to_stderr, **settings)

    def _none(self, why):
        self.missing.append(f"No maps of what the detector used: {why}.")
        self.files = []

    def legend(self) -> List[str]:
        """Sentences for the report: how to read the maps, and which could not be made."""
        if not self.shown:
            return self.missing
        words = " ".join(f"{m[0].upper()}{m[1:]}: {explain.METHODS[m]}." for m in self.methods)
        said = (
            "Beside each image stands the same image with a map over it: what the models use in their evaluation view, "
            "over the part of the image that it covers; other views that voted have no maps. Each map has its own "
            f"scale. {words}"
        )
        return [said, *self.missing]


def _unusable(model):
    """The reason why a model of ``run.json`` gets no map by default; empty if it gets one."""
    path = model.get("file")
    if not path:
        return f"run.json does not name its file; {ASK}"
    if not path.endswith(".ckpt"):
        return f"only a .ckpt gives gradients and attention; --explain {path} makes an occlusion map instead"
    if not Path(path).is_file():
        return f"{path} no longer exists; {ASK}"
    if files.sha256(path) != model["sha256"]:
        return f"{path} has changed since the scores were made (its SHA-256 differs); {ASK}"
    return "" if runtime.mindspore_version() else "MindSpore, which computes the maps, is not installed"


def places(evaluation: Evaluation, run: Optional[Dict[str, Any]] = None) -> List[Tuple[Path, List[str]]]:
    """Possible locations of the images: next to the labels, next to the scores, or where they were scored.

    Parameters
    ----------
    evaluation : Evaluation
    run : dict, optional
        See :class:`Maps`.

    Returns
    -------
    list of (Path, list of str)
        Each candidate folder, with the paths of all images relative to it.
    """
    paths = evaluation.paths
    found = [(evaluation.true.root, evaluation.true.located() or [])]
    found.append((Path(evaluation.scores.source).parent, paths))
    where = ((run or {}).get("options") or {}).get("images")
    if where:
        where = Path(where)
        found.append((where if where.is_dir() else where.parent, paths))
    return found


def section(
    evaluation: Evaluation, most: int, maps: Optional[Maps] = None, run: Optional[Dict[str, Any]] = None
) -> Optional[report.Section]:
    """The most confident errors of both kinds, with thumbnails and maps if the images can be found.

    Parameters
    ----------
    evaluation : Evaluation
    most : int
        Maximum number of errors of each class.
    maps : Maps, optional
    run : dict, optional
        See :class:`Maps`.

    Returns
    -------
    aidet.report.Section or None
        None if ``most`` is below 1.
    """
    if most < 1:
        return None
    scored = not evaluation.scores.decisions_only
    wrong = ranked(evaluation, most)
    if not wrong:
        return report.Section("Worst errors", ["There are no wrong decisions."])
    text = "The most confident wrong decisions." if scored else "The first wrong decisions."
    made, listed = report.Section("Worst errors", [text]), []
    maps, where = maps or Maps([OFF]), places(evaluation, run)
    for i in wrong:
        name, side, prob = evaluation.paths[i], evaluation.y[i], evaluation.scores.prob[i]
        listed.append([name, NAMES[side], report.number(prob if scored else None)])
        image = _decoded((folder / paths[i] for folder, paths in where), maps.reading)
        if image is None:
            continue
        seen = maps.of(image, name)
        title = f"{NAMES[side].capitalize()}, called {NAMES[1 - side]}{f' (p {prob:.3f})' if scored else ''}"
        said = name + "".join(f"; {method} of {model}" for model, _, method in seen)
        image.thumbnail((report.THUMBNAIL, report.THUMBNAIL))
        pictures = [image, *(explain.overlay(heat, image) for _, heat, _ in seen)]
        made.shots.append(report.Shot([uri for uri in map(report.thumbnail, pictures) if uri], said, title))
    if not made.shots:
        made.texts.append("The images were not found, so there are no thumbnails and no maps.")
        made.tables.append(report.Table("Most confident errors", ["path", "true class", "p(generated)"], listed))
        return made
    made.texts += maps.legend()
    return made


def ranked(evaluation: Evaluation, most: int) -> List[int]:
    """Rows of wrong decisions, most confident first: at most ``most`` real images, then at most ``most`` generated."""
    margin = np.where(evaluation.y == GENERATED, -evaluation.scores.score, evaluation.scores.score)
    wrong = (evaluation.label != evaluation.y) & (evaluation.label >= 0)
    wrong &= evaluation.scored | evaluation.scores.decisions_only
    sides = [np.flatnonzero(wrong & (evaluation.y == side)) for side in (REAL, GENERATED)]
    return [int(i) for own in sides for i in own[np.argsort(-margin[own], kind="stable")][:most]]


def _decoded(candidates, reading):
    """The first of the files, or of the images in archives, that exists and can be decoded; None if there is none."""
    for path in candidates:
        if path.is_file() or archives.parted(path):
            try:
                return reading.decode(path)
            except images.ImageError:
                continue
    return None
