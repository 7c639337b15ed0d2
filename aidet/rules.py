"""The rule detectors of the AIGC-clf project, with the same interface as a network.

``rule:size`` ("cheaty" there) calls an image generated if its width or height is 512. It reads no pixels: it detects
how a data set was collected, not how an image was made, and serves as a baseline for such shortcuts.

``NAME.rule.json`` holds a logistic regression on how well an autoencoder reconstructs an image: it reconstructs the
output of a latent-diffusion decoder better than a photograph. It is fitted with::

    python -m aidet.rules fit --autoencoder ckpt/aidet_tae.ckpt --labels DIR|CSV --out my.rule.json

Source: Kahsolt/AIGC-clf (MIT), ``run_cheaty`` and the reconstruction-loss classifier.
"""

import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Union, cast

import numpy as np

from . import cli, files, images
from .datasets import truth
from .detector import backends
from .detector.rules import FEATURES, RULE_FORMAT, Autoencoder, features
from .detector.views import Views
from .errors import UserError
from .parallel import cpus, in_order


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
        Its checkpoint; the rule file stores the path relative to its own folder.
    labels : str or Path
        Labels as for :func:`aidet.datasets.truth.read_labels`.
    out : str or Path
        Must end in ``.rule.json``.
    transform : str
        Pipeline line whose values lie in [0, 1] and whose sides are multiples of 8. With a fixed size ONNX Runtime
        runs the network; the default keeps the size of every image, as the original does.
    backend : {"auto", "onnxruntime", "openvino", "mindspore"}
    folds : int
        Folds of the cross-validation that chooses the regularisation (with balanced class weights).
    limit : int, optional
        Use only this many images, evenly spaced over the set.
    say : callable, optional
        See :func:`aidet.detector.backends.open_model`.

    Returns
    -------
    dict
        The rule; ``training`` holds the number of images, the number of unusable images, and the cross-validated
        balanced accuracy.

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
        rows = np.linspace(0, len(known) - 1, limit).round().astype(int)
        known = cast(truth.Truth, known.take(rows.tolist()))
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

    views = Views(transform)
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
    f = p.add_subparsers(dest="command", required=True).add_parser(
        "fit", help="fit the reconstruction rule", description="Fit the reconstruction rule on a labelled set."
    )
    f.add_argument("--autoencoder", required=True, metavar="A.ckpt", help="a converted autoencoder")
    f.add_argument("--labels", required=True, metavar="DIR|CSV", help="class folders or a table path,label")
    f.add_argument("--out", required=True, metavar="X.rule.json", help="where the rule is written")
    line = "pad(8) | to_float"
    f.add_argument("--transform", default=line, metavar="LINE", help=f"the autoencoder's input (default: {line})")
    f.add_argument("--backend", default="auto", choices=backends.BACKENDS)
    f.add_argument("--limit", type=int, metavar="N", help="use only N images, evenly spaced (default: all)")
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
