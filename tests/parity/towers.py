"""Cells of the image towers: CLIP, DINOv2, SigLIP, and ViT of free sizes. See ``cells.py``, which lists them."""

import json
from collections import OrderedDict

import cells
import torch
from torch import nn
from torch.nn import functional as F

SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 320}
CLIP_SIZES = {
    "b_32": ({"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 32}, 224, 512),
    "b_16": ({"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 16}, 224, 512),
    "l_14": ({"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}, 224, 768),
    "l_14_336": ({"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}, 336, 768),
}


class Read(nn.Module):
    """A library's net, and what reads its output: ``pick(output)``, length one, a linear layer."""

    def __init__(self, net, pick, head=None, normalise=False):
        super().__init__()
        self.net, self.pick, self.normalise = net, pick, normalise
        self.fc = nn.Linear(*head) if head else nn.Identity()

    def forward(self, x):
        x = self.pick(self.net(x))
        return self.fc(F.normalize(x, dim=-1) if self.normalise else x)


class Levels(nn.Module):
    """The class token of every block behind its second norm, from the hidden states that transformers gives out.

    ``means``: each followed by the mean of the patches.
    """

    def __init__(self, net, classes, means):
        super().__init__()
        self.net, self.means = net, means
        self.fc = nn.Linear((1 + means) * net.config.num_hidden_layers * net.config.hidden_size, classes)

    def forward(self, x):
        states = self.net(x, output_hidden_states=True).hidden_states
        found = []
        inner = getattr(self.net, "vision_model", self.net)  # until transformers 4
        for layer, state in zip(inner.encoder.layers, states):
            attended = state + layer.self_attn(layer.layer_norm1(state), attention_mask=None)[0]
            normal = layer.layer_norm2(attended)
            found += [normal[:, 0], normal[:, 1:].mean(1)] if self.means else [normal[:, 0]]
        return self.fc(torch.cat(found, 1))


def openai_names(tensors):
    """transformers' CLIP tower under OpenAI's names (a second, independent table)."""
    names = OrderedDict()
    plain = {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
    }
    layers = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for full, value in tensors.items():
        key = full.replace("vision_model.", "")
        if key == "visual_projection.weight":
            names["visual.proj"] = value.T.contiguous()
        elif key in plain:
            names["visual." + plain[key]] = value
        elif key.startswith("encoder."):
            number, rest = key[len("encoder.layers.") :].split(".", 1)
            root = f"visual.transformer.resblocks.{number}."
            layer, kind = rest.rsplit(".", 1)
            if layer == "self_attn.q_proj":
                three = [tensors[full.replace("q_proj", n)] for n in ("q_proj", "k_proj", "v_proj")]
                names[root + f"attn.in_proj_{kind}"] = torch.cat(three)
            elif layer == "self_attn.out_proj":
                names[root + f"attn.out_proj.{kind}"] = value
            elif layer in layers:
                names[root + f"{layers[layer]}.{kind}"] = value
        else:
            kind = key.rsplit(".", 1)[1]
            names[("visual.ln_pre." if key.startswith("pre") else "visual.ln_post.") + kind] = value
    return names


def clip(layout, sizes, image, projection, features="projection", classes=0, normalise=False, act="quick_gelu"):
    """CLIP's image tower of transformers, in one of its namings."""

    def make(folder):
        import transformers

        config = transformers.CLIPVisionConfig(
            **sizes, image_size=image, projection_dim=projection, hidden_act=act, attn_implementation="eager"
        )
        width = config.hidden_size
        if features == "projection":
            net = transformers.CLIPVisionModelWithProjection(config)
            head = (projection, classes)
            model = Read(net, lambda out: out.image_embeds, head if classes else None, normalise)
        elif features.startswith("levels"):
            net = transformers.CLIPVisionModel(config)
            model = Levels(net, classes, means=features == "levels_avg")
        else:
            net = transformers.CLIPVisionModel(config)
            model = Read(net, lambda out: out.pooler_output, (width, classes) if classes else None, normalise)
        model = cells.shake(model)
        tensors = cells.state(net)
        heads = OrderedDict((f"fc.{k}", v) for k, v in cells.state(model.fc).items())
        if layout == "hf":
            if not classes:
                net.save_pretrained(folder)
                return model, folder / "model.safetensors"
            (folder / "config.json").write_text(json.dumps(config.to_dict()))
            return model, cells.as_safetensors(folder, OrderedDict([*tensors.items(), *heads.items()]))
        names = openai_names(tensors)
        names.update(heads)
        if layout == "openai":
            # What OpenAI's files have besides: the text's tower and three numbers.
            names["input_resolution"] = torch.tensor(image)
            names["transformer.resblocks.0.ln_1.weight"] = torch.zeros(8)
            names["logit_scale"] = torch.tensor(4.6)
        return model, cells.as_pth(folder, names)

    return make


def clip_classifier(sizes, image):
    """transformers' own classifier on the mean of CLIP's patches."""
    import transformers

    def make(folder):
        vision = {**sizes, "image_size": image, "intermediate_size": sizes.get("intermediate_size", 512)}
        labels = {0: "artificial", 1: "human"}
        config = transformers.CLIPConfig(vision_config=vision, id2label=labels, label2id={"artificial": 0, "human": 1})
        model = cells.shake(transformers.CLIPForImageClassification(config))
        model.save_pretrained(folder)
        return model, folder

    return make


def clip_cells():
    small = {**SMALL, "patch_size": 8}
    penultimate = ("--arg", "features=penultimate")
    unit = ("--arg", "normalise=true")
    rows = [
        ("hf", clip("hf", small, 40, 48), ()),
        ("hf", clip("hf", small, 40, 48, classes=2, normalise=True), unit, "head"),
        ("hf", clip_classifier(small, 40), (), "classifier"),
        ("hf", clip("hf", small, 40, 48, "levels", 1), (), "levels"),
        ("openai", clip("openai", small, 40, 48, "levels_avg", 1), (), "levels_avg"),
        ("openai", clip("openai", small, 40, 48), ("--arg", "heads=2")),
        ("openai", clip("openai", small, 40, 48, classes=1), (), "univfd"),
        (
            "open_clip",
            clip("open_clip", small, 40, 48, "penultimate", 1, True, "gelu"),
            ("--layout", "open_clip", *penultimate, *unit),
        ),
        ("timm", cells.timm("vit_base_patch32_clip_224", **TIMM_SMALL, num_classes=2), ()),
        (
            "timm",
            cells.timm("vit_base_patch32_clip_quickgelu_224", config=True, **TIMM_SMALL, num_classes=2),
            (),
            "quickgelu",
        ),
    ]
    for layout, build, flags, *more in rows:
        yield named(cells.Cell("clip_vit", layout, build, 40, flags=flags, small=True), *more)
    for size, (sizes, image, projection) in CLIP_SIZES.items():
        sizes = {**sizes, "intermediate_size": 4 * sizes["hidden_size"]}
        batch = 2 if image == 224 else 1
        yield cells.Cell(f"clip_vit_{size}", "hf", clip("hf", sizes, image, projection), image, batch=batch)
        yield cells.Cell(
            f"clip_vit_{size}", "openai", clip("openai", sizes, image, projection, classes=1), image, batch=batch
        )


TIMM_SMALL = {"embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 2.5, "patch_size": 8, "img_size": 40}


def named(cell, *more):
    """A second cell of one architecture and layout: another name."""
    if more:
        cell.name = "-".join((cell.name, *more))
    return cell


DINO_SMALL = {"embed_dim": 128, "depth": 2, "num_heads": 2, "patch_size": 14, "img_size": 70}
DINO_SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}


def dinov2(config, side, registers=False, classifier=True, running=False):
    """transformers' DINOv2: its classifier with a processor for ``side`` pixels, or the bare tower."""

    def make(folder):
        import transformers

        kind = "Dinov2WithRegisters" if registers else "Dinov2"
        labels = {0: "artificial", 1: "human"}
        settings = getattr(transformers, kind + "Config")(
            **config, id2label=labels, label2id={v: k for k, v in labels.items()}
        )
        model = getattr(transformers, kind + ("ForImageClassification" if classifier else "Model"))(settings)
        cells.shake(model)
        if running:
            return model, cells.as_pth(folder, cells.state(model))
        model.save_pretrained(folder)
        processor = {**cells.HF_PROCESSOR, "size": {"height": side, "width": side}}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        if classifier:
            return model, folder
        return Read(model, lambda out: out.pooler_output).eval(), folder / "model.safetensors"

    return make


def timm_at(name, side, **kwargs):
    """timm's net read at another input than its positions are for."""

    def make(folder):
        model = cells.timm_model(name, dynamic_img_size=True, **kwargs)
        return model, cells.as_safetensors(folder, cells.state(model))

    return make


class Table(nn.Module):
    """Position embeddings of their own, to be drawn like a net's."""

    def __init__(self, rows, width):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, width))


class ClassAndPatches(nn.Module):
    """The class token and the mean of the patches side by side, and a linear layer: the hub's classifiers."""

    def __init__(self, net, width):
        super().__init__()
        self.net, self.linear_head = net, nn.Linear(2 * width, 2)

    def forward(self, x):
        x = self.net.forward_features(x)
        return self.linear_head(torch.cat((x[:, 0], x[:, self.net.num_prefix_tokens :].mean(1)), 1))


def hub(side, classifier, registers=False, gated=False, **kwargs):
    """The authors' own file, from timm's net at ``side`` pixels; its positions are for ``img_size``."""

    def make(folder):
        kwargs_at = {**kwargs, "img_size": side, "num_classes": 0}
        name = "vit_giant_patch14_dinov2" if gated else "vit_small_patch14_dinov2"
        model = cells.timm_model(name.replace("_dinov2", "_reg4_dinov2") if registers else name, **kwargs_at)
        model = cells.shake(ClassAndPatches(model, kwargs["embed_dim"]) if classifier else model)
        net = model.net if classifier else model
        tensors = cells.state(net)
        grid, new, width = kwargs["img_size"] // 14, side // 14, kwargs["embed_dim"]
        table = cells.shake(Table(grid * grid + 1, width)).pos_embed.detach()
        square = table[:, 1:].reshape(1, grid, grid, width).permute(0, 3, 1, 2)
        if registers:
            square = F.interpolate(square, (new, new), mode="bicubic", antialias=True)
            tensors["register_tokens"] = tensors.pop("reg_token")
        else:
            square = F.interpolate(square, scale_factor=(new + 0.1) / grid, mode="bicubic")
        read = square.flatten(2).transpose(1, 2)
        with torch.no_grad():
            net.pos_embed.copy_(read if registers else torch.cat((table[:, :1], read), 1))
            # timm's net with registers has the class token's position in the token itself.
            net.cls_token.add_(table[:, :1] if registers else 0)
        tensors.update(pos_embed=table, mask_token=torch.zeros(1, width))
        if gated:
            tensors = OrderedDict((k.replace("fc1", "w12").replace("fc2", "w3"), v) for k, v in tensors.items())
        if classifier:
            tensors = OrderedDict(("backbone." + k, v) for k, v in tensors.items())
            tensors.update((f"linear_head.{k}", v) for k, v in cells.state(model.linear_head).items())
        return model, cells.as_pth(folder, tensors)

    return make


def dinov2_cells():
    small = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 70}
    at = ("--arg", "image_size=56")
    rows = [
        ("hf", dinov2(small, 56), ()),
        ("hf", dinov2({**small, "use_swiglu_ffn": True}, 84, classifier=False), (), "gated", 84),
        ("hf", dinov2(small, 56, running=True), at, "running"),
        ("hf-registers", dinov2(small, 56, True), ()),
        ("hf-registers", dinov2(small, 56, True, classifier=False), (), "tower"),
        ("timm", timm_at("vit_small_patch14_dinov2", 56, num_classes=2, **DINO_SMALL), at),
        ("timm", timm_at("vit_small_patch14_reg4_dinov2", 56, num_classes=2, **DINO_SMALL), at, "registers"),
        ("timm", cells.timm("vit_giant_patch14_dinov2", mlp_ratio=5.25, num_classes=0, **DINO_SMALL), (), "gated", 70),
        ("timm-avg", timm_at("vit_small_patch14_dinov2", 56, num_classes=2, global_pool="avg", **DINO_SMALL), at),
        ("hub", hub(56, False, **DINO_SMALL), at),
        ("hub", hub(84, True, registers=True, **DINO_SMALL), ("--arg", "image_size=84"), "registers", 84),
        ("hub", hub(56, False, gated=True, mlp_ratio=5.25, **DINO_SMALL), at, "gated"),
    ]
    for layout, build, flags, *more in rows:
        side = more.pop() if more and isinstance(more[-1], int) else 56
        yield named(cells.Cell("dinov2_vit", layout, build, side, flags=flags, small=True), *more)
    for key, (width, depth, heads) in DINO_SIZES.items():
        name = f"dinov2_vit_{key}_14"
        full = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "patch_size": 14}
        timm = {"embed_dim": width, "depth": depth, "num_heads": heads, "patch_size": 14, "img_size": 518}
        yield cells.Cell(name, "hf", dinov2({**full, "image_size": 518}, 224))
        yield cells.Cell(name, "hub", hub(224, True, **timm))
        yield named(
            cells.Cell(name, "hub", hub(336, False, True, **timm), 336, ("--arg", "image_size=336"), batch=1),
            "registers",
        )
        yield cells.Cell(
            name,
            "timm",
            timm_at("vit_small_patch14_dinov2", 224, num_classes=2, **timm),
            flags=("--arg", "image_size=224"),
        )


def siglip(vision, classifier=True):
    """transformers' SigLIP: its classifier, or the tower with its attention pool."""

    def make(folder):
        import transformers

        labels = {0: "artificial", 1: "human"}
        if classifier:
            config = transformers.SiglipConfig(
                vision_config=vision, id2label=labels, label2id={v: k for k, v in labels.items()}
            )
            model = cells.shake(transformers.SiglipForImageClassification(config))
        else:
            model = cells.shake(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision)))
        model.save_pretrained(folder)
        if classifier:
            return model, folder
        return Read(model, lambda out: out.pooler_output).eval(), folder / "model.safetensors"

    return make


def siglip_cells():
    small = {**SMALL, "num_attention_heads": 4, "patch_size": 8, "image_size": 44}
    rows = [
        ("hf", siglip(small), ()),
        ("hf", siglip(small, False), (), "map"),
        ("timm", cells.timm("vit_base_patch16_siglip_224", num_classes=2, **TIMM_SMALL), ()),
        ("timm", cells.timm("vit_base_patch16_siglip_gap_224", num_classes=2, **TIMM_SMALL), (), "gap"),
    ]
    for layout, build, flags, *more in rows:
        side = 44 if layout == "hf" else 40
        yield named(cells.Cell("siglip_vit", layout, build, side, flags=flags, small=True), *more)
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    for side in (224, 256, 384, 512):
        full = siglip({**base, "patch_size": 16, "image_size": side})
        batch = 2 if side < 384 else 1
        yield named(cells.Cell("siglip_vit_b_16", "hf", full, side, batch=batch), *([str(side)] if side > 224 else []))
    yield cells.Cell("siglip_vit_b_16", "timm", cells.timm("vit_base_patch16_siglip_224", num_classes=2))
    so400m = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304}
    yield cells.Cell(
        "siglip_vit_so400m_14", "hf", siglip({**so400m, "patch_size": 14, "image_size": 384}), 384, batch=1
    )


def torchvision_vit(classes=2, **sizes):
    """torchvision's class at any size, with the names of a file from before 0.13."""

    def make(folder):
        from torchvision.models import VisionTransformer

        model = cells.shake(VisionTransformer(num_classes=classes, **sizes))
        tensors = cells.state(model)
        older = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
        for new, old in older.items():
            tensors = OrderedDict((k.replace(new, old), v) for k, v in tensors.items())
        return model, cells.as_pth(folder, tensors)

    return make


def vit_cells():
    """ViT and DeiT that have no name of their own."""
    args = ("ViTForImageClassification", "ViTConfig")
    small = {**SMALL, "num_attention_heads": 4, "patch_size": 8, "image_size": 40}
    sizes = {"hidden_dim": 128, "num_layers": 2, "num_heads": 2, "mlp_dim": 320, "patch_size": 8, "image_size": 40}
    rows = [
        ("vit", "hf", cells.huggingface(*args, **small)),
        ("vit", "timm", cells.timm("vit_base_patch32_224", num_classes=2, **TIMM_SMALL)),
        ("vit", "torchvision", torchvision_vit(**sizes)),
        ("deit", "timm", cells.timm("deit_small_distilled_patch16_224", num_classes=2, **TIMM_SMALL)),
    ]
    for name, layout, build in rows:
        yield cells.Cell(name, layout, build, 40, small=True)
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    yield named(cells.Cell("vit", "hf", cells.huggingface(*args, **large)), "l_16")
    yield named(cells.Cell("vit", "hf", cells.huggingface(*args, patch_size=32)), "b_32")
    wide = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 3072, "image_size": 384}
    yield named(cells.Cell("vit", "hf", cells.huggingface(*args, **wide), 384, batch=1), "384_wide")
    yield named(cells.Cell("vit", "torchvision", cells.torchvision("vit_b_32")), "b_32")


def tower_cells():
    yield from clip_cells()
    yield from dinov2_cells()
    yield from siglip_cells()
    yield from vit_cells()
