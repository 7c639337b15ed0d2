"""Scoring a Ray data set: a pool of processes that have the detector open, and images by their names."""

import io
import itertools
import os
import platform
import re
import warnings
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

from .. import __version__, runtime
from ..archives import is_address
from ..detector import Detector
from ..errors import UserError, first_line
from ..records import Record
from . import rows
from .cluster import PROTOBUF, ray

RETRIES = 10  # of a block whose process or machine was lost; an image that kills its process must not run for ever
SMALLEST, LARGEST = 16, 1024  # images of a block
BLOCKS = 256  # that each process gets in a large run


class Worker:
    """One process of the pool: it opens the detector once and then scores tables of names.

    Parameters
    ----------
    checkpoints : sequence of str
    options : dict
        Of :class:`aidet.Detector`.
    expected : dict
        :func:`facts` of the detector in the process that started the run.
    root : str, optional
        Folder that must be here, because the images lie in it.
    """

    def __init__(
        self, checkpoints: Sequence[str], options: Dict[str, Any], expected: Dict[str, Any], root: Optional[str] = None
    ) -> None:
        self._reason = ""
        if root is not None and not os.path.exists(root):
            self._reason = f"does not see {root!r}; the images must lie on a disk that all machines share"
            return
        try:
            self._detector = Detector(*checkpoints, **options)
        except Exception as error:  # noqa: BLE001 - Ray would start this process again and again
            self._reason = f"cannot open the detector: {first_line(error)}"
            return
        found = facts(self._detector)
        for name, value in expected.items():
            if found[name] != value:
                self._reason = f"has another {name} ({found[name]}, not {value}); install the same on all machines"

    def __call__(self, table: Any) -> Any:
        """Score one block.

        Parameters
        ----------
        table : pyarrow.Table
            Columns as :func:`score` describes them.

        Returns
        -------
        pyarrow.Table

        Raises
        ------
        UserError
            This machine lacks what the run needs.
        """
        if self._reason:
            raise UserError(f"the machine {platform.node()} {self._reason}")
        names = table.column("name" if "name" in table.column_names else "path")
        keys = [rows.text(name) for name in names.to_pylist()]
        if "bytes" in table.column_names:
            sources: List[Any] = [io.BytesIO(data or b"") for data in table.column("bytes").to_pylist()]
        else:
            sources = [rows.text(path) for path in table.column("path").to_pylist()]
        verdicts = list(self._detector.stream(zip(keys, sources)))
        form = rows.schema(self._detector.names, self._detector.stability, raw=_is_raw(names))
        return rows.to_table(verdicts, form, names.cast(form.field("path").type).combine_chunks())


def _is_raw(column: Any) -> bool:
    return "binary" in str(column.type)


def facts(detector: Detector) -> Dict[str, Any]:
    """What must be the same in all processes for the same scores: the models and what runs them."""
    return {
        "version of AIDet": __version__,
        "checkpoint": [m.identity for m in detector.models],
        "back end": [m.backend_name for m in detector.models],
    }


def score(
    dataset: Any,
    *checkpoints: Union[str, Path],
    workers: Optional[int] = None,
    root: Optional[str] = None,
    **options: Any,
) -> Any:
    """Score the images of a Ray data set.

    Parameters
    ----------
    dataset : ray.data.Dataset
        Column ``path``: a file, or an image in an archive (``FILE#ROW``, ``FILE#MEMBER``), as all workers find it.
        Instead of the file its content may be in a column ``bytes``, as ``ray.data.read_binary_files(...,
        include_paths=True)`` gives it. An optional column ``name`` is what the image is called in the result; random
        views are drawn by it. Default: the path.
    *checkpoints : str or Path
        As for :class:`aidet.Detector`; the files must be on all machines.
    workers : int, optional
        Processes that score, of one CPU each; default: one for each CPU of the cluster but one, which is left to the
        tasks that read the data set.
    root : str, optional
        A folder that all machines must have; one that lacks it ends the run.
    **options
        Of :class:`aidet.Detector`.

    Returns
    -------
    ray.data.Dataset
        Lazy: nothing is scored until it is consumed, for example by ``write_parquet``. One row for each image with the
        columns ``path``, ``score``, ``prob`` (in [0, 1]), ``label``, ``decision``, ``status``, ``score:MODEL`` and
        ``note`` and ``reason``, see :func:`aidet.distributed.schema`. An image that cannot be used is a row with its
        status. The order is that of ``dataset`` if its ``context.execution_options.preserve_order`` is set. A block
        whose process or machine was lost is scored again, at most :data:`RETRIES` times.

    Raises
    ------
    UserError
        Ray is missing, a checkpoint cannot be opened, or it would run on Ascend or a GPU.

    Examples
    --------
    >>> import ray
    >>> images = ray.data.read_binary_files("s3://bucket/images", include_paths=True)
    >>> aidet.distributed.score(images, "a.ckpt").write_parquet("s3://bucket/scores")
    """
    package = ray()
    detector = Detector(*checkpoints, **options)
    most = workers or max(1, int(package.cluster_resources().get("CPU", 1)) - 1)
    pool = package.data.ActorPoolStrategy(min_size=1, max_size=most)
    return _scored(dataset, detector, pool, root)


def _scored(dataset: Any, detector: Detector, pool: Any, root: Optional[str]) -> Any:
    if any(m.device != "CPU" for m in detector.models):
        raise UserError("the engine ray scores on CPUs; for Ascend and GPU use --shard, or give --device CPU")
    _, (paths, made) = detector.__reduce__()  # how it is opened again
    files = {name: _absolute(made[name]) for name in ("fuse", "cascade")}
    same = {**made, **files, "workers": 1, "device": "CPU", "say": None}
    # A worker may need MindSpore for MindRecord files, or to make a graph that is kept on another machine only.
    mindspore = runtime.mindspore_version() is not None
    with warnings.catch_warnings():
        # The limit of retries has no other place yet, and passing it here is announced to end with Ray 2.64.
        warnings.simplefilter("ignore")
        return dataset.map_batches(
            Worker,
            fn_constructor_args=([_absolute(path) for path in paths], same, facts(detector), root),
            batch_size=None,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=1,
            runtime_env={"env_vars": dict([PROTOBUF])} if mindspore else None,
            udf_modifying_row_count=False,
            max_task_retries=RETRIES,
        )


def _absolute(path: Any) -> Any:
    """A path of this machine for processes that run in another folder; anything else as it is."""
    there = isinstance(path, (str, os.PathLike)) and os.path.exists(path)
    return os.path.join(os.getcwd(), path) if there else path


def block_size(total: int, workers: int) -> int:
    """Images of a block: few enough that all processes have work to the end, enough that blocks cost little."""
    even = -(-total // workers)
    return max(1, min(even, max(SMALLEST, min(LARGEST, -(-total // (workers * BLOCKS))))))


def stream(
    items: Iterable[Tuple[str, str]], total: int, detector: Detector, workers: int, root: Optional[str] = None
) -> Iterator[Record]:
    """Score images on the cluster to which this process is connected.

    Parameters
    ----------
    items : iterable of (str, str)
        Name and path of each image.
    total : int
        Their number.
    detector : aidet.Detector
    workers : int
        Processes that score.
    root : str, optional
        See :func:`score`.

    Yields
    ------
    aidet.records.Record
        One for each image, in their order.

    Raises
    ------
    UserError
        As for :func:`score`; or Ray gave up.
    """
    package, arrow = ray(), rows.pyarrow()
    items, size, here = iter(items), block_size(total, workers), os.getcwd()
    blocks = []
    for part in iter(lambda: list(itertools.islice(items, size)), []):
        names = [rows.packed(name) for name, _ in part]
        paths = [rows.packed(path if is_address(path) else os.path.join(here, path)) for _, path in part]
        table = arrow.table({"name": arrow.array(names, arrow.binary()), "path": arrow.array(paths, arrow.binary())})
        blocks.append(package.put(table))
    if not blocks:
        return
    dataset = package.data.from_arrow_refs(blocks)
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    pool = package.data.ActorPoolStrategy(size=workers)  # all at once: no other task needs a CPU
    scored = _scored(dataset, detector, pool, None if is_address(root) else _absolute(root))
    try:
        for table in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from rows.from_table(table)
    except package.exceptions.RayError as error:
        raise UserError(_why(error)) from error


def _why(error: BaseException) -> str:
    """Why Ray gave up, as one line: a worker's own :class:`UserError`, which comes as the text of its traceback."""
    text = f"{getattr(error, 'traceback_str', '')}\n{error}"
    known = re.findall(r"UserError: (.+)", text)
    if known:
        return known[-1]
    last = (text.strip().splitlines() or [type(error).__name__])[-1]
    return f"Ray gave up: {last[:300]}; rows that were finished are kept, --resume continues"
