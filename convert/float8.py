"""8-bit floats: every one of the 256 values, computed once from the definition of the format.

``e4m3fn`` and ``e5m2`` are those of Micikevicius et al., "FP8 formats for deep learning" (arXiv:2209.05433); the
``fnuz`` variants have one more in the bias, no infinity and no negative zero, whose pattern is the only NaN
(arXiv:2206.02915);
``e8m0fnu`` is the scale of the OCP microscaling formats, a power of two.
"""

import functools
from typing import Any, Dict, Tuple

import numpy as np

# name -> (bits of the exponent, bits of the mantissa, bias, has infinities, fnuz)
FORMATS: Dict[str, Tuple[int, int, int, bool, bool]] = {
    "float8_e4m3fn": (4, 3, 7, False, False),
    "float8_e5m2": (5, 2, 15, True, False),
    "float8_e4m3fnuz": (4, 3, 8, False, True),
    "float8_e5m2fnuz": (5, 2, 16, False, True),
}
NAMES = (*FORMATS, "float8_e8m0fnu")


@functools.cache
def table(name: str) -> np.ndarray:
    """The values of all bit patterns of a format in :data:`NAMES`: float32 (256,), exact."""
    bits = np.arange(256)
    if name == "float8_e8m0fnu":
        return np.where(bits == 255, np.nan, np.ldexp(1.0, bits - 127)).astype(np.float32)
    exponent_bits, mantissa_bits, bias, infinite, fnuz = FORMATS[name]
    sign = np.where(bits >> 7, -1.0, 1.0)
    exponent, mantissa = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1), bits & ((1 << mantissa_bits) - 1)
    whole = np.where(exponent > 0, 1 << mantissa_bits, 0) + mantissa
    values = sign * np.ldexp(whole.astype(np.float64), np.maximum(exponent, 1) - bias - mantissa_bits)
    top = exponent == (1 << exponent_bits) - 1
    if fnuz:
        values[0x80] = np.nan
    elif infinite:
        values = np.where(top, np.where(mantissa == 0, sign * np.inf, np.nan), values)
    else:
        values = np.where(top & (mantissa == (1 << mantissa_bits) - 1), np.nan, values)
    return values.astype(np.float32)


def widen(bits: Any, name: str) -> np.ndarray:
    """Bit patterns (uint8, any shape) of a format to float32, exactly."""
    return table(name)[np.asarray(bits, np.uint8)].reshape(np.shape(bits))
