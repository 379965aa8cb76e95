# SPDX-License-Identifier: MIT; the licence stands in full at the end of jaxlin.py.
"""Time jaxlin beside what one would use instead, on the same work, in one run.

    python bench.py                     all tables, 10 rounds, in some minutes
    python bench.py --quick             less of everything and 3 rounds, within one
    python bench.py --tables one many   some of the tables
    python bench.py --plot FILE         speed against the number of models, a picture;
                                        no tables but those that --tables names

The tables: one model; many models; features, more of them; growth with each size;
accelerator, where one overtakes the CPU.
`pip install '.[bench]'` brings the peers; the row of one that is missing says so.
`pip install '.[examples]'` brings what draws the picture. Tables go to stdout,
progress to stderr.

The rules of measurement:
  - The data are placed beforehand. The first call, which compiles, is timed apart, and
    a call ends when its result is there (jax.block_until_ready).
  - Contestants take turns, round by round, so that a disturbance meets all of them.
    Ratios are of the least times, since noise only adds; the median shows the noise.
  - All do the same work: SGD on the RMSE, in float32, rows drawn anew for each step,
    and the loss of each step kept (the plain jax.grad loop and scikit-learn keep none).
    Two minimise another loss: the rows of mse, at the same rate, and scikit-learn the
    squared error of one row at a time.
    A slow one takes fewer steps a call, as its row says; times are per step.
  - All start at zero params, and a call carries on from the last. In the end the RMSE
    over all rows, in float64, is divided by that of least squares: above TOLERANCE,
    for the worst of its models, a contestant is WRONG and shows no times.
"""

import argparse
import functools
import itertools
import os
import sys
import time
from importlib.metadata import distributions

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxlin

TOLERANCE = 1.25
FLOOR = "numba, one thread"
COLORS = ("#0072b2", "#4a90c4", "#8c5fb0", "#d55e00", "#555555")
PEERS = ("optax", "torch", "scikit-learn", "numba")


# The work, and its measurement.


def make_task(n=1000, d=2, batch=100, steps=5000, models=None):
    """Standard normal features, a target with noise, and the settings of the run."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d), np.float32)
    w = rng.standard_normal(d, np.float32) / np.sqrt(d)
    y = (X @ w + 1 + 0.3 * rng.standard_normal(n)).astype(np.float32)
    shape = () if models is None else (models,)
    params = {"w": np.zeros((*shape, d), np.float32), "b": np.zeros(shape, np.float32)}
    task = {"X": X, "y": y, "batch": batch, "rate": 0.02, "steps": steps}
    return task | {"shape": shape, "params": params}


def describe(task):
    n, d = task["X"].shape
    models = "".join(f", {s:,} models" for s in task["shape"])
    return f"n = {n:,}, d = {d}, batches of {task['batch']}{models}"


def rmse_ratio(task, w, b):
    """RMSE over all rows divided by that of least squares, for the worst model."""
    X, y = (task[name].astype(np.float64) for name in "Xy")
    w, b = np.atleast_2d(w).astype(np.float64), np.atleast_1d(b)
    # |X w + b - y| is |R (w, b, -1)| for the triangle R of a QR factorisation, however
    # many the rows; its last entry is what least squares leaves.
    R = np.linalg.qr(np.column_stack([X, np.ones_like(y), y]), mode="r")
    errors = np.linalg.norm(np.column_stack([w, b, -np.ones_like(b)]) @ R.T, axis=1)
    return float(np.max(errors) / abs(R[-1, -1]))  # NaN stays NaN


def measure(entries, rounds):
    """Run each (name, task, contestant) of entries; return a row of numbers for each.

    A contestant is a generator function of a task. It imports, prepares and places the
    data, then yields; from then on each next() is one call, which yields w and b.
    """
    rows, running = [], []
    for name, task, contestant in entries:
        print(f"  {name}", file=sys.stderr)
        row, run = {"name": name, "steps": task["steps"]}, contestant(task)
        rows.append(row)
        try:
            next(run)
        except ImportError as error:
            row["note"] = f"skipped: {error}"
            continue
        row["first s"], _ = timed(run)
        running.append((row, task, run, []))
    for _ in range(rounds):
        for *_, run, calls in running:
            calls.append(timed(run))
    for row, task, _, calls in running:
        seconds, params = zip(*calls, strict=True)
        row["RMSE ratio"] = rmse_ratio(task, *params[-1])
        if not row["RMSE ratio"] <= TOLERANCE:
            row["note"] = f"WRONG: RMSE {row['RMSE ratio']:.3g} x least squares"
            continue
        us = 1e6 / (task["steps"] * np.prod(task["shape"]))
        row["least us"] = us * min(seconds)
        row["median us"] = us * float(np.median(seconds))
    least = {row["name"]: row["least us"] for row in rows if "least us" in row}
    for column, other in (("/ first", rows[0]["name"]), ("/ numba", FLOOR)):
        for row in rows:
            if other in least and "least us" in row:
                row[column] = row["least us"] / least[other]
    return rows


def timed(run):
    began = time.perf_counter()
    result = next(run)
    return time.perf_counter() - began, result


def show(title, rows):
    """Print rows, which are dicts of a name and either a note or numbers by column."""
    columns = list(dict.fromkeys(itertools.chain(*rows)))
    columns = [column for column in columns if column not in ("name", "note")]
    print(f"\n{title}\n{'':32}" + "".join(f"{column:>11}" for column in columns))
    for row in rows:
        cells = "".join(f"{as_text(row.get(column)):>11}" for column in columns)
        print(f"{row['name']:32}" + ("  " + row["note"] if "note" in row else cells))


def as_text(number):
    if isinstance(number, float) and number < 100:
        return f"{number:#.3g}"
    return "" if number is None else f"{number:,.0f}"


# The contestants.


def jaxlin_sgd(task, all_cores=False, loss=jaxlin.rmse):
    train = jaxlin.fit_many if task["shape"] else jaxlin.fit
    options = {"num_steps": task["steps"], "batch_size": task["batch"], "loss": loss}
    X, y, keys, params = place(task, all_cores)
    yield
    for start in itertools.count(0, task["steps"]):
        result = train(keys, X, y, task["rate"], params=params, start=start, **options)
        params, _ = jax.block_until_ready(result)
        yield params["w"], params["b"]


def own_rmse(params, X, y):
    """As one writes it oneself."""
    return jnp.sqrt(jnp.mean((X @ params["w"] + params["b"] - y) ** 2))


def jaxlin_own_jit(task):
    """A Python loop over the pieces; each call takes the same keys, made beforehand."""

    def body(params, key, X, y):
        batch = jaxlin.sample_batch(key, X, y, task["batch"])
        return jaxlin.step(params, *batch, task["rate"])

    body = jax.jit(jax.vmap(body, (0, 0, None, None)) if task["shape"] else body)
    X, y, _, params = place(task)
    keys = list(jax.random.split(jax.random.key(0), (task["steps"], *task["shape"])))
    yield
    while True:
        losses = []
        for key in keys:
            params, loss = body(params, key, X, y)
            losses.append(loss)
        jax.block_until_ready(losses)
        yield params["w"], params["b"]


def optax_scan(task, all_cores=False):
    """The same as one would write it with optax: a scan, and randint for the rows."""
    import optax

    optimiser = optax.sgd(task["rate"])

    def train(key, start, params, X, y):
        def body(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (task["batch"],), 0, len(X))
            value, gradient = jax.value_and_grad(own_rmse)(params, X[rows], y[rows])
            updates, state = optimiser.update(gradient, state)
            return (optax.apply_updates(params, updates), state), value

        keys = jax.random.split(jax.random.fold_in(key, start), task["steps"])
        (params, _), losses = jax.lax.scan(body, (params, optimiser.init(params)), keys)
        return params, losses

    mapped = jax.vmap(train, (0, None, 0, None, None)) if task["shape"] else train
    train = jax.jit(mapped)
    X, y, keys, params = place(task, all_cores)
    yield
    for start in itertools.count():
        params, _ = jax.block_until_ready(train(keys, start, params, X, y))
        yield params["w"], params["b"]


def place(task, all_cores=False):
    """X, y, keys and zero params: on one device, or split by model over CPU cores."""
    shared = split = None  # where JAX puts what nobody has placed
    if all_cores:
        devices = jax.devices("cpu")
        # As many of them as divide the models evenly.
        count = max(k for k in range(1, len(devices) + 1) if task["shape"][0] % k == 0)
        mesh = Mesh(devices[:count], ("s",))  # of Auto axes
        shared = NamedSharding(mesh, PartitionSpec())
        split = NamedSharding(mesh, PartitionSpec("s"))
    keys = jax.random.split(jax.random.key(0), task["shape"])
    data = jax.device_put((task["X"], task["y"]), shared)
    of_models = jax.device_put((keys, task["params"]), split)
    return jax.block_until_ready((*data, *of_models))


def plain_loop(task):
    """The loop one writes first: a jitted loss, its gradient taken outside of jit."""

    loss = jax.jit(own_rmse)
    X, y, params = task["X"], task["y"], dict(task["params"])
    rng = np.random.RandomState(0)
    yield
    while True:
        for _ in range(task["steps"]):
            rows = rng.randint(len(X), size=task["batch"])
            gradient = jax.grad(loss)(params, X[rows], y[rows])
            for name in params:
                params[name] = params[name] - task["rate"] * np.asarray(gradient[name])
        yield params["w"], params["b"]


def torch_sgd(task):
    """Many models by one backward call: the gradient of the sum of their losses."""
    import torch

    # Arrays as small as those of one model gain nothing from more threads.
    torch.set_num_threads(os.cpu_count() if task["shape"] else 1)
    X, y = torch.tensor(task["X"]), torch.tensor(task["y"])
    w, b = (torch.tensor(p, requires_grad=True) for p in task["params"].values())
    optimiser = torch.optim.SGD([w, b], lr=task["rate"])
    yield
    while True:
        losses = []
        for _ in range(task["steps"]):
            rows = torch.randint(len(X), (*task["shape"], task["batch"]))
            optimiser.zero_grad()
            residuals = (X[rows] * w[..., None, :]).sum(-1) + b[..., None] - y[rows]
            loss = residuals.square().mean(-1).sqrt()
            loss.sum().backward()
            optimiser.step()
            losses.append(loss.detach())
        yield w.detach(), b.detach()


def sklearn_sgd(task):
    """As many sample gradients, but each its own step, and of the squared error."""
    from sklearn.linear_model import SGDRegressor

    passes = task["steps"] * task["batch"] // len(task["X"])
    options = {"penalty": None, "tol": None, "eta0": 0.001, "warm_start": True}
    model = SGDRegressor(learning_rate="constant", max_iter=passes, **options)
    yield
    while True:
        model.fit(task["X"], task["y"])
        yield model.coef_, model.intercept_[0]


def numba_loop(task, all_cores=False):
    X, w, b = task["X"], *(np.copy(p) for p in task["params"].values())
    w, b = np.atleast_2d(w), np.atleast_1d(b)
    # XLA compiles every shape in; here that pays for few features, whose loops unroll.
    few = X.shape[1] if X.shape[1] < 8 else None
    train_all = compile_native(task["batch"], few, all_cores)
    states = np.random.default_rng(0).integers(1, 2**63, len(b), np.uint64)
    yield
    while True:
        losses = np.empty((len(b), task["steps"]), np.float32)
        train_all(X, task["y"], w, b, states, np.float32(task["rate"]), losses)
        yield w, b


@functools.cache
def compile_native(m, few, parallel):
    """By hand in native code, with a generator, xorshift64*, for each model."""
    import numba

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

    return train_all


jaxlin_all_cores = functools.partial(jaxlin_sgd, all_cores=True)
jaxlin_mse = functools.partial(jaxlin_sgd, loss=jaxlin.mse)
optax_all_cores = functools.partial(optax_scan, all_cores=True)
numba_all_cores = functools.partial(numba_loop, all_cores=True)


# The tables. Each yields a title and rows for `show`, as often as it likes.


def one_model(task):
    slow = task | {"steps": 300}
    return [
        ("jaxlin", task, jaxlin_sgd),
        ("jaxlin, mse: another loss", task, jaxlin_mse),
        ("jaxlin, own jit", slow, jaxlin_own_jit),
        ("optax in a scan", task, optax_scan),
        ("plain loop, jax.grad", slow, plain_loop),
        ("PyTorch loop", slow, torch_sgd),
        # A step of its own is a row: here one is as many as a batch has.
        ("scikit-learn SGDRegressor", task, sklearn_sgd),
        (FLOOR, task, numba_loop),
    ]


def table_one(quick, rounds):
    task = make_task()
    yield f"One model: {describe(task)}", measure(one_model(task), rounds)


def table_many(quick, rounds):
    task = make_task(steps=500, models=64 if quick else 1024)
    slow = task | {"steps": 100}
    entries = [
        ("jaxlin, all cores", task, jaxlin_all_cores),
        ("jaxlin, one device", task, jaxlin_sgd),
        ("one device, mse: another loss", task, jaxlin_mse),
        ("optax under vmap, one device", task, optax_scan),
        ("optax under vmap, all cores", task, optax_all_cores),
        ("PyTorch on the CPU", slow, torch_sgd),
        (FLOOR, task, numba_loop),
        ("numba, all cores", task, numba_all_cores),
    ]
    yield f"Many models: {describe(task)}", measure(entries, rounds)


def table_features(quick, rounds):
    for d in () if quick else (32, 256):
        # scikit-learn takes whole passes over the rows: here 64.
        task = make_task(n=10_000, d=d, batch=256, steps=2500)
        yield (
            f"More features, one model: {describe(task)}",
            measure(one_model(task), rounds),
        )
    for d in (12,) if quick else (12, 16, 32):
        task = make_task(d=d, steps=500, models=64)
        entries = [
            ("jaxlin, one device", task, jaxlin_sgd),
            ("optax under vmap, one device", task, optax_scan),
            (FLOOR, task, numba_loop),
        ]
        yield f"More features: {describe(task)}", measure(entries, rounds)


def table_growth(quick, rounds):
    axes = {
        "models": (1, 4, 16, 64, 256, 1024, 4096, 16_384),
        "steps": (5000, 20_000, 80_000, 200_000),
        "n": (1000, 10_000, 100_000, 1_000_000),
        "d": (2, 8, 32, 128, 512),
        "batch": (10, 32, 100, 316, 1000),
    }
    for axis, values in axes.items():
        entries = []
        for value in values[:2] if quick else values:
            steps = min(5000, 2**18 // value) if axis == "models" else 5000
            task = make_task(**{"steps": steps, axis: value})
            entries.append((f"{axis} = {value:,}", task, jaxlin_sgd))
        yield f"Growth with {axis}: jaxlin on one device", measure(entries, rounds)


def table_accelerator(quick, rounds):
    title = "Where an accelerator overtakes the CPU, by the number of models"
    if jax.default_backend() == "cpu":
        yield title, [{"name": "accelerator", "note": "skipped: there is none"}]
        return
    series = {"accelerator": jaxlin_sgd, "CPU": jaxlin_all_cores}
    yield title, by_models(series, [4**k for k in range(6 if quick else 10)], rounds)


def by_models(series, counts, rounds):
    """Rows of each contestant of series, measured for each of counts on its own."""
    rows = []
    for count in counts:
        # Few steps for many models, but all calls together reach least squares.
        task = make_task(steps=min(5000, max(40, 2**18 // count)), models=count)
        entries = [(name, task, run) for name, run in series.items()]
        rows += [{"models": count} | row for row in measure(entries, rounds)]
    return rows


def plot(file, quick, rounds):
    """Model-steps a second against the number of models, drawn to `file`."""
    import matplotlib.figure

    style = {"font.size": 13, "axes.grid": True, "grid.color": "#dddddd"}
    matplotlib.rcParams.update(style)
    series = {
        "jaxlin, all cores": jaxlin_all_cores,
        "jaxlin, one device": jaxlin_sgd,
        "jaxlin, own jit": jaxlin_own_jit,
        "optax under vmap": optax_scan,
        FLOOR: numba_loop,
    }
    counts = [4**power for power in range(4 if quick else 8)]
    rows = by_models(series, counts, min(rounds, 4))
    yield f"Speed by the number of models: {describe(make_task())}", rows

    figure = matplotlib.figure.Figure(figsize=(8.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, (name, color) in enumerate(zip(series, COLORS, strict=True)):
        speeds = [1e6 / row.get("least us", np.nan) for row in rows[i :: len(series)]]
        axes.loglog(counts, speeds, "o-", color=color, linewidth=2.5, label=name)
    # Names in the order in which the lines end.
    lines = sorted(axes.lines, key=lambda line: line.get_ydata()[-1], reverse=True)
    figure.legend(handles=lines, loc="outside right upper", frameon=False)
    axes.set(xlabel="models trained at once", ylabel="model-steps a second")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    figure.savefig(file, dpi=160)


TABLES = {
    "one": table_one,
    "many": table_many,
    "features": table_features,
    "growth": table_growth,
    "accelerator": table_accelerator,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    parser.add_argument("--tables", nargs="+", choices=TABLES, help="some of them")
    parser.add_argument("--plot", metavar="FILE", help="draw speed by models to FILE")
    options = parser.parse_args()
    names = options.tables or ([] if options.plot else list(TABLES))
    quick, rounds = options.quick, 3 if options.quick else 10
    sys.stdout.reconfigure(line_buffering=True)
    # One CPU device a core, for keys split over them. It was measured not to slow
    # what runs on one of them: they share one pool of threads.
    jax.config.update("jax_num_cpu_devices", os.cpu_count())

    machine = {"jax": jax.print_environment_info(return_string=True)}
    machine |= {d.name: d.version for d in distributions() if d.name in PEERS}
    print("\n".join(f"{name:14}{value}" for name, value in machine.items()))
    tables = [TABLES[name] for name in TABLES if name in names]
    tables += [functools.partial(plot, options.plot)] if options.plot else []
    for table in tables:
        jax.clear_caches()  # so that first calls compile
        for title, rows in table(quick, rounds):
            show(title, rows)


if __name__ == "__main__":
    main()
