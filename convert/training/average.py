"""Average the weights of several runs of `convert.training.detector` into one network, in half precision.

    python -m convert.training.average runs/a runs/b --out runs/default

Runs that started from the same weights lie in one valley of the loss, and their mean can generalise better than either
(Wortsman et al., "Model soups", ICML 2022; what it gave here stands in LOG.md). Half precision is applied here, before
the conversion, so that the converted file can be compared with its source to the usual tolerance.
"""

import argparse
from pathlib import Path

from aidet import cli, files
from aidet.errors import UserError


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="folders with model.safetensors and config.json")
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    from safetensors.torch import load_file, save_file

    states = [load_file(Path(run) / "model.safetensors") for run in args.runs]
    configs = [files.read_json(Path(run) / "config.json", "configuration") for run in args.runs]
    for run, state, config in zip(args.runs, states, configs):
        if config != configs[0] or {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in states[0].items()}:
            raise UserError(
                f"{run} has other classes or tensors than {args.runs[0]}; only runs of one kind are averaged"
            )
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    mean = {k: sum(s[k].double() for s in states) / len(states) for k in states[0]}
    save_file({k: v.half() if states[0][k].is_floating_point() else states[0][k] for k, v in mean.items()},
              out / "model.safetensors")  # fmt: skip
    files.write_json(out / "config.json", configs[0])


if __name__ == "__main__":
    cli.main(main)
