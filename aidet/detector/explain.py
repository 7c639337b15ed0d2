"""Which parts of an image a detector's verdict comes from.

Convolutional networks and Swin: Grad-CAM. Vision transformers with a class token: attention roll-out. Both run in
MindSpore, whichever back end scores the images. Rules, exported ONNX models, and networks that have neither a feature
map nor such attention: occlusion, which needs only scores.
"""

from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageStat

from .. import runtime
from ..images import Pipeline, applied
from ..labels import GENERATED, NAMES
from ..parallel import in_order
from .detector import Detector
from .scorer import Scorer
from .views import GRIDS

GRID = 8
ORANGE, BLUE = (230, 97, 1), (20, 110, 220)  # of an overlay: evidence for generated, for real
FINE = 64  # most cells along each side of a map of the whole image
METHODS = {
    "Grad-CAM": "orange speaks for generated, blue for real",
    "attention roll-out": "orange is where the class token looks; it does not say for which side",
    "occlusion": "covering an orange place lowers the score, so it speaks for generated; blue speaks for real",
}


class NoMap(Exception):
    """The network has neither a feature map nor attention that can be shown; the message gives the reason."""


class Explainer:
    """Grad-CAM or attention roll-out of one network.

    Parameters
    ----------
    net : mindspore.nn.Cell
        In inference mode; takes float32 (1, C, h, w).
    order : sequence of str
        ``real`` or ``generated`` for each output.

    Notes
    -----
    Grad-CAM (Selvaraju et al., ICCV 2017) uses the last map with two spatial axes that any cell of the network outputs
    (Swin: the normalised map of the last stage, channels last). The gradient is that of the score, so a map has
    positive and negative values. Gradient and activation are multiplied element by element. If a global mean follows,
    this equals Grad-CAM up to a constant; if a flattening head follows, it is what the head really reads (HiResCAM,
    Draelos & Carin 2020), whereas an averaged gradient would move evidence to other places.

    Roll-out (Abnar & Zuidema, ACL 2020): attention averaged over heads, mixed half and half with the identity for the
    residual path, and multiplied through all layers. The map is the row of the class token (for the two tokens of a
    distilled DeiT, the mean of both rows).
    """

    def __init__(self, net: Any, order: Sequence[str]) -> None:
        self.net, self.order = net, list(order)

    def __call__(self, x: np.ndarray) -> Tuple[np.ndarray, str]:
        """Map of one view.

        Parameters
        ----------
        x : ndarray of float32, shape (C, h, w)

        Returns
        -------
        (ndarray of float64, str)
            The map (rows, columns) at the network's own resolution, and the method: a key of :data:`METHODS`.

        Raises
        ------
        NoMap
            The network has no map with two spatial axes.
        """
        import mindspore as ms

        before = ms.get_context("mode")
        ms.set_context(mode=ms.PYNATIVE_MODE)  # hooks and captured tensors need it
        try:
            x = ms.Tensor(np.ascontiguousarray(x[None], np.float32))
            grids, last, attentions = self._watch(x)
            if len(attentions) > 1 and len({a.shape for a in attentions}) == 1 and attentions[0].shape[0] == 1:
                both = getattr(self.net, "has_heads", False)
                return rollout([a[0] for a in attentions], grids, both), "attention roll-out"
            if last is None:
                raise NoMap("no cell of the network puts out a map with two spatial axes")
            return self._grad_cam(x, last), "Grad-CAM"
        finally:
            ms.set_context(mode=before)

    def _watch(self, x):
        """Run the network once and record the outputs of its cells.

        Returns
        -------
        (list of (int, int), Cell or None, list of ndarray)
            Spatial size of every map in order of computation, the cell that computed the last one, and the weights of
            every attention layer.
        """
        from mindspore import nn

        grids, cells, attentions, handles = [], [], [], []

        def look(cell, inputs, output):
            if getattr(output, "ndim", 0) != 4:
                return
            if isinstance(cell, nn.Softmax):
                attentions.append(output.asnumpy())
            elif sorted(output.shape[1:])[1] > 1:  # a map of 1 x 1 has no positions
                grids.append(tuple(output.shape[2:]))
                cells.append(cell)

        try:
            for _, cell in self.net.cells_and_names():
                handles.append(cell.register_forward_hook(look))
            self.net(x)
        finally:
            for handle in handles:
                handle.remove()
        return grids, cells[-1] if cells else None, attentions

    def _grad_cam(self, x, cell):
        import mindspore as ms

        made = []
        handle = cell.register_forward_hook(lambda _, inputs, output: made.append(output.asnumpy()))
        self.net(x)
        handle.remove()
        # The gradient with respect to a map equals the gradient with respect to a term added to it. If a cell runs more
        # than once (one ReLU for all layers), the term is added at its last call.
        calls = []

        def score(delta):
            def add(_, inputs, output):
                calls.append(output)
                return output + delta if len(calls) == len(made) else output

            calls.clear()
            hook = cell.register_forward_hook(add)
            try:
                return self._score(self.net(x))
            finally:
                hook.remove()

        gradient = ms.grad(score)(ms.Tensor(np.zeros_like(made[-1]))).asnumpy()
        return (gradient * made[-1])[0].sum(axis=channel_axis(made[-1].shape[1:], x.shape[2:]), dtype=np.float64)

    def _score(self, logits):
        """:func:`aidet.labels.score_from_logits` in MindSpore, so that it has a gradient."""
        from mindspore import ops

        if len(self.order) == 1:
            return logits[0, 0] if self.order[0] == NAMES[GENERATED] else -logits[0, 0]
        sides = [[i for i, o in enumerate(self.order) if o == name] for name in NAMES]
        real, generated = (ops.logsumexp(ops.stack([logits[0, i] for i in side]), 0) for side in sides)
        return generated - real


def channel_axis(shape: Tuple[int, int, int], size: Tuple[int, int]) -> int:
    """Axis of a map's channels: 0 (MindSpore's layout) or 2 (Swin's), whichever leaves the aspect ratio of ``size``."""
    aspect = size[0] / size[1]
    first, last = (abs(np.log(a / b / aspect)) for a, b in ((shape[1], shape[2]), (shape[0], shape[1])))
    return 0 if first <= last else 2


def rollout(attentions: List[np.ndarray], grids: Sequence[Tuple[int, int]], both: bool = False) -> np.ndarray:
    """Attention roll-out.

    Parameters
    ----------
    attentions : list of ndarray (heads, T, T)
        Weights of each layer, rows sum to 1.
    grids : sequence of (int, int)
        Shapes of maps in the network. The grid of patches is the first one that has 0 to 2 cells fewer than T.
    both : bool
        Average the rows of the first two tokens instead of taking only the first token's row.

    Returns
    -------
    ndarray (rows, columns)
        The smallest value is 0.

    Raises
    ------
    NoMap
        No grid fits.
    """
    tokens = attentions[0].shape[1]
    grid = next((g for g in grids if 0 <= tokens - g[0] * g[1] <= 2), None)
    if grid is None:
        raise NoMap(f"{tokens} tokens belong to no grid of patches")
    total = np.eye(tokens)
    for weights in attentions:
        mean = weights.mean(axis=0, dtype=np.float64)
        mean = mean + np.eye(tokens)
        total = (mean / mean.sum(axis=1, keepdims=True)) @ total
    extra = tokens - grid[0] * grid[1]
    # Without a class token the network averages over all patches.
    row = total.mean(axis=0) if not extra else total[:2].mean(axis=0) if both else total[0]
    heat = row[extra:].reshape(grid)
    return heat - heat.min()


# --- from a view back to the image -----------------------------------------------------------------------------------
def lay(heat: np.ndarray, pipeline: Pipeline, size: Tuple[int, int]) -> np.ndarray:
    """Project the map of a view onto the whole image, at the place that the pipeline cropped and resized it from.

    Parameters
    ----------
    heat : ndarray (rows, columns)
    pipeline : aidet.images.Pipeline
        The pipeline that made the view, without random operations.
    size : (int, int)
        Width and height of the image.

    Returns
    -------
    ndarray of float64
        At most 64 x 64; 0 outside the view.
    """
    # Run an image with red = x and green = y through the pipeline: it shows where each pixel of the view comes from.
    x, y = (np.rint(np.linspace(0, 255, n)).astype(np.uint8) for n in size)
    where = np.zeros((size[1], size[0], 3), np.uint8)
    where[..., 0], where[..., 1] = x, y[:, None]
    view = applied(pipeline.geometry.steps, Image.fromarray(where), None)
    fine = Image.fromarray(heat.astype(np.float32)).resize(view.size, Image.Resampling.BILINEAR)
    rows, columns = (max(1, min(FINE, n, m)) for n, m in zip(view.size[::-1], size[::-1]))
    place = np.asarray(view, np.float64) / 256
    cell = (place[..., 1] * rows).astype(int) * columns + (place[..., 0] * columns).astype(int)
    total = np.bincount(cell.reshape(-1), np.asarray(fine, np.float64).reshape(-1), rows * columns)
    count = np.bincount(cell.reshape(-1), minlength=rows * columns)
    return (total / np.maximum(count, 1)).reshape(rows, columns)


def maps(
    detector: Detector, image: Any, key: str = "image", fallback: bool = True
) -> List[Tuple[str, np.ndarray, str]]:
    """Which parts of one image each model of a detector uses.

    Parameters
    ----------
    detector : aidet.Detector
    image : PIL.Image.Image or path
    key : str
        See :func:`occlusion`.
    fallback : bool
        If a model has no map of its own, append one occlusion map of the whole detector, named ``detector``.

    Returns
    -------
    list of (str, ndarray, str)
        Model, map over the whole image (:func:`lay`) of the model's evaluation view, method.

    Raises
    ------
    ImageError
        The image cannot be decoded.
    """
    image, found, left = detector.reading.decode(image), [], not detector.models
    for model in detector.models:
        explainer, views = _explainer(model), model.views
        try:
            if explainer is None or views is None:
                raise NoMap
            heat, method = explainer(views.first(image))
            found.append((model.name, lay(heat, views.first, image.size), method))
        except NoMap:
            left = True
    return [*found, ("detector", occlusion(detector, image, key), "occlusion")] if left and fallback else found


def _explainer(model: Scorer) -> Optional[Explainer]:
    """The model's :class:`Explainer`, made once; None for rules and ONNX files, and without MindSpore."""
    sidecar, views = model.sidecar, model.views
    if model.order is None or sidecar is None or views is None or runtime.mindspore_version() is None:
        return None
    if Path(sidecar.path).suffix != ".ckpt":
        return None
    if model.explainer is None:
        from .. import ckpt

        # Use the same mode as the MindSpore back end, which may be in use.
        runtime.setup(model.device, mode="pynative" if views.size is None else "graph")
        sidecar.verify()  # the file may have been replaced since the detector was opened
        model.explainer = Explainer(ckpt.load_network(sidecar), model.order)
    return model.explainer


# --- occlusion -------------------------------------------------------------------------------------------------------
def occlusion(detector: Detector, image: Any, key: str = "image", grid: int = GRID) -> np.ndarray:
    """Cover one grid cell at a time and measure how the score changes (Zeiler & Fergus 2014).

    Unlike Grad-CAM, this needs neither gradients nor a particular layer, so it works alike for convolutional networks,
    transformers, ensembles and exported ONNX models. It scores ``grid ** 2 + 1`` images; of models whose views are a
    grid of crops, only the views that the covered cell reaches, so a large image takes no longer than a small one.

    Parameters
    ----------
    detector : aidet.Detector
    image : PIL.Image.Image or path
    key : str
        Seeds the views, so that the same crops are taken of all covered images.
    grid : int
        Cells along each side.

    Returns
    -------
    ndarray of float64, shape (grid, grid)
        Score of the whole image minus the score without the cell: above 0, the cell is evidence for *generated*; below
        0, for *real*; 0 if the cell has no influence.

    Raises
    ------
    ImageError
        The image cannot be decoded.
    """
    image = detector.reading.decode(image)
    fill = tuple(int(round(v)) for v in ImageStat.Stat(image).mean)
    rows, columns = (np.linspace(0, side, grid + 1).round().astype(int) for side in (image.height, image.width))
    boxes = [(columns[c], rows[r], columns[c + 1], rows[r + 1]) for r in range(grid) for c in range(grid)]
    if _cut_from(detector, image):
        scores = _covered_views(detector, image, boxes, fill)
    else:
        scores = _covered_images(detector, image, boxes, fill, key)
    return (scores[0] - np.array(scores[1:])).reshape(grid, grid)


def _covered_images(detector, image, boxes, fill, key):
    """Score of the image, and with each box covered, whatever the detector is."""

    def covered():
        yield key, image
        for box in boxes:
            changed = image.copy()
            if box[2] > box[0] and box[3] > box[1]:
                changed.paste(fill, box)
            yield key, changed

    return [v.score for v in detector.stream(covered(), stability=False)]


def _cut_from(detector, image):
    """Whether all views are crops of the image that need not be mirrored at its edges."""
    views = [model.views for model in detector.models]
    grids = views and all(v is not None and v.kind in GRIDS and not v.flips for v in views)
    return (
        grids
        and detector.cascade is None
        and all(v.size[0] <= image.height and v.size[1] <= image.width for v in views)
    )


def _covered_views(detector, image, boxes, fill):
    """As :func:`_covered_images`, of crops: the box is covered in them, and only the crops that it reaches are scored.

    At the second scale of a pyramid the edge of a box is sharp, whereas it would be smoothed if the image were covered
    first and then resized.
    """
    plain = []
    for model in detector.models:
        places, (h, w) = model.views.places(image), model.views.size
        views = [model.views.tail(source.crop((x, y, x + w, y + h))) for source, x, y in places]
        plain.append((model, places, views, model.run(views)))

    def score(box):
        scores, weights = [], []
        for model, places, views, own in plain:
            changed = {i: _covered_view(model.views, place, box, fill, image.size) for i, place in enumerate(places)}
            changed = {i: view for i, view in changed.items() if view is not None}
            found = own.copy()
            if changed:
                found[list(changed)] = model.run(list(changed.values()))
            scores.append(found)
            weights.append(model.weigh(changed.get(i, view) for i, view in enumerate(views)))
        return detector._fuse(scores, weights)[0]

    workers = detector.workers if all(m.threadsafe for m in detector.models) else 0
    all_boxes = [(0, 0, 0, 0), *boxes]  # nothing is covered by the first
    return list(in_order(score, all_boxes, workers) if workers else map(score, all_boxes))


def _covered_view(views, place, box, fill, size):
    """The view at a place with a box of the image covered; None if it does not reach the view."""
    source, left, top = place
    across, down = source.width / size[0], source.height / size[1]
    x0, y0 = max(0, round(box[0] * across) - left), max(0, round(box[1] * down) - top)
    x1, y1 = min(views.size[1], round(box[2] * across) - left), min(views.size[0], round(box[3] * down) - top)
    if x0 >= x1 or y0 >= y1:
        return None
    tile = source.crop((left, top, left + views.size[1], top + views.size[0]))
    tile.paste(fill, (x0, y0, x1, y1))
    return views.tail(tile)


def overlay(heat: np.ndarray, image: Image.Image, side: int = 768) -> Image.Image:
    """A map over the image: orange is evidence for generated, blue for real; other parts are not coloured.

    The image is shown with little of its own colour, so that the map's can be told from it.

    Parameters
    ----------
    heat : ndarray (rows, columns)
    image : PIL.Image.Image, mode RGB
    side : int
        Longest side of the result, in pixels.

    Returns
    -------
    PIL.Image.Image, mode RGB
    """
    small = image.copy() if max(image.size) <= side else image.resize(_within(image.size, side), reducing_gap=2.0)
    most = max(float(np.abs(heat).max()), 1e-9)
    enlarged = Image.fromarray((heat / most).astype(np.float32)).resize(small.size, Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(enlarged, np.float32), -1, 1)[..., None]
    pixels = np.asarray(small, np.float32)
    pale = 0.75 * np.asarray(small.convert("L"), np.float32)[..., None] + 0.25 * pixels
    colour = np.where(share > 0, np.array(ORANGE, np.float32), np.array(BLUE, np.float32))
    strength = 0.68 * np.abs(share)
    return Image.fromarray(np.rint(pale * (1 - strength) + colour * strength).astype(np.uint8))


def _within(size, side):
    share = side / max(size)
    return tuple(max(1, round(n * share)) for n in size)
