"""Write ``tests/data/parity/<family>.npz``: what the original models give for weights that a name is enough to draw.

    python tests/parity/make_logits.py [FAMILY ...]

Each family's smallest size in each layout: the original library's own net, its weights and BatchNorm statistics from
``tests/recipe.py``, saved by the library in its real layout. Kept are the file's keys and shapes (with the name each
tensor was drawn by), and the net's outputs: kilobytes, and no torch is needed to compare with them.
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
# Cells of the table, side of the input; 0: latents.
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
    },
    "convnext": {f"convnext_tiny-{x}": 64 for x in ("torchvision", "timm", "hf", "meta")},
    "autoencoder_kl": {
        **{f"autoencoder_kl-{x}": 32 for x in ("diffusers", "diffusers-old", "ldm", "ldm-pipeline")},
        "aekl_clf-aekl": 128,
        "aekl_clf-aekl-old": 128,
    },
    "taesd": {
        "taesd_encoder-sequential": 32,
        "taesd_encoder-diffusers-encoder": 32,
        "taesd_decoder-sequential": 0,
        "taesd_decoder-diffusers-decoder": 0,
    },
}


# Of the families whose nets blow up with the usual weights: PyTorch itself would be 1e-3 from float64.
GAINS = {"efficientnet_v2": 1.4}
DRAWN = {}  # bytes of a drawn tensor -> its name and shape


def draw(model, seed=0, side=0, gain=2.0):
    """Take the place of ``cells.shake``: every tensor by its name."""
    import torch
    from recipe import weights

    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                array = weights(key, tuple(value.shape), gain)
                DRAWN[array.tobytes()] = (key, array.shape)
                value.copy_(torch.from_numpy(array))
    return model.eval()


def rows(path):
    """Where every tensor of the saved file comes from."""
    from convert import reading

    result = []
    for key, tensor in reading.read(path).tensors.items():
        array = np.asarray(tensor.array())
        found = DRAWN.get(array.astype(np.float32).tobytes()) if array.dtype.kind == "f" else None
        if found is None:
            values = np.unique(array).tolist()
            assert len(values) <= 1 or array.dtype.kind == "i", f"{key} is neither drawn nor constant"
            # Tables of indices follow from the window's size; the converter drops them, whatever they hold.
            result.append([key, array.shape, [str(array.dtype), values[0] if len(values) == 1 else 0]])
        else:
            name, shape = found
            result.append([key, array.shape, name if shape == array.shape else f"{name}|{','.join(map(str, shape))}"])
    return result


def one(cell, side):
    """(facts, outputs): the case of one cell."""
    from cells import output
    from recipe import image

    from convert.parity import compare

    with tempfile.TemporaryDirectory() as folder:
        model, path = cell.make(Path(folder))
        facts = {"rows": rows(path), "side": side}
        config = (Path(path) if Path(path).is_dir() else Path(path).parent) / "config.json"
        if config.is_file():
            facts["config"] = json.loads(config.read_text())
    x = [image(side, seed=seed) if side else image(8, 4, seed) for seed in (0, 1)]
    first, second = (output(model, each) for each in x)
    assert np.abs(first - second).max() > 1e-2 * np.abs(first).max(), f"{cell.name}: the same for every image"
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
    # The tables that Microsoft's files carry are no weights: here config.json tells the window.
    make = cells.microsoft_swin_v2("swinv2_tiny_window8_256", tables=False, img_size=64, **cells.SMALL_SWIN_V2)
    by_name["swin_v2-microsoft"] = cells.Cell("swin_v2", "microsoft", make, 64)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for family in wanted or CASES:
        facts, arrays = {}, {}
        cells.shake = functools.partial(draw, gain=GAINS.get(family, 2.0))
        for name, side in CASES[family].items():
            facts[name], arrays[name] = one(by_name[name], side)
            if family in GAINS:
                facts[name]["gain"] = GAINS[family]
        text = np.frombuffer(json.dumps(facts, sort_keys=True).encode(), np.uint8)
        np.savez_compressed(FOLDER / f"{family}.npz", facts=text, **arrays)


if __name__ == "__main__":
    main(sys.argv[1:])
