"""Load our checkpoint into MindCV's net of the same name: compare names and shapes both ways, then the outputs."""

import numpy as np

# Names that exist in both, and an image size that is sufficient.
SHARED = {
    "resnet18": 64,
    "resnet34": 64,
    "resnet50": 64,
    "resnet101": 64,
    "resnet152": 64,
    **{f"efficientnet_b{i}": 64 for i in range(8)},
    "mobilenet_v3_small_100": 64,
    "mobilenet_v3_large_100": 64,
    "squeezenet1_0": 64,
    "squeezenet1_1": 64,
    "convnext_tiny": 64,
    "convnext_small": 64,
    "convnext_base": 64,
    "swin_tiny": 224,
    "vit_b_16_224": 224,
    "vit_b_16_384": 384,
}


def compare(name, folder):
    """Save random weights of our net, load them strictly into ``mindcv.create_model(name)``, and run both.

    Returns
    -------
    (float, float)
        Largest difference of the logits relative to the largest logit: for MindCV's net as it is, and with its GELU
        (the tanh form) and the epsilon of its LayerNorms (not uniform in its Swin) set to ours.
    """
    import mindcv
    import mindspore as ms
    import recipe

    from aidet import ckpt, models, runtime
    from aidet.models.layers import native_sigmoid

    runtime.setup(device="CPU", mode="pynative")
    theirs = mindcv.create_model(name).set_train(False)
    # MindCV's ViT has MindSpore's default epsilon; ours comes from the sidecar of the converted model.
    ours = models.create(name, **({"ln_eps": 1e-7} if name.startswith("vit") else {})).set_train(False)
    for parameter in ours.get_parameters():
        if not parameter.name.endswith(("relative_bias.index", "attn_mask")):
            parameter.set_data(ms.Tensor(recipe.weights(_in_pytorch(parameter.name), parameter.shape)))
    ckpt.save(ours, folder / "x.ckpt", {"architecture": name})
    given = ms.load_checkpoint(str(folder / "x.ckpt"))
    assert {n: tuple(p.shape) for n, p in given.items()} == {p.name: tuple(p.shape) for p in theirs.get_parameters()}
    assert ms.load_param_into_net(theirs, given, strict_load=True) == ([], [])
    x = ms.Tensor(recipe.image(SHARED[name]))
    # MindCV uses the plain kernel, whose errors these weights can amplify without bound.
    with native_sigmoid(ours):
        a = ours(x).asnumpy()
    b = theirs(x).asnumpy()
    _as_ours(theirs, ours)
    c = theirs(x).asnumpy()
    return tuple(float(np.abs(each - a).max() / np.abs(a).max()) for each in (b, c))


def _in_pytorch(name):
    """PyTorch's name of a tensor: the recipe detects the kind of a tensor from the end of its name."""
    for ours, theirs in (("gamma", "weight"), ("beta", "bias"), ("moving_variance", "running_var")):
        if name.endswith("." + ours):
            return name[: -len(ours)] + theirs
    return name.replace("gamma_", "layer_scale")


def _as_ours(theirs, ours):
    from mindspore import nn, ops

    epsilons = {c.epsilon for _, c in ours.cells_and_names() if isinstance(c, nn.LayerNorm)}
    for _, cell in theirs.cells_and_names():
        if isinstance(cell, nn.GELU):
            cell.approximate = "none"
        if isinstance(cell, nn.LayerNorm):
            (epsilon,) = epsilons
            cell.layer_norm = ops.LayerNorm(cell.begin_norm_axis, cell.begin_params_axis, epsilon)
