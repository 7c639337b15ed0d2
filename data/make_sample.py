"""Build the embedded sample set: tiles of real photographs and their aligned fakes.

    python data/make_sample.py --out data/sample

The photographs are the ones that scikit-image, scikit-learn and matplotlib ship inside their packages, so nothing is
downloaded. Each is cut into 128-pixel tiles at native size (class ``real``); the same tiles passed through the tiny
autoencoder in ``ckpt/`` are class ``generated``: same content, same size, same JPEG quality and chroma subsampling, so
neither content nor file format tells the classes apart, only the traces of the decoder. Split by photograph, never by
tile. Writes ``{train,val,test}/{real,generated}/<photo>_<row>_<column>.jpg`` and ``labels.csv``.

``--images DIR`` takes your own photographs instead: every fifth goes to val, every fifth to test.
"""

import argparse
import csv
import importlib.util
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - the repository's root comes first on the path
from PIL import Image  # noqa: E402

from aidet import cli, files, images  # noqa: E402
from aidet.errors import UserError  # noqa: E402

# photograph -> (split, files inside the packages). The two motorcycle pictures are a stereo pair: one scene.
SCENES = {
    "astronaut": ("train", ["skimage/data/astronaut.png"]),
    "brick": ("train", ["skimage/data/brick.png"]),
    "cell": ("train", ["skimage/data/cell.png"]),
    "china": ("train", ["sklearn/datasets/images/china.jpg"]),
    "coffee": ("train", ["skimage/data/coffee.png"]),
    "coins": ("train", ["skimage/data/coins.png"]),
    "grass": ("train", ["skimage/data/grass.png"]),
    "hubble": ("train", ["skimage/data/hubble_deep_field.jpg"]),
    "ihc": ("train", ["skimage/data/ihc.png"]),
    "motorcycle": ("train", ["skimage/data/motorcycle_left.png", "skimage/data/motorcycle_right.png"]),
    "gravel": ("val", ["skimage/data/gravel.png"]),
    "moon": ("val", ["skimage/data/moon.png"]),
    "rocket": ("val", ["skimage/data/rocket.jpg"]),
    "camera": ("test", ["skimage/data/camera.png"]),
    "chelsea": ("test", ["skimage/data/chelsea.png"]),
    "flower": ("test", ["sklearn/datasets/images/flower.jpg"]),
    "grace_hopper": ("test", ["matplotlib/mpl-data/sample_data/grace_hopper.jpg"]),
    "retina": ("test", ["skimage/data/retina.jpg"]),
}
COLUMNS, SPLITS = ["path", "label", "generator", "split", "group", "jpeg_quality"], ("train", "val", "test")
TILE = 128
MOST = 24  # tiles a picture and scale, spread evenly: no photograph outweighs the others
FLAT = 2.0  # grey levels of standard deviation after a high-pass; a tile without fine detail holds no evidence
# Training photographs are also taken smaller and larger before the decoder sees them: real photographs come sharp and
# soft, and a detector must not take softness itself for generation. Validation and test stay at native pixels.
SCALES = {"train": (1.0, 0.5, 1.3, 1.7)}


def packaged():
    """Yield (scene, split, path) of the photographs inside the installed packages."""
    for scene, (split, names) in SCENES.items():
        for name in names:
            package, inside = name.split("/", 1)
            spec = importlib.util.find_spec(package)
            path = Path(spec.origin).parent / inside if spec else None
            if path is None or not path.is_file():
                raise UserError(f"{name} is not installed; run: pip install scikit-image scikit-learn matplotlib")
            yield scene, split, path


def own(folder):
    """Yield (scene, split, path) of a user's folder; of every five photographs three train, one is val, one test."""
    names = list(images.walk(images.require_folder(folder)))
    plain = [name.replace("/", "-").rsplit(".", 1)[0] for name in names]
    for i, (name, scene) in enumerate(zip(names, plain)):
        if plain.count(scene) > 1:  # a.jpg and a.png
            scene = name.replace("/", "-").replace(".", "-")
        yield scene, ("train", "train", "train", "val", "test")[i % 5], Path(folder) / name


def tiles(path, scale=1.0, most=MOST):
    """Cut one photograph; list of (row, column, uint8 (TILE, TILE, 3)), tiles without detail left out."""
    image = images.decode(path)
    if scale != 1:
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    array = np.asarray(image)
    grid = [(r, c) for r in range(array.shape[0] // TILE) for c in range(array.shape[1] // TILE)]
    cut = [(r, c, array[r * TILE : (r + 1) * TILE, c * TILE : (c + 1) * TILE]) for r, c in grid]
    high_pass = images.Pipeline("high_pass(2)")
    cut = [t for t in cut if high_pass(Image.fromarray(t[2])).std() * 255 >= FLAT]
    keep = np.unique(np.linspace(0, len(cut) - 1, min(most, len(cut))).round().astype(int)) if cut else []
    return [cut[i] for i in keep]


def reconstruct(net, cut):
    """Pass tiles through the autoencoder, uint8 (N, TILE, TILE, 3) in and out, 8 at a time; grey stays grey."""
    import mindspore as ms

    result = []
    for start in range(0, len(cut), 8):
        x = np.stack(cut[start : start + 8]).transpose(0, 3, 1, 2).astype(np.float32) / 255
        y = net(ms.Tensor(x)).asnumpy().transpose(0, 2, 3, 1)
        for real, fake in zip(cut[start : start + 8], np.clip(np.rint(y * 255), 0, 255).astype(np.uint8)):
            grey = (real == real[..., :1]).all()
            # A tint on a grey photograph would tell the classes apart by itself.
            result.append(np.repeat(np.asarray(Image.fromarray(fake).convert("L"))[..., None], 3, 2) if grey else fake)
    return result


def is_sample(folder):
    """Whether a folder holds an earlier sample and nothing else, so that it may be replaced."""
    if {path.name for path in folder.iterdir()} - {"labels.csv", *SPLITS}:
        return False
    try:
        with open(folder / "labels.csv", encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error):
        return False
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return header == COLUMNS and there <= {"labels.csv", *(row[0] for row in rows if row)}


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="data/sample", help="folder to make; must be absent, or an earlier sample")
    parser.add_argument("--ckpt", default=str(ROOT / "ckpt/aidet_tae.ckpt"), help="checkpoint of an autoencoder")
    parser.add_argument("--images", help="folder of your own photographs instead of the packaged ones")
    parser.add_argument("--seed", type=int, default=42, help="draws the JPEG quality (85-95) of each pair")
    args = parser.parse_args(argv)
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not is_sample(out))):
        raise UserError(f"--out {args.out!r} holds something else than an earlier sample; name a new folder")
    if args.images and out.resolve() in (Path(args.images).resolve(), *Path(args.images).resolve().parents):
        raise UserError(f"--out {args.out!r} holds the photographs of --images, and is replaced; name a new folder")
    sources = list(own(args.images) if args.images else packaged())
    from aidet import ckpt, runtime

    runtime.setup(mode="pynative")
    net = ckpt.load_model(args.ckpt)
    if net.sidecar.get("role") != "autoencoder":
        raise UserError(f"--ckpt {args.ckpt!r} is {net.sidecar['architecture']!r}, not an autoencoder")
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    rows = []
    jobs = [(*source, scale) for source in sources for scale in SCALES.get(source[1], (1.0,))]
    for scene, split, path, scale in jobs:
        try:
            cut = tiles(path, scale)
        except images.ImageError as error:
            if scale == 1:
                print(f"left out {path}: {error}", file=sys.stderr)
            continue
        for (r, c, real), fake in zip(cut, reconstruct(net, [t[2] for t in cut])):
            side = "_right" if path.stem.endswith("_right") else ""
            name = f"{scene}{side}_x{scale:g}_{r}_{c}.jpg" if scale != 1 else f"{scene}{side}_{r}_{c}.jpg"
            # One quality for both twins, so that the file format says nothing.
            quality = int(images.generator(args.seed, name).integers(85, 96))
            for label, pixels in (("real", real), ("generated", fake)):
                target = temporary / split / label / name
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(target, quality=quality, subsampling=2)
                made_by = "aidet_tae" if label == "generated" else scene
                rows.append([f"{split}/{label}/{name}", int(label == "generated"), made_by, split, scene, quality])
    if not rows:
        raise UserError("no photograph could be used")
    with files.atomic(temporary / "labels.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
    for split in SPLITS:
        mine = [r for r in rows if r[3] == split]
        scenes = sorted({r[4] for r in mine})
        print(f"{split:5} {len(mine) // 2:4} pairs of tiles from {len(scenes):2} photographs: {', '.join(scenes)}")
    print(f"wrote {out}/labels.csv")


if __name__ == "__main__":
    cli.main(main)
