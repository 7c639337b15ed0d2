"""``infer.py --localize``: a map file beside the results for each picture, and what it shows as columns."""

import collections
import dataclasses
import io
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Tuple, TypeVar

from .. import cli, files, images
from ..datasets.map_names import MapNames
from ..detector import Detector, Localizer
from ..errors import UserError
from ..parallel import in_order
from ..records import Record, number

FOLDER = "maps"
COLUMNS = ("area", "where", "local_score")
WORDS = {
    "mostly": "mostly or wholly generated", "partly": "partly generated", "none": "without a generated region",
    "unsure": "with too little evidence",
}  # fmt: skip
FAST = 3  # zlib's level: a map is smooth, so that more effort hardly makes it smaller
AnyRecord = TypeVar("AnyRecord", bound=Record)


def cells(record: Record) -> List[str]:
    """The cells of :data:`COLUMNS` of a row; empty without a map, ``where`` empty without a region."""
    found = record.local
    if found is None:
        return [""] * len(COLUMNS)
    where = " ".join(map(str, found["where"] or ()))
    return [number(found["area"]), where, number(found["score"])]


def check(args: Any, screen: bool) -> None:
    """Refuse options that do not go together with ``--localize``.

    Parameters
    ----------
    args : argparse.Namespace
        The options of ``infer.py``.
    screen : bool
        Whether the answer goes to the screen.

    Raises
    ------
    UserError
    """
    if not args.localize:
        if args.localizer is not None:
            raise UserError(f"--localizer {args.localizer!r} goes with --localize")
        return
    if screen:
        raise UserError("--localize writes maps; add --out DIR")
    if args.engine != "single":
        raise UserError(f"--localize does not run with --engine {args.engine}; divide the images with --shard I/N")


def refuse_inside(out: Path, pictures: str) -> None:
    """Raise :class:`UserError` for a folder ``out`` of results in the folder ``pictures``: its maps are image files."""
    folder, place = Path(pictures), out.resolve()
    if folder.is_dir() and (place == folder.resolve() or folder.resolve() in place.parents):
        raise UserError(f"--out {str(out)!r} lies inside --images; the maps would be taken for pictures next time")


def opened(args: Any) -> Localizer:
    """The localizer that the options describe; its messages are printed on stderr."""
    names = "backend device max_pixels truncated".split()
    # One thread a picture: several pictures are looked at side by side.
    return Localizer(args.localizer, say=cli.to_stderr, workers=1, **{name: getattr(args, name) for name in names})


def facts(localizer: Localizer) -> Dict[str, Any]:
    """What the maps of a run depend on besides the images, for the journal's header and ``run.json``."""
    own = localizer.settings
    return {
        "name": localizer.path.stem,
        "sha256": localizer.identity,
        "backend": localizer.backend_name,
        "threshold": own.threshold,
        "min_area": own.min_area,
        "grid": own.grid,
        "tile": own.tile,
        "pooling": dict(own.pooling),
        "background": own.background and dict(own.background),
        "calibration": [localizer.scale, localizer.offset],
        "evidence": dataclasses.asdict(localizer.evidence),
    }


class Maps:
    """Writes the maps of a run, and notes in its rows what they show.

    Parameters
    ----------
    localizer : aidet.Localizer
    out : Path
        Folder of the results; the maps go to ``maps`` in it.
    paths : iterable of str
        The pictures of all rows, those of other shards, too: a file must have the same name whoever writes it.
    """

    def __init__(self, localizer: Localizer, out: Path, paths: Iterable[str]) -> None:
        self.localizer, self.folder, self.names = localizer, Path(out) / FOLDER, MapNames(paths)

    def stream(self, detector: Detector, items: Iterable[Tuple[str, Any]]) -> Iterator[Record]:
        """Score pictures and write their maps, a row for each in their order.

        The verdicts are those of ``detector.stream``: it and the localizer read each file for themselves.

        Parameters
        ----------
        detector : aidet.Detector
        items : iterable of (str, source)
            See :meth:`aidet.Detector.stream`.
        """
        waiting: collections.deque = collections.deque()

        def noted():
            for item in items:
                waiting.append(item[1])
                yield item

        pairs = ((record, waiting.popleft()) for record in detector.stream(noted()))
        if not self.localizer.threadsafe:
            yield from map(self.add, pairs)
            return
        yield from in_order(self.add, pairs, detector.workers)

    def add(self, pair: Tuple[AnyRecord, Any]) -> AnyRecord:
        """Write the map of one picture; a row without one keeps no map of an earlier run."""
        record, source = pair
        path = self.folder / self.names(record.path)
        found = None
        if record.ok:
            try:
                found = self.localizer.localize(source)
            except images.ImageError as error:
                record.note = "; ".join(filter(None, (record.note, f"no map: {error}")))
        if found is None:
            if path.is_file():
                path.unlink()
            return record
        data = io.BytesIO()
        found.picture().save(data, "PNG", compress_level=FAST)
        with files.atomic(path, "wb") as file:
            file.write(data.getbuffer())
        record.local = found.to_dict()
        return record


def summary(rows: Iterable[Record], out: Path) -> str:
    """One line: pictures by what was found in them, and where the maps are."""
    counts = collections.Counter(r.local["found"] for r in rows if r.local is not None)
    said = ", ".join(f"{counts[name]} {words}" for name, words in WORDS.items() if counts[name])
    return f"localized: {said or 'none'}; maps in {Path(out) / FOLDER}"
