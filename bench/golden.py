"""Write what is derived from the shipped checkpoints: golden scores, and the default detector's ONNX graph.

tests/data/golden_*.json are the MindSpore scores on packaged and synthetic images; those of the large detector only if
its network was converted. ckpt/aidet_default.onnx is the graph that infer.py would make on its first run, verified
against MindSpore; with it, the default detector needs no MindSpore.

    python bench/golden.py

Run it after an intentional change of a checkpoint, and review the diff.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "detector")]

import test_large  # noqa: E402 - the repository's own files come first on the path
from test_default import SHIPPED, pictures  # noqa: E402

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
    sidecar = ckpt.Sidecar.read(SHIPPED["default"][0])
    size = sidecar.size
    model, verdict = backends.make(sidecar, size)
    onnx_graph.stamp(model, "aidet.key", backends.cache_key(sidecar, size))
    onnx_graph.save(model, sidecar.path.with_suffix(".onnx"))
    print(f"{sidecar.path.with_suffix('.onnx').name}: largest logit difference {verdict['difference']:.1e}")
