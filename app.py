"""The application in a browser: is this image a photograph, or was it generated?

python app.py [--ckpt A.ckpt ...] [--host 127.0.0.1] [--port 7860]

One image, many, or a zip archive; English and Chinese; an HTTP interface. Nothing leaves the machine. See docs/app.md.
"""

from typing import List

from aidet import cli
from aidet.errors import UserError

LIMITS = ("images", "megabytes", "pixels")


def parser() -> cli.Parser:
    """The options; those of a detector are described in docs/infer.md."""
    p = cli.Parser(prog="app.py", description=__doc__)
    cli.add_detector(p, "ckpt")
    p.add_argument(
        "--localizer",
        metavar="C.ckpt|none",
        help="shows which parts are generated (default: ckpt/aidet_partial.ckpt if it is there)",
    )
    p.add_argument("--host", default="127.0.0.1", help="0.0.0.0 opens it to the network; there is no login")
    p.add_argument("--port", type=int, default=7860, help="0: any free one")
    p.add_argument("--language", choices=("en", "zh"), help="of the first page (default: the browser's)")
    g = p.add_argument_group("detector")
    cli.add_detector(g, "votes", "vote", "views", "fuse", "threshold", "operating-point", "unsure")
    cli.add_detector(g, "seed", "positive", "real", "transform")
    cli.add_detector(g, "backend", "device", "workers")
    g = p.add_argument_group("limits of one request")
    g.add_argument("--max-images", type=int, default=200, metavar="N", help="images (default 200)")
    g.add_argument("--max-megabytes", type=int, default=32, metavar="N", help="of one image (default 32)")
    cli.add_reading(g, 50_000_000)
    return p


def run(argv: List[str]) -> None:
    """The command line; returns when the application is stopped."""
    args = vars(parser().parse_args(argv))
    from aidet.detector import default

    checkpoints = default.checkpoints(args.pop("ckpt"))
    args["localizer"] = default.localizer_if_any(args["localizer"])
    given = {name: args.pop(f"max_{name}") for name in LIMITS}
    for name, value in given.items():
        if value < 1:
            raise UserError(f"--max-{name} (={value}) must be >= 1")
    if not 0 <= args["port"] < 65536:
        raise UserError(f"--port (={args['port']}) must be between 0 and 65535")
    from aidet.app import server, uploads

    server.serve(checkpoints, limits=uploads.Limits.of(**given), say=cli.to_stderr, **args)


if __name__ == "__main__":
    cli.main(run)
