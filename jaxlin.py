# SPDX-License-Identifier: MIT; the licence stands in full at the end of this file.
"""Linear models by minibatch SGD in pure JAX: one, or a hundred thousand at once.

    init_params   random params             sample_batch  rows drawn with replacement
    predict       X @ w + b                 step          one SGD update
    rmse, mse     the losses                fit           many steps of one model
    r2_score      R², 1 at best             fit_many      fit, for many models at once

Copy this file: it needs jax alone; `python -m jaxlin` demonstrates it. Start reading at
`init_params`: from there to `fit_many` there is no detour. Behind them stand the pieces
that they share (`_as_...` while tracing), the door for what comes from outside JAX
(`_to_...`, before tracing), the checks, the demo.

Shapes: n rows, d features, m batch rows, s models, t the target shape: () for y of
shape (n,), (k,) for (n, k). Params are the dict {"w": (d, *t), "b": t}.

X, y and rates are real numbers in JAX's or NumPy's arrays, data frames, lists. X of
float64 or wider, under jax_enable_x64, computes in float64, any other in float32; y,
rates, w and b follow it. y never broadcasts against predictions, and no input is
modified. Before anything runs, a TypeError tells of wrong kinds, and a ValueError of
wrong shapes and sizes.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from numpy.typing import ArrayLike

__version__ = "5.0.0"
__all__ = ["fit", "fit_many", "init_params", "mse", "predict", "r2_score", "rmse"]
__all__ += ["sample_batch", "step"]

Params = Any  # {"w": (d, *t), "b": t}, or whatever pytree a step of one's own carries
Loss = Callable[..., jax.Array]
Step = Callable[..., tuple[Params, jax.Array]]
Schedule = Callable[[jax.Array], ArrayLike]
Function = TypeVar("Function", bound=Callable[..., Any])

_barrier: Any = jax.lax.optimization_barrier
JAX_ARRAY = (jax.Array, jax.core.Tracer)  # from JAX 0.12 on a tracer is no Array

# Part of the program: another value compiles anew. (So does another function.)
STATIC = {"num_features", "target_shape", "dtype", "num_steps", "batch_size", "in_axes"}


def _compiled(function: Function) -> Function:
    """Compile `function`; what it is given passes the door, `_to_jax`, by its name."""
    parameters = inspect.signature(function).parameters
    positional = inspect.getfullargspec(function).args
    required = {name for name, p in parameters.items() if p.default is p.empty}
    jitted = jax.jit(function, static_argnames=STATIC & parameters.keys())

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(positional, args, strict=False)) | kwargs
        known = required <= given.keys() <= parameters.keys()
        each_once = len(given) == len(args) + len(kwargs)
        if not (known and each_once):
            return function(*args, **kwargs)  # raises, in Python's own words
        # By name, so that a call by position and one by keyword share a program.
        return jitted(**{name: _to_jax(name, given[name]) for name in given})

    return cast(Function, wrapper)


@_compiled
def init_params(
    key: jax.Array,
    num_features: int,
    *,
    target_shape: Sequence[int] = (),
    dtype: Any = jnp.float32,
) -> dict[str, jax.Array]:
    """Draw normal params: w ~ N(0, 1/d) and b ~ N(0, 1).

    So predictions from features of size 1 are of size 1, however many there are.

    Args:
      key: a random key; it is consumed.
      num_features, target_shape: d, and t.
      dtype: a real floating-point dtype. Narrow ones are drawn in float32 and rounded.

    >>> jax.tree.map(jnp.shape, init_params(jax.random.key(0), 2))
    {'b': (), 'w': (2,)}
    """
    _check_size("num_features", num_features, 1)
    several = isinstance(target_shape, tuple)
    _check(several, "target_shape", "be a tuple", target_shape, kind=TypeError)
    for size in target_shape:
        _check_size("target_shape", size, 1)
    floating = jnp.issubdtype(dtype, jnp.floating)
    _check(floating, "dtype", "be a floating-point one", dtype, kind=TypeError)
    wide = jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype
    draws = jax.random.normal(key, (num_features + 1, *target_shape), wide)
    w, b = draws[:-1] / num_features**0.5, draws[-1]
    return {"w": w.astype(dtype), "b": b.astype(dtype)}


@_compiled
def predict(params: Params, X: ArrayLike) -> jax.Array:
    """Predict targets: X @ w + b, (n, *t).

    Args:
      params: {"w": (d, *t), "b": t}.
      X: features, (n, d).

    >>> predict({"w": [3.0, 4.0], "b": 5.0}, [[1, 1], [0, 2]])
    Array([12., 13.], dtype=float32)
    """
    X = _as_features(X)
    ok = _has_w_and_b(params)
    advice = "Two come from fit: params, losses = fit(...)."
    _check(ok, "params", 'be a dict of "w" and "b"', params, advice, TypeError)
    w, b = (jnp.asarray(params[name], X.dtype) for name in ("w", "b"))
    advice = "A row for each column of X. Many models: jax.vmap(predict, (0, None)). "
    advice += "If the loss takes a column (weights, offset): give params without it."
    _check_shape('params["w"]', w, (X.shape[1], *b.shape), advice)
    # By default an accelerator would round the factors to about three digits. And b
    # is not promoted from its rank, which some users let JAX refuse.
    return jnp.tensordot(X, w, axes=1, precision="highest") + b[None]


@_compiled
def mse(params: Params, X: ArrayLike, y: ArrayLike) -> jax.Array:
    """Mean squared error: mean((X @ w + b - y)²), in the squared units of y.

    As a loss it is least squares, for batches of any size. Its learning rate has no
    unit of y: the features limit it, to well below k / mean(|x|² + 1) for k targets.
    Float32 can square errors from 1e-19 to 1e19: choose the unit of y so. Sums over 10⁷
    rows want float64.

    >>> mse({"w": [1.0], "b": 0.0}, [[3], [4]], [0, 0])
    Array(12.5, dtype=float32)
    """
    return jnp.mean(_residuals(params, X, y) ** 2)


@_compiled
def rmse(params: Params, X: ArrayLike, y: ArrayLike) -> jax.Array:
    """Root-mean-square error: sqrt(mean((X @ w + b - y)²)), in the units of y.

    The gradient in w is Xᵀ r / (n rmse) for residuals r of one target, and 0 at a
    perfect fit. As a loss it makes steps that do not grow with the errors: b moves by
    at most the learning rate, which is in units of y. On batches whose noise is skewed
    it ends beside least squares, as `mse` does not.

    Args: as for `predict`, and targets y, (n, *t).

    >>> rmse({"w": [1.0], "b": 0.0}, [[3], [4]], [0, 0])
    Array(3.535534, dtype=float32)
    """
    mean_square = mse(params, X, y)
    # The slope of sqrt at 0 is infinite, and one `where` would keep inf * 0 = NaN.
    perfect = mean_square == 0
    return jnp.where(perfect, 0, jnp.sqrt(jnp.where(perfect, 1, mean_square)))


@_compiled
def r2_score(params: Params, X: ArrayLike, y: ArrayLike) -> jax.Array:
    """Coefficient of determination: 1 - Σ (y - predictions)² / Σ (y - mean(y))².

    By the conventions of sklearn.metrics.r2_score: the mean over targets; for a
    constant target 1 if the fit is perfect and 0 if not; NaN for a single row. NaN,
    too, for what is not finite, or has squares beyond the range of the dtype.

    >>> r2_score({"w": [1.0], "b": 0.0}, [[1], [2]], [1, 3])
    Array(0.5, dtype=float32)
    """
    residuals = _residuals(params, X, y)
    y = jnp.asarray(y, residuals.dtype)
    # First without its minimum: a constant target is then exactly 0, and the mean of a
    # distant one keeps its digits.
    deviations = y - jnp.min(y, axis=0, keepdims=True)
    deviations = deviations - jnp.mean(deviations, axis=0, keepdims=True)
    error = jnp.mean(residuals**2, axis=0)
    spread = jnp.mean(deviations**2, axis=0)
    perfect = jnp.all(residuals == 0, axis=0)
    constant = jnp.all(deviations == 0, axis=0)
    # Squares below `tiny` may be flushed to 0: from this spread on they do not matter.
    least = np.finfo(y.dtype).tiny / np.finfo(y.dtype).eps
    known = jnp.isfinite(error + spread) & (constant | (spread > least))
    ratio = error / jnp.where(constant, 1, spread)
    score = jnp.where(constant, perfect.astype(y.dtype), 1 - ratio)
    return jnp.mean(jnp.where(known & (y.shape[0] != 1), score, jnp.nan))


@_compiled
def sample_batch(
    key: jax.Array, X: ArrayLike, y: ArrayLike, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Draw rows of both, (m, d) and (m, *t), uniformly with replacement.

    Each is row u mod n of 32 random bits u. So rows are equally likely to within
    n / 2**32 of their share: 2e-7 for a thousand rows, 2e-4 for a million, 1/2 at most.

    Args:
      key: a random key; it is consumed.
      X, y: features and targets, (n, d) and (n, *t), n < 2**31.
      batch_size: m, in 1..n; n draws a bootstrap resample.

    >>> y = jnp.arange(8.0)
    >>> X_batch, y_batch = sample_batch(jax.random.key(0), y[:, None], y, 4)
    >>> bool(jnp.all(X_batch[:, 0] == y_batch))
    True
    """
    X, y = _as_data(X, y)
    n, d = X.shape
    _check_size("batch_size", batch_size, 1, n)
    rows = _draw_rows(key, n, batch_size)
    X_batch = X.at[rows].get(out_sharding=_replicated(X, rows))
    y_batch = y.at[rows].get(out_sharding=_replicated(y, rows))
    if d < 8:  # by columns, which a CPU reads faster; XLA would undo it but for this
        X_batch = _barrier(X_batch.T).T
    return X_batch, y_batch


@_compiled
def step(
    params: Params,
    X: ArrayLike,
    y: ArrayLike,
    learning_rate: ArrayLike,
    loss: Loss = rmse,
) -> tuple[Params, jax.Array]:
    """One SGD update: params - learning_rate * gradient of loss(params, X, y).

    Args:
      params: {"w": (d, *t), "b": t}, or another pytree of floats; its dtypes stay.
      X, y: a batch, (m, d) and (m, *t).
      learning_rate: a scalar.
      loss: a function (params, X, y) -> scalar.

    Returns the new params, and the loss before the update. Under jax.shard_map it
    raises if the loss differs between devices and params do not: JAX would add up the
    gradients of all of them.

    >>> params, loss = step({"w": [1.0], "b": 0.0}, [[1]], [3], 0.5)
    >>> print(params["w"], params["b"], loss)
    [1.5] 0.5 2.0
    """
    advice = "Many steps: fit. Many models: jax.vmap. A schedule: schedule(i)."
    _check_shape("learning_rate", learning_rate, (), advice)
    X, y = _as_data(X, y)
    params = _reshard(_as_arrays(params), X)
    value, gradient = jax.value_and_grad(loss)(params, X, y)
    _check_devices(params, value)

    def update(p: jax.Array, g: jax.Array) -> jax.Array:
        return p - jnp.asarray(learning_rate, g.dtype) * g

    return jax.tree.map(update, params, gradient), value


@_compiled
def fit(
    key: jax.Array,
    X: ArrayLike,
    y: ArrayLike,
    learning_rate: ArrayLike | Schedule,
    *,
    num_steps: int | None = None,
    batch_size: int | None = None,
    params: Params = None,
    start: ArrayLike = 0,
    loss: Loss = rmse,
    step: Step = step,
) -> tuple[Params, jax.Array]:
    """Train one model: num_steps times sample_batch then step, as one jax.lax.scan.

    The key is split in two, for init_params and for the batches; step i draws its batch
    with fold_in(batch_key, i). So training resumes bit for bit: one call of 500 steps
    equals a call of 200, then one of 300 with the same key, the params that the first
    returned, and start=200. (In calls of a single step, and in rates that a schedule
    computes, the last bit may differ.)

    Args:
      key: a random key, used again only to resume. Under vmap rbg keys may draw alike.
      X, y: features and targets, (n, d) and (n, *t).
      learning_rate: a scalar; or a rate for each step, (num_steps,); or a schedule, a
        function from the number of a step, int32, to its rate, as optax's are. It is
        mapped over start, start + 1, ...
      num_steps: 0 or more; by default as many as there are rates, 1,000 for a scalar
        or a schedule.
      batch_size: 1 to n; by default 100, or n if that is less.
      params: the first params; by default a draw of init_params.
      start: the number of the first step, below 2**31 for a schedule. It chooses the
        batches, and the rates of a schedule (an array of rates begins at its first).
        Going on from params without it meets the first batches again.
      loss: a function (params, X, y) -> scalar.
      step: a function (params, X, y, learning_rate, loss) -> (params, loss). Its params
        may be any pytree (of which w and b side by side are made arrays of X's dtype);
        then give the first one as `params`.

    Returns the params, and the loss before each update, (num_steps,).

    Rates are data: a new value compiles nothing, can be mapped, has a gradient. So is
    what a loss, step or schedule holds as jax.tree_util.Partial(function, value). All
    else that such a function reads is frozen at its first compile: globals, closures,
    attributes, arrays in a functools.partial. A function defined anew compiles anew.

    >>> X = jnp.arange(8.0)[:, None]
    >>> fit(jax.random.key(0), X, X[:, 0] + 1, 0.1)[1].shape
    (1000,)
    """
    X, y = _as_data(X, y)
    n, d = X.shape
    numbers, rates = _numbers_and_rates(start, num_steps, learning_rate, X.dtype)
    batch_size = min(100, n) if batch_size is None else batch_size

    init_key, batch_key = jax.random.split(key)
    if params is None:
        params = init_params(init_key, d, target_shape=y.shape[1:], dtype=X.dtype)
    params = _as_arrays(params, X.dtype)
    params = _reshard(params, batch_key, rates)

    def body(params: Params, number_and_rate: Any) -> tuple[Params, jax.Array]:
        i, rate = number_and_rate
        batch = sample_batch(jax.random.fold_in(batch_key, i), X, y, batch_size)
        return step(params, *batch, rate, loss)

    return jax.lax.scan(body, params, (numbers, rates))


@_compiled
def fit_many(
    keys: jax.Array,
    X: ArrayLike,
    y: ArrayLike,
    learning_rate: ArrayLike | Schedule,
    *,
    in_axes: Sequence[int | None] = (0, None, None, None),
    num_steps: int | None = None,
    batch_size: int | None = None,
    params: Params = None,
    start: ArrayLike = 0,
    loss: Loss = rmse,
    step: Step = step,
) -> tuple[Params, jax.Array]:
    """Train s models in one program: `fit` under jax.vmap.

    Model i equals fit(keys[i], ...) to rounding. Sharded keys shard the computation.

    Args:
      keys: s random keys, as jax.random.split(key, s) makes them; not rbg ones.
      in_axes: the axis of s in keys, X, y, learning_rate and params, None for what all
        share. The fifth, that of params, is 0 by default.
          (0, None, None, 0)            a rate for each model
          (None, None, None, 0)         the same, and one key for all
          (0, 0, 0, None)               a data set for each model
          (0, None, None, None, None)   params with which all begin
      The others are as in fit, plus the axis of s where in_axes names one.

    Returns params, each leaf with a leading axis of s, and losses, (s, num_steps).

    >>> X, keys = jnp.ones((8, 1)), jax.random.split(jax.random.key(0), 256)
    >>> params, losses = fit_many(keys, X, X[:, 0], 0.1, num_steps=9)
    >>> params["w"].shape, losses.shape
    ((256, 1), (256, 9))
    """
    params = _as_arrays(params)
    axes = _five_axes(in_axes, keys, learning_rate, params)
    options: dict[str, Any] = {"num_steps": num_steps, "batch_size": batch_size}
    options |= {"start": start, "loss": loss, "step": step}

    def train(key: Any, X: Any, y: Any, learning_rate: Any, params: Any) -> Any:
        return fit(key, X, y, learning_rate, params=params, **options)

    params, losses = jax.vmap(train, axes)(keys, X, y, learning_rate, params)
    # Still while tracing: s rates may be meant for the steps, or for the models.
    shape = getattr(learning_rate, "shape", None)
    clear = num_steps is not None or axes[3] is not None or shape != losses.shape[:1]
    advice = f"One for each model: in_axes={(*axes[:3], 0, *in_axes[4:])}."
    wanted = "be given where there are as many shared rates as models"
    _check(clear, "num_steps", wanted, num_steps, advice)
    return params, losses


def _as_features(X: Any) -> jax.Array:
    ok = X.ndim == 2 and 0 not in X.shape
    advice = "One feature: X[:, None]. One row: X[None]. Stacks: jax.vmap, or fit_many "
    advice += "with in_axes=(0, 0, 0, None)."
    _check(ok, "X", "be (n, d), both above 0", X.shape, advice)
    # float is float64 where that is enabled.
    return jnp.asarray(X, float if X.dtype == jnp.float64 else jnp.float32)


def _as_data(X: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    X = _as_features(X)
    ok = y.shape[:1] == X.shape[:1] and 0 not in y.shape
    advice = "Rows come first: X.T, y.T or y[0]. Stacks: fit_many's in_axes, jax.vmap."
    _check(ok, "y", f"have {X.shape[0]} rows, as X has, and a target", y.shape, advice)
    return X, jnp.asarray(y, X.dtype)


def _has_w_and_b(params: Params) -> bool:
    return isinstance(params, dict) and "w" in params and "b" in params


def _residuals(params: Params, X: Any, y: Any) -> Any:
    X, y = _as_data(X, y)
    predictions = predict(params, X)
    t = predictions.shape[1:]
    advice = "One target: y[:, 0]. k targets: w of shape (d, k), b of shape (k,)."
    got = f"{y.shape[1:]} in {y.shape}"
    _check(y.shape[1:] == t, "y", f"have target shape {t}, as b has", got, advice)
    return predictions - y


def _as_arrays(params: Params, dtype: Any = None) -> Params:
    """Params with w and b as arrays of floats, lists stacked; other pytrees as is."""
    if not _has_w_and_b(params):
        return params
    # / 1 makes floats of integers, where the dtype is left as it is.
    return params | {k: jnp.asarray(params[k], dtype) / 1 for k in ("w", "b")}


def _numbers_and_rates(start: Any, num_steps: Any, rates: Any, dtype: Any) -> Any:
    """The numbers of the steps, int32, and their rates: (num_steps,) both."""
    start = jnp.asarray(start)
    integer = jnp.issubdtype(start.dtype, jnp.integer)
    _check(integer, "start", "be a whole number", start.dtype, kind=TypeError)
    _check_shape("start", start, ())
    if num_steps is None:
        num_steps = 1000 if callable(rates) or not rates.shape else rates.shape[0]
    _check_size("num_steps", num_steps, 0)
    numbers = start.astype(jnp.int32) + jnp.arange(num_steps, dtype=jnp.int32)
    rates = jnp.asarray(jax.vmap(rates)(numbers) if callable(rates) else rates, dtype)
    rates = rates if rates.shape else jnp.full(num_steps, rates)
    advice = "Set num_steps, or take rates[start:start + num_steps]. A rate for each "
    advice += "model: fit_many with in_axes=(0, None, None, 0), or jax.vmap."
    _check_shape("learning_rate", rates, (num_steps,), advice)
    return numbers, rates


def _five_axes(in_axes: Any, keys: jax.Array, rates: Any, params: Params) -> Any:
    """in_axes with that of params; checks of what jax.vmap would not say by name."""
    ok = isinstance(in_axes, tuple) and len(in_axes) in (4, 5)
    advice = "Axes of s models in keys, X, y, rates and params, None where shared."
    _check(ok, "in_axes", "be a tuple of 4 or 5", in_axes, advice, TypeError)
    axes = (*in_axes, 0)[:5]
    key_axis, _, _, rate_axis, params_axis = axes
    one = keys.shape == ()
    advice = "jax.random.split(key, s) makes s of one. For one: None in in_axes."
    _check(key_axis is None or not one, "keys", "be many", "one key", advice)
    _check(key_axis is not None or one, "keys", "be one", f"shape {keys.shape}", advice)
    rbg = not one and "rbg" in str(jax.random.key_impl(keys))
    advice = 'jax.random.key(seed, impl="threefry2x32") makes others.'
    _check(not rbg, "keys", "not be rbg, which may draw alike", keys, advice, TypeError)
    many = rate_axis is None or getattr(rates, "shape", None) != ()
    advice = "One for all has None in in_axes."
    _check(many, "learning_rate", "be many", "one rate", advice)
    if params_axis == 0:
        # Of a scalar this is ().
        sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(params)}
        ok = () not in sizes and (key_axis != 0 or sizes <= {keys.shape[:1]})
        advice = f"One for all: in_axes={(*axes[:4], None)}."
        _check(ok, "params", "be of s models", sizes, advice)
    return axes


def _draw_rows(key: jax.Array, n: int, m: int) -> Any:
    """Draw m row numbers below n."""
    jax.random.bits(key)  # for jax_debug_key_reuse; not computed, as nothing uses it
    # Threefry-2x32 of the counts 0..m-1: bit for bit the first words of the keys that
    # jax.random.split(key, m) makes (with jax_threefry_partitionable, JAX's default).
    # Written out it takes a CPU a fraction of the time of JAX's own loop.
    data = jax.random.key_data(key)
    a, b = data[0], data[-1]  # all of threefry's; keys of other kinds have 1 to 4 words
    words = (a, b, a ^ b ^ 0x1BD11BDA)
    padded = m + -m % 8  # to whole vectors of a CPU
    left, right = a, b + jnp.arange(padded, dtype=jnp.uint32)
    for i in range(1, 6):
        for turn in (13, 15, 26, 6) if i % 2 else (17, 29, 16, 24):
            left = left + right
            right = (right << turn | right >> (32 - turn)) ^ left
        left, right = left + words[i % 3], right + words[(i + 1) % 3] + i
    # The inner barrier lets XLA hash whole vectors; without the outer one it would draw
    # a row's bits again for each element that it gathers.
    return _barrier(_barrier(left)[:m] % n)


def _replicated(*arrays: Any) -> NamedSharding | None:
    """Whole on each device of the mesh whose Explicit axes an array is on, if any is.

    There JAX wants to be told where what is gathered goes.
    """
    meshes = (jax.typeof(x).sharding.mesh for x in arrays)
    mesh = next((m for m in meshes if AxisType.Explicit in m.axis_types), None)
    return mesh and NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]


def _reshard(params: Params, *arrays: Any) -> Params:
    """Params on the mesh of arrays on Explicit axes: a scan's carry must stay there."""
    sharding, reshard = _replicated(*arrays), cast(Any, jax.sharding.reshard)
    return jax.tree.map(lambda p: reshard(p, sharding), params) if sharding else params


def _to_jax(name: str, value: Any) -> Any:
    """The door: an argument from outside JAX, as jit takes it.

    NumPy's arrays are copied, as JAX may read them later than the call. Shapes and
    sizes are checked while tracing, where that costs nothing.
    """
    if name in STATIC:
        return _to_python(name, value)
    if name in ("key", "keys"):
        return _to_keys(name, value)
    if name in ("X", "y") or (name == "learning_rate" and not callable(value)):
        return _to_floats(name, value)
    if name == "start" and not isinstance(value, jax.core.Tracer):
        value = _to_python(name, value)
        _check_size(name, value, 0, 2**32 - 1)
        return np.uint32(value)
    if name in ("loss", "step") and not callable(value):
        _check(False, name, "be a function", repr(value), kind=TypeError)
    ready = all(isinstance(leaf, JAX_ARRAY) for leaf in jax.tree.leaves(value))
    return value if ready else jax.tree.map(_to_leaf, value)


def _to_python(name: str, value: Any) -> Any:
    traced = isinstance(value, jax.core.Tracer)
    _check(not traced, name, "be known while tracing", value, kind=TypeError)
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(_to_python(name, part) for part in value)
    return value


def _to_keys(name: str, value: Any) -> Any:
    advice = "jax.random.key(seed) makes one. Many: jax.vmap, fit_many, jnp.stack."
    if not isinstance(value, JAX_ARRAY) or isinstance(value.dtype, np.dtype):
        legacy = getattr(value, "dtype", None) == np.uint32 and value.shape
        _check(legacy, name, "come from jax.random", value, advice, TypeError)
        value = jax.random.wrap_key_data(_to_leaf(value))
    one = name == "keys" or value.shape == ()
    _check(one, name, "be one", f"shape {value.shape}", advice)
    return value


def _to_floats(name: str, value: Any) -> Any:
    # The commonest first, since each call waits for them.
    if type(value) is float:
        return np.float64(value)
    if isinstance(value, JAX_ARRAY) and value.dtype == np.float32:
        return value
    gappy = isinstance(value, np.ma.MaskedArray) or hasattr(type(value), "todense")
    advice = "Gaps: fill them. Sparse: .toarray(), .todense(), or a loss of w[ids]."
    _check(not gappy, name, "be dense", type(value), advice, TypeError)
    array = value if isinstance(value, JAX_ARRAY) else np.asarray(value)
    # What NumPy can turn into its widest float is real. Keys have dtypes of JAX's own.
    dtype = array.dtype
    real = isinstance(dtype, np.dtype) and np.can_cast(dtype, np.longdouble)
    advice = "Objects: .astype(float). Text: pd.get_dummies(..., dtype=float). Dates: "
    advice += "days since the first. Params come before X: predict(params, X)."
    _check(real, name, "be real numbers", (type(value), dtype.type), advice, TypeError)
    if isinstance(array, JAX_ARRAY):
        return array
    wide = dtype.type in (np.float64, np.longdouble)  # in any byte order
    # y and rates follow X while tracing.
    return array.astype(np.float32 if name == "X" and not wide else np.float64)


def _to_leaf(x: Any) -> Any:
    if callable(x):
        hash(x)  # raises here, not at the second call, where it has none
        return Partial(x)  # type: ignore[no-untyped-call]
    if isinstance(x, np.ndarray) and not isinstance(x, np.ma.MaskedArray):
        return np.array(x, x.dtype.newbyteorder("="))  # jit takes the order for granted
    return x  # which JAX judges


def _check(
    ok: Any, name: str, wanted: str, got: Any, advice: str = "", kind: Any = ValueError
) -> None:
    """Every error of this file: what is wanted, what came, and what to do."""
    if not ok:
        raise kind(f"{name} must {wanted}; got {got!s:.300}. {advice}".rstrip())


def _check_size(name: str, size: Any, low: int, high: int = 2**31 - 1) -> None:
    _check(type(size) is int, name, "be an integer", repr(size), kind=TypeError)
    _check(low <= size <= high, name, f"be in {low}..{high}", size)


def _check_shape(name: str, array: Any, shape: Any, advice: str = "") -> None:
    got = getattr(array, "shape", array)
    _check(got == shape, name, f"have shape {shape}", got, advice)


def _check_devices(params: Params, loss: jax.Array) -> None:
    """Under jax.shard_map JAX adds up the gradients in what devices share."""
    advice = 'Give none, or jax.lax.pcast(params, axes, to="varying"), or pmean losses.'
    for leaf in jax.tree.leaves(params):
        axes = _varying_axes(loss) - _varying_axes(leaf)
        wanted = f"vary over axes {(*axes,)}, as the loss does"
        _check(not axes, "params", wanted, leaf, advice)


def _varying_axes(x: Any) -> Any:
    """The axes of jax.shard_map over which x differs; none where JAX does not tell."""
    aval: Any = jax.typeof(x)
    in_older_jax: Any = getattr(aval, "vma", frozenset())
    return getattr(getattr(aval, "mat", None), "varying", in_older_jax)


def main() -> None:
    """Train 256 models of made-up data, and compare them with exact least squares."""
    X_key, noise_key, models_key = jax.random.split(jax.random.key(0), 3)
    X = 10 * jax.random.uniform(X_key, (1000, 2))
    y = X @ jnp.array([3.0, 4.0]) + 5 + jax.random.uniform(noise_key, (1000,))
    keys, params = jax.random.split(models_key, 256), None
    for i in range(0, 5000, 500):
        params, loss = fit_many(keys, X, y, 0.01, num_steps=500, params=params, start=i)
        print(f"step {i + 500:4} of 5000, RMSE {jnp.median(loss[:, -1]):.3f}")

    def figures(params: Params) -> list[jax.Array]:
        return [*params["w"], params["b"], r2_score(params, X, y), rmse(params, X, y)]

    *w, b = jnp.linalg.lstsq(jnp.column_stack([X, jnp.ones(1000)]), y)[0]
    each, best = jax.vmap(figures)(params), figures({"w": w, "b": b})
    print("\n           mean    spread   least squares")
    for i, name in enumerate(("w[0]", "w[1]", "b", "R²", "RMSE")):
        print(f"{name:5} {each[i].mean():9.5f} {each[i].std():9.5f} {best[i]:15.5f}")


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
