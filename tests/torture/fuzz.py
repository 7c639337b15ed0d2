"""Coverage-guided fuzzing of the readers of untrusted files (atheris, libFuzzer).

    PYTHONPATH=.venv-torture .venv/bin/python tests/torture/fuzz.py TARGET CORPUS_DIR [-max_total_time=180 ...]
    .venv/bin/python tests/torture/fuzz.py TARGET FILE ...      # without atheris: run the target on these files

A target may raise the project's own errors and nothing else.
"""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
SCRATCH = Path(tempfile.gettempdir()) / f"aidet-fuzz-{os.getpid()}"


def scratch(data, name):
    """The data as a file; memory where the system has a folder for that."""
    folder = Path("/dev/shm") / SCRATCH.name if Path("/dev/shm").is_dir() else SCRATCH
    if not folder.is_dir():
        folder.mkdir()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / name
    path.write_bytes(data)
    return path


def weights(data):
    """safetensors, PyTorch's two formats and npz: told apart by their content."""
    from aidet.errors import UserError
    from convert import reading

    try:
        source = reading.read(scratch(data, "x.bin"))
        for tensor in list(source.tensors.values())[:20]:
            array = tensor.array()
            assert array.nbytes <= (1 << 30) + 64 * len(data), "more than the file holds"
            assert array.shape == tuple(tensor.shape)
    except UserError:
        pass


def pickles(data):
    """The pickle inside a checkpoint, without the zip around it."""
    from aidet.errors import UserError
    from convert.unpickle import Cursor, Machine, Storage

    def persistent(pid):
        if not isinstance(pid, tuple) or len(pid) != 5:
            raise UserError("no storage")
        return Storage("0", "<f4", "float32", 4)

    try:
        Machine(persistent, "x").load(Cursor(data))
    except UserError:
        pass


def checkpoint(data):
    """MindSpore's format."""
    from aidet import ckpt
    from aidet.errors import UserError

    try:
        arrays = ckpt.load_arrays(scratch(data, "x.ckpt"))
        assert sum(a.nbytes for a in arrays.values()) <= 2 * len(data)
    except UserError:
        pass


def yaml(data):
    """A configuration, and a line of the command line."""
    from aidet import config
    from aidet.errors import UserError

    for call in (
        lambda: config.load(scratch(data, "x.yaml")).to_yaml(),
        lambda: config.load(None, config.parse_args(data.decode("utf-8", "ignore").split("\n"))[1]),
    ):
        try:
            call()
        except UserError:
            pass


def csv(data):
    """Scores, labels, lists of images, samples of a submission, results."""
    from aidet import config, records
    from aidet.datasets import samples, sources, truth
    from aidet.errors import UserError
    from aidet.evaluation import scores
    from aidet.inference import journal, results, submission

    path, text = scratch(data, "x.csv"), scratch(data, "x.txt")
    for call in (
        lambda: records.read_scores(path),
        lambda: scores.read_scores(path),
        lambda: truth.read_labels(path),
        lambda: sources.read_images(str(path)),
        lambda: sources.read_images(str(text)),
        lambda: samples.open_data(config.load(None, {"data_dir": str(path), "val_split": ""})),
        lambda: sources.Inputs(path).count(),
        lambda: sources.Inputs(text).count(),
        lambda: submission.read_sample(path),
        lambda: results.check(text),
        lambda: journal.read_header(path),
        lambda: list(journal.read_journal([path])),
    ):
        try:
            call()
        except UserError:
            pass


def image(data):
    """Decoding, and the pipelines that follow."""
    from aidet import images

    try:
        picture = images.decode(scratch(data, "x.png"), max_pixels=4_000_000)
    except images.ImageError:
        return
    assert picture.mode == "RGB"
    for line in ("resize(40) | center_crop(32) | normalize(half)", "random_crop(32) | high_pass"):
        array = images.Pipeline(line)(picture, images.generator(0, "x"))
        assert array.shape[0] == 3 and array.shape[1:] == (32, 32)


def line(data):
    """A one-line pipeline, as sidecars and configurations hold it."""
    from aidet import images
    from aidet.errors import UserError

    text = data.decode("utf-8", "ignore")
    try:
        images.Pipeline(text)
    except UserError:
        pass


TARGETS = {f.__name__: f for f in (weights, pickles, checkpoint, yaml, csv, image, line)}
INSTRUMENTED = {
    "weights": ["convert", "zipfile", "pickletools", "aidet"],
    "pickles": ["convert", "pickletools"],
    "checkpoint": ["aidet"],
    "yaml": ["aidet", "yaml"],
    "csv": ["aidet"],
    "image": ["aidet", "PIL"],
    "line": ["aidet"],
}


def seeds(target, folder):
    """Sound files to start from."""
    import corpus
    import hostile

    folder.mkdir(parents=True, exist_ok=True)
    marker = folder.parent / "marker"
    if target == "weights":
        small = {"a.weight": hostile.np.arange(6, dtype="f4").reshape(2, 3), "b": hostile.np.zeros(1, "f4")}
        hostile.safetensors(folder / "a", small)
        hostile.np.savez(folder / "b.npz", **small)
        hostile.np.savez_compressed(folder / "c.npz", **small)
        payload = hostile.state_dict([("a.weight", hostile.tensor("0", (2, 3), (3, 1), 6))])
        hostile.torch_zip(folder / "d", payload, [("0", bytes(24))])
        for path in sorted((HERE.parent / "data" / "convert").glob("*.pth")):
            (folder / path.name).write_bytes(path.read_bytes())
    elif target == "pickles":
        values = {**hostile.attacks(marker), **hostile.bombs()}
        for i, value in enumerate(v for v in values.values() if len(v) < 3000):
            (folder / str(i)).write_bytes(hostile.state_dict([("a", hostile.tensor("0", (4,), (1,), 4)), ("b", value)]))
    elif target == "checkpoint":
        (folder / "a").write_bytes(b"\n\x1d\n\x01a\x12\x18\x08\x02\x12\x07Float32\x1a\x08" + bytes(8))
    elif target == "yaml":
        for path in (HERE.parents[1] / "mindcv_cfg").glob("*.yaml"):
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / "flags").write_text("--lr\n1e-3\n--scale\n0.2,1.0\n--freeze\na.*\n--lr_groups\n{a: 1}\n")
    elif target == "csv":
        header = "path,score,prob,label,decision,status,generator,split,group,pair\n"
        (folder / "scores").write_text(header + "a/real/1.png,1.5,0.8,1,generated,ok,x,test,g,p\n")
        (folder / "models").write_text("path,score,score:a,score:b\n1.png,1.5,2,3\n12345678901.png,-1,,2\n")
        (folder / "bare").write_text("0\n1\n1\n")
        (folder / "vip").write_text("filename,logit\n1.png,-2\n2.png,3\n")
        (folder / "artifact").write_text("image_path,target,category\nreal/1.png,0,a\nfake/1.png,3,b\n")
        (folder / "journal").write_text('{"total": 1}\n{"path": "a", "status": "ok"}\n{"done": 1}\n')
    elif target == "image":
        for i, (_, data) in enumerate({**corpus.special(), **corpus.hopeless(), **corpus.formats()}.items()):
            if len(data) < 20_000:
                (folder / str(i)).write_bytes(data)
    else:
        for i, text in enumerate(
            ("decode | resize(256, bicubic) | center_crop(224) | normalize(imagenet)", "jpeg((65, 100), p=0.1)")
        ):
            (folder / str(i)).write_text(text)


def main(argv):
    """Fuzz one target, or run it on files."""
    name, *rest = argv
    target = TARGETS[name]
    files = [Path(a) for a in rest if Path(a).is_file()]
    if files:
        for path in files:
            target(path.read_bytes())
            print(f"ok {path.name}")
        return
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED[name]):
        target(b"")  # imports what it needs
    atheris.Setup([f"fuzz-{name}", *rest], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
