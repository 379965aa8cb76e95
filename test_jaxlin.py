"""The laws of jaxlin, each against an oracle: algebra, scikit-learn, real data."""

import ast
import concurrent.futures
import contextlib
import functools
import importlib.util
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
import tempfile
import time
import types

import jax
import jax.export
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
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
from jaxlin import fit, fit_many, init_params, mse, predict, r2_score, rmse, step

HERE = pathlib.Path(__file__).parent

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Before the first array; all that is not placed on others stays on one.
jax.config.update("jax_num_cpu_devices", 4)

# The x64 fixture sets a flag for the whole test: examples may share it.
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
PROFILE = {"deadline": None, "derandomize": True, "max_examples": 30}
settings.register_profile("jaxlin", suppress_health_check=QUIET, **PROFILE)
settings.load_profile("jaxlin")


# What the tests run in.


@pytest.fixture(scope="session", autouse=True)
def kept_programs(request, tmp_path_factory):
    """Keep what is compiled for the next session, in pytest's own cache.

    The scripts, which are other processes, have a part of their own: JAX does not lock
    what it writes.
    """
    folder = tmp_path_factory.mktemp("jax")
    with contextlib.suppress(AttributeError, OSError):  # no cache, or not writable
        kept = request.config.cache.mkdir("jax")
        folder = kept if os.access(kept, os.W_OK) else folder
    found = "taken from the last run" if any(folder.iterdir()) else "compiled and kept"
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\nThe laws, and beside them the pages' scripts; programs are {found}.")
    # Nothing else removes programs that no test compiles any more.
    if sum(file.stat().st_size for file in folder.rglob("*")) > 2**28:
        shutil.rmtree(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder / "tests"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    SCRIPT_ENV["JAX_COMPILATION_CACHE_DIR"] = str(folder / "scripts")


SCRIPT_ENV = {
    **{k: v for k, v in os.environ.items() if k[:4] not in ("JAX_", "XLA_")},
    "PYTHONPATH": str(HERE),
    "JAX_PLATFORMS": "cpu",
    "MPLBACKEND": "agg",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


@pytest.fixture(scope="session", autouse=True)
def started_scripts(request, tmp_path_factory, kept_programs):
    """Start what the tests marked `awaits` wait for, one by one, beside all others.

    Each is a function of a folder, which runs scripts in other processes.
    """
    marks = [item.get_closest_marker("awaits") for item in request.session.items]
    functions = dict.fromkeys(mark.kwargs["script"] for mark in marks if mark)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        folders = (tmp_path_factory.mktemp("script") for _ in functions)
        yield {f: pool.submit(f, next(folders)) for f in functions}
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def awaited(request, started_scripts):
    """What the function returned that the test is marked to await."""
    mark = request.node.get_closest_marker("awaits")
    return started_scripts[mark.kwargs["script"]].result()


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def as_a_user():
    """JAX's own rules of promotion, by which the pages are written."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


events = []
listen = jax.monitoring.register_event_duration_secs_listener
listen(lambda event, duration, **_: events.append(event))


@contextlib.contextmanager
def compiles(number):
    """Exactly so many programs are compiled; where none is, nothing is traced.

    The names of the events are JAX's own. Where it gives them others, none is counted,
    and the tests that expect some fail here.
    """
    events.clear()
    yield
    assert events.count("/jax/core/compile/backend_compile_duration") == number
    if number == 0:
        assert "/jax/core/compile/jaxpr_trace_duration" not in events


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
    """Equal to the rounding of float32, some steps of it in a row by default.

    NumPy compares: on a CPU the max and min of JAX drop a NaN of many numbers.
    """
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol, atol, equal_nan=False)


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
        return jaxlin.sample_batch(step_key, number[:, None], number, batch_size)[1]

    return jnp.stack([draw(i) for i in range(start, start + num_steps)]).astype(int)


def rows(table):
    """The rows of a table as cases of a test, by their names."""
    return [pytest.param(*values, id=name) for name, values in table.items()]


def stack(results):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *results)


def leaf_dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


# The pages: their blocks, and the functions that those define.

README, GUIDE = HERE / "README.md", HERE / ".github" / "guide.md"
FENCE = re.compile(r"^```python\n(.*?)^```\n(?:```text\n(.*?)^```)?", re.M | re.S)
PREAMBLE, OWN_SCRIPT = "# The preamble", "# a script of its own"


def blocks_of(page):
    """The page's blocks of code, each with the output that it shows."""
    return FENCE.findall(page.read_text())


def script_of(page, word):
    """The one block that contains `word`, after the preamble if it needs that."""
    codes = [code for code, _ in blocks_of(page)]
    (found,) = (code for code in codes if word in code)
    if OWN_SCRIPT in found:
        return found
    return "".join(code for code in codes if code.startswith(PREAMBLE)) + found


def functions_of(page):
    """A module of the functions and imports of a page's blocks, and its preamble."""
    kept = []
    for code, _ in blocks_of(page):
        body = [] if OWN_SCRIPT in code else ast.parse(code).body
        kinds = ast.stmt if code.startswith(PREAMBLE) else (ast.FunctionDef, ast.Import)
        kept += [part for part in body if isinstance(part, (kinds, ast.ImportFrom))]
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, f"{page.stem}.py")
        file.write_text(ast.unparse(ast.Module(kept, [])))
        spec = importlib.util.spec_from_file_location(page.stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


readme, guide = functions_of(README), functions_of(GUIDE)

# The file itself.


def test_the_library_is_functions_on_public_jax_alone():
    source = pathlib.Path(jaxlin.__file__).read_text()
    assert not re.search(r"^\s*class |\b_src\b|namedtuple", source, re.MULTILINE)
    modules = re.findall(r"^\s*(?:import|from) (\w+)", source, re.MULTILINE)
    assert {*modules} - {"jax", "numpy"} <= sys.stdlib_module_names


def test_the_front_reads_from_init_params_to_fit_many_without_a_detour():
    tree = ast.parse(pathlib.Path(jaxlin.__file__).read_text())
    names = [part.name for part in tree.body if isinstance(part, ast.FunctionDef)]
    front = names[names.index("init_params") : names.index("fit_many") + 1]
    assert sorted(front) == sorted(jaxlin.__all__)


# The door.

X3, Y3 = np.arange(20, dtype="f4").reshape(10, 2), np.arange(10, dtype="f4")
PARAMS = {"w": np.ones(2, "f4"), "b": np.float32(0)}
KEY_EACH = (0, None, None, None, None)  # in_axes of models that start alike
RATES = (0, None, None, 0)  # of models with rates of their own
ONE_KEY = (None, None, None, 0)  # of those with one key for all


def frame(array):
    """What converts through __array__ and offers nothing else, as a DataFrame may."""
    return type("Frame", (), {"__array__": lambda _, dtype=None, copy=None: array})()


def in_pandas(array):
    return (pd.Series if array.ndim == 1 else pd.DataFrame)(array)


DTYPES = ["f8", "f2", jnp.bfloat16, ">f4", np.longdouble, ">g", "i1", ">i4", "u8", "?"]


def as_dtype(dtype):
    return lambda array: array.astype(dtype)


@pytest.mark.parametrize(
    "form",
    [pytest.param(as_dtype(dtype), id=str(np.dtype(dtype))) for dtype in DTYPES]
    + [np.asfortranarray, np.ndarray.tolist, frame, in_pandas],
)
def test_door_takes_real_numbers_in_every_form(form):
    X, y, rates = np.float32(X3 % 3 > 0), np.float32(Y3 % 2 > 0), np.ones(3, "f4")
    expected = fit(key(), X, y, rates)
    with np.errstate(all="raise"):
        trained = fit(key(), form(X), form(y), form(rates))
    assert_equal(trained, expected)


@pytest.mark.parametrize("form", [np.asarray, frame, np.ndarray.tolist])
def test_integers_beyond_32_bits_are_floats(form):
    X = np.array([[2**40], [2**41]])
    params = {"w": np.ones(1), "b": 2.0**40}
    assert predict(params, form(X)).tolist() == [2.0**41, 3 * 2.0**40]
    assert rmse(params, form(X), form(np.array([2**41, 3 * 2**40]))) == 0


def test_integers_keep_their_digits_beside_float64(x64):
    y = np.array([2**24 + 1])
    assert mse({"w": np.ones(1), "b": 0.0}, np.array([[2.0**24 + 1]]), y) == 0


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8"])
def test_only_float64_computes_in_float64(x64, dtype):
    X, y = X3.astype(dtype), Y3.astype(dtype)
    expected = {"float64" if dtype == "f8" else "float32"}
    assert leaf_dtypes(r2_score(PARAMS, X, Y3.astype("f8"))) == expected
    rates = [0.1, np.float64(0.1), jnp.float32(0.1), np.full(3, 0.1)]
    for params, rate in itertools.product([None, PARAMS], [*rates, jnp.float32]):
        options = {"num_steps": 3, "params": params, "step": LASSO_STEP}
        train = functools.partial(fit, learning_rate=rate, **options)
        assert leaf_dtypes(jax.eval_shape(train, key(), X, y)) == expected


def test_door_takes_legacy_keys():
    trained = fit_many(jax.random.key_data(keys(3)), X3, Y3, 0.1, num_steps=3)
    assert_equal(trained, fit_many(keys(3), X3, Y3, 0.1, num_steps=3))


def test_lists_are_tuples_and_the_integers_of_numpy_and_jax_are_sizes():
    sizes = {"num_steps": np.int64(3), "batch_size": jnp.int32(4)}
    _, losses = fit_many(keys(2), X3, Y3, np.ones(2), in_axes=[*RATES], **sizes)
    assert losses.shape == (2, 3)
    params = init_params(key(), np.array(2), target_shape=[np.int8(3)])
    assert params["w"].shape == (2, 3)


CALLS = {
    "init_params": lambda k, X, y: init_params(k, 2, target_shape=np.shape(y)),
    "predict": lambda k, X, y: predict(PARAMS, X),
    "mse": lambda k, X, y: mse(PARAMS, X, y),
    "rmse": lambda k, X, y: rmse(PARAMS, X, y),
    "r2_score": lambda k, X, y: r2_score(PARAMS, X, y),
    "sample_batch": lambda k, X, y: jaxlin.sample_batch(k, X, y, 10),
    "step": lambda k, X, y: step(PARAMS, X, y, 0.1),
    "fit": lambda k, X, y: fit(k, X, y, 0.1, num_steps=1, params=PARAMS),
    "fit_many": lambda k, X, y: fit_many(k, X, y, np.ones((2, 1)), in_axes=ONE_KEY),
}


@pytest.mark.parametrize("name", jaxlin.__all__)
def test_each_function_compiles_once(name):
    X, y = data(n=43, d=2)
    one, other = key(1), key(2)
    with compiles(1):
        CALLS[name](one, X, y)
    with compiles(0):
        CALLS[name](other, X + 1, y + 1)


# fit_many calls those that are left out here.
@pytest.mark.parametrize("name", ["predict", "rmse", "r2_score", "fit_many"])
def test_each_function_works_without_jit(name):
    X, y = data(n=43, d=2)
    expected = CALLS[name](key(1), X, y)
    with jax.disable_jit():
        assert_close(CALLS[name](key(1), X, y), expected)


@pytest.mark.parametrize("name", ["init_params", "sample_batch", "fit", "fit_many"])
def test_each_function_consumes_its_key(name):
    k = key(5)
    with jax.debug_key_reuse(True):
        CALLS[name](k, X3, Y3)
        with pytest.raises(jax.errors.KeyReuseError):
            CALLS[name](k, X3, Y3)


def test_functions_are_pickled_by_name_and_share_their_defaults():
    for name in jaxlin.__all__:
        function = getattr(jaxlin, name)
        assert pickle.loads(pickle.dumps(function)) is function
    one, many = (inspect.signature(train).parameters for train in (fit, fit_many))
    assert all(one[name].default == many[name].default for name in one.keys() & many)


@pytest.mark.parametrize("function", [rmse, mse, r2_score])
def test_functions_are_exported_for_any_number_of_rows(function):
    (n,) = jax.export.symbolic_shape("n")
    shapes = [jax.ShapeDtypeStruct(shape, "f4") for shape in ((n, 2), (n,))]
    exported = jax.export.export(jax.jit(function))(PARAMS, *shapes)
    assert_close(exported.call(PARAMS, X3, Y3), function(PARAMS, X3, Y3))


def test_each_way_of_giving_an_argument_is_the_same_program():
    X, y = data(n=41)
    rates = [0.1, 1, True, np.float32(0.1), np.float64(0.1), np.int64(1)]
    starts = [0, 7, np.int64(7), jnp.int32(7), 2**32 - 1]
    params = {"w": np.ones(3, "f4"), "b": jnp.float32(0)}
    each = {"w": np.ones((3, 3), "f4"), "b": np.zeros(3, "f4")}
    for train, k, first in ((fit, key(), params), (fit_many, keys(3), each)):
        with compiles(1):
            for rate, start in itertools.product(rates, starts):
                train(k, X, y, rate, params=first, start=start)
            train(k, X=2 * X, y=y.astype("f8"), learning_rate=1, start=3, params=first)


def test_fit_on_arrays_of_jax_transfers_nothing():
    X, y, rates = jnp.asarray(X3), jnp.asarray(Y3), jnp.full(3, 0.1)
    k = key()
    fit(k, X, y, rates)
    expected = fit(k, X, y, 0.1, num_steps=3)  # a scalar is a constant schedule
    with jax.transfer_guard("disallow"):
        assert_equal(fit(k, X, y, rates), expected)


CHECKS = [jax.enable_checks, jax.check_tracer_leaks, jax.debug_key_reuse]


@pytest.mark.parametrize("check", CHECKS, ids=["checks", "leaks", "key reuse"])
def test_fit_many_works_under_the_checks_of_jax(check):
    train = functools.partial(fit_many, X=X3, y=Y3, learning_rate=0.1, num_steps=3)
    expected = train(keys(3))
    jax.clear_caches()
    with check(True):
        assert_equal(train(keys(3)), expected)


def test_w_and_b_may_be_numbers_in_every_form():
    expected = step(PARAMS, X3, Y3, 0.1)
    turned = np.ones(2, ">f4")  # and of a subclass, as a memory map is
    for w in [1, 1], (1.0, 1.0), np.ones(2, int), turned, turned.view(np.recarray):
        assert_equal(step({"w": w, "b": 0}, X3, Y3, 0.1), expected)
    traced = jax.jit(lambda w: step({"w": w, "b": np.zeros(())}, X3, Y3, 0.1))
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
        return fit(k, X, y, rates, params=params, loss=Partial(shrunk, c))

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


def test_init_params_are_the_normal_draw_with_w_divided_by_the_root_of_d():
    draws = jax.random.normal(key(), (8, 2, 3))
    params = init_params(key(), 7, target_shape=(2, 3))
    assert_close(params, {"w": draws[:-1] / 7**0.5, "b": draws[-1]})


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.bfloat16, jnp.float16])
def test_init_params_in_low_precision_is_the_rounded_draw(dtype):
    wide, narrow = [init_params(key(), 10_000, dtype=x) for x in ("f4", dtype)]
    assert_equal(narrow, jax.tree.map(lambda leaf: leaf.astype(dtype), wide))
    assert abs(100 * wide["w"].std() - 1) < 0.03


def test_fit_in_float64_starts_from_a_draw_with_its_digits(x64):
    w = np.asarray(fit(key(), X3.astype("f8"), Y3, 1, num_steps=0)[0]["w"])
    assert (w != w.astype("f4")).all()


@pytest.mark.parametrize("t", [(), (2, 3)])
def test_predict_is_the_affine_map_and_the_losses_are_means_over_targets(t):
    X, y = data(t=t)
    params = init_params(key(), 3, target_shape=t)
    assert_close(predict(params, X), numpy_residuals(params, X, 0))
    mean = np.mean(numpy_residuals(params, X, y) ** 2)  # over rows and targets
    assert_close((mse(params, X, y), rmse(params, X, y)), (mean, mean**0.5))


def test_predict_asks_for_full_precision():
    assert "HIGHEST" in str(jax.make_jaxpr(predict)(init_params(key(), 3), data()[0]))


# mse, rmse, r2_score.


@st.composite
def problems(draw, *kinds):
    """(params, X, y) in float64: plain ones and the corners of linear regression."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    X, noise, w, b = (rng.normal(size=shape) for shape in ((6, 3), 6, 3, ()))
    kind = draw(st.sampled_from(["plain", "one row", "collinear", *kinds]))
    if kind == "one row":
        X[:], noise[:] = X[0], noise[0]
    if kind == "collinear":
        X[:, -1] = -2 * X[:, 0]
    scale = {"tiny": 1e-100, "huge": 1e100}.get(kind, 1.0)
    y = X @ w + b + noise
    return {"w": jnp.array(w * scale), "b": jnp.array(b * scale)}, X, y * scale


rmse_and_slopes = jax.jit(jax.value_and_grad(rmse))


@given(problem=problems("tiny", "huge"))
def test_rmse_and_its_gradient_are_the_closed_forms(x64, problem):
    params, X, y = problem
    residuals, n = numpy_residuals(*problem), len(y)
    size = np.sqrt(np.mean(residuals**2))
    value, gradient = rmse_and_slopes(params, X, y)
    assert_close(value, size, 1e-12, 0)
    assert_close(gradient["w"], X.T @ (residuals / size) / n, 1e-10, 1e-12)
    assert_close(gradient["b"], np.mean(residuals / size), 1e-10, 1e-12)


def slopes(function, x, h):
    """d function / dx at a vector x: by either mode, and by central differences."""
    steps = h * jnp.eye(len(x))
    values = jax.vmap(function)(jnp.concatenate([x[None] + steps, x[None] - steps]))
    differences = (values[: len(x)] - values[len(x) :]) / (2 * h)
    return jax.grad(function)(x), jax.jacfwd(function)(x), differences


@functools.partial(jax.jit, static_argnums=0)
def slopes_in_params(function, params, X, y):
    flat, unravel = ravel_pytree(params)
    return slopes(lambda flat: function(unravel(flat), X, y), flat, 1e-5)


@pytest.mark.parametrize("function", [rmse, mse, r2_score])
@given(problem=problems())
def test_gradients_are_the_finite_differences(x64, function, problem):
    assume(function is not r2_score or np.ptp(problem[2]) > 0.1)
    reverse, forward, differences = slopes_in_params(function, *problem)
    assert_close(reverse, differences, 1e-6, 1e-6)
    assert_close(reverse, forward, 1e-10, 1e-10)


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
    for function in (rmse, mse, r2_score):
        for targets in (y, np.where(np.isfinite(y), 1, y)):  # varied, constant
            assert not np.isfinite(function(params, X, targets))


def score(y, predictions):
    """r2_score of given predictions: with X the identity they are the weights."""
    w = jnp.array(predictions, jnp.float32)
    params = {"w": w, "b": jnp.zeros(w.shape[1:])}
    return r2_score(params, np.eye(len(w)), np.array(y))


TWO = [[0.5, 1], [-1, 1], [7, -6]], [[0, 2], [-1, 2], [8, -5]]
SCORES = {  # two examples of sklearn.metrics.r2_score in scikit-learn's documentation
    "one target": ([3, -0.5, 2, 7], [2.5, 0.0, 2, 8], 0.948608),
    "the mean over two targets": (*TWO, 0.936801),
    "constant and perfect": ([-2, -2, -2], [-2, -2, -2], 1.0),
    "constant, missed": ([-2, -2, -2], [-2, -2, -2 + 1e-6], 0.0),
    "constant, missed by little": ([0, 0, 0], [1e-30, 0, 0], 0.0),
    "one of two constant": ([[1, 5], [2, 5], [3, 5]], [[2, 5], [2, 5], [2, 5]], 0.5),
    "a single row": ([4.0], [4.0], np.nan),
    "a sum beyond float32": ([0, 3e38, 3e38], [0, 0, 0], np.nan),
    "squares beyond float32": ([1e20, 2e20], [1e20, 1.9e20], np.nan),
    "an error beyond float32": ([[1, 1], [2, 2]], [[1, 1e20], [2, 2]], np.nan),
    "squares below float32": ([1e-22, 2e-22], [0, 0], np.nan),
    "an error below float32": ([1e-18, 2e-18], [1e-18, 1.9e-18], np.nan),
    "the smallest it can": ([1e-15, 2e-15], [1e-15, 1.5e-15], 0.5),
    "the largest it can": ([1e18, 2e18], [1e18, 1.5e18], 0.5),
}


@pytest.mark.parametrize(("y", "predictions", "expected"), rows(SCORES))
def test_r2_score_keeps_the_conventions_of_scikit_learn(y, predictions, expected):
    np.testing.assert_allclose(score(y, predictions), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [64, 100_000])
def test_r2_score_of_a_distant_target_keeps_its_digits(n):
    """Against float64, of what float32 holds of X and y; beside a target around 0."""
    x = np.random.default_rng(0).normal(size=(n, 1)).astype("f4")
    b = np.array([-311_030, 0], "f4")
    y = (2 * x + b + np.random.default_rng(1).normal(size=(n, 2))).astype("f4")
    errors = np.sum((x + b - y.astype("f8")) ** 2, axis=0)
    expected = np.mean(1 - errors / np.sum((y - y.mean(0, "f8")) ** 2, axis=0))
    params = {"w": np.ones((1, 2), "f4"), "b": b}
    assert_close(r2_score(params, x, y), expected, 0, 1e-6)


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

    def draw(k):
        return jaxlin.sample_batch(k, number[:, None], number, m)[1]

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
    assert_close(step(params, X, y, 0.1, loss), expected)


def test_step_gives_floats_to_a_loss_of_ones_own():
    def loss(params, X, y):
        return jnp.mean((y - 3) * 1.0) + 0 * params["b"]

    for whole in (np.array([1, 2], "u1"), jnp.array([1, 2], jnp.uint8)):
        assert step(PARAMS, X3[:2], whole, 0.1, loss)[1] == -1.5


@pytest.mark.parametrize(("params", "X"), [(jnp.bfloat16, "f4"), (jnp.float32, "f8")])
def test_step_keeps_the_dtypes_of_params(x64, params, X):
    start = init_params(key(), 2, dtype=params)
    new, loss = step(start, X3.astype(X), Y3.astype(X), 0.1)
    assert leaf_dtypes(new) == {jnp.dtype(params).name}
    assert loss.dtype == X


def test_step_works_where_the_types_of_jax_do_not_say_what_varies(monkeypatch):
    monkeypatch.setattr(jax, "typeof", lambda x: types.SimpleNamespace())
    params, _ = jax.jit(lambda X: step(PARAMS, X, Y3, 0.1))(X3)  # which traces anew
    assert params["w"].shape == (2,)


# fit.


def shrunk(penalty, params, X, y):
    return mse(params, X, y) + jnp.sum(penalty * params["w"] ** 2)


LASSO_STEP = Partial(guide.lasso_step, 0.4)


@pytest.mark.parametrize("impl", ["threefry2x32", "unsafe_rbg"])
def test_fit_is_sgd_on_the_rows_that_sample_batch_draws(x64, impl):
    X, y = (array.astype("f8") for array in data(n=500))
    rates, params = np.linspace(0.3, 0.1, 9), {"w": np.ones(3), "b": np.ones(())}
    k = jax.random.key(0, impl=impl)
    expected = numpy_sgd(params, X, y, rates, drawn_rows(k, 5, 9, 500, 200))
    trained = fit(k, X, y, rates, batch_size=200, params=params, start=5)
    assert_close(trained, expected, 1e-13, 1e-14)


@pytest.mark.parametrize("d", [2, 8])
def test_fit_equals_the_loop_of_the_page(d):
    X, y = map(jnp.asarray, data(n=500, d=d))
    rates = jnp.geomspace(1, 0.01, 200)
    plain, fitted = readme.plain_fit(key(), X, y, rates), fit(key(), X, y, rates)
    assert_close(fitted, plain, 1e-4, 1e-5)
    if d >= 8 and jax.__version_info__ >= (0, 10):
        assert_equal(fitted, plain)


@pytest.mark.parametrize(("n", "m"), [(40, 40), (130, 100)])
def test_fit_draws_batches_of_100_or_of_all_rows_by_default(n, m):
    X, y = data(n=n)
    trains = [functools.partial(fit, batch_size=size) for size in (None, m)]
    one, other = (jax.make_jaxpr(train)(key(), X, y, 0.1) for train in trains)
    assert str(one) == str(other)


def test_the_default_start_serves_hundreds_of_features():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1000, 300))
    y = standard(X @ rng.normal(size=300) + 5 * rng.normal(size=1000))
    params, _ = fit(key(), X, y, np.geomspace(0.5, 0.0005, 3000))
    A = np.column_stack([X, np.ones(1000)])
    best = 1 - np.linalg.lstsq(A, y)[1][0] / np.sum(y**2)
    assert best - 0.02 < r2_score(params, X, y) < best


# Rates and schedules.


def decay(first, i):
    return first / (1 + i.astype("f4"))


def halved(i):
    assert (i.shape, i.dtype) == ((), jnp.int32)  # mapped over the numbers
    return 0.5 / (1 + i)


JOINED = [lambda i: 0.1 * i, lambda i: 0.3 - i / 40], [4]
SCHEDULES = {
    "a function": halved,
    "what a Partial holds": Partial(decay, 0.3),
    "optax: warmup": optax.warmup_cosine_decay_schedule(0.0, 0.3, 3, 9),
    "optax: joined": optax.join_schedules(*JOINED),
    "optax: one cycle": optax.linear_onecycle_schedule(9, 0.3),
    "optax: steps": optax.piecewise_constant_schedule(0.3, {2: 0.5, 6: 0.1}),
}


def rate_of(state, X, y, learning_rate, loss):
    """A step that keeps each rate as its loss, and needs no rows: none are drawn."""
    return state, learning_rate


rates_of = functools.partial(fit, X=X3, y=Y3, params=0.0, step=rate_of)


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_step_has_the_rate_that_the_schedule_gives_its_number(as_a_user, name):
    schedule = SCHEDULES[name]
    _, found = rates_of(key(), learning_rate=schedule, num_steps=9, start=2)
    assert_close(found, np.array([schedule(i) for i in jnp.arange(2, 11)]))


def test_what_a_schedule_holds_is_data_with_a_gradient():
    def last_rate(first):
        return rates_of(key(), learning_rate=Partial(decay, first), num_steps=5)[1][-1]

    assert_close(jax.grad(last_rate)(0.1), 0.2)  # of first / 5
    firsts = np.array([0.1, 0.2, 0.3], "f4")
    with compiles(1):
        for first in firsts:
            rates_of(key(), learning_rate=Partial(decay, first), num_steps=6)
    options = {"params": np.zeros(3), "step": rate_of, "in_axes": ONE_KEY}
    _, mapped = fit_many(key(), X3, Y3, Partial(decay, firsts), num_steps=5, **options)
    assert_close(mapped, firsts[:, None] / (1 + np.arange(5)))


NUMBERS = {
    "a scalar": (0.1, 1000),
    "a schedule": (lambda i: jnp.float32(0.1), 1000),
    "a rate for each step": (np.ones(7), 7),
}


@pytest.mark.parametrize(("rates", "steps"), rows(NUMBERS))
def test_there_are_as_many_steps_as_rates_or_a_thousand(rates, steps):
    one = jax.eval_shape(lambda k: fit(k, X3, Y3, rates)[1], key())
    many = jax.eval_shape(lambda k: fit_many(k, X3, Y3, rates)[1], keys(3))
    assert (one.shape, many.shape) == ((steps,), (3, steps))


def test_a_rate_for_each_model_is_a_thousand_steps():
    train = functools.partial(fit_many, in_axes=RATES)
    assert jax.eval_shape(train, keys(3), X3, Y3, np.ones(3))[1].shape == (3, 1000)


# Resuming, and derivatives.


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
    if many:
        state = momentum_state(state)
        train = functools.partial(train, step=Partial(momentum, 0.9))
    whole = train(rates, params=state)
    end, losses = state, []
    for start in (0, 2, 4):
        end, part = train(rates[start : start + 2], params=end, start=start)
        losses.append(part)
    assert_equal((end, np.concatenate(losses, axis=-1)), whole)


def test_fit_takes_a_traced_start():
    train = functools.partial(fit, key(), X3, Y3, 0.01, num_steps=3, params=PARAMS)
    mapped = jax.vmap(lambda start: train(start=start))(jnp.arange(4))
    assert_close(mapped, stack([train(start=start) for start in range(4)]))


@jax.jit
def slopes_in_rates(k, params, X, y, rates):
    scale = rmse(params, X, y)
    options = {"batch_size": 1 + len(y) // 2, "params": params}

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
@pytest.mark.parametrize("X", [np.eye(4)[[0] * 4], np.eye(4)], ids=["one", "four"])
def test_derivatives_are_finite_and_of_both_modes_where_steps_end_at_exact_fits(X):
    # A step of 0.5 in w and in b fits its row exactly.
    X = jnp.asarray(X, "f4")
    reverse, forward = slopes_in_rate(jnp.float32(0.5), X)
    assert np.all(np.isfinite(reverse))
    assert_close(forward, reverse)
    if X[1, 1] == 0:  # three steps of 0.1 take 0.6 off
        assert_close(slopes_in_rate(jnp.float32(0.1), X), 2 * [np.full(20, -6.0)])


# What a loss or a step holds is data.


def test_what_is_held_compiles_once_maps_and_has_a_gradient(x64):
    X, y = (a.astype("f8") for a in data(n=46))
    state = momentum_state({"w": jnp.ones(3), "b": jnp.ones(())})
    train = functools.partial(fit, key(), X, y, 0.1, num_steps=9, params=state)

    def hold(penalty_and_coefficient):
        penalty, coefficient = penalty_and_coefficient
        loss, update = Partial(shrunk, penalty), Partial(momentum, coefficient)
        return train(loss=loss, step=update)

    def last_loss(each):
        return hold(each)[1][-1]

    values = np.array([[0.01, 0.0], [0.1, 0.5], [1.0, 0.9]])
    with compiles(1):
        ends = [hold(each) for each in values]
    both = jax.jit(lambda each: slopes(last_loss, each, 1e-6))
    reverse, forward, differences = both(jnp.array([0.1, 0.5]))
    assert_close(jax.vmap(hold)(values), stack(ends), 1e-12, 1e-14)
    assert_close(reverse, differences, 1e-7, 0)
    assert_close(reverse, forward, 1e-10, 0)


def test_all_else_that_a_loss_reads_is_frozen_and_equal_functions_are_one_program():
    train = functools.partial(fit, key(), X3, Y3, 0.1, num_steps=3)
    held = np.ones(1, "f4")
    before = train(loss=types.MethodType(shrunk, held))
    held[:] = 2
    with compiles(0):  # by another method, which is equal to the first
        assert_equal(train(loss=types.MethodType(shrunk, held)), before)


def test_the_step_of_the_page_is_the_optimiser_of_optax(as_a_user):
    X, y = map(jnp.asarray, data())
    optimiser = optax.adamw(1.0)  # which looks at the params, too

    @jax.jit
    def both(params):
        state = optimiser.init(params)
        found = params, state
        for _ in range(2):
            found, _ = readme.optax_step(optimiser, found, X, y, 0.1, rmse)
            gradient = jax.grad(rmse)(params, X, y)
            updates, state = optimiser.update(gradient, state, params)
            updates = jax.tree.map(lambda update: 0.1 * update, updates)
            params = optax.apply_updates(params, updates)
        return found, (params, state)

    assert_close(*both({"w": jnp.ones(3), "b": jnp.ones(())}))


@pytest.mark.parametrize("train", [fit, functools.partial(fit_many, in_axes=ONE_KEY)])
def test_the_program_of_fit_is_one_scan(train):
    train = functools.partial(train, num_steps=17, batch_size=4)
    program = str(jax.make_jaxpr(train)(key(), X3, Y3, np.ones(17)))
    assert re.findall(r"\b(scan|while)\[", program) == ["scan"]
    assert "length=17" in program


# fit_many.


def of_model(i, tree, axis):
    return jax.tree.map(lambda x: x[0 if axis is None else i], tree)


def along(models, axis):
    """One tree of them, stacked along the axis; the first where all share it."""
    if axis is None:
        return models[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *models)


AXES = {  # whether params are given, too
    "keys": ((0, None, None, None), False),
    "rates and params, one key": ((None, None, None, 0), True),
    "all, along other axes": ((0, -1, 1, 1, 1), True),
}


@pytest.mark.parametrize(("axes", "with_params"), rows(AXES))
def test_fit_many_is_a_loop_of_fit(axes, with_params):
    X, y = map(np.stack, zip(*[data(seed, t=(1,)) for seed in range(4)], strict=True))
    rates = np.linspace(0.1, 0.4, 36).astype("f4").reshape(4, 9)
    params = {"w": np.ones((4, 3, 1)) * rates[:, :1, None], "b": rates[:, :1]}
    options = {"num_steps": 9, "batch_size": 7, "start": 3, "step": LASSO_STEP}
    impl = "rbg" if axes[0] is None else "threefry2x32"  # one key for all may be rbg
    ks = jax.random.split(jax.random.key(0, impl=impl), 4)
    five, five_axes = (ks, X, y, rates, params if with_params else None), (*axes, 0)[:5]

    models = [[*map(of_model, [i] * 5, five, five_axes)] for i in range(4)]
    loop = [fit(*arrays, params=first, **options) for *arrays, first in models]
    *arrays, first = map(along, zip(*models, strict=True), five_axes)
    many = fit_many(*arrays, in_axes=axes, params=first, **options)
    assert_close(many, stack(loop))


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
    mean, moments = k.mean(0), np.diag([1 / d] * d + [1.0, 1.0])
    for r in rates.astype(float):
        square = np.mean(k @ moments @ k.transpose(0, 2, 1), axis=0)
        square = (1 - 1 / m) * mean @ moments @ mean.T + square / m
        cross = mean @ moments
        moments = moments - r * (cross + cross.T) + r**2 * square

    s = 40_000
    params, _ = fit_many(keys(s, 1), X, y, rates, batch_size=m, loss=mse)
    z = np.column_stack([params["w"], params["b"], np.ones(s)]).astype(float)
    products = z[:, :, None] * z[:, None, :]
    # 5 standard errors of a mean over s models; 1e-4 for the float32 of 12 steps.
    bound = 5 * products.std(0) / s**0.5 + 1e-4 * np.abs(moments)
    np.testing.assert_array_less(np.abs(products.mean(0) - moments), bound)


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


def test_fit_many_of_very_many_models_is_numpy_sgd():
    """At this number some versions of XLA compile a mapped sum of squares wrongly."""
    X, y = data(n=10, d=2)
    params = {"w": np.ones((32_769, 2)), "b": np.ones(32_769)}
    options, many = {"num_steps": 3, "batch_size": 5, "params": params}, keys(32_769)
    trained = fit_many(many, X, y, 0.1, **options)
    rows = jax.jit(jax.vmap(lambda k: drawn_rows(k, 0, 3, 10, 5)))(many)
    batches = np.moveaxis(rows, 1, 0)
    assert_close(trained, numpy_sgd(params, X, y, [0.1] * 3, batches))


# Four devices.

SPLIT, WHOLE = PartitionSpec("models"), PartitionSpec()
# Before JAX 0.10 keys on Explicit axes fail in JAX itself.
KINDS = ["Auto", "Explicit"][: 1 + (jax.__version_info__ >= (0, 10))]
explicit_keys = pytest.mark.skipif(len(KINDS) < 2, reason="JAX cannot, before 0.10")
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


WAYS = {  # the axes of the mesh, and what trains on it
    "fit_many": ("Auto", train_many),
    "shard_map": ("Auto", over_devices(train_many, "k")),
    "Explicit": ("Explicit", train_many),
    "Explicit, own vmap": ("Explicit", jax.vmap(train_one, (0, None, None))),
}
WAYS = {name: way for name, way in WAYS.items() if way[0] in KINDS}


@pytest.mark.parametrize(("kind", "way"), rows(WAYS))
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


def assert_same_when_split(call, inputs, kind):
    """And what comes out of Explicit axes stays on their mesh."""
    found = call(split(inputs, kind))
    assert_close(jax.device_get(found), call(inputs), atol=2e-5)
    if kind == "Explicit":
        meshes = {leaf.sharding.mesh for leaf in jax.tree.leaves(found)}
        assert meshes == {mesh(kind)}


ON_ROWS = {
    "fit, Auto": ("Auto", lambda rows: train_one(key(), *rows)),
    "fit": ("Explicit", lambda rows: train_one(key(), *rows)),
    "fit with params": ("Explicit", lambda rows: train_one(key(), *rows, params=FIRST)),
    "r2_score": ("Explicit", lambda rows: r2_score(FIRST, *rows)),
    "step": ("Explicit", lambda rows: step(FIRST, *rows, 0.1)),
}


@pytest.mark.parametrize(("kind", "call"), rows(ON_ROWS))
def test_rows_split_over_devices_give_the_same(kind, call):
    assert_same_when_split(call, data(), kind)


@pytest.mark.parametrize("function", [predict, mse, rmse, r2_score])
def test_models_on_explicit_axes_are_scored_by_vmap(function):
    X, y = data(t=(2,))
    ones = (X,) if function is predict else (X, y)
    b = np.arange(16, dtype="f4").reshape(8, 2)
    models = {"w": np.ones((8, 3, 2), "f4"), "b": b}
    mapped = jax.vmap(function, (0, *[None] * len(ones)))
    assert_same_when_split(lambda models: mapped(models, *ones), models, "Explicit")


@explicit_keys
def test_training_goes_on_on_its_mesh_under_set_mesh_too():
    X, y = data()

    def go_on(ks):
        params, first = train_many(ks, X, y, params=FIRST, in_axes=KEY_EACH)
        return first, train_many(ks, X, y, params=params, start=9)

    assert_same_when_split(go_on, keys(8), "Explicit")
    with jax.set_mesh(mesh("Explicit")):
        found = jax.device_get(train_many(split(keys(8), "Explicit"), X, y))
    assert_close(found, train_many(keys(8), X, y))


@explicit_keys
def test_rates_on_explicit_axes_are_mapped():
    train = functools.partial(fit_many, key(), *data(), in_axes=ONE_KEY, num_steps=9)
    assert_same_when_split(train, np.linspace(0.1, 0.8, 8), "Explicit")


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
    words = r"^params must vary over axes \('models',\).*lax.pcast.*pmean"
    # None, too, where one key draws the same params on all devices.
    for params in (FIRST, None) if way is by_data else (FIRST,):
        with pytest.raises(ValueError, match=words):
            over_devices(functools.partial(way, params), splits)(*inputs)
    own = over_devices(lambda *args: way(varying(FIRST), *args), splits)
    assert_close(own(*inputs), expected, atol=2e-5)
    if way is by_keys:
        shared = over_devices(functools.partial(way, FIRST), splits, check_vma=False)
        assert_close(shared(*inputs), expected, atol=2e-5)


def test_a_loss_averaged_over_devices_trains_on_the_rows_of_all():
    X, y = data()

    def mean_mse(params, X, y):
        return jax.lax.pmean(mse(params, X, y), "models")

    def train(k, X, y):
        return step(FIRST, X, y, 0.1, mean_mse)

    found = over_devices(train, "Xy", out_specs=WHOLE)(key(), X, y)
    assert_close(found, step(FIRST, X, y, 0.1, mse))


# Errors: `name must ...; got ... . What to do.`

MANY = {"w": np.ones((7, 2), "f4"), "b": np.ones(7, "f4")}
COLUMN = {"w": [[1.0]] * 2, "b": [0.0]}  # for y of shape (n, 1)
STACKED, TEXT = np.ones((3, 10, 2), "f4"), pd.DataFrame({"letter": [*"abcabcabca"]})
DATES = np.full((3, 2), "2020", "M8[D]")
SPARSE = csr_matrix(X3), BCOO.fromdense(np.ones((1797, 64)))  # of minutes, if read
HASHLESS = type("Hashless", (), {"__call__": rmse, "__hash__": None})()
MASKED = np.ma.array([1e3, 1], mask=[True, False])
RBG = jax.random.key(0, impl="rbg")
HELD_MASK, OFFSET = Partial(shrunk, MASKED), Partial(guide.offset, mse)
OF_ONE = {"in_axes": ONE_KEY, "params": PARAMS}
MORE_RATES = "learning_rate|(5,)|(10,)|rates[start:start + num_steps]"


def train(k, X=X3, y=Y3, rate=0.1, **options):
    return fit(k, X, y, rate, **options)


def train_3(k, X=X3, y=Y3, rate=0.1, axes=(0, None, None, None), **options):
    return fit_many(jax.random.split(k, 3), X, y, rate, in_axes=axes, **options)


def traced(name, value):
    return lambda k: jax.jit(lambda x: train(k, **{name: x}))(value)


def go_on(k, params):
    return train(k, params=params)


# What is called with a key, and the words of the error: the argument's name, what is
# wanted, what came, what to do.
VALUE_ERRORS = {
    "no feature": (lambda k: init_params(k, 0), "num_features|1..|0"),
    "no size": (lambda k: init_params(k, 2, target_shape=[-1]), "target_shape|1..|-1"),
    "a row": (lambda k: predict(PARAMS, X3[0]), "X|(n, d)|(2,)|X[None]|X[:, None]"),
    "no rows": (lambda k: predict(PARAMS, X3[:0]), "X|both above 0|(0, 2)"),
    "a stack": (lambda k: train_3(k, STACKED), "X|(3, 10, 2)|in_axes=(0, 0, 0, None)"),
    "y of a column": (lambda k: rmse(PARAMS, X3, Y3[:, None]), "y|()|(10, 1)|y[:, 0]"),
    "y of one": (lambda k: step(PARAMS, X3, Y3[:1], 1, print), "y|10 rows|(1,)"),
    "y turned": (lambda k: rmse(PARAMS, X3, Y3[None]), "y|10 rows|(1, 10)|y[0]"),
    "X turned": (lambda k: train(k, X3.T), "y|2 rows|(10,)|X.T"),
    "no target": (lambda k: rmse(PARAMS, X3, np.ones((10, 0))), "y|a target|(10, 0)"),
    "models": (lambda k: predict(MANY, X3), 'params["w"]|(7, 2)|vmap(predict, (0'),
    "a taken column": (lambda k: train(k, loss=OFFSET), 'params["w"]|(2,)|without'),
    "w of a column": (lambda k: go_on(k, COLUMN), "y|target shape (1,)|b has|(d, k)"),
    "params of one": (lambda k: train_3(k, params=PARAMS), "params|s models|for all"),
    "of k targets": (lambda k: train_3(k, y=Y3[:, None], params=COLUMN), "params|One"),
    "shared params": (lambda k: fit_many(k, X3, Y3, Y3, **OF_ONE), "params|s models"),
    "a batch of 11": (lambda k: train(k, batch_size=11), "batch_size|1..10|11"),
    "steps": (lambda k: train(k, num_steps=-1), "num_steps|0..|-1"),
    "rates": (lambda k: step(PARAMS, X3, Y3, Y3), "learning_rate|(10,)|jax.vmap"),
    "schedule": (lambda k: step(PARAMS, X3, Y3, abs), "learning_rate|schedule(i)"),
    "more rates": (lambda k: train(k, rate=Y3, num_steps=5), MORE_RATES),
    "s rates": (lambda k: train_3(k, rate=np.ones(3)), f"num_steps|in_axes={RATES}"),
    "one rate": (lambda k: train_3(k, axes=RATES), "learning_rate|many|one rate"),
    "keys": (lambda k: train(jax.random.split(k, 3)), "key|be one|(3,)|fit_many"),
    "one key": (lambda k: fit_many(k, X3, Y3, 1), "keys|many|one key|split(key, s)"),
    "key for all": (lambda k: train_3(k, axes=ONE_KEY), "keys|be one|(3,)"),
    "start below 0": (lambda k: train(k, start=-1), "start|0..|-1"),
    "start beyond": (lambda k: train(k, start=2**32), "start|4294967295|4294967296"),
    "traced starts": (traced("start", np.arange(3)), "start|(3,)"),
}
TYPE_ERRORS = {
    "seed": (lambda k: init_params(0, 2), "key|jax.random|got 0|jax.random.key(seed)"),
    "list of keys": (lambda k: fit_many([k, k], X3, Y3, 0.1), "keys|jnp.stack"),
    "rbg": (lambda k: train_3(RBG), "keys|not be rbg|threefry2x32"),
    "no tuple": (lambda k: init_params(k, 2, target_shape=3), "target_shape|tuple|3"),
    "dtype": (lambda k: init_params(k, 2, dtype=int), "dtype|floating-point|int"),
    "an array": (lambda k: train(k, batch_size=X3[:1, 0]), "batch_size|integer|(0.0,)"),
    "bool": (lambda k: train(k, num_steps=True), "num_steps|integer|True"),
    "traced size": (traced("batch_size", 3), "batch_size|known while tracing"),
    "no w": (lambda k: predict({"b": 0}, X3), 'params|dict of "w" and "b"|{'),
    "no b": (lambda k: predict({"w": X3[0]}, X3), 'params|dict of "w" and "b"|{'),
    "both": (lambda k: go_on(k, (PARAMS, 1.0)), "params|params, losses = fit(...)"),
    "swapped": (lambda k: predict(X3, PARAMS), "X|dict|predict(params, X)"),
    "csr": (lambda k: predict(PARAMS, SPARSE[0]), "X|csr_matrix|.toarray()"),
    "BCOO": (lambda k: predict(PARAMS, SPARSE[1]), "X|BCOO|.todense()"),
    "text": (lambda k: predict(PARAMS, TEXT), "X|DataFrame|pd.get_dummies(..., dtype="),
    "dates": (lambda k: predict(PARAMS, DATES), "X|datetime64|days"),
    "complex": (lambda k: predict(PARAMS, X3 + 1j), "X|complex64"),
    "masked": (lambda k: predict(PARAMS, np.ma.array(X3)), "X|Masked|Gaps: fill them"),
    "loss": (lambda k: train(k, loss="rmse"), "loss|function|'rmse'"),
    "in_axes": (lambda k: train_3(k, axes=0), "in_axes|tuple|0|None where shared"),
    "three axes": (lambda k: train_3(k, axes=(0, 0, 0)), "in_axes|4 or 5|(0, 0, 0)"),
    "start of 2.7": (lambda k: train(k, start=2.7), "start|integer|2.7"),
    "traced 2.7": (traced("start", 2.7), "start|whole number|float"),
}


ERRORS = {f"{name}, value": (ValueError, *row) for name, row in VALUE_ERRORS.items()}
ERRORS |= {f"{name}, type": (TypeError, *row) for name, row in TYPE_ERRORS.items()}


@pytest.mark.parametrize(("kind", "call", "words"), rows(ERRORS))
def test_every_error_says_what_is_wanted_what_came_and_what_to_do(kind, call, words):
    name, *others = words.split("|")
    start = rf"(?s)^{re.escape(name)} must .*; got "
    # The same while tracing, since shapes and dtypes are all that it takes.
    for function, k in ((call, key()), (jax.jit(jax.vmap(call)), keys(2))):
        with pytest.raises(kind, match=start) as error:
            function(k)
        for word in others:
            assert word in str(error.value)


LEFT_TO_OTHERS = {  # Python, NumPy and JAX, in their words
    "misspelt": (TypeError, lambda k: train(k, n_epochs=3), "n_epochs"),
    "too many": (TypeError, lambda k: fit(k, X3, Y3, 0.1, 100), "positional arguments"),
    "too few": (TypeError, lambda k: fit(k, X3), "'y'"),
    "twice": (TypeError, lambda k: predict(PARAMS, X3, X=X3), "multiple values"),
    "ragged": (ValueError, lambda k: predict(PARAMS, [[1], [2, 3]]), "inhomogeneous"),
    "text": (TypeError, lambda k: predict({"w": ["a"], "b": 0}, X3), "params['w'][0]"),
    "hashless": (TypeError, lambda k: train(k, loss=HASHLESS), "unhashable type"),
    "sizes": (ValueError, lambda k: train_3(k, rate=Y3, axes=RATES), "learning_rate"),
    "mask": (ValueError, lambda k: predict({"w": MASKED, "b": 0}, X3), "masked arrays"),
    "mask in a state": (ValueError, lambda k: go_on(k, (MASKED,)), "masked arrays"),
    "mask in a loss": (ValueError, lambda k: train(k, loss=HELD_MASK), "masked arrays"),
}


@pytest.mark.parametrize(("kind", "call", "word"), rows(LEFT_TO_OTHERS))
def test_what_is_left_to_others_raises_in_their_words(kind, call, word):
    with pytest.raises(kind, match=re.escape(word)):
        call(key())


# The recipes of the guide, against scikit-learn and closed forms.


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
LABELS = sk.LogisticRegression(**TIGHT)
STRICT = sk.LogisticRegression(C=0.01, **TIGHT)
HUBER = sk.HuberRegressor(alpha=0, **TIGHT).fit(X_ALL, Y_ALL["real"][:, 0])
WEIGHTS = standard(np.sin(np.arange(N))) / 2 + 1  # positive, of mean 1
UNEVEN = np.where(Y_ALL["label"][:, 0] == 1, 20.0, 1.0)  # balance two classes


LINE_FROM_0 = sk.LinearRegression(fit_intercept=False)
QUANTILE = Partial(guide.quantile, 0.9), sk.QuantileRegressor(quantile=0.9, alpha=0)
NET = sk.ElasticNet(0.1, l1_ratio=0.7, **TIGHT)
POISSON = sk.PoissonRegressor(**TIGHT)
BY_HUBER = Partial(guide.huber, 1.35 * HUBER.scale_), HUBER
# The penalties 1 / (2 n C) for scikit-learn's C = 1 and 0.01, n the sum of weights.
C, C_UNEVEN = 1 / (2 * N), 1 / (2 * UNEVEN.sum() * 0.01)
# Targets, how many; the loss, and the model of scikit-learn whose coefficients it
# should reach; a rate; where there are any, penalties on w² and |w|, weights of rows.
CASES = {
    "rmse": ("real", 5, rmse, LINE, 0.4),
    "mse": ("real", 1, mse, LINE, 0.4),
    "ridge": ("real", 5, mse, sk.Ridge(alpha=30), 0.4, 30 / N),
    "lasso": ("real", 5, mse, sk.Lasso(0.1, **TIGHT), 0.4, 0, 0.2),
    "elastic net": ("real", 1, mse, NET, 0.4, 0.03, 0.14),
    "bounded": ("real", 5, mse, POSITIVE, 0.4),
    "no intercept": ("real", 5, Partial(guide.no_intercept, mse), LINE_FROM_0, 0.4),
    "huber": ("real", 1, *BY_HUBER, 0.4),
    "quantile": ("real", 5, *QUANTILE, 1),
    "poisson": ("count", 5, guide.poisson, POISSON, 0.3, 0.5),
    "logistic": ("label", 5, guide.logistic, LABELS, 2, C),
    "softmax": ("class", 1, guide.softmax, LABELS, 2, C),
    "weighted mse": ("real", 1, mse, LINE, 0.3, 0, 0, WEIGHTS),
    "class weights": ("label", 1, guide.logistic, STRICT, 2, C_UNEVEN, 0, UNEVEN),
    "weighted softmax": ("class", 1, guide.softmax, LABELS, 2, C, 0, WEIGHTS),
}


def by_scikit_learn(model, X, y, weights=None):
    """w and b by one model for each column of y."""
    models = [sklearn.base.clone(model).fit(X, column, weights) for column in y.T]
    w, b = ([getattr(m, name) for m in models] for name in ("coef_", "intercept_"))
    return {"w": np.squeeze(w).T, "b": np.squeeze(b)}


def full_batches(loss, inner, rates, X, y, params):
    """Where steps on all rows end."""
    step = Partial(guide.full_batch, inner, X, y.astype(float))
    options = {"step": step, "batch_size": 1, "params": params, "loss": loss}
    return jax.device_get(fit(key(), X, y, rates, **options)[0])


@pytest.mark.parametrize("name", CASES)
def test_losses_reach_what_scikit_learn_finds(name):
    kind, k, loss, model, rate, *others = CASES[name]
    squares, sizes, weights = (*others, *(0, 0, None)[len(others) :])
    X, y = X_ALL, Y_ALL[kind][:, :k]
    expected = by_scikit_learn(model, X, y, weights)
    rate = rate * (k**0.5 if loss is rmse else k)
    if weights is not None:
        X = np.column_stack([X, weights / weights.mean()])
        loss = Partial(guide.weighted, loss)
    # A loss is a mean over k targets, too, so each has a k-th of the gradient.
    loss = Partial(guide.penalised, loss, squares / k)
    inner = Partial(guide.lasso_step, sizes / k)
    inner = Partial(guide.bounded_step, 0.0) if model is POSITIVE else inner
    zeros = jax.tree.map(np.zeros_like, expected)
    rates, y = rate * np.geomspace(1, 1e-5, 3000), y if k > 1 else y[:, 0]
    found = full_batches(loss, inner, rates, X, y, zeros)
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


def test_an_offset_serves_several_targets():
    X, y = data(t=(2,))
    params = init_params(key(), 2, target_shape=(2,))
    moved = y - X[:, 2:]
    assert_close(guide.offset(mse, params, X, y), mse(params, X[:, :2], moved))


def test_missing_targets_count_for_nothing(as_a_user):
    X, y = data(t=(2,))
    y[::3, 0] = np.nan
    params = init_params(key(), 3, target_shape=(2,))
    value, slope = jax.value_and_grad(guide.observed)(params, X, y)
    squares = np.nan_to_num(numpy_residuals(params, X, y)) ** 2
    assert_close(value, squares.mean())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_a_label_that_is_nan_shows():
    X, labels, params = X3[:4], np.array([0.0, 1, 2, 0]), init_params(key(), 2)
    params = jax.tree.map(lambda p: jnp.stack([p, p, p], axis=-1), params)
    assert_close(guide.softmax(params, X, labels), np.log(3))
    assert np.isnan(guide.softmax(params, X, jnp.array([0, 1, jnp.nan, 0])))


PENALTIES = [0.3, np.array([0.1, 1.0]), np.array([[0.1], [0.0], [2.0]])]


@pytest.mark.parametrize("penalty", PENALTIES, ids=["one", "a target", "a column"])
def test_penalties_may_be_arrays(as_a_user, penalty):
    X, y = data(t=(2,))
    loss = Partial(guide.penalised, mse, penalty)
    zeros = {"w": np.zeros((3, 2)), "b": np.zeros(2)}
    found = guide.fit_exactly(loss, zeros, X, y, 0.15)
    Xc, yc, each = X - X.mean(0), y - y.mean(0), penalty * np.ones((3, 2))
    for j in range(2):  # mse is a mean over 40 rows and two targets
        solved = np.linalg.solve(Xc.T @ Xc + 80 * np.diag(each[:, j]), Xc.T @ yc[:, j])
        assert_close(found["w"][:, j], solved, 0, 1e-4)


def exact_ridge(penalty, X, y):
    Xc, yc = X - X.mean(0), y - y.mean()
    gram = Xc.T @ Xc + len(X) * penalty * np.eye(X.shape[1])
    w = np.linalg.solve(gram, Xc.T @ yc)
    return w, y.mean() - X.mean(0) @ w


def test_the_penalty_of_the_guide_is_the_exact_choice_on_a_wide_table(as_a_user):
    n, d, noise, rng = 200, 300, 3, np.random.default_rng(1)
    X = rng.normal(size=(n, 10)) @ rng.normal(size=(10, d)) + rng.normal(size=(n, d))
    X, y = standard(X), standard(X[:, :5].sum(axis=1) + noise * rng.normal(size=n))
    penalties, errors = np.geomspace(0.001, 10, 13), []
    fold = np.random.default_rng(0).permutation(n) % 5
    for penalty in penalties:
        solved = [exact_ridge(penalty, X[fold != i], y[fold != i]) for i in range(5)]
        parts = [X[fold == i] @ w + b - y[fold == i] for i, (w, b) in enumerate(solved)]
        errors.append(np.sum(np.concatenate(parts) ** 2))
    chosen = guide.choose(jnp.array(penalties), jnp.array(X), jnp.array(y))
    assert_close(chosen, penalties[np.argmin(errors)])
    found = guide.ridge(chosen, jnp.ones(n), jnp.array(X), jnp.array(y))
    w, _ = exact_ridge(float(chosen), X, y)
    assert_close(found["w"], w, 0, 2e-4)


def test_ids_are_looked_up_as_their_dummies_would_be(as_a_user):
    rng = np.random.default_rng(0)
    ids, dummies = rng.integers(5, size=(300, 2)), np.zeros((300, 5))
    for column in ids.T:
        dummies[np.arange(300), column] += 1
    y = dummies @ rng.normal(size=5) + rng.normal(size=300)
    params = init_params(key(), 5)
    for loss in (mse, Partial(guide.huber, 0.5)):
        looked_up = Partial(guide.looked_up, loss)
        slopes = [jax.jit(jax.value_and_grad(f)) for f in (looked_up, loss)]
        assert_close(slopes[0](params, ids, y), slopes[1](params, dummies, y))


def test_a_fit_that_is_not_exact_yet_is_nan(as_a_user):
    X, y = map(jnp.asarray, data())
    none = {"w": jnp.zeros(3), "b": 0.0}
    uneven = X * jnp.array([1.0, 100.0, 1.0]) + jnp.array([0.0, 0.0, 300.0])
    for columns, exact in ((X, True), (uneven, False)):
        found = guide.fit_exactly(mse, none, columns, y, guide.safe_rate(columns))
        assert np.isfinite(found["w"]).all() == exact


def test_groups_are_fitted_and_left_out_rows_exactly(as_a_user):
    X, y = map(jnp.asarray, data(n=30))
    mask = (jnp.arange(30) < 20).astype(float)
    found = guide.fit_group(X, y, mask)
    assert_close(found["w"], LINE.fit(X[:20], y[:20]).coef_, 0, 1e-4)
    without = guide.leave_one_out(X, y)
    for i in (0, 17):
        expected = LINE.fit(np.delete(X, i, 0), np.delete(y, i)).coef_
        assert_close(without["w"][i], expected, 0, 1e-4)


@pytest.mark.parametrize("known", [True, False])
def test_standard_errors_are_those_of_weighted_least_squares(as_a_user, known):
    X, y = map(jnp.asarray, data(n=60))
    sigma = 0.1 + 0.05 * np.sin(np.arange(60))
    weights = 1 / sigma**2 / np.mean(1 / sigma**2)
    A = np.column_stack([np.ones(60), X]).astype(float)
    covariance = np.linalg.inv(A.T @ (A / sigma[:, None] ** 2))
    if not known:
        fitted = A @ (covariance @ A.T @ (y / sigma**2))
        covariance *= np.sum(((y - fitted) / sigma) ** 2) / (60 - 4)
    variance = 1 / np.mean(1 / sigma**2) if known else None
    found = guide.standard_errors(X, y, jnp.array(weights, "f4"), variance)
    assert_close(found, np.sqrt(np.diag(covariance)), 1e-3)


def real(rng, line, noise):
    return standard(line + noise * rng.normal(size=line.shape))


def label(rng, line, noise):
    return (line + noise * rng.logistic(size=line.shape) > 0).astype(float)


def count(rng, line, mean):
    counts = rng.poisson(mean * np.exp(0.5 * line))
    return counts / counts.mean()


def class_of(rng, line, noise):
    score = line + noise * rng.logistic(size=line.shape)
    return np.digitize(score, [-0.5, 0.5]).astype(float)


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


def whiten(X):
    values, vectors = np.linalg.eigh(np.cov(X.T, bias=True))
    return (X - X.mean(axis=0)) @ vectors / np.sqrt(values)


HARD = [("alike", 3), ("neighbours", 0.3), ("outliers", 0.3)]
NOISES = [("alike", 0.05), ("alike", 0.3), ("alike", 3)]
FREE = sk.LogisticRegression(C=np.inf, **TIGHT)
COUNTS = sk.PoissonRegressor(alpha=0, **TIGHT)
MEANS = [("alike", 0.1), ("alike", 1), ("alike", 1000)]
NINTH = sk.QuantileRegressor(quantile=0.9, alpha=0)


# The loss to compare; y, columns and noises, d, t; the best model; what is missed.
GRID = {
    "mse": (mse, real, HARD, 100, (), LINE, 0.0013),
    "rmse": (mse, real, HARD, 30, (10,), LINE, 0.0035),
    "huber": (Partial(guide.huber, 0.1), real, HARD, 30, (), None, 0.003),
    "quantile": (Partial(guide.quantile, 0.9), real, HARD, 30, (), NINTH, 0.003),
    "logistic": (guide.logistic, label, NOISES, 30, (), FREE, 0.001),
    "poisson": (guide.poisson, count, MEANS, 30, (), COUNTS, 0.004),
    "softmax": (guide.softmax, class_of, NOISES[1:], 30, (), FREE, 0.003),
}


# A tenth of its rates fails for labels and counts; ten times the rates, for all.
@pytest.mark.parametrize("name", GRID)
def test_rates_of_the_guide_reach_the_best_loss(name):
    loss, target, columns, d, t, model, bound = GRID[name]
    cells, best = [], []
    for kind, noise in columns:
        X, y = problem_of(kind, d, t, target, noise)
        Z = whiten(X)
        cells.append((Z, y, guide.rates_for(name, Z, y)))
        best.append(best_params(model, loss, Z, y))
    (Z, y, rates), best = map(np.stack, zip(*cells, strict=True)), stack(best)
    zeros = jax.tree.map(np.zeros_like, best)
    options = {"loss": rmse if name == "rmse" else loss}
    options["params"] = zeros if name in ("softmax", "poisson") else None
    found, _ = fit_many(key(), Z, y, rates, in_axes=(None, 0, 0, 0), **options)
    score = jax.vmap(loss)
    end, least, none = (np.array(score(p, Z, y)) for p in (found, best, zeros))
    assert np.all((end - least) / none < bound)


def best_params(model, loss, Z, y):
    if model is not None:
        return by_scikit_learn(model, Z, y.reshape(1000, -1))
    zeros = {"w": jnp.zeros(Z.shape[1]), "b": 0.0}
    return jax.device_get(guide.fit_exactly(loss, zeros, Z, y, 0.3, steps=3000))


@pytest.mark.parametrize(("name", "penalty"), [("mse", 1.0), ("logistic", 0.1)])
def test_rates_of_the_guide_know_the_penalty(as_a_user, name, penalty):
    X = standard(problem_of("neighbours", 10, (), real, 1)[0])
    y = (X[:, 0] + np.random.default_rng(0).logistic(size=1000) > 0).astype(float)
    loss = mse if name == "mse" else guide.logistic
    loss = Partial(guide.penalised, loss, penalty)
    zeros = {"w": jnp.zeros(10), "b": 0.0}
    rate = (1 if name == "mse" else 8) * guide.safe_rate(jnp.array(X))
    best = guide.fit_exactly(loss, zeros, X, y, 1 / (1 / rate + 2 * penalty))
    found, _ = fit(key(), X, y, guide.rates_for(name, X, y, penalty), loss=loss)
    assert loss(found, X, y) < loss(best, X, y) + 0.002


# Real data, and the experiment that it began with.

# NIST Statistical Reference Datasets, https://www.itl.nist.gov/div898/strd/lls/lls.shtml
NORRIS = """0.1 0.2 338.8 337.4 118.1 118.2 888.0 884.6 9.2 10.1 228.1 226.5 668.5 666.3
998.5 996.3 449.1 448.6 778.9 777.0 559.2 558.2 0.3 0.4 0.1 0.6 778.1 775.5 668.8 666.9
339.3 338.0 448.9 447.5 10.8 11.6 557.7 556.0 228.3 228.1 998.0 995.8 888.8 887.6 119.6
120.2 0.3 0.3 0.6 0.3 557.6 556.8 339.3 339.1 888.0 887.2 998.5 999.0 778.9 779.0 10.2
11.1 117.6 118.3 228.9 229.2 668.4 669.1 449.2 448.9 0.2 0.5"""


def test_rmse_and_fit_reach_what_nist_certifies(x64):
    y, x = np.array(NORRIS.split(), float).reshape(-1, 2).T
    certified = {"w": np.array([1.00211681802045]), "b": -0.262323073774029}
    assert_close(rmse(certified, x[:, None], y), np.sqrt(26.6173985294224 / 36), 1e-12)
    rates = 0.5 * 1e-12 ** np.linspace(0, 1, 20_000)
    params, _ = fit_many(keys(4), standard(x)[:, None], standard(y), rates)
    w = params["w"][:, 0] * y.std() / x.std()
    b = params["b"] * y.std() + y.mean() - w * x.mean()
    # SGD ends near, not at: within a fifth of the certified standard deviations.
    assert_close(w, np.full(4, certified["w"]), 0, 0.2 * 0.429796848199937e-03)
    assert_close(b, np.full(4, certified["b"]), 0, 0.2 * 0.232818234301152)


def test_the_original_experiment_gives_its_published_figures():
    """w (2.98, 3.996), b 5.487, RMSE 0.28, R² 0.9995: one run, on other data."""

    def run(data_key):
        X_key, noise_key, fit_key = jax.random.split(data_key, 3)
        X = 10 * jax.random.uniform(X_key, (1000, 2))
        y = X @ jnp.array([3.0, 4.0]) + jax.random.uniform(noise_key, (1000,)) + 5
        params, losses = fit(fit_key, X, y, 0.01, num_steps=5000)
        figures = [*params["w"], params["b"], losses[-1], r2_score(params, X, y)]
        return jnp.stack(figures), rmse(params, X, y)

    figures, errors = jax.device_get(jax.jit(jax.vmap(run))(keys(64)))
    published = np.array([2.98, 3.996, 5.487, 0.28, 0.9995])
    assert np.all(abs(figures.mean(0) - published) < 3 * figures.std(0) + 1e-4)
    # And each seed ends near the floor, which is the deviation of U(0, 1).
    assert_close(figures.mean(0)[:3], np.array([3, 4, 5.5]), 0, 0.02)
    assert np.all(abs(errors / 12**-0.5 - 1) < 0.4)


def over_data_sets(function, number, n):
    """function(key, X, y) for so many made-up data sets of n rows."""

    def of_one(key):
        X_key, noise_key, key = jax.random.split(key, 3)
        X = jax.random.normal(X_key, (n, 2))
        y = X @ jnp.array([3.0, 4.0]) + 5 + jax.random.normal(noise_key, (n,))
        return function(key, X, y)

    return jax.device_get(jax.lax.map(of_one, keys(number, 1)))


def coverage(low, high):
    """The share of data sets whose interval of each of w, b holds the truth."""
    return np.mean((low <= [3, 4, 5]) & (high >= [3, 4, 5]), axis=0)


def test_bootstrap_intervals_cover_the_truth_and_seed_intervals_do_not():
    rates = 2 / (1 + jnp.arange(200.0) / 2)

    def refit(key, X, y):
        params, _ = fit(key, X, y, rates, batch_size=20)
        return jnp.append(params["w"], params["b"])

    def both(key, X, y):
        rows_key, fit_key = jax.random.split(key)
        resampled = jaxlin.sample_batch(rows_key, X, y, 100)
        pairs = map(jnp.stack, zip(resampled, (X, y), strict=True))
        return jax.vmap(refit, (None, 0, 0))(fit_key, *pairs)

    def many(key, X, y):
        return jax.vmap(both, (0, None, None))(jax.random.split(key, 100), X, y)

    ends = over_data_sets(many, 200, 100)
    resampled, seeds = coverage(*np.percentile(ends, [2.5, 97.5], axis=1))
    assert np.all((resampled > 0.91) & (resampled < 0.98)), resampled
    assert np.all(seeds < 0.5), seeds


def test_t_intervals_of_averaged_runs_cover_the_truth():
    """By the guide's recipe: of 400 intervals of 95 %, 95 ± 1.1 % (5 sigma: 5.5)."""
    share = coverage(*over_data_sets(guide.t_interval, 400, 1000))
    assert np.all(abs(share - 0.95) < 0.055), share


# The pages as users run them, and what else runs in processes of its own.


def run_python(cwd, *arguments, **env):
    """The output of Python, run as a user would run it, without a warning."""
    command = [sys.executable, "-W", "error", *arguments]
    options = {"cwd": cwd, "env": SCRIPT_ENV | env, "text": True}
    done = subprocess.run(command, timeout=600, capture_output=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def changed(script, old, new):
    assert script.count(old) == 1, old
    return script.replace(old, new)


def run_readme(folder):
    """All blocks as one script, as pasted."""
    return run_python(folder, "-c", "".join(code for code, _ in blocks_of(README)))


def run_guide(folder):
    """The blocks that need its preamble in one process, each with names of its own."""
    codes = [code for code, _ in blocks_of(GUIDE) if OWN_SCRIPT not in code]
    blocks = [code for code in codes if not code.startswith(PREAMBLE)]
    script = "".join(code for code in codes if code.startswith(PREAMBLE))
    script += "preamble = {**globals()}\n"
    for i, code in enumerate(blocks):
        (folder / f"block_{i}.py").write_text(code)
        script += f"import runpy; runpy.run_path('block_{i}.py', preamble)\n"
    return run_python(folder, "-c", script)


def shown_by(page):
    blocks = blocks_of(page)
    return "".join(output for code, output in blocks if OWN_SCRIPT not in code)


@pytest.mark.awaits(script=run_readme)
def test_the_readme_pasted_from_top_to_bottom_prints_what_it_shows(awaited):
    assert awaited == shown_by(README)


@pytest.mark.awaits(script=run_guide)
def test_each_block_of_the_guide_prints_what_it_shows_as_the_readme_does(awaited):
    assert awaited == shown_by(GUIDE)


def run_shards(folder):
    return run_python(folder, "-c", script_of(GUIDE, "addressable_shards"))


@pytest.mark.awaits(script=run_shards)
def test_the_script_of_sharded_keys_and_rows_runs(awaited):
    assert awaited == ""


def run_ranks(folder, script):
    """Run it as both of two ranks at once; return codes and error streams."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        script = changed(script, ":9876", f":{probe.getsockname()[1]}")
    options = {"cwd": folder, "env": SCRIPT_ENV, "text": True}
    options |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with contextlib.ExitStack() as ends:
        ranks = []
        for rank in "01":
            command = [sys.executable, "-c", script, rank, "2"]
            ranks.append(ends.enter_context(subprocess.Popen(command, **options)))
            ends.callback(ranks[-1].kill)  # jax.distributed catches SIGTERM
        errors = [rank.communicate(timeout=90)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], errors


def run_two_ranks(folder):
    script = script_of(GUIDE, "distributed.initialize")
    # alone: all models in one process; float32, after 1000 steps at a constant rate.
    script += "_, alone = fit_many(keys, X, y, 0.1)\n"
    script += "assert (abs(last / alone[:, -1] - 1) < 1e-4).all()\n"
    return run_ranks(folder, script)


@pytest.mark.awaits(script=run_two_ranks)
def test_fit_many_in_two_processes_equals_one(awaited):
    codes, errors = awaited
    assert codes == [0, 0], errors


def kill_a_rank(folder):
    script = script_of(GUIDE, "distributed.initialize")
    script = changed(script, "timeout_seconds=30", "timeout_seconds=3")
    death = "rank == 1 and __import__('os').kill(__import__('os').getpid(), 9)\n"
    script = changed(script, "params, losses", death + "params, losses")
    return run_ranks(folder, script)


@pytest.mark.awaits(script=kill_a_rank)
def test_a_killed_rank_ends_the_other_in_processes(awaited):
    (left, dead), (error, _) = awaited
    assert (dead, left in (0, -9)) == (-9, False)
    assert "another task died" in error


def run_on_a_memory_map(folder):
    """Peaks of memory, and chunks, of a file and of one 13 times as long."""
    # ru_maxrss would start from the peak of this process, which the child inherits.
    script = script_of(GUIDE, "mmap_mode")
    script += 'print(*(s for s in open("/proc/self/status") if "VmHWM" in s), end="")\n'
    rows, found = np.random.default_rng(0).normal(size=(300_000, 17)), []
    for copies in (1, 13):
        np.save(folder / "rows.npy", np.tile(rows.astype(np.float32), (copies, 1)))
        *chunks, peak = run_python(folder, "-c", script).splitlines()
        found.append((1024 * int(peak.split()[1]), chunks))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.awaits(script=run_on_a_memory_map)
def test_fit_on_a_memory_mapped_file_needs_memory_for_one_chunk_only(awaited):
    (short_peak, short), (long_peak, long) = awaited
    assert (len(short), len(long)) == (6, 78)
    assert float(long[-1].split()[-1]) < 1.1  # y is noise of deviation 1
    assert long_peak - short_peak < 3 * 300_000 * 17 * 4  # a quarter of what came


def kill_twice_and_resume(folder):
    """What a run saves that is killed twice, and one that is not."""
    script = changed(script_of(GUIDE, "os.replace"), "done < 2000", "done < 40_000")
    whole = changed(script, "num_steps=100", "num_steps=40_000")
    whole = changed(whole, "done += 100", "done += 40_000")
    run, chance = folder / "killed" / "run.npz", np.random.default_rng(0)
    run.parent.mkdir()
    run_python(folder, "-c", whole)

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
    with np.load(folder / "run.npz") as arrays:
        return result, dict(arrays)


@pytest.mark.awaits(script=kill_twice_and_resume)
def test_a_run_killed_at_any_moment_resumes_bit_for_bit(awaited):
    result, expected = awaited
    assert sorted(expected) == sorted(result) == ["b", "done", "key", "w"]
    for name in expected:
        np.testing.assert_array_equal(result[name], expected[name], strict=True)


def stop_where_rates_diverge(folder):
    script = script_of(GUIDE, "0.99 * best")
    rates = "jnp.geomspace(0.003, 3, 5000)[start : start + 500]"
    script = changed(script, "0.005, **options)", f"{rates}, loss=mse, **options)")
    script = changed(script, "assert start < 4500 and best < 0.3", "print(start, best)")
    start, best = run_python(folder, "-c", script).split()
    with np.load(folder / "model.npz") as model:
        return int(start), float(best), dict(model)


@pytest.mark.awaits(script=stop_where_rates_diverge)
def test_early_stopping_keeps_its_best_where_rates_diverge(awaited):
    start, best, model = awaited
    assert 0 < start < 4500
    assert best < 0.1
    assert all(np.isfinite(leaf).all() for leaf in model.values())


def run_docstrings(folder):
    script = "import doctest, jaxlin; print(*doctest.testmod(jaxlin))"
    return run_python(folder, "-c", script)


@pytest.mark.awaits(script=run_docstrings)
def test_the_docstring_examples_are_true(awaited):
    *_, failed, attempted = awaited.split()
    assert (failed, int(attempted) > 10) == ("0", True), awaited


def run_demo(folder):
    (folder / "jaxlin.py").write_text((HERE / "jaxlin.py").read_text())
    return run_python(folder, "-m", "jaxlin", PYTHONPATH="")


@pytest.mark.awaits(script=run_demo)
def test_the_file_alone_runs_the_demo(awaited):
    lines = [line.split() for line in awaited.splitlines() if line.strip()]
    assert sum(line[0] == "step" for line in lines) == 10
    table = {name: words for name, *words in lines}
    for name, truth in (("w[0]", 3), ("w[1]", 4), ("b", 5.5), ("RMSE", 0.2887)):
        mean, _, exact = map(float, table[name])
        assert_close([mean, exact], [truth, truth], 0, 0.03)
