"""``python -m aidet.xihe``."""

from .. import cli
from . import run

if __name__ == "__main__":
    cli.main(run)
