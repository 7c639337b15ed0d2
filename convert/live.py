"""The original model in PyTorch, where PyTorch is installed, as the reference of a conversion.

Only this module and ``make_reference.py`` import torch; the product works without.
"""

import importlib
import sys
import types

import numpy as np

from aidet.errors import UserError

from . import verify

PHOTOS = ("skimage:chelsea.png", "skimage:coffee.png", "skimage:astronaut.png", "skimage:motorcycle_left.png")


def torch_model(plan, source):
    """Build the source's own model with its own weights.

    Returns
    -------
    (torch.nn.Module, callable or None)
        In inference mode; the callable turns the module's output into a tensor.

    Raises
    ------
    UserError
        torch or the library of this layout is missing, or there is no reference implementation.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            "no stored reference is known for these weights and PyTorch is not installed: pass --reference REF.npz "
            "(convert/make_reference.py writes one where PyTorch is), or --verify tensors"
        ) from None
    builder = getattr(importlib.import_module("convert.torch_models"), plan.family.name, None)
    model = builder(plan, source) if builder else None
    if model is None:
        raise UserError(
            f"there is no PyTorch reference for {plan.family.name} in layout {plan.layout.name}: use --verify "
            "tensors, or "
            "--reference REF.npz"
        )
    if getattr(model, "aidet_loaded", False):
        return model.float().eval()
    state = {k: torch.from_numpy(np.array(t.array())) for k, t in plan.tensors.items()}
    own = model.state_dict()
    renamed = getattr(model, "aidet_rename", None)
    if renamed:
        state = renamed(state)
    state = {k: v for k, v in state.items() if k in own or k not in plan.report["dropped"]}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [m for m in missing if not m.endswith(("num_batches_tracked", "relative_position_index", "position_ids"))]
    if missing or unexpected:
        raise UserError(
            f"the PyTorch reference takes other keys: missing {missing[:4]}, unexpected {list(unexpected)[:4]}"
        )
    return model.float().eval()


def without_broken_ops():
    """Let torchvision and timm import beside a CPU build of torch whose compiled operators do not fit."""
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, ImportError):
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")


def photos(plan, source, transform, names=PHOTOS):
    """The photos as the source's own preprocessing makes them, and the model's input.

    Returns
    -------
    (dict, numpy.ndarray uint8 (N, H, W, 3) or None, numpy.ndarray float32 (N, C, H, W))
        Facts for the reference's meta (photos, pixels_by, mean, std). Where the photos are not installed, or the net
        takes latents: seeded noise, and no pixels.
    """
    from aidet.images import decode
    from aidet.transforms import Pipeline

    from . import torch_models

    if transform is None:
        shape = (2, plan.arguments.get("latent_channels", 4), 16, 16)
        return {}, None, np.random.default_rng(0).normal(size=shape).astype(np.float32)
    pipeline = Pipeline(transform)
    paths = [verify.photo_path(n) for n in names]
    if None in paths:
        size = pipeline.size() or (256, 256)
        coarse = np.random.default_rng(0).normal(size=(2, 3, 8, 8))
        x = coarse.repeat(-(-size[0] // 8), 2).repeat(-(-size[1] // 8), 3)[:, :, : size[0], : size[1]]
        return {}, None, np.ascontiguousarray(x, np.float32)
    pictures = [decode(p) for p in paths]
    if pipeline.size() is None:
        pictures = [p.crop((0, 0, 256, 256)) for p in pictures]
    mean, std = statistics(transform)
    facts = {"photos": list(names), "mean": mean, "std": std}
    pixels, made_by = torch_models.preprocess(plan, source, transform, pictures)
    if pixels is None:
        plain = " | ".join(p for p in pipeline.text.split(" | ") if not p.startswith(("normalize", "to_float")))
        pixels = np.rint(np.stack([Pipeline(plain)(p) for p in pictures]).transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    else:
        facts["pixels_by"] = made_by
    return facts, pixels, verify.normalised(pixels, mean, std)


def reference(plan, source, sidecar, level="layers", names=PHOTOS):
    """Run the original model and keep what it gives.

    ``sidecar`` is the :class:`aidet.ckpt.Sidecar` of the converted model.

    Returns
    -------
    convert.verify.Reference
    """
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch_model(plan, source)
        import torch

        facts, pixels, x = photos(plan, source, sidecar.transform, names)
        taps = {}
        if level == "layers":
            hook_taps(model, plan, taps)
        with torch.no_grad():
            output = plain(model(torch.from_numpy(x)))
    meta = {
        "architecture": plan.architecture,
        "arguments": plan.model_arguments(),
        "layout": plan.layout.name,
        "source_sha256": sidecar.source_sha256,
        "transform": sidecar.transform,
        "made_by": type(model).__module__ + "." + type(model).__name__,
        "versions": versions(),
        **facts,
    }
    return verify.Reference(meta, x, output.numpy().astype(np.float32), taps, pixels)


def hook_taps(model, plan, taps):
    """Record the sampled output of every module that the family's taps name."""
    modules = dict(model.named_modules())
    table = getattr(model, "aidet_taps", None) or plan.layout.name
    for cell, names in plan.family.taps(plan.architecture):
        name = names.get(table)
        if name is None or name not in modules:
            continue

        def record(module, inputs, output, cell=cell):
            taps[cell] = verify.sample(plain(output).detach().numpy())

        modules[name].register_forward_hook(record)


def plain(output):
    """The tensor inside a model's output."""
    for name in ("logits", "latents", "sample", "last_hidden_state", "pooler_output"):
        value = getattr(output, name, None)
        if value is not None and not callable(value):
            return value
    return output[0] if isinstance(output, (tuple, list)) else output


def versions():
    """Versions of what the reference was made with."""
    from aidet.runtime import version_of

    names = ("torch", "timm", "torchvision", "transformers", "diffusers", "numpy", "pillow")
    return {n: version_of(n) for n in names if version_of(n)}


def statistics(transform):
    """Mean and standard deviation of a pipeline's last step, measured on black and white."""
    from PIL import Image

    from aidet.transforms import Pipeline

    black, white = (
        Pipeline(transform)(Image.new("RGB", (640, 640), c)).astype(np.float64)[:, 0, 0] for c in ("black", "white")
    )
    std = 1 / (white - black)
    return [round(v, 6) for v in (-black * std)], [round(v, 6) for v in std]
