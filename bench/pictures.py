"""The README's picture, docs/images/verdict.png: two verdicts of the bundled detector, one of them wrong.

    python bench/pictures.py

Both photographs come with scikit-image: a cat (CC0), and Hubble's deep field (NASA, public domain). Under each stands
what ``infer.py`` prints, beside each the heat map of the application: orange parts speak for *generated*, blue ones
against it.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aidet import Detector  # noqa: E402 - the repository's root comes first on the path
from aidet.app import pictures  # noqa: E402
from aidet.detector import explain  # noqa: E402

NAMES = ("chelsea", "hubble_deep_field")
HEIGHT, MARGIN, TEXT = 260, 12, 20  # pixels


def main():
    """Score, explain and draw."""
    from PIL import Image, ImageDraw, ImageFont
    from skimage import data

    detector = Detector()
    panels = []
    for name in NAMES:
        photo = Image.fromarray(getattr(data, name)()).convert("RGB")
        verdict = detector.score(photo)
        heat = pictures.overlay(explain.occlusion(detector, photo), photo)
        panels.append((f"{verdict.decision}  {verdict.probability:.3f}  {name}.png", photo, heat))
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
    target = ROOT / "docs" / "images" / "verdict.png"
    target.parent.mkdir(exist_ok=True)
    sheet.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(target, optimize=True)
    print(f"{target.relative_to(ROOT)}: " + "; ".join(p[0] for p in panels))


def _monospace():
    """A font that comes with Matplotlib."""
    from matplotlib import font_manager

    return font_manager.findfont("DejaVu Sans Mono")


if __name__ == "__main__":
    main()
