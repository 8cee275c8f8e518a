"""Speed, measured side by side: what is compared takes turns in one process, and the hardware stands in every row."""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import psutil
import torch
from growth import growth
from loops import Variant, drawing_variants, layer_variants, loss_variants
from torch.utils.flop_counter import FlopCounterMode
from whole_methods import Bench, HistoryBench, wide_llava

from prefmoe.cli import call
from prefmoe.config import DEFAULT_EDITION, FIGURES, RESULTS, Edition, MiniatureData, load_edition
from prefmoe.config.outputs import SPEED, speed_folder
from prefmoe.data.benchmark import FACETS
from prefmoe.data.sizes import ANCHORS, PREFIX_LENGTH
from prefmoe.generation.drawer import Drawer
from prefmoe.generation.sampling import STEPS
from prefmoe.generation.user_branch import add_user_branch
from prefmoe.models.user_state import FactorisedUsers
from prefmoe.running.record import hardware
from prefmoe.running.runs import use_threads
from prefmoe.system.distributed import state
from prefmoe.system.places import DRAWER

DRAWN = 64
"""Pictures that are drawn together and one by one."""

HISTORIES = ("preference-mini", "Auxiliary")
"""The edition about choices and its rater that histories are measured with."""

RATED_FOR = 8
"""Users whose test choices are rated together and one target at a time."""

RANKED = 240
"""Questions that are asked together and one by one: all items for four users."""

CALLED, CALLS = ("NT-profile", "LoRA", "Anchors", "PrefMoE"), 60
"""Methods that rank all items for all users, and how many of these questions are asked in calls of their own."""

PUBLISHED_RANKS = {"preference_rank": 8, "user_rank": 64, "profile_rank": 8, "last_layers": 8}


def hardware_line(device: torch.device) -> str:
    """The processor or accelerator, the threads in use, and torch's version, in one line."""
    found = hardware(device)
    threads = f"{found['processor']}, {found['cpu_threads_used']} of {found['cpu_cores']} threads"
    name = found.get("accelerator", threads)
    return f"{name}, torch {torch.__version__}"


def measure(
    variants: dict[str, Variant], device: torch.device, *, seconds: float, rounds: int = 200,
    clock: Callable[[], float] = time.perf_counter,
) -> pd.DataFrame:  # fmt: skip
    """Times the variants in turns, after a warm-up round, for so many seconds in all (three rounds at least).

    ``clock``: what is measured; `time.process_time` is the work of this process alone, whatever else the machine does.

    Returns one row per variant: variant, median_ms, low_ms, high_ms (quartiles over rounds), rounds, ratio (of the
    medians to the first variant's).
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times: dict[str, list[float]] = {name: [] for name in variants}
    end = time.perf_counter() + seconds
    for turn in range(rounds + 1):
        for name, variant in variants.items():
            wait()
            started = clock()
            variant()
            wait()
            if turn:
                times[name].append(1000 * (clock() - started))
        if turn >= 3 and time.perf_counter() > end:
            break
    first = statistics.median(next(iter(times.values())))
    rows = []
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        rows.append(
            {
                "variant": name,
                "median_ms": median,
                "low_ms": low,
                "high_ms": high,
                "rounds": len(values),
                "ratio": median / first,
            }
        )
    return pd.DataFrame(rows)


# --- users --------------------------------------------------------------------------------------------------------


def user_steps(
    users: Sequence[int], hidden: int, batch: int, device: torch.device, *, seconds: float
) -> Iterator[dict[str, Any]]:
    """A training step of the user state alone, for growing numbers of users, with dense and with sparse updates.

    A size that this machine's free memory cannot hold is left out, with the reason in its row.
    """
    for count in users:
        for kind in ("dense", "sparse"):
            state_bytes = 4 * hidden * (len(ANCHORS) + (len(ANCHORS) - 1) * (4 if kind == "dense" else 3)) * count
            free = psutil.virtual_memory().available if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
            row = {"variant": f"{kind}, {count} users", "users": count, "state_megabytes": state_bytes / 1e6}
            if state_bytes > 0.8 * free:
                yield row | {"note": f"needs {state_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"}
                continue
            yield row | _user_step(count, hidden, batch, device, kind, seconds)
            gc.collect()


def _user_step(count: int, hidden: int, batch: int, device: torch.device, kind: str, seconds: float) -> dict[str, Any]:
    anchors = torch.rand(count, len(ANCHORS), hidden, device=device)
    known = torch.ones(count, len(FACETS), dtype=torch.bool, device=device)
    trained = torch.zeros(count, dtype=torch.bool, device=device)
    trained[:1000] = True  # the means and bounds of all would need another copy of the anchors
    state = FactorisedUsers(anchors, known, trained, sparse=kind == "sparse")
    if kind == "sparse":
        optimizers = [torch.optim.SparseAdam([state.delta]), torch.optim.AdamW([state.prototypes], fused=True)]
    else:
        optimizers = [torch.optim.AdamW(state.parameters(), fused=True)]
    target = torch.randn(batch, PREFIX_LENGTH, hidden, device=device)

    def run() -> None:
        rows = torch.randint(count, (batch,), device=device)
        (state(rows).prefix - target).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return measure({kind: run}, device, seconds=seconds).iloc[0].drop(["variant", "ratio"]).to_dict()


# --- rows of each benchmark: a setting, and its table --------------------------------------------------------------

Rows = Iterator[tuple[str, pd.DataFrame]]


@dataclass(frozen=True)
class Request:
    """What is measured, with what, and for how long: see `bench`."""

    settings: Edition
    results: Path
    device: torch.device
    seconds: float
    users: Sequence[int]
    hidden: int
    side: int

    @cached_property
    def lab(self) -> Bench:
        """Whole methods, whose backbone is loaded when the first benchmark needs one."""
        return Bench(self.settings, self.results)

    @property
    def about(self) -> str:
        """Whose whole methods are measured."""
        return f"{self.settings.name}, {self.settings.backbones[0]}"

    @property
    def asked(self) -> int:
        """How many test questions there are."""
        return len(self.lab.workbench.benchmark.splits["test"])

    @property
    def work(self) -> tuple[Callable[[], float], str]:
        """The clock of a process's own work, and how a setting says so: processor time without an accelerator."""
        return (time.process_time, ", processor time") if self.device.type == "cpu" else (time.perf_counter, "")


def projection_rows(request: Request) -> Rows:
    for batch, tokens in ((4, 64), (4, 700)):
        variants = layer_variants(request.hidden, tokens, batch, request.device)
        about = f"width {request.hidden}, {batch} x {tokens} tokens, ranks 8/64/8"
        yield about, measure(variants, request.device, seconds=request.seconds)


def residual_rows(request: Request) -> Rows:
    variants = loss_variants(request.hidden, 16, 20, request.device)
    about = f"width {request.hidden}, 16 examples, 20 counterfactual users"
    yield about, measure(variants, request.device, seconds=request.seconds)


def drawing_rows(request: Request) -> Rows:
    """Pictures drawn together and one by one: in processor time where there is no accelerator, and on the clock with
    all the threads of the machine. Ratios are to the users who are drawn for together."""
    device, timing = request.device, {"seconds": request.seconds, "rounds": 10}
    drawer = Drawer.from_pretrained().to(device)
    add_user_branch(drawer)
    variants, about = drawing_variants(drawer, DRAWN), f"{DRAWER}, {DRAWN} pictures, {STEPS} steps"
    if device.type == "cpu":
        yield f"{about}, processor time", measure(variants, device, clock=time.process_time, **timing)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads, psutil.cpu_count() or 1))
    yield f"{about}, clock, {torch.get_num_threads()} threads", measure(variants, device, **timing)
    torch.set_num_threads(threads)


def step_rows(request: Request) -> Rows:
    """Steps of whole methods: of the edition's, and on prompts as long as the published backbones'."""
    settings, (clock, timed) = request.settings, request.work
    timing, batch = {"seconds": 2 * request.seconds, "clock": clock}, settings.training.batch_size
    variants = request.lab.training_variants(batch)
    found = _with_products(measure(variants, request.device, **timing), variants)
    yield f"{request.about}, batch {batch}{timed}", found
    with TemporaryDirectory() as temporary:
        model = wide_llava(Path(temporary) / "wide-llava", side=request.side)
        methods = {"PrefMoE": request.lab.prefmoe.model_copy(update=PUBLISHED_RANKS)}
        wide = settings.model_copy(update={"methods": methods, "backbones": (str(model),)})
        variants = Bench(wide, request.lab.workbench.results).training_variants(4)
        tokens = request.side * request.side
        about = f"random LLaVA, width 256, 8 layers, {tokens} image tokens, ranks 8/64/8, batch 4{timed}"
        yield about, _with_products(measure(variants, request.device, **timing), variants)


def _with_products(table: pd.DataFrame, variants: Mapping[str, Variant]) -> pd.DataFrame:
    """Notes how many operations the matrix products of each variant are (torch's counter, which leaves out attention on
    a CPU): no clock and no machine changes these."""
    notes = []
    for variant in variants.values():
        with FlopCounterMode(display=False) as counted:
            variant()
        notes.append(f"{counted.get_total_flops() / 1e9:.3g} billion operations in matrix products")
    return table.assign(note=notes)


def evaluation_rows(request: Request) -> Rows:
    count = min(64, request.asked)
    rows = measure(request.lab.evaluation_variants(count), request.device, seconds=request.seconds, rounds=10)
    yield f"{request.about}, {count} questions", rows


def beginning_rows(request: Request) -> Rows:
    evaluation = request.settings.evaluation
    turns, count = max(evaluation.turns), min(5 * evaluation.batch_size, request.asked)
    variants = request.lab.beginning_variants(count, turns)
    rows = measure(variants, request.device, seconds=request.seconds, rounds=10)
    yield f"{request.about}, {count} questions, {turns} turns", rows


def ranking_rows(request: Request) -> Rows:
    """Rankings for few users together and one by one; for all users together, and a call for each question: the time of
    some calls, extrapolated to all."""
    clock, timed = request.work
    variants = request.lab.ranking_variants(RANKED)
    rows = measure(variants, request.device, seconds=request.seconds, rounds=10, clock=clock)
    yield f"{request.about}, {RANKED} questions{timed}", rows
    for name in (name for name in CALLED if name in request.settings.methods):
        variants, count = request.lab.call_variants(name, CALLS)
        rows = measure(variants, request.device, seconds=request.seconds, rounds=10, clock=clock)
        rows.loc[1, ["median_ms", "low_ms", "high_ms", "ratio"]] *= count / CALLS  # as if all had been asked so
        yield f"{request.about}, {name}, {count} questions, of which {CALLS} in calls of their own{timed}", rows


def history_rows(request: Request) -> Rows:
    clock, timed = request.work
    edition, method = load_edition(HISTORIES[0]), HISTORIES[1]
    lab = HistoryBench(edition, request.results, method)
    about = f"{edition.name} with the vision encoder trained, {edition.backbones[0]}"
    about = f"{about}, histories of {edition.histories.n_ref}"
    made = {
        "a training step": lab.step_variants(),
        f"test choices of {RATED_FOR} users": lab.answer_variants(RATED_FOR),
    }
    for what, variants in made.items():
        yield f"{about}, {what}{timed}", measure(variants, request.device, seconds=request.seconds, clock=clock)


def growth_rows(request: Request) -> Rows:
    yield request.about, growth(request.lab.workbench.method(request.lab.prefmoe, seed=0), request.users)


def user_state_rows(request: Request) -> Rows:
    width = request.lab.workbench.backbone().hidden_size
    table = pd.DataFrame(list(user_steps(request.users, width, 16, request.device, seconds=request.seconds / 4)))
    if "median_ms" in table:
        first = table.groupby(table["variant"].str.partition(",")[0])["median_ms"].transform("first")
        table["ratio"] = table["median_ms"] / first
    yield f"width {width}, 16 examples", table


BENCHMARKS: Mapping[str, Callable[[Request], Rows]] = {
    "adapted projection": projection_rows, "residual terms": residual_rows, "drawing": drawing_rows,
    "training step": step_rows, "evaluation": evaluation_rows, "prompts that begin alike": beginning_rows,
    "ranking": ranking_rows, "histories": history_rows, "many users": growth_rows, "user state": user_state_rows,
}  # fmt: skip
"""What can be measured, in the order of the table."""


# --- all of it ----------------------------------------------------------------------------------------------------


def bench(
    edition: str = DEFAULT_EDITION,
    *,
    output: str | Path | None = None,
    seconds: float = 20.0,
    users: Sequence[int] = (10, 100, 1000, 10_000, 100_000, 1_000_000),
    hidden: int = 1024,
    side: int = 24,
    folder: str | Path | None = None,
    only: Sequence[str] = tuple(BENCHMARKS),
) -> Path:
    """Measures everything of docs/speed.md and writes <output>/<cpu or cuda>.csv; returns its path.

    Args:
        edition: whose first backbone, batches and PrefMoE are used for whole training steps and answers.
        seconds: per comparison. hidden: width of the single layer and of the losses. side: of the random LLaVA's
            pictures, in tokens.
        users: sizes of the user state, which is as wide as the edition's backbone, and of what growth.py measures.
        folder: of results, when not the clone's. output: a folder; `outputs.speed_folder` of the results when absent.
        only: some of `BENCHMARKS`; rows of the others stay as they are in that file or, without one, as published.
    """
    use_threads()
    torch.manual_seed(0)
    device, settings = state().device, load_edition(edition)
    if not isinstance(settings.data, MiniatureData):
        raise ValueError(f"edition {edition!r}: whole steps are measured on an edition of the miniature benchmark")
    results = Path(folder or RESULTS)
    output = Path(output or speed_folder(results))
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{device.type}.csv"
    request = Request(settings, results, device, seconds, users, hidden, side)
    tables = []
    for benchmark in (name for name in BENCHMARKS if name in only):
        rows = BENCHMARKS[benchmark](request)
        tables += [table.assign(benchmark=benchmark, setting=setting) for setting, table in rows]
        gc.collect()
    frame = pd.concat(tables, ignore_index=True).assign(hardware=hardware_line(device))
    columns = ["benchmark", "setting", "variant", "median_ms", "low_ms", "high_ms", "rounds", "ratio", "users",
               "state_megabytes", "note", "hardware"]  # fmt: skip
    frame = frame.reindex(columns=columns).round(4)
    known = next((place for place in (path, FIGURES / SPEED / path.name) if place.is_file()), None)
    if known and set(only) < set(BENCHMARKS):
        others = pd.read_csv(known)
        frame = pd.concat([others[~others["benchmark"].isin(only)], frame])
        frame = frame.sort_values("benchmark", key=lambda names: names.map(list(BENCHMARKS).index), kind="stable")
    frame.to_csv(path, index=False)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Measure speed side by side; writes results/speed/<cpu or cuda>.csv (docs/speed.md)."
    )
    parser.add_argument("edition", nargs="?", default=DEFAULT_EDITION)
    parser.add_argument("--output", type=Path, help="folder of the CSV file (default: results/speed)")
    parser.add_argument("--seconds", type=float, default=20.0, help="per comparison (default: 20)")
    parser.add_argument(
        "--only", nargs="+", choices=BENCHMARKS, metavar="BENCHMARK", help=f"of {', '.join(BENCHMARKS)}"
    )
    parser.add_argument("--users", type=int, nargs="+", help="sizes of the user state (default: 10 to 1000000)")
    return call(_bench, parser.parse_args(arguments))


def _bench(options: argparse.Namespace) -> None:
    chosen = {name: value for name, value in vars(options).items() if value is not None}
    print(bench(**chosen))


if __name__ == "__main__":
    sys.exit(main())
