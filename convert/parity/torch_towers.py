"""PyTorch builders of the image towers, one function per family: ``f(plan, source) -> module or None``.

Each builds the source library's own net; what reads its features, where the file brings no class that does, is written
here from the library's description.
"""

import contextlib
import importlib
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Sequence

from ..families import vision
from ..plan import Plan
from ..reading import Source
from .torch_imports import without_broken_ops
from .torch_models import _huggingface, _pretrained, _timm

if TYPE_CHECKING:
    from torch import nn


def sizes_of(plan: Plan) -> Dict[str, Any]:
    """Width, depth, patch and all other arguments of the plan's net, those of its name included."""
    module = importlib.import_module(f"aidet.models.{plan.family.name}")
    return {**module.sizes(plan.architecture), **plan.arguments}


def vit(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """transformers, timm or torchvision."""
    a = sizes_of(plan)
    heads, hidden = a.get("heads") or a["width"] // 64, a.get("hidden") or 4 * a["width"]
    if plan.layout.name.startswith("hf"):
        config = {"hidden_size": a["width"], "num_attention_heads": heads, "intermediate_size": hidden}
        config.update(num_hidden_layers=a["depth"], image_size=a["image_size"], patch_size=a["patch_size"])
        return _huggingface(plan, source, "ViT" if plan.layout.name in ("hf", "hf5") else None, config)
    if plan.layout.name == "torchvision":
        without_broken_ops()
        from torchvision.models import VisionTransformer

        layers = (a["depth"], heads, a["width"], hidden)
        return VisionTransformer(a["image_size"], a["patch_size"], *layers, num_classes=plan.num_classes or 0)
    name = "deit_small_distilled_patch16_224" if plan.architecture.startswith("deit") else "vit_small_patch16_224"
    return _timm(name, num_classes=plan.num_classes, **timm_sizes(a))


def clip(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """transformers, timm, and for OpenAI's names a tower of PyTorch's own attention."""
    if ((source.config or {}).get("architectures") or [""])[0] == "CLIPForImageClassification":
        return _huggingface(plan, source)
    a = sizes_of(plan)
    if plan.layout.name == "timm":
        quick = "quickgelu_" if a["act"] == "quick_gelu" else ""
        return _timm(
            f"vit_base_patch32_clip_{quick}224",
            num_classes=plan.num_classes or 0,
            **timm_sizes(a),
        )
    import torch
    from torch import nn
    from torch.nn import functional as F

    levels, means = a["depth"] * a["width"], a["features"] == "levels_avg"
    out = {"projection": a["projection"], "levels": levels, "levels_avg": 2 * levels}.get(a["features"], a["width"])

    class Net(nn.Module):
        """A tower under the file's own names, and what reads it."""

        def __init__(self) -> None:
            super().__init__()
            if plan.layout.name == "hf":
                self.vision_model = _clip_of_transformers(a, source)
                if a["features"] == "projection":
                    self.visual_projection = nn.Linear(a["width"], out, bias=False)
            else:
                self.visual = _clip_of_openai(a, out)
            if plan.num_classes:
                setattr(self, plan.layout.source("head"), nn.Linear(out, plan.num_classes))

        def every(self, x: Any) -> Any:
            """What every block gives behind its second norm, side by side."""
            norms = [m for name, m in self.named_modules() if name.endswith(("layer_norm2", "ln_2"))]
            with outputs_of(norms) as tokens:
                (self.vision_model if plan.layout.name == "hf" else self.visual)(x)
            return torch.cat([part for t in tokens for part in (t[:, 0], *([t[:, 1:].mean(1)] if means else []))], 1)

        def forward(self, x: Any) -> Any:
            if a["features"].startswith("levels"):
                x = self.every(x)
            elif plan.layout.name != "hf":
                x = self.visual(x)
            elif a["features"] == "patches":
                x = self.vision_model(x).last_hidden_state[:, 1:].mean(1)
            else:
                x = self.vision_model(x).pooler_output
                x = self.visual_projection(x) if a["features"] == "projection" else x
            x = F.normalize(x, dim=-1) if a.get("normalise") else x
            return getattr(self, plan.layout.source("head"))(x) if plan.num_classes else x

    return Net()


@contextlib.contextmanager
def outputs_of(modules: "Sequence[nn.Module]") -> Iterator[List[Any]]:
    """A list of what these modules give out while the block runs, in the order of the calls."""
    seen: List[Any] = []
    hooks = [m.register_forward_hook(lambda module, inputs, output: seen.append(output)) for m in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def timm_sizes(a: Dict[str, Any]) -> Dict[str, Any]:
    """The arguments of timm's vision transformer."""
    return {
        "embed_dim": a["width"],
        "depth": a["depth"],
        "num_heads": a.get("heads") or a["width"] // 64,
        "mlp_ratio": (a.get("hidden") or 4 * a["width"]) / a["width"],
        "patch_size": a["patch_size"],
        "img_size": a["image_size"],
    }


def _clip_of_transformers(a, source):
    without_broken_ops()
    import transformers

    return transformers.CLIPVisionModel(_vision_config(transformers.CLIPVisionConfig, a, source))


def _vision_config(cls, a, source):
    """Settings of an image tower of transformers, those of the file's config.json first."""
    config = {
        "hidden_size": a["width"],
        "num_hidden_layers": a["depth"],
        "num_attention_heads": a.get("heads") or a["width"] // 64,
        "intermediate_size": a.get("hidden") or 4 * a["width"],
        "patch_size": a["patch_size"],
        "image_size": a["image_size"],
    }
    known = cls().to_dict()
    told = {k: v for k, v in vision(source.config).items() if k in known and k not in ("model_type", "architectures")}
    return cls(**{**config, **told})


def _clip_of_openai(a, out):
    """The tower of arXiv:2103.00020 under OpenAI's names, with ``torch.nn.MultiheadAttention``."""
    import torch
    from torch import nn

    width, patch = a["width"], a["patch_size"]

    class Act(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(1.702 * x) if a["act"] == "quick_gelu" else nn.functional.gelu(x)

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            hidden = a.get("hidden") or 4 * width
            self.attn = nn.MultiheadAttention(width, a.get("heads") or width // 64, batch_first=True)
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.mlp = nn.Sequential()
            self.mlp.add_module("c_fc", nn.Linear(width, hidden))
            self.mlp.add_module("act", Act())
            self.mlp.add_module("c_proj", nn.Linear(hidden, width))

        def forward(self, x):
            y = self.ln_1(x)
            x = x + self.attn(y, y, y, need_weights=False)[0]
            return x + self.mlp(self.ln_2(x))

    class Visual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
            self.class_embedding = nn.Parameter(torch.randn(width))
            self.positional_embedding = nn.Parameter(torch.randn((a["image_size"] // patch) ** 2 + 1, width))
            self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
            self.transformer = nn.Module()
            self.transformer.resblocks = nn.ModuleList([Residual() for _ in range(a["depth"])])
            if a["features"] == "projection":
                self.proj = nn.Parameter(torch.randn(width, out) * width**-0.5)

        def forward(self, x):
            x = self.conv1(x).flatten(2).transpose(1, 2)
            x = torch.cat((self.class_embedding.expand(len(x), 1, -1), x), 1) + self.positional_embedding
            x = self.ln_pre(x)
            for block in self.transformer.resblocks:
                x = block(x)
            if a["features"] == "patches":
                return x[:, 1:].mean(1)
            x = self.ln_post(x[:, 0])
            return x @ self.proj if a["features"] == "projection" else x

    return Visual()


def dinov2(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """transformers or timm; the hub's files run in timm's net, with the positions read as the hub reads them."""
    a = sizes_of(plan)
    if plan.layout.name.startswith("hf"):
        return _dinov2_of_transformers(plan, source, a)
    kind = "vit_small_patch14_reg4_dinov2" if a.get("registers") else "vit_small_patch14_dinov2"
    hub, sizes = plan.layout.name == "hub", timm_sizes(a)
    if a["act"] == "swiglu":
        kind = kind.replace("small", "giant")
        sizes["mlp_ratio"] = 2 * a["hidden"] / a["width"] + 1e-6
    if a.get("registers"):
        sizes["reg_tokens"] = a["registers"]
    if not hub:
        sizes.update(img_size=a["grid"] * a["patch_size"], dynamic_img_size=True)
        sizes.update({"no_embed_class": not a.get("lead_positions", True)})
    pool = {"token": "token", "avg": "avg", "token_avg": "token"}[a.get("pool", "token")]
    both = a.get("pool") == "token_avg"
    model = _timm(kind, num_classes=0 if both else plan.num_classes or 0, global_pool=pool, **sizes)
    if hub:
        model.aidet_rename = lambda state: _hub_in_timm(state, a)
        model.aidet_taps = "timm"
    return _both(model, plan, a) if both else model


def _both(model, plan, a):
    """Class token and mean of the patches side by side, as the hub's linear classifiers read them."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.head = model, nn.Linear(2 * a["width"], plan.num_classes)

        def forward(self, x):
            x = self.net.forward_features(x)
            return self.head(torch.cat((x[:, 0], x[:, 1 + a.get("registers", 0) :].mean(1)), 1))

    net: Any = Net()
    net.aidet_taps = "both"
    renamed = getattr(model, "aidet_rename", lambda state: state)
    net.aidet_rename = lambda state: {k if k.startswith("head.") else "net." + k: v for k, v in renamed(state).items()}
    return net


def _hub_in_timm(state, a):
    """The hub's tensors under timm's names, positions read at the net's grid."""
    import torch

    state = {k: v for k, v in state.items() if k != "mask_token"}
    state = {k.replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2."): v for k, v in state.items()}
    grid, new = a["grid"], a["image_size"] // a["patch_size"]
    table = state["pos_embed"].float()
    first, rest = table[:, :1], table[:, 1:]
    if grid != new:
        offset = a["interpolation"] == "bicubic_offset"
        how = {"scale_factor": ((new + 0.1) / grid,) * 2} if offset else {"size": (new, new), "antialias": True}
        rest = rest.reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
        rest = torch.nn.functional.interpolate(rest, mode="bicubic", **how).flatten(2).transpose(1, 2)
    if a.get("registers"):
        # timm adds the class token's position to the token itself.
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"], state["pos_embed"] = state["cls_token"] + first, rest
    else:
        state["pos_embed"] = torch.cat((first, rest), 1)
    return state


def _dinov2_of_transformers(plan, source, a):
    """The library's classifier, or its tower and a linear layer on the class token."""
    without_broken_ops()
    import torch
    import transformers
    from torch import nn

    if str(((source.config or {}).get("architectures") or [""])[0]).endswith("ForImageClassification"):
        return _huggingface(plan, source)
    registers = a.get("registers")
    config = {
        "hidden_size": a["width"],
        "num_hidden_layers": a["depth"],
        "num_attention_heads": a.get("heads") or a["width"] // 64,
        "mlp_ratio": 4 if a["act"] == "swiglu" else a["hidden"] // a["width"],
        "use_swiglu_ffn": a["act"] == "swiglu",
        "patch_size": a["patch_size"],
        "image_size": a["grid"] * a["patch_size"],
        **({"num_register_tokens": registers} if registers else {}),
    }
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    if a.get("pool") == "token_avg":
        model = _pretrained(plan, getattr(transformers, kind + "ForImageClassification"), config)
        model.aidet_loaded = True
        return model

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = _pretrained(plan, getattr(transformers, kind + "Model"), config)
            if plan.num_classes:
                self.head = nn.Linear(a["width"], plan.num_classes)
                self.head.load_state_dict(
                    {k: torch.from_numpy(plan.tensors[f"classifier.{k}"].array().copy()) for k in ("weight", "bias")}
                )

        def forward(self, x):
            x = self.net(x).pooler_output
            return self.head(x) if plan.num_classes else x

    model = Net()
    model.aidet_loaded = True
    return model


def siglip(plan: Plan, source: Source) -> Optional["nn.Module"]:
    """timm, or transformers: its classifier, or its tower, whose features come from the attention pool or the mean."""
    a = sizes_of(plan)
    if plan.layout.name == "timm":
        kind = "vit_base_patch16_siglip_224" if a["pool"] == "map" else "vit_base_patch16_siglip_gap_224"
        act = "gelu_tanh" if a["act"] == "gelu_tanh" else "gelu"
        return _timm(kind, num_classes=plan.num_classes or 0, act_layer=act, **timm_sizes(a))
    if ((source.config or {}).get("architectures") or [""])[0] == "SiglipForImageClassification":
        return _huggingface(plan, source)
    without_broken_ops()
    import transformers
    from torch import nn

    config = _vision_config(transformers.SiglipVisionConfig, a, source)
    config.vision_use_head = a["pool"] == "map"

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_model = transformers.SiglipVisionModel(config)
            if plan.num_classes:
                self.classifier = nn.Linear(a["width"], plan.num_classes)

        def forward(self, x: Any) -> Any:
            x = self.vision_model(x)
            x = x.pooler_output if a["pool"] == "map" else x.last_hidden_state.mean(1)
            return self.classifier(x) if plan.num_classes else x

    return Net()
