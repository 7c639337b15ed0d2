"""The report in a real browser, at desktop and phone width; screenshots stay in build/screenshots."""

import csv
import html
import json
import re
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aidet import report, runinfo
from aidet.evaluation import score, sentences

KEPT = Path(__file__).resolve().parents[2] / "build" / "screenshots"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr"
).split()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    with open(folder / "labels.csv", "w", newline="") as labels, open(folder / "scores.csv", "w", newline="") as scores:
        labels, scores = csv.writer(labels), csv.writer(scores)
        labels.writerow(["path", "label", "generator", "group"])
        scores.writerow(["path", "score", "score:first_model", "score:second_model", "status"])
        for i in range(120):
            y, name = i % 2, f"a_folder_with_a_rather_long_name/image_{i:05d}.png"
            (folder / name).parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / name)
            labels.writerow([name, y, ["camera", "stable_diffusion_xl", "phone", "flux"][i % 4], i // 3])
            a, b = rng.normal(size=2) + 2 * y - 1
            bad = i in (5, 6)
            scores.writerow(
                [name, *([""] * 3 if bad else [(a + b) / 2, a, b]), "error: truncated file" if bad else "ok"]
            )
    (folder / "valid").mkdir()
    for name in ("labels.csv", "scores.csv"):  # other images, which need not be there
        text = (folder / name).read_text(encoding="utf-8").replace("image_", "other_")
        (folder / "valid" / name).write_text(text, encoding="utf-8")
    options = Namespace(
        scores=folder / "scores.csv", labels=[folder / "labels.csv"], out=folder / "out", by=["generator", "size"],
        where=None, bootstrap=100, seed=42, threshold=None, target_fpr=0.1, valid_scores=folder / "valid/scores.csv",
        valid_labels=folder / "valid/labels.csv", valid_where=None, against=folder / "scores.csv", vip=None,
        thumbnails=6, explain=None, one_class=False, leaks=None, include=None,
    )  # fmt: skip
    header = {"models": {"first_model": "a" * 64, "second_model": "b" * 64}, "backends": ["onnxruntime", "mindspore"]}
    part = {"rows": 120, "scored": 120, "seconds": 10.0, "load_seconds": 2.0, "device": "CPU, x86_64, 2 CPUs"}
    runinfo.write(folder, header, [part], {"real": 60, "generated": 58, "error": 2}, [folder / "scores.csv"])
    score.main(options)
    return folder / "out" / "report.html"


def browse(profile, *arguments):
    command = [BROWSER, *QUIET, f"--user-data-dir={profile}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert not console, console
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
@pytest.mark.parametrize("width", [1280, 390])
def test_it_renders_and_fits_the_width(page, width, tmp_path):
    KEPT.mkdir(parents=True, exist_ok=True)
    shot = KEPT / f"report_{width}.png"
    shot.unlink(missing_ok=True)
    browse(tmp_path / "p", f"--window-size={width},2400", f"--screenshot={shot}", page.as_uri())
    with Image.open(shot) as image:
        assert image.width == width
        grey = np.asarray(image.convert("L"), int)
    assert (grey < 128).mean() > 0.01 and (grey > 200).mean() > 0.5  # dark text on a light page, not an empty one
    # The page has no script of its own; this copy measures it.
    measure = "<script>document.title = [document.documentElement.scrollWidth, innerWidth, [...document.images]"
    measure += ".filter(i => i.loading != 'lazy' && !i.naturalWidth).length].join(' ')</script></body>"
    copy = tmp_path / "copy.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", measure), encoding="utf-8")
    dom = browse(
        tmp_path / "q", f"--window-size={width},2400", "--virtual-time-budget=5000", "--dump-dom", copy.as_uri()
    )
    wide, inner, broken = map(int, re.search(r"<title>(\d+) (\d+) (\d+)</title>", dom).groups())
    assert wide <= inner and broken == 0


def test_it_has_every_section(page):
    text = page.read_text(encoding="utf-8")
    sections = (
        "All numbers", "Curves", "By generator", "By size", "Thresholds", "Paired comparison", "Single models",
        "Worst errors", "How the scores were made", "Where the numbers come from",
    )  # fmt: skip
    for title in sections:
        assert f"<h2>{title}</h2>" in text, title
    for words in (
        "2 images could not be scored",
        "Chosen on validation",
        "Oracle, not a result",
        "sha256",
        "Per class",
        "b" * 64,
        "5,000 in an hour: yes",
    ):
        assert words in text, words
    assert text.count('alt="') == text.count("<img ")


def test_it_begins_with_the_result_in_sentences(page):
    """Three to five sentences before everything else, with the numbers of metrics.json."""
    text = html.unescape(page.read_text(encoding="utf-8"))
    told = re.search(r'<p class="summary">(.*?)</p>', text).group(1)
    result = json.loads((page.parent / "metrics.json").read_text(encoding="utf-8"))
    (_, alarms), (missed, found) = result["confusion"]
    real, generated = sum(result["confusion"][0]), missed + found
    assert 3 <= len(re.findall(r"\.(?= |$)", told)) <= 5 and text.index(told) < text.index("balanced accuracy")
    assert f"decided on {real} real images and {generated} generated images" in told
    assert "2 more images could not be scored" in told
    assert f"found {found} of the {generated} generated ones ({found / generated:.0%})" in told
    assert f"called {alarms} of the {real} real ones generated ({alarms / real:.0%})" in told
    assert f"right {result['balanced_accuracy']:.0%} of the time" in told and f"{result['auc']:.0%} of the time" in told
    kinds = {name: row for name, row in result["by"]["generator"].items() if row["classes"] == "real"}
    worst = min(kinds, key=lambda name: kinds[name]["accuracy"])
    assert f"with generator {worst}, it called {1 - kinds[worst]['accuracy']:.0%} generated, the most" in told


def test_the_sentences_of_one_class():
    class Truth:
        def groups(self):
            return None

    class Only:
        true = Truth()

    result = {
        "confusion": [[9, 1], [0, 0]], "errors": {"left_out": 0}, "ci": {}, "by": {}, "auc": None, "n_groups": 10,
        "balanced_accuracy": 0.9,
    }  # fmt: skip
    assert sentences.summary(Only(), result) == [
        "The detector decided on 10 real images.",
        "It called 1 of the 10 real ones generated (10%).",
    ]
    assert sentences.summary(Only(), {**result, "unsure": 3})[2] == (
        "The run calls 3 images unsure; here the side of the threshold counts."
    )
    accuracies = (("phone", 0.8), ("scan", 0.8), ("slr", 0.9))
    groups = {n: {"classes": "real", "accuracy": a, "n": 21, "decided": 20} for n, a in accuracies}
    assert "20 real images with camera phone" in sentences._weakest({"by": {"camera": groups}}, 0, "real")
    groups.pop("slr")  # none is worse than the others
    assert sentences._weakest({"by": {"camera": groups}}, 0, "real") is None
    assert sentences.share(0.9996) == ">99.9%" and sentences.share(1) == "100%" and sentences.share(0.004) == "0.4%"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
def test_it_prints_on_a4(page, tmp_path):
    KEPT.mkdir(parents=True, exist_ok=True)
    pdf = KEPT / "report.pdf"
    pdf.unlink(missing_ok=True)
    browse(tmp_path / "p", "--no-pdf-header-footer", f"--print-to-pdf={pdf}", page.as_uri())
    boxes = re.findall(rb"/MediaBox ?\[([\d. ]+)\]", pdf.read_bytes())
    sizes = {tuple(round(float(n)) for n in box.split()[2:]) for box in boxes}
    assert sizes == {(595, 842)} and 3 <= len(boxes) <= 12
    style = page.read_text(encoding="utf-8").partition("@media print")[2].partition("</style>")[0]
    for words in (".shots", "break-inside: avoid", "break-after: avoid", "table-header-group"):
        assert words in style, words


def test_a_curve_may_lack_the_interval_of_a_point():
    line = [(0.0, 0.9, None, None), (1.0, 0.8, 0.7, 0.85)]
    assert report.curves({"AUC": line}, "x", "value").startswith("data:image/svg+xml")
