"""Every family in every layout against the outputs of its original library, without torch.

``tests/parity/make_logits.py`` stored the outputs, and the keys and shapes of the real file; the weights are
regenerated here (``tests/recipe.py``).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import recipe

from aidet import ckpt, runtime
from convert import __main__, preprocessing, reading, reverse, rules
from convert.families import families
from convert.parity import compare
from convert.plan import build, make_plan

FOLDER = Path(__file__).parents[1] / "data" / "parity"


def cases():
    """(family, name of the case) of every stored file."""
    found = []
    for path in sorted(FOLDER.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            found += [(path.stem, name) for name in file.files if name != "facts"]
    return found


def load(family, name):
    with np.load(FOLDER / f"{family}.npz", allow_pickle=False) as file:
        return json.loads(file["facts"].tobytes())[name], file[name]


def test_every_layout_has_its_logits():
    have = {(family, load(family, name)[0]["layout"]) for family, name in cases()}
    assert have == {(f.name, x.name) for f in families() for x in f.layouts if not x.identity}


@pytest.mark.parametrize("family, name", cases(), ids=[name for _, name in cases()])
def test_the_converted_net_computes_what_the_original_did(tmp_path, family, name):
    facts, expected = load(family, name)
    tensors = recipe.tensors(facts["rows"], facts.get("gain", 2.0))
    reverse.write_safetensors(tmp_path / "model.safetensors", tensors, {})
    for beside in ("config", "preprocessor_config"):
        if beside in facts:
            (tmp_path / f"{beside}.json").write_text(json.dumps(facts[beside]))
    flags = list(zip(facts["flags"][::2], facts["flags"][1::2]))
    source, given = reading.read(tmp_path), __main__.given([value for flag, value in flags if flag == "--arg"])
    plan = make_plan(source, dict(flags).get("--layout"), given=given)
    preprocessing.fit_input(plan, source, given)
    assert (plan.family.name, plan.architecture, plan.layout.name) == (family, facts["architecture"], facts["layout"])
    runtime.setup(device="CPU", mode="pynative")
    net = build(plan.architecture, plan.arguments, plan.num_classes).set_train(False)
    arrays = {p.name: p.asnumpy() for p in net.get_parameters() if p.name in plan.computed}
    arrays.update(rules.gather(plan.entries, plan.tensors, plan.shapes))
    ckpt.load_strict(net, arrays)
    x = recipe.image(facts["side"]) if facts["side"] else recipe.image(8, 4)
    ours, _ = compare.run(net, x)
    result = compare.compare(ours if ours.ndim == 2 else compare.sample(ours), expected)
    assert result["ok"], result
