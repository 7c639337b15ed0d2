"""Shared by the command lines: exit codes, one-line errors, the argument parser."""

import argparse
import atexit
import collections
import contextlib
import difflib
import errno
import importlib.util
import os
import re
import signal
import sys
import threading
from typing import Any, Callable, Dict, Iterable, Iterator, List, NoReturn, Optional, Sequence

from .errors import UserError, nearest

OK, WRONG, PARTIAL, STOPPED = 0, 2, 3, 130
MAX_LINE = 4000
REASONS = 8  # of unusable inputs, in a summary
# Failures of the environment: no space, no permission, a folder that no longer exists.
ENVIRONMENT = {
    getattr(errno, name)
    for name in "ENOSPC EDQUOT EFBIG EROFS EIO EACCES EPERM ENOENT ENOTDIR EISDIR ENAMETOOLONG EMFILE ENFILE".split()
    if hasattr(errno, name)
}


# What pyproject.toml requires, and what its extra `onnx` adds for reports and audits, by the name that is imported.
REQUIRED = {
    "numpy": "numpy", "PIL": "pillow", "yaml": "pyyaml", "tqdm": "tqdm", "sklearn": "scikit-learn", "scipy": "scipy",
    "matplotlib": "matplotlib", "jinja2": "jinja2", "imagehash": "imagehash",
}  # fmt: skip


# How a script is called in the repository; not what is part of a path or is quoted.
_CALL = re.compile(
    r"(?<![\w/\\.'-])(?:python\s+)?(train|infer|evaluate|export|app)\.py\b|python -m (?:aidet\.)?(xihe|convert)\b"
)
_installed = False


@contextlib.contextmanager
def installed_command() -> Iterator[None]:
    """While the console command ``aidet`` runs, its texts name the commands as it does: ``aidet infer``."""
    global _installed
    before, _installed = _installed, True
    try:
        yield
    finally:
        _installed = before


def as_called(text: str) -> str:
    """A text for the user, in which ``python infer.py`` or ``infer.py`` is ``aidet infer`` if that was called."""
    return _CALL.sub(lambda m: f"aidet {m.group(1) or m.group(2)}", text) if _installed else text


def plain(docstring: str) -> str:
    """A docstring as text for the terminal: without the double backquotes of reStructuredText."""
    return docstring.replace("``", "")


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are a one-line :class:`UserError` with the nearest valid name.

    A docstring given as ``description`` keeps its lines. The help names the commands as this one was called, see
    :func:`as_called`. In an option ``_`` and ``-`` are the same.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        if options.get("prog"):
            options["prog"] = as_called(options["prog"])
        super().__init__(*args, **options)

    def format_help(self) -> str:
        """As in argparse; the text names the commands as this one was called."""
        return as_called(plain(super().format_help()))

    def parse_known_args(  # type: ignore[override]
        self, args: Optional[Sequence[str]] = None, namespace: Any = None
    ) -> Any:
        """As in argparse; an option that is written with ``_`` for ``-``, as in ``train.py``, is the same."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._hyphened(word) for word in words], namespace)

    def _hyphened(self, word: str) -> str:
        name, equals, value = word.partition("=")
        plain = name.replace("_", "-")
        known = self._option_string_actions
        return plain + equals + value if name not in known and plain in known and name.startswith("--") else word

    def parse_args(  # type: ignore[override]  # the overloads of typeshed
        self, args: Optional[Sequence[str]] = None, namespace: Any = None
    ) -> Any:
        """As in argparse; an unknown option is compared with the options of the given sub-command."""
        found, unknown = self.parse_known_args(args, namespace)
        self._refuse(found, unknown)
        return found

    def parse_intermixed_args(  # type: ignore[override]
        self, args: Optional[Sequence[str]] = None, namespace: Any = None
    ) -> Any:
        """As :meth:`parse_args`, with positional arguments among the options."""
        found, unknown = self.parse_known_intermixed_args(args, namespace)
        self._refuse(found, unknown)
        return found

    def _refuse(self, found: argparse.Namespace, unknown: Sequence[str]) -> None:
        if unknown:
            raise UserError(nearest(unknown[0].partition("=")[0], self._of_command(found).flags(), "argument"))

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        more = f"; see {self.prog} --help" if "arguments are required" in message else ""
        raise UserError(message + more)

    def flags(self) -> List[str]:
        """All option names."""
        return sorted({f for a in self._actions for f in a.option_strings})

    def _of_command(self, found: argparse.Namespace) -> "Parser":
        """The parser of the sub-command in ``found``, or this one."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return action.choices.get(getattr(found, action.dest, ""), self)
        return self


def main(run: Callable[[List[str]], Optional[int]], argv: Optional[List[str]] = None) -> NoReturn:
    """Run a command and exit with the documented exit code.

    Parameters
    ----------
    run : callable
        Takes the argument list, returns an exit code or None (0).
    argv : list of str, optional
        Defaults to ``sys.argv[1:]``.

    Notes
    -----
    0: success; 2: a wrong argument or configuration, or a missing file, reported in one line on stderr; 3: finished,
    but some inputs could not be used; 130: stopped by Ctrl-C. A full disk, a vanished folder or lack of memory is also
    reported in one line (2). Anything else is a bug and keeps its traceback.
    """
    if argv is None:
        _stop_on_sigterm()
    if not (sys.stderr and sys.stderr.isatty()):
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # in a log file a progress bar prints a line now and then
    try:
        code = run(sys.argv[1:] if argv is None else argv) or OK
        if argv is None and threading.current_thread() is threading.main_thread():
            # Everything is written: Ctrl-C while the interpreter exits would turn this into a silent failure.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except UserError as error:
        code = _wrong(str(error))
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in REQUIRED:
            raise
        code = _wrong(_missing(name))
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        code = STOPPED
        if argv is None and any(name.startswith("mindspore.") for name in sys.modules):
            _leave_at_once()
    except BrokenPipeError:
        # The reader of the output has gone (`| head`): not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OK
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            raise
        what = f" ({error.filename})" if error.filename else ""
        code = _wrong(f"{error.strerror}{what}; fix that and run again (what was written before is complete)")
    except MemoryError as error:
        code = _wrong(f"not enough memory ({error or 'no more given'}); close other programs or take smaller batches")
    sys.exit(code)


def _missing(name: str) -> str:
    return (
        f"the package {REQUIRED[name]} is not installed in this Python, {sys.executable}; in a clone run `make setup`, "
        "then use .venv/bin/python; elsewhere: pip install 'aidet[onnx]'"
    )


def require(*names: str) -> None:
    """Raise :class:`UserError` if a package of :data:`REQUIRED` is missing: before the work, not at its end."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(_missing(name))


def _stop_on_sigterm() -> None:
    """Treat SIGTERM like Ctrl-C, so that temporary files are removed and child processes are told.

    While MindSpore compiles or runs a graph, it turns SIGINT into SIGTERM for its own process, which by default dies
    silently. In a group of processes SIGTERM keeps that default: a process that waits for a dead one must not linger.
    """
    several = any(os.environ.get(n, "") not in ("", "0", "1") for n in ("MS_WORKER_NUM", "RANK_SIZE"))
    if several or threading.current_thread() is not threading.main_thread():
        return

    def stop(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def _leave_at_once() -> NoReturn:
    """Exit without the interpreter's shutdown, during which an interrupted MindSpore (or its import) would abort."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    atexit._run_exitfuncs()
    os._exit(STOPPED)


def refuse_misspelt(words: Sequence[str], commands: Iterable[str]) -> None:
    """Refuse a first word that is nearly the name of a sub-command, where any other word is the name of a file.

    Parameters
    ----------
    words : sequence of str
        The arguments.
    commands : iterable of str

    Raises
    ------
    UserError
        With the nearest sub-command. A file or folder of that name is meant as such.
    """
    near = difflib.get_close_matches(words[0], list(commands), n=1, cutoff=0.75) if words else []
    if near and words[0] not in commands and not os.path.exists(words[0]):
        raise UserError(f"{words[0]!r} is neither a file nor a sub-command; did you mean {near[0]!r}?")


def pixels(text: str) -> int:
    """A number of pixels as written on a command line: ``200000000`` or ``200M`` (megapixels).

    Raises
    ------
    argparse.ArgumentTypeError
    """
    number, unit = (text[:-1], 1e6) if text[-1:] in ("M", "m") else (text, 1)
    try:
        value = int(float(number) * unit)
    except (ValueError, OverflowError):
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of pixels, for example 200M for 200 megapixels")
    return value


def add_reading(parser: Any, default: int = 120_000_000) -> None:
    """Add ``--max-pixels`` and ``--truncated``, the options of :class:`aidet.images.Reading`.

    Parameters
    ----------
    parser : argparse.ArgumentParser or group
    default : int
        Pixels.
    """
    parser.add_argument(
        "--max-pixels",
        type=pixels,
        default=default,
        metavar="N",
        help=f"refuse larger images, which take much memory; 200M is 200 megapixels (default {default // 1_000_000}M)",
    )
    parser.add_argument(
        "--truncated",
        default="error",
        metavar="error|score",
        help="a file whose end is missing: an error, or score what is there, with a note in its row",
    )


# Options of a detector, with the same name, meaning and text in every command that takes them.
_DETECTOR: Dict[str, Dict[str, Any]] = {
    "ckpt": {
        "action": "append",
        "metavar": "A.ckpt",
        "help": "detector: a checkpoint with its sidecar, or an exported .onnx; several are fused (default: "
        "aidet_default, which comes with AIDet)",
    },
    "votes": {"type": int, "metavar": "N", "help": "views of each image (default: the sidecar's, else 1)"},
    "vote": {"default": "soft", "metavar": "soft|hard", "help": "mean of probabilities, or share of votes"},
    "views": {
        "metavar": "random|native|grid|pyramid|five|LINE",
        "help": "how views are made: by the sidecar's line with random draws; random crops of native pixels; a grid of "
        "such crops; grids at two sizes of the image; crops of the centre and the corners; or a line of your own "
        "(default: the sidecar's, else random)",
    },
    "fuse": {"default": "soft", "metavar": "soft|hard|soft-or|score|FILE.yaml", "help": "how models are fused"},
    "threshold": {"type": float, "help": "generated above this probability (default: the sidecar's, else 0.5)"},
    "operating-point": {
        "metavar": "NAME",
        "help": "few-false-alarms, balanced or few-misses: the threshold that the detector states for this purpose "
        "(default: the one that its sidecar chooses)",
    },
    "unsure": {
        "metavar": "LOW,HIGH|none",
        "help": "range of probabilities in which the decision is 'unsure' (default: around the threshold; 0.378,0.622 "
        "for 0.5)",
    },
    "seed": {"type": int, "default": 42, "help": "seed of all random draws (default 42)"},
    "positive": {
        "metavar": "NAME[,NAME...]",
        "help": "classes (or their numbers) that mean generated, if the sidecar does not say",
    },
    "real": {
        "metavar": "NAME[,NAME...]",
        "help": "classes (or their numbers) that mean real, if the sidecar does not say",
    },
    "transform": {"metavar": "LINE", "help": "the pipeline that makes the input of an .onnx from elsewhere"},
    "backend": {"default": "auto", "metavar": "auto|onnxruntime|openvino|mindspore"},
    "precision": {
        "metavar": "float32|bfloat16|int8",
        "help": "precision of the network (default: float32, or what an exported file is for); bfloat16 needs openvino "
        "and a processor that has it",
    },
    "device": {"default": "auto", "metavar": "auto|Ascend|GPU|CPU"},
    "workers": {"type": int, "metavar": "N", "help": "threads (default: the CPUs this process may use)"},
}


def add_detector(parser: Any, *names: str) -> None:
    """Add the options ``names`` of a detector; they have one name, type, default and text in every command.

    Parameters
    ----------
    parser : argparse.ArgumentParser or group
    *names : str
        Among ``ckpt votes vote views fuse threshold operating-point unsure seed positive real transform backend
        precision device workers``.
    """
    for name in names:
        parser.add_argument(f"--{name}", **_DETECTOR[name])


def to_stderr(line: str) -> None:
    """Print a line for the user on stderr; command lines pass this as ``say``."""
    print(line, file=sys.stderr)


def printable(text: str) -> str:
    """Text from a file, or its name, for the terminal: control characters are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def by_reason(reasons: Iterable[str]) -> str:
    """How many inputs could not be used for each reason: ``3 no such file; 1 empty file``, most frequent first.

    Parameters
    ----------
    reasons : iterable of str
        One per input; a leading ``error: `` and what is in brackets do not count.
    """
    plain = (re.sub(r"\s*\([^()]*\)|^error: |\d+x\d+ pixels, ", "", reason) for reason in reasons)
    counts = collections.Counter(plain).most_common()
    more = sum(n for _, n in counts[REASONS:])
    shown = [f"{n} {printable(reason)}" for reason, n in counts[:REASONS]]
    return "; ".join(shown + ([f"{more} for other reasons"] if more else []))


def _wrong(text: str) -> int:
    """Print an error as one line, even if a name taken from a file contains line breaks; gives the exit code."""
    text = printable(" ".join(text.split("\n")))
    print("error: " + (text if len(text) < MAX_LINE else text[:MAX_LINE] + " ..."), file=sys.stderr)
    return WRONG
