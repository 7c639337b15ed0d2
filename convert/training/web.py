"""What happens to a picture on its way through the web: shrunk, saved, cropped, saved again.

Photographs on the web were mostly saved twice or more and shrunk; pictures of a generator lie in the sets as PNG,
never compressed. A detector that is calibrated on them as they lie there learns that difference. So both classes pass
the same chain, whose draws depend on the picture's name and the number of the version only.
"""

from PIL import Image

from aidet import images
from aidet.images import operations

SCALE = (0.4, 1.0)
# Each save is on a block grid of its own: up to 7 pixels are cut off at the left and the top before it.
FIRST = images.Pipeline("webp((50, 95))"), images.Pipeline("jpeg((50, 95))")
SECOND = images.Pipeline("webp((70, 95))"), images.Pipeline("jpeg((70, 95))")
WEBP = 0.3  # how often a save is WebP
KEPT = (0.85, 1.0)  # of each side, by the crop between the two


def through(image: Image.Image, name: str, version: int, least: int = 128, seed: int = 42) -> Image.Image:
    """A picture as it may be found on the web.

    Parameters
    ----------
    image : PIL.Image.Image, mode RGB
    name : str
        With the seed and the version it decides every draw.
    version : int
        From 1.
    least : int
        Pixels that the shorter side keeps; a smaller picture is neither shrunk nor cropped.
    seed : int

    Returns
    -------
    PIL.Image.Image
    """
    rng = images.generator(seed, name, version)
    short = min(image.size)
    smallest = min(1.0, max(SCALE[0], (least / KEPT[0] + 7) / short))
    scale = rng.uniform(smallest, SCALE[1])
    image = operations.rescale((scale, scale))(image, rng)
    image = _saved(_cut(image, rng, least), FIRST, rng)
    part = rng.uniform(*KEPT)
    width, height = (max(round(part * side), min(least, side)) for side in image.size)
    left, top = (int(rng.integers(0, side - kept + 1)) for side, kept in zip(image.size, (width, height)))
    return _saved(image.crop((left, top, left + width, top + height)), SECOND, rng)


def _cut(image, rng, least):
    left, top = (int(n) for n in rng.integers(0, 8, 2))
    if min(image.width - left, image.height - top) < min(least, *image.size):
        return image
    return image.crop((left, top, *image.size))


def _saved(image, lines, rng):
    return images.applied(lines[int(rng.random() >= WEBP)].steps, image, rng)
