"""Many images, one process and several: rate, memory and overhead of infer.py, results/scale.csv and docs/scale.md.

    python bench/scale.py [--images 200000] [--files 20000] [--photographs 300] [--again ENGINE ...] [--add-files N]

- small pictures: JPEG of 32 pixels in one set of shards, scored by ``ckpt/aidet_cifake.ckpt``, which takes so little
  that everything else is what counts: by one process, by two (``--shard``, then ``merge``) and by Ray with two;
- the same, fewer, as files, Parquet and tar: what the source costs (``--add-files 1000000``: a row with more files);
- made-up photographs of 1024x768, scored by the default detector, which takes nearly all of the time.

A process has one thread, so that all use the same two cores. Scores must be the same each time. Linux only.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
from common import ROOT

from aidet import cli, data, files
from aidet.errors import UserError

TABLE = ROOT / "results" / "scale.csv"
COLUMNS = (
    "pictures", "detector", "source", "engine", "processes", "images", "bytes an image", "seconds", "start s",
    "images a second", "last tenth / first", "peak MB", "CSV bytes a row", "Parquet bytes a row", "journal bytes a row",
    "load", "commit", "versions", "device",
)  # fmt: skip
SMALL, DEFAULT = "ckpt/aidet_cifake.ckpt", "ckpt/aidet_default.ckpt"
ENGINES = {"one process": 1, "two processes": 2, "Ray, two workers": 2}


# --- pictures ------------------------------------------------------------------------------------------------------
def drawn(rng, grid, size):
    """A JPEG of smooth noise."""
    import numpy as np
    from PIL import Image

    small = Image.fromarray(rng.integers(0, 256, (grid, grid, 3), np.uint8))
    stream = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def shards(folder, form, count, grid, size, a_shard=20_000):
    """Shards of made-up pictures, as ``aidet.data pack`` writes them; gives the mean size of one in bytes."""
    import numpy as np

    rng, total = np.random.default_rng(0), 0
    folder.mkdir(parents=True)
    for start in range(0, count, a_shard):
        shard = data.SHARDS[form](folder / f"data-{start // a_shard:05d}.{form}", ["number"])
        for i in range(start, min(count, start + a_shard)):
            picture = drawn(rng, grid, size)
            shard.add((picture, f"{i}.jpg", {"number": str(i)}))
            total += len(picture)
        shard.close()
    return total // count


def unpacked(source, folder):
    """The pictures of a set of shards as files, a thousand in a folder."""
    from aidet.datasets import read_images

    for i, (picture, _, _) in enumerate(data.rows_of(read_images(str(source)), [])):
        path = folder / f"{i // 1000}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)


# --- one run -------------------------------------------------------------------------------------------------------
def family(root):
    """A process and all below it (Linux)."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(place.read_text().rpartition(")")[2].split()[1]), []).append(int(place.parts[2]))
        except (OSError, ValueError, IndexError):
            continue
    found = [root]
    for process in found:
        found += parents.get(process, [])
    return found


def memory(roots):
    """Memory of processes and all below them in MB; what several share counts once (PSS)."""
    total = 0
    for process in {p for root in roots for p in family(root)}:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total / 1000


class Watch:
    """How far the journals in a folder have come, over time."""

    def __init__(self, out):
        self.out, self.points, self.ends = out, [], {}

    def look(self, now):
        """Note the rows that are in the journals; rows have nearly the same length, so that bytes tell them."""
        for path in self.out.glob("*.journal"):
            try:
                with open(path, "rb") as file:
                    head = len(file.readline())
                self.ends[path.name] = max(self.ends.get(path.name, 0), path.stat().st_size - head)
            except OSError:
                continue
        done = sum(self.ends.values())
        if done > 0 and (not self.points or done > self.points[-1][1]):
            self.points.append((now, done))

    def at(self, share):
        """When a share of all was done."""
        wanted = self.points[0][1] + share * (self.points[-1][1] - self.points[0][1])
        return next(now for now, done in self.points if done >= wanted)

    def drift(self):
        """Rate of the last tenth over that of the first; None if the run was too short to tell."""
        first, last = self.at(0.1) - self.points[0][0], self.points[-1][0] - self.at(0.9)
        return first / last if min(first, last) > 1 else None


def commands(source, ckpt, engine, out):
    """The command lines of a run: those that run beside each other, and the one that ends it."""
    start = [sys.executable, "infer.py", "--ckpt", ckpt, "--images", str(source), "--out", str(out)]
    if engine == "one process":
        return [[*start, "--workers", "1"]], None
    if engine == "two processes":
        merge = [sys.executable, "infer.py", "merge", str(out)]
        return [[*start, "--workers", "1", "--shard", f"{i}/2"] for i in (1, 2)], merge
    return [[*start, "--engine", "ray", "--workers", "2"]], None


def score(source, ckpt, engine, out):
    """One run: (facts for its row, SHA-256 of its scores)."""
    lines, last = commands(source, ckpt, engine, out)
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    begin, watch, peak, sampled = time.perf_counter(), Watch(out), 0, -1
    children = [subprocess.Popen(line, **quiet) for line in lines]
    while any(child.poll() is None for child in children):
        now = time.perf_counter() - begin
        watch.look(now)
        if now - sampled > 1:
            peak, sampled = max(peak, memory([child.pid for child in children])), now
        time.sleep(0.05)
    codes = [child.returncode for child in children] + ([subprocess.run(last, **quiet).returncode] if last else [])
    seconds = time.perf_counter() - begin
    if any(codes):
        raise UserError(f"{engine} on {source} ended with {codes}")
    drift = watch.drift()
    facts = {
        "seconds": f"{seconds:.1f}", "start s": f"{watch.points[0][0]:.1f}", "peak MB": f"{peak:.0f}",
        "last tenth / first": "" if drift is None else f"{drift:.2f}", "journal": watch.points[-1][1],
        "CSV": (out / "scores.csv").stat().st_size,
        "Parquet": sum(path.stat().st_size for path in out.glob("parts/*.parquet")),
    }  # fmt: skip
    return facts, files.sha256(out / "scores.csv")


# --- all runs ------------------------------------------------------------------------------------------------------
def measured(pictures, ckpt, kind, source, count, size, engines, place):
    """The rows of one source, one for each engine."""
    rows, known = [], set()
    for engine in engines:
        facts, digest = score(source, ckpt, engine, place / "out")
        known.add(digest)
        if len(known) > 1:
            raise UserError(f"the scores of {engine} differ from those of {engines[0]}")
        shutil.rmtree(place / "out")
        bytes_ = {f"{name} bytes a row": facts.pop(name) / count for name in ("CSV", "Parquet", "journal")}
        rows.append({
            "pictures": pictures, "detector": Path(ckpt).stem, "source": kind, "engine": engine,
            "processes": ENGINES[engine], "images": count, "bytes an image": size,
            "load": f"{os.getloadavg()[0]:.1f}", "images a second": f"{count / float(facts['seconds']):.4g}",
            **{name: f"{value:.0f}" if value else "" for name, value in bytes_.items()}, **facts,
        })  # fmt: skip
        print({name: rows[-1][name] for name in COLUMNS[:12] if name in rows[-1]}, flush=True)
    return rows


def main(argv):
    """Make the pictures, measure each run, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000, help="small pictures, by each engine")
    parser.add_argument("--files", type=int, default=20_000, help="small pictures, from each source")
    parser.add_argument("--photographs", type=int, default=300)
    parser.add_argument("--format", choices=sorted(data.SHARDS), default="parquet", help="of the shards")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--add-files", type=int, metavar="N", help="only one more row: N small pictures as files")
    parser.add_argument("--again", nargs="+", choices=sorted(ENGINES), help="only these rows of the first comparison")
    options = parser.parse_args(argv)
    rows, every = [], list(ENGINES)
    about = {
        "commit": common.commit(), "versions": common.versions("onnxruntime", "pyarrow", "pillow", "ray"),
        "device": f"CPU, {common.cores()}",
    }  # fmt: skip

    def measure(*argv):
        """Measure and write the table: what was measured stays if a later run fails."""
        rows.extend({**row, **about} for row in measured(*argv))
        common.write(options.table, COLUMNS, rows)

    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        if options.add_files:
            size = shards(place / "tar", "tar", options.add_files, 9, (32, 32))
            unpacked(place / "tar", place / "files")
            rows = common.rows(options.table)
            measure("32 pixels", SMALL, "files", place / "files", options.add_files, size, every[:1], place)
            return 0
        size = shards(place / "many", options.format, options.images, 9, (32, 32))
        argv = ("32 pixels", SMALL, options.format, place / "many", options.images, size)
        if options.again:
            rows = common.rows(options.table)  # they start with this comparison
            for new in measured(*argv, options.again, place):
                rows[every.index(new["engine"])] = {**new, **about}
            common.write(options.table, COLUMNS, rows)
            return 0
        measure(*argv, every, place)
        for form in sorted(data.SHARDS):
            size = shards(place / form, form, options.files, 9, (32, 32))
            measure("32 pixels", SMALL, form, place / form, options.files, size, every[:1], place)
        unpacked(place / "tar", place / "files")
        measure("32 pixels", SMALL, "files", place / "files", options.files, size, every[:1], place)
        size = shards(place / "photographs", options.format, options.photographs, 200, (1024, 768))
        argv = ("1024x768", DEFAULT, options.format, place / "photographs", options.photographs, size)
        measure(*argv, [every[0], every[-1]], place)
    return 0


if __name__ == "__main__":
    cli.main(main)
