"""The rule detectors of the AIGC-clf project, behind the same interface as a network.

``rule:size`` ("cheaty" there) calls an image generated if its width or height is 512. It reads no pixel: it detects how
a data set was collected, not how an image was made, and serves as a yardstick for such shortcuts.

``NAME.rule.json`` holds a logistic regression on how well an autoencoder reconstructs an image: the output of a
latent-diffusion decoder is reconstructed better than a photograph. It is fitted with::

    python -m aidet.rules fit --autoencoder ckpt/aidet_tae.ckpt --labels DIR|CSV --out my.rule.json

Source: Kahsolt/AIGC-clf (MIT), ``run_cheaty`` and the reconstruction-loss classifier.
"""

import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image

from . import backends, ckpt, cli, files, images, truth, vote
from .detector.scorer import Scorer
from .engine import Network, cpus, in_order
from .errors import UserError, nearest

RULE_FORMAT = 1
FEATURES = ("l1", "l1_clipped")
SIDE = 512
# The size rule knows no probability; its score is that of a unanimous hard vote.
UNANIMOUS_SCORE = float(np.log1p(-vote.UNANIMOUS) - np.log(vote.UNANIMOUS))


def is_rule(path: Union[str, Path]) -> bool:
    """Whether a name given as a checkpoint means a rule."""
    return str(path).startswith("rule:") or str(path).endswith(".rule.json")


def open_rule(path: Union[str, Path], name: str, **options: Any) -> Scorer:
    """Open ``rule:size``, ``rule:size:PIXELS`` or a ``.rule.json``; options of :class:`aidet.engine.Network`.

    Raises
    ------
    UserError
        Unknown rule, a size that is no number, or a file that is no rule.
    """
    text = str(path)
    if text.endswith(".rule.json"):
        return Reconstruction(path, name, **options)
    kind, _, value = text[len("rule:") :].partition(":")
    if kind != "size":
        raise UserError(nearest(kind, ["size"], "rule"))
    if value and not value.isdigit():
        raise UserError(f"rule {text!r}: {value!r} is not a number of pixels; write rule:size or rule:size:512")
    return SizeRule(name, int(value or SIDE))


class SizeRule(Scorer):
    """Generated if width or height is ``side`` pixels: a shortcut, not a detector.

    Parameters
    ----------
    name : str
    side : int
    """

    threadsafe, device, backend_name = True, "CPU", "rule"

    def __init__(self, name: str, side: int = SIDE) -> None:
        self.name, self.side, self.identity = name, side, f"size:{side}"

    def views_of(self, image: Image.Image, key: str) -> List[Tuple[int, int]]:
        """The image's size takes the place of views."""
        return [image.size]

    def run(self, views: Sequence[Tuple[int, int]], piece: Optional[int] = None) -> np.ndarray:
        """Sizes -> scores, float64 (V,), all of one magnitude."""
        return np.array([UNANIMOUS_SCORE if self.side in size else -UNANIMOUS_SCORE for size in views])


def features(images_: np.ndarray, reconstructed: np.ndarray) -> np.ndarray:
    """Reconstruction errors of Kahsolt/AIGC-clf.

    Parameters
    ----------
    images_, reconstructed : numpy.ndarray, shape (N, 3, h, w), values in [0, 1]

    Returns
    -------
    numpy.ndarray, float64, shape (N, 2)
        Mean absolute difference to the reconstruction, and to the reconstruction clipped to [0, 1].
    """
    axes = (1, 2, 3)
    raw = np.abs(images_ - reconstructed).mean(axes, dtype=np.float64)
    clipped = np.abs(images_ - np.clip(reconstructed, 0, 1)).mean(axes, dtype=np.float64)
    return np.stack([raw, clipped], 1)


class Autoencoder:
    """An autoencoder that takes and gives images in [0, 1], whatever range its network has.

    Parameters
    ----------
    path : str or Path
        Checkpoint of an autoencoder whose ``construct`` gives the reconstruction.
    size : (int, int) or None
        Input height and width, see :func:`aidet.backends.open_model`.
    backend, device, say :
        See :func:`aidet.backends.open_model`.
    """

    def __init__(
        self,
        path: Union[str, Path],
        size: Optional[Tuple[int, int]],
        backend: str = "auto",
        device: str = "auto",
        say: backends.Say = None,
    ) -> None:
        sidecar = ckpt.Sidecar.read(path)
        low, high = sidecar.value_range
        self.low, self.width = np.float32(low), np.float32(high - low)
        self.sha256 = sidecar.identity
        self.backend = backends.open_model(sidecar, backend, size, device, say)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Reconstruct float32 (N, 3, h, w).

        Raises
        ------
        UserError
            The network gives another shape.
        """
        made = self.backend(batch * self.width + self.low)
        if made.shape != batch.shape:
            raise UserError(
                f"the autoencoder gives shape {made.shape} for {batch.shape}; it does not reconstruct images"
            )
        return (made - self.low) / self.width


class Reconstruction(Network):
    """Logistic regression on reconstruction errors, as ``python -m aidet.rules fit`` saves it.

    Parameters are those of :class:`aidet.engine.Network`; ``path`` is a ``.rule.json``.

    Raises
    ------
    UserError
        No rule, or one that was fitted with another autoencoder than the one that is there.
    """

    def __init__(
        self,
        path: Union[str, Path],
        name: str,
        backend: str = "auto",
        device: str = "auto",
        say: backends.Say = None,
        **views: Any,
    ) -> None:
        self.path, self.name, self.facts = Path(path), name, read(path)
        voting = ckpt.Voting().settings(**views)
        self.views = vote.Views(self.facts["transform"], line=self.facts.get("views"), **voting)
        where = self.path.parent / self.facts["autoencoder"]
        self.autoencoder = Autoencoder(where, self.views.size, backend, device, say)
        if self.autoencoder.sha256 != self.facts["autoencoder_sha256"]:
            raise UserError(f"rule {str(path)!r} was fitted with another autoencoder than {str(where)!r}; fit it again")
        self.backend = self.autoencoder.backend
        self.threadsafe, self.device = self.backend.threadsafe, self.backend.device
        self.backend_name = self.backend.name
        self.identity = files.sha256(path)

    def scores_of(self, batch: np.ndarray) -> np.ndarray:
        """float32 (N, 3, h, w) in [0, 1] -> scores (N,)."""
        values = features(batch, self.autoencoder(batch))
        scaled = (values - self.facts["mean"]) / self.facts["scale"]
        return scaled @ np.array(self.facts["coefficients"]) + self.facts["intercept"]


def read(path: Union[str, Path]) -> Dict[str, Any]:
    """Read a ``.rule.json``.

    Raises
    ------
    UserError
        It is missing or no rule: a key or a number is missing or of the wrong kind.
    """
    facts = files.read_json(path, "rule")
    wanted = set("format rule autoencoder autoencoder_sha256 transform mean scale coefficients intercept".split())
    if not isinstance(facts, dict) or facts.get("format") != RULE_FORMAT or wanted - set(facts):
        raise UserError(f"rule {str(path)!r} is not of format {RULE_FORMAT}; make it with python -m aidet.rules fit")
    numbers = [facts[n] if isinstance(facts[n], list) else [] for n in ("mean", "scale", "coefficients")]
    lists = all(len(n) == len(FEATURES) for n in numbers)
    kinds = [isinstance(n, (int, float)) and np.isfinite(n) for n in [*sum(numbers, []), facts["intercept"]]]
    texts = [isinstance(facts[n], str) for n in ("autoencoder", "autoencoder_sha256", "transform")]
    if not lists or not all(kinds) or not all(texts) or 0 in numbers[1]:
        raise UserError(
            f"rule {str(path)!r}: mean, scale (not 0) and coefficients must be {len(FEATURES)} numbers each, intercept "
            "one, autoencoder and transform texts; make it again with python -m aidet.rules fit"
        )
    return facts


def fit(
    autoencoder: Union[str, Path],
    labels: Union[str, Path],
    out: Union[str, Path],
    transform: str = "pad(8) | to_float",
    backend: str = "auto",
    folds: int = 10,
    limit: Optional[int] = None,
    say: backends.Say = None,
) -> Dict[str, Any]:
    """Fit the reconstruction rule on a labelled set and save it.

    Parameters
    ----------
    autoencoder : str or Path
        Its checkpoint; the rule stores the path relative to its own folder.
    labels : str or Path
        What :func:`aidet.truth.read_labels` takes.
    out : str or Path
        Ends in ``.rule.json``.
    transform : str
        Pipeline line whose values lie in [0, 1] and whose sides are multiples of 8. With a fixed size ONNX Runtime
        runs the network; the default keeps every image's own size, as the original does.
    backend : {"auto", "onnxruntime", "mindspore"}
    folds : int
        Of the cross-validation that chooses the regularisation (class weights balanced).
    limit : int, optional
        Use only this many images, evenly spaced over the set.
    say : callable, optional
        See :func:`aidet.backends.open_model`.

    Returns
    -------
    dict
        The rule; ``training`` holds the number of images, of images left out, and the cross-validated balanced
        accuracy.

    Raises
    ------
    UserError
        Labels without file names, too few usable images of a class, or an ``out`` that does not end in ``.rule.json``.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    out = Path(out)
    if not out.name.endswith(".rule.json"):
        raise UserError(f"rule file {str(out)!r} must end in .rule.json")
    known = truth.read_labels(labels)
    if known.paths is None:
        raise UserError(f"labels {str(labels)!r} name no files; give a CSV with paths or a folder")
    if limit is not None and limit < len(known):
        known = known.take(np.linspace(0, len(known) - 1, limit).round().astype(int))
    values, kept = _measure(autoencoder, known, transform, backend, say)
    y = known.labels[kept]
    if min((y == 0).sum(), (y == 1).sum()) < folds:
        raise UserError(f"labels {str(labels)!r}: {folds} folds need {folds} usable images of each class")
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    grid = {"logisticregression__C": np.logspace(-4, 4, 10)}
    search = GridSearchCV(model, grid, cv=folds, scoring="balanced_accuracy").fit(values, y)
    scaler, regression = search.best_estimator_[0], search.best_estimator_[1]
    rule = {
        "format": RULE_FORMAT,
        "rule": "reconstruction",
        "autoencoder": _relative(autoencoder, out.parent),
        "autoencoder_sha256": files.sha256(autoencoder),
        "transform": transform,
        "features": list(FEATURES),
        "mean": scaler.mean_.tolist(),
        "scale": scaler.scale_.tolist(),
        "coefficients": regression.coef_[0].tolist(),
        "intercept": float(regression.intercept_[0]),
        "training": {
            "images": len(y),
            "generated": int(y.sum()),
            "unusable": len(known) - len(y),
            "C": float(search.best_params_["logisticregression__C"]),
            "balanced_accuracy_cv": float(search.best_score_),
        },
    }
    files.write_json(out, rule)
    return rule


def _relative(path, start):
    import os

    return Path(os.path.relpath(path, start)).as_posix()


def _measure(autoencoder, known, transform, backend, say):
    """Features of every usable image, and the images' indices in ``known``."""
    from tqdm import tqdm

    views = vote.Views(transform)
    net = Autoencoder(autoencoder, views.size, backend, say=say)

    def prepare(item):
        try:
            return item[0], views(images.decode(item[1]), "")[0][None]
        except images.ImageError as error:
            return item[0], f"{item[1]}: {error}"

    values, kept = [], []
    found = in_order(prepare, enumerate(known.files()), cpus())
    for i, batch in tqdm(found, total=len(known), unit="img"):
        if isinstance(batch, str):
            print(f"left out: {batch}", file=sys.stderr)
            continue
        values.append(features(batch, net(batch))[0])
        kept.append(i)
    return np.array(values), np.array(kept, int)


def run(argv: List[str]) -> int:
    """``python -m aidet.rules fit``; gives the exit code."""
    p = cli.Parser(prog="python -m aidet.rules", description=__doc__)
    f = p.add_subparsers(dest="command", required=True).add_parser("fit", help="fit the reconstruction rule")
    f.add_argument("--autoencoder", required=True, metavar="A.ckpt")
    f.add_argument("--labels", required=True, metavar="DIR|CSV")
    f.add_argument("--out", required=True, metavar="X.rule.json")
    f.add_argument("--transform", default="pad(8) | to_float", metavar="LINE")
    f.add_argument("--backend", default="auto", choices=backends.BACKENDS)
    f.add_argument("--limit", type=int, metavar="N")
    args = p.parse_args(argv)
    where = (args.autoencoder, args.labels, args.out)
    rule = fit(*where, args.transform, args.backend, limit=args.limit, say=cli.to_stderr)
    done = rule["training"]
    print(
        f"{done['images']} images ({done['generated']} generated, {done['unusable']} left out): "
        f"cross-validated balanced accuracy {done['balanced_accuracy_cv']:.4f}; wrote {args.out}"
    )
    return cli.PARTIAL if done["unusable"] else cli.OK


if __name__ == "__main__":
    cli.main(run)
