"""Speed, measured side by side: what is compared takes turns in one process, and the hardware stands in every row."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import psutil
import torch
import transformers
from growth import growth
from loops import Variant, drawing_variants, layer_variants, loss_variants

from prefmoe.cli import call
from prefmoe.config import (
    DEFAULT_EDITION,
    RESULTS,
    Edition,
    LoRAMethod,
    MiniatureData,
    PrefMoEMethod,
    UserLoRAMethod,
    load_edition,
)
from prefmoe.config.outputs import speed_folder
from prefmoe.config.registry import find_backbone
from prefmoe.data.benchmark import FACETS
from prefmoe.data.sizes import ANCHORS, PREFIX_LENGTH
from prefmoe.generation.drawer import Drawer
from prefmoe.generation.sampling import STEPS
from prefmoe.generation.user_branch import add_user_branch
from prefmoe.models.base import Method
from prefmoe.models.moe_lora import Ranks
from prefmoe.models.user_state import FactorisedUsers
from prefmoe.running.evaluation import evaluate
from prefmoe.running.record import hardware
from prefmoe.running.runs import Workbench, use_threads
from prefmoe.system.distributed import state
from prefmoe.system.files import read_json
from prefmoe.system.places import DRAWER

DRAWN = 64
"""Pictures that are drawn together and one by one."""

PUBLISHED_RANKS = {"preference_rank": 8, "user_rank": 64, "profile_rank": 8, "last_layers": 8}


def hardware_line(device: torch.device) -> str:
    """The processor or accelerator, the threads in use, and torch's version, in one line."""
    found = hardware(device)
    name = found.get("accelerator")
    if name is None:
        info = Path("/proc/cpuinfo")
        lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = f"{models[0] if models else platform.processor() or found['machine']}"
        name += f", {found['cpu_threads_used']} of {found['cpu_cores']} threads"
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


# --- whole methods ------------------------------------------------------------------------------------------------


def wide_llava(folder: Path, width: int = 256, layers: int = 8, side: int = 24) -> Path:
    """Writes a random LLaVA with llava-mini's words and tower, and side x side image tokens; returns the folder.

    The miniature's pictures are few tokens, so that 13 soft tokens lengthen its prompts by a third; those of the
    published backbones are 576 tokens and more.
    """
    entry = find_backbone("llava-mini")
    assert entry.folder is not None
    config = transformers.AutoConfig.from_pretrained(entry.folder)
    text, pixels = config.text_config, side * config.vision_config.patch_size
    text.hidden_size, text.num_hidden_layers, text.intermediate_size = width, layers, round(2.7 * width)
    text.num_attention_heads = text.num_key_value_heads = width // text.head_dim
    text.max_position_embeddings = max(text.max_position_embeddings, 2 * side * side)
    config.vision_config.image_size = pixels
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    shutil.copytree(entry.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "config*"))
    path = folder / "processor_config.json"
    settings = read_json(path, "the settings of a processor")
    settings["image_processor"] |= {key: {"height": pixels, "width": pixels} for key in ("size", "crop_size")}
    path.write_text(json.dumps(settings), encoding="utf-8")
    return folder


class Bench:
    """Methods on an edition's first backbone, with the edition's batches."""

    def __init__(self, edition: Edition, folder: Path) -> None:
        self.workbench = Workbench(edition, edition.backbones[0], results=folder)
        self.edition = edition
        methods = edition.methods.values()
        full = [m for m in methods if isinstance(m, PrefMoEMethod) and m.components == "EPICDM"]
        if not full:
            raise ValueError(f"edition {edition.name!r} has no full PrefMoE to measure")
        self.prefmoe = full[0]

    def plain_lora(self) -> LoRAMethod:
        """LoRA of PrefMoE's total rank, on the same layers."""
        ranks = Ranks(self.prefmoe.preference_rank, self.prefmoe.user_rank, self.prefmoe.profile_rank)
        return LoRAMethod(
            kind="lora", label="LoRA", lr=self.prefmoe.lr, rank=ranks.total, alpha=ranks.total, dropout=0.0,
            last_layers=self.prefmoe.last_layers,
        )  # fmt: skip

    def training_variants(self, batch_size: int) -> dict[str, Variant]:
        """An optimiser's step on one batch: LoRA on the same layers and on all, one per user beside it, PrefMoE and its
        parts."""
        lora = self.plain_lora()
        configs = {
            "LoRA, same layers": lora,
            "LoRA, all layers": lora.model_copy(update={"last_layers": None}),
            "LoRA, all layers, and one per user": UserLoRAMethod(
                kind="user_lora", label="LoRA per user", lr=lora.lr, rank=4, alpha=4.0, pooled_rank=lora.rank
            ),
            "prefix, losses and LoRA (EPICD)": self.prefmoe.model_copy(update={"components": "EPICD"}),
            "PrefMoE": self.prefmoe,
        }
        return {name: self._step(config, batch_size) for name, config in configs.items()}

    def _step(self, config: LoRAMethod | UserLoRAMethod | PrefMoEMethod, batch_size: int) -> Variant:
        method = self.workbench.method(config, seed=0).train()
        examples = self.workbench.benchmark.select("train")[:batch_size]
        batch = method.collator(examples, with_answer=True).to(method.backbone.device)
        groups = method.parameter_groups()
        optimizer = torch.optim.AdamW(groups, fused=True)

        def run() -> None:
            with method.context(batch):
                sum(method.training_losses(batch).values()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return run

    def evaluation_variants(self, count: int) -> dict[str, Variant]:
        """Answering ``count`` test questions: the edition's batches, and one question at a time."""
        method = self.workbench.method(self.prefmoe, seed=0)
        examples = self.workbench.benchmark.select("test")[:count]
        settings = self.edition.evaluation

        def run(size: int) -> Variant:
            return lambda: evaluate(method, examples, turns=0, batch_size=size, max_new_tokens=settings.max_new_tokens)

        return {f"batches of {settings.batch_size}": run(settings.batch_size), "one by one": run(1)}

    def beginning_variants(self, count: int, turns: int) -> dict[str, Variant]:
        """Questions after small talk, with the beginnings of prompts computed once and with all of them computed.

        LoRA shares a transcript among all users; with a soft prefix it is shared among the questions about one user.
        """
        benchmark, settings = self.workbench.benchmark, self.edition.evaluation
        examples = benchmark.select("test")[:count]
        without = self.prefmoe.model_copy(update={"components": "EPICD"})
        methods = {"LoRA": self.plain_lora(), "PrefMoE without mixture": without}

        def run(method: Method, reuse: bool) -> Variant:
            return lambda: evaluate(
                method, examples, turns=turns, transcripts=benchmark.transcripts, batch_size=settings.batch_size,
                max_new_tokens=settings.max_new_tokens, reuse_prefixes=reuse,
            )  # fmt: skip

        built = {name: self.workbench.method(config, seed=0) for name, config in methods.items()}
        return {
            f"{name}, {'shared' if reuse else 'whole'}": run(method, reuse)
            for name, method in built.items()
            for reuse in (True, False)
        }


# --- drawing ------------------------------------------------------------------------------------------------------


def drawing_rows(device: torch.device, count: int, *, seconds: float) -> Iterator[tuple[str, pd.DataFrame]]:
    """Pictures drawn together and one by one: in processor time where there is no accelerator, and on the clock with
    all the threads of the machine. A setting and its rows, the ratios to the users who are drawn for together."""
    drawer = Drawer.from_pretrained().to(device)
    add_user_branch(drawer)
    variants, about = drawing_variants(drawer, count), f"{DRAWER}, {count} pictures, {STEPS} steps"
    if device.type == "cpu":
        yield f"{about}, processor time", measure(variants, device, seconds=seconds, rounds=10, clock=time.process_time)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads, psutil.cpu_count() or 1))
    yield f"{about}, clock, {torch.get_num_threads()} threads", measure(variants, device, seconds=seconds, rounds=10)
    torch.set_num_threads(threads)


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
) -> Path:
    """Measures everything of docs/speed.md and writes <output>/<cpu or cuda>.csv; returns its path.

    Args:
        edition: whose first backbone, batches and PrefMoE are used for whole training steps and answers.
        seconds: per comparison. hidden: width of the single layer and of the losses. side: of the random LLaVA's
            pictures, in tokens.
        users: sizes of the user state, which is as wide as the edition's backbone, and of what growth.py measures.
        folder: of results, when not the clone's. output: a folder; `outputs.speed_folder` of the results when absent.
    """
    use_threads()
    torch.manual_seed(0)
    device, settings = state().device, load_edition(edition)
    if not isinstance(settings.data, MiniatureData):
        raise ValueError(f"edition {edition!r}: whole steps are measured on an edition of the miniature benchmark")
    tables = []

    def add(benchmark: str, setting: str, rows: pd.DataFrame) -> None:
        tables.append(rows.assign(benchmark=benchmark, setting=setting))

    for batch, tokens in ((4, 64), (4, 700)):
        rows = measure(layer_variants(hidden, tokens, batch, device), device, seconds=seconds)
        add("adapted projection", f"width {hidden}, {batch} x {tokens} tokens, ranks 8/64/8", rows)
    rows = measure(loss_variants(hidden, 16, 20, device), device, seconds=seconds)
    add("residual terms", f"width {hidden}, 16 examples, 20 counterfactual users", rows)
    for setting, rows in drawing_rows(device, DRAWN, seconds=seconds):
        add("drawing", setting, rows)
    lab = Bench(settings, Path(folder or RESULTS))
    batch = settings.training.batch_size
    rows = measure(lab.training_variants(batch), device, seconds=2 * seconds)
    add("training step", f"{edition}, {settings.backbones[0]}, batch {batch}", rows)
    count = min(64, len(lab.workbench.benchmark.splits["test"]))
    rows = measure(lab.evaluation_variants(count), device, seconds=seconds, rounds=10)
    add("evaluation", f"{edition}, {settings.backbones[0]}, {count} questions", rows)
    turns = max(settings.evaluation.turns)
    count = min(5 * settings.evaluation.batch_size, len(lab.workbench.benchmark.splits["test"]))
    rows = measure(lab.beginning_variants(count, turns), device, seconds=seconds, rounds=10)
    add("prompts that begin alike", f"{edition}, {settings.backbones[0]}, {count} questions, {turns} turns", rows)
    width = lab.workbench.backbone().hidden_size
    add("many users", f"{edition}, {settings.backbones[0]}", growth(lab.workbench.method(lab.prefmoe, seed=0), users))
    with TemporaryDirectory() as temporary:
        model = wide_llava(Path(temporary) / "wide-llava", side=side)
        methods = {"PrefMoE": lab.prefmoe.model_copy(update=PUBLISHED_RANKS)}
        wide = settings.model_copy(update={"methods": methods, "backbones": (str(model),)})
        lab = Bench(wide, Path(folder or RESULTS))
        rows = measure(lab.training_variants(4), device, seconds=2 * seconds)
        about = f"random LLaVA, width 256, 8 layers, {side * side} image tokens, ranks 8/64/8, batch 4"
        add("training step", about, rows)
    del lab
    gc.collect()
    table = pd.DataFrame(list(user_steps(users, width, 16, device, seconds=seconds / 4)))
    if "median_ms" in table:
        first = table.groupby(table["variant"].str.partition(",")[0])["median_ms"].transform("first")
        table["ratio"] = table["median_ms"] / first
    add("user state", f"width {width}, 16 examples", table)
    frame = pd.concat(tables, ignore_index=True).assign(hardware=hardware_line(device))
    columns = ["benchmark", "setting", "variant", "median_ms", "low_ms", "high_ms", "rounds", "ratio", "users",
               "state_megabytes", "note", "hardware"]  # fmt: skip
    output = Path(output or speed_folder(folder or RESULTS))
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{device.type}.csv"
    frame.reindex(columns=columns).round(4).to_csv(path, index=False)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Measure speed side by side; writes results/speed/<cpu or cuda>.csv (docs/speed.md)."
    )
    parser.add_argument("edition", nargs="?", default=DEFAULT_EDITION)
    parser.add_argument("--output", type=Path, help="folder of the CSV file (default: results/speed)")
    parser.add_argument("--seconds", type=float, default=20.0, help="per comparison (default: 20)")
    parser.add_argument("--users", type=int, nargs="+", help="sizes of the user state (default: 10 to 1000000)")
    return call(_bench, parser.parse_args(arguments))


def _bench(options: argparse.Namespace) -> None:
    chosen = {name: value for name, value in vars(options).items() if value is not None}
    print(bench(**chosen))


if __name__ == "__main__":
    sys.exit(main())
