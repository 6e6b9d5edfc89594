"""Other sides of `benchmarks.models`, printed where they are installed: JAX jit, HIPS autograd, MyGrad.

Each is a function of the parameters by our names, and starts from our weights. Shapes: B batch, T time, C width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.teams import Run
from benchmarks.timing import timed
from benchmarks.workloads import CLIP_NORM, LEARNING_RATE, WORKLOADS, Workload, batch_of

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

Parameters = dict[str, Any]
Gradients = Callable[[Parameters], tuple[float, Mapping[str, NDArray[Any]]]]


def peers_of(workload: Workload) -> dict[str, Callable[..., Run]]:
    """The sides that are installed and have this model, by what they are called."""
    sides = {"jax": ("JAX jit", jax_jit), "autograd": ("HIPS autograd", hips_autograd), "mygrad": ("MyGrad", mygrad)}
    found = [name for name in sides if find_spec(name) and (name == "jax" or workload.kind == "mlp")]
    return {sides[name][0]: sides[name][1] for name in found}


def jax_jit(rank: int, world: int, name: str) -> Run:
    """One compiled function a step, its arguments donated."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp

    workload = WORKLOADS[name]
    inputs, targets = batch_of(workload)
    classes = np.maximum(targets.ravel(), 0)
    counted = (targets.ravel() >= 0).astype(np.float32)

    def loss_of(parameters: Parameters) -> Any:
        logits = _jax_logits(parameters, inputs, workload)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), classes[:, None], axis=1)[:, 0]
        return -(chosen * counted).sum() / counted.sum()

    def train(parameters: Parameters, m: Parameters, v: Parameters, t: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(parameters)
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in gradients.values()))
        scale = jnp.minimum(1, CLIP_NORM / (norm + 1e-6))
        rate, root = LEARNING_RATE / (1 - BETA1**t), jnp.sqrt(1 - BETA2**t)
        m = {key: BETA1 * m[key] + (1 - BETA1) * scale * g for key, g in gradients.items()}
        v = {key: BETA2 * v[key] + (1 - BETA2) * (scale * g) ** 2 for key, g in gradients.items()}
        new = {key: w - rate * m[key] / (jnp.sqrt(v[key]) / root + EPSILON) for key, w in parameters.items()}
        return new, m, v, t + 1, loss

    compiled = jax.jit(train, donate_argnums=(0, 1, 2))
    first = {key: jnp.array(value) for key, value in _weights(workload).items()}
    state = [first, *({key: jnp.zeros_like(w) for key, w in first.items()} for _ in "mv"), jnp.float32(1)]

    def step() -> float:
        *state[:], loss = compiled(*state)
        return float(loss)

    return timed(step)


def _jax_logits(p: Parameters, x: Any, workload: Workload) -> Any:
    """Rows of logits."""
    import jax
    import jax.numpy as jnp

    is_gpt, prefix = workload.kind == "gpt", "" if workload.kind == "gpt" else "bert."

    def linear(x: Any, name: str) -> Any:
        return x @ p[f"{name}weight"].T + p[f"{name}bias"]

    def norm(x: Any, name: str) -> Any:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + (1e-5 if is_gpt else 1e-12)) * p[f"{name}weight"] + p[
            f"{name}bias"
        ]

    def convolution(x: Any, name: str) -> Any:
        y = jax.lax.conv_general_dilated(x, p[f"{name}.weight"], (1, 1), "SAME")
        return jax.nn.relu(y + p[f"{name}.bias"][:, None, None])

    def attention(x: Any, name: str) -> Any:
        shape = (*x.shape[:2], workload.heads, workload.width // workload.heads)
        q, k, v = (part.reshape(shape) for part in jnp.split(linear(x, f"{name}in_proj_"), 3, axis=-1))
        return linear(jax.nn.dot_product_attention(q, k, v, is_causal=is_gpt).reshape(x.shape), f"{name}out_proj.")

    def feed_forward(x: Any, name: str) -> Any:
        return linear(jax.nn.gelu(linear(x, f"{name}linear1."), approximate=is_gpt), f"{name}linear2.")

    if workload.kind == "mlp":
        return linear(jax.nn.relu(linear(jax.nn.relu(linear(x, "layers.0.")), "layers.2.")), "layers.4.")
    if workload.kind == "cnn":
        y = convolution(convolution(x, "0"), "2")
        return linear(
            y.reshape(*y.shape[:2], y.shape[2] // 2, 2, y.shape[3] // 2, 2).max((3, 5)).reshape(len(y), -1), "6."
        )
    y = p[f"{prefix}token_embedding.weight"][x] + p[f"{prefix}position_embedding.weight"]
    if not is_gpt:
        y = norm(y + p["bert.type_embedding.weight"][0], "bert.norm.")
    for number in range(workload.layers):
        layer = f"{prefix}layers.{number}."
        if is_gpt:
            y = y + attention(norm(y, f"{layer}norm1."), f"{layer}self_attn.")
            y = y + feed_forward(norm(y, f"{layer}norm2."), layer)
        else:
            y = norm(y + attention(y, f"{layer}self_attn."), f"{layer}norm1.")
            y = norm(y + feed_forward(y, layer), f"{layer}norm2.")
    y = norm(y if is_gpt else jax.nn.gelu(linear(y, "transform."), approximate=False), "norm.")
    return (y @ p[f"{prefix}token_embedding.weight"].T + p.get("bias", 0)).reshape(-1, workload.vocabulary)


def hips_autograd(rank: int, world: int, name: str) -> Run:
    """The MLP as a function of arrays."""
    import autograd.numpy as anp
    from autograd import value_and_grad

    inputs, targets = batch_of(WORKLOADS[name])

    def loss_of(p: Parameters) -> Any:
        h = inputs
        for layer in (0, 2):
            h = anp.maximum(h @ p[f"layers.{layer}.weight"].T + p[f"layers.{layer}.bias"], np.float32(0))
        logits = h @ p["layers.4.weight"].T + p["layers.4.bias"]
        shifted = logits - logits.max(axis=1, keepdims=True)
        chosen = shifted[np.arange(len(targets)), targets]
        return anp.mean(anp.log(anp.sum(anp.exp(shifted), axis=1)) - chosen)

    return _numpy_steps(WORKLOADS[name], value_and_grad(loss_of))


def mygrad(rank: int, world: int, name: str) -> Run:
    """The MLP as a graph of MyGrad's tensors."""
    import mygrad as mg
    from mygrad.nnet import softmax_crossentropy
    from mygrad.nnet.activations import relu

    inputs, targets = batch_of(WORKLOADS[name])

    def gradients(p: Parameters) -> tuple[float, Mapping[str, NDArray[Any]]]:
        tensors = {key: mg.tensor(array, copy=False) for key, array in p.items()}
        h: Any = inputs
        for layer in (0, 2):
            h = relu(h @ tensors[f"layers.{layer}.weight"].T + tensors[f"layers.{layer}.bias"])
        loss = softmax_crossentropy(h @ tensors["layers.4.weight"].T + tensors["layers.4.bias"], targets)
        loss.backward()
        return loss.item(), {key: tensor.grad for key, tensor in tensors.items()}

    return _numpy_steps(WORKLOADS[name], gradients)


def _numpy_steps(workload: Workload, gradients_of: Gradients) -> Run:
    """Steps of clip and Adam in NumPy, in place."""
    parameters = _weights(workload)
    m, v = ({key: np.zeros_like(w) for key, w in parameters.items()} for _ in "mv")
    t = 0

    def step() -> float:
        nonlocal t
        t += 1
        loss, gradients = gradients_of(parameters)
        norm = np.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
        scale = min(1.0, CLIP_NORM / (float(norm) + 1e-6))
        rate, root = LEARNING_RATE / (1 - BETA1**t), float(np.sqrt(1 - BETA2**t))
        for key, gradient in gradients.items():
            g = gradient * np.float32(scale)
            m[key] += np.float32(1 - BETA1) * (g - m[key])
            v[key] += np.float32(1 - BETA2) * (g * g - v[key])
            parameters[key] -= np.float32(rate) * m[key] / (np.sqrt(v[key]) / np.float32(root) + np.float32(EPSILON))
        return float(loss)

    return timed(step)


def _weights(workload: Workload) -> Parameters:
    """Our first weights, copied, by our names."""
    from benchmarks.ours import model_of

    return {key: np.array(value) for key, value in model_of(workload)[0].state_dict().items()}
