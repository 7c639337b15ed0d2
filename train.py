"""Train or finetune a detector: ``python train.py -c mindcv_cfg/x.yaml [--key value ...]``.

Takes every key of a MindCV configuration and more (docs/train.md); the command line overrides the file. Writes
best.ckpt, last.ckpt (each with a .json), state.ckpt, config.yaml, log.csv, steps.csv, curves.png and TensorBoard events
into ckpt_save_dir. Exit codes: 0 done, 2 wrong argument or configuration, 3 done but some images could not be read.
"""

from typing import List, Optional

from aidet import cli


def main(argv: List[str]) -> Optional[int]:
    """Parse the command line and train."""
    from aidet import config

    if any(word in ("-h", "--help") for word in argv):
        print(
            cli.as_called("usage: python train.py [-c FILE] [--profile NAME] [--dry_run] [--key value ...]\n\n")
            + cli.as_called(cli.plain(__doc__.strip()))
            + "\n\n  -c FILE         a YAML file of the keys below\n"
            "  --profile NAME  override keys of FILE by the file of its name in the folder NAME beside it\n"
            "  --dry_run       print what would be done\n"
        )
        print(cli.as_called(config.help_text()))
        return 0
    path, overrides, flags = config.parse_args(argv, flags=("dry_run",))
    settings = config.load(path, overrides)
    from aidet.training import train

    return train(settings, dry_run="dry_run" in flags)


if __name__ == "__main__":
    cli.main(main)
