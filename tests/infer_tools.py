"""What the inference tests share: a detector that is quick to make."""

import numpy as np

from aidet import ckpt, models, runtime

LINES = {
    "size": 32,
    "channels": 3,
    "transform": "decode | resize(40) | center_crop(32) | normalize(half)",
    "views": "decode | random_crop(32) | hflip | normalize(half)",
}


def make_model(path, seed=1, order=("real", "generated"), **facts):
    """A tiny network with large random weights, so that its scores differ between images and views."""
    runtime.setup(seed=seed)
    net = models.create("testing", num_classes=len(order))
    rng = np.random.default_rng(seed)
    arrays = {p.name: p.asnumpy() for p in net.get_parameters()}
    # The classifier's rows sum to 0, so that random images score on both sides of the threshold.
    weight = rng.normal(0, 4, arrays["classifier.weight"].shape).astype(np.float32)
    arrays["classifier.weight"] = weight - weight.mean(axis=1, keepdims=True)
    sidecar = {"architecture": "testing", "arguments": {"num_classes": len(order)}, "num_outputs": len(order)}
    sidecar.update(classes=list(order), class_order=list(order), input=LINES, threshold=None)
    return ckpt.save(arrays, path, {**sidecar, **facts}) and path
