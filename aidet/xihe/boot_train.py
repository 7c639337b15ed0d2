"""Boot file of a training job on Xihe: takes the keys of a configuration, and the flags that the platform adds.

In the form of the job: code_dir train/<this folder>/, boot_file train.py, inputs data_url (and pretrain_url for the
initial weights); every other key of a configuration is a hyperparameter.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

if __name__ == "__main__":
    from aidet import cli, xihe

    cli.main(lambda argv: xihe.train(argv, HERE / "recipe.yaml"))
