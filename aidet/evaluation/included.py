"""Results of ``sweep``, ``transfer`` and ``localize`` for the report of ``evaluate.py score --include``."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from .. import files, report
from ..errors import UserError
from . import localize_page, sweep, transfer

KINDS = {
    "localize": ("Localisation", localize_page.sections), "sweep": ("Robustness", sweep.sections),
    "transfer": ("Transfer", transfer.sections),
}  # fmt: skip


def read(
    places: Optional[Sequence[str]], run: Optional[Dict[str, Any]] = None
) -> Tuple[List[report.Section], List[str], Dict[str, Path]]:
    """Report sections for the results of ``evaluate.py localize``, ``sweep`` and ``transfer``.

    Parameters
    ----------
    places : list of str, optional
        The ``--out`` folders of those commands, or the ``metrics.json`` files in them.
    run : dict, optional
        ``run.json`` of the scores, see :func:`aidet.runinfo.read`. Results of weights that it does not list give a
        warning.

    Returns
    -------
    (list of Section, list of str, dict of str to Path)
        Sections, warnings, and the files they were read from.

    Raises
    ------
    UserError
        The file does not exist, or was written by neither command.
    """
    sections, warnings = [], []
    inputs: Dict[str, Any] = {}
    for place in places or ():
        path = Path(place) / "metrics.json" if Path(place).is_dir() else Path(place)
        result = files.read_json(path, "--include")
        try:
            title, make = KINDS[result["command"]]
            made, used = make(result), result["inputs"]
            weights = {v["path"]: v["sha256"] for k, v in used.items() if k.startswith(("checkpoint", "model "))}
        except (KeyError, TypeError, AttributeError, IndexError, ValueError):
            raise UserError(f"--include {str(place)!r} is not a metrics.json of localize, sweep or transfer") from None
        for section in made:
            section.title = f"{title}: {section.title}"
        seen = ", ".join(sorted({v["path"] for k, v in used.items() if v["path"] not in weights}))
        weighed = f"{', '.join(weights)} on " if weights else ""
        made[0].texts.insert(0, f"From {path}: {weighed}{seen}, {result['n']} images.")
        sections += made
        inputs[f"included {len(inputs) + 1}"] = path
        known = {m["sha256"] for m in (run or {}).get("models", ())}
        others = [p for p, sha in weights.items() if known and sha not in known]
        if others and (result["command"] == "sweep" or len(others) == len(weights)):
            warnings.append(f"{title}: measured with {', '.join(others)}, not with the weights that made these scores.")
    return sections, warnings, inputs
