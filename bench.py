# SPDX-License-Identifier: MIT; the licence stands in full at the end of jaxlin.py.
"""Time jaxlin beside what one would use instead, on the same work, in one run.

    python bench.py                 everything, 10 rounds, in some minutes
    python bench.py --quick         less of everything and 3 rounds, within one
    python bench.py --tables AB     some of the tables
    python bench.py --json FILE     the numbers, to FILE as well

A is one model, B many models, C wider data, D growth with each size, fresh processes
and memory, E where jaxlin loses, F where an accelerator overtakes the CPU.
`pip install '.[bench]'` brings the peers; without one, its rows say so. Tables go to
stdout, progress to stderr.

The rules of measurement:
  - Placing the data, the first call (which compiles) and running are timed apart, and
    a call ends when its result is there (jax.block_until_ready).
  - Contestants take turns, round by round, so that a disturbance meets all of them.
    Ratios are of the least times, since noise only adds; the median shows the noise.
  - All do the same work: SGD on the RMSE, in float32, rows drawn anew for each step,
    and the loss of each step kept (the plain jax.grad loop and scikit-learn keep none).
    A slow one takes fewer steps a call, as its row says; times are per step.
  - All start at zero params, and a call carries on from the last. In the end the RMSE
    over all rows, in float64, is divided by that of least squares: above TOLERANCE,
    for the worst of its models, a contestant is WRONG and shows no times.
"""

import argparse
import functools
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxlin

TOLERANCE = 1.25
FLOOR = "numba, one thread"


# The work, and its measurement.


def make_task(n=1000, d=2, batch=100, steps=5000, models=None):
    """Standard normal features, a target with noise, and the settings of the run."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d), np.float32)
    w = rng.standard_normal(d, np.float32) / np.sqrt(d)
    y = (X @ w + 1 + 0.3 * rng.standard_normal(n)).astype(np.float32)
    task = {"X": X, "y": y, "batch": batch, "rate": 0.02, "steps": steps}
    return task | {"models": models}


def rmse_ratio(task, w, b):
    """RMSE over all rows divided by that of least squares, for the worst model."""
    X, y = (task[name].astype(np.float64) for name in "Xy")
    w, b = np.atleast_2d(w).astype(np.float64), np.atleast_1d(b)
    # |X w + b - y| is |R (w, b, -1)| for the triangle R of a QR factorisation, however
    # many the rows; its last entry is what least squares leaves.
    R = np.linalg.qr(np.column_stack([X, np.ones_like(y), y]), mode="r")
    errors = np.linalg.norm(np.column_stack([w, b, -np.ones_like(b)]) @ R.T, axis=1)
    return float(np.max(errors) / abs(R[-1, -1]))  # NaN stays NaN


def measure(title, entries, rounds):
    """Run each (name, task, contestant) of entries; return a dict of numbers for each.

    A contestant is a generator function of a task. It imports and prepares, yields;
    places the data, yields; then each next() is one call, which yields w and b.
    """
    report(f"{title}, first calls")
    rows, running = [], []
    for name, task, contestant in entries:
        models = task["models"] or 1
        row = {"contestant": name, "steps": task["steps"], "models": models}
        rows.append(row)
        run = contestant(task)
        try:
            next(run)
        except (ImportError, ValueError) as error:
            row["skipped"] = str(error).split(". ")[0]
            continue
        row["transfer_s"], _ = timed(run)
        row["first_s"], _ = timed(run)
        report(f"  {name}: {row['first_s']:.2f} s")
        running.append((row, task, run, []))
    report(f"  {rounds} rounds:", end="")
    for index in range(rounds):
        results = []
        for *_, run, seconds in running:
            elapsed, params = timed(run)
            seconds.append(elapsed)
            results.append(params)
        report(f" {index + 1}", end="")
    report("")
    for (row, task, _, seconds), params in zip(running, results, strict=True):
        row["rmse_ratio"] = rmse_ratio(task, *params)
        if row["rmse_ratio"] <= TOLERANCE:
            us = 1e6 / (row["steps"] * row["models"])
            row["least_us"] = us * min(seconds)
            row["median_us"] = us * statistics.median(seconds)
    return rows


def timed(run):
    began = time.perf_counter()
    result = next(run)
    return time.perf_counter() - began, result


def report(line, end="\n"):
    print(line, end=end, file=sys.stderr, flush=True)


# The contestants.


def jaxlin_sgd(task, devices=None, impl=None):
    keys = make_keys(task, impl)
    train = jaxlin.fit if task["models"] is None else jaxlin.fit_many
    options = {"num_steps": task["steps"], "batch_size": task["batch"]}
    place(task, keys, devices)  # compiles what is then only a transfer
    yield
    X, y, keys, params = place(task, keys, devices)
    yield
    for start in itertools.count(0, task["steps"]):
        result = train(keys, X, y, task["rate"], params=params, start=start, **options)
        params, _ = jax.block_until_ready(result)
        yield params["w"], params["b"]


def jaxlin_philox(task):
    return jaxlin_sgd(task, impl="philox2x32")


def optax_scan(task, devices=None):
    """The same as one would write it with optax: a scan, and randint for the rows."""
    import optax

    optimiser = optax.sgd(task["rate"])

    def loss(params, X, y):
        return jnp.sqrt(jnp.mean((X @ params["w"] + params["b"] - y) ** 2))

    def train(key, start, params, X, y):
        def body(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (task["batch"],), 0, len(X))
            value, gradient = jax.value_and_grad(loss)(params, X[rows], y[rows])
            updates, state = optimiser.update(gradient, state)
            return (optax.apply_updates(params, updates), state), value

        keys = jax.random.split(jax.random.fold_in(key, start), task["steps"])
        (params, _), losses = jax.lax.scan(body, (params, optimiser.init(params)), keys)
        return params, losses

    if task["models"] is not None:
        train = jax.vmap(train, in_axes=(0, None, 0, None, None))
    train, keys = jax.jit(train), make_keys(task)
    place(task, keys, devices)  # compiles what is then only a transfer
    yield
    X, y, keys, params = place(task, keys, devices)
    yield
    for start in itertools.count():
        params, _ = jax.block_until_ready(train(keys, start, params, X, y))
        yield params["w"], params["b"]


def make_keys(task, impl=None):
    key, s = jax.random.key(0, impl=impl), task["models"]
    return jax.block_until_ready(key if s is None else jax.random.split(key, s))


def place(task, keys, devices):
    """X, y, keys and zero params: on the one device, or split by model over several."""
    devices = devices or jax.devices()[:1]
    shared = split = devices[0]
    shape = () if task["models"] is None else (task["models"],)
    if len(devices) > 1:
        # As many of the devices as divide the models evenly.
        count = max(k for k in range(1, len(devices) + 1) if task["models"] % k == 0)
        mesh = jax.make_mesh(
            (count,), ("s",), axis_types=(AxisType.Auto,), devices=devices[:count]
        )
        shared = NamedSharding(mesh, PartitionSpec())
        split = NamedSharding(mesh, PartitionSpec("s"))
    w = np.zeros((*shape, task["X"].shape[1]), np.float32)
    params = {"w": w, "b": np.zeros(shape, np.float32)}
    data = jax.device_put((task["X"], task["y"]), shared)
    return jax.block_until_ready((*data, *jax.device_put((keys, params), split)))


def plain_loop(task):
    """The loop one writes first: a jitted loss, its gradient taken outside of jit."""

    @jax.jit
    def loss(params, X, y):
        return jnp.sqrt(jnp.mean((X @ params["w"] + params["b"] - y) ** 2))

    X, y = task["X"], task["y"]
    params = {"w": np.zeros(X.shape[1], np.float32), "b": np.float32(0)}
    rng = np.random.RandomState(0)
    yield
    yield
    while True:
        for _ in range(task["steps"]):
            rows = rng.randint(len(X), size=task["batch"])
            gradient = jax.grad(loss)(params, X[rows], y[rows])
            for name in params:
                params[name] = params[name] - task["rate"] * np.asarray(gradient[name])
        yield params["w"], params["b"]


def numpy_loop(task):
    X, y, m, rate = task["X"], task["y"], task["batch"], np.float32(task["rate"])
    w, b = np.zeros(X.shape[1], np.float32), np.float32(0)
    rng = np.random.RandomState(0)
    yield
    yield
    while True:
        losses = np.empty(task["steps"], np.float32)
        for i in range(task["steps"]):
            rows = rng.randint(len(X), size=m)
            X_batch = X[rows]
            residuals = X_batch @ w + b - y[rows]
            losses[i] = loss = np.sqrt(residuals @ residuals / np.float32(m))
            scale = rate / (np.float32(m) * loss)
            w = w - scale * (residuals @ X_batch)
            b = b - scale * residuals.sum()
        yield w, b


def numpy_einsum(task):
    """All models at once: the closed-form gradient, with an axis of s in front."""
    X, y, m, s = task["X"], task["y"], task["batch"], task["models"]
    w, b = np.zeros((s, X.shape[1]), np.float32), np.zeros(s, np.float32)
    rng = np.random.default_rng(0)
    yield
    yield
    while True:
        losses = np.empty((task["steps"], s), np.float32)
        for i in range(task["steps"]):
            rows = rng.integers(len(X), size=(s, m), dtype=np.int32)
            X_batch = X[rows]
            residuals = np.einsum("smd,sd->sm", X_batch, w) + b[:, None] - y[rows]
            losses[i] = loss = np.sqrt(np.mean(residuals**2, axis=1))
            scale = np.float32(task["rate"]) / (np.float32(m) * loss)
            w = w - scale[:, None] * np.einsum("smd,sm->sd", X_batch, residuals)
            b = b - scale * residuals.sum(axis=1)
        yield w, b


def torch_loop(task):
    import torch

    torch.set_num_threads(1)  # such small arrays gain nothing from more
    yield
    X, y = torch.from_numpy(task["X"]), torch.from_numpy(task["y"])
    yield
    w = torch.zeros(X.shape[1], requires_grad=True)
    b = torch.zeros((), requires_grad=True)
    optimiser = torch.optim.SGD([w, b], lr=task["rate"])
    while True:
        losses = []
        for _ in range(task["steps"]):
            rows = torch.randint(len(X), (task["batch"],))
            optimiser.zero_grad()
            loss = (X[rows] @ w + b - y[rows]).square().mean().sqrt()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        yield w.detach(), b.detach()


def torch_func(task):
    """All models at once: torch.func.vmap over the gradient of a functional loss."""
    import torch

    torch.set_num_threads(os.cpu_count())
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    device = device if torch.cuda.is_available() else "cpu"
    s, size = task["models"], (task["models"], task["batch"])

    def loss(params, X, y):
        return (X @ params["w"] + params["b"] - y).square().mean().sqrt()

    gradient_and_loss = torch.func.vmap(torch.func.grad_and_value(loss))
    yield
    X, y = (torch.from_numpy(task[name]).to(device) for name in "Xy")
    params = {"w": torch.zeros((s, X.shape[1])), "b": torch.zeros(s)}
    params = {name: value.to(device) for name, value in params.items()}
    yield
    while True:
        losses = []
        for _ in range(task["steps"]):
            rows = torch.randint(len(X), size, device=device)
            gradient, value = gradient_and_loss(params, X[rows], y[rows])
            params = {k: params[k] - task["rate"] * gradient[k] for k in params}
            losses.append(value)
        yield params["w"].cpu(), params["b"].cpu()


def sklearn_sgd(task):
    """As many sample gradients, but each its own step, and of the squared error."""
    from sklearn.linear_model import SGDRegressor

    X, y = task["X"], task["y"]
    model = SGDRegressor(
        penalty=None,
        learning_rate="constant",
        eta0=0.001,
        max_iter=task["steps"] * task["batch"] // len(X),
        tol=None,
    )
    yield
    yield
    while True:
        model.fit(X, y)
        yield model.coef_, model.intercept_[0]


def numba_loop(task, parallel=False):
    """By hand in native code, with a generator, xorshift64*, for each model."""
    import numba

    X, y, m, s = task["X"], task["y"], task["batch"], task["models"] or 1
    # XLA compiles every shape in; here that pays for few features, whose loops unroll.
    few = X.shape[1] if X.shape[1] < 8 else None

    @numba.njit
    def train(X, y, w, b, state, rate, losses):
        n, d = np.uint64(X.shape[0]), X.shape[1] if few is None else few
        gradient, count = np.empty(d, np.float32), np.float32(m)
        for i in range(len(losses)):
            gradient[:] = 0
            total = squares = np.float32(0)
            for _ in range(m):
                state ^= state >> np.uint64(12)
                state ^= state << np.uint64(25)
                state ^= state >> np.uint64(27)
                bits = (state * np.uint64(0x2545F4914F6CDD1D)) >> np.uint64(32)
                row = (bits * n) >> np.uint64(32)
                residual = b - y[row]
                for k in range(d):
                    residual += X[row, k] * w[k]
                for k in range(d):
                    gradient[k] += residual * X[row, k]
                total += residual
                squares += residual * residual
            losses[i] = loss = np.sqrt(squares / count)
            scale = rate / (count * loss)
            for k in range(d):
                w[k] -= scale * gradient[k]
            b -= scale * total
        return b, state

    @numba.njit(parallel=parallel)
    def train_all(X, y, w, b, states, rate, losses):
        for i in numba.prange(len(b)):
            b[i], states[i] = train(X, y, w[i], b[i], states[i], rate, losses[i])

    w, b = np.zeros((s, X.shape[1]), np.float32), np.zeros(s, np.float32)
    states = np.random.default_rng(0).integers(1, 2**63, s, np.uint64)
    yield
    yield
    while True:
        losses = np.empty((s, task["steps"]), np.float32)
        train_all(X, y, w, b, states, np.float32(task["rate"]), losses)
        yield w, b


def numpy_lstsq(task):
    A = np.column_stack([task["X"], np.ones_like(task["y"])])
    yield
    yield
    while True:
        *w, b = np.linalg.lstsq(A, task["y"])[0]
        yield w, b


# The tables. Each prints itself and returns its rows.


def one_model(task):
    slow = task | {"steps": 200}
    return [
        ("jaxlin", task, jaxlin_sgd),
        ("jaxlin, philox2x32 keys", task, jaxlin_philox),
        ("optax in a scan", task, optax_scan),
        ("plain loop, jax.grad", slow, plain_loop),
        ("plain loop, NumPy", task, numpy_loop),
        ("PyTorch loop", slow, torch_loop),
        ("scikit-learn SGDRegressor", task, sklearn_sgd),
        (FLOOR, task, numba_loop),
    ]


def table_a(quick, rounds):
    task = make_task()
    rows = measure("A", one_model(task), rounds)
    show(f"A. One model: {describe(task)}", rows)
    print("scikit-learn steps row by row: its step here is as many rows as a batch.")
    return rows


def table_b(quick, rounds):
    task = make_task(steps=500, models=64 if quick else 1024)
    slow = task | {"steps": 100}
    cores = {"devices": jax.devices("cpu")}
    entries = [
        ("jaxlin, all cores", task, functools.partial(jaxlin_sgd, **cores)),
        ("jaxlin, one device", task, jaxlin_sgd),
        ("jaxlin, one device, philox2x32", task, jaxlin_philox),
        ("optax under vmap, one device", task, optax_scan),
        ("optax under vmap, all cores", task, functools.partial(optax_scan, **cores)),
        ("torch.func under vmap", slow, torch_func),
        ("NumPy einsum", slow, numpy_einsum),
        (FLOOR, task, numba_loop),
        ("numba, all cores", task, functools.partial(numba_loop, parallel=True)),
    ]
    rows = measure("B", entries, rounds)
    show(f"B. {task['models']:,} models: {describe(task)}", rows)
    return rows


def table_c(quick, rounds):
    tables = {}
    for d in (32,) if quick else (32, 256):
        # scikit-learn takes whole passes over the rows: here 64.
        task = make_task(n=10_000, d=d, batch=256, steps=2500)
        rows = measure(f"C, d = {d}", one_model(task), rounds)
        show(f"C. Wider: {describe(task)}", rows)
        tables[f"d = {d}"] = rows
    return tables


def table_d(quick, rounds, fresh):
    axes = {
        "steps": (5000, 20_000, 80_000, 200_000),
        "n": (1000, 10_000, 100_000, 1_000_000),
        "d": (2, 8, 32, 128, 512),
        "batch": (10, 32, 100, 316, 1000),
        "models": (1, 4, 16, 64, 256, 1024, 4096, 16_384),
    }
    flat_from = {"steps": 5000, "models": 1024}
    if quick:
        axes = {axis: axes[axis][:2] for axis in flat_from}
    tables = dict(fresh)
    for axis, values in axes.items():
        entries = {}
        for value in values:
            steps = min(5000, 2**18 // value) if axis == "models" else 5000
            task = make_task(**{"steps": steps, axis: value})
            entries[value] = (f"{axis} = {value:,}", task, jaxlin_sgd)
        rows = measure(f"D, {axis}", entries.values(), rounds)
        show(f"D. Growth with {axis}: jaxlin on one device", rows)
        tables[axis] = rows
        least = {v: row.get("least_us") for v, row in zip(entries, rows, strict=True)}
        first, last = least.get(flat_from.get(axis)), rows[-1].get("least_us")
        if first and last:
            ratio = tables[f"{axis}, last to first"] = last / first
            print(f"last / {axis} = {flat_from[axis]:,}: {ratio:.2f}, where 1 is flat")
    print("\nD. A fresh process: seconds, the fastest of its runs")
    print(
        "compilation cache   start and import  first call  second call  to first result"
    )
    for name, row in fresh["first_result"].items():
        print(f"{name:20}{row['import']:16.2f}{row['first']:12.2f}", end="")
        print(f"{row['second']:13.4f}{row['total']:17.2f}")
    memory = "\nD. Peak memory of {models:,} models x {steps:,} steps: {peak_mb:.0f} MB"
    memory += ", {before_mb:.0f} MB of it before the first call"
    print(memory.format(**fresh["memory"]))
    return tables


def table_e(quick, rounds):
    task = make_task()
    once = task | {"steps": 1}
    entries = [("jaxlin", task, jaxlin_sgd), ("numpy.linalg.lstsq", once, numpy_lstsq)]
    rows = measure("E", entries, rounds)
    for row in rows:
        for us in {"least_us", "median_us"} & row.keys():
            row[us] *= row["steps"]
    show(f"E. Where jaxlin loses: all of one problem, {describe(task)}", rows)
    return rows


def table_f(quick, rounds):
    if jax.default_backend() == "cpu":
        print("\nF. Where the accelerator overtakes the CPU: skipped, there is none")
        return []
    places = {"device": jax.devices()[:1], "CPU": jax.devices("cpu")}
    entries = []
    for models in (4**power for power in range(6 if quick else 10)):
        task = make_task(steps=max(16, min(1000, 2**20 // models)), models=models)
        for name, devices in places.items():
            run = functools.partial(jaxlin_sgd, devices=devices)
            entries.append((f"{models:,} models, {name}", task, run))
    rows = measure("F", entries, rounds)
    print("\nF. Many models: thousands of model-steps a second; us per step of all")
    print("   models      device         CPU   device us      CPU us")
    overtakes = None  # from which count on the device is always faster
    for device, cpu in zip(rows[::2], rows[1::2], strict=True):
        models = device["models"]
        us = [row.get("least_us", math.nan) for row in (device, cpu)]
        overtakes = (overtakes or models) if us[0] < us[1] else None
        print(f"{models:9,}{1e3 / us[0]:12,.0f}{1e3 / us[1]:12,.0f}", end="")
        print(f"{us[0] * models:12,.1f}{us[1] * models:12,.1f}")
    print(f"The device overtakes the CPU at: {overtakes or 'none of these'} models")
    return rows


def describe(task):
    n, d = task["X"].shape
    return f"n = {n:,}, d = {d}, batches of {task['batch']}, {task['steps']:,} steps"


def show(title, rows):
    least = {row["contestant"]: row.get("least_us") for row in rows}
    against = [least[rows[0]["contestant"]], least.get(FLOOR)]
    print(f"\n{title}\n{'':31}  steps   place  first      least     median", end="")
    print(f"  / first          RMSE\n{'':31} a call      ms call s", end="")
    print("         us         us      row  / numba  ratio")
    for row in rows:
        name, us = row["contestant"], row.get("least_us")
        if "skipped" in row:
            print(f"{name:31}  skipped: {row['skipped']}")
        elif us is None:
            print(f"{name:31}  WRONG: RMSE {row['rmse_ratio']:.3g} x least squares")
        else:
            ratios = [us / other if other else 0 for other in against]
            first, floor = (
                f"{x:,.0f}" if x >= 100 else f"{x:.3g}" if x else "" for x in ratios
            )
            print(f"{name:31}{row['steps']:7,}{1e3 * row['transfer_s']:8.2f}", end="")
            print(f"{row['first_s']:7.2f}{us:11,.3f}{row['median_us']:11,.3f}", end="")
            print(f"{first:>9}{floor:>9}{row['rmse_ratio']:7.2f}")


# Fresh processes.


def fresh_processes(quick):
    """Time to the first result without and with a compilation cache; peak memory."""
    report("D, fresh processes")
    runs = {name: [] for name in ("none", "empty", "filled before")[quick:]}
    for _ in range(1 if quick else 3):
        with tempfile.TemporaryDirectory() as cache:
            settings = {
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }
            for name, rows in runs.items():
                unused = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
                chosen = unused if name == "none" else settings
                rows.append(in_child({"steps": 1000}, chosen))
    sizes = {"models": 256 if quick else 4096, "steps": 100 if quick else 1000}
    memory = sizes | in_child(sizes, {})
    best = {k: min(v, key=lambda row: row["total"]) for k, v in runs.items()}
    return {"first_result": best, "memory": memory}


def in_child(sizes, settings):
    """What fresh_process prints in a Python process of its own."""
    code = f"import bench; bench.fresh_process({time.time()}, {sizes})"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=pathlib.Path(__file__).parent,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(found.stdout)


def fresh_process(launched, sizes):
    import resource

    def peak_mb():
        """Of the accelerator's own memory, where it counts that."""
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resident *= 1 if sys.platform == "darwin" else 1024
        counted = jax.local_devices()[0].memory_stats() or {}
        return counted.get("peak_bytes_in_use", resident) / 2**20

    row = {"import": time.time() - launched}
    run = jaxlin_sgd(make_task(**sizes))
    next(run)
    next(run)
    row["before_mb"] = peak_mb()
    row["first"], _ = timed(run)
    row["total"] = time.time() - launched
    row["peak_mb"] = peak_mb()
    row["second"], _ = timed(run)
    print(json.dumps(row))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    parser.add_argument("--tables", default="ABCDEF", help="some of ABCDEF")
    parser.add_argument("--json", metavar="FILE", help="write the numbers to FILE too")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    quick, rounds = options.quick, 3 if options.quick else 10
    # First of all: on Linux a child's peak memory starts at that of its parent, which
    # is still small, and the accelerator's memory is still free.
    fresh = fresh_processes(quick) if "D" in options.tables else None
    # One CPU device a core, for keys split over them. It was measured not to slow
    # what runs on one of them: they share one pool of threads.
    jax.config.update("jax_num_cpu_devices", os.cpu_count())

    machine = {
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "rounds": rounds,
    }
    for name in ("jax", "jaxlib", "numpy", "optax", "torch", "scikit-learn", "numba"):
        try:
            machine[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            machine[name] = "not installed"
    print("\n".join(f"{name:14}{value}" for name, value in machine.items()))
    print(
        "\nus: per step, and per model where there are many. Ratios are of the least;"
    )
    print(
        f"RMSE ratio: to that of least squares, WRONG above {TOLERANCE}. A first call"
    )
    print("compiles what no row above it in the same table did.")

    tables = {
        "A": table_a,
        "B": table_b,
        "C": table_c,
        "D": functools.partial(table_d, fresh=fresh),
        "E": table_e,
        "F": table_f,
    }
    results = {}
    for name in sorted(set(options.tables) & tables.keys()):
        jax.clear_caches()  # so that first calls compile
        results[name] = tables[name](quick, rounds)
    if options.json:
        text = json.dumps({"machine": machine, "tables": results}, indent=1)
        pathlib.Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
