"""The sidecar: the JSON file beside a checkpoint that says how to use its weights."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np

from .. import files, labels
from ..errors import UserError
from .points import Evidence, OperatingPoint, default_point, read_evidence, read_points, read_prior

FORMAT = 1
Side = Union[None, int, str]  # classes that a user names


def sidecar_path(path: Union[str, Path]) -> Path:
    """``x.ckpt`` -> ``x.json``."""
    return Path(path).with_suffix(".json")


def read_sidecar(path: Union[str, Path], check_hash: bool = True) -> Dict[str, Any]:
    """Read and check the sidecar of a checkpoint.

    Parameters
    ----------
    path : str or Path
        The checkpoint.
    check_hash : bool
        Compare the SHA-256 of the file with the one in the sidecar.

    Returns
    -------
    dict

    Raises
    ------
    UserError
        Missing checkpoint or sidecar, unknown format, or a file other than the one described.
    """
    path = Path(path)
    if not path.is_file():
        folder, what = (path, "is a folder") if path.is_dir() else (path.parent, "does not exist")
        near = sorted(p.name for p in folder.glob("*.ckpt"))[:5] if folder.is_dir() else []
        raise UserError(f"checkpoint {str(path)!r} {what}" + (f"; there is {', '.join(near)}" if near else ""))
    if path == sidecar_path(path):
        raise UserError(f"{str(path)!r} is a sidecar; name the checkpoint that it describes, {path.stem}.ckpt")
    if not sidecar_path(path).is_file():
        described = [p.name for p in sorted(path.parent.glob("*.ckpt")) if sidecar_path(p).is_file()]
        raise UserError(
            f"{str(path)!r} has no sidecar {sidecar_path(path).name!r}; "
            "convert or train it with this project to get one"
            + (f", or name a checkpoint that has one: {', '.join(described[:3])}" if described else "")
        )
    facts = files.read_json(sidecar_path(path), "sidecar")
    check_facts(facts, f"sidecar {str(sidecar_path(path))!r}")
    if check_hash:
        Sidecar(facts, path).verify()
    return facts


_KINDS = {"output": dict, "arguments": dict, "input": dict, "class_order": list, "classes": list}


def check_facts(facts: Any, what: str) -> None:
    """Check the form of a sidecar or of a model's metadata; :class:`UserError` names the wrong entry."""
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or not isinstance(facts.get("architecture"), str):
        raise UserError(f"{what} is not of format {FORMAT}: it needs 'format' and 'architecture'")
    for name, kind in _KINDS.items():
        if not isinstance(facts.get(name), (kind, type(None))):
            raise UserError(f"{what}: {name!r} is a {type(facts[name]).__name__}, wanted a {kind.__name__}")
    for name in ("class_order", "classes"):
        if any(not isinstance(value, str) for value in facts.get(name) or ()):
            raise UserError(f"{what}: {name!r} must be texts")


@dataclass(frozen=True)
class Voting:
    """How a detector's views are made and weighted; see :class:`aidet.detector.views.Views`, which checks the values.

    Attributes
    ----------
    votes : int
        Views of each image.
    views : str
        ``random``, ``native``, ``grid``, ``pyramid``, ``five`` or a pipeline line.
    weights : str
        ``equal`` or ``detail``.
    """

    votes: int = 1
    views: str = "random"
    weights: str = "equal"

    def settings(self, votes: Optional[int] = None, kind: Optional[str] = None, **others: Any) -> Dict[str, Any]:
        """Arguments of :class:`aidet.detector.views.Views`; what the caller leaves open (None) is taken from here.

        A detector should be used with the views that it was measured with and that its threshold was chosen for.
        """
        votes = self.votes if votes is None else votes
        kind = self.views if kind is None else kind
        return {"votes": votes, "kind": kind, "weights": self.weights, **others}


@dataclass(frozen=True, eq=False)
class Sidecar:
    """The facts of one model: what the JSON file beside a checkpoint, or the metadata of an exported ``.onnx``, says.

    Created by :meth:`read` or :meth:`from_facts`, which check the form. What only some models have and only some users
    need (the class order of a detector, its threshold) is checked on access, so that a backbone or an autoencoder can
    be read like any other model.

    Parameters
    ----------
    raw : dict
        The facts as in the file. Must not be changed.
    path : str or Path
        The model that they describe; errors name it.
    """

    raw: Dict[str, Any]
    path: Union[str, Path]

    @classmethod
    def read(cls, path: Union[str, Path], check_hash: bool = True) -> "Sidecar":
        """The sidecar of a checkpoint; parameters and errors as of :func:`read_sidecar`."""
        return cls(read_sidecar(path, check_hash), path)

    @classmethod
    def from_facts(cls, facts: Dict[str, Any], path: Union[str, Path], what: str) -> "Sidecar":
        """Facts from elsewhere, such as the metadata of an ONNX file.

        Parameters
        ----------
        facts : dict
        path : str or Path
            The model that they describe.
        what : str
            Source of the facts, for the error message.

        Raises
        ------
        UserError
            They do not have the form of a sidecar.
        """
        check_facts(facts, what)
        return cls(facts, path)

    def verify(self) -> None:
        """Compare the checkpoint with the hash that its sidecar states, if any; :class:`UserError` if they differ."""
        if self.sha256 and files.sha256(self.path) != self.sha256:
            raise UserError(
                f"{str(self.path)!r} is not the file its sidecar describes (sha256 differs); copy both again"
            )

    # --- the network -------------------------------------------------------------------------------------------------
    @property
    def architecture(self) -> str:
        """Name for :func:`aidet.models.create`."""
        return self.raw["architecture"]

    @property
    def arguments(self) -> Dict[str, Any]:
        """Arguments of :func:`aidet.models.create`."""
        return self.raw.get("arguments") or {}

    @property
    def sha256(self) -> Optional[str]:
        """Stated hash of the checkpoint, in hex; for an exported file that of the checkpoint it was made from."""
        return (self.raw.get("output") or {}).get("sha256")

    @functools.cached_property
    def identity(self) -> str:
        """Hash of the checkpoint, in hex: the stated one, else computed from the file."""
        return self.sha256 or files.sha256(self.path)

    # --- its output --------------------------------------------------------------------------------------------------
    @property
    def classes(self) -> Optional[List[str]]:
        """Name of each output, if known."""
        return self.raw.get("classes")

    @property
    def class_order(self) -> Optional[List[str]]:
        """``real`` or ``generated`` for each output, as stated; None if the model is not a detector."""
        return self.raw.get("class_order")

    @property
    def detector_order(self) -> List[str]:
        """The class order of a detector; :class:`UserError` if the model is none, or takes no photograph."""
        if self._input.get("refuse"):
            raise UserError(f"{str(self.path)!r} scores no photograph: {self._input['refuse']}")
        order = self.class_order
        if not order or any(o not in labels.NAMES for o in order):
            classes = self.classes or []
            shown = ", ".join(map(str, classes[:4])) + (", ..." if len(classes) > 4 else "")
            raise UserError(
                f"{str(self.path)!r} is no detector: its classes ({shown or 'unknown'}) do not mean real and generated"
                f"; {labels.remedy(classes, self.raw.get('num_outputs'))}"
            )
        return order

    def order_named(self, positive: Side = None, real: Side = None, always: bool = True) -> List[str]:
        """The class order as the user names it; without ``positive`` and ``real`` that of :attr:`detector_order`.

        Parameters
        ----------
        positive, real : str, optional
            See :func:`aidet.labels.class_order`.
        always : bool
            False: a model that states its own order keeps it.

        Raises
        ------
        UserError
            A name that no class has, or not all classes are decided.
        """
        if (positive is None and real is None) or (self.class_order and not always):
            return self.detector_order
        count = self.raw.get("num_outputs")
        names = self.classes or [str(i) for i in range(count if isinstance(count, int) and count < 1 << 16 else 0)]
        try:
            return labels.class_order(names, positive, real)
        except UserError as error:
            raise UserError(f"{str(self.path)!r}: {error}") from None

    @property
    def threshold(self) -> float:
        """Threshold on the probability of *generated*, above 0 and below 1; 0.5 if none is stated.

        With :attr:`operating_points` it is that of :attr:`operating_point`. :class:`UserError` if it is not such a
        number, or another one is stated beside the operating points.
        """
        value, name = self.raw.get("threshold"), self.operating_point
        if name is not None:
            own = self.operating_points[name].threshold
            if value not in (None, own):
                raise UserError(
                    f"{self._what}: threshold (={value!r}) is not that of its operating_point {name!r} ({own:g}); "
                    "leave it out"
                )
            return own
        if value is None:
            return 0.5
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise UserError(f"{self._what}: threshold (={value!r}) must be between 0 and 1")
        return float(value)

    @functools.cached_property
    def operating_points(self) -> Dict[str, OperatingPoint]:
        """Thresholds for several purposes by name (:data:`aidet.ckpt.POINTS`); empty if none are stated.

        :class:`UserError` as for :func:`aidet.ckpt.points.read_points`.
        """
        return read_points(self.raw.get("operating_points"), self._what)

    @property
    def operating_point(self) -> Optional[str]:
        """Name of the one that the detector uses by itself; None if it has none.

        :class:`UserError` if it is not one of :attr:`operating_points`.
        """
        return default_point(self.raw.get("operating_point"), self.operating_points, self._what)

    @property
    def localization(self) -> Any:
        """What a localizer says about its map, unchecked (:class:`aidet.detector.localizer.Settings`), or None."""
        return self.raw.get("localization")

    @property
    def evidence(self) -> Optional[Evidence]:
        """What an image must have for a decision other than *unsure*; None if no rule is stated.

        :class:`UserError` as for :func:`aidet.ckpt.points.read_evidence`.
        """
        return read_evidence(self.raw.get("evidence"), self._what)

    @property
    def prior(self) -> Optional[float]:
        """Share of generated images for which the calibrated probability holds; None if none is stated.

        :class:`UserError` as for :func:`aidet.ckpt.points.read_prior`.
        """
        own = self.raw.get("calibration") or {}
        return read_prior(own.get("prior") if isinstance(own, dict) else None, self._what)

    @property
    def _what(self) -> str:
        return f"sidecar of {str(self.path)!r}"

    @property
    def calibration(self) -> Tuple[float, float]:
        """Scale and offset of Platt's calibration: a score ``s`` is read as ``scale * (s - offset)``.

        It is monotone, so that neither the ranking nor the AUC changes; it fits the probability to validation images
        (Platt 1999). With a stated :attr:`prior` the probability is the share of generated images among those with the
        same score, if the prior's share of all images is generated; the decision boundary is then :attr:`threshold`.
        Without one, 0 is the boundary. (1, 0) if no calibration is stated; :class:`UserError` if the scale is not a
        number above 0 or the offset is not a number.
        """
        own = self.raw.get("calibration") or {}
        pair: Tuple[Any, Any] = (None, None)
        if isinstance(own, dict):
            pair = own.get("scale", 1.0), own.get("offset", 0.0)
        good = all(isinstance(v, (int, float)) and not isinstance(v, bool) and np.isfinite(v) for v in pair)
        scale, offset = (float(v) for v in pair) if good else (0.0, 0.0)
        if scale <= 0:
            raise UserError(
                f"sidecar of {str(self.path)!r}: calibration (={own!r}) must have a scale above 0 and an offset"
            )
        return scale, offset

    @property
    def voting(self) -> Voting:
        """The views that the detector was measured with; by default one, or random ones if more are requested.

        :class:`UserError` if this is not a mapping with the known keys.
        """
        own = self.raw.get("voting") or {}
        if not isinstance(own, dict) or set(own) - {"votes", "views", "weights"}:
            keys = "votes, views, weights"
            raise UserError(f"sidecar of {str(self.path)!r}: voting (={own!r}) must be a mapping with the keys {keys}")
        return Voting(**own)

    # --- its input ---------------------------------------------------------------------------------------------------
    @property
    def transform(self) -> Optional[str]:
        """The evaluation pipeline as a line; None for a network that takes no image."""
        return self._input.get("transform")

    @property
    def transform_is_guess(self) -> bool:
        """Whether no file of the source stated the pipeline, so that the converter took what is usual for the net."""
        return self._input.get("guess") is True

    @property
    def detector_transform(self) -> str:
        """The evaluation pipeline of a detector as a line; :class:`UserError` if none is stated."""
        if not self.transform:
            raise UserError(f"the sidecar of {str(self.path)!r} names no input.transform; convert or train it again")
        return self.transform

    @property
    def views_line(self) -> Optional[str]:
        """The pipeline of random views as a line, if stated."""
        return self._input.get("views")

    @property
    def size(self) -> Optional[Tuple[int, int]]:
        """Height and width of the input in pixels; None if they are not fixed."""
        size = self._input.get("size")
        return tuple(size) if size else None

    @property
    def channels(self) -> int:
        """Channels of the input; 3 if none are stated."""
        stated = self._input.get("channels")
        return stated if isinstance(stated, int) else 3

    @property
    def value_range(self) -> Tuple[float, float]:
        """Values of a black and a white pixel in the input of an autoencoder; (0, 1) if none are stated."""
        low, high = self._input.get("range") or (0, 1)
        return low, high

    @property
    def multiple(self) -> Optional[int]:
        """Number of pixels that both sides of the input must be a multiple of, if stated."""
        stated = self._input.get("multiple")
        return int(stated) if stated else None

    @property
    def _input(self) -> Dict[str, Any]:
        return self.raw.get("input") or {}

    # --- where it came from ------------------------------------------------------------------------------------------
    @property
    def source_sha256(self) -> Optional[str]:
        """Hash of the file that the checkpoint was converted from, in hex, if stated."""
        return (self.raw.get("source") or {}).get("sha256")

    @property
    def source_layout(self) -> Optional[str]:
        """Layout of the file that the checkpoint was converted from (a name of the converter), if stated."""
        return (self.raw.get("source") or {}).get("layout")

    @property
    def source_options(self) -> Dict[str, Any]:
        """Options with which that file was read (``prefix``, ``drop``, ``weights``), as far as they were given."""
        return (self.raw.get("source") or {}).get("options") or {}

    @property
    def source_adapters(self) -> Dict[str, Any]:
        """What was folded into the weights at conversion; empty if nothing was."""
        return (self.raw.get("source") or {}).get("adapters") or {}

    @property
    def recipe_name(self) -> Optional[str]:
        """Name of the published detector's recipe that it was converted by; None if by none."""
        return (self.raw.get("recipe") or {}).get("name")
