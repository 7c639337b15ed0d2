"""What a training run leaves behind to look at: log.csv, steps.csv, curve.csv, curves.png, TensorBoard events."""

import contextlib
import csv
import io
import sys
import time
import warnings
from pathlib import Path

from .. import files


def cell(value):
    """A value as CSV text that reads back to the same number."""
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


@contextlib.contextmanager
def _hidden(module):
    """Inside the block ``module`` cannot be imported: tensorboardX loads torch where it is, for 180 MB and no use."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None
    try:
        yield
    finally:
        del sys.modules[module]


class Events:
    """TensorBoard events, written by the thread that trains.

    tensorboardX's own writer is a thread of its own: on a full disk it ends in a traceback that nobody can catch.

    Parameters
    ----------
    folder : Path
    purge_step : int, optional
        What an earlier run wrote at and after this step is not shown.
    """

    EVERY = 30  # seconds between flushes

    def __init__(self, folder, purge_step=None):
        with warnings.catch_warnings(), _hidden("torch"):
            warnings.simplefilter("ignore")
            from tensorboardX import event_file_writer
            from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = event_file_writer.EventsWriter(str(Path(folder) / "events"))
        self._flushed = time.monotonic()
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(step=purge_step, session_log=start)

    def _write(self, **values):
        self._writer.write_event(self._event(wall_time=time.time(), **values))
        if time.monotonic() - self._flushed > self.EVERY:
            self._writer.flush()
            self._flushed = time.monotonic()

    def add_scalar(self, tag, value, step):
        """One number at one step."""
        point = self._summary.Value(tag=tag, simple_value=float(value))
        self._write(step=int(step), summary=self._summary(value=[point]))

    def close(self):
        """Flush and close."""
        self._writer.close()


class Journal:
    """The logs of one run; with ``active`` False (a process that is not the first) nothing is written.

    Parameters
    ----------
    folder : Path
    active : bool
    """

    def __init__(self, folder, active=True):
        self.folder, self.active = Path(folder), active
        self.rows = []
        self._steps = None
        self._events = None

    def start(self, rows, updates):
        """Begin, or go on after ``updates`` updates: whatever was logged later belongs to steps that are done again."""
        self.rows = list(rows)
        if not self.active:
            return
        path = self.folder / "steps.csv"
        with files.atomic(path) as file:
            file.writelines(["update,epoch,loss,lr\n", *self._kept(path, updates)[1:]])
        self._steps = open(path, "a", encoding="utf-8", newline="\n")
        path = self.folder / "curve.csv"
        kept = self._kept(path, updates)
        if len(kept) > 1:
            with files.atomic(path) as file:
                file.writelines(kept)
        elif path.exists():
            path.unlink()
        self._write_log()
        try:
            self._events = Events(self.folder, updates or None)
        except ImportError:
            self._events = None

    def _kept(self, path, updates):
        """Head and lines of a file up to an update; what a killed run half wrote is dropped."""
        if not updates or not path.exists():
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        first = [line.partition(",")[0] for line in lines]
        # A line without a number at its start is what a power cut left of some.
        kept = [line for line, n in zip(lines[1:], first[1:]) if n.isascii() and n.isdigit() and int(n) <= updates]
        return [f"{line}\n" for line in lines[:1] + kept]

    def point(self, update, epoch, row):
        """One line of curve.csv: a validation inside an epoch."""
        if not self.active:
            return
        path = self.folder / "curve.csv"
        fresh = not path.exists()
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            if fresh:
                file.write(",".join(["update", "epoch", *row]) + "\n")
            file.write(",".join([str(update), str(epoch), *map(cell, row.values())]) + "\n")
        if self._events is not None:
            for name, value in row.items():
                self._events.add_scalar(f"inside/{name}", value, update)

    def step(self, update, epoch, loss, lr):
        """One line of steps.csv and one point of the events."""
        if not self.active:
            return
        self._steps.write(f"{update},{epoch},{cell(loss)},{cell(lr)}\n")
        self._steps.flush()
        if self._events is not None:
            self._events.add_scalar("step/loss", loss, update)
            self._events.add_scalar("step/lr", lr, update)

    def epoch(self, row):
        """One row of log.csv: epoch, updates, numbers."""
        self.rows.append(row)
        if not self.active:
            return
        self._write_log()
        if self._events is not None:
            for name, value in row.items():
                if isinstance(value, float) and name not in ("seconds",):
                    self._events.add_scalar(f"epoch/{name}", value, row["updates"])

    def _write_log(self):
        names = list(dict.fromkeys(name for row in self.rows for name in row)) or ["epoch"]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([[cell(row.get(name)) for name in names] for row in self.rows])
        with files.atomic(self.folder / "log.csv") as file:
            file.write(text.getvalue())

    def curves(self, metrics):
        """Draw curves.png: the losses, the metrics and the learning rate over the epochs."""
        if not self.active or not self.rows:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import matplotlib

            matplotlib.use("Agg")
            from matplotlib import pyplot
        panels = (("loss", ["train_loss", "val_loss"]), ("metric", list(metrics)), ("learning rate", ["lr"]))
        figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.4), constrained_layout=True)
        for axis, (title, names) in zip(axes, panels):
            for name in names:
                points = [(r["epoch"], r[name]) for r in self.rows if isinstance(r.get(name), float)]
                if points:
                    axis.plot(*zip(*points), marker=".", label=name)
            axis.set_xlabel("epoch")
            axis.set_title(title)
            if axis.lines:
                axis.legend()
        with files.atomic(self.folder / "curves.png", "wb") as file:
            figure.savefig(file, format="png", dpi=100)
        pyplot.close(figure)

    def close(self):
        """Flush and close."""
        for handle in (self._steps, self._events):
            if handle is not None:
                handle.close()
