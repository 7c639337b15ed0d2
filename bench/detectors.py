"""Convert every published detector with a recipe, and write ``results/detectors.csv`` and its table.

    python bench/detectors.py [NAME ...] [--missing] [--minutes M]

No weights of these detectors are at hand for most of them, so each is built with random weights under the names that
its authors' file has, converted by its recipe, and verified by the converter itself: against the authors' forward pass,
rebuilt in torch, or the library's own class. Detectors that share a network and a layout are measured once; their
classes are checked one by one.
"""

import argparse
import gc
import json
import math
import sys
import tempfile
import time
import warnings
import zlib
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import common
from common import ROOT

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "parity")]
TABLE = ROOT / "results" / "detectors.csv"
FIELDS = (
    "detector", "network", "converts", "difference", "equal to", "preprocessing", "scores", "exports", "licence",
    "measured as", "commit", "versions", "device",
)  # fmt: skip
SWIN_B = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
SWIN_T = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
CLIP_L = {
    "width": 1024, "depth": 24, "hidden": 4096, "heads": 16, "patch_size": 14, "image_size": 224,
}  # fmt: skip


def _hf(kind, side=224, config=None, **settings):
    """A folder of transformers' own class with the recipe's classes."""

    def make(folder, recipe):
        import cells
        import transformers

        classes = list(recipe.classes) or ["artificial", "human"]
        own = getattr(transformers, (config or kind) + "Config")(
            **settings, id2label=dict(enumerate(classes)), label2id={c: i for i, c in enumerate(classes)}
        )
        cells.shake(getattr(transformers, f"{kind}ForImageClassification")(own)).save_pretrained(folder)
        processor = {**cells.HF_PROCESSOR, "size": {"height": side, "width": side}}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        return [folder]

    return make


def _file(family, architecture, classes, wrap="as_pth", **arguments):
    """A file of one of the networks of ``convert.parity.torch_detectors``."""

    def make(folder, recipe):
        import cells

        side = arguments.get("image_size", 128)
        cells.published(family, architecture, classes, getattr(cells, wrap), side=side, **arguments)(folder)
        return [folder / "weights.pth"]

    return make


def _torchvision(name, wrap=None, **settings):
    def make(folder, recipe):
        import cells

        tensors = cells.state(cells.torchvision_model(name, **settings))
        return [cells.as_pth(folder, {wrap: tensors} if wrap else tensors)]

    return make


def _timm(name, prefix="", wrap=None, **settings):
    def make(folder, recipe):
        import cells

        tensors = OrderedDict((prefix + k, v) for k, v in cells.state(cells.timm_model(name, **settings)).items())
        if wrap or not prefix:
            return [cells.as_pth(folder, {wrap: tensors} if wrap else tensors)]
        return [cells.as_safetensors(folder, tensors)]

    return make


def _mlp_head(folder, recipe):
    import cells
    import torch
    from torch import nn

    model = cells.torchvision_model("resnet50")
    model.fc = nn.Sequential(
        nn.Dropout(), nn.Linear(2048, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(), nn.Linear(512, 2)
    )
    with torch.no_grad():
        for m in model.fc:
            if isinstance(m, nn.BatchNorm1d):
                m.running_var.uniform_(0.5, 1.5)
    return [cells.as_pth(folder, cells.state(model))]


def _fredect(folder, recipe):
    import cells

    cells.fredect("fredect_resnet50", 224)(folder)
    return [folder]


def _visual(gelu="quick_gelu"):
    """CLIP ViT-L/14's image tower under OpenAI's names, with its projection."""
    import cells

    from convert.parity.torch_towers import _clip_of_openai

    net = cells.shake(_clip_of_openai({**CLIP_L, "act": gelu, "features": "projection"}, 768))
    return OrderedDict((f"visual.{k}", v) for k, v in cells.state(net).items())


def _openai(folder):
    import torch

    torch.save({**_visual(), "input_resolution": torch.tensor(224)}, folder / "ViT-L-14.pth")


def _linear(outputs, inputs):
    import torch

    return OrderedDict(weight=torch.randn(outputs, inputs) * inputs**-0.5, bias=torch.randn(outputs) * 0.1)


def _univfd(folder, recipe):
    import torch

    torch.save(_linear(1, 768), folder / "fc_weights.pth")
    _openai(folder)
    return [folder]


def _clipbased(folder, recipe):
    import torch

    torch.save({"model": {f"fc.{k}": v for k, v in _linear(1, 1024).items()}}, folder / "weights.pth")
    torch.save(_visual("gelu"), folder / "open_clip_pytorch_model.bin")
    return [folder]


def _clip_of_transformers(projection):
    import cells
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, patch_size=14,
        image_size=224, projection_dim=768,
    )  # fmt: skip
    kind = transformers.CLIPVisionModelWithProjection if projection else transformers.CLIPVisionModel
    tensors = cells.state(cells.shake(kind(config)))
    return {k if k.startswith("vis") else f"vision_model.{k}": v for k, v in tensors.items()}


def _c2p(folder, recipe):
    import cells

    tensors = {f"model.{k}": v for k, v in _clip_of_transformers(True).items()}
    return [cells.as_pth(folder, {**tensors, **{f"model.fc.{k}": v for k, v in _linear(1, 768).items()}})]


def _yermandy(folder, recipe):
    import torch

    tensors = {f"feature_extractor.{k}": v for k, v in _clip_of_transformers(False).items()}
    tensors.update({f"model.linear.{k}": v for k, v in _linear(2, 1024).items()})
    torch.save({"state_dict": tensors, "epoch": 1}, folder / "model.ckpt")
    return [folder / "model.ckpt"]


def _effort(folder, recipe):
    import cells
    import torch

    tensors = {}
    for key, value in _clip_of_transformers(False).items():
        key = "module.backbone." + key[len("vision_model.") :]
        if ".self_attn." in key and key.endswith(".weight"):
            root = key[: -len("weight")]
            tensors.update({root + "weight_main": value, root + "S_residual": torch.rand(1) + 0.5})
            tensors[root + "U_residual"] = torch.randn(1024, 1) * 0.05
            tensors[root + "V_residual"] = torch.randn(1, 1024) * 0.05
        else:
            tensors[key] = value
    return [cells.as_pth(folder, {**tensors, **{f"module.head.{k}": v for k, v in _linear(2, 1024).items()}})]


def _dda(folder, recipe):
    import cells
    import torch

    tensors = {}
    model = cells.timm_model("vit_large_patch14_dinov2", num_classes=0, img_size=518)
    for key, value in cells.state(model).items():
        key = f"base_model.model.{key}"
        layer, _, leaf = key.rpartition(".")
        if layer.endswith(("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")):
            tensors[f"{layer}.original_layer.{leaf}"] = value
            if leaf == "weight":
                tensors[f"{layer}.lora.lora_A"] = torch.randn(8, value.shape[1]) * 0.05
                tensors[f"{layer}.lora.lora_B"] = torch.randn(value.shape[0], 8) * 0.05
        else:
            tensors[key] = value
    tensors["base_model.model.mask_token"] = torch.zeros(1, 1024)
    tensors.update({f"base_model.fc.{k}": v for k, v in _linear(1, 1024).items()})
    return [cells.as_pth(folder, {"model": tensors})]


def _rine(folder, recipe):
    import cells
    import torch

    from convert.parity import torch_detectors

    plan = SimpleNamespace(architecture="rine", num_classes=1, arguments={**CLIP_L, "embedding": 128, "layers": 4})
    tensors = cells.state(cells.shake(torch_detectors.rine(plan, None)))
    own = {k: v for k, v in tensors.items() if not k.startswith("visual.")}
    torch.save(own, folder / "model_2class_trainable.pth")
    _openai(folder)
    return [folder]


def _d3(folder, recipe):
    import torch

    own = {f"{n}.{k}": v for n in ("query", "key", "value") for k, v in _linear(1024, 1024).items()}
    torch.save({**own, **{f"fc.{k}": v for k, v in _linear(1, 2048).items()}}, folder / "classifier.pth")
    _openai(folder)
    return [folder]


def _drct_clip(folder, recipe):
    import cells

    tensors = {f"model.model.{k}": v for k, v in _visual().items()}
    tensors.update({f"model.fc.{k}": v for k, v in _linear(1024, 768).items()})
    return [cells.as_pth(folder, {**tensors, **{f"fc.{k}": v for k, v in _linear(2, 1024).items()}})]


SIGLIP_DINO = {
    "siglip": {"width": 1152, "depth": 27, "heads": 16, "hidden": 4304, "patch_size": 14, "image_size": 384},
    "dinov2": {"width": 1024, "depth": 24, "heads": 16, "hidden": 4096, "patch_size": 14, "image_size": 392},
    "hidden": 512,
}


def _bombek1(folder, recipe):
    import cells

    cells.published("siglip_dinov2", "siglip_dinov2", 1, cells.with_lora, **SIGLIP_DINO)(folder)
    return [(folder / "weights.pth").rename(folder / "pytorch_model.pt")]


# The text towers of CLIP ViT-L/14; the prompts are eight tokens, the class's name, a full stop and the end.
FATFORMER = {
    **CLIP_L, "adapted": [7, 15, 23], "bottleneck": 64, "text_width": 768, "text_depth": 12, "context": 8, "suffix": 68,
    "ends": [11, 11],
}  # fmt: skip


def _fatformer(folder, recipe):
    import cells

    cells.published("fatformer", "fatformer", 2, cells.with_texts, **FATFORMER)(folder)
    return [(folder / "weights.pth").rename(folder / "fatformer_4class_ckpt.pth")]


# 14,568,578 parameters, which is the size of its file.
VIT_DISTILLED = {"hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6, "intermediate_size": 1536}
VIT = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
SIGLIP = {
    "vision_config": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
}
SIGLIP_224 = {"vision_config": {**SIGLIP["vision_config"], "image_size": 224, "patch_size": 16}}
SIGLIP_512 = {"vision_config": {**SIGLIP["vision_config"], "image_size": 512, "patch_size": 16}}
AIDE = {
    "depths": [3, 4, 30, 3], "widths": [384, 768, 1536, 3072], "resnet": "resnet50", "projection": 256, "hidden": 1024,
}  # fmt: skip
SWIN2 = {"image_size": 256, "window_size": 16}
# The network that is built, and the recipes that share it. Cheap ones first.
GROUPS = (
    (_file("ladeda", "tiny_ladeda", 1, input_filter="right_diagonal"), "tiny-ladeda"),
    (_file("npr", "npr_resnet50", 1), "npr"),
    (_file("freqnet", "freqnet", 1), "freqnet"),
    (_file("safe", "safe_resnet50", 2, "with_settings"), "safe"),
    (_file("gramnet", "gramnet_resnet18", 1, "net_c"), "gramnet"),
    (_hf("ResNet", layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512]), "artfan123"),
    (_timm("vit_small_patch16_224", "vit.", num_classes=1), "commfor-224"),
    (_timm("vit_small_patch16_384", "vit.", num_classes=1), "commfor-384"),
    (_hf("ViT", hidden_size=384, num_attention_heads=6, intermediate_size=3072), "commfor-deepfakedet"),
    (_hf("Swin", **SWIN_T), "nahrawy-aiornot mmanikanta-swin"),
    (_hf("ViT", **VIT_DISTILLED), "jacoballessio-distilled"),
    (_hf("Swinv2", 256, embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], **SWIN2), "airealnet"),
    (_torchvision("resnet50", "model", num_classes=1), "cnnspot dire lgrad"),
    (_file("ladeda", "ladeda9", 1, input_filter="neighbours"), "ladeda"),
    (_fredect, "fredect"),
    (_mlp_head, "ash12321-sdxl"),
    (_timm("efficientnet_b4", count=4, num_classes=2), "dafilab"),
    (_torchvision("resnet50", "model", num_classes=1), "corvi2023 gragnaniello2021"),
    (
        _hf("ViT", **VIT),
        "dima806-cifake dima806-human capcheck-image capcheck-human jacoballessio thankgod-aiornot aivisionguard-v2 "
        "wvolf-deepfake prithiv-exp-02-21 prithiv-deepfake-v2 nyuad heem2",
    ),
    (_hf("ViT", **VIT, patch_size=32), "prithiv-exp-02-22"),
    (_hf("Swin", **SWIN_B), "umm-maybe organika-sdxl cmckinle-flux ideepankarsharma-midjourney smogy"),
    (_hf("Siglip", **SIGLIP_224), "ateeqq prithiv-siglip2-three prithiv-siglip2"),
    (_hf("Dinov2", **{**VIT, "patch_size": 14, "image_size": 518}), "amberyeoe"),
    (_hf("Beit", **VIT, use_relative_position_bias=True, use_mean_pooling=True), "saltacc-anime"),
    (_file("drct", "drct_convnext_base", 2, embedding=1024), "drct-convnext"),
    (_hf("Swinv2", 256, embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], **SWIN2), "tocard-aiornot"),
    (_hf("Siglip", 512, **SIGLIP_512), "prithiv-siglip-512"),
    (_timm("vit_base_patch14_reg4_dinov2", wrap="model", num_classes=1, img_size=504), "b-free"),
    (_univfd, "univfd"),
    (_clipbased, "clipbased"),
    (_c2p, "c2p-clip"),
    (_yermandy, "yermandy"),
    (_effort, "effort"),
    (_rine, "rine"),
    (_drct_clip, "drct-clip"),
    (_d3, "d3"),
    (_dda, "dda"),
    (_hf("Swinv2", 256, embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], **SWIN2), "haywoodsloan"),
    (_fatformer, "fatformer"),
    (_bombek1, "bombek1"),
    (_file("aide", "aide", 2, "with_settings", **AIDE), "aide"),
)


def exported():
    """Architecture -> what results/export.csv says about its ONNX export."""
    return {row["architecture"]: row["onnx"] for row in common.rows(ROOT / "results" / "export.csv")}


def score(path):
    """The score of a photograph by a converted detector, through its own views; the reason if it refuses."""
    import mindspore as ms
    import numpy as np
    from skimage import data

    from aidet import ckpt, labels
    from aidet.detector.views import Views
    from aidet.errors import UserError
    from aidet.images import decode
    from convert.parity.compare import photo_path

    sidecar = ckpt.Sidecar.read(path)
    try:
        order = sidecar.detector_order
    except UserError as error:
        return "refused: " + str(error).split(": ", 1)[1]
    photo = photo_path("skimage:chelsea.png")
    image = decode(photo) if photo else decode(data.astronaut())
    views = Views(sidecar.detector_transform, line=sidecar.views_line, **sidecar.voting.settings())
    net = ckpt.load_network(sidecar)
    logits = np.concatenate([net(ms.Tensor(view[None])).asnumpy() for view in views(image, "chelsea.png")])
    value = float(labels.score_from_logits(logits, order).mean())
    assert math.isfinite(value), value
    return "yes"


def measure(make, names, folder):
    """One row for each recipe of a group; the first is converted in full, of the others the plan and the classes."""
    import torch

    from aidet.errors import UserError
    from convert import conversion, published

    first, rows = names[0], {}
    torch.manual_seed(zlib.crc32(first.encode()))
    for name in names:
        recipe = published.load(name)
        row = {"detector": name, "licence": recipe.licence or "not stated", "measured as": first}
        place = Path(folder) / name
        place.mkdir()
        try:
            sources = make(place, recipe)
            gc.collect()
            full = name == first
            result = conversion.convert(
                name,
                Path(folder) / f"{name}.ckpt",
                recipe=name,
                sources=[str(s) for s in sources],
                level="logits" if full else "none",
                dry_run=not full,
                say=print if full else lambda line: None,
            )
            row.update(converts="yes")
            if full:
                parity = result.report["parity"]
                row["difference"] = f"{parity['logits']['relative']:.1e}"
                row["equal to"] = parity["compared_with"]
                seen = parity.get("preprocessing")
                row["preprocessing"] = (
                    "not compared"
                    if not seen
                    else (f"{seen['largest']:.1f} grey levels from {seen['by']}" if seen["ok"] else "DIFFERENT")
                )
                row["scores"] = score(Path(folder) / f"{name}.ckpt")
                row["network"] = result.plan.architecture
            else:
                row.update({k: rows[first].get(k, "") for k in ("network", "difference", "equal to", "preprocessing")})
                refuse = result.sidecar["input"].get("refuse")
                order = result.sidecar["class_order"]
                row["scores"] = f"refused: {refuse}" if refuse else "yes" if order else "no: its classes are not known"
        except UserError as error:
            row.update(converts=f"no: {error}")
        rows[name] = row
    return rows


def main(argv):
    """Measure the groups that hold the names, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--missing", action="store_true", help="only groups without a measured row")
    parser.add_argument("--minutes", type=float, default=600)
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    from aidet import runtime

    runtime.setup(device="CPU", mode="pynative")
    about = {
        "commit": common.commit(),
        "versions": common.versions("mindspore", "torch", "transformers", "timm"),
        "device": f"CPU, {common.cores()}",
    }
    end = time.monotonic() + 60 * args.minutes
    for make, names in GROUPS:
        group = names.split()
        known = {row["detector"] for row in common.rows(TABLE) if row["converts"] != "not measured"}
        wanted = not args.names or set(group) & set(args.names)
        if not wanted or (args.missing and group[0] in known) or time.monotonic() > end:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(make, group, folder)
        write({**{row["detector"]: row for row in common.rows(TABLE)}, **{n: {**r, **about} for n, r in rows.items()}})
        print(group[0], {k: rows[group[0]].get(k) for k in FIELDS[1:7]}, flush=True)
    write({row["detector"]: row for row in common.rows(TABLE)})
    return 0


def write(known):
    """All recipes by name; those that cannot be converted say why, the others that they were not measured."""
    from convert import published

    rows, exports = [], exported()
    for recipe in published.all_recipes():
        row = dict(known.get(recipe.name, {}))
        if recipe.unsupported:
            row = {"converts": f"refused: {recipe.unsupported}"}
        elif row.get("converts", "").startswith("refused: "):
            row = {}  # it is supported since
        row.update(detector=recipe.name, licence=recipe.licence or "not stated")
        row.setdefault("converts", "not measured")
        if not row["converts"]:
            row["converts"] = "not measured"
        if row["converts"] == "not measured":
            row.pop("measured as", None)
        if row["converts"] == "yes":
            found = exports.get(row["network"], "not measured")
            row["exports"] = "yes" if found == "free batch" else found
        rows.append({k: row.get(k, "") for k in FIELDS})
    common.write(TABLE, FIELDS, rows)


if __name__ == "__main__":
    from aidet import cli

    cli.main(main)
