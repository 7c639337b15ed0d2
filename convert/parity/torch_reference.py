"""The original model in PyTorch, if PyTorch is installed, as the reference of a conversion.

Within the converter only this folder imports torch; a conversion works without it.
"""

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from aidet.ckpt import Sidecar
from aidet.errors import UserError

from .. import MAKE_REFERENCE
from ..plan import Plan
from ..reading import Source
from . import compare, statement

if TYPE_CHECKING:
    import torch

PHOTOS = ("skimage:chelsea.png", "skimage:coffee.png", "skimage:astronaut.png", "skimage:motorcycle_left.png")


def torch_model(plan: Plan, source: Source) -> "torch.nn.Module":
    """The source's own model with its own weights, in inference mode.

    Returns
    -------
    torch.nn.Module

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
            f"({MAKE_REFERENCE} writes one where PyTorch is), or --verify tensors"
        ) from None
    from . import torch_detectors, torch_models, torch_towers

    places = (torch_models, torch_towers, torch_detectors)
    builder = next((getattr(m, plan.family.name) for m in places if hasattr(m, plan.family.name)), None)
    model = builder(plan, source) if builder else None
    if model is not None and builder.__module__ == torch_detectors.__name__:
        model.aidet_compared = torch_detectors.compared(plan)
    if model is None:
        raise UserError(
            f"there is no PyTorch reference for {plan.family.name} in layout {plan.layout.name}: use --verify "
            "tensors, or --reference REF.npz"
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


def photos(
    plan: Plan, source: Source, transform: Optional[str], names: Sequence[str] = PHOTOS
) -> Tuple[Dict[str, Any], Optional[np.ndarray], np.ndarray]:
    """Photos after the source's own preprocessing, and the model's input.

    Returns
    -------
    (dict, numpy.ndarray uint8 (N, H, W, 3) or None, numpy.ndarray float32 (N, C, H, W))
        Facts for the reference's meta (photos, pixels_by, mean, std). If the photos are not installed, or if the net
        takes latents: seeded noise, and no pixels. There are no pixels, mean or std either if the input cannot be
        computed from single pixels (``high_pass``).
    """
    from aidet.images import Pipeline, decode

    from . import torch_detectors, torch_models

    if transform is None:
        shape = (2, plan.arguments.get("latent_channels", 4), 16, 16)
        return {}, None, np.random.default_rng(0).normal(size=shape).astype(np.float32)
    pipeline = Pipeline(transform)
    paths = [path for path in map(compare.photo_path, names) if path is not None]
    if len(paths) < len(names):
        size = pipeline.size() or (256, 256)
        coarse = np.random.default_rng(0).normal(size=(2, 3, 8, 8))
        x = coarse.repeat(-(-size[0] // 8), 2).repeat(-(-size[1] // 8), 3)[:, :, : size[0], : size[1]]
        return {}, None, np.ascontiguousarray(x, np.float32)
    pictures = [decode(p) for p in paths]
    if pipeline.size() is None:
        pictures = [p.crop((0, 0, 256, 256)) for p in pictures]
    if pipeline.affine() is None:
        return {"photos": list(names)}, None, np.stack([pipeline(p) for p in pictures])
    least = torch_detectors.WHOLE_CROPS.get(source.recipe or "", 0)
    names = [name for name, picture in zip(names, pictures) if min(picture.size) >= least]
    pictures = [picture for picture in pictures if min(picture.size) >= least]
    authors = torch_detectors.preprocess(source.recipe, pictures) if source.recipe else None
    if authors is not None:
        theirs, mean, std, name = authors
        told = {"photos": list(names), "mean": mean, "std": std, "pixels_by": name}
        return told, theirs, compare.normalised(theirs, mean, std)
    mean, std = statistics(transform)
    facts: Dict[str, Any] = {"photos": list(names), "mean": mean, "std": std}
    pixels, made_by = torch_models.preprocess(plan, source, transform, pictures)
    if pixels is None:
        cut = np.stack([pipeline.geometry(p) for p in pictures])
        pixels = np.rint(cut.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    else:
        facts["pixels_by"] = made_by
    return facts, pixels, compare.normalised(pixels, mean, std)


def reference(
    plan: Plan, source: Source, sidecar: Sidecar, level: str = "layers", names: Sequence[str] = PHOTOS
) -> compare.Reference:
    """Run the original model and keep its outputs.

    ``sidecar`` is the :class:`aidet.ckpt.Sidecar` of the converted model.

    Returns
    -------
    compare.Reference
    """
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch_model(plan, source)
        import torch

        facts, pixels, x = photos(plan, source, sidecar.transform, names)
        taps: Dict[str, np.ndarray] = {}
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
        "compared_with": statement.compared_with(model, plan, source),
        "versions": versions(),
        **facts,
    }
    return compare.Reference(meta, x, output.numpy().astype(np.float32), taps, pixels)


def hook_taps(model: "torch.nn.Module", plan: Plan, taps: Dict[str, np.ndarray]) -> None:
    """Record into ``taps`` the sampled output of every module that the family's taps name."""
    modules = dict(model.named_modules())
    table = getattr(model, "aidet_taps", None) or plan.layout.name
    for cell, names in plan.family.taps(plan.architecture):
        name = names.get(table)
        if name is None or name not in modules:
            continue

        def record(module, inputs, output, cell=cell):
            taps[cell] = compare.sample(plain(output).detach().numpy())

        modules[name].register_forward_hook(record)


def plain(output: Any) -> Any:
    """The tensor in the output of a model of any library."""
    for name in ("logits", "latents", "sample", "last_hidden_state", "pooler_output"):
        value = getattr(output, name, None)
        if value is not None and not callable(value):
            return value
    return output[0] if isinstance(output, (tuple, list)) else output


def versions() -> Dict[str, str]:
    """Versions of the libraries that the reference was made with."""
    from aidet.runtime import version_of

    names = ("torch", "timm", "torchvision", "transformers", "diffusers", "numpy", "pillow")
    return {name: version for name, version in ((n, version_of(n)) for n in names) if version}


def statistics(transform: str) -> Tuple[List[float], List[float]]:
    """Mean and standard deviation per channel with which a pipeline normalises pixels in [0, 1].

    Parameters
    ----------
    transform : str

    Returns
    -------
    (list of float, list of float)
        Rounded to six digits.

    Raises
    ------
    UserError
        The pipeline is not an affine map of single pixels (``high_pass``).
    """
    from aidet.images import Pipeline

    pipeline = Pipeline(transform)
    affine = pipeline.affine()
    if affine is None:
        raise UserError(f"{pipeline.numbers.text!r} has no mean and deviation; use normalize or to_float")
    scale, offset = affine
    std = 1 / scale
    return [round(v, 6) for v in (-offset * std)], [round(v, 6) for v in std]
