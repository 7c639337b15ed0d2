"""Recipes of published detectors: what their files do not say about architecture, preprocessing and labels.

A recipe is one small data file, ``convert/detectors/NAME.yaml``. It is found by its name, by the hub id of the
detector, or as a file of the user's own (``--recipe my.yaml``); a new detector needs no code unless its network is
new.
"""

import collections
import difflib
import functools
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from aidet import labels
from aidet.errors import UserError, nearest

from . import COMMAND, hub, reading

FOLDER = Path(__file__).with_name("detectors")
# Names that transformers makes up for a classifier whose classes nobody named.
_UNNAMED = re.compile(r"LABEL_\d+")
_KINDS = {
    "arguments": dict, "voting": dict, "evidence": dict, "rename": dict, "whole": bool, "lora_alpha": float,
    "repositories": list, "parts": list, "classes": list, "order": list,
}  # fmt: skip
_PART_FIELDS = ("file", "what", "url", "prefix", "into", "key")


@dataclass(frozen=True)
class Part:
    """One of the files that a detector is made of.

    Attributes
    ----------
    file : str
        Its published name, or a glob pattern of it.
    what : str
        What it holds, for people.
    url : str
        Where it is published; empty: at the recipe's ``url``.
    prefix : str
        Only these keys belong to the detector, and lose the prefix.
    into : str
        Prefix that its keys are given, so that they fit the layout.
    key : str
        Name of the tensor in a file that holds one bare tensor.
    """

    file: str
    what: str = ""
    url: str = ""
    prefix: str = ""
    into: str = ""
    key: str = ""


@dataclass(frozen=True)
class Recipe:
    """A published detector.

    Attributes
    ----------
    name : str
    url : str
        Page or repository of its authors.
    repositories : tuple of str
        Its ids on the Hugging Face hub; all of them are the same network with the same labels.
    parts : tuple of Part
        Its files, if there is more to say than that there is one.
    architecture, layout : str or None
        As ``--arch`` and ``--layout``; None: detected.
    arguments : dict
        Arguments of the architecture that no file states.
    prefix : str
        Prefix of all keys that no other network has.
    rename : dict
        Regular expression of a key to what it becomes, for names that no layout has.
    whole : bool
        One file may hold what :attr:`parts` hold.
    transform : str or None
        The authors' evaluation pipeline; None: the preprocessor_config.json that comes with the weights.
    voting : dict
        ``votes``, ``views``, ``weights``, as in a sidecar; empty: one view.
    evidence : dict
        ``min_side``, ``min_detail``, as in a sidecar; empty: no rule on too little evidence.
    classes : tuple of str
        Name of every output.
    order : tuple of str
        ``real`` or ``generated`` for every output; empty: the names say it.
    licence, paper, published, notes : str
        The licence of the weights, the paper, the numbers that the authors state, and what else to know.
    refuse : str
        Why a photograph is no input of this detector; empty: it is one.
    unsupported : str
        Why it cannot be converted; empty: it can.
    lora_alpha : float or None
        alpha of LoRA adapters that no ``adapter_config.json`` states.
    """

    name: str
    url: str = ""
    repositories: Tuple[str, ...] = ()
    parts: Tuple[Part, ...] = ()
    architecture: Optional[str] = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    layout: Optional[str] = None
    prefix: str = ""
    rename: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False
    transform: Optional[str] = None
    voting: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    classes: Tuple[str, ...] = ()
    order: Tuple[str, ...] = ()
    licence: str = ""
    paper: str = ""
    published: str = ""
    notes: str = ""
    refuse: str = ""
    unsupported: str = ""
    lora_alpha: Optional[float] = None

    def read(self, paths: Sequence[Union[str, Path]], weights: Optional[str] = None) -> reading.Source:
        """Read the detector's files and give their tensors the names of its layout.

        Parameters
        ----------
        paths : sequence of str or Path
            One folder that holds all files, or the files themselves, in any order if their names are the published
            ones, else in the order of :attr:`parts`.
        weights : str, optional
            Which of several sets of weights in its one file to take; see :func:`.reading.read`.

        Returns
        -------
        convert.reading.Source

        Raises
        ------
        UserError
            A file is missing or cannot be read, or ``weights`` is given for several files or for a bare tensor.
        """
        one = self._one_file(paths)
        if weights is not None and (not one or any(part.key for part in self.parts)):
            raise UserError(f"--weights {weights} chooses among the sets of one file; {self.name} is {self.wanted()}")
        source = self._read_one(paths, weights) if one else self._read_all(paths)
        if self.rename:
            names = {key: self._renamed(key) for key in source.tensors}
            times = collections.Counter(names.values())
            double = next((key for key, name in names.items() if times[name] > 1), None)
            if double is not None:
                raise UserError(f"{source.files[0]}: {double!r} and another key are both {names[double]!r}")
            source.tensors = {names[key]: tensor for key, tensor in source.tensors.items()}
        return source

    def _one_file(self, paths):
        return len(self.parts) < 2 or (self.whole and len(paths) == 1 and Path(paths[0]).is_file())

    def _renamed(self, key):
        for pattern, name in self.rename.items():
            found = re.fullmatch(pattern, key)
            if found:
                return found.expand(name)
        return key

    def _read_all(self, paths):
        found = self._assigned([Path(p) for p in paths])
        tensors: Dict[str, reading.Tensor] = {}
        kinds, notes, files = [], [], []
        for part, path in zip(self.parts, found):
            source = _read_part(path, part)
            own = _renamed(source.tensors, part)
            double = own.keys() & tensors.keys()
            if double:
                raise UserError(f"{path}: {sorted(double)[0]!r} is in another file of {self.name} as well")
            tensors.update(own)
            files += source.files
            kinds.append(source.kind)
            notes.append(f"{len(own)} tensors of {path.name}" + (f" as {part.into}..." if part.into else ""))
        return reading.Source(tensors, files, " and ".join(dict.fromkeys(kinds)), notes=notes)

    def _read_one(self, paths, weights):
        if len(paths) != 1:
            raise UserError(f"{self.name} is one file or folder; {len(paths)} were given")
        path = Path(paths[0])
        part = self.parts[0] if len(self.parts) == 1 else None
        if part and path.is_dir() and part.file:
            path = _one(path, part, self)
        source = _read_part(path, part) if part and part.key else reading.read(path, weights)
        if part and (part.prefix or part.into):
            source.tensors = _renamed(source.tensors, part)
        if self.prefix and source.tensors and all(k.startswith(self.prefix) for k in source.tensors):
            source.tensors = {k[len(self.prefix) :]: t for k, t in source.tensors.items()}
            source.notes.append(f"took the prefix {self.prefix!r} off every key")
        return source

    def _assigned(self, paths):
        """The path of each part."""
        if len(paths) == 1 and paths[0].is_dir():
            return [_one(paths[0], part, self) for part in self.parts]
        if len(paths) != len(self.parts):
            raise UserError(
                f"{self.name} is made of {len(self.parts)} files, {len(paths)} given: {self.wanted()}; give a folder "
                "that holds them, or each with a --source of its own"
            )
        named = [[p for p in paths if p.match(part.file)] for part in self.parts]
        if all(len(n) == 1 for n in named) and len({n[0] for n in named}) == len(paths):
            return [n[0] for n in named]
        return list(paths)

    def wanted(self) -> str:
        """The files that the detector is made of and where they are published, for a message."""
        if not self.parts:
            return f"its weights ({self.url})"
        return "; ".join(
            f"{p.file}" + (f", {p.what}" if p.what else "") + f" ({p.url or self.url})" for p in self.parts
        )

    def named(
        self, names: Optional[Sequence[str]], positive: Optional[object], count: Optional[int]
    ) -> Tuple[Optional[List[str]], Optional[List[str]]]:
        """Class names and order of the converted file.

        Parameters
        ----------
        names : sequence of str or None
            The names in the file's own config.json.
        positive : object or None
            What the user said about the classes, which has precedence.
        count : int or None
            Number of outputs.

        Returns
        -------
        (list of str or None, list of str or None)

        Raises
        ------
        UserError
            The file has other classes than the recipe.
        """
        own = list(self.classes)
        if positive is not None or not own:
            return (list(names) if names else own or None), None
        real = [n for n in names or () if not _UNNAMED.fullmatch(str(n))]
        differ = real and [n.lower() for n in real] != [n.lower() for n in own]
        if differ or count != len(own):
            raise UserError(
                f"the file's classes ({', '.join(map(str, names or ())) or f'{count} outputs'}) are not those of the "
                f"recipe {self.name} ({', '.join(own)}): another revision of the detector? Say which class means "
                "generated with --positive, or convert without the recipe (--recipe none)"
            )
        shown = real or own
        return shown, list(self.order) or labels.class_order(shown)

    def entry(self, known: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
        """What is known about the source, as of :func:`.hub.locate`, with the recipe's preprocessing and licence."""
        own = {"transform": self.transform, "licence": self.licence}
        return {**(known or {}), **{k: v for k, v in own.items() if v}, "recipe": self.name}

    def describe(self, sidecar: Dict[str, Any]) -> Dict[str, Any]:
        """The sidecar with what the recipe knows.

        Parameters
        ----------
        sidecar : dict
            As made from the file alone.

        Returns
        -------
        dict
        """
        facts = ("name", "url", "paper", "published", "licence", "notes")
        own: Dict[str, Any] = {"recipe": {k: getattr(self, k) for k in facts if getattr(self, k)}}
        own.update({name: dict(getattr(self, name)) for name in ("voting", "evidence") if getattr(self, name)})
        given = dict(sidecar.get("input") or {})
        if self.refuse:
            given["refuse"] = self.refuse
        source = dict(sidecar.get("source") or {})
        source["licence"] = self.licence or source.get("licence")
        return {**sidecar, **own, "input": given, "source": source}


# --- finding one -----------------------------------------------------------------------------------------------------
def names() -> List[str]:
    """Names of all recipes, sorted."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


@functools.cache
def load(name: Union[str, Path]) -> Recipe:
    """A recipe by its name, or from a file of the user's own.

    Parameters
    ----------
    name : str or Path
        Name of a file in ``convert/detectors``, without ``.yaml``; or the path of a ``.yaml``.

    Returns
    -------
    Recipe

    Raises
    ------
    UserError
        Unknown name, or a field that is unknown, missing or of the wrong form.
    """
    import yaml

    path = Path(name) if str(name).endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        if path.parent != FOLDER:
            raise UserError(f"recipe {str(path)!r} does not exist")
        raise UserError(f"{nearest(name, names(), 'recipe')}; `{COMMAND} list` shows them all")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"recipe {path}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    return _checked(values, path)


def all_recipes() -> List[Recipe]:
    """All recipes, sorted by name."""
    return [load(n) for n in names()]


def of_repository(repository: str) -> Optional[Recipe]:
    """The recipe of a hub id, or None."""
    return next((r for r in all_recipes() if repository in r.repositories), None)


def resolve(
    src: str, recipe: Optional[str] = None, sources: Sequence[str] = ()
) -> Tuple[Optional[Recipe], List[Path], Optional[Dict[str, Any]]]:
    """What the user means: a recipe or none, and the files to read.

    Parameters
    ----------
    src : str
        A path, ``pypi:PACKAGE``, a hub id, or the name of a recipe.
    recipe : str, optional
        ``--recipe``: name or file of a recipe; ``none``: convert without one.
    sources : sequence of str
        ``--source``: files, if ``src`` is the name of a recipe; further files, if it is the first of them.

    Returns
    -------
    (Recipe or None, list of Path, dict or None)
        The last as of :func:`.hub.locate`.
    """
    src, given = str(src), list(sources)
    chosen = load(recipe) if recipe not in (None, "none") else None
    if chosen is None and recipe is None and not Path(src).exists():
        chosen = load(src) if src in names() else of_repository(src)
        near = difflib.get_close_matches(src, names(), n=1, cutoff=0.8)
        if chosen is None and near:
            raise UserError(f"weights {src!r} do not exist; did you mean the recipe {near[0]!r}?")
    if chosen is None:
        if given:
            raise UserError(
                f"--source goes with the name of a recipe or with --recipe; {src!r} is none: `{COMMAND} list`"
            )
        path, entry = hub.locate(src)
        return None, [path], entry
    if chosen.unsupported:
        where = chosen.url or chosen.repositories[0]
        raise UserError(f"{chosen.name} ({where}) cannot be converted: {chosen.unsupported}")
    if src != chosen.name and src != recipe:
        given = [src, *given]
    if not given:
        if not chosen.repositories:
            raise UserError(
                f"the weights of {chosen.name} are not on the hub: fetch {chosen.wanted()} and name it with --source"
            )
        given = [chosen.repositories[0]]
    located = [hub.locate(g, [p.file for p in chosen.parts]) for g in given]
    entry = next((e for _, e in located if e), None)
    return chosen, [path for path, _ in located], entry


# --- reading one -----------------------------------------------------------------------------------------------------
def _one(folder, part, recipe):
    found = sorted(p for p in folder.rglob(part.file) if p.is_file())
    if len(found) != 1:
        raise UserError(
            f"folder {str(folder)!r} holds {len(found)} files {part.file!r}, which {recipe.name} needs "
            f"({part.what or 'its weights'}); fetch it from {part.url or recipe.url}, or name the files with --source"
        )
    return found[0]


def _read_part(path, part):
    if part.key:
        return reading.read_bare(path, part.key)
    return reading.read(path)


def _renamed(tensors, part):
    if not part.prefix:
        return {part.into + k: t for k, t in tensors.items()}
    return {part.into + k[len(part.prefix) :]: t for k, t in tensors.items() if k.startswith(part.prefix)}


def _checked(values, path):
    """A recipe from the content of a file."""

    def wrong(text):
        return UserError(f"recipe {path}: {text}")

    if not isinstance(values, dict):
        raise wrong(f"holds a {type(values).__name__}, not fields")
    known = [f.name for f in fields(Recipe)]
    for key, value in values.items():
        if key not in known:
            raise wrong(nearest(key, known, "field"))
        kind = _KINDS.get(key, str)
        if kind is float and type(value) is int:
            continue
        if not isinstance(value, kind):
            raise wrong(f"{key} (={value!r}) must be a {kind.__name__}")
    if values.get("name") != path.stem:
        raise wrong(f"name (={values.get('name')!r}) must be that of the file, {path.stem!r}")
    if "/" in path.stem or not (values.get("url") or values.get("repositories")):
        raise wrong("needs the url of its authors, or repositories")
    for key in ("classes", "order", "repositories"):
        if any(not isinstance(v, str) for v in values.get(key, ())):
            raise wrong(f"{key} (={values[key]!r}) must be texts; put quotes around numbers and yes or no")
    order = values.get("order") or ()
    if order and (set(order) - set(labels.NAMES) or len(order) != len(values.get("classes") or ())):
        raise wrong(f"order (={list(order)}) must say real or generated for each of classes")
    if values.get("classes") and not order:
        try:
            labels.class_order(values["classes"])
        except UserError as error:
            raise wrong(f"{error}; or write an order") from None
    if values.get("transform"):
        from aidet.images import Pipeline

        try:
            Pipeline(values["transform"])
        except UserError as error:
            raise wrong(str(error)) from None
    for pattern, name in values.get("rename", {}).items():
        try:
            if not isinstance(name, str):
                raise re.error("a replacement must be a text")
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise wrong(f"rename {pattern!r}: {error}") from None
    parts = []
    for part in values.get("parts", ()):
        part = {"file": part} if isinstance(part, str) else part
        if not isinstance(part, dict) or not part.get("file") or any(not isinstance(v, str) for v in part.values()):
            raise wrong(f"a part (={part!r}) must be a file name, or have file and texts")
        for key in part:
            if key not in _PART_FIELDS:
                raise wrong(nearest(key, _PART_FIELDS, "field of a part"))
        parts.append(Part(**part))
    extra = {k: tuple(values[k]) for k in ("classes", "order", "repositories") if k in values}
    return Recipe(**{**values, **extra, "parts": tuple(parts)})
