"""What the application tests share: a tiny exported detector, and a server that must not contact other hosts."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LINES = {
    "size": 32,
    "channels": 3,
    "transform": "decode | resize(40) | center_crop(32) | normalize(half)",
    "views": "decode | random_crop(32) | hflip | normalize(half)",
}
# Runs app.py; every name lookup and every connection outside this machine is logged and refused.
WATCHED = """
import runpy, socket, sys
log = open(sys.argv[1], "a", buffering=1)
sys.argv = sys.argv[2:]
HOME = ("127.0.0.1", "::1", "localhost", None, "", "0.0.0.0")
def refuse(host):
    if host not in HOME:
        print(host, file=log)
        raise OSError("no network in this test")
def watch(name):
    real = getattr(socket.socket, name)
    def call(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse(address[0])
        return real(self, address)
    setattr(socket.socket, name, call)
watch("connect"); watch("connect_ex")
look_up = socket.getaddrinfo
def getaddrinfo(host, *rest, **more):
    refuse(host.decode() if isinstance(host, bytes) else host)
    return look_up(host, *rest, **more)
socket.getaddrinfo = getaddrinfo
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def make_onnx(folder, seed=1):
    """A tiny detector whose scores differ between images and views; exported, so that serving needs no MindSpore."""
    import export
    from aidet import ckpt, models, runtime

    runtime.setup(seed=seed)
    net = models.create("testing", num_classes=2)
    rng = np.random.default_rng(seed)
    arrays = {p.name: p.asnumpy() for p in net.get_parameters()}
    weight = rng.normal(0, 4, arrays["classifier.weight"].shape).astype(np.float32)
    arrays["classifier.weight"] = weight - weight.mean(axis=1, keepdims=True)
    facts = {"architecture": "testing", "arguments": {"num_classes": 2}, "num_outputs": 2, "input": LINES}
    order = ["real", "generated"]
    ckpt.save(arrays, folder / "tiny.ckpt", {**facts, "classes": order, "class_order": order, "threshold": None})
    flags = ["--ckpt", folder / "tiny.ckpt", "--format", "onnx", "--out", folder]
    export.run([str(f) for f in flags])
    return folder / "tiny.onnx"


class Server:
    """``app.py`` in a separate process, on a free port.

    Attributes
    ----------
    url : str
    outside : Path
        File with one line for each attempt to reach another host.
    """

    def __init__(self, folder, *flags):
        self.outside, self.log = folder / "outside.txt", folder / "app.log"
        self.outside.touch()
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        command = [sys.executable, "-c", WATCHED, self.outside, ROOT / "app.py", "--port", 0, *flags]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary), "PYTHONUNBUFFERED": "1"}
        with open(self.log, "w") as out:
            self.process = subprocess.Popen(list(map(str, command)), stdout=out, stderr=out, cwd=ROOT, env=environment)
        end = time.monotonic() + 120
        while "Ctrl-C stops it" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"app.py did not start: {self.log.read_text()}")
            time.sleep(0.1)
        self.url = self.log.read_text().split("AIDet: ")[1].split()[0]

    def stop(self):
        """Ask the process to end; returns the exit code."""
        self.process.terminate()
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
