"""Write stored reference activations with PyTorch, for machines that have none.

    python -m convert.make_reference SRC REF.npz [--layout L] [--photos N]

The file keeps the pixels of the photos after the source's own resize and crop (bytes), the logits, and some 256 values
of every compared layer: what a verification needs, and no more.
"""

import argparse

from aidet.cli import main


def run(argv):
    """Read, build the original model, run it, store what it gives."""
    parser = argparse.ArgumentParser(prog="python -m convert.make_reference", description=__doc__.split("\n")[0])
    parser.add_argument("src", metavar="SRC")
    parser.add_argument("dst", metavar="REF.npz")
    parser.add_argument("--arch")
    parser.add_argument("--layout")
    parser.add_argument("--photos", type=int, default=4, help="how many of the photos of live.PHOTOS (1 to 4)")
    args = parser.parse_args(argv)
    from aidet import ckpt, runtime

    runtime.setup(device="CPU", mode="pynative")
    from . import core, detect, hub, live, reading

    path, entry = hub.locate(args.src)
    source = reading.read(path)
    plan = detect.make(source, args.layout, args.arch)
    facts = core.describe(plan, source, entry, args.src, source.sha256(), None, None)
    sidecar = ckpt.Sidecar(facts, args.src)
    reference = live.reference(plan, source, sidecar, names=live.PHOTOS[: args.photos])
    reference.save(args.dst)
    print(f"wrote {args.dst}: {len(reference.x)} inputs, {len(reference.taps)} layers, by {reference.meta['made_by']}")
    return 0


if __name__ == "__main__":
    main(run)
