"""MindCV's augmentation keys as one-line pipelines."""

import math
from typing import Any, Tuple

from .. import images
from ..errors import UserError, nearest


def pipelines(config: Any) -> Tuple[str, str]:
    """The training and evaluation pipelines of a configuration.

    Parameters
    ----------
    config : aidet.config.Config
        ``transform`` and ``transform_eval`` take precedence; a missing one is made from MindCV's keys.

    Returns
    -------
    (str, str)
    """
    if config.transform_eval:
        evaluation = config.transform_eval
    elif config.transform:
        raise UserError(
            "transform needs a transform_eval, too: training and evaluation must map pixels to the same numbers"
        )
    else:
        evaluation = _evaluation(config)
    return config.transform or _training(config), evaluation


def _interpolation(config):
    how = config.interpolation.lower()  # MindCV takes any case, and its Visformer files write BICUBIC
    if how not in images.INTERPOLATION:
        raise UserError(nearest(config.interpolation, images.INTERPOLATION, "interpolation"))
    return how


def _normalize(config):
    # MindCV gives mean and std in 0..255.
    mean, std = ([round(v / 255, 8) for v in values] for values in (config.mean, config.std))
    return f"normalize({tuple(mean)}, {tuple(std)})"


def _pair(size):
    return size if isinstance(size, list) else [size, size]


def _training(config):
    height, width = _pair(config.image_resize)
    how = _interpolation(config)
    if config.scale is None and config.ratio is None:
        steps = [f"resize(({height}, {width}), {how})"]
    else:
        scale, ratio = config.scale or [0.08, 1.0], config.ratio or [0.75, 1.333]
        steps = [
            f"random_resized_crop(({height}, {width}), scale={tuple(scale)}, ratio={tuple(ratio)}, interpolation={how})"
        ]
    if config.hflip:
        steps.append(f"hflip({config.hflip})")
    if config.vflip:
        steps.append(f"vflip({config.vflip})")
    if config.auto_augment:
        steps.append(f"auto_augment('{config.auto_augment}')")
    elif config.color_jitter:
        values = config.color_jitter if isinstance(config.color_jitter, list) else [config.color_jitter] * 3
        values = [min(1.0, v) for v in values][:3]
        if len(values) != 3:
            raise UserError(f"color_jitter (={config.color_jitter}) must be one number or three")
        steps.append("color_jitter({}, {}, {})".format(*values))
    steps.append(_normalize(config))
    if config.re_prob:
        value = tuple(config.re_value) if isinstance(config.re_value, list) else config.re_value
        steps.append(
            f"random_erasing({config.re_prob}, scale={tuple(config.re_scale)}, ratio={tuple(config.re_ratio)}, "
            f"value={value}, max_attempts={config.re_max_attempts})"
        )
    return " | ".join(steps)


def _evaluation(config):
    height, width = _pair(config.image_resize)
    how = _interpolation(config)
    if height == width:
        first = f"resize({int(math.floor(height / config.crop_pct))}, {how})"
    else:
        first = f"resize(({int(height / config.crop_pct)}, {int(width / config.crop_pct)}), {how})"
    return f"{first} | center_crop(({height}, {width})) | {_normalize(config)}"
