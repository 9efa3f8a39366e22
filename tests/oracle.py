"""A feed-forward network in six steps, as an executable specification.

    1. initialise   draw every weight matrix W(l), set every bias b(l) to zero
    2. forward      h(0) = x,  h(l) = σ(W(l) h(l-1) + b(l)),  y = W(L) h(L-1) + b(L)
    3. loss         how far y is from the target, a number for each example
    4. backward     the gradient of the mean loss by the chain rule, from the last layer to the first
    5. update       each parameter a step against its gradient
    6. repeat       from 2

Nothing but NumPy in double precision, every formula written out, nothing made fast. Rows are examples: a layer of I
inputs and O outputs has W of shape (O, I), takes h of shape (N, I) and gives (N, O), so W h + b reads h Wᵀ + b here.
The tests hold feedfwd's network, losses and optimizers against this page.
"""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Layer = dict[str, Array]  # "W", "b", and what a learnable σ adds: "alpha_p", "alpha_n"

# Activations: σ(z) and its slope dσ/dz ------------------------------------------------------------------------------


def logistic(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def log1pexp(z: Array) -> Array:
    return np.logaddexp(0, z)


def identity(z: Array) -> tuple[Array, Array]:
    return z, np.ones_like(z)


def sigmoid(z: Array) -> tuple[Array, Array]:
    s = logistic(z)
    return s, s * (1 - s)


def tanh(z: Array) -> tuple[Array, Array]:
    t = np.tanh(z)
    return t, 1 - t**2


def relu(z: Array) -> tuple[Array, Array]:
    return np.where(z > 0, z, 0), np.where(z > 0, 1.0, 0.0)


def leaky_relu(z: Array) -> tuple[Array, Array]:
    return np.where(z > 0, z, 0.01 * z), np.where(z > 0, 1.0, 0.01)


def elu(z: Array) -> tuple[Array, Array]:
    return np.where(z > 0, z, np.expm1(z)), np.where(z > 0, 1.0, np.exp(z))


def selu(z: Array) -> tuple[Array, Array]:
    """The two constants make mean 0 and variance 1 a fixed point; Klambauer et al. 2017."""
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    return scale * np.where(z > 0, z, alpha * np.expm1(z)), scale * np.where(z > 0, 1.0, alpha * np.exp(z))


def gelu(z: Array) -> tuple[Array, Array]:
    """z Φ(z), with the normal distribution Φ and its density φ."""
    cumulative = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return z * cumulative, cumulative + z * density


def gelu_tanh(z: Array) -> tuple[Array, Array]:
    root, cubic = math.sqrt(2 / math.pi), 0.044715
    t = np.tanh(root * (z + cubic * z**3))
    return z * (1 + t) / 2, (1 + t) / 2 + z / 2 * (1 - t**2) * root * (1 + 3 * cubic * z**2)


def silu(z: Array) -> tuple[Array, Array]:
    s = logistic(z)
    return z * s, s + z * s * (1 - s)


def mish(z: Array) -> tuple[Array, Array]:
    t = np.tanh(log1pexp(z))
    return z * t, t + z * (1 - t**2) * logistic(z)


def softplus(z: Array) -> tuple[Array, Array]:
    return log1pexp(z), logistic(z)


def hard_swish(z: Array) -> tuple[Array, Array]:
    middle = (z > -3) & (z < 3)
    return z * np.clip(z + 3, 0, 6) / 6, np.where(middle, (2 * z + 3) / 6, np.where(z >= 3, 1.0, 0.0))


def relu2(z: Array) -> tuple[Array, Array]:
    return np.where(z > 0, z**2, 0), np.where(z > 0, 2 * z, 0)


def xielu(z: Array, alpha_p: Array, alpha_n: Array, beta: float = 0.5) -> tuple[Array, Array]:
    """αₚ z² + β z above zero, αₙ (eᶻ - 1 - z) + β z below; αₚ = softplus(alpha_p), αₙ = β + softplus(alpha_n)."""
    a_p, a_n = log1pexp(alpha_p), beta + log1pexp(alpha_n)
    value = np.where(z > 0, a_p * z**2, a_n * (np.expm1(z) - z)) + beta * z
    return value, np.where(z > 0, 2 * a_p * z, a_n * np.expm1(z)) + beta


def xielu_by_alpha(z: Array, alpha_p: Array, alpha_n: Array) -> dict[str, Array]:
    """The slope of xielu in its two parameters, for each z."""
    return {
        "alpha_p": np.where(z > 0, z**2, 0) * logistic(alpha_p),
        "alpha_n": np.where(z > 0, 0, np.expm1(z) - z) * logistic(alpha_n),
    }


ACTIVATIONS: dict[str, Callable[..., tuple[Array, Array]]] = {
    f.__name__: f
    for f in (
        *(identity, sigmoid, tanh, relu, leaky_relu, elu, selu, gelu, gelu_tanh),
        *(silu, mish, softplus, hard_swish, relu2, xielu),
    )
}


def alphas(layer: Layer) -> Layer:
    """What a layer's σ has learnt; nothing for all but xielu."""
    return {name: layer[name] for name in layer if name.startswith("alpha")}


# Step 1: initialise -------------------------------------------------------------------------------------------------


def initialise(sizes: list[int], activation: str, rng: np.random.Generator) -> list[Layer]:
    """W ~ N(0, 2 / inputs), b = 0; xielu starts at αₚ = αₙ = 0.8."""
    layers: list[Layer] = []
    for inputs, outputs in pairwise(sizes):
        layers.append({"W": rng.normal(0, np.sqrt(2 / inputs), (outputs, inputs)), "b": np.zeros(outputs)})
    if activation == "xielu":
        for layer in layers[:-1]:
            layer["alpha_p"], layer["alpha_n"] = np.log(np.expm1([0.8])), np.log(np.expm1([0.8 - 0.5]))
    return layers


# Step 2: forward ----------------------------------------------------------------------------------------------------


def forward(layers: list[Layer], x: Array, activation: str) -> tuple[Array, list[tuple[Array, Array]]]:
    """The outputs, and of each layer what came in, h(l-1), and what σ was given, z(l) = W(l) h(l-1) + b(l)."""
    kept = []
    h = x
    for layer in layers[:-1]:
        z = h @ layer["W"].T + layer["b"]
        kept.append((h, z))
        h, _ = ACTIVATIONS[activation](z, **alphas(layer))
    y = h @ layers[-1]["W"].T + layers[-1]["b"]  # no σ
    return y, [*kept, (h, y)]


# Step 3: loss, (N,), and its slope by the outputs, (N, K) -----------------------------------------------------------


def mse(y: Array, t: Array) -> tuple[Array, Array]:
    return ((y - t) ** 2).mean(1), 2 * (y - t) / y.shape[1]


def mae(y: Array, t: Array) -> tuple[Array, Array]:
    return np.abs(y - t).mean(1), np.sign(y - t) / y.shape[1]


def huber(y: Array, t: Array, delta: float = 1.0) -> tuple[Array, Array]:
    e = y - t
    near = np.abs(e) <= delta
    losses = np.where(near, e**2 / 2, delta * (np.abs(e) - delta / 2))
    return losses.mean(1), np.where(near, e, delta * np.sign(e)) / y.shape[1]


def log_softmax(y: Array) -> Array:
    shifted = y - y.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def shares(targets: Array, classes: int, smoothing: float = 0.0) -> Array:
    """Labels (N,) as one-hot rows; rows of shares (N, C) stay; `smoothing` of each is spread over all classes."""
    t = np.eye(classes)[targets] if targets.ndim == 1 else targets
    return (1 - smoothing) * t + smoothing / classes


def cross_entropy(
    y: Array, targets: Array, label_smoothing: float = 0.0, class_weights: Array | None = None
) -> tuple[Array, Array]:
    """-Σ_c w_c t_c log p_c with p = softmax(y)."""
    log_p = log_softmax(y)
    wt = shares(targets, y.shape[1], label_smoothing) * (1.0 if class_weights is None else class_weights)
    return -(wt * log_p).sum(1), np.exp(log_p) * wt.sum(1, keepdims=True) - wt


def binary_cross_entropy(
    y: Array, t: Array, label_smoothing: float = 0.0, class_weights: Array | None = None
) -> tuple[Array, Array]:
    """-w₁ t log p - w₀ (1-t) log(1-p) with p = logistic(y), the mean over an example's labels."""
    w0, w1 = (1.0, 1.0) if class_weights is None else class_weights
    t = (1 - label_smoothing) * t + label_smoothing / 2
    p, labels = logistic(y), y.shape[1]
    losses = w1 * t * log1pexp(-y) + w0 * (1 - t) * log1pexp(y)
    return losses.mean(1), (w0 * (1 - t) * p - w1 * t * (1 - p)) / labels


def focal(y: Array, targets: Array, gamma: float = 2.0, class_weights: Array | None = None) -> tuple[Array, Array]:
    """-Σ_c w_c t_c (1 - p_c)^γ log p_c with p = softmax(y)."""
    log_p = log_softmax(y)
    p, rest = np.exp(log_p), -np.expm1(log_p)  # rest = 1 - p
    wt = shares(targets, y.shape[1]) * (1.0 if class_weights is None else class_weights)
    by_log_p = wt * (gamma * p * rest ** (gamma - 1) * log_p - rest**gamma)
    return -(wt * rest**gamma * log_p).sum(1), by_log_p - p * by_log_p.sum(1, keepdims=True)  # through the softmax


LOSSES: dict[str, Callable[..., tuple[Array, Array]]] = {
    f.__name__: f for f in (mse, mae, huber, cross_entropy, binary_cross_entropy, focal)
}

# Step 4: backward ---------------------------------------------------------------------------------------------------


def backward(layers: list[Layer], kept: list[tuple[Array, Array]], slope: Array, activation: str) -> list[Layer]:
    """The gradient of the mean loss by every parameter; `slope` (N, K) is each example's loss by its outputs.

    δ(l), the gradient by z(l), starts at the outputs and goes back by the chain rule:
    δ(l-1) = (W(l)ᵀ δ(l)) σ'(z(l-1)); then ∂/∂W(l) = δ(l) h(l-1)ᵀ and ∂/∂b(l) = δ(l), summed over the examples.
    """
    gradients: list[Layer] = []
    delta = slope / len(slope)
    for layer, (h, z) in zip(reversed(layers), reversed(kept), strict=True):
        gradient: Layer = {}
        if layer is not layers[-1]:  # so far `delta` is the gradient by h(l); the output layer has no σ to go through
            learnt = alphas(layer)
            if learnt:
                gradient |= {
                    name: (delta * by).sum(keepdims=True)[0] for name, by in xielu_by_alpha(z, **learnt).items()
                }
            _, bend = ACTIVATIONS[activation](z, **learnt)
            delta = delta * bend
        gradients.insert(0, gradient | {"W": delta.T @ h, "b": delta.sum(0)})
        delta = delta @ layer["W"]
    return gradients


# Step 5: update -----------------------------------------------------------------------------------------------------
# Each takes a parameter θ, its gradient g, the learning rate, and `memory`, a dictionary of its own for every
# parameter, empty at first. It returns the new θ.


def sgd(theta: Array, g: Array, lr: float, memory: dict) -> Array:
    return theta - lr * g


def momentum(theta: Array, g: Array, lr: float, memory: dict, mu: float = 0.9) -> Array:
    """v ← μ v + g, θ ← θ - lr v; Polyak 1964."""
    memory["v"] = mu * memory.get("v", 0) + g
    return theta - lr * memory["v"]


def nesterov(theta: Array, g: Array, lr: float, memory: dict, mu: float = 0.9) -> Array:
    """As momentum, but the step looks one ahead: g + μ v; Sutskever et al. 2013."""
    memory["v"] = mu * memory.get("v", 0) + g
    return theta - lr * (g + mu * memory["v"])


def rmsprop(theta: Array, g: Array, lr: float, memory: dict, beta2: float = 0.99, eps: float = 1e-8) -> Array:
    """The gradient over the root of its running mean square; Hinton 2012."""
    memory["s"] = beta2 * memory.get("s", 0) + (1 - beta2) * g**2
    return theta - lr * g / (np.sqrt(memory["s"]) + eps)


def adagrad(theta: Array, g: Array, lr: float, memory: dict, eps: float = 1e-8) -> Array:
    """The gradient over the root of the sum of its squares; Duchi et al. 2011."""
    memory["s"] = memory.get("s", 0) + g**2
    return theta - lr * g / (np.sqrt(memory["s"]) + eps)


def adam(
    theta: Array, g: Array, lr: float, memory: dict, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> Array:
    """Running means of g and g², each freed of its start at zero; Kingma & Ba 2014, arXiv 1412.6980."""
    n = memory["n"] = memory.get("n", 0) + 1
    memory["m"] = beta1 * memory.get("m", 0) + (1 - beta1) * g
    memory["v"] = beta2 * memory.get("v", 0) + (1 - beta2) * g**2
    m, v = memory["m"] / (1 - beta1**n), memory["v"] / (1 - beta2**n)
    return theta - lr * m / (np.sqrt(v) + eps)


def orthogonalised(m: Array) -> Array:
    """About U Vᵀ where m = U S Vᵀ: four Newton-Schulz steps, which bring nearly all singular values near 1."""
    quintics = [
        (8.302, -24.0468, 17.474),
        (4.0035, -2.9229, 0.5419),
        (3.4708, -2.5494, 0.5002),
        (2.4653, -1.7803, 0.4156),
    ]
    x = (m if m.shape[0] <= m.shape[1] else m.T) / max(float(np.linalg.norm(m)), 1e-7)
    for a, b, c in quintics:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if m.shape[0] <= m.shape[1] else x.T


def muon(theta: Array, g: Array, lr: float, memory: dict, mu: float = 0.95) -> Array:
    """Orthogonalised Nesterov momentum, scaled to the size of Adam's steps; Jordan 2024, Liu 2025, arXiv 2502.16982."""
    memory["m"] = mu * memory.get("m", 0) + (1 - mu) * g
    ahead = (1 - mu) * g + mu * memory["m"]
    return theta - 0.2 * np.sqrt(max(theta.shape)) * lr * orthogonalised(ahead)


def normuon(theta: Array, g: Array, lr: float, memory: dict, mu: float = 0.95, smooth: float = 0.9) -> Array:
    """Muon whose rows, or columns where these are more, each have one root mean square; Li 2025, arXiv 2510.05491."""
    memory["m"] = mu * memory.get("m", 0) + (1 - mu) * g
    towards = orthogonalised((1 - mu) * g + mu * memory["m"])
    squares = np.mean(towards**2, axis=1 if theta.shape[0] >= theta.shape[1] else 0, keepdims=True)
    memory["v"] = smooth * memory.get("v", 0) + (1 - smooth) * squares
    even = towards / np.sqrt(memory["v"])
    even *= np.linalg.norm(towards) / np.linalg.norm(even)
    return theta - 0.2 * np.sqrt(max(theta.shape)) * lr * even


RULES: dict[str, Callable[..., Array]] = {
    f.__name__: f for f in (sgd, momentum, nesterov, rmsprop, adagrad, adam, muon, normuon)
} | {"adamw": adam}
MUONS = "muon", "normuon"


def update(
    layers: list[Layer], gradients: list[Layer], optimizer: str, lr: float, memory: dict, weight_decay: float = 0.0
) -> list[Layer]:
    """One step for every parameter. Decay concerns matrices alone: decoupled, θ ← (1 - lr λ) θ, for adamw and the
    Muons (arXiv 1711.05101); for others λ θ is added to the gradient. Muons take hidden matrices, adamw the rest."""
    new: list[Layer] = []
    for i, (layer, gradient) in enumerate(zip(layers, gradients, strict=True)):
        new.append({})
        for name, theta in layer.items():
            rule, g = optimizer, gradient[name]
            if optimizer in MUONS and (name != "W" or i == len(layers) - 1):
                rule = "adamw"
            decay = weight_decay if name == "W" else 0.0
            if rule in ("adamw", *MUONS):
                theta = (1 - lr * decay) * theta
            else:
                g = g + decay * theta
            new[-1][name] = RULES[rule](theta, g, lr, memory.setdefault((i, name), {}))
    return new


# Step 6: repeat -----------------------------------------------------------------------------------------------------


def train(
    layers: list[Layer],
    batches: Iterable[tuple[Array, Array]],
    activation: str,
    loss: str,
    optimizer: str,
    lr: float,
    weight_decay: float = 0.0,
    **options: object,
) -> tuple[list[Layer], list[float]]:
    """The layers after one update for each batch, and each batch's mean loss before its update.

    >>> x, exclusive_or = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]), np.array([0, 1, 1, 0])
    >>> layers = initialise([2, 8, 2], "tanh", np.random.default_rng(0))
    >>> layers, history = train(layers, 200 * [(x, exclusive_or)], "tanh", "cross_entropy", "adam", lr=0.05)
    >>> forward(layers, x, "tanh")[0].argmax(1), history[-1] < 0.01
    (array([0, 1, 1, 0]), True)
    """
    memory: dict = {}
    history = []
    for x, targets in batches:
        outputs, kept = forward(layers, x, activation)
        losses, slope = LOSSES[loss](outputs, targets, **options)
        gradients = backward(layers, kept, slope, activation)
        layers = update(layers, gradients, optimizer, lr, memory, weight_decay)
        history.append(float(losses.mean()))
    return layers, history
