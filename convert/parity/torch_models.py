"""PyTorch builders of the original models, one function per family: ``f(plan, source) -> module or None``."""

import re
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from aidet.files import write_json

from ..plan import Plan
from ..reading import FOLDER_FILES, Source
from ..reverse import write_safetensors
from .torch_imports import without_broken_ops

if TYPE_CHECKING:
    from torch import nn


def _timm(name: str, **kwargs: Any) -> Any:
    without_broken_ops()
    import timm

    return timm.create_model(name, pretrained=False, **kwargs)


def _torchvision(name: str, **kwargs: Any) -> Any:
    without_broken_ops()
    import torchvision

    return getattr(torchvision.models, name)(weights=None, **kwargs)


def _huggingface(
    plan: Plan, source: Source, kind: Optional[str] = None, config: Optional[Dict[str, Any]] = None
) -> Optional["nn.Module"]:
    """Load the model, with its weights, from the folder with transformers itself.

    For a file without ``config.json`` (an npz, a ``.pth``) one is made: class ``kind``, settings ``config``.
    """
    without_broken_ops()
    import transformers

    if source.config and "model_type" in source.config:
        kind = (source.config.get("architectures") or [None])[0]
        cls = getattr(transformers, str(kind), None) or transformers.AutoModelForImageClassification
        folder = source.files[0].parent
        known = source.files[0].name in FOLDER_FILES or len(source.files) > 1
        changed = source.kind == "onnx" or source.kind.endswith("adapters")  # the folder holds other tensors
        if known and not changed and set(plan.tensors) <= set(source.tensors):
            model = cls.from_pretrained(str(folder), local_files_only=True)
        else:  # another name of the file, or keys without a prefix that transformers does not know
            model = _loaded(plan, cls, lambda place: write_json(Path(place) / "config.json", source.config))
    elif kind is None:
        return None
    else:
        model = _pretrained(plan, getattr(transformers, kind + "ForImageClassification"), {**(config or {})})
    model.aidet_loaded = True
    return model


def _pretrained(plan, cls, config):
    """The model of a file without ``config.json``."""
    made = cls.config_class(num_labels=plan.num_classes, **config)
    return _loaded(plan, cls, made.save_pretrained)


def _loaded(plan, cls, write_config):
    """``cls.from_pretrained`` on a temporary folder, because it knows all older names of the tensors."""
    with tempfile.TemporaryDirectory() as folder:
        write_config(folder)
        arrays = {plan.layout.prefix + k: t.array() for k, t in plan.tensors.items()}
        write_safetensors(Path(folder) / "model.safetensors", arrays, {"format": "pt"})
        return cls.from_pretrained(folder, local_files_only=True)


def preprocess(
    plan: Plan, source: Source, transform: str, pictures: Sequence[Any]
) -> Tuple[Optional[np.ndarray], Optional[str]]:
    """Resize and crop photos with the source library's own code.

    Returns
    -------
    (numpy.ndarray uint8 (N, H, W, 3), str) or (None, None)
        The pixels before normalisation and the name of what made them.
    """
    size = re.search(r"center_crop\((\d+)\)", transform)
    edge = re.search(r"resize\((\d+), (\w+)\)", transform)
    if plan.layout.name == "hf" and source.preprocessor:
        config = {k: v for k, v in source.preprocessor.items() if not k.startswith("_")}
        kind = config.get("image_processor_type") or config.get("feature_extractor_type") or "ViTImageProcessor"
        without_broken_ops()
        import transformers

        name = kind.replace("FeatureExtractor", "ImageProcessor")
        cls = getattr(transformers, name + "Pil", None) or getattr(transformers, name, None)
        if cls is None:
            return None, None
        processor = cls.from_dict({**config, "do_normalize": False, "do_rescale": False})
        pixels = np.stack([np.asarray(processor(p, return_tensors="np")["pixel_values"])[0] for p in pictures])
        return np.rint(pixels).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1), f"transformers.{cls.__name__}"
    if plan.layout.name.startswith(("timm", "lukemelas", "torchvision")) and size and edge:
        without_broken_ops()
        from torchvision import transforms as T

        how = getattr(T.InterpolationMode, edge.group(2).upper())
        steps = T.Compose([T.Resize(int(edge.group(1)), how), T.CenterCrop(int(size.group(1)))])
        return np.stack([np.asarray(steps(p)) for p in pictures]), "torchvision.transforms"
    return None, None


def efficientnet(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """timm's TensorFlow ports stand in for lukemelas' package: the same tensors in the same order."""
    layout, size = plan.layout.name, plan.architecture
    if layout == "hf":
        return _huggingface(plan, source)
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

        return nn.Sequential(_torchvision(size), nn.Dropout(0.5), nn.Linear(1000, plan.num_classes or 0))
    return None


def resnet(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """torchvision, or Hugging Face from the folder's config.json."""
    if plan.layout.name == "hf":
        from aidet.models.resnet import SIZES

        block, depths = SIZES[plan.architecture]
        widths = [(64 if block == "basic" else 256) * 2**i for i in range(4)]
        return _huggingface(
            plan, source, "ResNet", {"layer_type": block, "depths": list(depths), "hidden_sizes": widths}
        )
    if plan.layout.name == "grip":
        return without_downsampling(_torchvision("resnet50", num_classes=plan.num_classes))
    if plan.layout.name == "torchvision-mlp":
        model = _torchvision(plan.architecture)
        model.fc = _sequence(plan.arguments["head"], model.fc.in_features, plan.num_classes)
        return model
    if plan.layout.name == "drct":
        from torch import nn

        backbone = _torchvision(plan.architecture, num_classes=plan.arguments["head"][0])
        parts = OrderedDict(model=backbone, fc=nn.Linear(backbone.fc.out_features, plan.num_classes or 0))
        return nn.Sequential(parts)
    return _torchvision(plan.architecture, num_classes=plan.num_classes)


def without_downsampling(model: Any) -> "nn.Module":
    """A ResNet of torchvision with stride 1 in the first convolution and the max-pool, as in GRIP-UNINA's."""
    model.conv1.stride, model.maxpool.stride = (1, 1), 1
    return model


def _sequence(spec, width, outputs):
    """A head of linear layers from the description that ``aidet.models.resnet.hidden_layers`` takes."""
    from torch import nn

    layers: List[nn.Module] = []
    for item in spec:
        if isinstance(item, int):
            layers.append(nn.Linear(width, item))
            width = item
        else:
            layers.append({"norm": nn.BatchNorm1d(width), "relu": nn.ReLU(), "dropout": nn.Dropout(0.5)}[item])
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def squeezenet(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """torchvision."""
    return _torchvision(plan.architecture, num_classes=plan.num_classes)


def mobilenet_v3(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """torchvision."""
    return _torchvision(plan.architecture[:-4], num_classes=plan.num_classes)


def swin(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """transformers, timm (either naming: the older is renamed to the newer), torchvision."""
    if plan.layout.name.startswith("hf"):
        from aidet.models.swin import SIZES

        width, depths, heads = SIZES[plan.architecture]
        sizes = {"embed_dim": width, "depths": list(depths), "num_heads": list(heads)}
        return _huggingface(plan, source, "Swin", {**sizes, **plan.arguments})
    if plan.layout.name == "torchvision":
        names = {"swin_tiny": "swin_t", "swin_small": "swin_s", "swin_base": "swin_b"}
        return (
            _torchvision(names[plan.architecture], num_classes=plan.num_classes) if plan.architecture in names else None
        )
    size, window = plan.arguments["image_size"], plan.arguments["window_size"]
    model = _timm(
        f"{plan.architecture}_patch4_window7_224", num_classes=plan.num_classes, img_size=size, window_size=window
    )
    model.aidet_taps = "timm"
    if plan.layout.name == "timm-old":
        from timm.models.swin_transformer import checkpoint_filter_fn

        model.aidet_rename = lambda state: checkpoint_filter_fn(state, model)
    return model


def swin_v2(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """transformers or timm (Microsoft's names are renamed to timm's)."""
    from aidet.models.swin_v2 import SIZES

    a = plan.arguments
    width, depths, heads = SIZES.get(plan.architecture) or (a["width"], a["depths"], a["heads"])
    sizes = {
        "embed_dim": width,
        "depths": list(depths),
        "num_heads": list(heads),
        "window_size": a["window_size"],
        "pretrained_window_sizes": list(a.get("pretrained_window", [0] * len(depths))),
    }
    if plan.layout.name == "hf":
        return _huggingface(plan, source, "Swinv2", {**sizes, "image_size": a["image_size"]})
    model = _timm("swinv2_tiny_window8_256", num_classes=plan.num_classes, img_size=a["image_size"], **sizes)
    if plan.layout.name == "microsoft":
        from timm.models.swin_transformer_v2 import checkpoint_filter_fn

        model.aidet_rename = lambda state: checkpoint_filter_fn(state, model)
        model.aidet_taps = "timm"
    return model


def convnext(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """transformers, timm, torchvision."""
    if plan.layout.name == "hf":
        from aidet.models.convnext import SIZES

        depths, widths = SIZES[plan.architecture]
        return _huggingface(plan, source, "ConvNext", {"depths": list(depths), "hidden_sizes": list(widths)})
    if plan.layout.name == "torchvision":
        return _torchvision(plan.architecture, num_classes=plan.num_classes)
    model = _timm(plan.architecture, num_classes=plan.num_classes)
    if plan.layout.name == "meta":
        from timm.models.convnext import checkpoint_filter_fn

        model.aidet_rename = lambda state: checkpoint_filter_fn(state, model)
        model.aidet_taps = "timm"
    return model


def convnext_v2(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """transformers or timm (Meta's names are renamed to timm's)."""
    if plan.layout.name == "hf":
        from aidet.models.convnext_v2 import SIZES

        depths, widths = SIZES[plan.architecture]
        sizes = {"depths": list(depths), "hidden_sizes": list(widths), "layer_norm_eps": plan.arguments["head_eps"]}
        return _huggingface(plan, source, "ConvNextV2", sizes)
    model = _timm(plan.architecture.replace("_v2", "v2"), num_classes=plan.num_classes)
    if plan.layout.name == "meta":
        from timm.models.convnext import checkpoint_filter_fn

        model.aidet_rename = lambda state: checkpoint_filter_fn(state, model)
        model.aidet_taps = "timm"
    return model


def efficientnet_v2(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """torchvision, or timm: B0 to B3 of its own trainings are the ports with other settings."""
    size = plan.architecture.split("_")[1]
    if plan.layout.name == "torchvision":
        return _torchvision(f"efficientnet_v2_{size}", num_classes=plan.num_classes)
    if plan.layout.name == "timm" and not size.startswith("b"):
        return _timm(plan.architecture, num_classes=plan.num_classes)
    same = {} if plan.layout.name == "timm-tf" else {"pad_type": "", "bn_eps": 1e-5}
    return _timm(f"tf_{plan.architecture}", num_classes=plan.num_classes, **same)


def beit(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """transformers or timm."""
    from aidet.models.beit import SIZES

    a = plan.arguments
    width, depth, heads = SIZES.get(plan.architecture) or (a["width"], a["depth"], a["heads"])
    hidden, patch, scale = a.get("hidden", 4 * width), a.get("patch_size", 16), a.get("layer_scale", 0.1)
    if plan.layout.name.startswith("hf"):
        config = {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "intermediate_size": hidden,
            "image_size": a["image_size"],
            "patch_size": patch,
            "layer_norm_eps": a["ln_eps"],
            "use_mean_pooling": a.get("pooling", "mean") == "mean",
            "use_relative_position_bias": a.get("relative", True),
            "use_absolute_position_embeddings": a.get("absolute", False),
            "layer_scale_init_value": scale or 0.0,
        }
        return _huggingface(plan, source, "Beit", config)
    sizes = {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": hidden / width}
    return _timm(
        "beit_base_patch16_224",
        num_classes=plan.num_classes,
        img_size=a["image_size"],
        patch_size=patch,
        init_values=scale,
        use_rel_pos_bias=a.get("relative", True),
        use_abs_pos_emb=a.get("absolute", False),
        **sizes,
    )


def mobilenet_v2(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """transformers, timm, torchvision."""
    width = plan.arguments.get("width", 1.0)
    if plan.layout.name == "hf":
        a = plan.arguments
        config = {"depth_multiplier": width, "tf_padding": a["padding"] == "same", "layer_norm_eps": a["bn_eps"]}
        return _huggingface(plan, source, "MobileNetV2", config)
    if plan.layout.name == "torchvision":
        return _torchvision("mobilenet_v2", num_classes=plan.num_classes, width_mult=width)
    known = {0.35: "035", 0.5: "050", 0.75: "075", 1.0: "100", 1.4: "140"}
    return _timm(f"mobilenetv2_{known[width]}", num_classes=plan.num_classes) if width in known else None


def resnest(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """timm, whose names are those of the authors' own files."""
    from aidet.models.resnest import DEPTHS

    a = plan.arguments
    sizes = {"layers": list(a.get("depths", DEPTHS)), "stem_width": a.get("stem_width", 32)}
    return _timm("resnest50d", num_classes=plan.num_classes, **sizes)


def autoencoder_kl(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """diffusers; older attention names and LDM's names are converted by diffusers' own code."""
    without_broken_ops()
    import torch
    from diffusers import AutoencoderKL
    from torch import nn

    a = plan.arguments
    stages = len(a["widths"])
    vae: Any = AutoencoderKL(
        block_out_channels=tuple(a["widths"]),
        layers_per_block=a["depth"],
        latent_channels=a["latent_channels"],
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        use_quant_conv=a.get("quant", True),
        use_post_quant_conv=a.get("quant", True),
    )

    class Reconstruct(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = vae.encoder, vae.decoder
            if a.get("quant", True):
                self.quant_conv, self.post_quant_conv = vae.quant_conv, vae.post_quant_conv

        def forward(self, x):
            return vae.decode(vae.encode(x).latent_dist.mode()).sample

    class Classify(nn.Module):
        def __init__(self, shapes):
            super().__init__()
            self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
            layers = [nn.Linear(*shapes[n][::-1]) for n in ("clf.0.weight", "clf.2.weight", "clf.4.weight")]
            self.clf = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])

        def forward(self, x):
            return self.clf(torch.flatten(vae.encode(x).latent_dist.mode(), 1))

    model: Any = Classify(plan.shapes) if plan.architecture == "aekl_clf" else Reconstruct()
    if plan.layout.name.startswith("ldm"):
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        config = dict(vae.config)
        model.aidet_rename = lambda state: convert_ldm_vae_checkpoint(dict(state), config)
        model.aidet_taps = "diffusers"
    elif plan.layout.name.endswith("-old"):
        swap = dict(zip(("query", "key", "value", "proj_attn"), ("to_q", "to_k", "to_v", "to_out.0")))

        def rename(state):
            result = {}
            for key, value in state.items():
                for old, new in swap.items():
                    key = key.replace(f"attentions.0.{old}.", f"attentions.0.{new}.")
                result[key] = value
            return result

        model.aidet_rename = rename
        model.aidet_taps = "diffusers"
    return model


def cifar_resnet(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """The net of arXiv:1512.03385, section 4.2, as akamaster's file names its parts."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self, cin, width, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(cin, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
            self.grow = (width - cin) // 2

        def forward(self, x):
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            if self.grow:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grow, self.grow))
            return F.relu(x + y)

    class Net(nn.Module):
        def __init__(self, blocks, classes):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            for i, (cin, width) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
                first = Block(cin, width, 1 if i == 1 else 2)
                setattr(self, f"layer{i}", nn.Sequential(first, *[Block(width, width, 1) for _ in range(blocks - 1)]))
            self.linear = nn.Linear(64, classes)

        def forward(self, x):
            x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
            return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))

    return Net((int(plan.architecture[12:]) - 2) // 6, plan.num_classes)


def cifake(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """CIFAKE_CNN as aics describes it; the output is the logit in front of its sigmoid."""
    import torch
    from torch import nn

    class Recalibration(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.cfc = nn.Conv1d(channels, channels, 2, groups=channels, bias=False)
            self.bn = nn.BatchNorm1d(channels)

        def forward(self, x):
            flat = x.flatten(2)
            style = torch.stack((flat.mean(2), flat.std(2)), 2)
            return x * torch.sigmoid(self.bn(self.cfc(style)))[:, :, :, None]

    class Net(nn.Module):
        def __init__(self, used, classes):
            super().__init__()
            self.used = used
            self.conv1, self.attend, self.conv2 = nn.Conv2d(3, 6, 5), Recalibration(6), nn.Conv2d(6, 16, 5)
            self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, classes)

        def forward(self, x):
            x = torch.max_pool2d(torch.relu(self.conv1(x)), 2)
            x = self.attend(x) if self.used else x
            x = torch.max_pool2d(torch.relu(self.conv2(x)), 2).flatten(1)
            return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))

    return Net(plan.architecture.endswith("srm"), plan.num_classes)


def taesd(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """The published sequences, from their description in the file's keys; diffusers' own class for its layouts."""
    import torch
    from torch import nn

    class Clamp(nn.Module):
        def forward(self, x):
            return 3 * torch.tanh(x / 3)

    class Block(nn.Module):
        def __init__(self, width, pool):
            super().__init__()
            convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
            self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
            if pool:
                self.pool = nn.Sequential(
                    nn.Conv2d(width, 4 * width, 1, bias=False),
                    nn.GroupNorm(4, 4 * width),
                    nn.ReLU(),
                    nn.Conv2d(4 * width, width, 1, bias=False),
                )

        def forward(self, x):
            x = x + self.pool(x) if hasattr(self, "pool") else x
            return torch.relu(x + self.conv(x))

    if plan.layout.name != "sequential":
        import diffusers

        tiny = diffusers.AutoencoderTiny(latent_channels=plan.arguments["latent_channels"])
        return _half_of_tiny(tiny, plan.layout.name)
    tensors, decoder = plan.tensors, "decoder" in plan.architecture
    numbers = sorted({int(k.split(".")[0]) for k in tensors})
    layers: List[nn.Module] = []
    for i in range(numbers[-1] + 1):
        weight = tensors.get(f"{i}.weight")
        if weight is not None:
            halve = not decoder and i > 0 and i != numbers[-1] or "sana" in plan.architecture and not decoder and i == 0
            layers.append(
                nn.Conv2d(weight.shape[1], weight.shape[0], 3, 2 if halve else 1, 1, bias=f"{i}.bias" in tensors)
            )
        elif f"{i}.conv.0.weight" in tensors:
            layers.append(Block(tensors[f"{i}.conv.0.weight"].shape[0], f"{i}.pool.0.weight" in tensors))
        elif decoder and i == 0:
            layers.append(Clamp())
        elif decoder and i > 2:
            layers.append(nn.Upsample(scale_factor=2))
        else:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _half_of_tiny(model, layout):
    """One half of diffusers' AutoencoderTiny on images in [0, 1]."""
    from torch import nn

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = model.encoder, model.decoder

        def forward(self, x):
            if layout == "diffusers-encoder":
                return self.encoder(x * 2 - 1)
            return (self.decoder(x) + 1) / 2

    return Half()
