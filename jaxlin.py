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
ValueError for shapes, sizes and a lack of params, both before anything runs. Integers
beyond 32 bits are an OverflowError in what a loss or a state holds.

What a loss or a step holds as jax.tree_util.Partial(function, value) is data: a new
value compiles nothing, can be mapped, has a gradient. All else that it reads is frozen
at its first compile: globals, closures, attributes of an object, and the arrays in a
functools.partial. A function defined anew, as a lambda in a loop is, compiles anew.
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
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from numpy.typing import ArrayLike

__version__ = "3.0.0"
__all__ = ["fit", "fit_many", "init_params", "mse", "predict", "r2_score", "rmse"]
__all__ += ["sample_batch", "step"]

Loss = Callable[..., jax.Array]
Step = Callable[..., tuple[Any, jax.Array]]
Function = TypeVar("Function", bound=Callable[..., Any])
_barrier: Any = jax.lax.optimization_barrier

STATIC = {"num_features", "target_shape", "dtype", "num_steps", "batch_size", "in_axes"}


def _compiled(function: Function) -> Function:
    """Compile `function`, behind the door (`_enter`) for what comes from outside JAX.

    All arguments go on by name: one program, in whatever way they are given.
    """
    parameters = dict(inspect.signature(function).parameters)
    defaults = {k: p.default for k, p in parameters.items() if p.default is not p.empty}
    positional = inspect.getfullargspec(function).args
    compiled = jax.jit(function, static_argnames=STATIC & parameters.keys())
    # Once, at the first call, when what stands below is known.
    entered = functools.cache(lambda: {k: _enter(k, defaults) for k in defaults})

    @functools.wraps(function)
    def door(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(positional, args, strict=False)) | kwargs
        whole = entered() | given
        if len(given) < len(args) + len(kwargs) or whole.keys() != parameters.keys():
            _check_call(function, args, kwargs)
        return compiled(**(whole | {name: _enter(name, whole) for name in given}))

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
    if not isinstance(target_shape, tuple):
        raise TypeError(_must("target_shape", "be a tuple, as (3,)", target_shape))
    if min(target_shape, default=1) < 1:
        raise ValueError(_must("target_shape", "be of sizes above 0", target_shape))
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(_must("dtype", "be of real floating-point numbers", dtype))
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
    if not _is_linear(params):
        got = type(params).__name__
        raise TypeError(_must("params", 'be a dict of "w" and "b"', got))
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

    Args are as for `predict`, and targets y, (n, *t). Returns a scalar. Sums over 10⁷
    rows want float64: in float32 the gradient is off by up to a hundredth.

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
    # What is not finite in residuals or y comes through: 0 * x is NaN then.
    score = 1 - (error / jnp.where(spread == 0, 1, spread)) ** 2 + 0 * spread
    constant = jnp.where(error == 0, 1, 0 * error)
    return jnp.where(spread == 0, constant, score).mean()


def _residuals(params: Any, X: Any, y: Any) -> jax.Array:
    predictions = predict(params, X)
    _check_shape("y", y, predictions.shape)
    return predictions - jnp.asarray(y, predictions.dtype)


def _root_mean_square(x: jax.Array, axis: int | None = None) -> jax.Array:
    # float32 loses squares of what is outside 1e-19..1e19: square the ratio to the
    # mean size, kept where XLA does not flush its reciprocal to 0 or infinity. That
    # scale cancels, in the gradient too.
    tiny = np.finfo(x.dtype).tiny
    size = jnp.mean(jnp.abs(x), axis=axis, keepdims=True)
    scale = jax.lax.stop_gradient(jnp.clip(size, tiny, 1 / tiny))
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
    n, d = X.shape
    if batch_size is None or not batch_size <= n < 2**31:
        raise ValueError(_must("batch_size", f"be in 1..{n} rows < 2**31", batch_size))
    rows = _draw_rows(key, n, batch_size)
    X_batch = _take(X, rows)
    if d < 8:  # a CPU is faster by columns; the barrier keeps XLA from undoing it
        X_batch = _barrier(X_batch.T).T
    return X_batch, _take(y, rows)


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


def _take(array: jax.Array, rows: jax.Array) -> jax.Array:
    return array.at[rows].get(out_sharding=_everywhere(array, rows))


def _everywhere(*arrays: Any) -> NamedSharding | None:
    """The whole mesh, if one of them is on Explicit axes, where JAX asks for it."""
    for mesh in (jax.typeof(x).sharding.mesh for x in arrays):
        if AxisType.Explicit in mesh.axis_types:
            return NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]
    return None


def _join(params: Any, *placed: Any) -> Any:
    """Params, on the mesh of Explicit axes that the carry of a scan will be on."""
    mesh, move = _everywhere(*placed), cast(Any, jax.sharding.reshard)
    return jax.tree.map(lambda p: move(p, mesh), params) if mesh else params


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

    Under jax.shard_map it raises where devices would add up the gradients of losses
    that differ between them; a step of your own must see to that itself.

    >>> params, loss = step({"w": [1.0], "b": 0.0}, [[1]], [3], 0.5)
    >>> print(params["w"], params["b"], loss)
    [1.5] 0.5 2.0
    """
    _check_shape("learning_rate", learning_rate, ())
    value, gradient = jax.value_and_grad(loss)(params, X, y)
    _check_devices(params, value)
    changes = jax.tree.map(lambda g: jnp.asarray(learning_rate, g.dtype) * g, gradient)
    return jax.tree.map(lambda p, c: jnp.asarray(p) - c, params, changes), value


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
      params: where to start; by default a draw of init_params, which stays where the
        data say nothing (a constant column, say). w and b take the dtype of X.
      start: how many steps lie behind params. Left at 0, the first batches come again;
        above 0 it needs params. A traced one is taken modulo 2**32, and
        ignored without params.
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
    rates = jnp.asarray(learning_rate, X.dtype)
    rates = rates if rates.shape else jnp.full(num_steps, rates)
    _check_shape("learning_rate", rates, (num_steps,))
    batch_size = min(100, n) if batch_size is None else batch_size

    init_key, batch_key = jax.random.split(key)
    if params is None:
        _check_default(step)
        params = init_params(init_key, d, target_shape=y.shape[1:], dtype=X.dtype)
        start = 0  # the argument is unused then, and jit leaves it on the host
    elif _is_linear(params):
        params = params | {k: jnp.asarray(params[k], X.dtype) for k in ("w", "b")}
    params = _join(params, batch_key, rates)

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
    axes = _check_axes(in_axes, (keys, X, y, learning_rate, params))
    if keys.shape and "rbg" in str(jax.random.key_impl(keys)):
        wanted = 'not be rbg, which may draw alike, but of impl="threefry2x32"'
        raise TypeError(_must("keys", wanted, keys))
    options: dict[str, Any] = {"num_steps": num_steps, "batch_size": batch_size}
    options |= {"start": start, "loss": loss, "step": step}

    def train(key: Any, X: Any, y: Any, learning_rate: Any, params: Any) -> Any:
        return fit(key, X, y, learning_rate, params=params, **options)

    mapped = jax.vmap(train, axes)
    return cast(tuple[Any, jax.Array], mapped(keys, X, y, learning_rate, params))


JAX = (jax.Array, jax.core.Tracer)

# What to type instead, by the argument or the topic that an error is about.
ADVICE = {
    "key": "jax.random.key(seed) makes one. Many at once: fit_many, or jax.vmap.",
    "keys": "jax.random.split(jax.random.key(seed), s) makes them. A list: jnp.stack.",
    "X": "One feature: X[:, None]. One row: X[None]. Stacks: in_axes=(0, 0, 0, None).",
    "y": "Rows as X, targets as params. Stacks: fit_many with in_axes=(0, 0, 0, None).",
    "learning_rate": "Set num_steps, or take rates[start:start + num_steps]. Schedule: "
    "schedule(jnp.arange(num_steps)). A rate a model: fit_many with "
    "in_axes=(0, None, None, 0), or jax.vmap.",
    'params["w"]': "Rows as features of X. Many models: jax.vmap(predict, (0, None)).",
    "start": "Above 0 it needs params; start + num_steps is at most 2**32.",
    "in_axes": "It is the axis of s models in keys (jax.random.split(key, s)), X, y, "
    "learning_rate and params, None in what they share: (0, None, None, None, None) "
    "starts all from the same params.",
    "numbers": "Sparse: .toarray() or .todense(). Gaps: fill them, .astype(float). "
    "Text, categories: pd.get_dummies(..., dtype=float), or codes for labels. Dates: "
    "days since the first. Rows of unequal length: pad them.",
    "functions": "Bind arrays by jax.tree_util.Partial(function, array).",
    "devices": "Else models on different devices add up their gradients. Many models: "
    'a key for each and no params, or jax.lax.pcast(params, axes, to="varying"). One '
    "model, and rows split over devices: a loss averaged by jax.lax.pmean.",
}


def _must(name: str, wanted: str, got: Any, topic: str = "") -> str:
    """The words of an error: what was wanted, what came, what to type instead."""
    advice = ADVICE.get(topic or name, "")
    return f"{name} must {wanted}; got {got!s:.300}. {advice}".rstrip()


def _enter(name: str, given: dict[str, Any]) -> Any:
    """The door: an argument from outside JAX, as jit takes it, by what it is.

    Some are told by name: what is static, data (w and b too), keys, and start, whose
    range depends on params and num_steps. All else is a pytree. Shapes are checked
    while tracing.
    """
    value = given[name]
    optional = name == "batch_size" and value is None
    if name in ("num_features", "num_steps", "batch_size") and not optional:
        return _as_integer(name, value, 0 if name == "num_steps" else 1, 2**31 - 1)
    if name in STATIC:
        value = tuple(value) if isinstance(value, list) else value
        return value if isinstance(value, Hashable) else repr(value)  # to be refused
    if name in ("X", "y", "learning_rate"):
        return _as_floats(name, value)
    if name in ("key", "keys"):
        return _as_keys(name, value)
    if name == "start":
        last = 2**32 - max(1, _enter("num_steps", given))
        start = _as_integer(name, value, 0, 0 if given["params"] is None else last)
        return start if isinstance(start, jax.core.Tracer) else np.uint32(start)
    if name in ("loss", "step") and not callable(value):
        raise TypeError(_must(name, "be a function", repr(value)))
    return _as_pytree(name, value)


def _as_integer(name: str, value: Any, low: int, high: int) -> Any:
    array = value if isinstance(value, JAX) else np.asarray(value)
    if array.shape or array.dtype.kind not in "iu":
        raise TypeError(_must(name, "be an integer", repr(value)))
    if name == "start" and isinstance(value, jax.core.Tracer):
        return value
    integer = operator.index(value)
    if not low <= integer <= high:
        raise ValueError(_must(name, f"be in {low}..{high}", integer))
    return integer


def _as_floats(name: str, value: Any) -> Any:
    if isinstance(value, float):
        return np.float64(value)
    scalar = name == "learning_rate" and np.ndim(value) == 0
    if isinstance(value, JAX) and value.dtype == np.float32 and not scalar:
        return value  # the commonest, and the quickest to tell
    array = value if isinstance(value, JAX) else _as_numpy(value)
    dtype = array.dtype
    if not (isinstance(dtype, np.dtype) and np.can_cast(dtype, np.longdouble)):
        got = f"{type(value).__name__} of {dtype}"
        topic = name if name == "learning_rate" else "numbers"
        raise TypeError(_must(name, "be real numbers without gaps", got, topic))
    if isinstance(array, jax.core.Tracer) or (isinstance(array, JAX) and not scalar):
        return array
    if scalar:
        return np.float64(array)  # each type would compile a program of its own
    if not jnp.issubdtype(dtype, jnp.floating):  # X of integers is float32
        array = array.astype(np.float32 if name == "X" else np.float64)
    return _own(name, array)


def _as_numpy(value: Any) -> Any:
    """An array of NumPy, or of JAX if it traces; of None for what is to be refused."""
    masked = [v for v in jax.tree.leaves(value) if isinstance(v, np.ma.MaskedArray)]
    refused = masked or hasattr(type(value), "todense")
    try:
        return np.asarray(None if refused else value)
    except jax.errors.TracerArrayConversionError:
        return jnp.asarray(value)
    except ValueError:  # rows of different lengths
        return np.array(None)


def _own(name: str, array: Any) -> Any:
    """A copy, for JAX to read later on, in a byte order and precision that it has."""
    wide = array.dtype.type is np.longdouble
    own = array.astype(np.float64 if wide else array.dtype.newbyteorder("="))
    kept = jax.dtypes.canonicalize_dtype(own.dtype)
    if kept.kind in "iu" and (own.astype(kept) != own).any():
        raise OverflowError(_must(name, "have integers of 32 bits", array))
    return own


def _as_keys(name: str, value: Any) -> Any:
    dtype = getattr(value, "dtype", None)
    if not isinstance(value, JAX) or isinstance(dtype, np.dtype):
        if dtype != np.uint32 or not value.shape:
            raise TypeError(_must(name, "come from jax.random", repr(value)))
        value = jax.random.wrap_key_data(_as_leaf(name, value))  # a legacy key
    if name == "key":
        _check_shape(name, value, ())
    return value


def _as_pytree(name: str, value: Any) -> Any:
    if _is_linear(value):
        rest = {k: _as_pytree(name, value[k]) for k in value.keys() - {"w", "b"}}
        return rest | {k: _as_floats(f'params["{k}"]', value[k]) for k in ("w", "b")}
    if isinstance(value, Partial):
        _as_leaf(name, value.func)  # which must have a hash, too
    leaves, tree = jax.tree.flatten(value)
    return jax.tree.unflatten(tree, [_as_leaf(name, leaf) for leaf in leaves])


def _as_leaf(name: str, leaf: Any) -> Any:
    if isinstance(leaf, (JAX, bool, int, float, complex)):
        return leaf
    if hasattr(leaf, "__array__"):
        return _own(name, np.asarray(leaf))
    try:
        hash(leaf)
        # Without leaves: a function is part of the tree, by which jit compiles.
        return Partial(leaf)  # type: ignore[no-untyped-call]
    except TypeError:
        wanted = "be a hashable function, or a pytree of numbers"
        raise TypeError(_must(name, wanted, repr(leaf), "functions")) from None


def _check_call(function: Any, args: Any, kwargs: Any) -> None:
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        takes = f"{function.__name__} takes {', '.join(signature.parameters)}"
        raise TypeError(f"{takes}; {error}.") from None


def _check_shape(name: str, array: Any, shape: Any) -> None:
    if array.shape != shape:
        raise ValueError(_must(name, f"have shape {shape}", array.shape))


def _check_features(X: Any) -> jax.Array:
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(_must("X", "have shape (n, d), both above 0", X.shape))
    return jnp.asarray(X, float if X.dtype == jnp.float64 else jnp.float32)


def _check_data(X: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    X = _check_features(X)
    shape = (X.shape[0], *y.shape[1:])
    if y.shape != shape or 0 in shape:
        raise ValueError(_must("y", f"have shape {shape} and a target", y.shape))
    return X, jnp.asarray(y, X.dtype)


def _is_linear(params: Any) -> bool:
    return isinstance(params, dict) and "w" in params and "b" in params


def _check_default(step: Any) -> None:
    # By name, as pickle tells functions: a reloaded module has another `step`.
    function = getattr(step, "func", step)
    names = [getattr(function, f"__{each}__", "") for each in ("module", "qualname")]
    if names != [__name__, "step"]:
        raise ValueError(
            _must("params", "be given, the first state of your own step", None)
        )


def _check_axes(in_axes: Any, inputs: Any) -> Any:
    """in_axes with that of params. It is jax.vmap that tells what does not fit."""

    def model(keys: Any, X: Any, y: Any, learning_rate: Any, params: Any) -> int:
        return 0

    try:
        axes = [axis if axis is None else operator.index(axis) for axis in in_axes]
        axes = axes if len(axes) > 4 else [*axes, 0]
        jax.vmap(model, axes, out_axes=None)(*inputs)
    except (TypeError, ValueError) as error:
        got = f"{in_axes!r}: {error}".rstrip(".")
        raise type(error)(_must("in_axes", "fit the arguments", got)) from None
    return axes


def _check_devices(params: Any, loss: Any) -> None:
    """Under jax.shard_map the gradients in what devices share are added up."""
    for leaf in jax.tree.leaves(params):
        if axes := _varying(loss) - _varying(leaf):
            wanted = f"vary over axes {(*axes,)} of jax.shard_map, as the loss does"
            raise ValueError(_must("params", wanted, "the same on all", "devices"))


def _varying(x: Any) -> Any:
    aval: Any = jax.typeof(x)
    return aval.vma if hasattr(aval, "vma") else aval.mat.varying


def main() -> None:
    """Train 256 models of made-up data, and compare them with exact least squares."""
    X_key, noise_key, models_key = jax.random.split(jax.random.key(0), 3)
    X = 10 * jax.random.uniform(X_key, (1000, 2))
    y = X @ jnp.array([3.0, 4.0]) + 5 + jax.random.uniform(noise_key, (1000,))
    keys, params = jax.random.split(models_key, 256), None
    train = functools.partial(fit_many, keys, X, y, 0.01, num_steps=500)
    began = time.perf_counter()
    for start in range(0, 5000, 500):
        params, losses = train(params=params, start=start)
        print(f"step {start + 500:4} of 5000, RMSE {jnp.median(losses[:, -1]):.3f}")
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
