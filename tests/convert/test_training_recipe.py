"""The recipe of the default detector, as far as it runs without PyTorch: crops and pairs."""

import csv
import io
import struct
import types
import zlib

import numpy as np
import pytest
from PIL import Image

from aidet.errors import UserError
from convert.training import detector, photographs, statistics, web_photographs


def textured(seed, side=200):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(60, 190, (6, 6, 3), dtype=np.uint8)).resize((side, side), 3)
    return np.clip(np.asarray(small, np.int16) + rng.integers(-20, 21, (side, side, 3)), 0, 255).astype(np.uint8)


def test_a_pair_is_degraded_alike():
    real = textured(1)
    for seed in range(40):
        one, two = (detector.view(a, 64, seed, (0.5, 0.4)) for a in (real, real.copy()))
        assert one.shape == (64, 64, 3) and np.array_equal(one, two)
    # A pixel of difference stays where it was: the same place and turn in both.
    fake = np.clip(real.astype(np.int16) + 3, 0, 255).astype(np.uint8)
    for seed in range(40):
        one, two = (detector.view(a, 64, seed, (0.0, 1.0)).astype(float) for a in (real, fake))
        assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.95


def test_an_older_compression_changes_the_pixels_and_only_where_it_is_asked_for(monkeypatch):
    """The option must reach the pixels: two others once did not, and nothing noticed."""
    monkeypatch.setattr(detector, "DEGRADE_STEPS", [])
    array = textured(3)
    plain, never, always = (detector.view(array, 64, 5, (0.0, 1.0), p) for p in (0.0, 1e-9, 1.0))
    blocks = np.abs(always.astype(int) - plain).mean()
    assert never.shape == plain.shape == always.shape and blocks > 1


def test_a_batch_is_half_real_and_pairs_are_neighbours():
    pool = types.SimpleNamespace(
        real={"a": [textured(1)], "b": [textured(2)] * 9}, fake={"g1": [textured(3)]},
        twins=[("tae", textured(1), textured(1))],
        earlier={(0, "a"): [0.1], (0, "b"): [0.1] * 9, (1, "g1"): [0.5]},
    )  # fmt: skip
    classes = ["real", "generated_g1", "generated_tae"]
    x, y = detector.draw(pool, classes, np.random.default_rng(0), 24, 64, 0.5)
    assert x.shape == (24, 64, 64, 3) and (y == 0).sum() == 12 and set(y) == {0, 1, 2}
    # The twin here is the photograph itself: only what is drawn for each could tell the two apart.
    for i in np.flatnonzero(y == 2):
        assert y[i - 1] == 0 and np.array_equal(x[i], x[i - 1])


def test_only_what_was_never_compressed_gets_an_earlier_compression_as_a_rule():
    of = detector.earlier
    assert of({"label": 0, "source_jpeg_quality": ""}) == of({"label": 1, "source_jpeg_quality": ""})
    assert of({"label": 0, "source_jpeg_quality": "75"}) == of({"label": 1, "source_jpeg_quality": "75"})
    assert of({"label": 1, "source_jpeg_quality": ""}) > 2 * of({"label": 1, "source_jpeg_quality": "75"})
    assert of({"label": 1}) > 2 * of({"label": 0})


def test_photographs_become_crops_split_by_photograph(tmp_path):
    for source, count in (("one", 14), ("two", 3)):
        (tmp_path / "in" / source).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(textured(i, 500)).save(tmp_path / "in" / source / f"{i}.png")
    (tmp_path / "in" / "two" / "broken.jpg").write_bytes(b"no image")
    for out in ("a", "b"):
        arguments = ["--folder", str(tmp_path / "in"), "--out", str(tmp_path / out), "--crops", "3"]
        photographs.main(arguments)
    rows = list(csv.DictReader((tmp_path / "a" / "labels.csv").open()))
    assert len(rows) == 17 * 3 and {r["generator"] for r in rows} == {"one", "two"}
    assert {r["split"] for r in rows} == {"train", "val"}
    assert all(len({r["split"] for r in rows if r["group"] == g}) == 1 for g in {r["group"] for r in rows})
    for r in rows:
        with Image.open(tmp_path / "a" / r["path"]) as image:
            assert image.size == (448, 448) and image.format == "JPEG"
        assert (tmp_path / "a" / r["path"]).read_bytes() == (tmp_path / "b" / r["path"]).read_bytes()
    assert len(detector.read([tmp_path / "a" / "labels.csv"])) == len(rows)
    # A list names the same photographs: the name decides the draws, not the place of the file.
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "two" / "1.png").rename(tmp_path / "elsewhere" / "x.png")
    (tmp_path / "list.csv").write_text("name,file\ntwo/1.png,elsewhere/x.png\n")
    given = ["--folder", str(tmp_path), "--list", str(tmp_path / "list.csv"), "--crops", "3"]
    photographs.main([*given, "--out", str(tmp_path / "c")])
    first = next(r for r in rows if r["group"] == "two/1.png")
    assert (tmp_path / "c" / "crops" / "00000.jpg").read_bytes() == (tmp_path / "a" / first["path"]).read_bytes()


def test_photographs_without_a_source_are_refused(tmp_path):
    Image.fromarray(textured(1)).save(tmp_path / "1.png")
    with pytest.raises(UserError, match="every sub-folder is one source"):
        photographs.main(["--folder", str(tmp_path), "--out", str(tmp_path / "out")])


def qt_resource(tree):
    """A Qt resource file, version 2, of nested dicts; names with a trailing ``+`` are compressed."""
    names, data, nodes, level = b"", b"", [], [("", tree)]
    first = 1
    while level:
        below = []
        for name, value in level:
            zipped = name.endswith("+")
            name = name.rstrip("+")
            place = len(names)
            names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
            if isinstance(value, dict):
                nodes.append(struct.pack(">IHIIQ", place, 2, len(value), first + len(below), 0))
                below += list(value.items())
            else:
                body = struct.pack(">I", len(value)) + zlib.compress(value) if zipped else value
                nodes.append(struct.pack(">IHHHIQ", place, int(zipped), 0, 0, len(data), 0))
                data += struct.pack(">I", len(body)) + body
        first += len(below)
        level = below
    tree = b"".join(nodes)
    start = 24
    return (
        b"qres"
        + struct.pack(">5I", 2, start, start + len(tree), start + len(tree) + len(data), 0)
        + tree
        + data
        + names
    )


def test_photographs_from_the_web_become_crops_and_a_third_is_kept_apart(tmp_path, monkeypatch):
    names = [f"gcompris/{i}.webp" for i in range(30)]
    tree = {}
    for i, name in enumerate(names):
        buffer = io.BytesIO()
        Image.fromarray(textured(i, 150 if i % 10 == 0 else 300)).save(buffer, "WEBP")
        tree[name.split("/")[1]] = buffer.getvalue()
    (tmp_path / "x.rcc").write_bytes(qt_resource({"gcompris": {**tree, "drawing.webp": b"not listed"}}))
    (tmp_path / "list.csv").write_text("file,kind,licence\n" + "".join(f"{n},other,CC0-1.0\n" for n in names))
    monkeypatch.setattr(web_photographs, "LIST", tmp_path / "list.csv")
    web_photographs.main(["--rcc", str(tmp_path), "--out", str(tmp_path / "out")])
    rows = list(csv.DictReader((tmp_path / "out" / "labels.csv").open()))
    apart = {n for n in names if web_photographs.drawn(n)[1]}
    large = {n for i, n in enumerate(names) if i % 10}
    assert 3 <= len(apart) <= 18 and {r["group"] for r in rows} == large - apart
    for r in rows:
        with Image.open(tmp_path / "out" / r["path"]) as image:
            assert 200 <= min(image.size) <= 300 and image.format == "JPEG"
    assert {r["label"] for r in rows} == {"0"} and {r["split"] for r in rows} == {"train"}
    (tmp_path / "list.csv").write_text("file,kind,licence\ngone.webp,other,CC0-1.0\n")
    with pytest.raises(UserError, match="1 of 1 photographs are not in .*'gone.webp'"):
        web_photographs.photographs(tmp_path)


def test_only_running_statistics_are_mixed():
    old = {"a.weight": np.array(1.0), "a.running_mean": np.array(2.0), "a.running_var": np.array(1.0)}
    new = {"a.weight": np.array(9.0), "a.running_mean": np.array(4.0), "a.running_var": np.array(3.0)}
    assert statistics.mixed(old, new, 0.5) == {"a.weight": 1, "a.running_mean": 3, "a.running_var": 2}


def test_statistics_are_of_training_images_as_many_of_each_class_as_asked_for(tmp_path):
    for name in ("full", "dev"):
        (tmp_path / name).mkdir()
        lines = [f"{i}.jpg,{i % 2},g,{'test' if i > 29 else 'train'}" for i in range(40)]
        (tmp_path / name / "labels.csv").write_text("\n".join(["path,label,generator,split", *lines]) + "\n")
    rows = statistics.chosen([(tmp_path / "full" / "labels.csv", 10), (tmp_path / "dev" / "labels.csv", 4)])
    counts = {(s, k): sum(r["set"] == s and r["label"] == k for r in rows) for s in ("full", "dev") for k in (0, 1)}
    assert counts == {("full", 0): 10, ("full", 1): 10, ("dev", 0): 4, ("dev", 1): 4}
    assert {r["split"] for r in rows} == {"train"} and len({r["path"] for r in rows}) == 28
    assert [r["set"] for r in rows] != sorted((r["set"] for r in rows), reverse=True)  # in one random order


def test_photographs_come_out_of_qt_resources(tmp_path):
    """The layout was checked once against Debian's gcompris-qt-data; here against files made from its description."""
    wanted = {"gcompris/a.webp": b"first", "gcompris/deep/er/b.webp": b"second" * 50, "gcompris/c.webp": b"third"}
    made = qt_resource(
        {"gcompris": {"a.webp": b"first", "deep": {"er": {"b.webp+": b"second" * 50}}, "c.webp": b"third"}}
    )
    (tmp_path / "x.rcc").write_bytes(made)
    assert dict(web_photographs.resources(tmp_path / "x.rcc")) == wanted
    (tmp_path / "y.rcc").write_bytes(b"PK\3\4")
    with pytest.raises(UserError, match="no Qt resource"):
        dict(web_photographs.resources(tmp_path / "y.rcc"))
