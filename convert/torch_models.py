"""PyTorch builders of the original models, one function a family: ``f(plan, source) -> module or None``."""
from .live import without_broken_ops


def _timm(name, **kwargs):
    without_broken_ops()
    import timm

    return timm.create_model(name, pretrained=False, **kwargs)


def _torchvision(name, **kwargs):
    without_broken_ops()
    import torchvision

    return getattr(torchvision.models, name)(weights=None, **kwargs)


def _huggingface(source):
    """From the folder's own config.json; without one the shapes do not say enough."""
    if not source.config or "model_type" not in source.config:
        return None
    import transformers

    config = transformers.AutoConfig.for_model(**source.config)
    return transformers.AutoModelForImageClassification.from_config(config)


def efficientnet(plan, source):
    """timm's TensorFlow ports stand in for lukemelas' package: the same tensors in the same order."""
    layout, size = plan.layout.name, plan.architecture
    if layout == "hf":
        return _huggingface(source)
    if layout == "torchvision":
        return _torchvision(size, num_classes=plan.num_classes)
    if layout == "timm":
        return _timm(size, num_classes=plan.num_classes)
    if layout in ("timm-tf", "lukemelas"):
        model = _timm("tf_" + size, num_classes=plan.num_classes)
        if layout == "lukemelas":
            model.aidet_rename = lambda state: dict(zip(model.state_dict(), state.values()))
        model.aidet_taps = "timm"
        return model
    if layout == "stacked":
        from torch import nn

        model = nn.Sequential(_torchvision(size), nn.Dropout(0.5), nn.Linear(1000, plan.num_classes))
        return model
    return None
