# SPDX-License-Identifier: MIT; the licence stands in full at the end of this file.
"""Linear models by minibatch SGD in pure JAX: one, or a hundred thousand at once.

    init_params   random params             sample_batch  rows drawn with replacement
    predict       X @ w + b                 step          one SGD update
    rmse, mse     the losses                fit           many steps of one model
    r2_score      R², 1 at best             fit_many      fit, for many models at once

`fit` is one jax.lax.scan over `sample_batch` then `step`; `fit_many` is `fit` under
jax.vmap. Each is compiled, so a loop of your own over the pieces is fast as well. Copy
this file: it needs jax alone; `python -m jaxlin` demonstrates it.

Shapes: n rows, d features, m batch rows, s models, t the target shape: () for y of
shape (n,), (k,) for (n, k). Params are the dict {"w": (d, *t), "b": t}.

Arrays may be JAX's, NumPy's, data frames, lists and scalars. Float64 X (under
jax_enable_x64) computes in float64, any other real X in float32; y and the rates follow
X. Nothing broadcasts or is modified. TypeError is for what is of the wrong kind,
ValueError for shapes, sizes and a lack of params, both before anything runs.

What a loss or a step holds as jax.tree_util.Partial(function, value) is data: a new
value compiles nothing, can be mapped, has a gradient. (An integer beyond 32 bits there,
or in your own params, raises.) Globals and closures are frozen at the first compile.
"""

import functools
import inspect
import operator
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, get_abstract_mesh
from jax.tree_util import Partial
from numpy.typing import ArrayLike

__version__ = "2.0.0"

Loss = Callable[..., jax.Array]
Step = Callable[..., tuple[Any, jax.Array]]
Function = TypeVar("Function", bound=Callable[..., Any])
_barrier: Any = jax.lax.optimization_barrier

STATIC = {"num_features", "target_shape", "dtype", "num_steps", "batch_size", "in_axes"}


def _compiled(function: Function) -> Function:
    """Compile `function`, behind the one door for what comes from outside JAX.

    The door turns lists, frames, NumPy arrays and scalars into arrays of floats, by the
    names of the arguments. Behind it all but STATIC is arrays and pytrees of arrays.
    """
    spec = inspect.getfullargspec(function)
    names = [*spec.args, "surplus"]  # one more, for jit to see and refuse
    defaults = {k: _enter(k, v) for k, v in (spec.kwonlydefaults or {}).items()}
    static = STATIC & {*spec.args, *spec.kwonlyargs}
    compiled = jax.jit(function, static_argnames=static)

    @functools.wraps(function)
    def door(*args: Any, **kwargs: Any) -> Any:
        kwargs = defaults | {name: _enter(name, arg) for name, arg in kwargs.items()}
        if "start" in kwargs:
            kwargs["start"] = _check_start(kwargs)
        return compiled(*map(_enter, names, args), **kwargs)

    return cast(Function, door)


def _enter(name: str, value: Any) -> Any:
    match name:
        case "X" | "y" | 'params["w"]' | 'params["b"]':
            return _as_floats(name, value)
        case "key" | "keys":
            return _enter_leaf(value)  # as the last line does, but sooner
        case "params" if _is_linear(value):
            return value | {k: _enter(f'params["{k}"]', v) for k, v in value.items()}
        case "learning_rate":
            rate = value if isinstance(value, float) else _as_floats(name, value)
            is_array = getattr(rate, "shape", ()) or isinstance(rate, jax.core.Tracer)
            # Of one type if a scalar: each type would compile a program of its own.
            return rate if is_array else np.float64(rate)
        case "loss" | "step":
            is_leaf = jax.tree_util.all_leaves([value])
            if not callable(value) or (is_leaf and not isinstance(value, Hashable)):
                raise TypeError(f"{name} must be a hashable function; got {value!r}.")
            if is_leaf:
                value = Partial(value)  # type: ignore[no-untyped-call]
        case "num_features" | "num_steps" | "batch_size" if value is not None:
            return _as_integer(name, value, low=0 if name == "num_steps" else 1)
        case "target_shape":
            return tuple(_as_integer(name, size, low=1) for size in value)
        case "in_axes":
            return tuple(a if a is None else operator.index(a) for a in value)
    return jax.tree.map(_enter_leaf, value)


def _as_floats(name: str, value: Any) -> Any:
    """`value` as an array, and of floats unless it is JAX's already."""
    aval = getattr(value, "aval", None)
    if aval and aval.dtype == np.float32 and not aval.sharding.mesh.axis_types:
        return value  # the commonest, and the quickest to tell
    try:
        array = value if aval else np.asarray(value)
    except jax.errors.TracerArrayConversionError:  # a list with what JAX traces
        return jnp.stack([_as_floats(name, each) for each in value])
    except (TypeError, ValueError):  # such as rows of different lengths
        array = np.array(None)
    dtype = array.dtype
    is_float = jnp.issubdtype(dtype, jnp.floating)
    is_real = is_float or jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_
    if not is_real or "time" in str(dtype) or isinstance(value, np.ma.MaskedArray):
        advice = "Pass floats, integers or bools, without gaps; try .astype(float)."
        if name == "learning_rate" and callable(value):
            advice = "Pass the rates of a schedule: schedule(jnp.arange(num_steps))."
        got = f"{type(value).__name__} of {dtype}"
        raise TypeError(f"{name} must be an array of real numbers; got {got}. {advice}")
    if aval:
        return _enter_leaf(array)
    if not is_float:  # jit would wrap integers beyond 32 bits; X of them is float32
        return array.astype(np.float32 if name == "X" else np.float64)
    # A copy, which JAX may read later on, in a byte order and precision that it has.
    native = np.float64 if dtype.type == np.longdouble else dtype.newbyteorder("=")
    return array.astype(native)


def _as_integer(name: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer; got {value!r}.")
    integer = operator.index(value)
    if integer < low:
        raise ValueError(f"{name} must be an integer of at least {low}; got {integer}.")
    return integer


def _enter_leaf(leaf: Any) -> Any:
    if isinstance(leaf, (np.ndarray, np.generic)):
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
        if dtype.kind in "iu" and (leaf.astype(dtype) != leaf).any():
            raise OverflowError(f"Integers must be within 32 bits; got {leaf}.")
        return leaf.copy()  # since JAX may read it later on
    # Explicit axes, the default of jax.make_mesh, refuse to gather rows: they become
    # Auto ones, in place. (Not under jax.set_mesh nor in your jit: there JAX refuses.)
    free = isinstance(leaf, jax.core.Tracer) or not getattr(leaf, "committed", False)
    mesh: Any = None if free else getattr(leaf.sharding, "mesh", None)
    explicit = mesh is not None and AxisType.Explicit in mesh.axis_types
    if not explicit or not get_abstract_mesh().empty:
        return leaf
    mesh = Mesh(mesh.devices, mesh.axis_names, (AxisType.Auto,) * mesh.devices.ndim)
    sharding = NamedSharding(mesh, leaf.sharding.spec)
    # By its parts, since device_put takes no devices of other processes.
    parts = [shard.data for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)


def _is_linear(params: Any) -> bool:
    return isinstance(params, dict) and "w" in params and "b" in params


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
      dtype: a real floating-point dtype.

    >>> jax.tree.map(jnp.shape, init_params(jax.random.key(0), 2))
    {'b': (), 'w': (2,)}
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a real floating-point dtype; got {dtype}.")
    draws = jax.random.normal(key, (num_features + 1, *target_shape), dtype)
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
    if not _is_linear(params):
        raise TypeError(f'params must be a dict of "w" and "b"; got {type(params)}.')
    X = _check_features(X)
    w, b = (jnp.asarray(params[k], X.dtype) for k in ("w", "b"))
    advice = "Params of many models want fit_many, or jax.vmap(predict, (0, None))."
    _check_shape('params["w"]', w, (X.shape[1], *b.shape), advice)
    # By default an accelerator would round the factors to about three digits.
    return jnp.tensordot(X, w, axes=1, precision="highest") + b[None]


@_compiled
def rmse(params: Any, X: ArrayLike, y: ArrayLike) -> jax.Array:
    """Root-mean-square error: sqrt(mean((X @ w + b - y)²)), in the units of y.

    The gradient in w is Xᵀ r / (n rmse) for residuals r of one target, and 0 at a
    perfect fit. A NaN or an infinity in the data comes out as NaN or infinity.

    As a loss, it makes steps that do not grow with the errors: b moves by at most the
    learning rate, which is in units of y. With skewed noise it is off least squares, in
    b by about -skew * sigma / (2 m) for batches of m, at the median for m = 1.

    Args are as for `predict`, and targets y, (n, *t). Returns a scalar.

    >>> rmse({"w": [1.0], "b": 0.0}, [[3], [4]], [0, 0])
    Array(3.535534, dtype=float32)
    """
    return _root_mean_square(_residuals(params, X, y))


@_compiled
def mse(params: Any, X: ArrayLike, y: ArrayLike) -> jax.Array:
    """Mean squared error: mean((X @ w + b - y)²), in the squared units of y.

    As a loss, it is least squares for batches of any size. Its learning rate has no
    unit of y; the features limit it, to well below 1 / mean(|x|² + 1).

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
    error, spread = (_root_mean_square(x, axis=0) for x in (residuals, deviations))
    # 0 * x is 0, or NaN where x is not finite: there a residual or a sum over y is not.
    score = 1 - (error / jnp.where(spread == 0, 1, spread)) ** 2 + 0 * spread
    constant = jnp.where(error == 0, 1, 0 * error)
    return jnp.where(spread == 0, constant, score).mean()


def _residuals(params: Any, X: Any, y: Any) -> jax.Array:
    predictions = predict(params, X)
    advice = "Pass as many rows of X and y, and params of the target shape of y."
    _check_shape("y", y, predictions.shape, advice)
    return predictions - jnp.asarray(y, predictions.dtype)


def _root_mean_square(x: jax.Array, axis: int | None = None) -> jax.Array:
    # float32 loses squares of what is outside 1e-19..1e19: square the ratio to the
    # largest, kept where XLA does not flush its reciprocal to 0 or infinity. Neither
    # the result nor its gradient depends on that scale.
    tiny = np.finfo(x.dtype).tiny
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    scale = jax.lax.stop_gradient(jnp.clip(largest, tiny, 1 / tiny))
    mean_square = jnp.mean((x / scale) ** 2, axis=axis)
    # The slope of sqrt at 0 is infinite, and where alone would keep inf * 0 = NaN.
    zero = mean_square == 0
    root = jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, mean_square)))
    return scale.reshape(root.shape) * root


@_compiled
def sample_batch(
    key: jax.Array, X: ArrayLike, y: ArrayLike, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Draw rows of both, (m, d) and (m, *t), uniformly with replacement.

    Each is row u mod n, u 32 random bits: the probability differs from 1/n by a
    relative n / 2³² at most.

    Args:
      key: a random key; it is consumed.
      X, y: features and targets, (n, d) and (n, *t).
      batch_size: m, in 1..n; n draws a bootstrap resample.

    >>> y = jnp.arange(8.0)
    >>> X_batch, y_batch = sample_batch(jax.random.key(0), y[:, None], y, 4)
    >>> bool(jnp.all(X_batch[:, 0] == y_batch))
    True
    """
    X, y = _check_data(X, y)
    n, d = X.shape
    if batch_size > n:
        raise ValueError(f"batch_size must be in 1..{n}, the rows; got {batch_size}.")
    rows = _draw_rows(key, n, batch_size)
    # A CPU is faster on few features by columns; the barrier keeps XLA from undoing it.
    X_batch = _barrier(X[rows].T).T if d < 8 else X[rows]
    return X_batch, y[rows]


def _draw_rows(key: jax.Array, n: int, m: int) -> Any:
    # The children of a key are independent random bits, at a fraction of the price of
    # jax.random.randint. Of an rbg key's four words the last two repeat the first two.
    words = min(2, jax.random.key_data(key).size)
    children = jax.random.key_data(jax.random.split(key, -(-m // words)))
    bits = children[:, :words].reshape(-1)[:m]
    # Without the barrier XLA draws a row's bits again for each element it gathers.
    return _barrier(bits % n)


@_compiled
def step(
    params: Any, X: ArrayLike, y: ArrayLike, learning_rate: ArrayLike, loss: Loss = rmse
) -> tuple[Any, jax.Array]:
    """One SGD update: params - learning_rate * gradient of loss(params, X, y).

    Args:
      params: {"w": (d, *t), "b": t}, or another pytree of floats that `loss` takes.
        Its dtypes stay. (A dict with "w" and "b" must have arrays there, always.)
      X, y: a batch, (m, d) and (m, *t).
      learning_rate: a scalar.
      loss: a function (params, X, y) -> scalar.

    Returns:
      The new params, and the loss before the update.

    >>> params, loss = step({"w": [1.0], "b": 0.0}, [[1]], [3], 0.5)
    >>> print(params["w"], params["b"], loss)
    [1.5] 0.5 2.0
    """
    advice = "Pass a rate per step to fit, or map over rates with jax.vmap."
    _check_shape("learning_rate", learning_rate, (), advice)
    value, gradient = jax.value_and_grad(loss)(params, X, y)
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
    a steps, then b steps with params=..., start=a, equal a + b steps, if a and b are at
    least 2 (one step compiles without a loop, and may differ in the last bit).

    Args:
      key: a random key, to be used again only to resume. (Under jax.vmap not an rbg
        one: what it draws may come from the first key alone.)
      X, y: features and targets, (n, d) and (n, *t).
      learning_rate: a scalar, or a rate for each step, (num_steps,). It is data: it can
        be mapped and differentiated, and a new value compiles nothing.
      num_steps: 0 or more.
      batch_size: 1 to n; by default 100, or n if that is less.
      params: where to start; by default a draw of init_params. w and b take X's dtype.
      start: how many steps lie behind params. Left at 0, the batches of step 0 on are
        drawn again; above 0 it needs params (a traced one is ignored without).
      loss: a function (params, X, y) -> scalar.
      step: a function (params, X, y, learning_rate, loss) -> (params, loss). Its params
        are any pytree (with an optimiser's state, say), of which it needs the first.

    Returns the params, and the loss before each update, (num_steps,). Each num_steps,
    batch_size, loss, step, shape and dtype compiles once, and so does params given or
    not; functions count by ==. Under jax.transfer_guard give a rate for each step
    and no params: a scalar rate and start come from the host.

    >>> X = jnp.arange(8.0)[:, None]
    >>> fit(jax.random.key(0), X, X[:, 0] + 1, 0.1)[1].shape
    (1000,)
    """
    X, y = _check_data(X, y)
    n, d = X.shape
    rates = _check_rates(learning_rate, num_steps).astype(X.dtype)
    batch_size = batch_size or min(100, n)

    init_key, batch_key = jax.random.split(key)
    if params is None:
        params = init_params(init_key, d, target_shape=y.shape[1:], dtype=X.dtype)
        start = 0  # so that the argument, unused, stays on the host
    elif _is_linear(params):
        params = params | {k: params[k].astype(X.dtype) for k in ("w", "b")}

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
      in_axes: the axis of s in keys, X, y, learning_rate and params (0 if left out),
        None for what all share. (0, None, None, 0): a rate each, not a schedule;
        (0, 0, 0, None): a data set each; (None, None, None, 0): rates, one key for all.
      The others are as in fit, plus the axis of s where in_axes names one.

    Returns params, each leaf with a leading axis of s, and losses, (s, num_steps).

    >>> X, keys = jnp.ones((8, 1)), jax.random.split(jax.random.key(0), 256)
    >>> params, losses = fit_many(keys, X, X[:, 0], 0.1, num_steps=9)
    >>> params["w"].shape, losses.shape
    ((256, 1), (256, 9))
    """
    if in_axes[0] is not None:
        if keys.shape == ():
            raise ValueError("keys must be s keys: jax.random.split(key, s); got one.")
        if "rbg" in str(jax.random.key_impl(keys)):
            advice = 'Make them from jax.random.key(0, impl="threefry2x32").'
            raise TypeError(f"keys must not be rbg: all may draw alike. {advice}")
    options: dict[str, Any] = {"num_steps": num_steps, "batch_size": batch_size}
    options |= {"start": start, "loss": loss, "step": step}

    def train(key: Any, X: Any, y: Any, learning_rate: Any, params: Any) -> Any:
        return fit(key, X, y, learning_rate, params=params, **options)

    mapped = jax.vmap(train, in_axes if len(in_axes) > 4 else (*in_axes, 0))
    return cast(tuple[Any, jax.Array], mapped(keys, X, y, learning_rate, params))


def _check_shape(name: str, array: Any, shape: Any, advice: str) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}; got {array.shape}. {advice}")


def _check_features(X: Any) -> jax.Array:
    if X.ndim != 2 or 0 in X.shape or X.shape[0] >= 2**31:
        advice = "One feature: X[:, None]. Stacked: fit_many, in_axes=(0, 0, 0, None)."
        raise ValueError(f"X must be (n, d), 0 < n, d < 2**31; got {X.shape}. {advice}")
    return jnp.asarray(X, jnp.float64 if X.dtype == jnp.float64 else jnp.float32)


def _check_data(X: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    X = _check_features(X)
    advice = "Pass as many rows of both; for stacked y use fit_many with in_axes."
    _check_shape("y", y, (X.shape[0], *y.shape[1:]), advice)
    if 0 in y.shape:
        raise ValueError(f"y must have a target at least; got shape {y.shape}.")
    return X, jnp.asarray(y, X.dtype)


def _check_rates(rates: Any, num_steps: int) -> Any:
    rates = rates if rates.shape else jnp.full(num_steps, rates)
    advice = (
        "Set num_steps, or take rates[start:start + num_steps]; to map rates over "
        "models, call fit_many with in_axes=(0, None, None, 0)."
    )
    _check_shape("learning_rate", rates, (num_steps,), advice)
    return rates


def _check_start(given: dict[str, Any]) -> Any:
    start, params = given["start"], given["params"]
    if params is None and getattr(given["step"], "func", None) is not step:
        raise ValueError("params must be the first state of your own step; got None.")
    if isinstance(start, jax.core.Tracer):
        if start.shape != () or not jnp.issubdtype(start.dtype, jnp.integer):
            raise TypeError(f"start must be an integer; got {start.aval}.")
        return start
    start = _as_integer("start", start, low=0)
    if start > 2**32 - max(1, given["num_steps"]):
        raise ValueError(f"start must be at most 2**32 - num_steps; got {start}.")
    if start > 0 and params is None:
        raise ValueError(f"start must be 0 without params; got {start}. Pass both.")
    return np.uint32(start)


def main() -> None:
    """Train 256 models of made-up data, and compare them with exact least squares."""
    X_key, noise_key, models_key = jax.random.split(jax.random.key(0), 3)
    X = 10 * jax.random.uniform(X_key, (1000, 2))
    y = X @ jnp.array([3.0, 4.0]) + 5 + jax.random.uniform(noise_key, (1000,))
    keys = jax.random.split(models_key, 256)
    segment = functools.partial(fit_many, num_steps=500)
    params = None
    print("256 models; RMSE on the last batch: median, 5th to 95th percentile")
    began = time.perf_counter()
    for start in range(0, 5000, 500):
        params, losses = segment(keys, X, y, 0.01, params=params, start=start)
        low, median, high = np.percentile(losses[:, -1], [5, 50, 95])
        print(f"step {start + 500:4} of 5000  {median:.3f}  {low:.3f} to {high:.3f}")
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
