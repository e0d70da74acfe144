"""What a run is worth, and what it trained."""

from types import SimpleNamespace
from typing import Any

import jax
import pytest

from adaptlab import config, models
from adaptlab.study import members, trained_parameters

SHAPE = models.LlamaShape(vocab_size=32, width=32, depth=2, heads=2, kv_heads=2, head_width=16, ffn_width=48)


@pytest.mark.parametrize("adapt", ["full", "pissa", "adalora"])
def test_parameters_are_counted_where_no_transfer_to_a_device_is_allowed(adapt: str):
    model = models.llama(SHAPE)
    params = jax.eval_shape(model.init, jax.random.key(0))
    lab: Any = SimpleNamespace(pretrained=SimpleNamespace(model=model), params=params)
    method = config.compose("forgetting", [f"adapt@methods.lora.adapt={adapt}"])["methods"]["lora"]
    member = members({"one": method}, [0])[0]
    with jax.transfer_guard("disallow"):
        assert trained_parameters(lab, member) > 0
