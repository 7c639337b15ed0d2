"""What a verification compared with what, and what it cannot prove."""

from typing import TYPE_CHECKING, Any, Mapping, Optional

from ..plan import Plan
from ..reading import Source

if TYPE_CHECKING:
    import torch

# Families in which nets that compute something else have the same keys and shapes, and how they differ.
TWINS: Mapping[str, str] = {
    "resnet": "the strides of stem and pool, and what is done to the photograph before the net, are not in a file: "
    "GRIP-UNINA's ResNet-50 without downsampling (Corvi2023, Gragnaniello2021) has the keys of torchvision's, and so "
    "have detectors of gradients, residuals and DCTs (LGrad, DIRE, FreDect)",
}


def compared_with(model: "torch.nn.Module", plan: Plan, source: Source) -> str:
    """The reference for people: "transformers 5.23.0's ViTForImageClassification, built from config.json".

    A builder of :mod:`.torch_models` whose net is not a library's own says so itself in the attribute
    ``aidet_compared``.
    """
    said = getattr(model, "aidet_compared", None)
    if said:
        return said
    module, name = type(model).__module__, type(model).__name__
    library = module.split(".")[0]
    if library not in ("transformers", "timm", "torchvision", "diffusers"):
        return f"a torch rebuild of {plan.architecture} of this project, after the paper and the file's keys"
    from aidet.runtime import version_of

    known = library == "transformers" and (source.config or {}).get("model_type")
    how = "built from config.json" if known else f"built as {plan.architecture} from the file's keys and shapes"
    return f"{library} {version_of(library) or ''}".rstrip() + f"'s {name}, {how}"


def of_stored(meta: Mapping[str, Any]) -> str:
    """The same for stored activations, from the facts in their file."""
    if meta.get("compared_with"):
        return f"stored outputs of {meta['compared_with']}"
    made_by = str(meta.get("made_by") or "an unnamed network")
    version = (meta.get("versions") or {}).get(made_by.split(".")[0])
    return f"stored outputs of {made_by}" + (f" ({made_by.split('.')[0]} {version})" if version else "")


def caveat(plan: Plan, source: Source) -> Optional[str]:
    """What equal outputs do not prove for this family; None if nothing is known, or config.json settles the forward."""
    text = TWINS.get(plan.family.name)
    if text is None or (source.config or {}).get("model_type"):
        return None
    other = [a for a in plan.family.architectures if "nodown" in a and a != plan.architecture]
    return text + (f"; --arch {other[0]}" if other else "") if "nodown" not in plan.architecture else None
