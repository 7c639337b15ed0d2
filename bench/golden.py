"""Write tests/data/golden_*.json: the shipped detectors' MindSpore scores on packaged and synthetic images.

    python bench/golden.py

Run it after an intentional change of a checkpoint, and review the diff.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aidet import Detector, files  # noqa: E402 - the repository's root comes first on the path
from tests.detector.test_default import SHIPPED, pictures  # noqa: E402

if __name__ == "__main__":
    shown = pictures()
    for path, place in SHIPPED.values():
        found = Detector(path, backend="mindspore").score(list(shown.values()))
        scores = {name: round(r.score, 6) for name, r in zip(shown, found)}
        files.write_json(place, {"sha256": files.sha256(path), "scores": scores})
        print(path.name)
        for name, r in zip(shown, found):
            print(f"  {name:10s} score {r.score:8.4f}  prob {r.prob:.4f}  {r.decision}")
