# SPDX-License-Identifier: MIT; the licence stands in full at the end of this file.
"""Linear models by minibatch SGD in pure JAX: one, or a hundred thousand at once.

    init_params   random params             sample_batch  rows drawn with replacement
    predict       X @ w + b                 step          one SGD update
    rmse, mse     the losses                fit           many steps of one model
    r2_score      R², 1 at best             fit_many      fit, for many models at once

Copy this file: it needs jax alone; `python -m jaxlin` demonstrates it. Read `fit`: one
jax.lax.scan over `sample_batch` and `step`. All that guards it comes after `fit_many`.

Shapes: n rows, d features, m batch rows, s models, t the target shape: () for y of
shape (n,), (k,) for (n, k). Params are the dict {"w": (d, *t), "b": t}.

X, y and rates are real numbers in JAX's or NumPy's arrays, data frames, lists. X of
float64 or wider, under jax_enable_x64, computes in float64, any other in float32; y,
rates, w and b follow it. Nothing broadcasts or is modified. Before anything runs, a
TypeError tells of wrong kinds, and a ValueError of shapes and sizes.
"""

import functools
import inspect
import operator
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from numpy.typing import ArrayLike

__version__ = "4.0.0"
__all__ = ["fit", "fit_many", "init_params", "mse", "predict", "r2_score", "rmse"]
__all__ += ["sample_batch", "step"]

Loss = Callable[..., jax.Array]
Step = Callable[..., tuple[Any, jax.Array]]
Function = TypeVar("Function", bound=Callable[..., Any])
_barrier: Any = jax.lax.optimization_barrier

STATIC = {"num_features", "target_shape", "dtype", "num_steps", "batch_size", "in_axes"}


def _compiled(function: Function) -> Function:
    """Compile `function`, behind the door (`_enter`) for what is from outside JAX."""
    # All arguments go on by name: one program, in whatever way they are given.
    parameters = inspect.signature(function).parameters
    defaults = {k: p.default for k, p in parameters.items() if p.default is not p.empty}
    positional = inspect.getfullargspec(function).args
    compiled = jax.jit(function, static_argnames=STATIC & parameters.keys())
    # At the first call, since `_enter` is not yet defined here.
    entered = functools.cache(lambda: {k: _enter(k, v) for k, v in defaults.items()})

    @functools.wraps(function)
    def door(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(positional, args, strict=False)) | kwargs
        whole = entered() | {name: _enter(name, given[name]) for name in given}
        if len(given) < len(args) + len(kwargs) or whole.keys() != parameters.keys():
            return function(*args, **kwargs)  # Python says what does not fit
        if given.get("start", 0) is defaults.get("start") and whole["params"] is None:
            del whole["start"]  # so that 0 is part of the program, and not transferred
        return compiled(**whole)

    return cast(Function, door)


@_compiled
def init_params(
    key: jax.Array,
    num_features: int,
    *,
    target_shape: tuple[int, ...] = (),
    dtype: Any = jnp.float32,
) -> dict[str, jax.Array]:
    """Draw params from the standard normal distribution: w, b ~ N(0, 1).

    Args:
      key: a random key; it is consumed.
      num_features, target_shape: d, and t.
      dtype: a real floating-point dtype. Narrow ones are drawn in float32 and rounded.

    >>> jax.tree.map(jnp.shape, init_params(jax.random.key(0), 2))
    {'b': (), 'w': (2,)}
    """
    _check_size("num_features", num_features, 1)
    floating = jnp.issubdtype(dtype, jnp.floating)
    _check(floating, "dtype", "be a floating-point one", dtype, TypeError)
    wide = jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype
    draws = jax.random.normal(key, (num_features + 1, *target_shape), wide)
    draws = draws.astype(dtype)
    return {"w": draws[:-1], "b": draws[-1]}


@_compiled
def predict(params: Any, X: ArrayLike) -> jax.Array:
    """Predict targets: X @ w + b, (n, *t).

    Args:
      params: {"w": (d, *t), "b": t}.
      X: features, (n, d).

    >>> predict({"w": [3.0, 4.0], "b": 5.0}, [[1, 1], [0, 2]])
    Array([12., 13.], dtype=float32)
    """
    X = _check_features(X)
    _check(_is_linear(params), "params", 'be a dict of "w" and "b"', params, TypeError)
    w, b = (jnp.asarray(params[name], X.dtype) for name in ("w", "b"))
    _check_shape('params["w"]', w, (X.shape[1], *b.shape))
    # By default an accelerator would round the factors to about three digits.
    return jnp.tensordot(X, w, axes=1, precision="highest") + b[None]


@_compiled
def rmse(params: Any, X: ArrayLike, y: ArrayLike) -> jax.Array:
    """Root-mean-square error: sqrt(mean((X @ w + b - y)²)), in the units of y.

    The gradient in w is Xᵀ r / (n rmse) for residuals r of one target, and 0 at a
    perfect fit. A NaN or an infinity in the data comes out as NaN or infinity.

    As a loss, it makes steps that do not grow with the errors: b moves by at most the
    learning rate, which is in units of y. With skewed noise it is off least squares, in
    b by about -skew * sigma / (2 m) for batches of m, at the median for m = 1; slopes
    are off as well where the noise's skew or scale changes with x. `mse` is not.

    Args: as for `predict`, and targets y, (n, *t). Sums over 10⁷ rows want float64.

    >>> rmse({"w": [1.0], "b": 0.0}, [[3], [4]], [0, 0])
    Array(3.535534, dtype=float32)
    """
    scale, mean_square = _mean_square(_residuals(params, X, y))
    # The slope of sqrt at 0 is infinite, and where alone would keep inf * 0 = NaN.
    zero = mean_square == 0
    return scale * jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, mean_square)))


@_compiled
def mse(params: Any, X: ArrayLike, y: ArrayLike) -> jax.Array:
    """Mean squared error: mean((X @ w + b - y)²), in the squared units of y.

    As a loss, it is least squares for batches of any size. Its learning rate has no
    unit of y; the features limit it, to well below 1 / mean(|x|² + 1) for one target
    and k times that for k, whose mean it is.

    >>> mse({"w": [1.0], "b": 0.0}, [[3], [4]], [0, 0])
    Array(12.5, dtype=float32)
    """
    return jnp.mean(_residuals(params, X, y) ** 2)


@_compiled
def r2_score(params: Any, X: ArrayLike, y: ArrayLike) -> jax.Array:
    """Coefficient of determination: 1 - Σ (y - predictions)² / Σ (y - mean(y))².

    By the conventions of sklearn.metrics.r2_score: the mean over targets; for a
    constant target 1 if the fit is perfect and 0 if not; NaN for a single row.

    >>> r2_score({"w": [1.0], "b": 0.0}, [[1], [2]], [1, 3])
    Array(0.5, dtype=float32)
    """
    residuals = _residuals(params, X, y)
    y = jnp.asarray(y, residuals.dtype)
    if y.shape[0] == 1:
        return jnp.full((), jnp.nan, y.dtype)
    # Less its first row, a constant target is exactly 0 and a distant one keeps digits.
    deviations = y - y[:1]
    deviations = deviations - jnp.mean(deviations, axis=0, keepdims=True)
    scale, error = _mean_square(residuals, axis=0)
    unit, spread = _mean_square(deviations, axis=0)
    constant, perfect = spread == 0, jnp.where(error == 0, 1, 0)
    ratio = (scale / unit) ** 2 * error / jnp.where(constant, 1, spread)
    # What is not finite in residuals or y comes through: 0 * x is NaN then.
    return jnp.mean(jnp.where(constant, perfect, 1 - ratio) + 0 * (error + spread))


def _is_linear(params: Any) -> bool:
    return isinstance(params, dict) and "w" in params and "b" in params


def _as_arrays(params: Any, dtype: Any = None) -> Any:
    """Params with w and b as arrays, lists stacked; another pytree as it is."""
    if not _is_linear(params):
        return params
    # / 1 makes floats of integers.
    return params | {k: jnp.asarray(params[k], dtype) / 1 for k in ("w", "b")}


def _residuals(params: Any, X: Any, y: Any) -> jax.Array:
    X, targets = _check_data(X, y)
    predictions = predict(params, X)
    _check_shape("y", targets, predictions.shape)
    return predictions - targets


def _mean_square(x: jax.Array, axis: Any = None) -> tuple[jax.Array, jax.Array]:
    """A scale, and the mean of (x / scale)²: the scale cancels, in derivatives too."""
    # float32 loses squares of what is outside 1e-19..1e19: square the ratio to the
    # mean size, kept where XLA does not flush its reciprocal to 0 or infinity.
    sizes, tiny = jnp.abs(x), np.finfo(x.dtype).tiny
    zero = jnp.sum(sizes, axis=axis, keepdims=True) == 0
    size = jnp.clip(jnp.mean(sizes, axis=axis, keepdims=True), tiny, 1 / tiny)
    scale = jax.lax.stop_gradient(jnp.where(zero, 1, size))
    return jnp.squeeze(scale, axis), jnp.mean((x / scale) ** 2, axis=axis)


@_compiled
def sample_batch(
    key: jax.Array, X: ArrayLike, y: ArrayLike, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Draw rows of both, (m, d) and (m, *t), uniformly with replacement.

    Each is row u mod n, u 32 random bits: a row of a thousand is as likely as another
    to six digits, a row of a million to three.

    Args:
      key: a random key; it is consumed.
      X, y: features and targets, (n, d) and (n, *t), n < 2**31.
      batch_size: m, in 1..n; n draws a bootstrap resample.

    >>> y = jnp.arange(8.0)
    >>> X_batch, y_batch = sample_batch(jax.random.key(0), y[:, None], y, 4)
    >>> bool(jnp.all(X_batch[:, 0] == y_batch))
    True
    """
    X, y = _check_data(X, y)
    _check_size("batch_size", batch_size, 1, X.shape[0])
    rows = _draw_rows(key, X.shape[0], batch_size)
    X_batch, y_batch = (a.at[rows].get(out_sharding=_mesh_of(a, rows)) for a in (X, y))
    if X.shape[1] < 8:  # a CPU is faster by columns; the barrier keeps them so
        X_batch = _barrier(X_batch.T).T
    return X_batch, y_batch


def _draw_rows(key: jax.Array, n: int, m: int) -> Any:
    # Threefry-2x32 of the counts 0..m-1, so the first words of jax.random.split(key, m)
    # bit for bit. Written out it takes a CPU a fraction of the time of JAX's own loop.
    data = jax.random.key_data(key)
    a, b = data[0], data[-1]  # of keys of other kinds, of one to four words, too
    words = (a, b, a ^ b ^ 0x1BD11BDA)
    x, y = a, b + jnp.arange(m, dtype=jnp.uint32)
    for i in range(1, 6):
        for turn in (13, 15, 26, 6) if i % 2 else (17, 29, 16, 24):
            x = x + y
            y = (y << turn | y >> (32 - turn)) ^ x
        x, y = x + words[i % 3], y + words[(i + 1) % 3] + i
    # Without the barrier XLA draws a row's bits again for each element it gathers.
    return _barrier(x % n)


def _mesh_of(*arrays: Any) -> NamedSharding | None:
    """The whole mesh, if one of them is on Explicit axes, where JAX asks for it."""
    meshes = (jax.typeof(x).sharding.mesh for x in arrays)
    mesh = next((m for m in meshes if AxisType.Explicit in m.axis_types), None)
    return mesh and NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]


def _join(params: Any, *placed: Any) -> Any:
    """Params moved to the mesh of Explicit axes, where a scan wants its carry."""
    mesh, move = _mesh_of(*placed), cast(Any, jax.sharding.reshard)
    return jax.tree.map(lambda p: move(p, mesh), params) if mesh else params


@_compiled
def step(
    params: Any, X: ArrayLike, y: ArrayLike, learning_rate: ArrayLike, loss: Loss = rmse
) -> tuple[Any, jax.Array]:
    """One SGD update: params - learning_rate * gradient of loss(params, X, y).

    Args:
      params: {"w": (d, *t), "b": t}, or another pytree of floats; its dtypes stay.
      X, y: a batch, (m, d) and (m, *t).
      learning_rate: a scalar.
      loss: a function (params, X, y) -> scalar.

    Returns the new params, and the loss before the update. It raises where devices
    under jax.shard_map would add up the gradients of losses that differ between them.

    >>> params, loss = step({"w": [1.0], "b": 0.0}, [[1]], [3], 0.5)
    >>> print(params["w"], params["b"], loss)
    [1.5] 0.5 2.0
    """
    _check_shape("learning_rate", learning_rate, ())
    params = _as_arrays(params)
    value, gradient = jax.value_and_grad(loss)(params, X, y)
    _check_devices(params, value)
    changes = jax.tree.map(lambda g: jnp.asarray(learning_rate, g.dtype) * g, gradient)
    return jax.tree.map(operator.sub, params, changes), value


@_compiled
def fit(
    key: jax.Array,
    X: ArrayLike,
    y: ArrayLike,
    learning_rate: ArrayLike,
    *,
    num_steps: int = 1000,
    batch_size: int | None = None,
    params: Any = None,
    start: ArrayLike = 0,
    loss: Loss = rmse,
    step: Step = step,
) -> tuple[Any, jax.Array]:
    """Train one model: num_steps times sample_batch then step, as one jax.lax.scan.

    The key is split in two, for init_params and for the batches; step i draws its batch
    with fold_in(batch_key, start + i). So training resumes bit for bit: with one key,
    a steps, then b steps with params=..., start=a, equal a + b steps, for a, b > 1.

    Args:
      key: a random key, used again only to resume; under jax.vmap not an rbg one.
      X, y: features and targets, (n, d) and (n, *t).
      learning_rate: a scalar, or a rate for each step, (num_steps,).
      num_steps, batch_size: 0 or more, and 1 to n, by default 100 or n if that is less.
      params: where to start; by default a draw of init_params, which stays where the
        data say nothing, and is far from all answers where there are many features.
      start: the number of the first step; at 0, params meet the first batches again.
      loss: a function (params, X, y) -> scalar.
      step: a function (params, X, y, learning_rate, loss) -> (params, loss). Its params
        may be any pytree; the first must be given if it is not w and b alone.

    Returns the params, and the loss before each update, (num_steps,).

    Rates are data: a new value compiles nothing, can be mapped, has a gradient. So is
    what a loss or step holds as jax.tree_util.Partial(function, value). All else that
    it reads is frozen at its first compile: globals, closures, attributes of an object,
    the arrays in a functools.partial. A function defined anew compiles anew.

    >>> X = jnp.arange(8.0)[:, None]
    >>> fit(jax.random.key(0), X, X[:, 0] + 1, 0.1)[1].shape
    (1000,)
    """
    X, y = _check_data(X, y)
    n, d = X.shape
    _check_size("num_steps", num_steps, 0)
    _check_shape("start", start, ())
    rates = jnp.asarray(learning_rate, X.dtype)
    rates = rates if rates.shape else jnp.full(num_steps, rates)
    _check_shape("learning_rate", rates, (num_steps,))
    batch_size = min(100, n) if batch_size is None else batch_size

    init_key, batch_key = jax.random.split(key)
    if params is None:
        params = init_params(init_key, d, target_shape=y.shape[1:], dtype=X.dtype)
    params = _join(_as_arrays(params, X.dtype), batch_key, rates)

    def body(params: Any, now: Any) -> Any:
        i, rate = now
        batch = sample_batch(jax.random.fold_in(batch_key, i), X, y, batch_size)
        return step(params, *batch, rate, loss)

    steps = jnp.asarray(start, jnp.uint32) + jnp.arange(num_steps, dtype=jnp.uint32)
    return jax.lax.scan(body, params, (steps, rates))


@_compiled
def fit_many(
    keys: jax.Array,
    X: ArrayLike,
    y: ArrayLike,
    learning_rate: ArrayLike,
    *,
    in_axes: tuple[int | None, ...] = (0, None, None, None),
    num_steps: int = 1000,
    batch_size: int | None = None,
    params: Any = None,
    start: ArrayLike = 0,
    loss: Loss = rmse,
    step: Step = step,
) -> tuple[Any, jax.Array]:
    """Train s models in one program: `fit` under jax.vmap.

    Model i equals fit(keys[i], ...) to rounding. Sharded keys shard the computation.

    Args:
      keys: s random keys, as jax.random.split(key, s) makes them; not rbg ones.
      in_axes: the axis of s in keys, X, y, learning_rate and params, None for what all
        share; params have axis 0 if it names four. (0, None, None, 0): a rate each, not
        a schedule; (None, None, None, 0): rates, one key for all; (0, 0, 0, None): a
        data set each; (0, None, None, None, None): params where all start.
      The others are as in fit, plus the axis of s where in_axes names one.

    Returns params, each leaf with a leading axis of s, and losses, (s, num_steps).

    >>> X, keys = jnp.ones((8, 1)), jax.random.split(jax.random.key(0), 256)
    >>> params, losses = fit_many(keys, X, X[:, 0], 0.1, num_steps=9)
    >>> params["w"].shape, losses.shape
    ((256, 1), (256, 9))
    """
    inputs = keys, X, y, learning_rate, _as_arrays(params, float)
    axes = _check_axes(in_axes, *inputs)
    rbg = keys.shape and "rbg" in str(jax.random.key_impl(keys))
    _check(not rbg, "keys", "be threefry2x32, as rbg may draw alike", keys, TypeError)
    options: dict[str, Any] = {"num_steps": num_steps, "batch_size": batch_size}
    options |= {"start": start, "loss": loss, "step": step}

    def train(key: Any, X: Any, y: Any, rate: Any, params: Any) -> tuple[Any, Any]:
        return fit(key, X, y, rate, params=params, **options)

    return jax.vmap(train, axes)(*inputs)


JAX = (jax.Array, jax.core.Tracer)

# What to type instead, by the argument or the topic that an error is about.
ADVICE = {
    "key": "jax.random.key(seed) makes one. Many at once: fit_many, or jax.vmap.",
    "keys": "jax.random.split(key, s) makes s of one. Of a list of keys: jnp.stack.",
    "X": "One feature: X[:, None]. One row: X[None]. Stacks: in_axes=(0, 0, 0, None).",
    "y": "Rows are the first axis, as in X: X.T, y.T or y[0]. One target: y[:, 0]. "
    "Stacks: in_axes=(0, 0, 0, None).",
    "be real numbers": "Gaps: fill them. Sparse: .toarray(), .todense(). Objects: "
    ".astype(float). Text: pd.get_dummies(..., dtype=float); codes for labels. Dates: "
    "days since the first. Schedule: schedule(jnp.arange(num_steps)).",
    "learning_rate": "Set num_steps, or take rates[start:start + num_steps]. A rate a "
    "model: fit_many with in_axes=(0, None, None, 0), or jax.vmap.",
    'be a dict of "w" and "b"': "Two come from fit: params, losses = fit(...).",
    'params["w"]': "Rows as features of X. Many models: jax.vmap(predict, (0, None)).",
    "be of s models": "One for all: in_axes=(0, None, None, None, None).",
    "in_axes": "Axes of s models in keys, X, y, rates and params, None where shared.",
    "params": "Else models on different devices train on each other. Give none, or "
    'jax.lax.pcast(params, axes, to="varying"). One model: jax.lax.pmean its loss.',
}


def _check(ok: Any, name: str, wanted: str, got: Any, kind: Any = ValueError) -> None:
    if not ok:
        advice = ADVICE.get(wanted, ADVICE.get(name, ""))
        raise kind(f"{name} must {wanted}; got {got!s:.300}. {advice}".rstrip())


def _enter(name: str, value: Any) -> Any:
    """The door: an argument from outside JAX, as jit takes it; NumPy's are copied."""
    # Shapes and sizes are checked while tracing, where they cost nothing.
    if name in ("X", "y", "learning_rate"):
        return np.float64(value) if type(value) is float else _as_floats(name, value)
    if name in ("key", "keys"):
        return _as_keys(name, value)
    if name in STATIC:
        return int(value) if isinstance(value, np.integer) else value
    if name == "start" and not isinstance(value, jax.core.Tracer):
        return np.uint32(operator.index(value))
    if name in ("loss", "step"):
        _check(callable(value), name, "be a function", repr(value), TypeError)
    ready = all(isinstance(leaf, JAX) for leaf in jax.tree.leaves(value))
    return value if ready else jax.tree.map(_as_leaf, value)


def _as_floats(name: str, value: Any) -> Any:
    if isinstance(value, JAX) and value.dtype == np.float32:
        return value  # the commonest, and the quickest to tell
    refused = isinstance(value, np.ma.MaskedArray) or hasattr(type(value), "todense")
    array = value if isinstance(value, JAX) else np.asarray(None if refused else value)
    dtype = array.dtype
    real = isinstance(dtype, np.dtype) and np.can_cast(dtype, np.longdouble)
    _check(real, name, "be real numbers", (type(value), dtype.type), TypeError)
    wide = name != "X" or dtype.char in "dg"  # double and longdouble
    return array if isinstance(array, JAX) else array.astype("f8" if wide else "f4")


def _as_keys(name: str, value: Any) -> Any:
    if not isinstance(value, JAX) or isinstance(value.dtype, np.dtype):
        legacy = getattr(value, "dtype", None) == np.uint32 and value.shape
        _check(legacy, name, "come from jax.random", value, TypeError)
        value = jax.random.wrap_key_data(_as_leaf(value))
    _check(name == "keys" or not value.shape, name, "be one", f"shape {value.shape}")
    return value


def _as_leaf(x: Any) -> Any:
    if callable(x):
        hash(x)  # jit compiles by it
        return Partial(x)  # type: ignore[no-untyped-call]
    # A copy in native byte order, for jit does not look at the order of what it knows.
    return x if isinstance(x, JAX) or not hasattr(x, "__array__") else np.where(1, x, x)


def _check_size(name: str, size: Any, low: int, high: int = 2**31 - 1) -> None:
    _check(type(size) is int, name, "be an integer", repr(size), TypeError)
    _check(low <= size <= high, name, f"be in {low}..{high}", size)


def _check_shape(name: str, array: Any, shape: Any) -> None:
    _check(np.shape(array) == shape, name, f"have shape {shape}", np.shape(array))


def _check_features(X: Any) -> jax.Array:
    _check(X.ndim == 2 and 0 not in X.shape, "X", "be (n, d), both above 0", X.shape)
    return jnp.asarray(X, float if X.dtype == jnp.float64 else jnp.float32)


def _check_data(X: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    X = _check_features(X)
    ok = y.shape[:1] == X.shape[:1] and 0 not in y.shape
    _check(ok, "y", f"have {X.shape[0]} rows, as X has, and a target", y.shape)
    return X, jnp.asarray(y, X.dtype)


def _check_axes(in_axes: Any, *inputs: Any) -> Any:
    """in_axes with that of params. Keys and params (inputs[::4]) first, then vmap."""
    _check(isinstance(in_axes, tuple), "in_axes", "be a tuple", in_axes, TypeError)
    axes = (*in_axes, 0) if len(in_axes) == 4 else in_axes
    s, sizes = ({np.shape(x)[:1] for x in jax.tree.leaves(i)} for i in inputs[::4])
    _check(s != {()} or axes[:1] != (0,), "keys", "be many", "one key")
    _check(sizes <= s or axes[::4] != (0, 0), "params", "be of s models", sizes)
    try:
        jax.vmap(lambda keys, X, y, rates, params: 0, axes, out_axes=None)(*inputs)
    except ValueError as error:
        _check(False, "in_axes", "fit the arguments", f"{in_axes}: {error}")
    return axes


def _check_devices(params: Any, loss: Any) -> None:
    """Under jax.shard_map the gradients in what devices share are added up."""
    for leaf in jax.tree.leaves(params):
        axes = _varying(loss) - _varying(leaf)
        _check(not axes, "params", f"vary over axes {(*axes,)}, as the loss does", leaf)


def _varying(x: Any) -> Any:
    aval: Any = jax.typeof(x)
    return aval.vma if hasattr(aval, "vma") else aval.mat.varying


def main() -> None:
    """Train 256 models of made-up data, and compare them with exact least squares."""
    X_key, noise_key, models_key = jax.random.split(jax.random.key(0), 3)
    X = 10 * jax.random.uniform(X_key, (1000, 2))
    y = X @ jnp.array([3.0, 4.0]) + 5 + jax.random.uniform(noise_key, (1000,))
    keys, params = jax.random.split(models_key, 256), None
    began = time.perf_counter()
    for i in range(0, 5000, 500):
        params, loss = fit_many(keys, X, y, 0.01, num_steps=500, params=params, start=i)
        print(f"step {i + 500:4} of 5000, RMSE {jnp.median(loss[:, -1]):.3f}")
    speed = 256 * 5000 / (time.perf_counter() - began)

    def figures(params: Any) -> list[jax.Array]:
        return [*params["w"], params["b"], r2_score(params, X, y), rmse(params, X, y)]

    *w, b = jnp.linalg.lstsq(jnp.column_stack([X, jnp.ones(1000)]), y)[0]
    each, best = jax.vmap(figures)(params), figures({"w": w, "b": b})
    print("\n           mean    spread   least squares")
    for i, name in enumerate(("w[0]", "w[1]", "b", "R²", "RMSE")):
        print(f"{name:5} {each[i].mean():9.5f} {each[i].std():9.5f} {best[i]:15.5f}")
    print(f"\n{speed:,.0f} model-steps per second, compilation included")


if __name__ == "__main__":
    main()

# MIT License. Copyright (c) 2026 the jaxlin authors.
#
# Permission is hereby granted, free of charge, to any person obtaining a copy of this
# software and associated documentation files (the "Software"), to deal in the Software
# without restriction, including without limitation the rights to use, copy, modify,
# merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
# permit persons to whom the Software is furnished to do so, subject to the following
# conditions:
#
# The above copyright notice and this permission notice shall be included in all copies
# or substantial portions of the Software.
#
# THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED,
# INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A
# PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT
# HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
# CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE
# OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
