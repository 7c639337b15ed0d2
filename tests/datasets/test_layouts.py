"""Published folder layouts: training and evaluation read the same class of every image, or both refuse.

Written from the data sets' papers and pages; the images are made.
"""

import numpy as np
import pytest
from PIL import Image

from aidet import config
from aidet.datasets import truth
from aidet.datasets.folders import is_class_folder
from aidet.datasets.samples import open_data
from aidet.errors import UserError

# Folder -> side of its images; the folders of one split.
LAYOUTS = {
    "CNNDetection, all generators": {
        "progan/airplane/0_real": 0, "progan/airplane/1_fake": 1, "progan/car/0_real": 0, "progan/car/1_fake": 1,
        "biggan/0_real": 0, "biggan/1_fake": 1, "deepfake/0_real": 0, "deepfake/1_fake": 1,
        "cyclegan/horse/0_real": 0, "cyclegan/horse/1_fake": 1,
        "whichfaceisreal/0_real": 0, "whichfaceisreal/1_fake": 1,
    },
    "ForenSynths, training": {f"{c}/{s}": int(s[0]) for c in ("car", "cat") for s in ("0_real", "1_fake")},
    "GenImage": {
        f"{g}/{'nature' if not y else 'ai'}": y
        for g in ("stable_diffusion_v_1_4/imagenet_ai_0419_sdv4", "Midjourney/imagenet_midjourney", "ADM")
        for y in (0, 1)
    },
    "CIFAKE": {"REAL": 0, "FAKE": 1},
    "140k faces": {"real_vs_fake/real-vs-fake/train/real": 0, "real_vs_fake/real-vs-fake/train/fake": 1},
    "UniversalFakeDetect": {
        "imagenet/0_real": 0, "laion/0_real": 0, "dalle/1_fake": 1, "glide_100_10/1_fake": 1, "ldm_200_cfg/1_fake": 1,
    },
    "AIGCDetectBenchmark": {
        f"{g}/{s}": int(s[0])
        for g in ("ADM", "DALLE2", "Midjourney", "stylegan2/horse", "whichfaceisreal", "wukong")
        for s in ("0_real", "1_fake")
    },
    "DRCT-2M": {"MSCOCO/val2017/0_real": 0, "DR/sd-turbo/1_fake": 1, "lcm-lora-sdxl/val2017/1_fake": 1},
    "Chameleon": {"0_real": 0, "1_fake": 1},
    "ArtiFact as folders": {"coco/real": 0, "stylegan2/fake": 1, "ddpm/celebahq/fake": 1},
    "WildFake": {"real/laion": 0, "real/cc3m": 0, "fake/DMs/Midjourney": 1, "fake/GANs/stylegan": 1},
    "DiffusionDB and LAION": {"laion/real": 0, "diffusiondb/fake/part-000001": 1, "diffusiondb/fake/part-000002": 1},
    "Community Forensics, evaluation": {"real/coco": 0, "real/ffhq": 0, "fake/LatDiff/flux": 1, "fake/GAN/sg3": 1},
    "Synthbuster beside RAISE": {"RAISE/real": 0, "synthbuster/fake/dalle3": 1, "synthbuster/fake/midjourney-v5": 1},
    "Fake-or-Real (MindCon)": {"real": 0, "fake": 1},
    "Diffusion faces (DF3)": {"real": 0, "fake/inpainting": 1, "fake/text2img": 1},
    "Hugging Face, ai and human": {"human": 0, "ai": 1},
    "AI-ArtBench": {"AI_LD_art_nouveau/ai": 1, "AI_SD_baroque/ai": 1, "art_nouveau/human": 0, "baroque/human": 0},
    "FaceForensics++ frames": {"original_sequences/youtube/real": 0, "manipulated_sequences/Deepfakes/fake": 1},
    "Numbers only": {"0": 0, "1": 1},
    "Shutterstock and generated": {"Real Images": 0, "AI-Generated Images": 1},
    "Upscalers and portraits": {"fake/real_esrgan": 1, "fake/human": 1, "real/human": 0, "real/sd_cards": 0},
    "Words among others": {"celeb_real": 0, "youtube-real": 0, "celeb_fake": 1},
    "Not and non": {"not_ai": 0, "ai": 1},
}  # fmt: skip


def fill(root, folders, n=2):
    rng = np.random.default_rng(len(folders))
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(root / folder / f"{i:04}.png")


def opened(root, said=None, **keys):
    keys = {"data_dir": str(root), "val_split": "", **keys}
    return open_data(config.load(None, keys), (said if said is not None else []).append)


@pytest.mark.parametrize("name", LAYOUTS)
def test_training_and_evaluation_read_a_published_layout_alike(tmp_path, name):
    fill(tmp_path / "train", LAYOUTS[name])
    said = []
    train, _, classes = opened(tmp_path, said)
    read = truth.read_labels(tmp_path / "train")
    wanted = {f"{folder}/{i:04}.png": y for folder, y in LAYOUTS[name].items() for i in range(2)}
    assert classes == ["real", "generated"] and said == []
    assert dict(zip(train.paths, train.targets.tolist())) == wanted == dict(zip(read.paths, read.labels.tolist()))
    assert train.generators == read.columns["generator"]
    # The same from the folder above the splits.
    above = truth.read_labels(tmp_path)
    assert dict(zip(above.paths, above.labels.tolist())) == {f"train/{path}": y for path, y in wanted.items()}


def test_the_generator_is_every_folder_but_class_and_split(tmp_path):
    fill(tmp_path / "train", ["deepfake/0_real", "deepfake/1_fake", "progan/car/1_fake", "fake/sdxl", "real"], 1)
    train, _, _ = opened(tmp_path)
    assert train.generators == ["deepfake", "deepfake", "sdxl", "progan/car", "real"]


def test_splits_below_the_generators(tmp_path):
    """GenImage as it is unpacked; and a split folder in capitals."""
    sides = ("nature", "ai")
    fill(tmp_path / "a", [f"{g}/imagenet_{g}/{split}/{s}" for g in ("adm", "wukong") for split in ("train", "val")
                          for s in sides])  # fmt: skip
    fill(tmp_path / "b", [f"{split}/{s}" for split in ("Train", "Valid") for s in sides])
    for root, n in ((tmp_path / "a", 8), (tmp_path / "b", 4)):
        train, val, classes = opened(root, val_split="val")
        assert classes == ["real", "generated"] and len(train) == len(val) == n
        assert all("train" in path.lower() for path in train.paths)
        assert [int("/ai/" in path) for path in train.paths] == train.targets.tolist()
        assert not set(train.paths) & set(val.paths)


# --- what both refuse -------------------------------------------------------------------------------------------------
REFUSED = {
    "conflict": (["real/fake", "fake"], "'real/fake' lies in 'real' .real. and in 'fake' .generated."),
    "conflict above": (["fake/sdxl/real", "fake/sdxl/fake"], "'fake/sdxl/real' lies in 'fake'.*and in 'real'"),
    "content or class": (["gan/human", "gan/ai"], "lies in 'gan' .generated. and in 'human' .real."),
    "generators beside real": (["real", "midjourney", "sdxl"], "for 4 of 6 images, in midjourney, sdxl; put a folder"),
    "a strange folder": (["real", "fake", "backup"], "for 2 of 6 images, in backup"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_training_and_evaluation_refuse_alike(tmp_path, name):
    folders, said = REFUSED[name]
    fill(tmp_path / "train", folders)
    with pytest.raises(UserError, match=said):
        opened(tmp_path)
    with pytest.raises(UserError, match=said):
        truth.read_labels(tmp_path / "train")


def test_generators_alone_are_plain_classes_with_a_note(tmp_path):
    """Synthbuster by itself: a classifier of generators may be wanted, but it is no detector."""
    fill(tmp_path / "train", ["dalle3", "midjourney-v5", "firefly"])
    said = []
    _, _, classes = opened(tmp_path, said)
    assert classes == ["dalle3", "firefly", "midjourney-v5"]
    assert len(said) == 1 and "no class name says real or generated" in said[0] and "no detector" in said[0]
    with pytest.raises(UserError, match="no folder name says real or generated for 6 of 6 images"):
        truth.read_labels(tmp_path / "train")


def test_a_table_of_real_and_generators_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\na.png,real\nb.png,midjourney\nc.png,sdxl\n")
    with pytest.raises(UserError, match="classes midjourney, sdxl say neither real nor generated, but real do"):
        opened(tmp_path)


def test_numbers_of_classes_are_plain_classes(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(f"{i}.png,{i}\n" for i in range(4)))
    assert opened(tmp_path)[2] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    "name, said",
    [("0_real", True), ("AI images", True), ("AiGenerated", True), ("not-fake", True), ("train_real", True),
     ("deepfake", False), ("imagenet_ai_0419_sdv4", False), ("real_esrgan", False), ("gan", False), ("dog", False)],
)  # fmt: skip
def test_class_folders_have_no_other_words(name, said):
    assert is_class_folder(name) is said
