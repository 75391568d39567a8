"""A program for a Python that has jax and keras: docs/frameworks.md's examples, and what they saved read back.

tests/scenario/test_frameworks.py runs it at full size, with the daemon's socket in its environment.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np
from safetensors.flax import load_file

from ml_dash import Experiment

PAGE = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text()
EXAMPLES = {
    section.partition("\n")[0]: section.split("```python\n")[1].split("```")[0]
    for section in PAGE.split("\n## ")
    if section.startswith(("JAX\n", "Keras\n"))
}
saved: dict[str, dict[str, object]] = {"JAX": {}, "Keras": {}}
for name, example in EXAMPLES.items():
    exec(example, saved[name])  # noqa: S102 it is ours

with Experiment(prefix="alice/cv/resnet").run as exp:
    ckpt = exp.files("ckpt")
    params = pickle.loads(Path(ckpt.download("params.pkl")).read_bytes())  # noqa: S301 ours
    expected = saved["JAX"]["params"]
    assert jax.tree_util.tree_structure(params) == jax.tree_util.tree_structure(expected)
    assert jax.tree_util.tree_all(jax.tree_util.tree_map(lambda one, other: (one == other).all(), params, expected))
    assert params["dense"]["kernel"].dtype == jnp.bfloat16
    named = load_file(ckpt.download("params.safetensors"))
    kernel = named["['dense']['kernel']"]
    assert (kernel.dtype, kernel.shape, bool((kernel == 1).all())) == (jnp.bfloat16, (300, 400), True)
    with np.load(ckpt.download("history.npz")) as history:
        assert history["loss"].tolist() == [*range(10)]

    model = saved["Keras"]["model"]
    weights = model.get_weights()
    with np.load(ckpt.download("weights.npz")) as back:
        assert all(np.array_equal(back[variable.path], np.asarray(variable)) for variable in model.variables)
    model.set_weights([np.zeros_like(one) for one in weights])
    model.set_weights(pickle.loads(Path(ckpt.download("weights.pkl")).read_bytes()))  # noqa: S301 ours
    assert all(np.array_equal(one, other) for one, other in zip(model.get_weights(), weights, strict=True))
    again = keras.models.load_model(ckpt.download("model.keras", to="again.keras"))
    assert all(np.array_equal(one, other) for one, other in zip(again.get_weights(), weights, strict=True))
print("held")
