"""``python -m aidet.align``."""

from .. import cli
from .command import main

if __name__ == "__main__":
    cli.main(main)
