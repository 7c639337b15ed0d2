"""Reading a configuration: YAML files, the command line, and the class that holds every key.

Names, meaning and defaults of MindCV's keys are those of MindCV's ``config.py`` (mindspore-lab/mindcv at 51b0636), so
that its YAML files load unchanged. Only the standard library and PyYAML are used: reading a configuration imports no
framework.
"""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Collection, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Union

import yaml

from ..errors import UserError, _shown, nearest
from ..files import SHIPPED, read_mapping
from .keys import _OLD_VALUES, ALIASES, DROPPED, GROUPS, PLATFORM, PRETRAINING, SCHEMA, _bool, _label
from .profiles import Profile, read_overlay

PROFILE = "profile"  # on the command line only: a written configuration has the overlay's keys in it


class Config:
    """A checked configuration: every key of :data:`SCHEMA` as an attribute.

    Parameters
    ----------
    values : dict
        Values by key; a missing key takes its default.

    Attributes
    ----------
    given : set of str
        Keys that the file or the command line set.
    source : str or None
        The file.
    dropped : list of str
        Keys of :data:`DROPPED` that the file, the overlay or the command line set.
    profile : Profile or None
        The overlay that was applied to the file.
    """

    def __init__(self, values: Optional[Mapping[str, Any]] = None, source: Optional[str] = None) -> None:
        values = dict(values or {})
        self.source = source
        self.profile: Optional[Profile] = None
        self.given: Set[str] = set()
        self.dropped: List[str] = [name for name, value in values.items() if name in DROPPED and value is not True]
        _refuse_pretraining(values)
        for name, value in _renamed(values).items():
            if name not in SCHEMA:
                raise UserError(nearest(name, [*SCHEMA, *ALIASES], "key"))
            setattr(self, name, SCHEMA[name].convert(name, value))
            self.given.add(name)
        for name, key in SCHEMA.items():
            if name not in self.given:
                default = key.default
                setattr(self, name, default.copy() if isinstance(default, (list, dict)) else default)
        self._settle()

    if TYPE_CHECKING:  # the keys of the schema, which __init__ sets

        def __getattr__(self, name: str) -> Any: ...

    def _settle(self):
        if self.ckpt_path and not self.resume_opt and not self.init_from:
            self.init_from = self.ckpt_path
        if self.ckpt_path and self.resume_opt and not self.resume:
            self.resume = self.ckpt_path
        if not self.metrics:
            raise UserError("metrics (=[]) must name at least one")
        if self.monitor is None:
            self.monitor = self.metrics[0]

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def as_dict(self) -> Dict[str, Any]:
        """Every key with its value, in the order of the schema."""
        return {name: getattr(self, name) for name in SCHEMA}

    def to_yaml(self, only_given: bool = False) -> str:
        """The configuration as YAML text, grouped as MindCV groups it; loads back to an equal one."""
        lines = []
        for group, keys in GROUPS.items():
            part = [n for n in keys if not only_given or n in self.given]
            lines += ["", f"# {group}", *(_line(n, getattr(self, n)) for n in part)] if part else []
        return "\n".join(lines[1:]) + "\n"


def _refuse_pretraining(values):
    """A recipe for pretraining has several keys and values that are unknown here: say once what it is."""
    model = values.get("model")
    found = [n for n in PRETRAINING if n in values]
    if isinstance(model, str) and model.endswith("_pretrain"):
        found.append("model")
    if found:
        raise UserError(
            f"{found[0]} (={_shown(values[found[0]])}) belongs to self-supervised pretraining (MAE, BEiT), which "
            "train.py does not do: it trains classifiers on labelled images. Pretrain with MindCV's own script, or use "
            "published weights, and give them as init_from to a recipe that finetunes (MindCV's mae_*_finetune)"
        )


def _line(name, value):
    """One key as one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return f"{name}: " + text.replace("\n...\n", "\n").strip()


def _renamed(values: Mapping[str, Any]) -> Dict[str, Any]:
    result = {}
    for name, value in values.items():
        target = ALIASES.get(name, name) if name not in SCHEMA else name
        if target is None or (name in ALIASES and value in (None, "")):
            continue
        try:
            value = _OLD_VALUES.get(name, lambda v: v)(value)
        except ValueError as error:
            raise UserError(f"{name} (={_shown(value)}) must be {error}") from None
        if name in ALIASES and target in values:
            # A key given by the user wins over what a platform adds to every command line.
            key, other = SCHEMA[target], values[target]
            if name not in PLATFORM and key.convert(name, value) != key.convert(target, other):
                raise UserError(
                    f"{name} (={_shown(value)}) is another name of {target} (={_shown(other)}); give one of them"
                )
            continue
        result[target] = value
    return result


def load(yaml_path: Optional[Union[str, Path]], overrides: Optional[Mapping[str, Any]] = None) -> Config:
    """Read and check a configuration.

    Parameters
    ----------
    yaml_path : str or Path or None
        A YAML mapping of keys; None for defaults only. Nothing in the file is executed. ``mindcv_cfg/NAME.yaml`` is
        also found where only the wheel is installed.
    overrides : dict, optional
        Values that override the file (from the command line). ``profile`` names an overlay, whose keys come between
        the two: those of ``FOLDER/PROFILE/NAME.yaml`` for ``FOLDER/NAME.yaml``.

    Returns
    -------
    Config

    Raises
    ------
    UserError
        Missing file or overlay, not a YAML mapping, an unknown key (the message names the nearest one), or a wrong
        value.

    Examples
    --------
    >>> load(None, {"lr": "1e-3", "scale": "0.2,1.0", "drop_overflow_update": "False"}).scale
    [0.2, 1.0]
    """
    given = dict(overrides or {})
    profile = given.pop(PROFILE, None)
    raw = {} if yaml_path is None else _read(Path(yaml_path))
    source = None if yaml_path is None else str(yaml_path)
    plain = Config(_merged(raw, given), source)
    if profile is None:
        return plain
    if yaml_path is None:
        raise UserError(f"--{PROFILE} {profile} needs the recipe that it changes: -c FILE")
    path, overlay = read_overlay(_found(Path(yaml_path)), str(profile))
    config = Config(_merged(raw, overlay, given), source)
    names = dict.fromkeys([*_renamed(overlay), *SCHEMA])  # those that follow from others come last
    own = {n: config[n] for n in names if n in SCHEMA and config[n] != plain[n]}
    config.profile = Profile(str(profile), str(path), own)
    return config


def _merged(*levels: Mapping[str, Any]) -> Dict[str, Any]:
    """The keys of all levels, of which a later one wins: the recipe, its overlay, the command line."""
    result: Dict[str, Any] = {}
    for level in levels:
        level = {**{name: value for name, value in level.items() if name in DROPPED}, **_renamed(level)}
        if level.get("ckpt_path"):
            # It stands for one of two keys, which an earlier level may have set.
            flag = {**result, **level}.get("resume_opt", False)
            result.pop("resume" if SCHEMA["resume_opt"].convert("resume_opt", flag) else "init_from", None)
        result.update(level)
    return result


def _found(path: Path) -> Path:
    """From a wheel, ``-c mindcv_cfg/demo.yaml`` works in any folder."""
    return SHIPPED / path if not path.exists() and not path.is_absolute() and (SHIPPED / path).is_file() else path


def _read(path: Path) -> Dict[str, Any]:
    path = _found(path)
    if not path.is_file():
        if path.is_dir():
            raise UserError(f"configuration {str(path)!r} is a folder")
        raise UserError(f"configuration {str(path)!r} does not exist{_recipes_like(path)}")
    return read_mapping(path)


def _recipes_like(path):
    """The end of a message: the file of nearly that name, beside it or among the recipes; else all that are there."""
    # A bare name means a recipe: the folder of a clone holds other YAML files.
    folders = [*([] if path.parent == Path(".") else [path.parent]), Path("mindcv_cfg"), SHIPPED / "mindcv_cfg"]
    there = {p.name: p for folder in reversed(folders) for p in sorted(folder.glob("*.y*ml"))}
    close = difflib.get_close_matches(path.name, there, n=1, cutoff=0.75)
    if close:
        return f"; did you mean {there[close[0]].as_posix()!r}?"
    return f"; known are {', '.join(sorted(there))}" if there else ""


def made_by(source: Optional[str], path: str) -> Optional[str]:
    """The command that makes a file or folder which a recipe needs, from the recipe's lines ``# Before: COMMAND``.

    Parameters
    ----------
    source : str or None
        The recipe, as in :attr:`Config.source`.
    path : str
        What is missing, as the recipe names it.
    """
    found = source and _found(Path(source))
    if not found or not found.is_file():
        return None
    lines = found.read_text(encoding="utf-8", errors="replace").splitlines()
    commands = [line.partition("# Before:")[2].strip() for line in lines if line.startswith("# Before:")]
    return next((command for command in commands if path in command.split()), None)


def parse_args(
    argv: Sequence[str], flags: Collection[str] = (), tolerate: Collection[str] = ()
) -> Tuple[Optional[str], Dict[str, Any], Set[str]]:
    """Split a command line into the configuration file, its overrides and plain flags.

    Parameters
    ----------
    argv : list of str
        ``-c FILE`` (or ``--config FILE``) and any number of ``--key value``, ``--key=value`` or, for booleans,
        ``--key`` and ``--no-key``; a list is written ``a,b`` or ``a b``. ``-`` and ``_`` are equivalent in a key.
        ``--profile NAME`` is among the overrides, see :func:`load`.
    flags : iterable of str
        Names without a value (``dry_run``).
    tolerate : iterable of str
        Unknown names to skip together with their value (added by a platform).

    Returns
    -------
    (str or None, dict, set of str)
        The file, the overrides, the flags found.

    Raises
    ------
    UserError
        Unknown flag, or one without its value.
    """
    path, overrides, found = None, {}, set()
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in ("-c", "--config") or word.startswith("--config="):
            path = word.partition("=")[2] or (rest.pop(0) if rest else None)
            if not path:
                raise UserError("-c needs the path of a configuration")
            continue
        if not word.startswith("--") or word == "--":
            raise UserError(f"unexpected argument {word!r}; write -c FILE and --key value")
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name in flags:
            found.add(name)
            continue
        negated = name.startswith("no_") and name[3:] in SCHEMA and SCHEMA[name[3:]].kind is _bool
        name = name[3:] if negated else name
        if name in PRETRAINING and name not in tolerate:
            _refuse_pretraining({name: value or (rest[0] if rest else "")})
        if name != PROFILE and name not in SCHEMA and name not in ALIASES and name not in tolerate:
            raise UserError(nearest(name, [*SCHEMA, *ALIASES, *flags, PROFILE], "flag"))
        key = SCHEMA.get(ALIASES.get(name, name) or "")
        values = [value] if equals else []
        while not equals and rest and not (rest[0].startswith("--") or rest[0] == "-c"):
            values.append(rest.pop(0))
        if negated:
            values = ["false"]
        elif not values and key is not None and key.kind is _bool:
            values = ["true"]
        if not values:
            raise UserError(f"--{name} needs a value" + (f" ({_label(key.kind)})" if key else ""))
        if name not in tolerate:
            overrides[name] = values[0] if len(values) == 1 else values
    return path, overrides, found


def help_text() -> str:
    """All keys with type, default and meaning, for ``--help``."""
    lines = []
    for group, keys in GROUPS.items():
        lines.append(f"\n{group}:")
        for name, key in keys.items():
            shown = "" if key.default in (None, {}, []) else f" [{key.default}]"
            lines.append(f"  --{name} {_label(key.kind)}{shown}\n        {key.text}")
    names = ", ".join(f"--{a} (as {t})" if t else f"--{a} (accepted)" for a, t in ALIASES.items())
    return "\n".join(lines) + f"\n\nother names: {names}"
