"""Errors a user can cause, and helpers for their messages."""

import difflib
import inspect
import reprlib
from typing import Any, Callable, Iterable, Optional


def _shown(value: object) -> str:
    """A value as text for a message: short, however deep or long it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # a number with more digits than Python prints
        return f"a {type(value).__name__}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 3, 8, 8


class UserError(Exception):
    """A wrong argument, configuration or file: one clear line, exit code 2, nothing written.

    The message names the value and the remedy. The command lines print it through :func:`aidet.cli.main`.
    """


def nearest(name: object, choices: Iterable[object], what: str = "name") -> str:
    """One sentence that suggests the nearest valid choice, or lists the choices.

    Parameters
    ----------
    name : str
        What the user wrote.
    choices : iterable of str
        What would have been valid.
    what : str
        What kind of thing it is ("key", "architecture", ...).

    Returns
    -------
    str
        For example ``unknown key 'epochsize'; did you mean 'epoch_size'?``; if nothing is near, the first 30 choices
        are listed instead.
    """
    valid = sorted(map(str, choices))
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.6)
    if close:
        return f"unknown {what} {str(name)!r}; did you mean {close[0]!r}?"
    shown = ", ".join(valid[:30]) + (f", ... ({len(valid)} in all)" if len(valid) > 30 else "")
    return f"unknown {what} {str(name)!r}; choose from: {shown}"


def first_line(error: BaseException, limit: Optional[int] = None) -> str:
    """The first line of an error's text that is not blank, for one-line messages.

    Parameters
    ----------
    error : BaseException
    limit : int, optional
        Maximum number of characters; None keeps the whole line.

    Returns
    -------
    str
        The name of the error's type if it has no text.
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:limit]


def signature_text(function: Callable[..., Any]) -> str:
    """The parameters of a function with their defaults, without type hints, for a message."""
    whole = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in whole.parameters.values()]
    return str(whole.replace(parameters=bare, return_annotation=inspect.Signature.empty))
