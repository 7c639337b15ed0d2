"""Autoencoders as functions from pixels to pixels, of any size, tile by tile."""

from pathlib import Path
from typing import Callable, Optional, Union

import numpy as np

from ..errors import UserError

TILE, OVERLAP = 512, 64
PROBE = 64  # sides in pixels of the image that an autoencoder is tested with


class Reconstructor:
    """An autoencoder as a function from pixels to pixels, of any size.

    Parameters
    ----------
    path : str or Path
        Checkpoint of a whole autoencoder (AutoencoderKL, the project's own), or of an encoder (TAESD).
    tile : int
        Largest side that the network processes at once; larger images are tiled with 64 pixels of overlap, blended
        linearly.
    device : str
    decoder : str or Path, optional
        Checkpoint of the decoder that belongs to an encoder.

    Attributes
    ----------
    multiple : int
        Sides are padded to a multiple of this: the sidecar's ``input.multiple``, else the network's reduction factor.

    Raises
    ------
    UserError
        The model is not an autoencoder, the two halves do not match, or the tile is not a multiple of the factor.
    """

    def __init__(
        self, path: Union[str, Path], tile: int = TILE, device: str = "auto", decoder: Optional[Union[str, Path]] = None
    ) -> None:
        from .. import ckpt, runtime

        halves = [ckpt.Sidecar.read(p) for p in (path, decoder) if p is not None]
        runtime.setup(device=device, mode="pynative")
        nets = [ckpt.load_network(half) for half in halves]
        self.encode, self.decode = _coder(nets, halves, path, decoder)
        self.low, self.high = halves[0].value_range
        self.multiple = halves[0].multiple or self._reduction()
        if tile < 4 * OVERLAP or tile % self.multiple:
            raise UserError(f"--tile (={tile}) must be a multiple of {self.multiple} and at least {4 * OVERLAP}")
        self.name, self.tile = halves[0].architecture, tile
        self.sha256, self.decoder_sha256 = halves[0].sha256, None if decoder is None else halves[1].sha256
        self._check(path, decoder)

    def _reduction(self):
        """Pixels per side of one latent position."""
        import mindspore as ms

        return PROBE // self.encode(ms.Tensor(np.zeros((1, 3, PROBE, PROBE), np.float32))).shape[2]

    def _check(self, path, decoder):
        """Check that an image comes back in its own shape, before hours are spent on it."""
        x = np.zeros((3, PROBE, PROBE), np.float32)
        try:
            shape = self._run(x).shape
        except Exception as error:  # noqa: BLE001 - MindSpore raises several types for shapes that do not fit
            shape = str(error).strip().splitlines()[0][:160]
        if shape != x.shape:
            what = f"--ckpt {str(path)!r}" + (f" with --decoder {str(decoder)!r}" if decoder else "")
            raise UserError(f"{what} does not give an image of {PROBE} pixels back in its shape: {shape}")

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) -> uint8 (H, W, 3). Sides are padded by mirroring to a multiple, then cropped."""
        height, width = pixels.shape[:2]
        pad = [(0, -height % self.multiple), (0, -width % self.multiple), (0, 0)]
        x = np.pad(pixels, pad, mode="symmetric").transpose(2, 0, 1).astype(np.float32)
        y = tiled(self._run, x / 255 * (self.high - self.low) + self.low, self.tile, OVERLAP)
        y = (y[:, :height, :width] - self.low) / (self.high - self.low) * 255
        return np.clip(np.rint(y), 0, 255).astype(np.uint8).transpose(1, 2, 0)

    def _run(self, x):
        import mindspore as ms

        return self.decode(self.encode(ms.Tensor(np.ascontiguousarray(x[None])))).asnumpy()[0]


def _coder(nets, halves, path, decoder):
    """The encoding and decoding functions of an autoencoder in one checkpoint or in two."""
    first = halves[0].architecture
    whole = hasattr(nets[0], "encode") and hasattr(nets[0], "decode")
    if decoder is not None:
        second = halves[1].architecture
        if whole or "encoder" not in first or "decoder" not in second:
            raise UserError(f"--ckpt is {first!r} and --decoder {second!r}; wanted an encoder and its decoder")
        return nets
    if whole:
        return nets[0].encode, nets[0].decode
    if "encoder" in first:
        raise UserError(f"--ckpt {str(path)!r} is {first!r}, half an autoencoder; name the other with --decoder B.ckpt")
    raise UserError(f"--ckpt {str(path)!r} is {first!r}, not an autoencoder")


def tiled(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, tile: int, overlap: int) -> np.ndarray:
    """Apply a function from (C, H, W) to the same shape tile by tile, blending overlapping edges linearly.

    Parameters
    ----------
    function : callable
    x : ndarray (C, H, W)
    tile, overlap : int
        In pixels. An image that fits into a tile is processed whole.

    Returns
    -------
    ndarray (C, H, W), float32
    """
    height, width = x.shape[1:]
    if height <= tile and width <= tile:
        return function(x)
    total, weight = np.zeros_like(x, np.float32), np.zeros((height, width), np.float32)
    for top in _starts(height, tile, overlap):
        for left in _starts(width, tile, overlap):
            part = x[:, top : top + tile, left : left + tile]
            ramp = _ramp(part.shape[1], overlap)[:, None] * _ramp(part.shape[2], overlap)[None]
            total[:, top : top + tile, left : left + tile] += function(part) * ramp
            weight[top : top + tile, left : left + tile] += ramp
    return total / weight


def _starts(length, tile, overlap):
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def _ramp(length, overlap):
    """Weight 1 in the middle, decreasing linearly towards both ends over the overlap."""
    away = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1
    return np.minimum(away / (overlap + 1), 1).astype(np.float32)
