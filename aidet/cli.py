"""What the command lines share: exit codes, one-line errors, the argument parser."""

import argparse
import os
import sys

from .errors import UserError, nearest

OK, WRONG, PARTIAL = 0, 2, 3


class Parser(argparse.ArgumentParser):
    """argparse whose errors are a :class:`UserError` of one line, with the nearest valid name; no abbreviations.

    A docstring given as ``description`` keeps its lines.
    """

    def __init__(self, *args, **options):
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **options)

    def error(self, message):
        """Raise instead of printing the usage and leaving."""
        unknown = message.partition("unrecognized arguments: ")[2].split()
        if unknown:
            message = nearest(unknown[0].partition("=")[0], self.flags(), "argument")
        raise UserError(message)

    def flags(self):
        """All option names, those of the sub-commands too."""
        found = [f for a in self._actions for f in a.option_strings]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += [f for command in action.choices.values() for f in command.flags()]
        return found


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
    inputs could not be used; 130 stopped by Ctrl-C. Anything else is a defect of ours and keeps its traceback.
    """
    try:
        code = run(sys.argv[1:] if argv is None else argv) or OK
    except UserError as error:
        print("error: " + " ".join(str(error).split("\n")), file=sys.stderr)
        code = WRONG
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OK
    sys.exit(code)
