"""The pictures of the documentation, docs/images: verdicts of the bundled detector, the application, a report.

    python bench/pictures.py [verdict] [app] [report]     # default: all; app and report need Chromium and Playwright

They show photographs of scikit-image and scikit-learn, and the generated pictures that come with the application
(``aidet/app/samples/SOURCES.md``); nothing is chosen by its verdict.

- ``verdict.png``: a cat (CC0) and Hubble's deep field (NASA, public domain), both called generated; under each is
  what ``infer.py`` prints, beside each the heat map of the application.
- ``app.webp``: the application with the cat, 1280 x 800.
- ``report.webp``: the head of ``report.html`` on the 14 photographs and 2 generated pictures named below.
"""

import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aidet import Detector  # noqa: E402 - the repository's root comes first on the path
from aidet.app import examples, pictures, server, service  # noqa: E402
from aidet.detector import default, explain  # noqa: E402

IMAGES = ROOT / "docs" / "images"
NAMES = ("chelsea", "hubble_deep_field")
PHOTOGRAPHS = (
    "skimage/data/chelsea.png", "skimage/data/coffee.png", "skimage/data/rocket.jpg",
    "skimage/data/hubble_deep_field.jpg", "skimage/data/moon.png", "skimage/data/brick.png", "skimage/data/grass.png",
    "skimage/data/gravel.png", "skimage/data/coins.png", "skimage/data/motorcycle_left.png", "skimage/data/retina.jpg",
    "skimage/data/camera.png", "sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg",
)  # fmt: skip
HEIGHT, MARGIN, TEXT = 260, 12, 20  # pixels


def verdict():
    """Score, explain and draw."""
    from PIL import Image, ImageDraw, ImageFont
    from skimage import data

    detector = Detector()
    panels = []
    for name in NAMES:
        photo = Image.fromarray(getattr(data, name)()).convert("RGB")
        found = detector.score(photo)
        heat = pictures.overlay(explain.occlusion(detector, photo), photo)
        panels.append((f"{found.decision}  {found.percent}  {name}.png", photo, heat))
    rows = [[image.resize((round(image.width * HEIGHT / image.height), HEIGHT)) for image in p[1:]] for p in panels]
    width = sum(image.width + MARGIN for row in rows for image in row) + MARGIN
    sheet = Image.new("RGB", (width, HEIGHT + 3 * MARGIN + TEXT), "white")
    draw, left = ImageDraw.Draw(sheet), MARGIN
    font = ImageFont.truetype(_monospace(), TEXT - 4)
    for (text, *_), row in zip(panels, rows):
        draw.text((left, HEIGHT + 2 * MARGIN), text, fill="black", font=font)
        for image in row:
            sheet.paste(image, (left, MARGIN))
            left += image.width + MARGIN
    target = IMAGES / "verdict.png"
    sheet.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(target, optimize=True)
    print(f"{target.relative_to(ROOT)}: " + "; ".join(p[0] for p in panels))


def app():
    """Start the application, give it the cat, and take the picture when the heat map is there."""
    folder = server.prepare()
    served = service.Service(default.checkpoints(None))
    running = server.launch(served, folder, port=0, language="en")
    try:
        with browser(1280, 800) as page:
            page.goto(running.local_url)
            page.wait_for_selector("#verdict .aidet-card")
            page.set_input_files("#image input[type=file]", str(examples._installed("cat")[1]))
            page.wait_for_selector("#heat img", timeout=300_000)
            page.wait_for_timeout(1500)
            take(page, IMAGES / "app.webp")
    finally:
        running.close(verbose=False)


def report():
    """Score the pictures with ``infer.py``, make the report with ``evaluate.py``, and take its head."""
    import evaluate
    import infer

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in ("real", "generated"):
            (folder / "images" / name).mkdir(parents=True)
        for inside in PHOTOGRAPHS:
            package, rest = inside.split("/", 1)
            shutil.copy(Path(__import__(package).__file__).parent / rest, folder / "images" / "real")
        for path in examples.SAMPLES.iterdir():
            if path.suffix != ".md":
                shutil.copy(path, folder / "images" / "generated")
        infer.run(["--images", str(folder / "images"), "--out", str(folder / "out")])
        scores, made = str(folder / "out" / "scores.csv"), folder / "report"
        evaluate.main(["score", "--scores", scores, "--labels", str(folder / "images"), "--out", str(made)])
        with browser(1120, 1000) as page:
            page.goto((made / "report.html").as_uri())
            # The name of a temporary folder says nothing.
            page.evaluate("document.querySelector('.lead').textContent = 'scores.csv against images'")
            take(page, IMAGES / "report.webp")


@contextmanager
def browser(width, height):
    """A page of headless Chromium of this size."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as p:
        running = p.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running.new_page(viewport={"width": width, "height": height})
        running.close()


def take(page, target):
    """Save what a page shows as WebP of less than 150 kB."""
    import io

    from PIL import Image

    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    for quality in (90, 80, 70, 60):
        shot.save(target, quality=quality, method=6)
        if target.stat().st_size < 150_000:
            break
    print(f"{target.relative_to(ROOT)}: {shot.width} x {shot.height}, {target.stat().st_size} bytes")


def _monospace():
    """A font that comes with Matplotlib."""
    from matplotlib import font_manager

    return font_manager.findfont("DejaVu Sans Mono")


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    makers = {"verdict": verdict, "app": app, "report": report}
    wrong = [name for name in sys.argv[1:] if name not in makers]
    if wrong:
        sys.exit(f"{wrong[0]!r} is none of {', '.join(makers)}")
    for made in sys.argv[1:] or makers:
        makers[made]()
