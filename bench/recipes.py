"""Run the recipes of mindcv_cfg/ on one labelled set and measure the trained models: results/recipes.csv.

    python bench/recipes.py --labels PATH/labels.csv --work runs/recipes --unseen dalle3,stable_cascade resnet_ft

Each recipe was written for its own data and ImageNet weights. Here each one runs through the real command lines
(`train.py`, `infer.py`, `evaluate.py`) on ``labels.csv`` (path, label, generator, split), **from random weights** and
with the shorter schedule of ``PLAN``, so that a single processor core is enough. The numbers show that a recipe learns,
and what it costs. They do not reproduce the originally reported results and do not rank the recipes, which differ in
image size and number of steps. A finished training run is not repeated; `--resume auto` continues an interrupted one.

    python bench/recipes.py --profile proof --cifake CIFAKE --labels PATH/labels.csv --work runs/proof [RECIPE ...]

shows that each recipe learns: with its overlay of ``mindcv_cfg/proof/`` it is trained on CIFAKE
(``{train,test}/{FAKE,REAL}``) or, where CIFAKE makes no sense (``CROPS``), on the crops of ``labels.csv``, and measured
on test pictures: a row of results/recipes_proof.csv and the curve of the loss, results/proof/RECIPE.csv.
"""

import argparse
import csv
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import common
import measure_set
from common import ROOT

from aidet import ckpt, cli, files, records
from aidet.errors import UserError

CSV = ROOT / "results" / "recipes.csv"
COLUMNS = (
    "recipe", "changed", "train images", "epochs", "seconds an epoch", "peak MB", "AUC", "AUC, unseen generators",
    "balanced accuracy", "macro-F1", "AUC, 7 votes", *common.FACTS,
)  # fmt: skip
GANS = ("stylegan2_face", "stylegan_rental", "gan_mountain", "gan_photo")
SHORT = {"epoch_size": 1, "warmup_epochs": 0.2, "layer_decay": 1.0, "ema": False, "batch_size": 8}
# Changes to each recipe: the schedule and, for the most expensive networks, the number of training images.
PLAN = {
    "resnet_ft": {"epoch_size": 6},
    "resnet_hf": {"epoch_size": 30},
    "aekl_clf": {
        # Crops of 64 pixels need a sixteenth of the encoder's computation at 256 pixels.
        "epoch_size": 2, "limit": 60, "model_args": "{latent_size: 8}",
        "transform": "decode | random_crop(64) | hflip | vflip | to_float",
        "transform_eval": "decode | center_crop(64) | to_float",
        "views": "decode | random_crop(64) | hflip | vflip | to_float",
    },
    "winner_resnet50": {"epoch_size": 1, "lr": 0.0001},
    # MindSpore on a CPU needs about 20 GB for a batch of 32; for a batch of 8, vipcup (stride 2) needs 17 GB, B6 20 GB.
    "swin_tiny_finetune": {"limit": 100, **SHORT},
    "convnext_tiny_finetune": {"limit": 100, **SHORT},
    "efficientnet_b6_fake_or_real": {"epoch_size": 1, "limit": 15, "warmup_epochs": 0.2, "batch_size": 2},
    "vipcup_convnext_tiny": {"epoch_size": 1, "limit": 15, "warmup_epochs": 0.2, "batch_size": 2},
    "distill_efficientnet_b0": {"epoch_size": 1, "limit": 60, "batch_size": 8},
}  # fmt: skip


def chosen(labels, splits, limit=None):
    """Rows of the given splits with absolute paths; at most the first ``limit`` per split and generator or source."""
    base = Path(labels).resolve().parent
    counts, rows = {}, []
    for row in records.read_table(labels, "labels")[0]:
        key = row["split"], row["generator"]
        if row["split"] in splits:
            counts[key] = counts.get(key, 0) + 1
            if limit is None or counts[key] <= limit or row["split"] != "train":
                rows.append({**row, "path": str(base / row["path"])})
    return rows


def link(source, place):
    """Make a symbolic link to an image, and its folders if needed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.symlink_to(source)


def as_table(rows, folder):
    """Write the rows as a folder with labels.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    common.write(folder / "labels.csv", list(rows[0]), rows)


def as_folders(rows, folder):
    """Write the rows in Fake or Real's layout: {train,valid}/{fake_images,real_images}."""
    for row in rows:
        split = {"train": "train", "val": "valid"}[row["split"]]
        kind = ("real_images", "fake_images")[int(row["label"])]
        link(row["path"], folder / split / kind / Path(row["path"]).name)


def as_artifact(rows, folder):
    """Write the rows in ArtiFact's layout: a folder per generator with metadata.csv (image_path, target, category)."""
    tables = {}
    for row in rows:
        name = f"{row['split']}-{Path(row['path']).name}"
        link(row["path"], folder / row["generator"] / name)
        fact = {"image_path": name, "target": 0 if row["label"] == "0" else 6, "category": row["generator"]}
        tables.setdefault(row["generator"], []).append(fact)
    for name, table in tables.items():
        common.write(folder / name / "metadata.csv", list(table[0]), table)


PROOF = ROOT / "results" / "recipes_proof.csv"
PROOF_COLUMNS = ("recipe", "data", *COLUMNS[1:7], "AUC, seen generators", *COLUMNS[7:11], "curve", *common.FACTS)
# CIFAKE has one generator and 32 pixels: no crops of native pixels, no class per generator, no specialists to distil.
CROPS = ("resnet_hf", "vipcup_convnext_tiny", "distill_efficientnet_b0", "clip_probe", "dinov2_probe", "dinov2_lora")
CURVE = ("epoch", "updates", "train_loss", "val_loss", "auc")

LAYOUTS = {"efficientnet_b6_fake_or_real": as_folders, "vipcup_convnext_tiny": as_artifact}


def run(*arguments):
    """Run one command line of the project and show its output; if it fails, exit with its exit code."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=False)
    if done.returncode not in (cli.OK, cli.PARTIAL):
        raise UserError(f"{arguments[0]} ended with exit code {done.returncode}")


def train(recipe, rows, work, changes, layout=as_table):
    """Train a recipe unless it is already trained; return the folder of the run."""
    data, out = work / f"{recipe}-data", work / recipe
    layout(rows, data)
    words = [word for key, value in changes.items() for word in (f"--{key}", value)]
    run("train.py", "-c", f"mindcv_cfg/{recipe}.yaml", "--data_dir", data, "--ckpt_save_dir", out, "--resume", "auto",
        "--num_parallel_workers", 1, *words)  # fmt: skip
    return out


def teachers(labels, work):
    """Two specialists, EfficientNet-Lite0 from ImageNet: one trained on GANs, one trained on diffusion models."""
    rows = chosen(labels, ("train", "val"))
    found = []
    for name, wanted in (("gan", True), ("diffusion", False)):
        part = [r for r in rows if r["label"] == "0" or (r["generator"] in GANS) == wanted]
        out = train("efficientnet_lite0_aigen", part, work / name, {"epoch_size": 1})
        found.append(out / "best.ckpt")
    return found


def lite_start(path):
    """Write EfficientNet-B0 with the ImageNet weights of EfficientNet-Lite0, which has its layers but for the gates.

    The gates (squeeze-excite) start with biases of 4, so that they let through 98 %.
    """
    if path.is_file():  # an interrupted proof goes on from the start that it had
        return path
    from aidet import models  # MindSpore is loaded only where it is needed

    known = ckpt.load_arrays(ROOT / "ckpt" / "efficientnet_lite0.ckpt")
    arrays = {p.name: p.asnumpy() for p in models.create("efficientnet_b0", num_classes=2).get_parameters()}
    for name, value in arrays.items():
        if name in known and known[name].shape == value.shape:
            arrays[name] = known[name]
        elif name.endswith("conv_expand.bias"):
            arrays[name] = value + 4
        elif "conv_reduce" not in name and "conv_expand" not in name and not name.startswith("mlp_head"):
            raise UserError(f"efficientnet_b0 has {name} {value.shape}, Lite0 has not")
    ckpt.write_arrays(arrays, path)
    return path


def measure(recipe, options):
    """The table row of one recipe."""
    changes = dict(PLAN[recipe])
    limit = changes.pop("limit", None)
    rows = chosen(options.labels, ("train", "val"), limit)
    shown = ", ".join(f"{k} {v}" for k, v in changes.items() if not k.startswith(("transform", "views")))
    if limit:
        shown += f", {limit} images of each source"
    work = Path(options.work).resolve()
    if recipe == "distill_efficientnet_b0":
        known = ", ".join(map(str, teachers(options.labels, work)))
        changes["distill"] = f"{{teachers: [{known}], temperature: 2, alpha: 0.7, combine: max}}"
        shown += ", 2 teachers"
    layout = LAYOUTS.get(recipe, as_table)
    out = train(recipe, rows, work, changes, layout)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    with open(out / "log.csv", encoding="utf-8", newline="") as file:
        log = list(csv.DictReader(file))
    found = {
        votes: judged(out / "last.ckpt", options, votes) for votes in (1, *((7,) if "views" in given(recipe) else ()))
    }
    one = found[1]["test"]
    # ArtiFact has no splits; the recipe holds out a tenth of all images.
    tenth = layout is as_artifact
    trained = len(rows) - len(rows) // 10 if tenth else sum(r["split"] == "train" for r in rows)
    return dict(zip(COLUMNS, (
        recipe, shown, trained, len(log),
        round(sum(float(r["seconds"]) for r in log) / len(log)), peak,
        common.shown(one["auc"], one["ci"]["auc"]), common.shown(found[1]["test, unseen"]["auc"]),
        common.shown(one["balanced_accuracy"], one["ci"]["balanced_accuracy"]), common.shown(one["macro_f1"]),
        common.shown(found[7]["test"]["auc"]) if 7 in found else "", *common.facts("defaults"),
    )))  # fmt: skip


def proofs():
    """Names of the recipes that have a proof profile."""
    return sorted(path.stem for path in (ROOT / "mindcv_cfg" / "proof").glob("*.yaml"))


def cifake_test(folder, listing):
    """Write labels of every fifth of CIFAKE's 20,000 test pictures: path, label, generator, split."""
    rows = [
        {"path": str(path.resolve()), "label": label, "generator": generator, "split": "test"}
        for name, label, generator in (("FAKE", 1, "stable diffusion 1.4"), ("REAL", 0, "CIFAR-10"))
        for path in sorted((Path(folder) / "test" / name).glob("*.jpg"))[::5]
    ]
    if not rows:
        raise UserError(
            f"{folder} has no test/FAKE/*.jpg and test/REAL/*.jpg; --cifake is the folder of the unpacked set"
        )
    listing.parent.mkdir(parents=True, exist_ok=True)
    common.write(listing, list(rows[0]), rows)
    return listing


def prove(recipe, options):
    """The row of results/recipes_proof.csv of one recipe; trains it, measures it and keeps its curve."""
    work, crops = Path(options.work).resolve(), recipe in CROPS
    out, words = work / recipe, ["--profile", "proof", "--resume", "auto"]
    if crops:
        data = work / f"{recipe}-data"
        LAYOUTS.get(recipe, as_table)(chosen(options.labels, ("train", "val")), data)
        labels, unseen = options.labels, options.unseen
    else:
        data, labels, unseen = options.cifake, cifake_test(options.cifake, work / "cifake.csv"), ""
    if recipe.startswith("distill"):
        known = ", ".join(map(str, teachers(options.labels, work)))
        words += ["--distill", f"{{teachers: [{known}], temperature: 2, alpha: 0.7, combine: max}}"]
        words += ["--init_from", lite_start(work / "efficientnet_b0.ckpt")]
    run("train.py", "-c", f"mindcv_cfg/{recipe}.yaml", *words, "--data_dir", data, "--ckpt_save_dir", out)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    with open(out / "log.csv", encoding="utf-8", newline="") as file:
        log = list(csv.DictReader(file))
    curve = ROOT / "results" / "proof" / f"{recipe}.csv"
    curve.parent.mkdir(exist_ok=True)
    common.write(curve, CURVE, [{name: row.get(name, "") for name in CURVE} for row in log])
    told = files.read_json(out / "last.json")["training"]
    where = SimpleNamespace(labels=labels, unseen=unseen)
    found = {v: judged(out / "last.ckpt", where, v) for v in (1, *((7,) if "views" in given(recipe) else ()))}
    one, new = found[1]["test"], found[1].get("test, unseen")
    seen = found[1].get("test, seen")
    changed = ", ".join(
        f"{k} {v}" for k, v in told["profile"]["changes"].items() if not k.startswith(("transform", "views", "ckpt"))
    )
    return dict(zip(PROOF_COLUMNS, (
        recipe, "crops" if crops else "CIFAKE", changed, told["images"], len(log),
        round(sum(float(r["seconds"]) for r in log) / len(log)), peak,
        common.shown(one["auc"], one["ci"]["auc"]), common.shown(seen["auc"]) if seen else "",
        common.shown(new["auc"]) if new else "",
        common.shown(one["balanced_accuracy"], one["ci"]["balanced_accuracy"]), common.shown(one["macro_f1"]),
        common.shown(found[7]["test"]["auc"]) if 7 in found else "", f"results/proof/{recipe}.csv",
        *common.facts("defaults"),
    )))  # fmt: skip


def given(recipe):
    """Names of the keys set in a recipe's file."""
    text = (ROOT / "mindcv_cfg" / f"{recipe}.yaml").read_text(encoding="utf-8")
    return {line.split(":")[0] for line in text.splitlines() if line and line[0].isalpha()}


def judged(path, options, votes):
    """metrics.json of the whole test split, and of its unseen generators against all its real images."""
    unseen = [name for name in options.unseen.split(",") if name]
    args = SimpleNamespace(ckpt=path, labels=options.labels, votes=votes, unseen=unseen, operating_point=None)
    with tempfile.TemporaryDirectory() as folder:
        return dict(measure_set.measure(args, "test", Path(folder)))


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "recipes", nargs="*", metavar="RECIPE", help=", ".join(PLAN) + "; with --profile proof default all"
    )
    parser.add_argument("--profile", choices=["proof"], help="mindcv_cfg/proof/ instead of the plan of this script")
    parser.add_argument("--labels", help="CSV with path, label, generator, split")
    parser.add_argument("--cifake", help="CIFAKE unpacked, for the proof profile: {train,test}/{FAKE,REAL}")
    parser.add_argument("--unseen", default="", help="generators of the test split alone, separated by commas")
    parser.add_argument("--work", required=True, help="folder for the runs")
    options = parser.parse_args(argv)
    known = proofs() if options.profile else sorted(PLAN)
    recipes = options.recipes or (known if options.profile else [])
    check(recipes, known, options)
    for recipe in recipes:
        row, path, columns = (
            (prove(recipe, options), PROOF, PROOF_COLUMNS)
            if options.profile
            else (measure(recipe, options), CSV, COLUMNS)
        )
        common.write(path, columns, common.replaced(common.rows(path), [row], ("recipe",)))
        print({k: v for k, v in row.items() if k not in common.FACTS}, flush=True)


def check(recipes, known, options):
    """Refuse a recipe that is not known, and one whose data are not given, before anything is trained."""
    wrong = [name for name in recipes if name not in known]
    if wrong or not recipes:
        raise UserError(
            f"recipe {wrong[0]!r} is none of {', '.join(known)}" if wrong else f"name recipes: {', '.join(known)}"
        )
    crops = [name for name in recipes if not options.profile or name in CROPS]
    if crops and not (options.labels and options.unseen):
        raise UserError(f"{crops[0]} needs --labels and --unseen")
    if len(crops) < len(recipes) and not options.cifake:
        raise UserError(f"{next(name for name in recipes if name not in crops)} needs --cifake FOLDER")


if __name__ == "__main__":
    cli.main(main)
