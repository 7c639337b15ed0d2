"""Errors a user can cause, and the help that goes with them."""

import difflib
import reprlib
from typing import Optional


def _shown(value):
    """A value in a message: short, however deep or long it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # a number of more digits than Python prints
        return f"a {type(value).__name__}"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 3, 8, 8


class UserError(Exception):
    """A wrong argument, configuration or file: one clear line, exit code 2, nothing written.

    The message names the value and the remedy. Root scripts print it through :func:`aidet.cli.main`.
    """


def nearest(name, choices, what="name"):
    """One sentence that lists the valid choices and the nearest one.

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
        For example ``unknown key 'epochsize'; did you mean 'epoch_size'?``; where nothing is near, the
        choices are listed instead (the first 30).
    """
    choices = sorted(map(str, choices))
    close = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.6)
    if close:
        return f"unknown {what} {str(name)!r}; did you mean {close[0]!r}?"
    shown = ", ".join(choices[:30]) + (f", ... ({len(choices)} in all)" if len(choices) > 30 else "")
    return f"unknown {what} {str(name)!r}; choose from: {shown}"


def first_line(error: BaseException, limit: Optional[int] = None) -> str:
    """The first line of an error's text that is not blank, for messages of one line.

    Parameters
    ----------
    error : BaseException
    limit : int, optional
        Cut after so many characters; None keeps the whole line.

    Returns
    -------
    str
        The error's type where it has no text.
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:limit]
