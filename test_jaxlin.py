"""The laws of jaxlin, each against an oracle: algebra, scikit-learn, real data."""

import ast
import concurrent.futures
import contextlib
import functools
import inspect
import itertools
import os
import pathlib
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
import types

import jax
import jax.export
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import sklearn.base
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jax.experimental.sparse import BCOO
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import Partial
from scipy.sparse import csr_matrix
from sklearn import linear_model as sk

import jaxlin
from jaxlin import fit, fit_many, init_params, mse, predict, rmse, sample_batch

HERE = pathlib.Path(__file__).parent

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Before the first array; all that is not placed on others stays on one.
jax.config.update("jax_num_cpu_devices", 4)

settings.register_profile(
    "jaxlin",
    deadline=None,
    derandomize=True,
    max_examples=30,
    # The x64 fixture sets a flag for the whole test: examples may share it.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("jaxlin")

SCRIPT_ENV = {
    **{k: v for k, v in os.environ.items() if k[:4] not in ("JAX_", "XLA_")},
    "PYTHONPATH": str(HERE),
    "JAX_PLATFORMS": "cpu",
    "MPLBACKEND": "agg",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


@pytest.fixture(scope="session", autouse=True)
def kept_programs(request, tmp_path_factory):
    """Keep what is compiled for the next session, in pytest's own cache.

    The scripts have a part of their own: JAX does not lock what it writes.
    """
    folder = tmp_path_factory.mktemp("jax")
    with contextlib.suppress(AttributeError, OSError):  # no cache, or not writable
        kept = request.config.cache.mkdir("jax")
        folder = kept if os.access(kept, os.W_OK) else folder
    # Nothing else removes programs that no test compiles any more.
    if sum(file.stat().st_size for file in folder.rglob("*")) > 2**28:
        shutil.rmtree(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder / "tests"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    SCRIPT_ENV["JAX_COMPILATION_CACHE_DIR"] = str(folder / "scripts")


@pytest.fixture(scope="session", autouse=True)
def tests_beside(request, tmp_path_factory, kept_programs):
    """Run the tests marked so, which wait for other processes, beside all others.

    One by one from the start on. They have tmp_path and parameters, and no fixture
    else. They must not use JAX in this process.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for item in request.session.items:
            if item.get_closest_marker("beside"):
                case = item.callspec.params if hasattr(item, "callspec") else {}
                folder = tmp_path_factory.mktemp("beside")
                future = pool.submit(item.obj, tmp_path=folder, **case)
                item.obj = lambda future=future, **_: future.result()
        yield
        pool.shutdown(cancel_futures=True)


events = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: events.append(event)
)


@contextlib.contextmanager
def compiles(number):
    """Exactly so many programs are compiled; where none is, nothing is traced."""
    events.clear()
    yield
    assert events.count("/jax/core/compile/backend_compile_duration") == number
    assert ("/jax/core/compile/jaxpr_trace_duration" in events) == (number > 0)


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


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


def standard(Z):
    return (Z - Z.mean(axis=0)) / Z.std(axis=0)


def assert_equal(actual, expected):
    """The same bits, the same dtypes, the same tree."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_close(actual, expected, rtol=2e-5, atol=1e-6):
    """Equal to the rounding of float32, some steps of it in a row by default."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol, atol, equal_nan=False)


# NumPy compares: on a CPU the max and min of JAX drop a NaN of so many numbers.
def test_the_checks_of_this_suite_notice_nan():
    ones = jnp.ones(20_000)
    spoilt = ones.at[3].set(jnp.nan)
    checks = [(assert_equal, ones), (assert_close, ones), (assert_close, spoilt)]
    for check, expected in checks:
        with pytest.raises(AssertionError):
            check(spoilt, expected)


def numpy_residuals(params, X, y):
    w, b, X, y = (np.asarray(a, "f8") for a in (params["w"], params["b"], X, y))
    return np.tensordot(X, w, 1) + b - y


def numpy_sgd(params, X, y, rates, batches):
    """SGD on the RMSE in float64, of one model or many; batches: each step's rows."""
    w, b, X, y = (np.asarray(a, "f8") for a in (params["w"], params["b"], X, y))
    losses = []
    for rows, rate in zip(np.asarray(batches), rates, strict=True):
        r = np.einsum("...md,...d->...m", X[rows], w) + b[..., None] - y[rows]
        loss = np.sqrt(np.mean(r**2, axis=-1))
        losses.append(loss)
        direction = r / (r.shape[-1] * loss[..., None])
        w = w - rate * np.einsum("...md,...m->...d", X[rows], direction)
        b = b - rate * direction.sum(axis=-1)
    return {"w": w, "b": b}, np.stack(losses, axis=-1)


def drawn_rows(model_key, start, num_steps, n, batch_size):
    """The row numbers that fit draws: sample_batch gathers them from row numbers."""
    _, batch_key = jax.random.split(model_key)
    number = jnp.arange(n)

    def draw(i):
        step_key = jax.random.fold_in(batch_key, i)
        return sample_batch(step_key, number[:, None], number, batch_size)[1]

    return jnp.stack([draw(i) for i in range(start, start + num_steps)]).astype(int)


def stack(results):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *results)


def leaf_dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


# The README's blocks, each with the output that it shows.

README = (HERE / "README.md").read_text()
FENCE = re.compile(r"^```python\n(.*?)^```\n(?:\n?```text\n(.*?)^```)?", re.M | re.S)
BLOCKS = FENCE.findall(README)
IMPORT = re.compile("^(import jaxlin|from jaxlin import)", re.M)
(PREAMBLE,) = (code for code, _ in BLOCKS if code.startswith("# The preamble."))


def recipe(word):
    """The block of the README that contains `word`, as a script."""
    (code,) = (code for code, _ in BLOCKS if word in code)
    return code if IMPORT.search(code) else PREAMBLE + code


def recipe_functions(word):
    """What that block defines, without running the rest."""
    tree = ast.parse(recipe(word))
    tree.body = [part for part in tree.body if isinstance(part, ast.FunctionDef)]
    names = {**vars(jaxlin), "__name__": "readme"}  # jax, jnp and Partial, too
    exec(compile(tree, "README.md", "exec"), names)
    return types.SimpleNamespace(**names)


R = recipe_functions("def softmax")  # the losses and steps

# The door.

X3, Y3 = np.arange(20, dtype="f4").reshape(10, 2), np.arange(10, dtype="f4")
PARAMS = {"w": np.ones(2, "f4"), "b": np.float32(0)}
KEY_EACH = (0, None, None, None, None)  # in_axes of models that start alike
RATE_EACH = (None, None, None, 0)


def frame(array):
    """What converts through __array__ and offers nothing else, as a DataFrame may."""
    return type("Frame", (), {"__array__": lambda _, dtype=None, copy=None: array})()


DTYPES = ["f8", "f2", jnp.bfloat16, ">f4", np.longdouble, ">g", "i1", ">i4", "u8", "?"]
FORMS = [lambda array, dtype=dtype: array.astype(dtype) for dtype in DTYPES]
FORMS += [np.asfortranarray, np.ndarray.tolist, frame]
FORMS += [lambda array: (pd.Series if array.ndim == 1 else pd.DataFrame)(array)]


@pytest.mark.parametrize("form", FORMS)
def test_door_takes_real_numbers_in_every_form(form):
    X, y, rates = np.float32(X3 % 3 > 0), np.float32(Y3 % 2 > 0), np.ones(3, "f4")
    train = functools.partial(fit, key(), num_steps=3)
    expected = train(X, y, rates)
    with np.errstate(all="raise"):
        trained = train(form(X), form(y), form(rates))
    assert_equal(trained, expected)


@pytest.mark.parametrize("form", [np.asarray, frame, np.ndarray.tolist])
def test_integers_beyond_32_bits_are_floats(form):
    X = np.array([[2**40], [2**41]])
    params = {"w": np.ones(1), "b": 2.0**40}
    assert predict(params, form(X)).tolist() == [2.0**41, 3 * 2.0**40]
    assert rmse(params, form(X), form(np.array([2**41, 3 * 2**40]))) == 0


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8"])
def test_only_float64_computes_in_float64(x64, dtype):
    X, y = X3.astype(dtype), Y3.astype(dtype)
    expected = {"float64" if dtype == "f8" else "float32"}
    assert leaf_dtypes(jaxlin.r2_score(PARAMS, X, Y3.astype("f8"))) == expected
    rates = [0.1, np.float64(0.1), jnp.float32(0.1), np.full(3, 0.1)]
    for params, rate in itertools.product([None, PARAMS], rates):
        train = functools.partial(fit, num_steps=3, params=params, step=LASSO_STEP)
        assert leaf_dtypes(jax.eval_shape(train, key(), X, y, rate)) == expected


def test_door_takes_legacy_keys():
    trained = fit_many(jax.random.key_data(keys(3)), X3, Y3, 0.1, num_steps=3)
    assert_equal(trained, fit_many(keys(3), X3, Y3, 0.1, num_steps=3))


CALLS = [
    lambda k, X, y: init_params(k, 2, target_shape=np.shape(y)),
    lambda k, X, y: predict(PARAMS, X),
    lambda k, X, y: rmse(PARAMS, X, y),
    lambda k, X, y: mse(PARAMS, X, y),
    lambda k, X, y: jaxlin.r2_score(PARAMS, X, y),
    lambda k, X, y: sample_batch(k, X, y, 10),
    lambda k, X, y: jaxlin.step(PARAMS, X, y, 0.1),
    lambda k, X, y: fit(k, X, y, 0.1, num_steps=1, params=PARAMS),
    lambda k, X, y: fit_many(k, X, y, np.ones(2), num_steps=1, in_axes=RATE_EACH),
]


@pytest.mark.parametrize("call", CALLS)
def test_each_function_compiles_once(call):
    X, y = data(n=43, d=2)
    one, other = key(1), key(2)
    with compiles(1):
        call(one, X, y)
    with compiles(0):
        call(other, X + 1, y + 1)


# The last, fit_many, calls those that are left out here.
@pytest.mark.parametrize("call", [CALLS[i] for i in (1, 3, 4, 8)])
def test_each_function_works_without_jit(call):
    X, y = data(n=43, d=2)
    expected = call(key(1), X, y)
    with jax.disable_jit():
        assert_close(call(key(1), X, y), expected)


def test_functions_are_pickled_by_name_and_share_their_defaults():
    for name in jaxlin.__all__:
        function = getattr(jaxlin, name)
        assert pickle.loads(pickle.dumps(function)) is function
    one, many = (inspect.signature(train).parameters for train in (fit, fit_many))
    assert all(one[name].default == many[name].default for name in one.keys() & many)


@pytest.mark.parametrize("function", [rmse, mse, jaxlin.r2_score])
def test_functions_are_exported_for_any_number_of_rows(function):
    (n,) = jax.export.symbolic_shape("n")
    shapes = [jax.ShapeDtypeStruct(shape, "f4") for shape in ((n, 2), (n,))]
    exported = jax.export.export(jax.jit(function))(PARAMS, *shapes)
    assert_close(exported.call(PARAMS, X3, Y3), function(PARAMS, X3, Y3))


def test_each_way_of_giving_an_argument_is_the_same_program():
    X, y = data(n=41)
    rates = [0.1, 1, True, np.float32(0.1), np.float64(0.1), np.int64(1)]
    starts = [0, 7, np.int64(7), jnp.int32(7), 2**32 - 1]
    one, many = key(), keys(3)
    params = {"w": np.ones(3, "f4"), "b": jnp.float32(0)}
    each = {"w": np.ones((3, 3), "f4"), "b": np.zeros(3, "f4")}
    defaults = {"num_steps": np.int64(1000), "batch_size": None, "step": jaxlin.step}
    with compiles(1):
        for rate, start in itertools.product(rates, starts):
            fit(one, X, y, rate, params=params, start=start)
        fit(learning_rate=0.1, y=2 * y, X=2 * X, key=one, params=params, loss=rmse)
        fit(one, X.astype("f8"), y.astype("f8"), 0.1, params=params, **defaults)
    with compiles(1):
        for rate, start in itertools.product(rates, starts):
            fit_many(many, X, y, rate, params=each, start=start)
        fit_many(many, X, y=y, learning_rate=1, params=each, loss=rmse, **defaults)


def test_fit_on_arrays_of_jax_transfers_nothing():
    X, y, rates = jnp.asarray(X3), jnp.asarray(Y3), jnp.full(3, 0.1)
    k = key()
    fit(k, X, y, rates, num_steps=3)
    expected = fit(k, X, y, 0.1, num_steps=3)  # a scalar is a constant schedule
    with jax.transfer_guard("disallow"):
        assert_equal(fit(k, X, y, rates, num_steps=3), expected)


@pytest.mark.parametrize(
    "flag", ["jax_enable_checks", "jax_check_tracer_leaks", "jax_debug_key_reuse"]
)
def test_fit_many_works_under_the_checks_of_jax(flag):
    train = functools.partial(fit_many, keys(3), X3, Y3, 0.1, num_steps=3)
    expected = train()
    jax.clear_caches()
    jax.config.update(flag, True)
    try:
        trained = train()
    finally:
        jax.config.update(flag, False)
    assert_equal(trained, expected)


def test_w_and_b_may_be_numbers_in_every_form():
    expected = jaxlin.step(PARAMS, X3, Y3, 0.1)
    for w in [1, 1], (1.0, 1.0), jnp.ones(2), np.ones(2, int), np.ones(2, ">f4"):
        assert_equal(jaxlin.step({"w": w, "b": 0}, X3, Y3, 0.1), expected)
    traced = jax.jit(lambda w: jaxlin.step({"w": w, "b": np.zeros(())}, X3, Y3, 0.1))
    assert_close(traced(np.ones(2, "f4")), expected)
    each = {"w": [np.array([float(i), 0]) for i in range(2)], "b": [0.0, 0.0]}
    kept, _ = fit_many(keys(2), X3, Y3, 0.1, num_steps=0, params=each)
    assert kept["w"].tolist() == [[0, 0], [1, 0]]  # s is d: not to be transposed


def aligned(array):
    """A copy at an address where JAX reads NumPy arrays in place."""
    raw = np.empty(64 + array.nbytes, "u1")
    copy = raw[-raw.ctypes.data % 64 :][: array.nbytes].view(array.dtype)
    copy[:] = array.ravel()
    return copy.reshape(array.shape)


def test_what_is_overwritten_after_the_call_is_not_read():
    X, y = data()
    start = {"w": np.ones(3, "f4"), "b": np.zeros((), "f4"), "c": np.ones(5, "f4")}
    inputs = np.zeros(2, "u4"), y, np.full(9, 0.1, "f4"), start, np.ones(3, "f4")

    def train(X, k, y, rates, params, c):
        return fit(k, X, y, rates, num_steps=9, params=params, loss=Partial(shrunk, c))

    expected = train(X, *inputs)
    mine = jax.tree.map(aligned, inputs)
    for _ in range(2):  # to compile; then to wait for X, long enough
        late = X + 0 * fit(key(), X, y, 0.01, num_steps=100_000)[1][-1]
        trained = train(late, *mine)
    for array in jax.tree.leaves(mine):
        array[...] = 7
    assert_equal(trained, expected)


def test_calls_from_eight_threads_give_the_same_bits():
    train = functools.partial(fit, X=X3, y=Y3, learning_rate=0.1, num_steps=8)
    eight = list(keys(8))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        trained = list(pool.map(train, eight))  # which compile at once, too
    assert_equal(trained, list(map(train, eight)))


# init_params, predict.


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.bfloat16, jnp.float16])
def test_init_params_in_low_precision_is_the_rounded_normal_draw(dtype):
    wide, narrow = [init_params(key(), 10_000, dtype=x)["w"] for x in ("f4", dtype)]
    assert_equal(narrow, wide.astype(dtype))
    assert abs(narrow.astype("f4").std() - 1) < 0.03


def test_init_params_in_float64_has_its_digits(x64):
    w = np.asarray(init_params(key(), 3, dtype="f8")["w"])
    assert (w != w.astype("f4")).all()


@pytest.mark.parametrize("t", [(), (2, 3)])
def test_predict_is_the_affine_map_and_the_losses_are_means_over_targets(t):
    X, y = data(t=t)
    params = init_params(key(), 3, target_shape=t)
    assert jax.tree.map(jnp.shape, params) == {"w": (3, *t), "b": t}
    assert_close(predict(params, X), numpy_residuals(params, X, 0))
    mean = np.mean(numpy_residuals(params, X, y) ** 2)  # over rows and targets
    assert_close((mse(params, X, y), rmse(params, X, y)), (mean, mean**0.5))


def test_predict_asks_for_full_precision():
    assert "HIGHEST" in str(jax.make_jaxpr(predict)(init_params(key(), 3), data()[0]))


# rmse, mse, r2_score.


@st.composite
def problems(draw, *kinds):
    """(params, X, y) in float64: plain ones and the corners of linear regression."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    X, noise, w, b = (rng.normal(size=shape) for shape in ((6, 3), 6, 3, ()))
    kind = draw(st.sampled_from(["plain", "one row", "constant", "collinear", *kinds]))
    if kind == "one row":
        X[:], noise[:] = X[0], noise[0]
    if kind == "constant":
        X[:, 0] = 3.0
    if kind == "collinear":
        X[:, -1] = -2 * X[:, 0]
    if kind == "exact":  # without rounding, in whatever order it is computed
        X, w, b = np.round(4 * X), np.round(4 * w), np.round(4 * b)
    scale = {"tiny": 1e-200, "huge": 1e200}.get(kind, 1.0)
    y = X @ w + b + (kind != "exact") * noise
    return {"w": jnp.array(w * scale), "b": jnp.array(b * scale)}, X, y * scale


rmse_and_slopes = jax.jit(jax.value_and_grad(rmse))


@given(problem=problems("tiny", "huge"))
def test_rmse_and_its_gradient_are_the_closed_forms(x64, problem):
    params, X, y = problem
    residuals, n = numpy_residuals(*problem), len(y)
    size = np.hypot.reduce(residuals) / n**0.5  # squares would leave the range
    value, gradient = rmse_and_slopes(params, X, y)
    assert_close(value, size, 1e-12, 0)
    assert_close(gradient["w"], X.T @ (residuals / size) / n, 1e-10, 1e-12)
    assert_close(gradient["b"], np.mean(residuals / size), 1e-10, 1e-12)


@functools.partial(jax.jit, static_argnums=0)
def second_derivatives(function, params, X, y):
    """In params as one vector: by either mode, and by differences of the gradient."""
    flat, unravel = ravel_pytree(params)
    slope = jax.grad(lambda flat: function(unravel(flat), X, y))
    # The slope of rmse bends over lengths of the residuals: h = 1e-5 of them errs by
    # 1e-10, and by rounding, 1e-16 / 1e-5. Those of mse and r2_score are straight.
    h = 1e-5 * rmse(params, X, y) if function is rmse else 1.0
    steps = h * jnp.eye(len(flat))
    ahead, behind = (jax.vmap(slope)(flat[None] + s) for s in (steps, -steps))
    return jax.jacfwd(slope)(flat), jax.jacrev(slope)(flat), (ahead - behind) / (2 * h)


@pytest.mark.parametrize("function", [rmse, mse, jaxlin.r2_score])
@given(problem=problems("exact"))
def test_second_derivatives_are_those_of_the_gradient(x64, function, problem):
    assume(function is not jaxlin.r2_score or np.ptp(problem[2]) > 0.1)
    forward, reverse, differences = second_derivatives(function, *problem)
    if function is rmse and not np.any(numpy_residuals(*problem)):
        differences = np.zeros_like(differences)  # none there: 0 by convention
    assert_close(forward, differences, 1e-5, 1e-5)
    assert_close(forward, reverse, 1e-10, 1e-10)
    assert_close(forward, forward.T, 1e-10, 1e-10)


@pytest.mark.parametrize("derive", [jax.grad, jax.jacfwd, jax.hessian])
def test_rmse_of_a_perfect_fit_is_0_and_flat(derive):
    assert rmse(PARAMS, X3, X3.sum(1)) == 0
    for derivative in jax.tree.leaves(jax.jit(derive(rmse))(PARAMS, X3, X3.sum(1))):
        np.testing.assert_array_equal(derivative, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["X", "y", "w", "b"])
def test_no_score_hides_what_is_not_finite(bad, where):
    X, y = data()
    arrays = {"X": X, "y": y, "w": np.ones(3), "b": np.zeros(())}
    arrays[where].flat[-1] = bad
    params = {name: arrays[name] for name in "wb"}
    for function in (rmse, mse, jaxlin.r2_score):
        for targets in (y, np.where(np.isfinite(y), 1, y)):  # varied, constant
            assert not np.isfinite(function(params, X, targets))


@pytest.mark.parametrize("size", [1e-37, 1e38, 3e38])
def test_rmse_and_r2_score_reach_to_both_ends_of_float32(size):
    params, X = {"w": jnp.zeros(1), "b": jnp.zeros(())}, np.zeros((2, 1), "f4")
    y = np.full(2, size, "f4")
    value, slope = rmse_and_slopes(params, X, y)
    assert_close((value, slope["b"]), (np.float32(size), -1.0), atol=0)
    assert_close(jaxlin.r2_score(params, X, np.array([size, 0], "f4")), -1.0)


def score(y, predictions):
    """r2_score of given predictions: with X the identity they are the weights."""
    w = jnp.array(predictions, jnp.float32)
    params = {"w": w, "b": jnp.zeros(w.shape[1:])}
    return jaxlin.r2_score(params, np.eye(len(w)), np.array(y))


@pytest.mark.parametrize(
    ("y", "predictions", "expected"),
    [
        # Two examples of sklearn.metrics.r2_score in scikit-learn's documentation.
        ([3, -0.5, 2, 7], [2.5, 0.0, 2, 8], 0.948608),
        ([[0.5, 1], [-1, 1], [7, -6]], [[0, 2], [-1, 2], [8, -5]], 0.936801),
        ([0, 3e38, 3e38], [0, 0, 0], np.nan),  # the sum of y is beyond float32
        ([-2, -2, -2], [-2, -2, -2], 1.0),
        ([-2, -2, -2], [-2, -2, -2 + 1e-6], 0.0),
        ([0, 0, 0], [1e-30, 0, 0], 0.0),
        ([[1, 5], [2, 5], [3, 5]], [[1, 4], [2, 4], [3, 4]], 0.5),
        ([4.0], [4.0], np.nan),
    ],
)
def test_r2_score_keeps_the_conventions_of_scikit_learn(y, predictions, expected):
    np.testing.assert_allclose(score(y, predictions), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [64, 100_000])
def test_r2_score_of_a_distant_target_keeps_its_digits(n):
    """Against float64, of what float32 holds of X and y."""
    x = np.random.default_rng(0).normal(size=n).astype("f4")
    y = (-311_030 + 2 * x + np.random.default_rng(1).normal(size=n)).astype("f4")
    params = {"w": np.ones(1, "f4"), "b": np.float32(-311_030)}
    errors = np.sum((np.float32(x - 311_030) - y.astype("f8")) ** 2)
    expected = 1 - errors / np.sum((y - y.mean(dtype="f8")) ** 2)
    assert_close(jaxlin.r2_score(params, x[:, None], y), expected, 0, 1e-6)


# sample_batch.

IMPLS = ["threefry2x32", "rbg", "unsafe_rbg"]
if jax.__version_info__ >= (0, 10, 2):
    IMPLS += ["philox2x32", "philox4x32"]


def assert_uniform(counts):
    """By chi-square, on both sides: of k degrees, it has mean k and deviation √(2k)."""
    k, expected = counts.size - 1, counts.mean()
    assert abs(np.sum((counts - expected) ** 2) / expected - k) < 5 * (2 * k) ** 0.5


ROWS = [("threefry2x32", m) for m in (1, 2, 7, 8, 101)] + [(i, 8) for i in IMPLS[1:]]


@pytest.mark.parametrize(("impl", "m"), ROWS)
def test_sample_batch_draws_the_first_words_of_the_keys_that_jax_splits(impl, m):
    """Of a threefry key of the first and the last word, whatever the kind of key."""
    size, n = jax.random.key_data(jax.random.key(0, impl=impl)).size, 2**30 // m**4 + 1
    words = np.random.default_rng(m).integers(2**32, size=size, dtype="u4")
    own_key = jax.random.wrap_key_data(words, impl=impl)
    threefry = jax.random.wrap_key_data(words[[0, -1]], impl="threefry2x32")
    expected = np.asarray(jax.random.key_data(jax.random.split(threefry, m)))[:, 0] % n
    draw = jax.jit(jaxlin._draw_rows, static_argnums=(1, 2))
    np.testing.assert_array_equal(draw(own_key, n, m), expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_sample_batch_is_uniform_and_its_draws_are_independent(impl):
    n, m = 16, 15
    number = jnp.arange(n)
    draw = lambda k: sample_batch(k, number[:, None], number, m)[1]  # noqa: E731
    step_keys = jax.random.split(jax.random.key(3, impl=impl), 1000)
    rows = np.array(jax.lax.map(draw, step_keys), int)
    assert_uniform(np.bincount(rows.ravel(), minlength=n))
    # Within a batch (one hash may give two words of it), and from key to key.
    for first, second in ((rows[:, :-1], rows[:, 1:]), (rows[:-1], rows[1:])):
        assert_uniform(np.bincount((n * first + second).ravel(), minlength=n * n))


# step.


def test_step_takes_another_loss_and_any_pytree_of_floats():
    def loss(params, X, y):
        return jnp.mean(jnp.abs(X @ params[0] + params[1][0] - y))

    X, y, params = jnp.asarray(X3), jnp.asarray(Y3), [jnp.ones(2), (jnp.ones(()),)]
    value, gradient = jax.value_and_grad(loss)(params, X, y)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), value
    assert_close(jaxlin.step(params, X, y, 0.1, loss), expected)


@pytest.mark.parametrize(("params", "X"), [(jnp.bfloat16, "f4"), (jnp.float32, "f8")])
def test_step_keeps_the_dtypes_of_params(x64, params, X):
    start = init_params(key(), 2, dtype=params)
    new, loss = jaxlin.step(start, X3.astype(X), Y3.astype(X), 0.1)
    assert leaf_dtypes(new) == {jnp.dtype(params).name}
    assert loss.dtype == X


# fit.


def ridge(params, X, y):
    return rmse(params, X, y) + 0.1 * jnp.sum(params["w"] ** 2)


LASSO_STEP = Partial(R.lasso_step, 0.4)
PIECES = [((), 0, rmse, jaxlin.step), ((2,), 5, ridge, LASSO_STEP)]


@pytest.mark.parametrize(("t", "start", "loss", "step"), PIECES)
def test_fit_is_a_loop_over_the_public_pieces(t, start, loss, step):
    X, y = data(t=t)
    rates = np.linspace(0.3, 0.1, 9).astype("f4")
    init_key, batch_key = jax.random.split(key())
    params, losses = init_params(init_key, 3, target_shape=t), []
    for i, rate in enumerate(rates):
        batch = sample_batch(jax.random.fold_in(batch_key, start + i), X, y, 7)
        params, value = step(params, *batch, rate, loss)
        losses.append(value)
    options = {"num_steps": 9, "batch_size": 7, "start": start}
    trained = fit(key(), X, y, rates, loss=loss, step=step, **options)
    assert_close(trained, (params, jnp.array(losses)))


@pytest.mark.parametrize("impl", ["threefry2x32", "unsafe_rbg"])
def test_fit_is_sgd_on_the_rows_that_sample_batch_draws(x64, impl):
    X, y = (array.astype("f8") for array in data(n=500))
    rates, params = np.linspace(0.3, 0.1, 9), {"w": np.ones(3), "b": np.ones(())}
    k = jax.random.key(0, impl=impl)
    options = {"num_steps": 9, "batch_size": 200, "params": params, "start": 5}
    expected = numpy_sgd(params, X, y, rates, drawn_rows(k, 5, 9, 500, 200))
    assert_close(fit(k, X, y, rates, **options), expected, 1e-13, 1e-14)


def row_matrices(X, y):
    """A step of mse on row i takes z = (w, b, 1) to z - rate * k[i] @ z."""
    A = np.column_stack([X, np.ones(len(X)), -y]).astype(float)
    k = 2 * A[:, :, None] * A[:, None, :]
    k[:, -1] = 0
    return k


@pytest.mark.parametrize(("n", "d", "m", "rate"), [(7, 2, 3, 0.15), (12, 8, 10, 0.05)])
def test_moments_of_sgd_are_exact(n, d, m, rate):
    """E[z zᵀ] after t steps, from init_params on: the start, the rows' independence
    within a batch and between steps, and the update, at once."""
    X, y = data(n=n, d=d)
    rates = (rate / (1 + np.arange(12) / 4)).astype("f4")
    k = row_matrices(X, y)
    mean, moments = k.mean(0), np.eye(d + 2)
    for r in rates.astype(float):
        square = np.mean(k @ moments @ k.transpose(0, 2, 1), axis=0)
        square = (1 - 1 / m) * mean @ moments @ mean.T + square / m
        cross = mean @ moments
        moments = moments - r * (cross + cross.T) + r**2 * square

    s = 40_000
    options = {"num_steps": 12, "batch_size": m, "loss": mse}
    params, _ = fit_many(keys(s, 1), X, y, rates, **options)
    z = np.column_stack([params["w"], params["b"], np.ones(s)]).astype(float)
    products = z[:, :, None] * z[:, None, :]
    error = np.abs(products.mean(0) - moments)
    # 5 standard errors of a mean over s models; 1e-4 for the float32 of 12 steps.
    assert np.all(error <= 5 * products.std(0) / s**0.5 + 1e-4 * np.abs(moments))


def test_a_small_world_ends_at_each_of_its_81_points_equally_often():
    """Three rows, batches of one, four steps: 3**4 end points."""
    X, y = np.array([[0.3], [1.0], [-0.8]], "f4"), np.array([1.0, 0.2, 0.5], "f4")
    k, ends = row_matrices(X, y), np.array([[0.5, -0.5, 1.0]])
    for _ in range(4):
        ends = np.concatenate([ends - 0.2 * ends @ k_i.T for k_i in k])
    options = {"num_steps": 4, "batch_size": 1, "loss": mse, "in_axes": KEY_EACH}
    options["params"] = {"w": np.array([0.5]), "b": -0.5}
    params, _ = fit_many(keys(100_000, 2), X, y, 0.2, **options)
    found = np.column_stack([params["w"], params["b"]])
    # At least 2e-4 apart, they can be told from one another.
    distance = np.abs(found[:, None, :] - ends[:, :2].astype("f4")).max(2)
    assert distance.min(1).max() < 1e-5
    assert_uniform(np.bincount(distance.argmin(1), minlength=81))


def test_fit_draws_batches_of_100_or_of_all_rows_by_default():
    for n, m in ((40, 40), (130, 100)):
        X, y = data(n=n)
        trains = [functools.partial(fit, batch_size=size) for size in (None, m)]
        one, other = (jax.make_jaxpr(train)(key(), X, y, 0.1) for train in trains)
        assert str(one) == str(other)


def momentum(coefficient, state, X, y, learning_rate, loss):
    """A step whose state is more than params, integers included."""
    params, velocity, count = state
    value, gradient = jax.value_and_grad(loss)(params, X, y)
    velocity = jax.tree.map(lambda v, g: coefficient * v + g, velocity, gradient)
    params = jax.tree.map(lambda p, v: p - learning_rate * v, params, velocity)
    return (params, velocity, count + 1), value


def momentum_state(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return params, zeros, jnp.zeros_like(params["b"], jnp.int32)


@pytest.mark.parametrize(("many", "d", "t"), [(False, 8, ()), (True, 1, (2,))])
def test_resuming_is_bit_for_bit_in_segments_of_two_steps_or_more(many, d, t):
    X, y = data(n=100, d=d, t=t)
    rates = np.linspace(0.3, 0.1, 6).astype("f4")
    train, k, s = (fit_many, keys(3), (3,)) if many else (fit, key(), ())
    train = functools.partial(train, k, X, y, batch_size=32)
    state = {"w": jnp.ones((*s, d, *t)), "b": jnp.ones((*s, *t))}
    if many:  # and by a state of one's own
        state = momentum_state(state)
        train = functools.partial(train, step=Partial(momentum, 0.9))
    whole = train(rates, num_steps=6, params=state)
    end, losses = state, []
    for start in (0, 2, 4):
        now = rates[start : start + 2]
        end, part = train(now, num_steps=2, params=end, start=start)
        losses.append(part)
    assert_equal((end, np.concatenate(losses, axis=-1)), whole)


def test_fit_takes_a_traced_start():
    train = functools.partial(fit, key(), X3, Y3, 0.01, num_steps=3, params=PARAMS)
    mapped = jax.vmap(lambda start: train(start=start))(jnp.arange(4))
    assert_close(mapped, stack([train(start=start) for start in range(4)]))


def slopes(function, x, h):
    """d function / dx at a vector x: by either mode, and by central differences."""
    steps = h * jnp.eye(len(x))
    values = jax.vmap(function)(jnp.concatenate([x[None] + steps, x[None] - steps]))
    differences = (values[: len(x)] - values[len(x) :]) / (2 * h)
    return jax.grad(function)(x), jax.jacfwd(function)(x), differences


@jax.jit
def slopes_in_rates(k, params, X, y, rates):
    scale = rmse(params, X, y)
    options = {"num_steps": 4, "batch_size": 1 + len(y) // 2, "params": params}

    def final_loss(rates):
        """In units of its start, of rates in the same units."""
        return rmse(fit(k, X, y, rates * scale, **options)[0], X, y) / scale

    return slopes(final_loss, rates, 1e-6)


@given(problem=problems("tiny", "huge"), seed=st.integers(0, 99))
def test_gradient_through_fit_is_the_finite_difference(x64, problem, seed):
    rates = jnp.linspace(0.01, 0.005, 4)
    reverse, forward, differences = slopes_in_rates(key(seed), *problem, rates)
    assert_close(reverse, differences, 1e-5, 1e-6)
    assert_close(reverse, forward, 1e-8, 1e-8)


@jax.jit
def slopes_in_rate(rate, X):
    """Of the loss after three steps on single rows, from zeros, by 20 keys."""

    def last_losses(rate):
        start = {"w": np.zeros((20, 4)), "b": np.zeros(20)}
        options = {"num_steps": 3, "batch_size": 1, "params": start}
        params, _ = fit_many(keys(20), X, np.ones(4), rate, **options)
        return jax.vmap(rmse, (0, None, None))(params, X, np.ones(4))

    return jax.jacrev(last_losses)(rate), jax.jacfwd(last_losses)(rate)


# Four rows that are one, and four of which none tells of another.
@pytest.mark.parametrize("X", [np.eye(4)[[0] * 4], np.eye(4)])
def test_derivatives_are_finite_and_of_both_modes_where_steps_end_at_exact_fits(X):
    # A step of 0.5 in w and in b fits its row exactly.
    X = jnp.asarray(X, "f4")
    reverse, forward = slopes_in_rate(jnp.float32(0.5), X)
    assert np.all(np.isfinite(reverse))
    assert_close(forward, reverse)
    if X[1, 1] == 0:  # three steps of 0.1 take 0.6 off
        assert_close(slopes_in_rate(jnp.float32(0.1), X), 2 * [np.full(20, -6.0)])


# What a loss or a step holds is data.


def shrunk(penalty, params, X, y):
    return mse(params, X, y) + jnp.sum(penalty * params["w"] ** 2)


def test_what_is_held_compiles_once_maps_and_has_a_gradient(x64):
    X, y = (a.astype("f8") for a in data(n=46))
    train = functools.partial(fit_many, keys(2), X, y, 0.1, num_steps=9)
    state = momentum_state({"w": jnp.ones((2, 3)), "b": jnp.ones(2)})

    def hold(penalty_and_coefficient):
        penalty, coefficient = penalty_and_coefficient
        loss, update = Partial(shrunk, penalty), Partial(momentum, coefficient)
        return train(params=state, loss=loss, step=update)

    values = np.array([[0.01, 0.0], [0.1, 0.5], [1.0, 0.9]])
    with compiles(1):
        path = [hold(each) for each in values]
    assert_close(jax.vmap(hold)(values), stack(path), 1e-12, 1e-14)
    last_loss = lambda each: hold(each)[1][:, -1].sum()  # noqa: E731
    both = jax.jit(lambda each: slopes(last_loss, each, 1e-6))
    reverse, forward, differences = both(jnp.array([0.1, 0.5]))
    assert_close(reverse, differences, 1e-7, 0)
    assert_close(reverse, forward, 1e-10, 0)


def test_all_else_that_a_loss_reads_is_frozen_and_equal_functions_are_one_program():
    train = functools.partial(fit, key(), X3, Y3, 0.1, num_steps=3)
    held = np.ones(1, "f4")
    before = train(loss=types.MethodType(shrunk, held))
    held[:] = 2
    with compiles(0):  # by another method, which is equal to the first
        assert_equal(train(loss=types.MethodType(shrunk, held)), before)


@pytest.mark.parametrize("train", [fit, functools.partial(fit_many, in_axes=RATE_EACH)])
def test_the_program_of_fit_is_one_scan(train):
    train = functools.partial(train, num_steps=17, batch_size=4)
    program = str(jax.make_jaxpr(train)(key(), X3, Y3, np.ones(17)))
    assert re.findall(r"\b(scan|while)\[", program) == ["scan"]
    assert "length=17" in program


# fit_many.


AXES = [  # whether params are given, too
    ((0, None, None, None), False),
    ((None, None, None, 0), True),
    ((0, 1, 1, None, None), True),
    ((None, -1, None, 0, 1), True),
]


def of_model(tree, axis, i):
    return jax.tree.map(lambda x: x[0 if axis is None else i], tree)


def along(tree, axis):
    """Its models along another axis than 0; of model 0 alone where all share it."""
    if axis is None:
        return of_model(tree, axis, 0)
    return jax.tree.map(lambda x: np.moveaxis(x, 0, axis), tree) if axis else tree


@pytest.mark.parametrize(("axes", "given"), AXES)
def test_fit_many_is_a_loop_of_fit(axes, given):
    X, y = map(np.stack, zip(*[data(seed, t=(1,)) for seed in range(4)], strict=True))
    rates = np.linspace(0.1, 0.4, 36).astype("f4").reshape(4, 9)
    params = {"w": np.ones((4, 3, 1)) * rates[:, :1, None], "b": rates[:, :1]}
    options = {"num_steps": 9, "batch_size": 7, "start": 3, "step": LASSO_STEP}
    impl = "rbg" if axes[0] is None else "threefry2x32"  # one key for all may be rbg
    ks = jax.random.split(jax.random.key(0, impl=impl), 4)
    parts = [*zip((ks, X, y, rates, params), (*axes, 0), strict=False)]
    loop = []
    for i in range(4):
        *arrays, first = (of_model(*part, i) for part in parts)
        loop.append(fit(*arrays, params=first if given else None, **options))
    *arrays, first = (along(*part) for part in parts)
    first = first if given else None
    many = fit_many(*arrays, in_axes=axes, params=first, **options)
    assert_close(many, stack(loop))


def test_fit_many_of_very_many_models_is_numpy_sgd():
    """At this number some versions of XLA compile a mapped sum of squares wrongly."""
    X, y = data(n=10, d=2)
    params = {"w": np.ones((32_769, 2)), "b": np.ones(32_769)}
    options, many = {"num_steps": 3, "batch_size": 5, "params": params}, keys(32_769)
    trained = fit_many(many, X, y, 0.1, **options)
    rows = jax.jit(jax.vmap(lambda k: drawn_rows(k, 0, 3, 10, 5)))(many)
    batches = np.moveaxis(rows, 1, 0)
    assert_close(trained, numpy_sgd(params, X, y, [0.1] * 3, batches))


def test_a_model_for_each_column_finds_its_correlation():
    rng = np.random.default_rng(0)
    G = rng.normal(size=(500, 200))
    y = G[:, :9].sum(axis=1) + rng.normal(size=500)
    G, y = standard(G), standard(y)
    rates, axes = np.geomspace(1, 0.001, 1000), (0, 1, None, None)
    params, _ = fit_many(keys(200), G[:, :, None], y, rates, in_axes=axes)
    # Noise of the last steps, of a size of the last rates and of 1 / √(steps * rows).
    assert_close(params["w"][:, 0], G.T @ y / 500, 0, 0.02)


# Four devices.

SPLIT, WHOLE = PartitionSpec("models"), PartitionSpec()
# Before JAX 0.10 keys on Explicit axes fail in JAX itself.
KEY_KINDS = ["Auto", "Explicit"][: 1 + (jax.__version_info__ >= (0, 10))]
BRIEF = {"learning_rate": 0.1, "num_steps": 9, "batch_size": 7}
FIRST = {"w": np.ones(3, "f4"), "b": np.float32(0)}
train_one, train_many = (functools.partial(train, **BRIEF) for train in (fit, fit_many))


def mesh(kind="Auto"):
    options = {"axis_types": (getattr(AxisType, kind),)}
    return jax.make_mesh((4,), ("models",), devices=jax.devices("cpu"), **options)


def split(tree, kind="Auto"):
    """The same, its first axis split over four devices."""
    return jax.device_put(tree, NamedSharding(mesh(kind), SPLIT))


def over_devices(function, splits, **options):
    """function(keys, X, y) on each of four devices, those in splits in parts."""
    specs = tuple(SPLIT if name in splits else WHOLE for name in "kXy")
    options = {"in_specs": specs, "out_specs": SPLIT} | options
    return jax.jit(jax.shard_map(function, mesh=mesh(), **options))


WAYS = [
    ("Auto", train_many),
    ("Auto", over_devices(train_many, "k")),
    ("Explicit", train_many),
    ("Explicit", jax.vmap(train_one, (0, None, None))),
]


@pytest.mark.parametrize(("kind", "way"), [way for way in WAYS if way[0] in KEY_KINDS])
def test_models_are_trained_where_their_keys_are_without_collectives(kind, way):
    X, y = data()
    arguments = split(keys(8), kind), X, y
    compiled = jax.jit(way).lower(*arguments).compile()
    program = compiled.as_text()
    assert "f32[2,9]" in program  # the losses of two models a device
    assert not re.search(" (all-|collective-|reduce-scatter)", program)
    assert "f32[40,3]" in program  # X, and no copies of it for each model
    assert not re.search(r"\[[28],40\b|\b40,[28]\b", program)
    trained = compiled(*arguments)
    assert_close(trained, train_many(keys(8), X, y), atol=2e-5)
    for leaf in jax.tree.leaves(trained):
        assert leaf.sharding.is_equivalent_to(arguments[0].sharding, leaf.ndim)


def test_what_is_split_over_devices_gives_the_same_and_stays_on_its_mesh():
    X, y = data()
    rows, rates = (X, y), np.linspace(0.1, 0.8, 8)
    rate_each = functools.partial(fit_many, key(), X, y, num_steps=9, in_axes=RATE_EACH)

    def go_on(ks):
        params, first = train_many(ks, X, y, params=FIRST, in_axes=KEY_EACH)
        return first, train_many(ks, X, y, params=params, start=9)

    def train_each_and_one(ks):
        return train_many(ks, X, y), train_one(key(), X, y)

    set_mesh = jax.set_mesh if hasattr(jax, "set_mesh") else jax.sharding.use_mesh
    calls = [  # the axes, the first JAX that can, and what is split
        (KEY_KINDS[-1], (0, 7), train_each_and_one, keys(8)),
        ("Auto", (0, 7), lambda rows: train_one(key(), *rows), rows),
        ("Explicit", (0, 7), lambda rows: train_one(key(), *rows), rows),
        ("Explicit", (0, 7), lambda rows: train_one(key(), *rows, params=FIRST), rows),
        ("Explicit", (0, 7), lambda rows: mse(FIRST, *rows), rows),
        ("Explicit", (0, 10), go_on, keys(8)),
        ("Explicit", (0, 10), rate_each, rates),
        ("Explicit", (0, 12), lambda rows: jaxlin.r2_score(FIRST, *rows), rows),
    ]
    for kind, since, call, inputs in calls:
        if jax.__version_info__ < since:
            continue
        under_mesh = call is train_each_and_one
        with set_mesh(mesh(kind)) if under_mesh else contextlib.nullcontext():
            found = call(split(inputs, kind))
        assert_close(jax.device_get(found), call(inputs), atol=2e-5)
        if kind == "Explicit":
            meshes = {leaf.sharding.mesh for leaf in jax.tree.leaves(found)}
            assert meshes == {mesh(kind)}


def varying(tree):
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(tree, "models", to="varying")
    return jax.tree.map(lambda leaf: jax.lax.pvary(leaf, "models"), tree)


def by_keys(params, ks, X, y):
    return train_many(ks, X[0], y[0], in_axes=KEY_EACH, params=params)


def by_data(params, ks, X, y):
    axes = (None, 0, 0, None, None)
    return train_many(ks[0], X, y, in_axes=axes, params=params)


@pytest.mark.parametrize(("way", "splits"), [(by_keys, "k"), (by_data, "Xy")])
def test_models_under_shard_map_never_train_on_each_other(way, splits):
    X, y = map(np.stack, zip(*[data(seed) for seed in range(8)], strict=True))
    inputs, expected = (keys(8), X, y), way(FIRST, keys(8), X, y)
    words = r"^params must vary over axes \('models',\).*lax.pcast.*lax.pmean"
    # None, too, where one key draws the same params on all devices.
    for params in (FIRST, None) if way is by_data else (FIRST,):
        with pytest.raises(ValueError, match=words):
            over_devices(functools.partial(way, params), splits)(*inputs)
    own = over_devices(lambda *args: way(varying(FIRST), *args), splits)
    assert_close(own(*inputs), expected, atol=2e-5)
    if way is by_keys:
        shared = over_devices(functools.partial(way, FIRST), splits, check_vma=False)
        assert_close(shared(*inputs), expected, atol=2e-5)


def test_fit_on_rows_split_over_devices_is_numpy_sgd_on_the_joined_batches():
    X, y = data()

    def mean_rmse(params, X, y):
        return jax.lax.pmean(rmse(params, X, y), "models")

    def train(k, X, y):
        own_key = jax.random.fold_in(k, jax.lax.axis_index("models"))
        return train_one(own_key, X, y, params=FIRST, loss=mean_rmse)

    trained = over_devices(train, "Xy", out_specs=WHOLE)(key(), X, y)
    each = [drawn_rows(jax.random.fold_in(key(), i), 0, 9, 10, 7) for i in range(4)]
    params, losses = FIRST, []
    for rows in np.stack(each, axis=1) + 10 * np.arange(4)[:, None]:
        ends = [numpy_sgd(params, X, y, [0.1], [part]) for part in rows]
        params, loss = jax.tree.map(lambda *parts: np.mean(parts, axis=0), *ends)
        losses.extend(loss)
    assert_close(trained, (params, np.array(losses)), atol=2e-5)


# Errors. Each row: the kind, a call, and what the message says of it: the argument's
# name, what came, and a word of the advice, if any. The last rows have no name:
# Python, NumPy and JAX speak there, in words of their own.

MANY = {"w": np.ones((7, 2), "f4"), "b": np.ones(7, "f4")}
STACKED = np.ones((3, 10, 2), "f4")
TEXT = pd.DataFrame({"letter": list("abcabcabca")})
SPARSE = csr_matrix(X3), BCOO.fromdense(np.ones((1797, 64)))  # of minutes, if read
HASHLESS = type("Hashless", (), {"__call__": rmse, "__hash__": None})()


def many_3(k, *args, **options):
    return fit_many(jax.random.split(k, 3), *args, **options)


ERRORS = """
TypeError | init_params(0, 2) | key; got 0; jax.random.key(seed)
ValueError | init_params(k, 0) | num_features; 1..; 0
TypeError | init_params(k, 2, dtype=int) | dtype; floating-point; int
TypeError | predict({"weights": 0, "b": 0}, X3) | params; dict of "w" and "b"; weights
ValueError | predict(PARAMS, X3[0]) | X; (n, d); (2,); X[None]; X[:, None]
ValueError | predict(MANY, X3) | params["w"]; (7, 2); jax.vmap(predict, (0, None))
TypeError | predict(PARAMS, SPARSE[0]) | X; csr_matrix; .toarray()
TypeError | predict(PARAMS, SPARSE[1]) | X; BCOO; .todense()
TypeError | predict(PARAMS, TEXT) | X; DataFrame; pd.get_dummies(..., dtype=float)
TypeError | predict(PARAMS, np.full((3, 2), "2020", "M8[D]")) | X; datetime64; days
TypeError | predict(PARAMS, X3 + 1j) | X; complex64
ValueError | predict(PARAMS, X3[:0]) | X; (0, 2); both above 0
TypeError | predict(PARAMS, np.ma.masked_array(X3, X3 > 0)) | X; Masked; Gaps: fill them
ValueError | rmse(PARAMS, X3, Y3[:, None]) | y; (10,); (10, 1); y[:, 0]
ValueError | rmse(PARAMS, X3, Y3[None]) | y; 10 rows; (1, 10); y[0]
ValueError | rmse(PARAMS, X3, np.ones((10, 0))) | y; a target; (10, 0)
ValueError | sample_batch(k, X3, Y3, 11) | batch_size; 1..10; 11
ValueError | jaxlin.step(PARAMS, X3, Y3, np.ones(2)) | learning_rate; (2,); jax.vmap
ValueError | fit(jax.random.split(k, 3), X3, Y3, 0.1) | key; (3,); fit_many
ValueError | fit(k, X3.T, Y3, 0.1) | y; 2 rows; (10,); X.T
ValueError | fit(k, X3, Y3, np.ones(9)) | learning_rate; (1000,); (9,); rates[start:
TypeError | fit(k, X3, Y3, lambda i: 0.1) | learning_rate; function; schedule(jnp.arange
ValueError | fit(k, X3, Y3, 0.1, num_steps=-1) | num_steps; 0..; -1
TypeError | fit(k, X3, Y3, 0.1, num_steps=True) | num_steps; integer; True
TypeError | fit(k, X3, Y3, 0.1, batch_size=4.5) | batch_size; integer; 4.5
TypeError | fit(k, X3, Y3, 0.1, params=(PARAMS, 0.1)) | params; losses = fit(...)
TypeError | fit(k, X3, Y3, 0.1, loss="rmse") | loss; function; 'rmse'
TypeError | fit_many([k, k], X3, Y3, 0.1) | keys; jnp.stack
ValueError | fit_many(k, X3, Y3, 0.1) | keys; many; one key; jax.random.split(key, s)
TypeError | many_3(jax.random.key(0, impl="rbg"), X3, Y3, 1) | keys; rbg; threefry2x32
ValueError | many_3(k, STACKED, Y3, 0.1) | X; (3, 10, 2); in_axes=(0, 0, 0, None)
ValueError | many_3(k, X3, Y3, np.ones(4), in_axes=(0, None, None, 0)) | in_axes; size 4
TypeError | many_3(k, X3, Y3, 0.1, in_axes=0) | in_axes; tuple; 0; None where shared
ValueError | many_3(k, X3, Y3, 0.1, params=PARAMS) | params; s models; One for all
ValueError | jax.jit(lambda s: fit(k, X3, Y3, 1, start=s))(np.arange(3)) | start; (3,)
TypeError | fit(k, X3, Y3, 0.1, n_epochs=3) | ; n_epochs
TypeError | fit(k, X3, Y3, 0.1, 100) | ; positional arguments
OverflowError | fit(k, X3, Y3, 0.1, start=-1) | ; -1
ValueError | predict(PARAMS, [[1], [2, 3]]) | ; inhomogeneous
TypeError | predict({"w": ["a", "b"], "b": 0}, X3) | ; params['w'][0]; str
ValueError | many_3(k, X3, Y3, 0.1, in_axes=[0] * 4) | ; [0, 0, 0, 0]
TypeError | fit(k, X3, Y3, 0.1, loss=HASHLESS) | ; unhashable type: 'Hashless'
"""


@pytest.mark.parametrize("row", ERRORS.strip().splitlines())
def test_every_error_says_what_is_wanted_what_came_and_what_to_do(row):
    kind, call, words = row.split(" | ")
    call = eval(f"lambda k: {call}")
    # The same while tracing, since shapes and dtypes are all that it takes.
    for function, k in ((call, key()), (jax.jit(jax.vmap(call)), keys(2))):
        with pytest.raises(eval(kind)) as error:
            function(k)
        name, *others = words.split("; ")
        assert str(error.value).startswith(name and f"{name} must")
        for word in others:
            assert word in str(error.value), (word, str(error.value))


# Against scikit-learn.

N = 203  # nine tenths of the rows are no whole number: one best quantile


def made_up_targets():
    """Features, and by kind targets: five that are alike, or one."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 4))
    line, noise = X @ rng.normal(size=(4, 5)), rng.logistic(size=(N, 5))
    real, classes = (line + noise) / 3, np.digitize(line + noise, [0, 2])[:, :1]
    counts, labels = rng.poisson(np.exp(line / 3)), (line + noise > 1).astype(int)
    return X, {"real": real, "count": counts, "label": labels, "class": classes}


X_ALL, Y_ALL = made_up_targets()
TIGHT = {"tol": 1e-9, "max_iter": 10_000}
LINE, POSITIVE = sk.LinearRegression(), sk.LinearRegression(positive=True)
ORIGIN, RIDGE = sk.LinearRegression(fit_intercept=False), sk.Ridge(alpha=30)
LASSO, NET = sk.Lasso(0.1, **TIGHT), sk.ElasticNet(0.1, l1_ratio=0.7, **TIGHT)
HUBER = sk.HuberRegressor(alpha=0, **TIGHT).fit(X_ALL, Y_ALL["real"][:, 0])
NINTH = sk.QuantileRegressor(quantile=0.9, alpha=0)
COUNTS, LABELS = sk.PoissonRegressor(**TIGHT), sk.LogisticRegression(**TIGHT)
C = 1 / (2 * N)
WEIGHTS = standard(np.sin(np.arange(N))) / 2 + 1  # positive, of mean 1
CASES = [  # targets, y, loss, rate, model, its penalties on w² and on |w|, and weights
    ((5,), "real", rmse, 0.4, LINE, 0, 0),
    ((1, 5), "real", mse, 0.4, LINE, 0, 0),
    ((1, 5), "real", mse, 0.4, RIDGE, 30 / N, 0),
    ((1, 5), "real", mse, 0.4, LASSO, 0, 0.2),
    ((1, 5), "real", mse, 0.4, NET, 0.03, 0.14),
    ((5,), "real", mse, 0.4, POSITIVE, 0, 0),
    ((5,), "real", Partial(R.no_intercept, mse), 0.4, ORIGIN, 0, 0),
    ((1,), "real", Partial(R.huber, 1.35 * HUBER.scale_), 0.4, HUBER, 0, 0),
    ((5,), "real", Partial(R.quantile, 0.9), 1, NINTH, 0, 0),
    ((5,), "count", R.poisson, 0.3, COUNTS, 0.5, 0),
    ((5,), "label", R.logistic, 2, LABELS, C, 0),
    ((1,), "class", R.softmax, 2, LABELS, C, 0),
    ((1,), "real", mse, 0.3, LINE, 0, 0, WEIGHTS),
    ((1,), "label", R.logistic, 1, LABELS, C, 0, WEIGHTS),
    ((1,), "class", R.softmax, 2, LABELS, C, 0, WEIGHTS),
]


def by_scikit_learn(model, X, y, weights=None):
    """w and b by one model for each column of y."""
    models = [sklearn.base.clone(model).fit(X, column, weights) for column in y.T]
    w, b = ([getattr(m, name) for m in models] for name in ("coef_", "intercept_"))
    return {"w": np.squeeze(w).T, "b": np.squeeze(b)}


def full_batches(loss, inner, rates, X, y, params):
    """Where steps on all rows end."""
    options = {"num_steps": len(rates), "batch_size": 1, "params": params, "loss": loss}
    step = Partial(R.full_batch, inner, X, y.astype(float))
    return jax.device_get(fit(key(), X, y, rates, step=step, **options)[0])


@pytest.mark.parametrize(("k", "case"), [(k, rest) for ks, *rest in CASES for k in ks])
def test_losses_reach_what_scikit_learn_finds(k, case):
    kind, loss, rate, model, squares, sizes, *weights = case
    X, y = X_ALL, Y_ALL[kind][:, :k]
    expected = by_scikit_learn(model, X, y, *weights)
    if weights:
        X, loss = np.column_stack([X, *weights]), Partial(R.weighted, loss)
    # A loss is a mean over k targets, too, so each has a k-th of the gradient.
    loss = Partial(R.penalised, loss, squares / k)
    inner = Partial(R.lasso_step, sizes / k)
    inner = R.nonnegative_step if model is POSITIVE else inner
    rates = rate * (k**0.5 if loss.args[0] is rmse else k) * np.geomspace(1, 1e-5, 3000)
    zeros = jax.tree.map(np.zeros_like, expected)
    found = full_batches(loss, inner, rates, X, y if k > 1 else y[:, 0], zeros)
    # Falling rates end in the answer: what is left is float32, and lbfgs's tolerance.
    assert_close(found, expected, 0, 5e-6)
    np.testing.assert_array_equal(found["w"] == 0, expected["w"] == 0)


def test_skewed_noise_moves_the_intercept_of_rmse_but_not_of_mse():
    X, y = data(n=1000, d=2)
    y = y + np.random.default_rng(1).exponential(size=1000)
    b, rates = LINE.fit(X, y).intercept_, np.geomspace(0.1, 0.0001, 1000)
    for loss, by in ((rmse, -0.08), (mse, 0)):
        params, _ = fit_many(keys(50), X, y, rates, batch_size=10, loss=loss)
        assert_close(np.mean(params["b"]), b + by, 0, 0.01)


def test_the_weighted_poisson_equals_its_offset():
    """On four rows whose coefficients R's glm gives, by either way."""
    x, counts, exposure = np.array([[1, 1.5, 2, 3], [0, 1, 2, 2], [1, 1, 2, 2]])
    ways = [(R.offset, np.log(exposure), counts)]
    ways += [(R.weighted, exposure / exposure.mean(), counts / exposure)]
    for wrap, column, y in ways:
        X, zeros = np.column_stack([x, column]), {"w": np.zeros(1), "b": 0.0}
        loss, rates = Partial(wrap, R.poisson), np.full(30_000, 0.1)
        found = full_batches(loss, jaxlin.step, rates, X, y, zeros)
        assert_close((found["b"], found["w"]), (-1.08455, [0.41149]), 0, 2e-5)


def real(rng, line, noise):
    return standard(line + noise * rng.normal(size=line.shape))


def label(rng, line, noise):
    return (line + noise * rng.logistic(size=line.shape) > 0).astype(float)


def count(rng, line, mean):
    counts = rng.poisson(mean * np.exp(0.5 * line))
    return counts / counts.mean()


def problem_of(columns, d, t, target, noise):
    """X, y of 1,000 rows, with features that are hard to learn from."""
    rng = np.random.default_rng(0)
    X, w = rng.normal(size=(1000, d)), rng.normal(size=(d, *t))
    if columns == "neighbours":
        for j in range(1, d):
            X[:, j] = 0.9 * X[:, j - 1] + 0.19**0.5 * X[:, j]
    if columns == "alike":  # and the signal lies where they differ
        X, w = rng.normal(size=(1000, 1)) + 0.3 * X, w - w.mean(axis=0)
    if columns == "outliers":
        X = rng.standard_t(2, size=(1000, d))
    return X, target(rng, standard(X @ w), noise)


HARD = [("alike", 3), ("neighbours", 0.3), ("outliers", 0.3)]
NOISES, MEANS = ([("alike", x) for x in xs] for xs in ((0.05, 0.3, 3), (0.1, 1, 1000)))
FREE_LABELS = sk.LogisticRegression(C=np.inf, **TIGHT)
FREE_COUNTS = sk.PoissonRegressor(alpha=0, **TIGHT)
ROW = r"^\| \W*(\w+).*`(rates_for\(.*\))` \|"
ADVICE = {loss.lower(): rates for loss, rates in re.findall(ROW, README, re.M)}
GRID = [  # y, loss, columns and noises, d, t, m, the best model, twice what is missed
    (real, mse, HARD, 100, (), 100, LINE, 0.0013),
    (real, rmse, HARD, 30, (10,), 10, LINE, 0.0035),
    (label, R.logistic, NOISES, 30, (), 100, FREE_LABELS, 0.0006),
    (count, R.poisson, MEANS, 30, (), 100, FREE_COUNTS, 0.0015),
]


# A tenth of its rates fails for labels and counts; ten times the rates, for all.
@pytest.mark.parametrize("row", GRID)
def test_rates_of_the_readme_reach_the_best_loss(row):
    target, loss, columns, d, t, m, model, bound = row
    readme, cells, best = recipe_functions("def whiten"), [], []
    for kind, noise in columns:
        X, y = problem_of(kind, d, t, target, noise)
        mean, matrix = readme.whiten(X)
        Z, rates_for = (X - mean) @ matrix, Partial(readme.rates_for, batch_size=m)
        names = {"np": np, "rates_for": rates_for, "Z": Z, "y": y, "k": y[0].size}
        cells.append((Z, y, eval(ADVICE[loss.__name__], names)))
        best.append(by_scikit_learn(model, Z, y.reshape(1000, -1)))
    (Z, y, rates), best = map(np.stack, zip(*cells, strict=True)), stack(best)
    zeros = jax.tree.map(np.zeros_like, best)
    options = {"num_steps": len(rates[0]), "batch_size": m, "loss": loss}
    options["params"] = zeros
    found, _ = fit_many(key(), Z, y, rates, in_axes=(None, 0, 0, 0), **options)
    score = jax.vmap(mse if loss is rmse else loss)
    end, least, none = (np.array(score(p, Z, y)) for p in (found, best, zeros))
    assert np.all((end - least) / none < bound)


# Real data.

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
    X = np.arange(21.0)[:, None] ** np.arange(1, 6)
    ratio = 0.1 if name == "Wampler2" else 1.0
    noise = {"Wampler3": 1, "Wampler4": 10, "Wampler5": 100}.get(name, 0)
    coefficients = ratio ** np.arange(6)
    y = coefficients[0] + X @ coefficients[1:] + noise * np.array(WAMPLER_NOISE)
    return X, y, coefficients, noise * np.array(WAMPLER_SD), 83554268.0 * noise**2


@pytest.mark.parametrize("name", ["Norris", *(f"Wampler{i}" for i in range(1, 6))])
def test_rmse_and_fit_reach_what_nist_certifies(x64, name):
    X, y, coefficients, deviations, rss = nist(name)
    certified = {"w": coefficients[1:], "b": coefficients[0]}
    value = rmse(certified, X, y)
    assert_close(value, np.sqrt(rss / len(y)), 1e-12, 1e-15 * np.max(y))
    # Features standardised and uncorrelated, and the scales folded back after.
    mean, shift, scale = X.mean(0), y.mean(), y.std()
    root = np.linalg.cholesky((X - mean).T @ (X - mean) / len(X))
    Z = np.linalg.solve(root, (X - mean).T).T
    rates = 0.5 * 1e-12 ** np.linspace(0, 1, 20_000)
    params, _ = fit_many(keys(4), Z, (y - shift) / scale, rates, num_steps=20_000)
    w = scale * np.linalg.solve(root.T, params["w"].T).T
    found = np.hstack([(scale * params["b"] + shift - w @ mean)[:, None], w])
    # SGD on noisy rows ends near, not at: within a fifth of the certified deviation.
    # On perfect rows it ends within its last rates, times the condition of the powers.
    bound = 0.2 * deviations if np.all(deviations) else 1e-5 * coefficients
    assert np.all(np.abs(found - coefficients) < bound)


# The README, and what runs in processes of its own.


def run_python(cwd, *arguments, **env):
    """The output of Python, run as a user would run it, without a warning."""
    command = [sys.executable, "-W", "error", *arguments]
    options = {"cwd": cwd, "env": SCRIPT_ENV | env, "text": True}
    done = subprocess.run(command, timeout=600, capture_output=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def readme_scripts():
    """The scripts of their own; and all other blocks, each after the preamble.

    None of these sees the names of another, nor changes those of the preamble: so all
    of them run as one notebook, too.
    """
    own = [block for block in BLOCKS if "# a script of its own" in block[0]]
    page = [block for block in BLOCKS if block not in own]
    script = PREAMBLE + "names = {**globals()}\n"
    for code, _ in page:
        script += "own = {**names}\n"
        script += f"exec(compile({code!r}, {code[:40]!r}, 'exec'), own)\n"
        if not IMPORT.search(code):
            script += "assert all(own[name] is names[name] for name in names)\n"
    # The test of killed runs runs its script, too.
    own = [block for block in own if "os.replace" not in block[0]]
    return [*own, (script, "".join(output for _, output in page))]


def changed(script, old, new):
    assert script.count(old) == 1, old
    return script.replace(old, new)


@pytest.mark.beside
def test_fit_many_in_two_processes_equals_one(tmp_path):
    script = recipe("distributed.initialize")
    # alone: all models in one process; float32, after 1000 steps at a constant rate.
    script += "_, alone = fit_many(keys, X, y, 0.1)\n"
    script += "assert (abs(last / alone[:, -1] - 1) < 1e-4).all()\n"
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        script = changed(script, ":9876", f":{probe.getsockname()[1]}")
    options = {"cwd": tmp_path, "env": SCRIPT_ENV, "stdout": subprocess.DEVNULL}
    with contextlib.ExitStack() as ends:
        ranks = []
        for rank in "01":
            command = [sys.executable, "-c", script, rank, "2"]
            ranks.append(ends.enter_context(subprocess.Popen(command, **options)))
            ends.callback(ranks[-1].kill)  # jax.distributed catches SIGTERM
        assert [rank.wait(90) for rank in ranks] == [0, 0]


@pytest.mark.beside
def test_fit_on_a_memory_mapped_file_needs_memory_for_one_chunk_only(tmp_path):
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    # ru_maxrss would start from the peak of this process, which the child inherits.
    script = recipe("mmap_mode")
    script += 'print(*(s for s in open("/proc/self/status") if "VmHWM" in s), end="")\n'
    rows = np.random.default_rng(0).normal(size=(300_000, 17)).astype(np.float32)
    peaks = []
    for copies in (1, 5):
        np.save(tmp_path / "rows.npy", np.tile(rows, (copies, 1)))
        *chunks, peak = run_python(tmp_path, "-c", script).splitlines()
        peaks.append(1024 * int(peak.split()[1]))
        assert len(chunks) == 6 * copies
        assert float(chunks[-1].split()[-1]) < 1.1  # y is noise of deviation 1
    assert peaks[1] - peaks[0] < rows.nbytes  # a quarter of the rows that came


@pytest.mark.beside
def test_a_run_killed_at_any_moment_resumes_bit_for_bit(tmp_path):
    script = changed(recipe("os.replace"), "while done < 2000", "while done < 40_000")
    whole = changed(script, "num_steps=100", "num_steps=40_000")
    whole = changed(whole, "done += 100", "done += 40_000")
    run, chance = tmp_path / "killed" / "run.npz", np.random.default_rng(0)
    run.parent.mkdir()
    run_python(tmp_path, "-c", whole)

    def saved():
        return run.stat().st_mtime_ns if run.exists() else 0

    # A cache of its own: it may die while it writes what others would read.
    env = SCRIPT_ENV | {"JAX_COMPILATION_CACHE_DIR": str(run.parent)}
    options = {"cwd": run.parent, "env": env, "stdout": subprocess.DEVNULL}
    for kills in range(3):
        before = saved()
        worker = subprocess.Popen([sys.executable, "-c", script], **options)
        while kills < 2 and worker.poll() is None:
            time.sleep(chance.uniform(0, 0.02))
            if saved() != before:
                worker.kill()
        assert worker.wait(60) == (0 if kills == 2 else -9)
        with np.load(run) as arrays:
            result = dict(arrays)  # a torn file raises here
    with np.load(tmp_path / "run.npz") as expected:
        assert sorted(expected) == sorted(result) == ["b", "done", "key", "w"]
        for name in expected:
            np.testing.assert_array_equal(result[name], expected[name], strict=True)


def test_t_intervals_of_averaged_runs_cover_the_truth():
    """By the README's recipe: of 400 intervals of 95 %, 95 ± 1.1 % (5 sigma: 5.5)."""
    t_interval = recipe_functions("def t_interval").t_interval

    def of_data_set(key):
        X_key, noise_key, key = jax.random.split(key, 3)
        X = jax.random.normal(X_key, (1000, 2))
        y = X @ jnp.array([3.0, 4.0]) + 5 + jax.random.normal(noise_key, (1000,))
        return t_interval(key, X, y)

    low, high = jax.device_get(jax.lax.map(of_data_set, keys(400, 1)))
    share = np.mean((low <= [3, 4, 5]) & (high >= [3, 4, 5]), axis=0)
    assert np.all(abs(share - 0.95) < 0.055), share


def test_every_figure_of_the_readme_stands_in_a_block_or_a_test():
    """But those that a hidden mark says were measured, which depend on the machine."""
    blocks, prose = "".join(map("".join, BLOCKS)), FENCE.sub("", README)
    blocks += pathlib.Path(__file__).read_text()
    assert "```" not in prose  # no fence but those of python and of what it prints
    versions = r"\b(jax|JAX|Python|newer, on|on|from)`?,? \d+\.[\d.]+"
    for line in prose.splitlines():
        told = re.sub(rf"`[^`]*`|\]\([^)]*\)|{versions}|0\.7 or", "", line)
        for figure in re.findall(r"\d+\.\d+", told):
            assert "<!-- measured -->" in line or figure in blocks, (figure, line)


def test_the_library_is_functions_on_public_jax_alone():
    source = pathlib.Path(jaxlin.__file__).read_text()
    assert not re.search(r"^\s*class |\b_src\b|namedtuple", source, re.MULTILINE)
    modules = re.findall(r"^\s*(?:import|from) (\w+)", source, re.MULTILINE)
    assert {*modules} - {"jax", "numpy"} <= sys.stdlib_module_names


@pytest.mark.beside
def test_the_docstring_examples_are_true(tmp_path):
    script = "import doctest, jaxlin; print(*doctest.testmod(jaxlin))"
    failed, attempted = run_python(tmp_path, "-c", script).split()
    assert (failed, int(attempted) > 10) == ("0", True)


@pytest.mark.beside
def test_the_file_alone_runs_the_demo(tmp_path):
    (tmp_path / "jaxlin.py").write_text((HERE / "jaxlin.py").read_text())
    output = run_python(tmp_path, "-m", "jaxlin", PYTHONPATH="")
    lines = [line.split() for line in output.splitlines() if line.strip()]
    table = {name: words for name, *words in lines}
    for name, truth in (("w[0]", 3), ("w[1]", 4), ("b", 5.5), ("RMSE", 0.2887)):
        mean, _, exact = map(float, table[name])
        assert_close([mean, exact], [truth, truth], 0, 0.03)


@pytest.mark.beside
@pytest.mark.parametrize("script", readme_scripts(), ids=itertools.count())
def test_every_block_of_the_readme_runs_and_prints_what_it_shows(tmp_path, script):
    code, output = script
    assert run_python(tmp_path, "-c", code) == output
