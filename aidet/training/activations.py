"""A faster exact GELU for training on a CPU.

GELU is ``x * cdf(x)`` with the distribution function of the standard normal distribution, whose derivative is the
density. MindSpore differentiates its error function with the general power operator, which takes longer than the error
function itself. Written out, forward and backward pass of a Swin-T at 64 pixels take .60 s instead of .73 for 16
pictures (processor time, one core).
"""

import math
from typing import Tuple

from mindspore import Tensor, nn, ops


def speed_up(net: nn.Cell) -> int:
    """Let every exact ``nn.GELU`` of a network compute as this module describes; the results differ by rounding only.

    For graph mode. GELUs that use the approximation by tanh stay as they are.

    Parameters
    ----------
    net : mindspore.nn.Cell
        Changed in place.

    Returns
    -------
    int
        How many there are.
    """
    found = [c for _, c in net.cells_and_names() if type(c) is nn.GELU and c.approximate == "none"]
    for cell in found:
        cell.cdf = NormalCdf()
        cell.__class__ = Gelu
    return len(found)


class Gelu(nn.GELU):
    """``x * cdf(x)``, any shape. Made by :func:`speed_up` only."""

    def construct(self, x: Tensor) -> Tensor:
        return x * self.cdf(x)


class NormalCdf(nn.Cell):
    """Distribution function of the standard normal distribution, any shape, float32."""

    def construct(self, x: Tensor) -> Tensor:
        return (ops.erf(x * math.sqrt(0.5)) + 1.0) * 0.5

    def bprop(self, x: Tensor, out: Tensor, by: Tensor) -> Tuple[Tensor]:
        """Gradient with respect to the input; ``by`` is that with respect to the output."""
        return (by * (ops.exp(x * x * -0.5) * (1.0 / math.sqrt(2.0 * math.pi))),)
