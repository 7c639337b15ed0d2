"""What the command lines share: exit codes, one-line errors, the argument parser."""

import argparse
import atexit
import errno
import os
import signal
import sys
import threading

from .errors import UserError, nearest

OK, WRONG, PARTIAL, STOPPED = 0, 2, 3, 130
MAX_LINE = 4000
# What the machine can do to a run: no space, no right, no such place any more.
ENVIRONMENT = {
    getattr(errno, name)
    for name in "ENOSPC EDQUOT EFBIG EROFS EIO EACCES EPERM ENOENT ENOTDIR EISDIR ENAMETOOLONG EMFILE ENFILE".split()
    if hasattr(errno, name)
}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are a :class:`UserError` of one line, with the nearest valid name; no abbreviations.

    A docstring given as ``description`` keeps its lines.
    """

    def __init__(self, *args, **options):
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **options)

    def parse_args(self, args=None, namespace=None):
        """As argparse does; what is unknown is compared with the options of the sub-command that was named."""
        found, unknown = self.parse_known_args(args, namespace)
        self._refuse(found, unknown)
        return found

    def parse_intermixed_args(self, args=None, namespace=None):
        """As :meth:`parse_args`, with positional arguments among the options."""
        found, unknown = self.parse_known_intermixed_args(args, namespace)
        self._refuse(found, unknown)
        return found

    def _refuse(self, found, unknown):
        if unknown:
            raise UserError(nearest(unknown[0].partition("=")[0], self._of_command(found).flags(), "argument"))

    def error(self, message):
        """Raise instead of printing the usage and leaving."""
        raise UserError(message)

    def flags(self):
        """All option names."""
        return sorted({f for a in self._actions for f in a.option_strings})

    def _of_command(self, found):
        """The parser of the sub-command in ``found``, or this one."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return action.choices.get(getattr(found, action.dest, None), self)
        return self


def main(run, argv=None):
    """Run a command and leave with the documented exit code.

    Parameters
    ----------
    run : callable
        Takes the argument list, returns an exit code or None (0).
    argv : list of str, optional
        Defaults to ``sys.argv[1:]``.

    Notes
    -----
    0 all well; 2 a wrong argument, configuration or missing file, said in one line on stderr; 3 finished, but some
    inputs could not be used; 130 stopped by Ctrl-C. A full disk, a folder that went away or lack of memory is said in
    one line too (2). Anything else is a defect of ours and keeps its traceback.
    """
    if argv is None:
        _stop_on_sigterm()
    if not (sys.stderr and sys.stderr.isatty()):
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # a progress bar in a log file: a line now and then
    try:
        code = run(sys.argv[1:] if argv is None else argv) or OK
        if argv is None and threading.current_thread() is threading.main_thread():
            # All is written: Ctrl-C while the interpreter ends would make a failure of it, and say nothing.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except UserError as error:
        code = _wrong(str(error))
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        code = STOPPED
        if argv is None and any(name.startswith("mindspore.") for name in sys.modules):
            _leave_at_once()
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OK
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            raise
        what = f" ({error.filename})" if error.filename else ""
        code = _wrong(f"{error.strerror}{what}; what was finished before is whole: see to it, then run again")
    except MemoryError as error:
        code = _wrong(f"not enough memory ({error or 'no more given'}); close other programs or take smaller batches")
    sys.exit(code)


def _stop_on_sigterm():
    """Take SIGTERM as Ctrl-C: temporary files go, and what runs on is told.

    While MindSpore compiles or runs a graph, it turns SIGINT into SIGTERM for its own process, whose default is to die
    without a word. In a group of processes SIGTERM keeps that default: one that waits for a dead one must not linger.
    """
    several = any(os.environ.get(n, "") not in ("", "0", "1") for n in ("MS_WORKER_NUM", "RANK_SIZE"))
    if several or threading.current_thread() is not threading.main_thread():
        return

    def stop(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def _leave_at_once():
    """End without the interpreter's own end, in which MindSpore aborts where it was cut short, also in its import."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    atexit._run_exitfuncs()
    os._exit(STOPPED)


def to_stderr(line):
    """Print a line for the user on stderr: what command lines give as ``say``."""
    print(line, file=sys.stderr)


def printable(text):
    """Text of a file, or its name, for the terminal: what would move the cursor or clear the screen is spelled out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _wrong(text):
    """Say what is wrong in one line, whatever a file's own names put into it."""
    text = printable(" ".join(text.split("\n")))
    print("error: " + (text if len(text) < MAX_LINE else text[:MAX_LINE] + " ..."), file=sys.stderr)
    return WRONG
