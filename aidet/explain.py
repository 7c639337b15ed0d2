"""Where in an image a detector's verdict comes from: occlusion maps, for any model and any back end."""

import numpy as np
from PIL import Image

from . import images

GRID = 8


def occlusion(detector, image, key="image", grid=GRID):
    """Cover one cell of a grid after the other and see how the score changes (Zeiler & Fergus 2014).

    Unlike Grad-CAM it needs no gradient and no layer, so it is the same for convolutional networks, transformers,
    ensembles and exported ONNX models. It costs ``grid ** 2 + 1`` passes.

    Parameters
    ----------
    detector : aidet.engine.Detector
    image : PIL.Image.Image or path
    key : str
        Seeds the views, so that all passes see the same crops.
    grid : int
        Cells along each side.

    Returns
    -------
    ndarray of float64, shape (grid, grid)
        Score of the whole image minus the score without the cell: above 0, the cell speaks for *generated*; below 0,
        for *real*; 0 where the model does not look.

    Raises
    ------
    ImageError
        The image cannot be decoded.
    """
    image = images.decode(image)
    fill = tuple(int(round(v)) for v in np.asarray(image).reshape(-1, 3).mean(axis=0))
    rows, columns = (np.linspace(0, side, grid + 1).round().astype(int) for side in (image.height, image.width))

    def covered():
        yield key, image
        for r in range(grid):
            for c in range(grid):
                box = (columns[c], rows[r], columns[c + 1], rows[r + 1])
                one = image.copy()
                if box[2] > box[0] and box[3] > box[1]:
                    one.paste(fill, box)
                yield key, one

    scores = [v.score for v in detector.stream(covered())]
    return (scores[0] - np.array(scores[1:])).reshape(grid, grid)


def picture(heat, size):
    """A map as a grey image: white speaks for generated, black for real, middle grey for neither.

    Parameters
    ----------
    heat : ndarray (grid, grid)
    size : (int, int)
        Width and height of the result.

    Returns
    -------
    PIL.Image.Image, mode RGB
    """
    most = np.abs(heat).max()
    grey = np.full(heat.shape, 128.0) if most == 0 else 128 + 127 * heat / most
    small = Image.fromarray(np.rint(grey).astype(np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert("RGB")
