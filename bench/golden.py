"""Write what is derived from the shipped checkpoints: golden scores, and the ONNX graphs of the two in the wheel.

tests/data/golden_*.json are the MindSpore scores on packaged and synthetic images; those of the large detector only if
its network was converted. ckpt/aidet_default.onnx and ckpt/aidet_partial.onnx are the graphs that infer.py would make
on its first run, verified against MindSpore; with them, the default detector and --localize need no MindSpore.

    python bench/golden.py

Run it after an intentional change of a checkpoint, and review the diff.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "detector")]

import test_large  # noqa: E402 - the repository's own files come first on the path
from test_default import GRAPHS, SHIPPED, pictures  # noqa: E402

from aidet import Detector, ckpt, files  # noqa: E402
from aidet.detector import backends  # noqa: E402
from aidet.export import onnx_graph  # noqa: E402

if __name__ == "__main__":
    shown = pictures()
    jobs = [(path, path, place) for path, place in SHIPPED.values()]  # detector, what the scores depend on, golden file
    if test_large.NETWORK.is_file():
        jobs.append((test_large.DETECTOR, test_large.HEAD, test_large.GOLDEN))
    for path, weights, place in jobs:
        found = Detector(path, backend="mindspore").score(list(shown.values()))
        scores = {name: round(r.score, 6) for name, r in zip(shown, found)}
        files.write_json(place, {"sha256": files.sha256(weights), "scores": scores})
        print(path.name)
        for name, r in zip(shown, found):
            print(f"  {name:10s} score {r.score:8.4f}  prob {r.prob:.4f}  {r.decision}")
    for path, size in GRAPHS:
        sidecar = ckpt.Sidecar.read(path)
        model, verdict = backends.make(sidecar, size)
        onnx_graph.stamp(model, "aidet.key", backends.cache_key(sidecar, size))
        onnx_graph.save(model, path.with_suffix(".onnx"))
        print(f"{path.with_suffix('.onnx').name}: largest logit difference {verdict['difference']:.1e}")
