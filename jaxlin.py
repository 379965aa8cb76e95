# SPDX-License-Identifier: MIT; the licence stands in full at the end of this file.
"""Linear models by minibatch SGD in pure JAX: one, or a hundred thousand at once.

    init_params   random params             sample_batch  rows drawn with replacement
    predict       X @ w + b                 step          one SGD update
    rmse          the default loss          fit           many steps of one model
    r2_score      R², 1 at best             fit_many      fit, for many models at once

`fit` is one jax.lax.scan over `sample_batch` then `step`; `fit_many` is `fit` under
jax.vmap. Copy this file into your project: it needs jax alone. `python -m jaxlin`
trains 256 models as a demonstration.

Shapes: n rows, d features, m batch rows, s models, t the target shape: () for y of
shape (n,), (k,) for (n, k). Params are the dict {"w": (d, *t), "b": t}.

Dtypes: float64 X (under jax_enable_x64) computes in float64, any other real X in
float32; y and the learning rate follow X. Nothing broadcasts, nothing is modified.

Errors, raised from shapes and dtypes before anything runs: TypeError for what is not
real numbers or no key, ValueError for wrong shapes and sizes. Each says what to do.
"""

import functools
import operator
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

__version__ = "1.0.0"

Params = dict[str, jax.Array]
Loss = Callable[..., jax.Array]
Step = Callable[..., tuple[Any, jax.Array]]
InAxes = tuple[int | None, int | None, int | None, int | None]


def init_params(
    key: jax.Array,
    num_features: int,
    *,
    target_shape: tuple[int, ...] = (),
    dtype: Any = jnp.float32,
) -> Params:
    """Draw params from the standard normal distribution: w, b ~ N(0, 1).

    Args:
      key: a random key; it is consumed.
      num_features: d, at least 1.
      target_shape: t.
      dtype: a real floating-point dtype.

    Returns:
      {"w": (d, *t), "b": t}.

    >>> jax.tree.map(jnp.shape, init_params(jax.random.key(0), 2))
    {'b': (), 'w': (2,)}
    """
    d = _check_integer("num_features", num_features, 1)
    if not isinstance(target_shape, tuple | list):
        raise TypeError(
            f"target_shape must be a tuple of integers; got {target_shape!r}. "
            "Use (3,) for three targets, () for one."
        )
    t = tuple(_check_integer("target_shape", size, 1) for size in target_shape)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"dtype must be a real floating-point dtype; got {jnp.dtype(dtype)}. "
            "Use jnp.float32."
        )
    w_key, b_key = jax.random.split(_check_key(key))
    return {
        "w": jax.random.normal(w_key, (d, *t), dtype),
        "b": jax.random.normal(b_key, t, dtype),
    }


def predict(params: Params, X: ArrayLike) -> jax.Array:
    """Predict targets: X @ w + b.

    Args:
      params: {"w": (d, *t), "b": t}.
      X: features, (n, d).

    Returns:
      Predictions, (n, *t).

    >>> predict({"w": jnp.array([3.0, 4.0]), "b": jnp.array(5.0)}, [[1, 1], [0, 2]])
    Array([12., 13.], dtype=float32)
    """
    X = _as_features(X)
    w, b = _check_params(params, X)
    # By default an accelerator would round the factors to about three digits.
    return jnp.tensordot(X, w, axes=1, precision="highest") + b[None]


def rmse(params: Params, X: ArrayLike, y: ArrayLike) -> jax.Array:
    """Root-mean-square error: sqrt(mean((X @ w + b - y)²)), in the units of y.

    The gradient in w is Xᵀ r / (n rmse) for residuals r, and 0 at a perfect fit. A NaN
    or an infinity in the data comes out as NaN or infinity.

    Args:
      params: {"w": (d, *t), "b": t}.
      X: features, (n, d).
      y: targets, (n, *t).

    Returns:
      A scalar, over all rows and targets.

    >>> rmse({"w": jnp.array([1.0]), "b": jnp.array(0.0)}, [[3], [4]], [0, 0])
    Array(3.535534, dtype=float32)
    """
    residuals, _ = _residuals(params, X, y)
    # float32 loses the squares of residuals outside 1e-19..1e19: square their ratio to
    # the largest. The result does not depend on that scale, nor does the gradient.
    scale = jax.lax.stop_gradient(_scale(jnp.max(jnp.abs(residuals))))
    mean_square = jnp.mean((residuals / scale) ** 2)
    # The slope of sqrt at 0 is infinite, and where alone would keep inf * 0 = NaN.
    positive = jnp.where(mean_square > 0, mean_square, 1)
    return scale * jnp.where(mean_square > 0, jnp.sqrt(positive), mean_square)


def r2_score(params: Params, X: ArrayLike, y: ArrayLike) -> jax.Array:
    """Coefficient of determination: 1 - Σ (y - predictions)² / Σ (y - mean(y))².

    By the conventions of sklearn.metrics.r2_score: the mean over targets; for a
    constant target 1 if the fit is perfect and 0 if not; NaN for a single row.

    Args:
      params: {"w": (d, *t), "b": t}.
      X: features, (n, d).
      y: targets, (n, *t).

    Returns:
      A scalar, 1 at best.

    >>> r2_score({"w": jnp.array([1.0]), "b": jnp.array(0.0)}, [[1], [2]], [1, 3])
    Array(0.5, dtype=float32)
    """
    residuals, y = _residuals(params, X, y)
    if y.shape[0] == 1:
        return jnp.full((), jnp.nan, y.dtype)
    # Less its first row, a constant target is exactly 0 and a distant one keeps digits.
    deviations = y - y[:1]
    deviations = deviations - jnp.mean(deviations, axis=0, keepdims=True)
    largest = jnp.max(jnp.abs(deviations), axis=0)
    constant = largest == 0
    scale = jnp.where(constant, 1, _scale(largest))[None]  # as in rmse
    unexplained = jnp.sum((residuals / scale) ** 2, axis=0)
    total = jnp.sum((deviations / scale) ** 2, axis=0)
    score = 1 - unexplained / jnp.where(constant, 1, total)
    worst = jnp.max(jnp.abs(residuals), axis=0)
    # 0 * worst is 0, but NaN where the residuals are not finite.
    return jnp.mean(jnp.where(constant, jnp.where(worst == 0, 1, 0 * worst), score))


def sample_batch(
    key: jax.Array, X: ArrayLike, y: ArrayLike, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Draw rows uniformly with replacement: row floor(u n / 2³²), u 32 random bits.

    The probability of a row differs from 1/n by a relative n / 2³² at most. Source:
    D. Lemire, Fast Random Integer Generation in an Interval, ACM TOMACS 29 (2019).

    Args:
      key: a random key; it is consumed.
      X: features, (n, d).
      y: targets, (n, *t).
      batch_size: m, in 1..n; n draws a bootstrap resample.

    Returns:
      X_batch, (m, d), and y_batch, (m, *t): the same rows of both.

    >>> y = jnp.arange(8.0)
    >>> X_batch, y_batch = sample_batch(jax.random.key(0), y[:, None], y, 4)
    >>> bool(jnp.all(X_batch[:, 0] == y_batch))
    True
    """
    key, (X, y) = _check_key(key), _as_data(X, y)
    m = _check_integer("batch_size", batch_size, 1, X.shape[0], ", the rows of X")
    return _take_rows(X, y, _draw_rows(key, X.shape[0], m))


def step(
    params: Any,
    X: ArrayLike,
    y: ArrayLike,
    learning_rate: ArrayLike,
    loss: Loss = rmse,
) -> tuple[Any, jax.Array]:
    """One SGD update: params - learning_rate * gradient of loss(params, X, y).

    Args:
      params: {"w": (d, *t), "b": t}, or another pytree of floats that `loss` takes. Its
        dtypes stay.
      X: features of the batch, (m, d).
      y: targets of the batch, (m, *t).
      learning_rate: a scalar.
      loss: a function (params, X, y) -> scalar.

    Returns:
      The new params, and the loss before the update.

    >>> params, loss = step({"w": jnp.ones(1), "b": jnp.zeros(())}, [[1]], [3], 0.5)
    >>> print(params["w"], params["b"], loss)
    [1.5] 0.5 2.0
    """
    X, y = _as_data(X, y)
    rate = jnp.asarray(_check_real("learning_rate", learning_rate), X.dtype)
    if rate.shape != ():
        raise ValueError(
            f"learning_rate must be a scalar; got shape {rate.shape}. "
            "Pass one rate per step to fit, or map over rates with jax.vmap."
        )
    value, gradient = jax.value_and_grad(loss)(params, X, y)
    new = jax.tree.map(lambda p, g: p - rate.astype(g.dtype) * g, params, gradient)
    return new, value


def fit(
    key: jax.Array,
    X: ArrayLike,
    y: ArrayLike,
    learning_rate: ArrayLike,
    *,
    num_steps: int = 1000,
    batch_size: int = 100,
    params: Any = None,
    start: ArrayLike = 0,
    loss: Loss = rmse,
    step: Step = step,
) -> tuple[Any, jax.Array]:
    """Train one model: num_steps times sample_batch then step, as one jax.lax.scan.

    The key is split in two, for init_params and for the batches; step i draws its batch
    with fold_in(batch_key, start + i). So training resumes bit for bit: with one key,
    a steps, then b steps with params=..., start=a, equal a + b steps.

    Args:
      key: a random key; only resuming this run may use it again. (Under jax.vmap not an
        rbg one: all would draw from the first.)
      X: features, (n, d); standardised, they train fastest.
      y: targets, (n, *t).
      learning_rate: a scalar, or a rate for each step, (num_steps,). It is data: it can
        be mapped and differentiated, and a new value compiles nothing.
      num_steps: at least 0.
      batch_size: m, in 1..n.
      params: where to start; by default a draw of init_params. The default step returns
        it in X's dtype.
      start: how many steps params has behind it. A new value compiles nothing.
      loss: a function (params, X, y) -> scalar.
      step: a function (params, X, y, learning_rate, loss) -> (params, loss). It may
        carry any pytree as params (an optimiser's state, say): pass the first one.

    Each combination of num_steps, batch_size, loss, step, the shapes, the dtypes, and
    params given or not compiles once; functions count by identity, so a lambda written
    in the call compiles every time.

    Returns:
      The params, and the loss before each update, (num_steps,).

    >>> X = jnp.arange(8.0)[:, None]
    >>> params, losses = fit(jax.random.key(0), X, X[:, 0] + 1, 0.1, batch_size=4)
    >>> losses.shape
    (1000,)
    """
    X, y = _check_data(X, y)
    num_steps = _check_integer("num_steps", num_steps, 0)
    batch_size = _check_integer(
        "batch_size", batch_size, 1, X.shape[0], ", the rows of X"
    )
    rate = _check_rate(learning_rate)
    if rate.shape not in ((), (num_steps,)):
        raise ValueError(
            f"learning_rate must have shape () or (num_steps,) = ({num_steps},); "
            f"got {rate.shape}. To train at many rates use fit_many with in_axes."
        )
    _check_functions(loss, step)
    params = _check_start_params(params, step)
    start = _check_start(start, num_steps)
    key = _check_key(key)
    static = (num_steps, batch_size, loss, step, isinstance(key, jax.core.Tracer))
    trained: tuple[Any, jax.Array]
    trained = _scan_steps(key, X, y, rate, params, start, static)
    return trained


@functools.partial(jax.jit, static_argnums=6)
def _scan_steps(
    key: Any, X: Any, y: Any, rate: Any, params: Any, start: Any, static: Any
) -> Any:
    num_steps, batch_size, loss, update, traced = static
    block = 1 if traced else _steps_a_draw(key, batch_size)
    X, y = _as_data(X, y)
    init_key, batch_key = jax.random.split(key)
    # The loop takes the key as data: jax_debug_key_reuse with jax_enable_checks refuses
    # a key from outside a loop, even for fold_in alone.
    batch_key_data, impl = jax.random.key_data(batch_key), jax.random.key_impl(key)
    if params is None:
        t = y.shape[1:]
        params = init_params(init_key, X.shape[1], target_shape=t, dtype=X.dtype)
    elif update is step:
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, X.dtype), params)

    def rows_of_step(index: Any) -> Any:
        batch_key = jax.random.wrap_key_data(batch_key_data, impl=impl)
        step_key = jax.random.fold_in(batch_key, start + index)
        return _draw_rows(step_key, X.shape[0], batch_size)

    def rows_of_block(index: Any) -> Any:
        """The rows of `block` steps from index on, (block, m)."""
        return jax.vmap(rows_of_step)(index + jnp.arange(block, dtype=jnp.uint32))

    def body(carry: Any, now: Any) -> Any:
        params, rows = carry
        index, rate = now
        rows = jax.lax.cond(index % block == 0, rows_of_block, lambda _: rows, index)
        batch = _take_rows(X, y, rows[index % block])
        params, value = update(params, *batch, rate, loss)
        return (params, rows), value

    def body_once(carry: Any, now: Any) -> Any:
        _, like = jax.eval_shape(body, carry, now)
        nothing = jax.tree.map(jnp.zeros_like, like)
        return jax.lax.cond(now[0] == 0, body, lambda *_: (carry, nothing), carry, now)

    # XLA dissolves a loop of one step, and may round differently outside a loop. For
    # resuming bit for bit, one step is a loop of two whose second does nothing.
    length = 2 if num_steps == 1 else num_steps
    indices = jnp.arange(length, dtype=jnp.uint32)
    rates = jnp.broadcast_to(rate.astype(X.dtype), (length,))
    # Step 0 replaces these zeros. Made from rows, they vary over the same axes of a
    # mesh, as shard_map demands.
    carry = (params, jnp.zeros_like(rows_of_block(0)))
    loop = body_once if num_steps == 1 else body
    (params, _), losses = jax.lax.scan(loop, carry, (indices, rates))
    return params, jax.tree.map(lambda leaf: leaf[:num_steps], losses)


def fit_many(
    keys: jax.Array,
    X: ArrayLike,
    y: ArrayLike,
    learning_rate: ArrayLike,
    *,
    in_axes: InAxes = (0, None, None, None),
    num_steps: int = 1000,
    batch_size: int = 100,
    params: Any = None,
    start: ArrayLike = 0,
    loss: Loss = rmse,
    step: Step = step,
) -> tuple[Any, jax.Array]:
    """Train s models in one program: `fit` under jax.vmap.

    Model i equals fit(keys[i], ...) to rounding. Keys sharded over devices shard the
    computation: each device trains its own models.

    Args:
      keys: s random keys, as jax.random.split(key, s) makes them; not rbg ones.
      X, y, learning_rate: as in fit, plus an axis of s where in_axes names one: a rate
        for each model needs (0, None, None, 0).
      in_axes: the axis of s in keys, X, y and learning_rate, None for what all models
        share. (None, None, None, 0) with one key tries s rates on the same batches.
      num_steps, batch_size, start, loss, step: as in fit, the same for all models.
      params: as in fit, every leaf with a leading axis of s.

    Returns:
      The params, every leaf with a leading axis of s, and the losses, (s, num_steps).

    >>> keys = jax.random.split(jax.random.key(0), 256)
    >>> X = jnp.arange(8.0)[:, None]
    >>> params, losses = fit_many(keys, X, X[:, 0] + 1, 0.1, num_steps=9, batch_size=4)
    >>> params["w"].shape, losses.shape
    ((256, 1), (256, 9))
    """
    if (
        not isinstance(in_axes, tuple | list)
        or len(in_axes) != 4
        or not all(axis is None or type(axis) is int for axis in in_axes)
    ):
        raise TypeError(
            "in_axes must be four integers or None, for keys, X, y and learning_rate; "
            f"got {in_axes!r}. Use None for what the models share."
        )
    keys = _check_key(keys) if in_axes[0] is None else _check_keys(keys)
    num_steps = _check_integer("num_steps", num_steps, 0)
    batch_size = _check_integer("batch_size", batch_size, 1)
    _check_functions(loss, step)
    params = _check_start_params(params, step)
    start = _check_start(start, num_steps)
    X, y = _check_real("X", X, jnp.float32), _check_real("y", y)
    inputs = (keys, X, y, _check_rate(learning_rate))
    static = (tuple(in_axes), num_steps, batch_size, loss, step)
    trained: tuple[Any, jax.Array] = _map_fit(inputs, params, start, static)
    return trained


@functools.partial(jax.jit, static_argnums=3)
def _map_fit(inputs: Any, params: Any, start: Any, static: Any) -> Any:
    in_axes, num_steps, batch_size, loss, update = static
    _check_models(inputs, in_axes, params)

    def train(inputs: Any, params: Any) -> Any:
        return fit(
            *inputs,
            num_steps=num_steps,
            batch_size=batch_size,
            params=params,
            start=start,
            loss=loss,
            step=update,
        )

    mapped = jax.vmap(train, in_axes=(in_axes, 0))
    for array, axis in zip(inputs, in_axes, strict=True):
        sharding = jax.typeof(array).sharding
        if axis is not None and AxisType.Explicit in sharding.mesh.axis_types:
            # Explicit axes refuse sample_batch's gather, which the compiler can shard.
            spec = PartitionSpec(sharding.spec[axis])  # type: ignore[no-untyped-call]
            output = NamedSharding(sharding.mesh, spec)
            mapped = jax.sharding.auto_axes(mapped, out_sharding=output)
            break
    return mapped(inputs, params)


def _residuals(params: Any, X: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    """Predictions less targets, (n, *t), and the targets."""
    X, y = _as_data(X, y)
    predictions = predict(params, X)
    if y.shape != predictions.shape:
        raise ValueError(
            f"y must have the target shape of params, {predictions.shape[1:]}; got "
            f"{y.shape[1:]}. Reshape y, or make params with target_shape={y.shape[1:]}."
        )
    return predictions - y, y


def _scale(largest: jax.Array) -> jax.Array:
    """`largest`, in the range whose reciprocals XLA does not flush to 0 or inf."""
    tiny = jnp.finfo(largest.dtype).tiny  # type: ignore[no-untyped-call]
    return jnp.clip(largest, tiny, 1 / tiny)


_barrier: Any = jax.lax.optimization_barrier


def _draw_rows(key: jax.Array, n: int, m: int) -> jax.Array:
    """m row numbers below n, drawn with replacement: (m,) int32."""
    # The children of a key are independent random bits: split fills two words of them
    # with one hash, jax.random.bits would spend a hash on each. Of the four words of an
    # rbg key the last two repeat the first two.
    words = min(2, jax.eval_shape(jax.random.key_data, key).size)
    children = jax.random.key_data(jax.random.split(key, -(-m // words)))
    bits = children[:, :words].reshape(-1)[:m]
    # Without the barrier XLA draws a row's bits again for each element it gathers.
    rows: jax.Array = _barrier(_multiply_shift(bits, n))
    return rows


def _take_rows(X: jax.Array, y: jax.Array, rows: Any) -> tuple[jax.Array, jax.Array]:
    if X.shape[1] in (8, 9) or X.shape[1] >= 16:
        return X[rows], y[rows]
    # With up to 15 other features a CPU is faster on a batch laid out by columns: its
    # vector instructions then run along the rows.
    columns = jnp.take_along_axis(X, rows[:, None], axis=0).T
    return _barrier(columns).T, y[rows]


def _steps_a_draw(key: jax.Array, batch_size: int) -> int:
    """How many steps of one model draw their rows together, which changes no row.

    Hashing few words costs a CPU hardly less than hashing some 1,600. Many models hash
    enough at each step and would need memory for more, so fit leaves a key that was
    traced, and may stand for many, out. jax.vmap would change what an rbg key draws.
    """
    if _is_rbg(key) or jax.default_backend() != "cpu":
        return 1
    return max(1, 1600 // batch_size)


def _multiply_shift(bits: jax.Array, n: int) -> jax.Array:
    """floor(bits n / 2³²) in 16-bit halves: jax.lax.mulhi does not compile sharded."""
    bits_high, bits_low = bits >> 16, bits & 0xFFFF
    n_high, n_low = n >> 16, n & 0xFFFF
    middle = bits_high * n_low + (bits_low * n_low >> 16)
    lower = bits_low * n_high + (middle & 0xFFFF)
    return (bits_high * n_high + (middle >> 16) + (lower >> 16)).astype(jnp.int32)


def _check_real(name: str, value: Any, integers: Any = float) -> jax.Array:
    """`value` as jit takes it without loss: an array of JAX or NumPy, or a scalar.

    Integers become `integers`, since jit would wrap those beyond 32 bits.
    """
    array = value
    try:
        known = isinstance(value, jax.Array) or hasattr(value, "__array_interface__")
        if hasattr(value, "__array__") and not known:  # a DataFrame
            array = value.__array__()
        is_list = isinstance(array, list | tuple)
        dtype = (jnp.asarray(array) if is_list else jax.typeof(array)).dtype
    except (TypeError, ValueError, OverflowError) as error:
        got = type(value).__name__
        if hasattr(value, "dtype"):
            got = f"{got} of {value.dtype}"
        raise _not_real(name, got) from error
    is_float = jnp.issubdtype(dtype, jnp.floating)
    if not (is_float or jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_):
        raise _not_real(name, dtype)
    real: jax.Array = array
    if is_list:
        real = jnp.asarray(array, dtype if is_float else integers)
    elif not is_float and not isinstance(array, jax.Array | bool | int):
        real = array.astype(integers)
    return real


def _not_real(name: str, got: Any) -> TypeError:
    return TypeError(
        f"{name} must be an array of real numbers; got {got}. "
        "Pass floats, integers or bools, without gaps."
    )


def _check_features(value: Any) -> jax.Array:
    X = _check_real("X", value, jnp.float32)
    shape = jnp.shape(X)
    if len(shape) != 2:
        raise ValueError(
            f"X must have shape (n, d); got {shape}. "
            "Use X[:, None] for one feature, fit_many for stacked data sets."
        )
    if 0 in shape:
        raise ValueError(
            f"X must have at least one row and one feature; got {shape}. "
            "Check how it was loaded or filtered."
        )
    if shape[0] >= 2**31:
        raise ValueError(
            f"X must have fewer than 2**31 rows; got {shape[0]}. "
            "Train on one part after another, with params and start."
        )
    return X


def _check_data(X: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    X, y = _check_features(X), _check_real("y", y)
    shape = jnp.shape(y)
    if shape[:1] != X.shape[:1] or 0 in shape:
        raise ValueError(
            f"y must have shape ({X.shape[0]}, *t), an entry for each row of X; "
            f"got {shape}. Pass the same rows of both."
        )
    return X, y


def _as_features(value: Any) -> jax.Array:
    X = _check_features(value)
    float64 = jax.typeof(X).dtype == jnp.float64
    return jnp.asarray(X, jnp.float64 if float64 else jnp.float32)


def _as_data(X: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    X, y = _check_data(X, y)
    X = _as_features(X)
    return X, jnp.asarray(y, X.dtype)


def _check_params(params: Any, X: jax.Array) -> tuple[jax.Array, jax.Array]:
    if not isinstance(params, dict) or not {"w", "b"} <= params.keys():
        raise TypeError(
            f'params must be a dict with "w" and "b"; got {type(params).__name__}. '
            "Make it with init_params."
        )
    w = jnp.asarray(_check_real('params["w"]', params["w"]), X.dtype)
    b = jnp.asarray(_check_real('params["b"]', params["b"]), X.dtype)
    if w.shape != (X.shape[1], *b.shape):
        raise ValueError(
            f'params["w"] must have shape {(X.shape[1], *b.shape)}, d of X and t of '
            f'params["b"]; got {w.shape}. Make them by init_params(key, {X.shape[1]}).'
        )
    return w, b


def _check_models(inputs: Any, in_axes: Any, params: Any) -> None:
    """All that is mapped has an axis of the same length, s."""
    arrays = zip(("keys", "X", "y", "learning_rate"), inputs, in_axes, strict=True)
    mapped = [(name, x, axis) for name, x, axis in arrays if axis is not None]
    mapped += [("params", leaf, 0) for leaf in jax.tree.leaves(params)]
    if not mapped:
        raise ValueError(
            "in_axes must map an input, or params be given; got only None. "
            "Use in_axes=(0, None, None, None) for a model of each key."
        )
    s = None
    for name, array, axis in mapped:
        shape = jnp.shape(array)
        length = shape[axis] if -len(shape) <= axis < len(shape) else None
        s = length if s is None else s
        if length is None or length != s:
            raise ValueError(
                f"{name} must have {s or 's'} models on axis {axis}; got shape "
                f"{shape}. Stack one for each model; in_axes says what is stacked."
            )


def _check_functions(loss: Any, update: Any) -> None:
    for name, function in (("loss", loss), ("step", update)):
        if not callable(function):
            raise TypeError(
                f"{name} must be a function; got {function!r}. "
                "The docstring of fit says what it takes and returns."
            )


def _check_start_params(params: Any, update: Any) -> Any:
    """The default step trains every leaf; the state of another step is its own."""
    if update is not step:
        return params
    return jax.tree.map(lambda leaf: _check_real("params", leaf), params)


def _check_rate(learning_rate: Any) -> Any:
    rate: Any = _check_real("learning_rate", learning_rate)
    if jnp.shape(rate) == () and not isinstance(rate, jax.core.Tracer):
        # One type for all scalars, since each type compiles a program of its own; of
        # NumPy, since a JAX array takes longer to make than all that is checked here.
        rate = jnp.dtype(float).type(float(rate))
    return rate


def _check_start(start: Any, num_steps: int) -> Any:
    traced = isinstance(start, jax.core.Tracer) and start.shape == ()
    if traced and jnp.issubdtype(start.dtype, jnp.integer):
        return start.astype(jnp.uint32)
    start = _check_integer("start", start, 0, 2**32 - max(1, num_steps))
    return jnp.dtype(jnp.uint32).type(start)


def _check_integer(
    name: str, value: Any, low: int, high: int | None = None, note: str = ""
) -> int:
    error: type[Exception] = ValueError
    try:
        integer = operator.index(value)
        if isinstance(value, bool):
            raise TypeError
        if low <= integer and (high is None or integer <= high):
            return integer
    except TypeError:
        error = TypeError
    wanted = f"of at least {low}" if high is None else f"in {low}..{high}{note}"
    raise error(
        f"{name} must be an integer {wanted}; got {value!r}. "
        "Pass a Python or NumPy integer in that range."
    )


def _as_keys(name: str, value: Any) -> jax.Array:
    """New-style keys; the old ones, of jax.random.PRNGKey, are uint32 arrays."""
    keys: jax.Array = value
    if jnp.issubdtype(getattr(keys, "dtype", object), jax.dtypes.prng_key):
        return keys
    try:
        keys = jax.random.wrap_key_data(value)
    except (TypeError, ValueError, AttributeError) as error:
        raise TypeError(
            f"{name} must be made by jax.random; got {type(value).__name__}. "
            "Make one with jax.random.key(0)."
        ) from error
    return keys


def _is_rbg(keys: jax.Array) -> bool:
    """Whether jax.vmap would draw for all of these keys from the first alone."""
    return str(jax.random.key_impl(keys)) in ("rbg", "unsafe_rbg")


def _check_key(value: Any) -> jax.Array:
    key = _as_keys("key", value)
    if key.shape != ():
        raise ValueError(
            f"key must be one random key; got keys of shape {key.shape}. "
            "For many models use fit_many."
        )
    return key


def _check_keys(value: Any) -> jax.Array:
    keys = _as_keys("keys", value)
    if keys.ndim != 1:
        raise ValueError(
            f"keys must have shape (s,), a key a model; got shape {keys.shape}. "
            "Make them with jax.random.split(key, s), or use fit for one model."
        )
    if _is_rbg(keys):
        raise TypeError(
            "keys must be independent under vmap; got rbg keys, which draw from the "
            'first alone. Make them from jax.random.key(0, impl="threefry2x32").'
        )
    return keys


def main() -> None:
    """Train 256 models of made-up data, and compare them with exact least squares."""
    num_steps, segment = 5000, 500
    X_key, noise_key, models_key = jax.random.split(jax.random.key(0), 3)
    X = 10 * jax.random.uniform(X_key, (1000, 2))
    truth = {"w": jnp.array([3.0, 4.0]), "b": jnp.array(5.0)}
    y = predict(truth, X) + jax.random.uniform(noise_key, (1000,))
    keys = jax.random.split(models_key, 256)
    params: Any = None

    print("256 models; RMSE on the last batch: median, 5th to 95th percentile")
    began = time.perf_counter()
    for start in range(0, num_steps, segment):
        params, losses = fit_many(
            keys, X, y, 0.01, num_steps=segment, params=params, start=start
        )
        low, median, high = jnp.percentile(losses[:, -1], jnp.array([5.0, 50.0, 95.0]))
        done = f"step {start + segment} of {num_steps}"
        print(f"{done:>17}  {median:.3f}  {low:.3f} to {high:.3f}", flush=True)
    speed = 256 * num_steps / (time.perf_counter() - began)

    *w, b = jnp.linalg.lstsq(jnp.column_stack([X, jnp.ones(1000)]), y)[0]
    exact = {"w": jnp.array(w), "b": b}
    print("\n                     mean      spread   least squares")
    for name, value in (
        ("w[0]", lambda p, X, y: p["w"][0]),
        ("w[1]", lambda p, X, y: p["w"][1]),
        ("b", lambda p, X, y: p["b"]),
        ("R²", r2_score),
        ("RMSE", rmse),
    ):
        each = jax.jit(jax.vmap(value, in_axes=(0, None, None)))(params, X, y)
        best = jax.jit(value)(exact, X, y)
        print(f"{name:>11} {each.mean():13.5f} {each.std():11.5f} {best:15.5f}")
    print(f"\n{speed:,.0f} model-steps per second, compilation included")


if __name__ == "__main__":
    main()

# MIT License
#
# Copyright (c) 2026 the jaxlin authors
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
