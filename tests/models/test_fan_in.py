import jax
import numpy as np

from adaptlab import tree
from adaptlab.models import LlamaShape, by_fan_in, gpt2, llama
from adaptlab.models.gpt2 import GPT2Shape


def test_matrices_have_the_variance_of_one_over_their_fan_in_and_nothing_else_changes():
    shape = LlamaShape(512, 64, 2, 2, 2, 32, 256)
    plain, drawn = (tree.flatten(m.init(jax.random.key(0))) for m in (llama(shape), by_fan_in(llama(shape))))
    for path, x in drawn.items():
        axis = {"kernel": -2, "embedding": -1}.get(path.rpartition("/")[2])
        if axis is None:
            np.testing.assert_array_equal(x, plain[path])
        else:
            fan_in = x.shape[axis]
            np.testing.assert_allclose(np.std(x) * np.sqrt(fan_in), 1.0, rtol=0.05, err_msg=path)


def test_biases_and_norms_of_another_family_stay_what_they_are():
    shape = GPT2Shape(vocab_size=64, width=16, depth=1, heads=2, ffn_width=32, context=8)
    plain, drawn = (tree.flatten(m.init(jax.random.key(1))) for m in (gpt2(shape), by_fan_in(gpt2(shape))))
    changed = {path.rpartition("/")[2] for path in plain if not np.array_equal(plain[path], drawn[path])}
    assert changed == {"kernel", "embedding"}
