"""The logs of a training run: log.csv, steps.csv, curve.csv, curves.png and TensorBoard events."""

import contextlib
import csv
import io
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Union

from .. import files


def cell(value: Any) -> str:
    """A value as CSV text that reads back to the same number."""
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


@contextlib.contextmanager
def _hidden(module):
    """Inside the block ``module`` cannot be imported: tensorboardX loads torch if it finds it, 180 MB for nothing."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # makes the import fail
    try:
        yield
    finally:
        del sys.modules[module]


class Events:
    """TensorBoard events, written by the thread that trains.

    tensorboardX's own writer runs in a separate thread: on a full disk it raises there, and nothing can catch that.

    Parameters
    ----------
    folder : Path
    purge_step : int, optional
        TensorBoard does not show what an earlier run wrote at and after this step.
    """

    EVERY = 30  # seconds between flushes

    def __init__(self, folder: Union[str, Path], purge_step: Optional[int] = None) -> None:
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

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Write one number at one step."""
        point = self._summary.Value(tag=tag, simple_value=float(value))
        self._write(step=int(step), summary=self._summary(value=[point]))

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class Journal:
    """The logs of one run; with ``active`` False (in all processes but the first) nothing is written.

    Parameters
    ----------
    folder : Path
    active : bool
    """

    def __init__(self, folder: Union[str, Path], active: bool = True) -> None:
        self.folder, self.active = Path(folder), active
        self.rows: List[Dict[str, Any]] = []
        self._steps: Any = None
        self._events: Optional[Events] = None

    def start(self, rows: Iterable[Dict[str, Any]], updates: int) -> None:
        """Begin, or continue after ``updates`` updates and drop later lines, because those steps are repeated."""
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
        """Header and lines of a file up to an update; a line that a killed run left incomplete is dropped."""
        if not updates or not path.exists():
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        first = [line.partition(",")[0] for line in lines]
        # A line that does not start with a number is the remains of a power cut.
        kept = [line for line, n in zip(lines[1:], first[1:]) if n.isascii() and n.isdigit() and int(n) <= updates]
        return [f"{line}\n" for line in lines[:1] + kept]

    def point(self, update: int, epoch: int, row: Dict[str, float]) -> None:
        """Write one line of curve.csv: a validation inside an epoch."""
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

    def step(self, update: int, epoch: int, loss: float, lr: float) -> None:
        """Write one line of steps.csv and one point of the events."""
        if not self.active:
            return
        self._steps.write(f"{update},{epoch},{cell(loss)},{cell(lr)}\n")
        self._steps.flush()
        if self._events is not None:
            self._events.add_scalar("step/loss", loss, update)
            self._events.add_scalar("step/lr", lr, update)

    def epoch(self, row: Dict[str, Any]) -> None:
        """Write one row of log.csv: epoch, updates, numbers."""
        self.rows.append(row)
        if not self.active:
            return
        self._write_log()
        if self._events is not None:
            for name, value in row.items():
                if isinstance(value, float) and name != "seconds":
                    self._events.add_scalar(f"epoch/{name}", value, row["updates"])

    def _write_log(self):
        names = list(dict.fromkeys(name for row in self.rows for name in row)) or ["epoch"]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([[cell(row.get(name)) for name in names] for row in self.rows])
        with files.atomic(self.folder / "log.csv") as file:
            file.write(text.getvalue())

    def curves(self, metrics: Iterable[str]) -> None:
        """Draw curves.png: the losses, the metrics and the learning rate over the epochs; a note without matplotlib."""
        if not self.active or not self.rows:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                import matplotlib

                matplotlib.use("Agg")
                from matplotlib import pyplot
            except ImportError:  # a run of hours must not fail for its picture
                print("note: curves.png is not drawn: pip install matplotlib", file=sys.stderr)
                return
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

    def close(self) -> None:
        """Flush and close."""
        for handle in (self._steps, self._events):
            if handle is not None:
                handle.close()
