"""Preprocessing inside the exported graph."""

from typing import TYPE_CHECKING, Sequence, Tuple

import numpy as np

from .. import ckpt, labels
from ..errors import UserError
from ..images import Pipeline

if TYPE_CHECKING:
    import mindspore as ms

SCORE = "score"


def input_of(sidecar: ckpt.Sidecar) -> Tuple[Tuple[int, int], Pipeline]:
    """((height, width), evaluation pipeline) of a model; :class:`UserError` if the size is not fixed."""
    path, line = sidecar.path, sidecar.transform
    if not line:
        raise UserError(f"the sidecar of {str(path)!r} names no input.transform, so its input size is unknown")
    pipeline = Pipeline(line)
    size = pipeline.size()
    if size is None:
        raise UserError(f"{str(path)!r} takes images of any size ({line}); an export needs a fixed one")
    return size, pipeline


def _bytes(size):
    return lambda n: np.random.default_rng(n).integers(0, 256, (n, *size, 3), dtype=np.uint8)


def with_preprocessing(
    net: "ms.nn.Cell", pipeline: Pipeline, order: Sequence[str], calibration: Tuple[float, float] = (1.0, 0.0)
) -> "ms.nn.Cell":
    """A cell that takes uint8 (N, h, w, 3) and returns the score (N,), around a network that returns logits.

    ``order`` and ``calibration`` are those of :class:`aidet.ckpt.Sidecar`.

    Raises
    ------
    UserError
        The pipeline does not end in an affine map of single pixels (``high_pass``).
    """
    import mindspore as ms
    from mindspore import nn, ops

    affine = pipeline.affine(white=255)
    if affine is None:
        tail = pipeline.numbers.text
        raise UserError(f"--preprocess-in-graph: {tail!r} is no map of single pixels; export without it")
    scale, offset = (values.astype(np.float32) for values in affine)
    generated = np.array([o == labels.NAMES[1] for o in order])

    class Scored(nn.Cell):
        """Cast, normalise, network, log-odds of the two sides."""

        def __init__(self):
            super().__init__()
            self.net = net
            self.scale = ms.Tensor(scale.reshape(1, 3, 1, 1))
            self.offset = ms.Tensor(offset.reshape(1, 3, 1, 1))
            self.single = len(order) == 1
            self.sign = ms.Tensor(np.float32(1 if generated.all() else -1))
            self.top = ops.ReduceMax(keep_dims=True)
            self.generated = ms.Tensor(generated.astype(np.float32).reshape(-1, 1))
            self.real = ms.Tensor((~generated).astype(np.float32).reshape(-1, 1))
            # With two classes the log-odds are a difference; with more, the probabilities of each side are summed.
            self.difference = ms.Tensor((generated * 2.0 - 1.0).astype(np.float32).reshape(-1, 1))
            self.two = len(order) == 2
            self.calibrated = tuple(calibration) != (1.0, 0.0)
            self.slope, self.shift = (ms.Tensor(np.float32(v)) for v in calibration)

        def construct(self, x):
            score = self.plain(x)
            return self.slope * (score - self.shift) if self.calibrated else score

        def plain(self, x):
            x = ops.transpose(ops.cast(x, ms.float32), (0, 3, 1, 2)) * self.scale + self.offset
            y = self.net(x)
            if isinstance(y, tuple):  # a map beside the logits
                y = y[0]
            if self.single:
                return ops.squeeze(y * self.sign, 1)
            if self.two:
                return ops.squeeze(ops.matmul(y, self.difference), 1)
            e = ops.exp(y - self.top(y, 1))
            return ops.squeeze(ops.log(ops.matmul(e, self.generated)) - ops.log(ops.matmul(e, self.real)), 1)

    return Scored()
