"""Preprocessing of a converted model, from the files that came with it."""

from dataclasses import dataclass
from typing import Any, Mapping, Optional, Sequence, Tuple

from aidet.errors import UserError
from aidet.images import STATISTICS

from .plan import Plan
from .reading import Source

# PIL's numbers, as preprocessor_config.json writes them.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@dataclass(frozen=True)
class Preprocessing:
    """The evaluation pipeline of a converted model.

    Attributes
    ----------
    line, views : str or None
        The pipeline, and the pipeline of random views; None for a net that takes no image (a decoder).
    origin : str
        Where the line comes from.
    guess : bool
        No file says it: it is what most nets of the family take.
    """

    line: Optional[str]
    views: Optional[str]
    origin: str
    guess: bool = False


def choose(
    plan: Plan, source: Source, transform: Optional[str] = None, entry: Optional[Mapping[str, Any]] = None
) -> Preprocessing:
    """The pipeline from ``--transform``, a recipe, the source's own files, a known repository or the family.

    The first of these that has one.

    Parameters
    ----------
    plan, source : see :mod:`.conversion`
    transform : str, optional
        ``--transform``.
    entry : dict, optional
        What is known about the repository; its ``transform`` is that of the authors.

    Raises
    ------
    UserError
        ``transform`` is no pipeline, or the net takes no image; ``preprocessor_config.json`` cannot be expressed.
    """
    usual = plan.layout.transform or plan.family.transform(plan.architecture, plan.layout, plan.arguments)
    line, origin, guess = usual, f"usual for {plan.architecture}", True
    if transform is not None:
        line, origin, guess = _given(transform, usual, plan), "--transform", False
    elif entry and entry.get("recipe") and entry.get("transform"):
        line, origin, guess = str(entry["transform"]), f"recipe {entry['recipe']}", False
    elif (found := line_beside(source)) is not None:
        line, origin, guess = *found, False
    elif entry and entry.get("transform"):
        line, origin, guess = str(entry["transform"]), f"known for {entry.get('repository') or 'this file'}", False
    if not line:
        return Preprocessing(None, None, "takes no image")
    return Preprocessing(line, views_line(line), origin, guess)


def _given(transform, usual, plan):
    from aidet.images import Pipeline

    if not usual:
        raise UserError(f"--transform: {plan.architecture} takes no image")
    try:
        Pipeline(transform)
    except UserError as error:
        raise UserError(f"--transform {transform!r}: {error}") from None
    return transform


def line_beside(source: Source) -> Optional[Tuple[str, str]]:
    """The evaluation pipeline that a file beside the weights describes, and the file's name; None if none does."""
    timm = (source.config or {}).get("pretrained_cfg")
    if source.preprocessor:
        return from_huggingface(source.preprocessor), "preprocessor_config.json"
    return (from_timm(timm), "config.json (pretrained_cfg)") if isinstance(timm, dict) else None


def fit_input(plan: Plan, source: Source, given: Mapping[str, Any], transform: Optional[str] = None) -> None:
    """Give a net that takes any input the size that ``--transform`` prepares, or else the files beside its weights.

    Parameters
    ----------
    plan, source : see :mod:`.conversion`
    given : dict
        Arguments of the architecture that the user set.
    transform : str, optional
        ``--transform``. The files beside the weights are then not read: they may be what it corrects.

    Raises
    ------
    UserError
        These files prepare another size than ``given``, or than a net takes that is not free in its input; or they
        cannot be expressed.
    """
    if "image_size" not in plan.arguments:
        return
    from aidet.images import Pipeline

    if transform is not None:
        size = Pipeline(_given(transform, True, plan)).size()
        if plan.family.free_input and "image_size" not in given and size is not None and size[0] == size[1]:
            plan.arguments["image_size"] = size[0]
        return
    found = line_beside(source)
    size = Pipeline(found[0]).size() if found else None
    if size is None or size[0] != size[1]:
        return
    wanted = given.get("image_size") if plan.family.free_input else plan.arguments["image_size"]
    if wanted not in (None, size[0]):
        raise UserError(
            f"image_size (={wanted}): the files beside the weights prepare {size[0]} x {size[1]}; change size and "
            "crop_size in preprocessor_config.json, or image_size"
        )
    plan.arguments["image_size"] = size[0]


def views_line(line: str) -> str:
    """Random flipped crops of native pixels: a crop keeps the high frequencies that a resize destroys."""
    from aidet.images import Pipeline

    pipeline = Pipeline(line)
    size = pipeline.size()
    if size is None:
        return line
    last = pipeline.parts[len(pipeline.geometry.parts) :]
    crop = f"random_crop({size[0]})" if size[0] == size[1] else f"random_crop(({size[0]}, {size[1]}))"
    return " | ".join(["decode", crop, "hflip()", *last])


def normalize(mean: Sequence[float], std: Sequence[float]) -> str:
    """``normalize(...)``, by name if the statistics have one."""
    mean, std = [float(m) for m in mean], [float(s) for s in std]
    for name, (known_mean, known_std) in STATISTICS.items():
        if _near(mean, known_mean) and _near(std, known_std):
            return f"normalize({name})"
    return f"normalize({mean}, {std})"


def _near(a, b):
    return len(a) == len(b) and all(abs(x - y) < 1e-6 for x, y in zip(a, b))


def _check_size(name, size, other=()):
    """Refuse a size that is neither a number, nor height and width, nor one of the ``other`` single keys."""
    if isinstance(size, int) and not isinstance(size, bool):
        return
    pairs = (("height", "width"), *((key,) for key in other))
    if not isinstance(size, Mapping) or not any(all(isinstance(size.get(k), int) for k in keys) for keys in pairs):
        known = " or ".join(" and ".join(keys) for keys in pairs)
        raise UserError(
            f"preprocessor_config.json: {name} (={size!r}) must be a number of pixels or have {known}; describe the "
            "preprocessing with --transform"
        )


def from_huggingface(config: Mapping[str, Any]) -> str:
    """Turn ``preprocessor_config.json`` into a pipeline.

    Understands ``size`` as a number, ``{"height", "width"}`` or ``{"shortest_edge"}``, ``crop_pct`` (ConvNeXt and the
    older ViT-style processors), ``do_center_crop``, ``resample``, ``image_mean``, ``image_std``.
    """
    parts = ["decode"]
    size, crop = config.get("size"), config.get("crop_size")
    how = _RESAMPLE.get(config.get("resample", 2))
    if how is None:
        raise UserError(f"preprocessor_config.json: resample {config.get('resample')!r} is not a PIL filter")
    if config.get("do_resize", True) and size is not None:
        _check_size("size", size, ("shortest_edge",))
        edge = size if isinstance(size, int) else size.get("shortest_edge")
        if edge is not None and config.get("crop_pct") and edge < 384:
            # ConvNextImageProcessor: resize the short edge to size / crop_pct, crop to size; from 384 up, stretch.
            parts += [f"resize({int(edge / config['crop_pct'])}, {how})", f"center_crop({edge}, floor)"]
        elif edge is not None and (not isinstance(size, int) and config.get("crop_pct") is None):
            parts.append(f"resize({edge}, {how})")
        else:
            height, width = (edge, edge) if edge is not None else (size["height"], size["width"])
            parts.append(f"resize(({height}, {width}), {how})")
    if config.get("do_center_crop") and crop is not None:
        _check_size("crop_size", crop)
        height, width = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
        parts.append(f"center_crop({height if height == width else (height, width)}, floor)")
    if config.get("do_normalize", True):
        parts.append(_huggingface_normalize(config))
    return " | ".join(parts)


def _huggingface_normalize(config):
    if not config.get("do_rescale", True):
        raise UserError("preprocessor_config.json normalises values of 0 to 255 (do_rescale false): not supported")
    mean, std = config.get("image_mean", [0.5] * 3), config.get("image_std", [0.5] * 3)
    full = 255 * float(config.get("rescale_factor") or 1 / 255)  # what a white pixel is before it is normalised
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
    divided = std
    if kind.startswith("EfficientNet"):
        if config.get("rescale_offset"):
            mean = [m + 1 for m in mean]
        if config.get("include_top", True):  # the original divides by the deviation once more
            divided = [s * s for s in std]
    return normalize([m / full for m in mean], [d / full for d in divided])


def from_timm(config: Mapping[str, Any]) -> str:
    """Turn timm's ``pretrained_cfg`` into a pipeline: resize to size / crop_pct, crop, normalise."""
    size = int(config["input_size"][-1])
    how = config.get("interpolation", "bicubic")
    edge = int(size / float(config.get("crop_pct", 0.875)))
    if config.get("crop_mode", "center") == "squash":
        head = [f"resize(({size}, {size}), {how})"]
    else:
        head = [f"resize({edge}, {how})", f"center_crop({size})"]
    return " | ".join(["decode", *head, normalize(config["mean"], config["std"])])
