"""The image towers export to ONNX at every option that changes their graph: small nets, any batch size."""

import mindspore as ms
import numpy as np
import pytest

from aidet import ckpt, models, runtime
from aidet.export import onnx_graph

pytestmark = pytest.mark.matrix
SMALL = {"width": 64, "depth": 1, "hidden": 96, "num_classes": 2}
NETS = {
    "clip_vit": {"patch_size": 8, "image_size": 24, "projection": 16, "normalise": True},
    "dinov2_vit": {"grid": 4, "image_size": 42, "registers": 2, "act": "swiglu", "pool": "token_avg"},
    "fatformer": {
        **{"patch_size": 8, "image_size": 32, "adapted": (0,), "groups": 16, "bottleneck": 8},
        **{"text_width": 192, "text_depth": 1, "context": 2, "suffix": 5, "ends": (4, 5)},
    },
    "siglip_vit": {"patch_size": 8, "image_size": 24, "heads": 2, "pool": "map"},
    "vit": {"patch_size": 8, "image_size": 24, "heads": 4},
}


@pytest.mark.parametrize("name", sorted(NETS))
def test_a_tower_exports_and_onnx_runtime_agrees(name):
    runtime.setup(seed=3, device="CPU", mode="graph")
    net = models.create(name, **SMALL, **NETS[name]).set_train(False)
    rng = np.random.default_rng(0)
    for parameter in net.get_parameters():
        # Everything random: what starts at zero or one would hide a mistake.
        values = rng.normal(0, 0.2, parameter.shape) + parameter.name.endswith("gamma")
        parameter.set_data(ms.Tensor(values.astype(np.float32)))
    size = NETS[name]["image_size"]
    facts = {
        "format": 1,
        "architecture": name,
        "arguments": {},
        "input": {"size": size, "channels": 3, "transform": "decode"},
    }
    sidecar = ckpt.Sidecar.from_facts(facts, "x.ckpt", "x.json")
    model, verdict = onnx_graph.export(net, sidecar, onnx_graph.pixels((size, size)))
    assert verdict["relative"] <= 1e-5 and verdict["batches"] == [1, 5]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    logits = net(ms.Tensor(onnx_graph.pixels((size, size))(2))).asnumpy()
    assert logits.shape == (2, 2) and np.abs(logits[0] - logits[1]).max() > 1e-3
