"""The benchmark script: its references compute what they are compared with, and its table is complete."""

import json
import re
import shutil
from functools import partial

import loops
import pandas as pd
import pytest
import small_choices
import speed
import torch
from small_world import data_folder, small_edition
from tiny_drawers import tiny_drawer
from whole_methods import HistoryBench

from prefmoe import losses
from prefmoe.config import FIGURES, ROOT
from prefmoe.generation.user_branch import add_user_branch
from prefmoe.models.moe_lora import MixtureOfLoRA, Ranks, Routing
from prefmoe.models.user_state import FactorisedUsers

CPU = torch.device("cpu")


def test_the_loop_over_experts_is_the_mixture():
    torch.manual_seed(0)
    ranks = Ranks(2, 3, 4)
    gates = torch.rand(2, 8)
    sizes = torch.tensor([3, *[2] * 5, *[4] * 2])
    routing = Routing(gates.repeat_interleave(sizes, dim=1), torch.randn(2, 3))
    mixture = MixtureOfLoRA(torch.nn.Linear(6, 5), ranks.total, routing)
    torch.nn.init.normal_(mixture.B)
    x = torch.randn(2, 4, 6)
    torch.testing.assert_close(loops.loop_over_experts(x, mixture, ranks), mixture(x))


def test_the_loop_over_anchors_is_the_loss():
    torch.manual_seed(0)
    residuals, query = torch.randn(6, 5, 8), torch.randn(6, 8)
    groups, pseudo_groups = torch.randint(-1, 3, (6, 5)), torch.randint(-1, 4, (3, 5))
    pseudo = torch.randn(3, 5, 8)
    found = loops.loop_over_anchors(residuals, groups, query, pseudo, pseudo_groups)
    expected = losses.residual_contrast(residuals, groups, query, pseudo, pseudo_groups)
    torch.testing.assert_close(torch.stack(list(found)), torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.fixture
def few_steps(monkeypatch):
    """Pictures are drawn in three steps of the sampler."""
    monkeypatch.setattr(loops, "sample", partial(loops.sample, steps=3))


@pytest.mark.usefixtures("few_steps")
def test_pictures_drawn_one_by_one_are_those_drawn_together():
    drawer = tiny_drawer()
    branch = add_user_branch(drawer)
    with torch.no_grad():
        for one in branch.values():
            one.to_v_ip[0].weight.normal_(generator=torch.Generator().manual_seed(1))
    variants = loops.drawing_variants(drawer, 6)
    users, nobody = variants["users one by one"](), variants["nobody one by one"]()
    torch.testing.assert_close(users, variants["users together"](), rtol=0, atol=1e-5)
    torch.testing.assert_close(nobody, variants["nobody together"](), rtol=0, atol=1e-5)
    assert (users[0] - users[4]).abs().max() > 1e-3  # the same prompt and noise, another user


def test_any_clock_is_read_around_each_variant():
    ticks = iter(range(100))
    table = speed.measure({"a": lambda: next(ticks)}, CPU, seconds=0.0, clock=lambda: float(next(ticks)))
    assert table["median_ms"].tolist() == [2000.0]


def test_variants_take_turns_and_ratios_refer_to_the_first():
    order: list[str] = []
    variants = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    table = speed.measure(variants, CPU, seconds=0.0)
    assert order == ["a", "b"] * 4
    assert table["rounds"].tolist() == [3, 3] and table["ratio"][0] == 1.0
    assert (table["low_ms"] <= table["median_ms"]).all() and (table["median_ms"] <= table["high_ms"]).all()


def users(count: int, sparse: bool) -> FactorisedUsers:
    torch.manual_seed(0)
    everybody = torch.ones(count, dtype=torch.bool)
    return FactorisedUsers(torch.randn(count, 8, 16), everybody[:, None].expand(-1, 5), everybody, sparse=sparse)


def step(state: FactorisedUsers, rows: torch.Tensor, optimizers: list[torch.optim.Optimizer]) -> None:
    state(rows).prefix.square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def optimizers_of(state: FactorisedUsers) -> list[torch.optim.Optimizer]:
    if not state.sparse:
        return [torch.optim.AdamW(state.parameters(), lr=0.1, weight_decay=0.0)]
    rest = torch.optim.AdamW([state.prototypes], lr=0.1, weight_decay=0.0)
    return [torch.optim.SparseAdam([state.delta], lr=0.1), rest]


def test_sparse_updates_agree_with_adamw_when_all_users_occur_and_leave_others_alone():
    states = [users(6, sparse) for sparse in (False, True)]
    optimizers = [optimizers_of(state) for state in states]
    for rows in (torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([5, 5, 4, 3, 2, 1, 0, 1])):
        for state, own in zip(states, optimizers, strict=True):
            step(state, rows, own)
        torch.testing.assert_close(states[1].delta, states[0].delta, rtol=1e-3, atol=1e-3)  # eps enters otherwise
        torch.testing.assert_close(states[1].prototypes, states[0].prototypes)
    before = states[1].delta.detach().clone()
    step(states[1], torch.tensor([2, 4, 2]), optimizers[1])
    moved = (states[1].delta != before).flatten(1).any(1)
    assert moved.tolist() == [False, False, True, False, True, False]


def test_a_sparse_step_passes_over_the_batchs_users_alone():
    """Elements that the gradient and the optimiser's temporaries hold, not time, which a loaded machine distorts."""
    sizes = {}
    for count in (50, 5000):
        state = users(count, sparse=True)
        state(torch.tensor([3, 7, 3])).prefix.square().sum().backward()
        gradient = state.delta.grad
        assert gradient.is_sparse
        sizes[count] = gradient._values().numel()
        step(state, torch.tensor([3, 7]), optimizers_of(state))
    assert sizes[50] == sizes[5000] == 3 * 7 * 16


def test_sessions_and_plain_sequences_have_one_loss_and_one_answer(tmp_path, monkeypatch):
    small_choices.lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    lab = HistoryBench(small_choices.small_edition(), tmp_path / "results", "Ranked")
    shared, plain = (variant() for variant in lab.step_variants().values())
    assert shared == pytest.approx(plain, rel=1e-4)
    together, apart = (variant() for variant in lab.answer_variants(3).values())
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-3)


@pytest.fixture
def tiny_edition(tmp_path, monkeypatch):
    settings = {"evaluation": {"batch_size": 4, "max_new_tokens": 1}, "training": {"steps": 1, "batch_size": 2}}
    edition = small_edition("llava-mini", **settings)
    folder = shutil.copytree(data_folder(), tmp_path / "small-world" / "data")
    split = folder / "mmpb_clean" / "split.json"
    (content,) = json.loads(split.read_text(encoding="utf-8"))
    content["tasks"][0]["test_idx"] = content["tasks"][0]["test_idx"][:8]  # two batches: all of them are measured alike
    split.write_text(json.dumps([content]), encoding="utf-8")
    (tmp_path / "choices").mkdir()
    small_choices.lay_out(tmp_path / "choices")
    shutil.copytree(tmp_path / "choices/results/small-choices", tmp_path / "small-choices", symlinks=True)
    monkeypatch.chdir(tmp_path / "choices")
    editions = {"small-choices": small_choices.small_edition(), "small-world": edition}
    monkeypatch.setattr(speed, "load_edition", editions.__getitem__)
    monkeypatch.setattr(speed, "HISTORIES", ("small-choices", "Ranked"))
    return tmp_path


@pytest.mark.usefixtures("few_steps")
def test_the_script_measures_everything_and_names_the_hardware(tiny_edition, monkeypatch):
    monkeypatch.setattr(speed.psutil, "cpu_count", lambda: 1)  # threads that wait for one another waste a busy machine
    monkeypatch.setattr("growth.COUNTERFACTUAL_USERS", 5)
    monkeypatch.setattr("growth.MOST_ADDED", 10)
    monkeypatch.setattr("growth.ROUNDS", 1)
    monkeypatch.setattr(speed, "DRAWN", 2)
    monkeypatch.setattr(speed, "RANKED", 4)
    monkeypatch.setattr(speed, "CALLED", ())
    measure, wide_llava = speed.measure, speed.wide_llava
    monkeypatch.setattr(speed, "measure", lambda *given, rounds=2, **more: measure(*given, rounds=2, **more))
    monkeypatch.setattr(speed, "wide_llava", lambda *given, **more: wide_llava(*given, width=64, **more))
    path = speed.bench(
        "small-world", output=tiny_edition / "speed", seconds=0.0, users=(10, 100, 10**9), hidden=32, side=2,
        folder=tiny_edition,
    )  # fmt: skip
    table = pd.read_csv(path)
    assert path.name == "cpu.csv" and table["hardware"].str.contains("torch 2").all()
    assert list(dict.fromkeys(table["benchmark"])) == [
        "adapted projection", "residual terms", "drawing", "training step", "evaluation", "prompts that begin alike",
        "ranking", "histories", "many users", "user state",
    ]  # fmt: skip
    steps = table[table["benchmark"] == "training step"]
    assert steps["setting"].nunique() == 2 and steps["variant"].nunique() == 5
    for _, rows in steps.groupby("setting"):
        products = rows.set_index("variant")["note"].str.extract(r"^([\d.]+) billion operations")[0].astype(float)
        assert products["PrefMoE"] == pytest.approx(products["prefix, losses and LoRA (EPICD)"], rel=0.03)
        assert products["LoRA, same layers"] < products["PrefMoE"]
    too_large = table["users"] == 10**9
    assert table.loc[too_large, "note"].str.contains("GB are free").all() and too_large.sum() == 2
    assert (table.loc[~too_large, ["median_ms", "ratio", "rounds"]] > 0).all(axis=None)
    many = table[table["benchmark"] == "many users"].set_index("variant")
    assert many.index.tolist() == [
        "add_user, 10 users", "an epoch's plan, 10 users", "an epoch's plan, 100 users",
        "5 counterfactual users, 10 users", "5 counterfactual users, 100 users",
    ]  # fmt: skip
    plans = many.loc[["an epoch's plan, 10 users", "an epoch's plan, 100 users"], "median_ms"] / [10, 100]
    assert many.loc["an epoch's plan, 100 users", "ratio"] == pytest.approx(plans.iloc[1] / plans.iloc[0], rel=0.2)
    firsts = table[~too_large].groupby(["benchmark", "setting"], sort=False).first()
    assert (firsts["ratio"] == 1).all()


def test_rows_of_what_is_not_measured_again_stay(tiny_edition, monkeypatch):
    monkeypatch.setattr(speed, "RANKED", 2)
    monkeypatch.setattr(speed, "CALLED", ("LoRA",))
    monkeypatch.setattr(speed, "CALLS", 2)
    options = {"output": tiny_edition / "speed", "seconds": 0.0, "folder": tiny_edition, "hidden": 16}
    first = pd.read_csv(speed.bench("small-world", only=["residual terms"], **options))  # beside the published rows
    published = pd.read_csv(FIGURES / "speed/cpu.csv")
    pd.testing.assert_frame_equal(without(first, "residual terms"), without(published, "residual terms"))
    assert set(first.loc[first["benchmark"] == "residual terms", "setting"]) == {
        "width 16, 16 examples, 20 counterfactual users"
    }
    second = pd.read_csv(speed.bench("small-world", only=["ranking"], **options))  # beside those of the file
    pd.testing.assert_frame_equal(without(second, "ranking"), without(first, "ranking"))
    rows = second[second["benchmark"] == "ranking"]
    few = ["LoRA, together", "LoRA, one by one", "PrefMoE, together", "PrefMoE, one by one"]
    assert list(rows["variant"]) == [*few, "together", "a call each"]
    assert list(second["benchmark"]) == sorted(second["benchmark"], key=list(speed.BENCHMARKS).index)


def test_the_time_of_some_calls_is_extrapolated_to_a_call_for_each_question(tiny_edition, monkeypatch):
    """The clock counts calls."""
    calls: list = []
    monkeypatch.setattr("whole_methods.evaluate", lambda _, asked, **__: calls.append(asked))
    monkeypatch.setattr("whole_methods.score", lambda _, asked: calls.append(asked))
    monkeypatch.setattr(speed.time, "process_time", lambda: float(len(calls)))
    monkeypatch.setattr(speed, "CALLED", ("LoRA", "no method of this edition"))
    options = {"output": tiny_edition / "speed", "seconds": 0.0, "folder": tiny_edition, "only": ["ranking"]}
    table = pd.read_csv(speed.bench("small-world", **options)).query("benchmark == 'ranking'").iloc[-2:]
    together, *single = calls[-1 - speed.CALLS :]
    assert len(together) == 60 * len({one.name for one in together}) and len({one.name for (one,) in single}) > 1
    assert len({one.index for (one,) in single}) == 60 and all(one in together for (one,) in single)
    assert table["median_ms"].tolist() == [1000, 1000 * len(together)]
    assert table["ratio"].tolist() == [1, len(together)]
    assert table["setting"].str.contains(f", LoRA, {len(together)} questions, of which 60 in calls of their own").all()


def without(table: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    rows = table[table["benchmark"] != benchmark]
    return rows.sort_values(
        "benchmark", key=lambda names: names.map(list(speed.BENCHMARKS).index), kind="stable"
    ).reset_index(drop=True)


def test_the_page_about_speed_has_a_row_for_each_benchmark():
    page = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| ([a-z ]+) \| ", page, re.M) == ["benchmark", *speed.BENCHMARKS]


def test_the_products_of_a_step_are_those_that_the_page_tells():
    table = pd.read_csv(FIGURES / "speed/cpu.csv").query("benchmark == 'training step'")
    page = " ".join((ROOT / "docs/speed.md").read_text(encoding="utf-8").split())
    said = re.search(r"products alone are ([\d.]+) times as many \(([\d.]+) and ([\d.]+) billion", page)
    long = re.search(r"for ([\d.]+) times the products \(([\d.]+) and ([\d.]+) billion\)", page)
    for (_, rows), found in zip(table.groupby("setting", sort=False), (said, long), strict=True):
        counted = rows.set_index("variant")["note"].str.partition(" ")[0].astype(float)
        ours, plain = counted["PrefMoE"], counted["LoRA, same layers"]
        ratio, *both = map(float, found.groups())
        assert both == [ours, plain] and ratio == pytest.approx(ours / plain, abs=0.006)
