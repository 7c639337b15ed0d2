"""Operations that only training uses, registered beside those of :mod:`aidet.transforms`."""

import numpy as np

from .errors import UserError
from .transforms import _number, _pair, operation


@operation(random=True)
def random_erasing(p=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0, max_attempts=10):
    """Replace a random box by ``value`` (after normalisation) or by ``random`` noise (Zhong et al. 2020).

    Comes after ``normalize``; ``value`` is a number, one a channel, or ``random``.
    """
    _number("p", p, 0, 1)
    low, high = _pair("scale", scale, 0, 1)
    small, large = np.log(_pair("ratio", ratio, 0.001, 1000))
    if value != "random":
        value = np.array(value if isinstance(value, tuple) else (value,) * 3, np.float32).reshape(-1, 1, 1)

    def run(array, rng):
        if not isinstance(array, np.ndarray):
            raise UserError("random_erasing comes after normalize, to_float or high_pass")
        if rng.random() >= p:
            return array
        _, height, width = array.shape
        for _ in range(max_attempts):
            area, aspect = height * width * rng.uniform(low, high), np.exp(rng.uniform(small, large))
            h, w = int(round(np.sqrt(area * aspect))), int(round(np.sqrt(area / aspect)))
            if 0 < h < height and 0 < w < width:
                top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
                array = array.copy()
                noise = isinstance(value, str)
                fill = rng.standard_normal((array.shape[0], h, w), dtype=np.float32) if noise else value
                array[:, top : top + h, left : left + w] = fill
                return array
        return array

    return run
