"""Write ``tests/data/parity/<family>.npz``: outputs of the original models for reproducible weights.

    python tests/parity/make_logits.py [FAMILY ...]

For the smallest size of each family in each layout, the original library builds its own net, gets weights and BatchNorm
statistics from ``tests/recipe.py``, which draws every tensor from its name, and saves them in its real layout. What is
kept are the file's keys and shapes, the name that each tensor was drawn from, and the net's outputs: a few kilobytes,
and comparing with them needs no torch.
"""

import functools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "parity")]
FOLDER = ROOT / "tests" / "data" / "parity"
# Family -> cell of the table -> side of the input in pixels; 0: the input is latents.
CASES = {
    "resnet": {
        **{f"resnet18-{x}": 64 for x in ("hf", "torchvision", "torchvision-mlp", "drct")},
        "resnet50_nodown-grip": 32,
    },
    "cifar_resnet": {"cifar_resnet20-akamaster": 32},
    "cifake": {"cifake_cnn-aics": 32, "cifake_cnn_srm-aics": 32},
    "squeezenet": {"squeezenet1_1-torchvision": 64},
    "mobilenet_v3": {"mobilenet_v3_small_100-torchvision": 64},
    "efficientnet": {
        "efficientnet_b0-torchvision": 64,
        "efficientnet_b0-timm": 64,
        "efficientnet_b0-timm-tf": 64,
        "efficientnet_b0-lukemelas": 64,
        "efficientnet_b0-hf": 64,
        "efficientnet_lite0-lukemelas": 64,
        "efficientnet_b0-stacked": 64,
    },
    "swin": {f"swin_tiny-{x}": 224 for x in ("hf", "hf5", "timm", "timm-old", "torchvision")},
    "beit": {f"beit-{x}": 64 for x in ("hf", "hf5", "timm")},
    "mobilenet_v2": {f"mobilenet_v2_035-{x}": 64 for x in ("hf", "timm", "torchvision")},
    "resnest": {"resnest-timm": 72},
    "convnext_v2": {f"convnext_v2_atto-{x}": 64 for x in ("timm", "hf", "meta")},
    "efficientnet_v2": {
        **{f"efficientnetv2_b0-{x}": 64 for x in ("timm", "timm-tf")},
        "efficientnetv2_s-torchvision": 64,
    },
    "swin_v2": {f"swin_v2-{x}": 64 for x in ("hf", "timm", "microsoft")},
    "vit": {
        **{f"vit_t_16_224-{x}": 224 for x in ("timm", "hf", "hf5")},
        **{f"deit_t_16_224-{x}": 224 for x in ("timm", "hf-deit", "hf-deit-teacher")},
        **dict.fromkeys(("vit-hf", "vit-timm", "vit-torchvision", "deit-timm"), 40),
    },
    "clip": {
        **{f"clip_vit-{x}": 40 for x in ("hf", "hf-head", "hf-classifier", "openai", "openai-univfd", "open_clip")},
        **{f"clip_vit-{x}": 40 for x in ("timm", "timm-quickgelu")},
    },
    "dinov2": {
        **{f"dinov2_vit-{x}": 56 for x in ("hf", "hf-registers", "hf-registers-tower", "timm", "timm-registers")},
        **{f"dinov2_vit-{x}": 56 for x in ("timm-avg", "hub", "hub-gated")},
        **{f"dinov2_vit-{x}": 84 for x in ("hf-gated", "hub-registers")},
    },
    "siglip": {"siglip_vit-hf": 44, "siglip_vit-hf-map": 44, "siglip_vit-timm": 40, "siglip_vit-timm-gap": 40},
    "convnext": {f"convnext_tiny-{x}": 64 for x in ("torchvision", "timm", "hf", "meta")},
    "autoencoder_kl": {
        **{f"autoencoder_kl-{x}": 32 for x in ("diffusers", "diffusers-old", "ldm", "ldm-pipeline")},
        "aekl_clf-aekl": 128,
        "aekl_clf-aekl-old": 128,
    },
    "aide": {"aide-aide": 64},
    "d3": {"d3-d3": 40},
    "fatformer": {"fatformer-fatformer": 32},
    "drct": {"drct_clip-drct-clip": 40, "drct_convnext_tiny-drct": 64},
    "fredect": {"fredect_resnet18-fredect": 64},
    "freqnet": {"freqnet-freqnet": 64},
    "gramnet": {"gramnet_resnet18-gramnet": 64},
    "ladeda": {"ladeda9-ladeda": 64, "tiny_ladeda-ladeda": 64},
    "npr": {"npr_resnet50-npr": 64},
    "rine": {"rine-rine": 40},
    "safe": {"safe_resnet50-safe": 256},
    "siglip_dinov2": {"siglip_dinov2-siglip_dinov2": 82},
    "taesd": {
        "taesd_encoder-sequential": 32,
        "taesd_encoder-diffusers-encoder": 32,
        "taesd_decoder-sequential": 0,
        "taesd_decoder-diffusers-decoder": 0,
    },
}


TOWER = {"width": 128, "depth": 2, "hidden": 320, "heads": 2, "patch_size": 8, "image_size": 40}
TWO_TOWERS = {
    "siglip": TOWER,
    "dinov2": {**TOWER, "width": 64, "heads": 1, "hidden": 128, "patch_size": 14, "image_size": 42},
    "hidden": 32,
}
# Drawn tokens repeat none, so that each text ends with its last. One block alone would not show the order of tokens.
FAT = {
    **{**TOWER, "image_size": 32, "adapted": [1], "bottleneck": 16},
    **{"text_width": 192, "text_depth": 2, "context": 3, "suffix": 3, "ends": [6, 6]},
}
AIDE = {"depths": [1, 1, 2, 1], "widths": [16, 24, 32, 48], "resnet": "resnet18", "projection": 16, "hidden": 32}
# Detectors with a forward of their own: family (and layout), architecture, outputs, arguments.
DETECTORS = (
    ("aide", "aide", 2, AIDE),
    ("d3", "d3", 1, {**TOWER, "shuffles": 1, "shuffle_patch": 8}),
    ("drct", "drct_clip", 2, {**TOWER, "projection": 48, "embedding": 64}),
    ("drct", "drct_convnext_tiny", 2, {"embedding": 1024}),
    ("fatformer", "fatformer", 2, FAT),
    ("fredect", "fredect_resnet18", 1, {"image_size": 64}),
    ("freqnet", "freqnet", 1, {}),
    ("gramnet", "gramnet_resnet18", 1, {}),
    ("ladeda", "ladeda9", 1, {}),
    ("ladeda", "tiny_ladeda", 1, {}),
    ("npr", "npr_resnet50", 1, {}),
    ("rine", "rine", 1, {**TOWER, "embedding": 32, "layers": 2}),
    ("safe", "safe_resnet50", 2, {}),
    ("siglip_dinov2", "siglip_dinov2", 1, TWO_TOWERS),
)
# Of the families whose nets blow up with the usual weights: PyTorch itself would be 1e-3 from float64.
GAINS = {"efficientnet_v2": 1.4}
DRAWN = {}  # bytes of a drawn tensor -> its name and shape


def draw(model, seed=0, side=0, gain=2.0):
    """Replace ``cells.shake``: draw every tensor from its name."""
    import torch
    from recipe import weights

    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                array = weights(key, tuple(value.shape), gain)
                DRAWN[array.tobytes()] = (key, array.shape)
                value.copy_(torch.from_numpy(array))
    return model.eval()


def _drawn(array):
    """Name and shape by which an array was drawn, or None."""
    return DRAWN.get(array.astype(np.float32).tobytes()) if array.dtype.kind == "f" else None


def _joined(array):
    """Names of the two or three equal parts that an array was put together from, or None."""
    for n in (3, 2):
        if array.ndim and len(array) and len(array) % n == 0:
            parts = [_drawn(a) for a in np.split(array, n)]
            if None not in parts:
                return [name for name, _ in parts]
    return None


def rows(path):
    """Key, shape and origin (the name it was drawn from, or a constant) of every tensor in the saved file."""
    from convert import reading

    result = []
    for key, tensor in reading.read(path).tensors.items():
        array = np.asarray(tensor.array())
        found = _drawn(array)
        if found is None and _drawn(array.T) is not None:
            result.append([key, array.shape, f"{_drawn(array.T)[0]}|turned"])
        elif found is None and _joined(array):
            result.append([key, array.shape, "+".join(_joined(array))])
        elif found is None:
            values = np.unique(array).tolist()
            assert len(values) <= 1 or array.dtype.kind == "i", f"{key} is neither drawn nor constant"
            # Tables of indices follow from the window's size; the converter drops them, whatever they hold.
            result.append([key, array.shape, [str(array.dtype), values[0] if len(values) == 1 else 0]])
        else:
            name, shape = found
            result.append([key, array.shape, name if shape == array.shape else f"{name}|{','.join(map(str, shape))}"])
    return result


def one(cell, side, family):
    """Facts and outputs of one cell."""
    from cells import output
    from recipe import image

    from convert.parity import compare

    with tempfile.TemporaryDirectory() as folder:
        model, path = cell.make(Path(folder))
        facts = {"rows": rows(path), "side": side}
        beside = Path(path) if Path(path).is_dir() else Path(path).parent
        for name in ("config", "preprocessor_config"):
            wanted = name == "config" or Path(path).is_dir() or family in ("clip", "dinov2", "siglip")
            if wanted and (beside / f"{name}.json").is_file():
                facts[name] = json.loads((beside / f"{name}.json").read_text())
    x = [image(side, seed=seed) if side else image(8, 4, seed) for seed in (0, 1)]
    first, second = (output(model, each) for each in x)
    assert np.abs(first - second).max() > 1e-2 * np.abs(first).max(), f"{cell.name}: all images give the same"
    facts.update(architecture=cell.architecture, layout=cell.layout, flags=cell.flags)
    print(f"{cell.name}: {len(facts['rows'])} tensors, scale {np.abs(first).max():.3g}")
    return facts, first if first.ndim == 2 else compare.sample(first)


def main(wanted):
    import warnings

    warnings.simplefilter("ignore")
    import cells
    import torch

    by_name = {c.name: c for c in cells.CELLS}

    def stacked(folder):
        net = torch.nn.Sequential(
            cells.torchvision_model("efficientnet_b0"), torch.nn.Dropout(0.5), torch.nn.Linear(1000, 2)
        )
        return draw(net), cells.as_pth(folder, {"state_dict": cells.state(net)})

    by_name["efficientnet_b0-stacked"] = cells.Cell("efficientnet_b0", "stacked", stacked, 64)
    for family, architecture, classes, arguments in DETECTORS:

        def built(folder, family=family, architecture=architecture, classes=classes, arguments=arguments):
            model, _ = cells.published(family, architecture, classes, **arguments)(folder)
            tensors = {k.replace("net.", "", 1) if family == "fredect" else k: v for k, v in cells.state(model).items()}
            return model, cells.as_pth(folder, tensors)

        layout = "drct-clip" if architecture == "drct_clip" else family
        cell = cells.Cell(architecture, layout, built, 64, flags=("--layout", layout))
        by_name[cell.name] = cell
    # The tables that Microsoft's files carry are no weights: here config.json tells the window.
    make = cells.microsoft_swin_v2("swinv2_tiny_window8_256", tables=False, img_size=64, **cells.SMALL_SWIN_V2)
    by_name["swin_v2-microsoft"] = cells.Cell("swin_v2", "microsoft", make, 64)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for family in wanted or CASES:
        facts, arrays = {}, {}
        cells.shake = functools.partial(draw, gain=GAINS.get(family, 2.0))
        for name, side in CASES[family].items():
            facts[name], arrays[name] = one(by_name[name], side, family)
            if family in GAINS:
                facts[name]["gain"] = GAINS[family]
        text = np.frombuffer(json.dumps(facts, sort_keys=True).encode(), np.uint8)
        np.savez_compressed(FOLDER / f"{family}.npz", facts=text, **arrays)


if __name__ == "__main__":
    main(sys.argv[1:])
