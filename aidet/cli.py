"""What the root scripts share: exit codes and one-line errors."""

import os
import sys

from .errors import UserError

OK, WRONG, PARTIAL = 0, 2, 3


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
