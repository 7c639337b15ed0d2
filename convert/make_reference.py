"""Write stored reference activations with PyTorch, for machines without PyTorch.

    python -m convert.make_reference SRC REF.npz [--layout L] [--photos N]

The file contains the pixels of the photos after the source's own resize and crop (bytes), the logits, and about 256
values of every compared layer: only what a verification needs.
"""

from typing import List

from aidet import cli

from . import MAKE_REFERENCE


def run(argv: List[str]) -> int:
    """Read the source, build the original model, run it and store its outputs."""
    parser = cli.Parser(prog=MAKE_REFERENCE, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("src", metavar="SRC")
    parser.add_argument("dst", metavar="REF.npz")
    parser.add_argument("--arch")
    parser.add_argument("--layout")
    parser.add_argument("--photos", type=int, default=4, help="how many of the four photos (1 to 4)")
    args = parser.parse_args(argv)
    from aidet import ckpt, runtime

    runtime.setup(device="CPU", mode="pynative")
    from . import hub, reading
    from .conversion import describe
    from .parity.torch_reference import PHOTOS, reference
    from .plan import make_plan

    path, entry = hub.locate(args.src)
    source = reading.read(path)
    plan = make_plan(source, args.layout, args.arch)
    facts = describe(plan, source, entry, args.src, source.sha256(), None, None)
    made = reference(plan, source, ckpt.Sidecar(facts, args.src), names=PHOTOS[: args.photos])
    made.save(args.dst)
    print(f"wrote {args.dst}: {len(made.x)} inputs, {len(made.taps)} layers, by {made.meta['made_by']}")
    return 0


if __name__ == "__main__":
    cli.main(run)
