"""The rule detectors of the AIGC-clf project, behind the same interface as a network.

``rule:size`` ("cheaty" there) calls an image generated where its width or height is 512. It reads no pixel: it detects
how a data set was collected, not how an image was made, and is here as a yardstick for such shortcuts.

``NAME.rule.json`` holds a logistic regression on how well an autoencoder reconstructs an image: images that came out of
a latent-diffusion decoder are reconstructed better than photographs. It is fitted with::

    python -m aidet.rules fit --autoencoder ckpt/aidet_tae.ckpt --labels DIR|CSV --out my.rule.json

Source: Kahsolt/AIGC-clf (MIT), ``run_cheaty`` and the reconstruction-loss classifier.
"""

import sys
from pathlib import Path

import numpy as np

from . import backends, ckpt, cli, files, images, truth, vote
from .engine import Network, cpus, in_order
from .errors import UserError, nearest

FORMAT = 1
FEATURES = ("l1", "l1_clipped")
SIDE = 512
# A rule knows no probability; it is as sure as a unanimous hard vote.
SURE = float(np.log1p(-vote.UNANIMOUS) - np.log(vote.UNANIMOUS))


def is_rule(path):
    """Whether a name given as a checkpoint means a rule."""
    return str(path).startswith("rule:") or str(path).endswith(".rule.json")


def open_rule(path, name, **options):
    """Open ``rule:size`` or a ``.rule.json``; options as of :class:`aidet.engine.Network`."""
    text = str(path)
    if text.endswith(".rule.json"):
        return Reconstruction(path, name, **options)
    kind, _, value = text[len("rule:") :].partition(":")
    if kind != "size":
        raise UserError(nearest(kind, ["size"], "rule"))
    if value and not value.isdigit():
        raise UserError(f"rule {text!r}: {value!r} is not a number of pixels; write rule:size or rule:size:512")
    return SizeRule(name, int(value or SIDE))


class SizeRule:
    """Generated where width or height is ``side`` pixels: a shortcut, not a detector.

    Parameters
    ----------
    name : str
    side : int
    """

    threshold, threadsafe, device, backend_name = 0.5, True, "CPU", "rule"

    def __init__(self, name, side=SIDE):
        self.name, self.side, self.identity = name, side, f"size:{side}"

    def prepare(self, image, key, stability=False):
        """The sizes take the place of views."""
        return [[i.size] for i in [image, *(vote.changed_images(image) if stability else [])]]

    def calibrate(self, score):
        """There is nothing to calibrate."""
        return score

    uncalibrate = calibrate

    def run(self, views, piece=None):
        """Sizes -> scores, all of one magnitude."""
        return np.array([SURE if self.side in size else -SURE for size in views])


def features(images_, reconstructed):
    """Reconstruction errors of Kahsolt/AIGC-clf.

    Parameters
    ----------
    images_, reconstructed : numpy.ndarray, shape (N, 3, h, w), values in [0, 1]

    Returns
    -------
    numpy.ndarray, float64, shape (N, 2)
        Mean absolute difference to the reconstruction as it is, and clipped to [0, 1].
    """
    axes = (1, 2, 3)
    raw = np.abs(images_ - reconstructed).mean(axes, dtype=np.float64)
    clipped = np.abs(images_ - np.clip(reconstructed, 0, 1)).mean(axes, dtype=np.float64)
    return np.stack([raw, clipped], 1)


class Autoencoder:
    """A reconstructing network as rules use it: images in [0, 1] in and out, whatever range the network has.

    Parameters
    ----------
    path : str or Path
        Checkpoint of an autoencoder whose ``construct`` gives the reconstruction.
    size : (int, int) or None
    backend, device, say :
        See :func:`aidet.backends.open_model`.
    """

    def __init__(self, path, size, backend="auto", device="auto", say=None):
        sidecar = ckpt.Sidecar.read(path)
        low, high = sidecar.value_range
        self.low, self.width = np.float32(low), np.float32(high - low)
        self.sha256 = sidecar.identity
        self.backend = backends.open_model(sidecar, backend, size, device, say)

    def __call__(self, batch):
        """float32 (N, 3, h, w) -> the same shape."""
        made = self.backend(batch * self.width + self.low)
        if made.shape != batch.shape:
            raise UserError(
                f"the autoencoder gives shape {made.shape} for {batch.shape}; it does not reconstruct images"
            )
        return (made - self.low) / self.width


class Reconstruction(Network):
    """Logistic regression on reconstruction errors, as saved by :func:`fit`; options as of ``Network``."""

    def __init__(self, path, name, backend="auto", device="auto", say=None, **views):
        self.path, self.name, self.facts = Path(path), name, read(path)
        voting = ckpt.Voting().settings(**views)
        self.views = vote.Views(self.facts["transform"], line=self.facts.get("views"), **voting)
        where = self.path.parent / self.facts["autoencoder"]
        self.autoencoder = Autoencoder(where, self.views.size, backend, device, say)
        if self.autoencoder.sha256 != self.facts["autoencoder_sha256"]:
            raise UserError(f"rule {str(path)!r} was fitted with another autoencoder than {str(where)!r}; fit it again")
        self.threshold, self.scale, self.offset = 0.5, 1.0, 0.0
        self.backend = self.autoencoder.backend
        self.threadsafe, self.device = self.backend.threadsafe, self.backend.device
        self.backend_name = self.backend.name
        self.identity = files.sha256(path)

    def scores_of(self, batch):
        """float32 (N, 3, h, w) in [0, 1] -> scores (N,)."""
        values = features(batch, self.autoencoder(batch))
        scaled = (values - self.facts["mean"]) / self.facts["scale"]
        return scaled @ np.array(self.facts["coefficients"]) + self.facts["intercept"]


def read(path):
    """Read a rule file; :class:`UserError` where it is none."""
    facts = files.read_json(path, "rule")
    wanted = {
        "format",
        "rule",
        "autoencoder",
        "autoencoder_sha256",
        "transform",
        "mean",
        "scale",
        "coefficients",
        "intercept",
    }
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or wanted - set(facts):
        raise UserError(f"rule {str(path)!r} is not of format {FORMAT}; make it with python -m aidet.rules fit")
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


def fit(autoencoder, labels, out, transform="pad(8) | to_float", backend="auto", folds=10, limit=None):
    """Fit the reconstruction rule on a labelled set and save it.

    Parameters
    ----------
    autoencoder : str or Path
        Its checkpoint; named in the rule relative to the rule's file.
    labels : str or Path
        What :func:`aidet.truth.read_labels` takes.
    out : str or Path
        Ends in ``.rule.json``.
    transform : str
        Line that gives values in [0, 1], sides a multiple of 8. With a fixed size ONNX Runtime is used; the default
        keeps every image's own size, as the original does.
    folds : int
        Of the cross-validation that chooses the regularisation (class weights balanced).
    limit : int, optional
        Use only this many images, drawn evenly.

    Returns
    -------
    dict
        The rule; ``training`` says number of images, those left out, and cross-validated balanced accuracy.
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
    values, kept = _measure(autoencoder, known, transform, backend)
    y = known.labels[kept]
    if min((y == 0).sum(), (y == 1).sum()) < folds:
        raise UserError(f"labels {str(labels)!r}: {folds} folds need {folds} usable images of each class")
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    grid = {"logisticregression__C": np.logspace(-4, 4, 10)}
    search = GridSearchCV(model, grid, cv=folds, scoring="balanced_accuracy").fit(values, y)
    scaler, regression = search.best_estimator_[0], search.best_estimator_[1]
    rule = {
        "format": FORMAT,
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


def _measure(autoencoder, known, transform, backend):
    """Features of every usable image, and their places."""
    from tqdm import tqdm

    views = vote.Views(transform)
    net = Autoencoder(autoencoder, views.size, backend)

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


def run(argv):
    """``python -m aidet.rules fit``."""
    p = cli.Parser(prog="python -m aidet.rules", description=__doc__)
    f = p.add_subparsers(dest="command", required=True).add_parser("fit", help="fit the reconstruction rule")
    f.add_argument("--autoencoder", required=True, metavar="A.ckpt")
    f.add_argument("--labels", required=True, metavar="DIR|CSV")
    f.add_argument("--out", required=True, metavar="X.rule.json")
    f.add_argument("--transform", default="pad(8) | to_float", metavar="LINE")
    f.add_argument("--backend", default="auto", choices=backends.BACKENDS)
    f.add_argument("--limit", type=int, metavar="N")
    args = p.parse_args(argv)
    rule = fit(args.autoencoder, args.labels, args.out, args.transform, args.backend, limit=args.limit)
    done = rule["training"]
    print(
        f"{done['images']} images ({done['generated']} generated, {done['unusable']} left out): "
        f"cross-validated balanced accuracy {done['balanced_accuracy_cv']:.4f}; wrote {args.out}"
    )
    return cli.PARTIAL if done["unusable"] else cli.OK


if __name__ == "__main__":
    cli.main(run)
