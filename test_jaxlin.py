"""The laws of jaxlin, each against an oracle: algebra, NumPy float64, real data."""

import ast
import concurrent.futures
import contextlib
import doctest
import functools
import itertools
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
import time

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import jaxlin
from jaxlin import fit, fit_many, init_params, predict, r2_score, rmse, sample_batch

HERE = pathlib.Path(__file__).parent

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_enable_checks", True)

settings.register_profile(
    "jaxlin",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=30,
    # The x64 fixture sets a flag for the whole test: examples may share it.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("jaxlin")

compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: (
        compilations.append(event)
        if event == "/jax/core/compile/backend_compile_duration"
        else None
    )
)


@contextlib.contextmanager
def compiles(number):
    before = len(compilations)
    yield
    assert len(compilations) - before == number


@contextlib.contextmanager
def enabled_x64():
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.fixture
def x64():
    with enabled_x64():
        yield


@pytest.fixture
def reused_keys():
    """For what trains twice by the same keys, or maps keys in a loop of JAX's."""
    with jax.debug_key_reuse(False):
        yield


def key(seed=0):
    return jax.random.key(seed)


def keys(number, seed=0):
    return jax.random.split(key(seed), number)


def data(seed=0, n=40, d=3, t=()):
    """X, y of a noisy linear model, float32 NumPy arrays."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    y = np.tensordot(X, rng.normal(size=(d, *t)), 1) + rng.normal(size=t) + 2
    return X.astype("f4"), (y + 0.1 * rng.normal(size=y.shape)).astype("f4")


def assert_equal(actual, expected):
    """The same bits, the same dtypes, the same tree."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_close(actual, expected, rtol=2e-5, atol=1e-6):
    """Equal to the rounding of float32, some steps of it in a row by default."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def numpy_residuals(params, X, y):
    w, b, X, y = (np.asarray(a, "f8") for a in (params["w"], params["b"], X, y))
    return np.tensordot(X, w, 1) + b - y


def norm(residuals):
    """The root of the sum of squares, of tiny and huge ones too."""
    return np.hypot.reduce(residuals, axis=None, initial=0.0)


def numpy_rmse(params, X, y):
    residuals = numpy_residuals(params, X, y)
    return norm(residuals) / residuals.size**0.5


def numpy_sgd(params, X, y, rates, batches):
    """SGD on the RMSE in float64; batches: the row numbers of each step."""
    w, b, X, y = (np.asarray(a, "f8") for a in (params["w"], params["b"], X, y))
    losses = []
    for rows, rate in zip(batches, rates, strict=True):
        r = X[rows] @ w + b - y[rows]
        loss = np.sqrt(np.mean(r**2))
        losses.append(loss)
        w = w - rate * X[rows].T @ r / (len(rows) * loss)
        b = b - rate * r.mean() / loss
    return {"w": w, "b": b}, np.array(losses)


def drawn_rows(model_key, start, num_steps, n, batch_size):
    """The row numbers that fit draws: sample_batch gathers them from row numbers."""
    _, batch_key = jax.random.split(model_key)
    number = jnp.arange(n)
    return [
        np.asarray(
            sample_batch(
                jax.random.fold_in(batch_key, i), number[:, None], number, batch_size
            )[1]
        ).astype(int)
        for i in range(start, start + num_steps)
    ]


@pytest.mark.parametrize("t", [(), (3,), (2, 3)])
def test_init_params_has_the_shapes_of_the_design(t):
    params = init_params(key(), 4, target_shape=t)
    assert jax.tree.map(jnp.shape, params) == {"w": (4, *t), "b": t}
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("float32")}


def test_init_params_is_standard_normal_and_w_is_independent_of_b():
    params = init_params(key(), 100, target_shape=(400,))
    for leaf in params.values():
        # The mean and variance of N normal draws: 0 ± 1/√N, 1 ± √(2/N); 5 sigma.
        assert abs(leaf.mean()) < 5 / leaf.size**0.5
        assert abs(leaf.var() - 1) < 5 * (2 / leaf.size) ** 0.5
    correlation = np.corrcoef(np.vstack([params["w"], params["b"][None]]))
    assert np.abs(correlation[-1, :-1]).max() < 5 / 400**0.5


def test_init_params_differ_by_key_and_repeat_by_key():
    assert_equal(init_params(key(), 2), init_params(key(), 2))
    assert not np.any(init_params(key(), 2)["w"] == init_params(key(1), 2)["w"])


def test_init_params_takes_every_real_floating_dtype(x64):
    for dtype in (jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16):
        assert init_params(key(), 2, dtype=dtype)["w"].dtype == dtype


@pytest.mark.parametrize("t", [(), (3,), (2, 3)])
def test_predict_is_the_affine_map(t):
    X, _ = data()
    params = init_params(key(), 3, target_shape=t)
    w, b = np.asarray(params["w"], "f8"), np.asarray(params["b"], "f8")
    predictions = predict(params, X)
    assert predictions.shape == (40, *t)
    assert_close(predictions, np.einsum("nd,d...->n...", X, w) + b)


def test_predict_asks_for_full_precision():
    assert "HIGHEST" in str(jax.make_jaxpr(predict)(init_params(key(), 3), data()[0]))


@st.composite
def problems(draw):
    """(params, X, y) in float64: plain ones and the corners of linear regression."""
    n, d = draw(st.sampled_from([(1, 1), (6, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    X, w, b = rng.normal(size=(n, d)), rng.normal(size=d), rng.normal()
    kind = draw(st.sampled_from(["plain", "constant", "collinear", "tiny", "huge"]))
    if kind == "constant":
        X[:, 0] = 3.0
    if kind == "collinear":
        X[:, -1] = -2 * X[:, 0]
    scale = {"tiny": 1e-200, "huge": 1e200}.get(kind, 1.0)
    y = X @ w + b + rng.normal(size=n)
    return {"w": jnp.array(w * scale), "b": jnp.array(b * scale)}, X, y * scale


def ridge(params, X, y):
    return rmse(params, X, y) + 0.1 * jnp.sum(params["w"] ** 2)


rmse_and_slopes = jax.jit(jax.value_and_grad(rmse))


@given(problem=problems())
def test_rmse_and_its_gradient_are_the_closed_forms(x64, problem):
    params, X, y = problem
    residuals = numpy_residuals(params, X, y)
    n_rmse = norm(residuals) * len(y) ** 0.5
    value, gradient = rmse_and_slopes(params, X, y)
    assert_close(value, numpy_rmse(params, X, y), 1e-12, 0)
    assert_close(gradient["w"], X.T @ (residuals / n_rmse), 1e-10, 1e-12)
    assert_close(gradient["b"], np.sum(residuals / n_rmse), 1e-10, 1e-12)


def central_differences(function, x, h):
    """d function / dx in every coordinate, x a vector."""
    steps = h * jnp.eye(len(x))
    values = jax.vmap(function)(jnp.concatenate([x[None] + steps, x[None] - steps]))
    return (values[: len(x)] - values[len(x) :]) / (2 * h)


@functools.partial(jax.jit, static_argnums=0)
def slopes_in_params(loss, params, X, y):
    # The slope bends over lengths of the residuals: h = 1e-5 of them errs by 1e-10, and
    # by rounding, 1e-16 / 1e-5 and the digits that X @ w + b - y has lost.
    flat, unravel = ravel_pytree(params)
    loss_of = lambda flat: loss(unravel(flat), X, y)  # noqa: E731
    return jax.grad(loss_of)(flat), central_differences(
        loss_of, flat, 1e-5 * rmse(params, X, y)
    )


@pytest.mark.parametrize("loss", [rmse, ridge])
@given(problem=problems())
def test_gradient_is_the_finite_difference_in_every_coordinate(x64, loss, problem):
    assume(loss is rmse or np.all(np.abs(problem[2]) < 1e100))  # a weight is squared
    gradient, differences = slopes_in_params(loss, *problem)
    assert_close(gradient, differences, 1e-5, 1e-5)


@given(st.integers(-60, 60), st.integers(0, 9))
def test_rmse_scales_with_the_target_bit_for_bit(power, seed):
    """Powers of two are exact, so any loss of range or an epsilon would show."""
    X, y = data(seed)
    params = init_params(key(seed), 3)
    c = jnp.float32(2.0**power)
    scaled = jax.tree.map(lambda leaf: c * leaf, params)
    value, slopes = rmse_and_slopes(params, X, y)
    assert_equal(rmse_and_slopes(scaled, X, c * y), (c * value, slopes))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.jacrev, jax.jacfwd])
def test_rmse_of_a_perfect_fit_is_0_and_flat(transform):
    X, _ = data()
    params = init_params(key(), 3)
    y = predict(params, X)
    if transform in (jax.jacrev, jax.jacfwd):
        assert_equal(
            transform(rmse)(params, X, y), jax.tree.map(jnp.zeros_like, params)
        )
    else:
        assert transform(rmse)(params, X, y) == 0
        assert_equal(
            transform(jax.grad(rmse))(params, X, y),
            jax.tree.map(jnp.zeros_like, params),
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["X", "y", "w", "b"])
def test_rmse_and_r2_score_never_hide_what_is_not_finite(bad, where):
    X, y = data()
    params = {"w": jnp.ones(3), "b": jnp.zeros(())}
    if where == "X":
        X[7, 1] = bad
    elif where == "y":
        y[7] = bad
    else:
        params[where] = params[where].at[(0,) * params[where].ndim].set(bad)
    assert not np.isfinite(rmse(params, X, y))
    assert not np.isfinite(r2_score(params, X, y))
    assert not np.isfinite(r2_score(params, X, np.where(np.isfinite(y), 1, y)))


@pytest.mark.parametrize("size", [1e-37, 1e38, 3e38])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_rmse_reaches_to_both_ends_of_float32(transform, size):
    params, X = {"w": jnp.zeros(1), "b": jnp.zeros(())}, np.zeros((2, 1), "f4")
    value, slope = transform(jax.value_and_grad(rmse))(
        params, X, np.full(2, size, "f4")
    )
    assert_close((value, slope["b"]), (np.float32(size), -1.0), atol=0)
    assert_close(transform(r2_score)(params, X, np.array([size, 0], "f4")), -1.0)


def test_rmse_means_over_rows_and_targets():
    X, y = data(t=(4,))
    params = init_params(key(), 3, target_shape=(4,))
    assert_close(rmse(params, X, y), numpy_rmse(params, X, y))


def test_rmse_depends_on_no_order_of_rows_or_features():
    X, y = data(n=64)
    params = init_params(key(), 3)
    expected = rmse(params, X, y)
    assert_close(rmse(params, X[::-1], y[::-1]), expected)
    swapped = params | {"w": params["w"][::-1]}
    assert_close(rmse(swapped, X[:, ::-1], y), expected)
    assert_close(rmse(params, np.tile(X, (2, 1)), np.tile(y, 2)), expected)


def score(y, predictions):
    """r2_score of given predictions: with X the identity they are the weights."""
    w = jnp.array(predictions, jnp.float32)
    return r2_score({"w": w, "b": jnp.zeros(w.shape[1:])}, np.eye(len(w)), np.array(y))


@pytest.mark.parametrize(
    ("y", "predictions", "expected"),
    [
        # The examples of sklearn.metrics.r2_score in scikit-learn's documentation.
        ([3, -0.5, 2, 7], [2.5, 0.0, 2, 8], 0.948608),
        ([[0.5, 1], [-1, 1], [7, -6]], [[0, 2], [-1, 2], [8, -5]], 0.936801),
        ([1, 2, 3], [1, 2, 3], 1.0),
        ([1, 2, 3], [2, 2, 2], 0.0),
        ([1, 2, 3], [3, 2, 1], -3.0),
        ([-2, -2, -2], [-2, -2, -2], 1.0),
        ([-2, -2, -2], [-2, -2, -2 + 1e-6], 0.0),
        ([0, 0, 0], [1e-30, 0, 0], 0.0),
        ([0.1] * 100, [0.2] * 100, 0.0),
        ([[1, 5], [2, 5], [3, 5]], [[1, 4], [2, 4], [3, 4]], 0.5),
        ([4.0], [4.0], np.nan),
    ],
)
def test_r2_score_keeps_the_conventions_of_scikit_learn(y, predictions, expected):
    np.testing.assert_allclose(score(y, predictions), expected, rtol=1e-5, atol=1e-6)


@given(st.integers(0, 9), st.sampled_from([1e-25, 1e-3, 1.0, 1e3, 1e25]))
def test_r2_score_has_no_unit(seed, unit):
    rng = np.random.default_rng(seed)
    y, predictions = rng.normal(size=(2, 30, 2))
    total = np.sum((y - y.mean(0)) ** 2, axis=0)
    expected = np.mean(1 - np.sum((y - predictions) ** 2, axis=0) / total)
    assert_close(score(unit * y, unit * predictions), expected)


def test_r2_score_of_a_distant_target_keeps_its_digits():
    y = 1e6 + np.arange(64.0)
    assert_close(score(y, y + 2.0), 1 - 64 * 4 / np.sum((y - y.mean()) ** 2))


# --------------------------------------------------------------- sample_batch

IMPLS = ["threefry2x32", "rbg", "unsafe_rbg"]
if jax.__version_info__ >= (0, 10, 2):
    IMPLS += ["philox2x32", "philox4x32"]


@given(st.integers(0, 2**32 - 1), st.integers(1, 2**31 - 1))
def test_multiply_shift_is_the_high_word_of_the_product(bits, n):
    for word in (bits, 0, 2**32 - 1):
        row = jaxlin._multiply_shift(jnp.array([word], jnp.uint32), n)
        assert row.dtype == jnp.int32
        assert int(row[0]) == word * n >> 32 < n


def chi_square(counts):
    expected = counts.sum() / counts.size
    return np.sum((counts - expected) ** 2) / expected


@pytest.mark.parametrize("impl", IMPLS)
def test_sample_batch_is_uniform_and_its_draws_are_independent(impl):
    n, m = 16, 15
    number = jnp.arange(n)
    draw = jax.jit(lambda k: sample_batch(k, number[:, None], number, m)[1])
    step_keys = jax.random.split(jax.random.key(3, impl=impl), 1000)
    rows = np.stack([draw(k) for k in step_keys]).astype(int)
    assert rows.min() == 0
    assert rows.max() == n - 1
    # A chi-square of k cells has mean k and deviation √(2k): 5 sigma.
    bound = lambda cells: cells + 5 * (2 * cells) ** 0.5  # noqa: E731
    assert chi_square(np.bincount(rows.ravel(), minlength=n)) < bound(n)
    # Within a batch (one hash may give two words of it), and from key to key.
    for first, second in ((rows[:, :-1], rows[:, 1:]), (rows[:-1], rows[1:])):
        pairs = np.bincount((n * first + second).ravel(), minlength=n * n)
        assert chi_square(pairs) < bound(n * n)


@pytest.mark.parametrize("d", [1, 7, 8, 15, 16])  # by columns, but for 8 and 16
def test_sample_batch_keeps_rows_and_targets_paired(d):
    X, y = data(n=1000, d=d, t=(2,))
    X_batch, y_batch = sample_batch(key(), X, y, 999)
    assert (X_batch.shape, y_batch.shape) == ((999, d), (999, 2))
    whole = {(*x, *t) for x, t in zip(X.tolist(), y.tolist(), strict=True)}
    drawn = np.hstack([X_batch, y_batch]).tolist()
    assert {tuple(row) for row in drawn} <= whole
    # 999 draws with replacement of 1000 leave 1000 (1 - 1/1000)**999 = 368 out, ± 10.
    assert 1000 - 368 - 50 < len({tuple(row) for row in drawn}) < 1000 - 368 + 50


@given(st.sampled_from([1, 2, 7, 40]), st.integers(0, 99), st.sampled_from([3, 8]))
def test_sample_batch_under_vmap_is_the_loop(batch_size, seed, d):
    X, y = data(d=d)
    draw = jax.jit(sample_batch, static_argnums=3)
    many = jax.vmap(lambda k: draw(k, X, y, batch_size))(keys(5, seed))
    for i in range(5):
        one = draw(keys(5, seed)[i], X, y, batch_size)
        assert_equal(jax.tree.map(lambda leaf, i=i: leaf[i], many), one)


def test_sample_batch_of_twice_the_rows_draws_within_the_same_rows():
    """floor(u 2n / 2**32) // 2 is floor(u n / 2**32): what the docstring promises."""
    once, twice = (jnp.arange(n) for n in (1000, 2000))
    rows = sample_batch(key(), once[:, None], once, 500)[1]
    halves = sample_batch(key(), twice[:, None], twice, 500)[1]
    np.testing.assert_array_equal(np.asarray(halves) // 2, rows)


def test_sample_batch_repeats_by_key_and_differs_by_key():
    X, y = data(n=1000)
    assert_equal(sample_batch(key(), X, y, 50), sample_batch(key(), X, y, 50))
    same = sample_batch(key(), X, y, 50)[1] == sample_batch(key(1), X, y, 50)[1]
    assert same.sum() < 5


@given(st.integers(0, 99), st.sampled_from([(), (2,)]))
def test_step_goes_down_the_gradient_and_returns_the_loss_before(seed, t):
    X, y = data(seed, t=t)
    params = init_params(key(seed), 3, target_shape=t)
    new, loss = jaxlin.step(params, X, y, 0.25)
    residuals, before = numpy_residuals(params, X, y), numpy_rmse(params, X, y)
    slope = residuals / (residuals.size * before)
    assert_close(loss, before)
    assert_close(new["w"], params["w"] - 0.25 * np.tensordot(X.T, slope, 1))
    assert_close(new["b"], params["b"] - 0.25 * slope.sum(0))


def test_step_takes_another_loss_and_any_pytree_of_floats():
    X, y = data()
    params = [jnp.ones(3), (jnp.ones(()),)]

    def loss(params, X, y):
        return jnp.mean(jnp.abs(X @ params[0] + params[1][0] - y))

    new, value = jaxlin.step(params, X, y, 0.1, loss)
    gradient = jax.grad(loss)(params, jnp.asarray(X), jnp.asarray(y))
    assert_equal(new, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient))
    assert value == loss(params, X, y)


def fit_by_hand(key, X, y, rates, *, batch_size, loss):
    """fit again, as a user would write it from the public pieces."""
    init_key, batch_key = jax.random.split(key)
    params = init_params(init_key, X.shape[1], target_shape=y.shape[1:])
    losses = []
    for i, rate in enumerate(rates):
        batch = sample_batch(jax.random.fold_in(batch_key, i), X, y, batch_size)
        params, value = jaxlin.step(params, *batch, rate, loss)
        losses.append(value)
    return params, jnp.array(losses)


@pytest.mark.parametrize("loss", [rmse, ridge])
@pytest.mark.parametrize("t", [(), (2,)])
def test_fit_is_a_loop_over_the_public_pieces(t, loss):
    X, y = data(t=t)
    rates = np.linspace(0.3, 0.1, 9).astype("f4")
    by_hand = fit_by_hand(key(), X, y, rates, batch_size=7, loss=loss)
    trained = fit(key(), X, y, rates, num_steps=9, batch_size=7, loss=loss)
    assert_close(trained, by_hand)


@given(st.integers(0, 99))
def test_fit_is_sgd_in_float64_on_the_rows_it_draws(seed):
    X, y = data(seed)
    rates = np.linspace(0.3, 0.1, 9).astype("f4")
    start = init_params(key(seed + 1), 3)
    kwargs = {"num_steps": 9, "batch_size": 7, "params": start, "start": 5}
    rows = drawn_rows(key(seed), 5, 9, 40, 7)
    assert_close(
        fit(key(seed), X, y, rates, **kwargs), numpy_sgd(start, X, y, rates, rows)
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_fit_draws_the_batch_of_every_step(impl):
    """Over several of the blocks of steps whose rows are drawn together."""
    X, y = data(n=500)
    params = init_params(key(1), 3)
    options = {"num_steps": 10, "batch_size": 400, "params": params, "start": 5}
    _, losses = fit(jax.random.key(0, impl=impl), X, y, 0, **options)
    rows = drawn_rows(jax.random.key(0, impl=impl), 5, 10, 500, 400)
    expected = np.array([numpy_rmse(params, X[r], y[r]) for r in rows])
    assert_close(losses, expected)


def test_fit_and_its_gradient_are_the_same_for_a_traced_key(reused_keys):
    """Which draws its rows step by step."""
    X, y = data(n=500)

    def loss_and_slopes(k):
        def final_loss(rates):
            params, _ = fit(k, X, y, rates, num_steps=10, batch_size=400)
            return rmse(params, X, y)

        return jax.value_and_grad(final_loss)(jnp.linspace(0.3, 0.1, 10))

    assert_close(jax.jit(loss_and_slopes)(key()), loss_and_slopes(key()))


def test_many_models_hold_the_rows_of_one_step_only():
    X, y = data(n=1000)
    options = {"num_steps": 10, "batch_size": 100}
    for train in (
        lambda k: fit_many(k, X, y, 0.1, **options),
        jax.vmap(lambda k: fit(k, X, y, 0.1, **options)),
    ):
        compiled = jax.jit(train).lower(keys(1000)).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        assert memory < 10 * 1000 * 100 * 4  # ten words for each row of a batch


def test_fit_starts_from_init_params_of_the_first_half_of_its_key():
    X, y = data(t=(2,))
    params, losses = fit(key(), X, y, 0.1, num_steps=0, batch_size=5)
    expected = init_params(jax.random.split(key())[0], 3, target_shape=(2,))
    assert_equal(params, expected)
    assert_equal(losses, jnp.zeros(0))


def momentum(state, X, y, learning_rate, loss):
    """A step whose state is more than params, integers included."""
    params, velocity, count = state
    value, gradient = jax.value_and_grad(loss)(params, X, y)
    velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
    params = jax.tree.map(lambda p, v: p - learning_rate * v, params, velocity)
    return (params, velocity, count + 1), value


@pytest.mark.parametrize(
    ("many", "step", "schedule"),
    [
        (False, jaxlin.step, False),
        (False, momentum, True),
        (True, jaxlin.step, True),
        (True, momentum, False),
    ],
)
def test_resuming_is_bit_for_bit_at_every_split(many, step, schedule):
    X, y = data()
    total = 4
    rates = np.linspace(0.3, 0.1, total).astype("f4") if schedule else 0.2

    def train(rates, step=step, **options):
        function, k = (fit_many, keys(3)) if many else (fit, key())
        return function(k, X, y, rates, batch_size=7, step=step, **options)

    state = train(0.1, num_steps=0, step=jaxlin.step)[0]
    if step is momentum:
        zeros = jax.tree.map(jnp.zeros_like, state)
        state = (state, zeros, jnp.zeros((3,) if many else (), jnp.int32))
    whole = train(rates, num_steps=total, params=state)
    for split in range(total + 1):
        first, second = (rates[:split], rates[split:]) if schedule else (rates, rates)
        middle, a = train(first, num_steps=split, params=state)
        end, b = train(second, num_steps=total - split, params=middle, start=split)
        assert_equal((end, jnp.concatenate([a, b], axis=-1)), whole)


@pytest.mark.parametrize(
    ("many", "d", "t"),
    [(False, 2, ()), (False, 8, (2,)), (True, 2, (2,)), (True, 8, ())],
)
def test_one_step_at_a_time_is_bit_for_bit_the_whole(many, d, t):
    """A program of one step needs its loop, outside which XLA rounds otherwise."""
    X, y = data(n=100, d=d, t=t)

    def train(num_steps, **options):
        function, k = (fit_many, keys(3)) if many else (fit, key())
        return function(k, X, y, 0.2, num_steps=num_steps, batch_size=32, **options)

    params, losses = train(0)
    for i in range(9):
        params, loss = train(1, params=params, start=i)
        losses = jnp.concatenate([losses, loss], axis=-1)
    assert_equal((params, losses), train(9))


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_fit_takes_every_step_once(num_steps):
    """Also where the program of one step is a loop of two."""
    X, y = data()
    seen = []

    def counted(count, X, y, learning_rate, loss):
        jax.debug.callback(lambda count: seen.append(int(count)), count)
        return count + 1, {"before": count, "root": jnp.sqrt(1.0 - count)}

    def train(count):
        return fit(
            key(),
            X,
            y,
            1,
            num_steps=num_steps,
            batch_size=4,
            params=count,
            step=counted,
        )

    count, losses = train(0.0)
    jax.effects_barrier()
    assert seen == list(range(num_steps))
    assert count == num_steps
    assert_equal(losses["before"], jnp.arange(float(num_steps)))
    # The root has no slope at step 1, which shows if that step is taken.
    slope = jax.grad(lambda count: train(count)[1]["root"].sum())(0.0)
    assert slope == [0.0, -0.5, -jnp.inf][num_steps]


def test_fit_repeats_by_key_and_differs_by_key_in_params_and_in_batches():
    X, y = data(n=1000)
    train = functools.partial(fit, X=X, y=y, learning_rate=0.1, num_steps=8)
    assert_equal(train(key()), train(key()))
    (params, _), (others, _) = train(key(), num_steps=0), train(key(1), num_steps=0)
    assert not np.any(params["w"] == others["w"])
    _, losses = train(key(), params=params)
    _, other_losses = train(key(1), params=params)
    assert not np.any(np.asarray(losses) == np.asarray(other_losses))
    # Nor does a step repeat the batch of another: at rate 0 only the batch matters.
    _, losses = train(key(), params=params, learning_rate=0.0)
    assert len(set(losses.tolist())) == 8


def test_fit_of_no_rate_leaves_params_alone():
    X, y = data()
    params = init_params(key(1), 3)
    assert_equal(
        fit(key(), X, y, 0, num_steps=3, batch_size=5, params=params)[0], params
    )


def test_fit_of_one_rate_is_fit_of_a_constant_schedule():
    X, y = data()
    options = {"num_steps": 9, "batch_size": 5}
    schedule = np.full(9, 0.1)
    assert_equal(
        fit(key(), X, y, 0.1, **options), fit(key(), X, y, schedule, **options)
    )


# The symmetries of linear regression, in the whole of training: each maps the problem
# and its trained params to another problem and its own. Exact where the map rounds
# nothing: signs, order, powers of two.


def train(params, X, y, rate=0.1):
    return fit(key(), X, y, rate, num_steps=20, batch_size=8, params=params)


@pytest.fixture
def problem():
    return init_params(key(1), 3), *data()


def test_negating_the_target_negates_the_params(problem):
    params, X, y = problem
    negated, losses = train(jax.tree.map(jnp.negative, params), X, -y)
    assert_equal((jax.tree.map(jnp.negative, negated), losses), train(params, X, y))


def test_negating_a_feature_negates_its_weight(problem):
    params, X, y = problem
    signs = np.array([1, -1, 1], "f4")
    flipped, losses = train(params | {"w": params["w"] * signs}, X * signs, y)
    assert_equal((flipped | {"w": flipped["w"] * signs}, losses), train(params, X, y))


@pytest.mark.parametrize("power", [-60, 1, 60])
def test_scaling_target_params_and_rate_scales_the_training(problem, power):
    params, X, y = problem
    c = jnp.float32(2.0**power)
    scaled = train(jax.tree.map(lambda p: c * p, params), X, c * y, 0.125 * c)
    assert_equal(jax.tree.map(lambda a: a / c, scaled), train(params, X, y, 0.125))


def test_shifting_the_target_shifts_the_intercept(problem):
    params, X, y = problem
    shifted, losses = train(params | {"b": params["b"] + 8}, X, y + 8)
    expected, expected_losses = train(params, X, y)
    assert_close(shifted, expected | {"b": expected["b"] + 8}, atol=1e-5)
    assert_close(losses, expected_losses, atol=1e-5)


def test_rotating_the_features_rotates_the_weights(problem):
    params, X, y = problem
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    rotated, losses = train(params | {"w": np.float32(Q.T @ params["w"])}, X @ Q, y)
    back = rotated | {"w": Q @ rotated["w"]}
    assert_close((back, losses), train(params, X, y), atol=1e-5)


def test_permuting_the_features_permutes_the_weights(problem):
    params, X, y = problem
    order = np.array([2, 0, 1])
    permuted, losses = train(params | {"w": params["w"][order]}, X[:, order], y)
    expected, expected_losses = train(params, X, y)
    assert_close(permuted["w"], expected["w"][order])
    assert_close((permuted["b"], losses), (expected["b"], expected_losses))


def test_a_feature_of_zeros_changes_nothing(problem):
    params, X, y = problem
    wider = params | {"w": jnp.concatenate([params["w"], jnp.array([7.0])])}
    trained, losses = train(wider, np.pad(X, ((0, 0), (0, 1))), y)
    assert trained["w"][3] == 7
    rest = trained | {"w": trained["w"][:3]}
    assert_close((rest, losses), train(params, X, y))


def test_permuting_the_targets_permutes_the_params():
    X, y = data(t=(3,))
    params, order = init_params(key(1), 3, target_shape=(3,)), np.array([2, 0, 1])
    moved = {"w": params["w"][:, order], "b": params["b"][order]}
    permuted, losses = train(moved, X, y[:, order])
    expected, expected_losses = train(params, X, y)
    assert_close(permuted["w"], expected["w"][:, order])
    assert_close((permuted["b"], losses), (expected["b"][order], expected_losses))


@jax.jit
def slopes_in_rates(k, params, X, y, rates):
    scale = rmse(params, X, y)
    options = {"num_steps": 4, "batch_size": 1 + len(y) // 2, "params": params}

    def final_loss(rates):
        """In units of its start, of rates in the same units."""
        rates = rates[0] if len(rates) == 1 else rates
        return rmse(fit(k, X, y, rates * scale, **options)[0], X, y) / scale

    return jax.grad(final_loss)(rates), central_differences(final_loss, rates, 1e-6)


@given(problem=problems(), seed=st.integers(0, 99))
def test_gradient_through_fit_is_the_finite_difference(x64, reused_keys, problem, seed):
    for rates in (jnp.array([0.01]), jnp.linspace(0.01, 0.005, 4)):
        gradient, differences = slopes_in_rates(key(seed), *problem, rates)
        assert_close(gradient, differences, 1e-5, 1e-6)


def test_a_sweep_compiles_once_and_each_new_shape_once_more():
    X, y = data(n=41)
    scalars = [0.1, 1, True, np.float32(0.1), np.float64(0.1), np.int64(1)]
    scalars += [jnp.float32(0.1), jnp.asarray(0.1), jnp.int32(1), jnp.bfloat16(0.5)]
    options = {"num_steps": 5, "batch_size": 4}
    fit(key(), *data(n=42), 0.1, **options)  # also the conversion of scalars
    keys(3)
    others = [jnp.float32(2) * X, jnp.float32(2) * y]
    starts = [0, 7, np.int64(7), jnp.int32(7)]
    with compiles(1):
        for rate, seed, start in itertools.product(scalars, range(3), starts):
            fit(key(seed), X, y, rate, start=start, **options)
        fit(key(3), *others, 0.1, **options)
    with compiles(1):
        for rate, start in itertools.product(scalars, starts):
            fit_many(keys(3), X, y, rate, start=start, **options)
    with compiles(1):
        fit(key(), X, y, np.full(5, 0.1), **options)
        fit(key(), X, y, np.full(5, 0.2), **options)
    with compiles(1):
        fit(key(), X, y.astype("f8"), 0.1, num_steps=6, batch_size=4)
        fit(key(), X.astype("f8"), y, 0.1, num_steps=np.int64(6), batch_size=np.int8(4))
    with compiles(1):
        fit(key(), X[:40], y[:40], 0.1, **options)


def scans(jaxpr):
    """The lengths of all scans in a program, those inside others too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            found.append(equation.params["length"])
        for sub in jax.tree.leaves(
            equation.params, is_leaf=lambda p: hasattr(p, "eqns")
        ):
            sub = getattr(sub, "jaxpr", sub)
            found += scans(sub) if hasattr(sub, "eqns") else []
    return found


def test_the_program_of_fit_is_one_scan():
    X, y = data()
    options = {"num_steps": 17, "batch_size": 4}
    one = jax.make_jaxpr(lambda k: fit(k, X, y, 0.1, **options))(key())
    many = jax.make_jaxpr(lambda k: fit_many(k, X, y, 0.1, **options))(keys(3))
    assert scans(one.jaxpr) == scans(many.jaxpr) == [17]


def test_fit_modifies_and_donates_nothing():
    X, y = data()
    params = init_params(key(1), 3)
    before = jax.tree.map(np.array, (params, X, y))
    for array in (X, y):
        array.flags.writeable = False
    X_jax, rates = jnp.asarray(X), jnp.full(5, 0.1)
    first = fit(key(), X_jax, y, rates, num_steps=5, batch_size=4, params=params)
    again = fit(key(), X_jax, y, rates, num_steps=5, batch_size=4, params=params)
    assert_equal(first, again)
    assert_equal((params, X, y), before)
    assert_equal((X_jax, rates), (jnp.asarray(before[1]), jnp.full(5, 0.1)))


def frame(array):
    """What converts through __array__ and offers nothing else, as a DataFrame may."""
    return type("Frame", (), {"__array__": lambda _, dtype=None, copy=None: array})()


DTYPES = ["f4", "f8", "f2", jnp.bfloat16, "i1", "i4", "i8", "u8", "?"]
WAYS = [
    np.asarray,
    np.asfortranarray,
    jnp.asarray,
    np.ndarray.tolist,
    frame,
    lambda array: np.repeat(array, 2, axis=0)[::2],
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_real_array_computes_in_float32(way, dtype):
    rng = np.random.default_rng(0)
    X, y = (
        rng.integers(0, 2, (20, 2)).astype(dtype),
        rng.integers(0, 2, 20).astype(dtype),
    )
    if way is np.ndarray.tolist and dtype is jnp.bfloat16:
        X, y = X.astype("f4"), y.astype("f4")  # its tolist is not of numbers
    expected = fit(
        key(), X.astype("f4"), y.astype("f4"), 0.1, num_steps=9, batch_size=4
    )
    with np.errstate(all="raise"):
        trained = fit(key(), way(X), way(y), 0.1, num_steps=9, batch_size=4)
    assert_equal(trained, expected)
    assert rmse(expected[0], way(X), way(y)).dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8"])
def test_only_float64_computes_in_float64(x64, dtype):
    X, y = data()
    X, y = np.abs(X).astype(dtype), np.abs(y).astype(dtype)
    expected = jnp.float64 if dtype == "f8" else jnp.float32
    rates = [0.1, np.float64(0.1), jnp.float32(0.1), np.full(3, 0.1)]
    for params, rate in itertools.product([None, init_params(key(), 3)], rates):
        trained = fit(key(), X, y, rate, num_steps=3, batch_size=4, params=params)
        assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {
            jnp.dtype(expected)
        }


def test_integer_features_compute_in_float32_for_many_models_too(x64):
    X, y = np.ones((5, 2), int), np.ones(5)
    many = fit_many(keys(2), X, y, 0.1, num_steps=0, batch_size=4)
    assert {leaf.dtype for leaf in jax.tree.leaves(many)} == {jnp.dtype("float32")}


def test_float64_really_is_float64(x64):
    X, y = (a.astype("f8") for a in data())
    start = init_params(key(1), 3, dtype=jnp.float64)
    rates = np.linspace(0.3, 0.1, 9)
    rows = drawn_rows(key(), 0, 9, 40, 7)
    trained = fit(key(), X, y, rates, num_steps=9, batch_size=7, params=start)
    assert_close(trained, numpy_sgd(start, X, y, rates, rows), 1e-13, 1e-14)


@pytest.mark.parametrize("way", [np.asarray, frame, list])
def test_integers_beyond_32_bits_do_not_wrap(way):
    X = np.array([[2**40], [2**41]])
    params = {"w": np.ones(1, int), "b": np.int64(2**40)}
    y = predict(params, way(X))
    assert y.tolist() == [float(x) + 2.0**40 for x in X[:, 0]]
    X, y = data()
    start = {"w": np.zeros(3), "b": np.int64(2**40)}
    params, _ = fit(key(), X, y, 0, num_steps=1, batch_size=4, params=start)
    assert params["b"] == 2.0**40


@pytest.mark.parametrize("way", [np.asarray, jnp.asarray, np.ndarray.tolist, frame])
def test_integers_keep_their_digits_in_float64(x64, way):
    n = 1_700_000_001  # which float32 would round to 1_700_000_000
    X, w, whole = np.ones((2, 1)), np.zeros(1), np.array([n, n])
    for params, y in (
        ({"w": w, "b": float(n)}, way(whole)),
        ({"w": w, "b": way(np.array(n))}, whole.astype(float)),
    ):
        assert rmse(params, X, y) == 0
        assert fit(key(), X, y, 0, num_steps=1, batch_size=1, params=params)[1] == 0


def test_integer_params_and_legacy_keys_are_taken():
    X, y = data()
    options = {"num_steps": 3, "batch_size": 5}
    zeros = {"w": np.zeros(3, int), "b": 0}
    expected = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    legacy = jax.random.PRNGKey(0)
    assert_equal(
        fit(legacy, X, y, 0.1, params=zeros, **options),
        fit(key(), X, y, 0.1, params=expected, **options),
    )
    legacy_keys = jax.random.split(jax.random.PRNGKey(0), 3)
    assert_equal(
        fit_many(legacy_keys, X, y, 0.1, **options),
        fit_many(keys(3), X, y, 0.1, **options),
    )


def test_what_is_not_finite_shows_in_the_losses():
    X, y = data()
    X[3] = np.nan
    _, losses = fit(key(), X, y, 0.1, num_steps=200, batch_size=5)
    first = int(np.argmax(np.isnan(losses)))
    assert 0 < first < 100
    assert np.all(np.isnan(losses[first:]))


def stack(results):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


AXES = [
    (0, None, None, None),
    (None, None, None, 0),
    (0, 0, None, None),
    (0, None, 0, None),
    (0, 1, 1, 0),
    [0, 0, 0, 0],
    (None, -1, None, None),
]


@pytest.mark.parametrize(
    ("axes", "given_params"), [*zip(AXES, itertools.cycle([True, False]), strict=False)]
)
def test_fit_many_is_a_loop_of_fit(axes, given_params):
    s, options = 4, {"num_steps": 9, "batch_size": 7}
    X, y = map(np.stack, zip(*[data(seed) for seed in range(s)], strict=True))
    rates = np.linspace(0.1, 0.4, s).astype("f4")
    params = jax.vmap(lambda k: init_params(k, 3))(keys(s, 1)) if given_params else None
    inputs = [
        a[0] if axis is None else a if not axis else np.moveaxis(a, 0, axis)
        for a, axis in zip((keys(s), X, y, rates), axes, strict=True)
    ]
    many = fit_many(*inputs, in_axes=axes, params=params, start=3, **options)
    loop = []
    for i in range(s):
        arrays = zip((keys(s), X, y, rates), axes, strict=True)
        one = [a[0 if axis is None else i] for a, axis in arrays]
        model = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        loop.append(fit(*one, params=model, start=3, **options))
    assert_close(many, stack(loop))


def test_fit_many_maps_schedules_and_custom_steps():
    X, y = data()
    rates = np.linspace(0.1, 0.4, 12).astype("f4").reshape(4, 3)
    options = {"num_steps": 3, "batch_size": 7, "loss": ridge}
    many = fit_many(keys(4), X, y, rates, in_axes=(0, None, None, 0), **options)
    loop = [fit(k, X, y, r, **options) for k, r in zip(keys(4), rates, strict=True)]
    assert_close(many, stack(loop))


def test_vmap_and_jit_of_fit_are_fit_many():
    X, y = data()
    options = {"num_steps": 9, "batch_size": 7}
    expected = fit_many(keys(4), X, y, 0.1, **options)
    mapped = jax.vmap(lambda k: fit(k, X, y, 0.1, **options))
    assert_close(mapped(keys(4)), expected)
    assert_close(jax.jit(mapped)(keys(4)), expected)


@pytest.mark.parametrize("s", [32_768, 32_769, 40_000])
def test_fit_many_of_very_many_models_is_numpy_sgd(reused_keys, s):
    """At these sizes some versions of XLA compile a mapped sum of squares wrongly."""
    X, y = data(n=10, d=2)
    start = {"w": jnp.ones((s, 2)), "b": jnp.zeros(s)}
    many = keys(s)
    options = {"num_steps": 2, "batch_size": 5}
    trained, losses = fit_many(many, X, y, 0.1, params=start, **options)

    @jax.vmap
    def rows_of(k):
        _, batch_key = jax.random.split(k)
        number = jnp.arange(10)
        step_keys = jax.vmap(lambda i: jax.random.fold_in(batch_key, i))(jnp.arange(2))
        return jax.vmap(lambda k: sample_batch(k, number[:, None], number, 5)[1])(
            step_keys
        )

    rows = np.asarray(jax.jit(rows_of)(many)).astype(int)
    w, b = np.ones((s, 2)), np.zeros(s)
    for i in range(2):
        X_i, y_i = X[rows[:, i]].astype("f8"), y[rows[:, i]].astype("f8")
        r = np.einsum("smd,sd->sm", X_i, w) + b[:, None] - y_i
        loss = np.sqrt(np.mean(r**2, axis=1))
        assert_close(losses[:, i], loss)
        w = w - 0.1 * np.einsum("smd,sm->sd", X_i, r) / (5 * loss[:, None])
        b = b - 0.1 * r.mean(1) / loss
    assert_close(trained, {"w": w, "b": b})


# --------------------------------------------------------------------- errors

X3, Y3 = np.ones((10, 2), "f4"), np.ones(10, "f4")
PARAMS = {"w": np.ones(2, "f4"), "b": np.float32(0)}
FIT = {"num_steps": 3, "batch_size": 4}
NOT_REAL = "must be an array of real numbers; got {}. Pass floats, integers or bools, "
NOT_REAL += "without gaps."
IN_RANGE = "Pass a Python or NumPy integer in that range."
NOT_2D = "Use X[:, None] for one feature, fit_many for stacked data sets."
EMPTY = "X must have at least one row and one feature; got {}. "
EMPTY += "Check how it was loaded or filtered."
ROWS = "y must have shape (10, *t), an entry for each row of X; got {}. "
ROWS += "Pass the same rows of both."
TARGET = "y must have the target shape of params, {0}; got {1}. "
TARGET += "Reshape y, or make params with target_shape={1}."
BATCH = "batch_size must be an integer in 1..10, the rows of X; got {}. " + IN_RANGE
STEPS = "num_steps must be an integer of at least 0; got {}. " + IN_RANGE
START = "start must be an integer in 0..4294967293; got {}. " + IN_RANGE
WEIGHTS = 'params["w"] must have shape {0}, d of X and t of params["b"]; got {1}. '
WEIGHTS += "Make them by init_params(key, 2)."
NO_DICT = 'params must be a dict with "w" and "b"; got {}. Make it with init_params.'
RATE = "learning_rate must have shape () or (num_steps,) = (3,); got {}. "
RATE += "To train at many rates use fit_many with in_axes."
FUNCTION = "{} must be a function; got {}. "
FUNCTION += "The docstring of fit says what it takes and returns."

# Each a function of a key, with the whole message: these raise under any transform.
ERRORS = [
    (lambda k: fit(k, Y3, Y3, 0.1), f"X must have shape (n, d); got (10,). {NOT_2D}"),
    (
        lambda k: fit(k, X3[None], Y3, 0.1),
        f"X must have shape (n, d); got (1, 10, 2). {NOT_2D}",
    ),
    (lambda k: predict(PARAMS, 1.0), f"X must have shape (n, d); got (). {NOT_2D}"),
    (lambda k: fit(k, X3[:0], Y3[:0], 0.1), EMPTY.format("(0, 2)")),
    (lambda k: fit(k, X3[:, :0], Y3, 0.1), EMPTY.format("(10, 0)")),
    (lambda k: fit(k, X3, Y3[:9], 0.1), ROWS.format("(9,)")),
    (lambda k: fit(k, X3, np.ones(11), 0.1), ROWS.format("(11,)")),
    (lambda k: fit(k, X3, 1.0, 0.1), ROWS.format("()")),
    (lambda k: fit(k, X3, np.ones((10, 0)), 0.1), ROWS.format("(10, 0)")),
    (lambda k: sample_batch(k, X3, Y3[:9], 4), ROWS.format("(9,)")),
    (lambda k: jaxlin.step(PARAMS, X3, Y3[:9], 0.1), ROWS.format("(9,)")),
    (lambda k: rmse(PARAMS, X3, Y3[:, None]), TARGET.format("()", "(1,)")),
    (lambda k: r2_score(PARAMS, X3, Y3[:, None]), TARGET.format("()", "(1,)")),
    (
        lambda k: rmse({"w": X3[:2, :1], "b": np.ones(1)}, X3, Y3),
        TARGET.format("(1,)", "()"),
    ),
    (
        lambda k: fit(k, X3, Y3[:, None], 0.1, params=PARAMS, **FIT),
        TARGET.format("()", "(1,)"),
    ),
    (
        lambda k: fit(k, X3, Y3, 0.1, params=PARAMS | {"w": np.ones(3)}, **FIT),
        WEIGHTS.format("(2,)", "(3,)"),
    ),
    (
        lambda k: predict(PARAMS | {"b": np.ones(3)}, X3),
        WEIGHTS.format("(2, 3)", "(2,)"),
    ),
    (lambda k: predict(None, X3), NO_DICT.format("NoneType")),
    (lambda k: rmse((PARAMS["w"], 0.0), X3, Y3), NO_DICT.format("tuple")),
    (lambda k: rmse({"w": PARAMS["w"]}, X3, Y3), NO_DICT.format("dict")),
    (lambda k: fit(k, X3, Y3, 0.1), BATCH.format(100)),
    (lambda k: fit(k, X3, Y3, 0.1, batch_size=11), BATCH.format(11)),
    (lambda k: fit(k, X3, Y3, 0.1, batch_size=0), BATCH.format(0)),
    (lambda k: fit(k, X3, Y3, 0.1, batch_size=True), BATCH.format(True)),
    (lambda k: fit(k, X3, Y3, 0.1, batch_size=4.0), BATCH.format(4.0)),
    (lambda k: sample_batch(k, X3, Y3, "4"), BATCH.format("'4'")),
    (lambda k: sample_batch(k, X3, Y3, 11), BATCH.format(11)),
    (lambda k: fit(k, X3, Y3, 0.1, num_steps=-1, batch_size=4), STEPS.format(-1)),
    (lambda k: fit(k, X3, Y3, 0.1, num_steps=3.0, batch_size=4), STEPS.format(3.0)),
    (lambda k: fit(k, X3, Y3, 0.1, num_steps=False, batch_size=4), STEPS.format(False)),
    (lambda k: fit(k, X3, Y3, 0.1, start=-1, **FIT), START.format(-1)),
    (lambda k: fit(k, X3, Y3, 0.1, start=2**32 - 2, **FIT), START.format(2**32 - 2)),
    (lambda k: fit(k, X3, Y3, 0.1, start=1.0, **FIT), START.format(1.0)),
    (
        lambda k: fit(k, X3, Y3, 0.1, start=2**32, num_steps=0, batch_size=4),
        f"start must be an integer in 0..{2**32 - 1}; got {2**32}. {IN_RANGE}",
    ),
    (lambda k: fit(k, X3, Y3, np.ones(2), **FIT), RATE.format("(2,)")),
    (lambda k: fit(k, X3, Y3, np.ones((3, 1)), **FIT), RATE.format("(3, 1)")),
    (
        lambda k: jaxlin.step(PARAMS, X3, Y3, np.ones(2)),
        "learning_rate must be a scalar; got shape (2,). "
        "Pass one rate per step to fit, or map over rates with jax.vmap.",
    ),
    (
        lambda k: fit(k, X3, Y3, None, **FIT),
        "learning_rate " + NOT_REAL.format("NoneType"),
    ),
    (lambda k: fit(k, X3, Y3, "0.1", **FIT), "learning_rate " + NOT_REAL.format("str")),
    (
        lambda k: fit(k, X3, Y3, 1j, **FIT),
        "learning_rate " + NOT_REAL.format("complex64"),
    ),
    (lambda k: predict(PARAMS, None), "X " + NOT_REAL.format("NoneType")),
    (lambda k: predict(PARAMS, X3 * 1j), "X " + NOT_REAL.format("complex64")),
    (
        lambda k: predict(PARAMS, X3.astype(object)),
        "X " + NOT_REAL.format("ndarray of object"),
    ),
    (
        lambda k: predict(PARAMS, X3.astype(str)),
        "X " + NOT_REAL.format("ndarray of <U32"),
    ),
    (lambda k: predict(PARAMS, [["1", "2"]]), "X " + NOT_REAL.format("list")),
    (lambda k: predict(PARAMS, [[1], [2, 3]]), "X " + NOT_REAL.format("list")),
    (lambda k: predict(PARAMS, [[1, 2**40]]), "X " + NOT_REAL.format("list")),
    (
        lambda k: predict(PARAMS, np.ma.masked_array(X3, X3 > 0)),
        "X " + NOT_REAL.format("MaskedArray of float32"),
    ),
    (
        lambda k: predict(PARAMS, X3.astype("M8[s]")),
        "X " + NOT_REAL.format("ndarray of datetime64[s]"),
    ),
    (lambda k: predict(PARAMS, k), "X " + NOT_REAL.format("key<fry>")),
    (lambda k: rmse(PARAMS, X3, Y3 * 1j), "y " + NOT_REAL.format("complex64")),
    (
        lambda k: predict({"w": "1", "b": 0}, X3),
        'params["w"] ' + NOT_REAL.format("str"),
    ),
    (
        lambda k: predict({"w": X3[0], "b": 1j}, X3),
        'params["b"] ' + NOT_REAL.format("complex64"),
    ),
    (
        lambda k: init_params(k, 0),
        f"num_features must be an integer of at least 1; got 0. {IN_RANGE}",
    ),
    (
        lambda k: init_params(k, 2.0),
        f"num_features must be an integer of at least 1; got 2.0. {IN_RANGE}",
    ),
    (
        lambda k: init_params(k, 2, target_shape=(0,)),
        f"target_shape must be an integer of at least 1; got 0. {IN_RANGE}",
    ),
    (
        lambda k: init_params(k, 2, target_shape=2),
        "target_shape must be a tuple of integers; got 2. "
        "Use (3,) for three targets, () for one.",
    ),
    (
        lambda k: fit(k, X3, Y3, 0.1, loss="rmse", **FIT),
        FUNCTION.format("loss", "'rmse'"),
    ),
    (lambda k: fit(k, X3, Y3, 0.1, step=None, **FIT), FUNCTION.format("step", None)),
    (
        lambda k: init_params(k, 2, dtype=int),
        "dtype must be a real floating-point dtype; got int64. Use jnp.float32.",
    ),
    (
        lambda k: init_params(k, 2, dtype=jnp.complex64),
        "dtype must be a real floating-point dtype; got complex64. Use jnp.float32.",
    ),
]
KEY = "key must be made by jax.random; got {}. Make one with jax.random.key(0)."
ONE_KEY = (
    "key must be one random key; got keys of shape (3,). For many models use fit_many."
)
KEYS = "keys must be made by jax.random; got {}. Make one with jax.random.key(0)."
MANY_KEYS = "keys must have shape (s,), a key a model; got shape {}. "
MANY_KEYS += "Make them with jax.random.split(key, s), or use fit for one model."
MODELS = "{} must have {} models on axis {}; got shape {}. "
MODELS += "Stack one for each model; in_axes says what is stacked."
NO_MODELS = "in_axes must map an input, or params be given; got only None. "
NO_MODELS += "Use in_axes=(0, None, None, None) for a model of each key."
RBG = "keys must be independent under vmap; got rbg keys, which draw from the first "
RBG += 'alone. Make them from jax.random.key(0, impl="threefry2x32").'
AXES_4 = "in_axes must be four integers or None, for keys, X, y and learning_rate; "
AXES_4 += "got {}. "
AXES_4 += "Use None for what the models share."
KEY_ERRORS = [
    (lambda k: fit(0, X3, Y3, 0.1, **FIT), KEY.format("int")),
    (lambda k: fit(None, X3, Y3, 0.1, **FIT), KEY.format("NoneType")),
    (lambda k: fit(X3, X3, Y3, 0.1, **FIT), KEY.format("ndarray")),
    (lambda k: init_params("0", 2), KEY.format("str")),
    (lambda k: sample_batch(0, X3, Y3, 4), KEY.format("int")),
    (lambda k: fit(jax.random.split(k, 3), X3, Y3, 0.1, **FIT), ONE_KEY),
    (lambda k: init_params(jax.random.split(k, 3), 2), ONE_KEY),
    (lambda k: sample_batch(jax.random.split(k, 3), X3, Y3, 4), ONE_KEY),
    (
        lambda k: fit_many(
            jax.random.split(k, 3),
            X3,
            Y3,
            np.ones(3),
            in_axes=(None, None, None, 0),
            **FIT,
        ),
        ONE_KEY,
    ),
    (lambda k: fit_many(0, X3, Y3, 0.1, **FIT), KEYS.format("int")),
    (lambda k: fit_many(k, X3, Y3, 0.1, **FIT), MANY_KEYS.format("()")),
    (
        lambda k: fit_many(jax.random.split(k, (2, 3)), X3, Y3, 0.1, **FIT),
        MANY_KEYS.format("(2, 3)"),
    ),
    (
        lambda k: fit_many(jax.random.split(k, 3), X3, Y3, 0.1, params=PARAMS, **FIT),
        MODELS.format("params", 3, 0, "()"),
    ),
    (
        lambda k: fit_many(
            jax.random.split(k, 3), X3, Y3, 0.1, in_axes=(0, None, None, 0), **FIT
        ),
        MODELS.format("learning_rate", 3, 0, "()"),
    ),
    (
        lambda k: fit_many(
            jax.random.split(k, 3), X3, Y3, 0.1, in_axes=(0, 1, None, None), **FIT
        ),
        MODELS.format("X", 3, 1, "(10, 2)"),
    ),
    (
        lambda k: fit_many(k, X3, Y3, 0.1, in_axes=(None, None, -2, None), **FIT),
        MODELS.format("y", "s", -2, "(10,)"),
    ),
    (lambda k: fit_many(k, X3, Y3, 0.1, in_axes=[None] * 4, **FIT), NO_MODELS),
    (
        lambda k: fit_many(
            jax.random.split(jax.random.key(0, impl="rbg"), 3), X3, Y3, 0.1, **FIT
        ),
        RBG,
    ),
    (
        lambda k: fit_many(jax.random.split(k, 3), X3, Y3, 0.1, in_axes=0),
        AXES_4.format(0),
    ),
    (
        lambda k: fit_many(jax.random.split(k, 3), X3, Y3, 0.1, in_axes=(0, None)),
        AXES_4.format("(0, None)"),
    ),
    (
        lambda k: fit_many(
            jax.random.split(k, 3), X3, Y3, 0.1, in_axes=(0, True, 0, None)
        ),
        AXES_4.format("(0, True, 0, None)"),
    ),
    (
        lambda k: fit(k, X3, Y3, 0.1, params=PARAMS | {"b": 5 + 7j}, **FIT),
        "params " + NOT_REAL.format("complex64"),
    ),
    (
        lambda k: fit_many(jax.random.split(k, 3), X3, Y3[:9], 0.1, **FIT),
        ROWS.format("(9,)"),
    ),
    (
        lambda k: fit_many(jax.random.split(k, 3), X3, Y3, 0.1),
        BATCH.format(100),
    ),
    (
        lambda k: fit_many(jax.random.split(k, 3), X3, Y3, np.ones(2), **FIT),
        RATE.format("(2,)"),
    ),
]
TYPE_ERRORS = ("real numbers", "got True", "got False", ".0. ", "'4'", "made by", "rbg")
TYPE_ERRORS += ("dict", "dtype", "four integers", "a function", "a tuple")


@pytest.mark.parametrize("transform", [lambda f: f, lambda f: jax.jit(jax.vmap(f))])
@pytest.mark.parametrize(
    ("call", "message"), ERRORS + KEY_ERRORS, ids=map(str, itertools.count())
)
def test_every_error_says_what_is_wanted_what_came_and_what_to_do(
    transform, call, message
):
    kind = TypeError if any(sign in message for sign in TYPE_ERRORS) else ValueError
    k = key() if transform(call) is call else keys(2)
    with pytest.raises(kind) as error:
        transform(call)(k)
    assert str(error.value) == message


def test_more_rows_than_32_bits_can_draw_raise():
    X = jax.ShapeDtypeStruct((2**31, 1), "f4")
    y = jax.ShapeDtypeStruct((2**31,), "f4")
    message = "X must have fewer than 2**31 rows; got 2147483648. "
    message += "Train on one part after another, with params and start."
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(lambda X, y: sample_batch(key(), X, y, 4), X, y)


def test_a_traced_start_is_one_integer():
    message = r"^start must be an integer in 0\.\.\d+; got .*float32.*"
    with pytest.raises(TypeError, match=message):
        jax.jit(lambda start: fit(key(), X3, Y3, 0.1, start=start, **FIT))(1.0)
    with pytest.raises(TypeError, match=r"^start must be an integer in"):
        jax.jit(lambda start: fit(key(), X3, Y3, 0.1, start=start, **FIT))(np.arange(3))


# ------------------------------------------------------------------ real data

# NIST Statistical Reference Datasets, https://www.itl.nist.gov/div898/strd/lls/lls.shtml:
# the data, the certified coefficients (from the intercept up), their standard
# deviations, and the certified residual sum of squares.

NORRIS = """0.1 0.2 338.8 337.4 118.1 118.2 888.0 884.6 9.2 10.1 228.1 226.5 668.5 666.3
998.5 996.3 449.1 448.6 778.9 777.0 559.2 558.2 0.3 0.4 0.1 0.6 778.1 775.5 668.8 666.9
339.3 338.0 448.9 447.5 10.8 11.6 557.7 556.0 228.3 228.1 998.0 995.8 888.8 887.6 119.6
120.2 0.3 0.3 0.6 0.3 557.6 556.8 339.3 339.1 888.0 887.2 998.5 999.0 778.9 779.0 10.2
11.1 117.6 118.3 228.9 229.2 668.4 669.1 449.2 448.9 0.2 0.5"""
WAMPLER_NOISE = [759, -2048, 2048, -2048, 2523, -2048, 2048, -2048, 1838, -2048, 2048]
WAMPLER_NOISE += WAMPLER_NOISE[-2::-1]
WAMPLER_SD = [2152.32624678170, 2363.55173469681, 779.343524331583]
WAMPLER_SD += [101.475507550350, 5.64566512170752, 0.112324854679312]


def nist(name):
    """X, y, coefficients, their standard deviations, residual sum of squares."""
    if name == "Norris":
        y, x = np.array(NORRIS.split(), float).reshape(-1, 2).T
        coefficients = np.array([-0.262323073774029, 1.00211681802045])
        deviations = np.array([0.232818234301152, 0.429796848199937e-03])
        return x[:, None], y, coefficients, deviations, 26.6173985294224
    if name == "NoInt1":
        x = np.arange(60.0, 71)
        return (
            x[:, None],
            x + 70,
            2.07438016528926,
            0.0165289256198347,
            127.272727272727,
        )
    if name == "NoInt2":
        x, y = np.array([[4.0, 5, 6], [3, 4, 4]])
        return x[:, None], y, 0.727272727272727, 0.0420827318078432, 0.272727272727273
    X = np.arange(21.0)[:, None] ** np.arange(1, 6)
    ratio = 0.1 if name == "Wampler2" else 1.0
    noise = {"Wampler3": 1, "Wampler4": 10, "Wampler5": 100}.get(name, 0)
    coefficients = ratio ** np.arange(6)
    y = coefficients[0] + X @ coefficients[1:] + noise * np.array(WAMPLER_NOISE)
    return X, y, coefficients, noise * np.array(WAMPLER_SD), 83554268.0 * noise**2


def without_intercept(params, X, y):
    return rmse(params | {"b": jnp.zeros_like(params["b"])}, X, y)


NIST = ["Norris", "NoInt1", "NoInt2", *(f"Wampler{i}" for i in range(1, 6))]


@pytest.mark.parametrize("name", NIST)
def test_rmse_at_the_certified_coefficients_is_the_certified_one(name):
    X, y, coefficients, _, rss = nist(name)
    b, *w = np.r_[0, coefficients] if name.startswith("NoInt") else coefficients
    params, expected = {"w": np.array(w), "b": b}, np.sqrt(rss / len(y))
    assert_close(rmse(params, X, y), expected, 1e-5, 1e-7 * np.max(y))
    with enabled_x64():
        assert_close(rmse(params, X, y), expected, 1e-12, 1e-15 * np.max(y))
        gradient = jax.grad(rmse)({"w": jnp.array(w), "b": jnp.array(b)}, X, y)
        if name == "Wampler1":  # a perfect fit, of integers that float64 holds
            assert not any(np.any(leaf) for leaf in gradient.values())


@pytest.mark.parametrize("name", NIST)
def test_fit_reaches_the_certified_coefficients(x64, name):
    """With features standardised, uncorrelated, and the scales folded back after."""
    X, y, coefficients, deviations, _ = nist(name)
    loss = without_intercept if name.startswith("NoInt") else rmse
    mean = X.mean(0) if loss is rmse else np.zeros(1)
    root = np.linalg.cholesky((X - mean).T @ (X - mean) / len(X))
    Z = np.linalg.solve(root, (X - mean).T).T
    shift, scale = (y.mean() if loss is rmse else 0.0), y.std()
    rates = 0.5 * 1e-12 ** np.linspace(0, 1, 20_000)
    options = {"num_steps": len(rates), "batch_size": len(X), "loss": loss}
    params, _ = fit_many(keys(4), Z, (y - shift) / scale, rates, **options)
    w = scale * np.linalg.solve(root.T, params["w"].T).T
    b = scale * params["b"] + shift - w @ mean
    found = w if loss is not rmse else np.hstack([b[:, None], w])
    # SGD on noisy rows ends near, not at: within a fifth of the certified deviation.
    # On perfect rows it ends within its last rates, times the condition of the powers.
    bound = 0.2 * deviations if np.all(deviations) else 1e-5 * coefficients
    assert np.all(np.abs(found - coefficients) < bound)


def test_the_original_experiment_ends_at_least_squares_for_every_seed():
    rng = np.random.default_rng(0)
    X = 10 * rng.uniform(size=(1000, 2))
    y = X @ [3, 4] + rng.uniform(size=1000) + 5
    A = np.column_stack([X, np.ones(1000)])
    *w, b = np.linalg.lstsq(A, y, rcond=None)[0]
    best = numpy_rmse({"w": w, "b": b}, X, y)
    rates = 0.05 * 0.01 ** np.linspace(0, 1, 5000)
    params, losses = fit_many(keys(256), X, y, rates, num_steps=5000)
    assert losses.shape == (256, 5000)
    for i in range(256):
        model = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        assert numpy_rmse(model, X, y) < 1.01 * best
    score = jax.vmap(r2_score, in_axes=(0, None, None))(params, X, y)
    assert score.min() > 0.9995


SCRIPT_ENV = {
    **{k: v for k, v in os.environ.items() if k[:4] not in ("JAX_", "XLA_")},
    "PYTHONPATH": str(HERE),
    "JAX_PLATFORMS": "cpu",
    "MPLBACKEND": "agg",
}


def run_script(script, cwd, timeout=300):
    """The output of a script that runs as a user would run it, without a warning."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=cwd,
        env=SCRIPT_ENV,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def readme_blocks():
    """The python blocks of the README, each with the output that it shows."""
    text = (HERE / "README.md").read_text()
    pattern = r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?"
    return re.findall(pattern, text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="session", autouse=True)
def readme_runs(request, tmp_path_factory):
    """The blocks of the README, which run beside the other tests from the start on."""
    wanted = any("of_the_readme" in item.name for item in request.session.items)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        yield {
            code: pool.submit(run_script, code, tmp_path_factory.mktemp("block"))
            for code, _ in readme_blocks()
            if wanted
        }


def recipe(word):
    """The one block of the README that contains `word`."""
    (block,) = (code for code, _ in readme_blocks() if word in code)
    return block


def changed(script, old, new):
    assert script.count(old) == 1, old
    return script.replace(old, new)


def made_up_data(key, n=1000):
    X_key, noise_key = jax.random.split(key)
    X = jax.random.normal(X_key, (n, 2))
    return X, X @ jnp.array([3.0, 4.0]) + 5 + jax.random.normal(noise_key, (n,))


SHARDED_KEYS = """
import functools, re
import jax
jax.config.update("jax_num_cpu_devices", 4)
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxlin import fit_many

X_key, key = jax.random.split(jax.random.key(0))
X = jax.random.normal(X_key, (101, 3))
y = X @ jnp.array([1.0, 2.0, 3.0])
keys = jax.random.split(key, 8)
train = functools.partial(fit_many, num_steps=20, batch_size=10)
alone = train(keys, X, y, 0.1)

def check(trained, sharding):
    for one, many in zip(jax.tree.leaves(alone), jax.tree.leaves(trained), strict=True):
        np.testing.assert_allclose(one, many, rtol=1e-5, atol=1e-5)  # float32, 20 steps
        assert many.sharding.is_equivalent_to(sharding, many.ndim), many.sharding

def check_program(function, keys, sharding):
    compiled = jax.jit(function).lower(keys, X, y).compile()
    check(compiled(keys, X, y), sharding)
    text = compiled.as_text()
    assert "while" in text and "f32[2,20]" in text  # two models a device, 20 losses
    moved = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    assert not re.search(moved, text), re.findall(moved, text)
    assert "f32[101,3]" in text
    copies = re.findall(r"\\[[28],101\\b|\\b101,[28]\\b", text)
    assert not copies, copies

meshes = (
    jax.make_mesh((4,), ("models",), axis_types=(AxisType.Auto,)),
    jax.make_mesh((4,), ("models",), axis_types=(AxisType.Explicit,)),
    jax.make_mesh((4,), ("models",)),
)
each, whole = PartitionSpec("models"), PartitionSpec()
for mesh in {mesh.axis_types: mesh for mesh in meshes}.values():
    sharding = NamedSharding(mesh, each)
    placed = jax.device_put(keys, sharding)
    check_program(functools.partial(train, learning_rate=0.1), placed, sharding)
    mapped = functools.partial(train, learning_rate=0.1)
    mapped = jax.shard_map(
        mapped, mesh=mesh, in_specs=(each, whole, whole), out_specs=each
    )
    check_program(mapped, placed, sharding)
    params, first = train(placed, X, y, 0.1, num_steps=10)
    params, second = train(placed, X, y, 0.1, num_steps=10, params=params, start=10)
    assert first.sharding.is_equivalent_to(sharding, 2)
    losses = jax.device_put(np.concatenate([first, second], axis=1), sharding)
    check((params, losses), sharding)
"""


def test_fit_many_on_sharded_keys_equals_one_device_without_collectives(tmp_path):
    run_script(SHARDED_KEYS, tmp_path)


def run_ranks(script, jobs, cwd, timeout):
    """Run `script` for each (name, *args), at once; return codes and error streams."""
    processes = []
    try:
        for name, *args in jobs:
            with open(cwd / name, "w") as errors:
                process = subprocess.Popen(
                    [sys.executable, "-c", script, *args],
                    cwd=cwd,
                    env=SCRIPT_ENV,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
            processes.append(process)
        deadline = time.monotonic() + timeout
        codes = [p.wait(max(0, deadline - time.monotonic())) for p in processes]
    finally:
        for process in processes:
            process.kill()  # jax.distributed catches SIGTERM
            process.wait()
    return codes, [(cwd / name).read_text() for name, *_ in jobs]


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_fit_many_in_two_processes_equals_one(tmp_path):
    script = changed(recipe("distributed.initialize"), ":9876", f":{free_port()}")
    script += 'import numpy; numpy.save(f"{rank}.npy", last)\n'
    codes, errors = run_ranks(script, [("a", "0", "2"), ("b", "1", "2")], tmp_path, 90)
    assert codes == [0, 0], errors

    X_key, noise_key, key = jax.random.split(jax.random.key(0), 3)
    X = jax.random.normal(X_key, (1000, 2))
    y = X @ jnp.array([3.0, 4.0]) + 5 + jax.random.normal(noise_key, (1000,))
    _, losses = fit_many(jax.random.split(key, 1000), X, y, 0.1)
    for rank in (0, 1):
        # float32, after 1000 steps at a constant rate
        np.testing.assert_allclose(
            np.load(tmp_path / f"{rank}.npy"), losses[:, -1], 1e-4
        )


@pytest.mark.parametrize("dead", ["0", "1"])
def test_a_killed_process_ends_the_other(tmp_path, dead):
    script = changed(recipe("distributed.initialize"), ":9876", f":{free_port()}")
    script = changed(script, "timeout_seconds=30", "timeout_seconds=3")
    death = f"rank == {dead} and __import__('os').kill(__import__('os').getpid(), 9)\n"
    script = changed(script, "params, losses", death + "params, losses")
    codes, errors = run_ranks(script, [("a", "0", "2"), ("b", "1", "2")], tmp_path, 60)
    assert codes[int(dead)] == -9
    assert codes[1 - int(dead)] not in (0, -9)
    assert "another task died" in errors[1 - int(dead)]


SHARDED_ROWS = """
import jax
jax.config.update("jax_num_cpu_devices", 4)
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxlin import fit, init_params, predict, rmse, sample_batch

X_key, y_key, init_key, batch_key = jax.random.split(jax.random.key(0), 4)
X, y = jax.random.normal(X_key, (64, 3)), jax.random.normal(y_key, (64,))
first = init_params(init_key, 3)
parts = np.split(np.asarray(X), 4), np.split(np.asarray(y), 4)
device_keys = [jax.random.fold_in(batch_key, device) for device in range(4)]

def mean_rmse(params, X, y):
    return jax.lax.pmean(rmse(params, X, y), "rows")

def mean_square(params, X, y):
    return jax.lax.pmean(jnp.mean((predict(params, X) - y) ** 2), "rows")

def reference(num_steps, batch_size, rate, square):
    w, b, losses = np.float64(first["w"]), np.float64(first["b"]), []
    for i in range(num_steps):
        values, slopes = [], []
        for device_key, X_part, y_part in zip(device_keys, *parts, strict=True):
            key = jax.random.fold_in(jax.random.split(device_key)[1], i)
            X_batch, y_batch = sample_batch(key, X_part, y_part, batch_size)
            X_batch, residuals = np.float64(X_batch), X_batch @ w + b - y_batch
            value = np.mean(residuals**2) if square else np.sqrt(np.mean(residuals**2))
            scale = (2 if square else 1 / value) / batch_size
            values.append(value)
            slopes.append(scale * np.append(X_batch.T @ residuals, residuals.sum()))
        slope = np.mean(slopes, axis=0)
        w, b = w - rate * slope[:-1], b - rate * slope[-1]
        losses.append(np.mean(values))
    return w, b, losses

rows, everywhere = PartitionSpec("rows"), PartitionSpec()
mesh = jax.make_mesh((4,), ("rows",))
X, y = jax.device_put((X, y), NamedSharding(mesh, rows))
for loss in mean_rmse, mean_square:
    def train(X, y):
        key = jax.random.fold_in(batch_key, jax.lax.axis_index("rows"))
        return fit(key, X, y, 0.1, num_steps=30, batch_size=5, params=first, loss=loss)
    sharded = jax.shard_map(train, mesh=mesh, in_specs=rows, out_specs=everywhere)
    params, losses = jax.jit(sharded)(X, y)
    w, b, expected = reference(30, 5, 0.1, loss is mean_square)
    for got, wanted in ((params["w"], w), (params["b"], b), (losses, expected)):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)  # float32
    for shard in params["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, params["w"])
    assert len(params["w"].addressable_shards) == 4
"""


def test_fit_on_sharded_rows_equals_numpy_on_the_joined_batches(tmp_path):
    run_script(SHARDED_ROWS, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_fit_on_a_memory_mapped_file_needs_memory_for_one_chunk_only(tmp_path):
    # ru_maxrss would start from the peak of this process, which the child inherits.
    script = recipe("mmap_mode")
    script += 'np.save("w.npy", params["w"])\n'
    script += 'print(*(s for s in open("/proc/self/status") if "VmHWM" in s), end="")\n'
    rows = np.random.default_rng(0).normal(size=(300_000, 17)).astype(np.float32)
    peaks, sizes, losses = [], [], []
    for copies in (1, 8):
        np.save(tmp_path / "rows.npy", np.tile(rows, (copies, 1)))
        sizes.append((tmp_path / "rows.npy").stat().st_size)
        output = run_script(script, tmp_path).splitlines()
        (tmp_path / "rows.npy").unlink()
        peaks.append(1024 * int(output.pop().split()[1]))
        losses.append([float(line.split()[-1]) for line in output])
    assert [len(each) for each in losses] == [6, 48]
    assert losses[0][-1] < 1.1  # y is noise of deviation 1
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 4

    params = None
    for i in range(48):
        part = rows[i % 6 * 50_000 :][:50_000]
        args = jax.random.key(0), part[:, :-1], part[:, -1], 0.1
        params, chunk = fit(*args, num_steps=200, params=params, start=200 * i)
        assert abs(chunk.mean() - losses[1][i]) < 0.006  # printed with two digits
        assert i > 5 or losses[0][i] == losses[1][i]
    np.testing.assert_allclose(np.load(tmp_path / "w.npy"), params["w"], rtol=1e-4)


def killed_run(script, cwd, seed):
    """Kill the run ten times, then let it end; the checkpoints of all complete runs."""
    chance, checkpoint, partial = (
        random.Random(seed),
        cwd / "run.npz",
        cwd / "run.npz.new",
    )
    command, kills, in_save, complete = [sys.executable, "-c", script], 0, 0, []
    checkpoint.parent.mkdir()
    while kills <= 10:
        partial.unlink(missing_ok=True)
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        worker = subprocess.Popen(
            command, cwd=cwd, env=SCRIPT_ENV, stdout=subprocess.DEVNULL
        )
        try:
            if kills == 10:
                worker.wait(60)
            while worker.poll() is None and (
                not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before
            ):
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.05))
            aim_at_save = chance.random() < 0.5
            while aim_at_save and worker.poll() is None and not partial.exists():
                pass
        finally:
            worker.kill()
            worker.wait()
        assert worker.returncode in (0, -9)
        with np.load(checkpoint) as saved:
            arrays = dict(saved)  # a torn file raises here
        assert sorted(arrays) == ["b", "key", "step", "w"]
        if worker.returncode == 0:
            complete.append(arrays)
            checkpoint.unlink()
            kills += kills == 10
        else:
            kills += 1
            in_save += partial.exists()
    return complete, in_save


def test_a_run_killed_at_any_moment_resumes_bit_for_bit(tmp_path):
    script = changed(recipe("os.replace"), "while step < 2000", "while step < 20_000")
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    script = f"import os\nos.environ.update({compiled})\n{script}"
    whole = changed(script, "num_steps=100", "num_steps=20_000")
    whole = changed(whole, "step += 100", "step += 20_000")
    results = []
    for name, uninterrupted in (("whole", whole), ("segments", script)):
        (tmp_path / name).mkdir()
        run_script(uninterrupted, tmp_path / name)
        with np.load(tmp_path / name / "run.npz") as saved:
            results.append(dict(saved))
    expected = results[0]
    assert expected["step"] == 20_000
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = pool.map(
            functools.partial(killed_run, script),
            (tmp_path / "a", tmp_path / "b"),
            (0, 1),
        )
        (one, one_in_save), (two, two_in_save) = runs
    for arrays in results + one + two:
        for name, array in expected.items():
            np.testing.assert_array_equal(arrays[name], array, strict=True)
    assert one_in_save + two_in_save > 0  # of 20 kills, some fell into a save


def test_nested_vmap_and_lax_map_equal_fit_one_by_one(reused_keys):
    data_key, key = jax.random.split(jax.random.key(0))
    data = jax.vmap(functools.partial(made_up_data, n=200))(
        jax.random.split(data_key, 2)
    )
    keys, rates = jax.random.split(key, 6), jnp.array([0.01, 0.1, 1.0])

    def held_out(key, X, y, rate):
        params, _ = fit(key, X[:150], y[:150], rate, num_steps=50, batch_size=20)
        return rmse(params, X[150:], y[150:])

    over_keys = jax.vmap(held_out, (0, None, None, None))
    over_rates = jax.vmap(over_keys, (None, None, None, 0))
    swept = jax.jit(jax.vmap(over_rates, (None, 0, 0, None)))(keys, *data, rates)
    assert swept.shape == (2, 3, 6)

    X, y = data[0][1], data[1][1]
    one = jax.jit(held_out)
    each = jnp.stack([one(key, X, y, rates[2]) for key in keys])
    np.testing.assert_allclose(swept[1, 2], each, rtol=1e-5)  # float32, 50 steps
    mapped = jax.lax.map(lambda k: held_out(k, X, y, rates[2]), keys, batch_size=4)
    np.testing.assert_allclose(mapped, each, rtol=1e-5)


def test_lax_map_needs_memory_for_one_batch_of_models_only(reused_keys):
    X, y = made_up_data(jax.random.key(0))

    def last_loss(key):
        return fit(key, X, y, 0.1, num_steps=100, batch_size=10)[1][-1]

    def mapped(keys):
        return jax.lax.map(last_loss, keys, batch_size=500)

    def working_memory(function, num_models):
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_models))
        compiled = jax.jit(function).lower(keys).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    extra = working_memory(mapped, 20_000) - working_memory(mapped, 1000)
    assert extra <= 19_000 * 16  # a key and a loss of each model, but not its run
    assert working_memory(jax.vmap(last_loss), 20_000) > 20_000 * 100 * 4


def test_bootstrap_intervals_cover_the_truth_and_seed_intervals_do_not(reused_keys):
    truth, n = jnp.array([3.0, 4.0, 5.0]), 100
    rates = 2 / (1 + jnp.arange(200.0) / 2)

    def refit(key, X, y):
        params, _ = fit(key, X, y, rates, num_steps=200, batch_size=20)
        return jnp.append(params["w"], params["b"])

    def refit_resample(key, X, y):
        rows_key, fit_key = jax.random.split(key)
        return refit(fit_key, *sample_batch(rows_key, X, y, n))

    def covered(key, method, num_refits):
        data_key, refits_key = jax.random.split(key)
        X, y = made_up_data(data_key, n)
        keys = jax.random.split(refits_key, num_refits)
        refits = jax.vmap(method, (0, None, None))(keys, X, y)
        low, high = jnp.percentile(refits, jnp.array([2.5, 97.5]), axis=0)
        return (low <= truth) & (truth <= high)

    def coverage(method, num_refits):
        keys = jax.random.split(jax.random.key(1), 200)
        one = functools.partial(covered, method=method, num_refits=num_refits)
        return jax.jit(lambda: jax.lax.map(one, keys, batch_size=10))().mean(axis=0)

    bootstrap = coverage(refit_resample, 200)
    assert ((bootstrap > 0.91) & (bootstrap < 0.98)).all(), bootstrap
    seeds = coverage(refit, 50)
    assert (seeds < 0.5).all(), seeds


def test_gradient_through_fit_improves_the_schedule_for_new_seeds_and_rows(reused_keys):
    data_key, keys_key, new_key = jax.random.split(jax.random.key(0), 3)
    (X, X_test, X_new), (y, y_test, y_new) = jax.vmap(made_up_data)(
        jax.random.split(data_key, 3)
    )
    w_b = jnp.linalg.lstsq(jnp.column_stack([X, jnp.ones(1000)]), y)[0]
    exact = {"w": w_b[:2], "b": w_b[2]}
    keys, new_keys = jax.random.split(keys_key, 32), jax.random.split(new_key, 32)

    def excess(log_rates, keys, X_test, y_test):
        rates = jnp.exp(log_rates)
        params, _ = fit_many(keys, X, y, rates, num_steps=100, batch_size=10)
        scores = jax.vmap(rmse, (0, None, None))(params, X_test, y_test)
        return scores.mean() - rmse(exact, X_test, y_test)

    learn = jax.jit(jax.value_and_grad(excess))
    first = log_rates = jnp.full(100, jnp.log(0.5))
    losses = []
    for _ in range(10):
        loss, gradient = learn(log_rates, keys, X_test, y_test)
        losses.append(loss)
        log_rates = log_rates - 20 * gradient
    assert losses[-1] < losses[0] / 2, losses
    before, _ = learn(first, new_keys, X_new, y_new)
    after, _ = learn(log_rates, new_keys, X_new, y_new)
    assert 0 < after < before / 2
    assert log_rates[-10:].mean() < log_rates[:10].mean() - 0.3  # it learned to decay


def test_fit_shows_a_rate_too_high_and_a_lower_one_mends_it():
    X, y = made_up_data(jax.random.key(0))
    _, high = fit(jax.random.key(1), X, y, 30.0)
    _, low = fit(jax.random.key(1), X, y, 0.1)
    assert high[-100:].min() < high[-100:].mean() / 1.5  # it jumps about
    assert high[-100:].mean() > y.std()  # worse than predicting the mean
    assert low[-100:].mean() < 1.1  # the noise has deviation 1
    _, squares = fit(jax.random.key(1), X, y, 3.0, loss=mean_square)
    assert squares[10] > 1e3 * squares[0]
    assert not jnp.isfinite(squares[-1])


def mean_square(params, X, y):
    return jnp.mean((predict(params, X) - y) ** 2)


def test_fit_shows_features_of_a_large_scale_and_standardising_mends_it():
    X, y = made_up_data(jax.random.key(0))
    X = X * 1e6
    _, losses = fit(jax.random.key(1), X, y, 0.1)
    assert (losses > 100 * y.std()).all()
    standard = (X - X.mean(axis=0, keepdims=True)) / X.std(axis=0, keepdims=True)
    params, losses = fit(jax.random.key(1), standard, y, 0.1)
    assert losses[-100:].mean() < 1.1  # the noise has deviation 1
    assert r2_score(params, standard, y) > 0.95


def test_fit_shows_nan_from_the_first_batch_that_draws_it(reused_keys):
    key = jax.random.key(1)
    X, y = made_up_data(jax.random.key(0))
    holed = X.at[500, 1].set(jnp.nan)
    _, losses = fit(key, holed, y, 0.1, num_steps=300, batch_size=10)
    batch_key, rows = jax.random.split(key)[1], jnp.arange(1000.0)

    def drawn(step):
        step_key = jax.random.fold_in(batch_key, step)
        return sample_batch(step_key, rows[:, None], rows, 10)[1]

    hits = (jax.vmap(drawn)(jnp.arange(300)) == 500).any(axis=1)
    assert 0 < hits.argmax() < 290
    np.testing.assert_array_equal(jnp.isnan(losses), jnp.cumsum(hits) > 0)

    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        fit(key, holed, y, 0.1, num_steps=300, batch_size=10)
    whole = jnp.isfinite(holed).all(axis=1)
    _, losses = fit(key, holed[whole], y[whole], 0.1)
    assert losses[-100:].mean() < 1.1  # the noise has deviation 1


def test_the_library_is_functions_on_public_jax_alone():
    tree = ast.parse(pathlib.Path(jaxlin.__file__).read_text())
    nodes = list(ast.walk(tree))
    assert not [node for node in nodes if isinstance(node, ast.ClassDef)]
    modules = {
        a.name for node in nodes if isinstance(node, ast.Import) for a in node.names
    }
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in modules} - {"jax"} <= sys.stdlib_module_names
    assert not [name for name in modules if "_src" in name]


def test_the_docstring_examples_are_true():
    results = doctest.testmod(jaxlin)
    assert results.attempted > 10
    assert not results.failed


def test_the_file_alone_runs_the_demo(tmp_path):
    (tmp_path / "jaxlin.py").write_text(pathlib.Path(jaxlin.__file__).read_text())
    command = [sys.executable, "-W", "error", "-m", "jaxlin"]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert sum(line.strip().startswith("step ") for line in lines) == 10
    table = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    for name, truth in (("w[0]", 3), ("w[1]", 4), ("b", 5.5), ("RMSE", 0.2887)):
        mean, _, exact = map(float, table[name])
        assert abs(mean - truth) < 0.03
        assert abs(exact - truth) < 0.03
    assert "model-steps per second" in lines[-1]


@pytest.mark.parametrize(
    ("code", "output"), readme_blocks(), ids=map(str, itertools.count())
)
def test_every_block_of_the_readme_runs_and_prints_what_it_shows(
    code, output, readme_runs
):
    assert len(code.splitlines()) <= 20
    assert readme_runs[code].result() == output
