"""The workflow in a copy of the clone with small notebooks: what runs, what runs again, and what a kill costs."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import warm_python
import yaml
from small_clone import OWN_METHOD, REPOSITORY, copy_with_small_notebooks
from synthetic_mmpb import make

from prefmoe.config import load_edition
from prefmoe.experiments.protocol import load_protocol, plans
from prefmoe.workflow import resources

SNAKEMAKE = ["-m", "snakemake"]
RUN = "results/tiny/notebooks/06_train_and_evaluate/llava-mini"


@pytest.fixture(scope="module", autouse=True)
def libraries() -> Iterator[None]:
    """No process is left over."""
    warm_python.prepare(warm_python.WORKFLOW)
    yield
    warm_python.stop()


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return copy_with_small_notebooks(tmp_path_factory.mktemp("workflow") / "clone")


def _environment(**more: str) -> dict[str, str]:
    """Of a process in the clone, whose code is compiled once for all of them."""
    left_out = ("PREFMOE_DATA", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    return {k: v for k, v in os.environ.items() if k not in left_out} | more


def _snakemake(clone: Path, *arguments: str, edition: str = "tiny", **more: str) -> subprocess.CompletedProcess:
    command = [*SNAKEMAKE, "--cores", "2", "--config", f"edition={edition}", *arguments]
    return warm_python.run(command, clone, _environment(**more))


def _planned(result: subprocess.CompletedProcess) -> dict[str, int]:
    """Jobs per rule that a dry run announces."""
    assert result.returncode == 0, result.stdout + result.stderr
    _, _, table = (result.stdout + result.stderr).partition("Job stats:")
    counts = re.findall(r"^(\w+) +(\d+)$", table.partition("total")[0], re.MULTILINE)
    return {rule: int(count) for rule, count in counts}


@pytest.fixture(scope="module")
def plans_of(clone) -> Callable[[str], subprocess.CompletedProcess]:
    """plans_of(edition): what a dry run says of all of it, without its data, the hub and committed tables."""
    return cache(lambda edition: _snakemake(clone, "--dry-run", edition=edition, HF_HUB_OFFLINE="1"))


@pytest.mark.parametrize("edition", ["smoke", "mini", "sample", "small", "small-sample", "paper"])
def test_every_edition_plans_all_its_runs_and_notebooks(clone, plans_of, tmp_path, edition):
    (tmp_path / "mmpb_clean").mkdir()
    for name in ("sample.csv", "full.csv", "split.json"):
        (tmp_path / "mmpb_clean" / name).write_text("")
    settings = load_edition(edition)
    there = {"edition": edition, "PREFMOE_DATA": str(tmp_path)}
    result = plans_of(edition) if settings.drawn else _snakemake(clone, "--dry-run", **there)
    planned = _planned(result)
    assert planned["run"] == len(settings.runs())
    assert planned["data"] == planned["tables"] == planned["main_table"] == planned["user_space"] == 1
    assert ("ablation" in planned) == bool(settings.table2)
    written = re.findall(r"^    output: (.*)$", result.stdout + result.stderr, re.MULTILINE)
    assert written and all(path.startswith(f"results/{edition}/") for line in written for path in line.split(", "))


@pytest.mark.parametrize("edition", ["paper", "mmpb"])
def test_an_edition_is_planned_without_its_data(plans_of, edition):
    """Neither the hub nor the data are needed to see every row of the tables."""
    result = plans_of(edition)
    settings, text = load_edition(edition), result.stdout + result.stderr
    assert _planned(result)["run"] == len(settings.runs())
    assert (
        f"Planned without its data: edition {edition!r} needs MMPB-clean (mmpb_clean/): set the environment var" in text
    )
    for backbone, method in settings.runs():
        assert f"06_train_and_evaluate/{backbone}/{method}.ipynb" in text


def test_an_edition_is_not_run_without_its_data(clone):
    result = _snakemake(clone, edition="paper")
    assert result.returncode != 0
    assert (
        "edition 'paper' needs MMPB-clean (mmpb_clean/): set the environment variable" in result.stdout + result.stderr
    )


def test_an_edition_about_choices_is_planned_in_its_stages_without_its_data(plans_of):
    result = plans_of("pick-a-pic")
    settings, text = load_edition("pick-a-pic"), result.stdout + result.stderr
    planned = _planned(result)
    chain = {name for name in settings.methods if settings.needs(name)} | {"Auxiliary"}
    assert planned["run_of_a_chain"] == len([method for _, method in settings.runs() if method in chain]) > 1
    assert planned["run"] + planned["run_of_a_chain"] == len(settings.runs())
    assert planned["data"] == planned["tables"] == 1
    urgent = dict(re.findall(r"method=(\w+)\n    priority: (\d+)", text))
    assert {name for name, priority in urgent.items() if int(priority) > int(urgent["Baseline"])} == chain
    assert "Planned without its data: edition 'pick-a-pic' needs the parquet files of Pick-a-Pic v2" in text
    found = re.findall(r"input: ([^\n]*)\n    output: results/pick-a-pic/notebooks/\S+/(\w+)\.ipynb", text)
    needed = {name: line for line, name in found}
    assert needed["Prototypes10"].endswith("/idefics2-8b/Auxiliary.ipynb") and "ipynb" not in needed["Auxiliary"]
    declared = re.search(r"method=Auxiliary\n.*?resources: ([^\n]*)", text, re.DOTALL)[1]
    expected = resources.job(settings, [("idefics2-8b", "Auxiliary")], training=True)
    assert all(f"{name}={value}" in declared for name, value in expected.items())


def test_jobs_declare_gpus_memory_and_time_from_the_registry(plans_of):
    text = plans_of("paper").stdout + plans_of("paper").stderr
    jobs = dict(re.findall(r"wildcards: backbone=(\S+), method=PrefMoE\n.*?resources: ([^\n]*)", text, re.DOTALL))
    settings = load_edition("paper")
    assert set(jobs) == set(settings.backbones)
    for backbone, declared in jobs.items():
        expected = resources.job(settings, [(backbone, "PrefMoE")], training=True)
        for name, value in expected.items():
            assert f"{name}={value}" in declared, (backbone, name)
        assert f"gres=gpu:{expected['gpus']}" in declared


def test_several_processes_make_a_run_before_its_notebook(clone):
    edition = (clone / "config/paper.yaml").read_text(encoding="utf-8").replace("name: paper", "name: sharded")
    (clone / "config/sharded.yaml").write_text(edition.replace("launch: one", "launch: fsdp"), encoding="utf-8")
    target = "results/sharded/notebooks/06_train_and_evaluate/qwen2.5-vl-72b/PrefMoE.ipynb"
    result = _snakemake(clone, "--dry-run", "--printshellcmds", "--", target, edition="sharded")
    command = next(line for line in (result.stdout + result.stderr).splitlines() if "accelerate launch" in line)
    gpus = resources.job(load_edition("paper"), [("qwen2.5-vl-72b", "PrefMoE")], training=True)["gpus"]
    assert f"--config_file config/accelerate/fsdp.yaml --num_processes {gpus} -m prefmoe run sharded " in command
    assert "qwen2.5-vl-72b PrefMoE && python -m prefmoe notebook" in command


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        ({"launch": "ddp"}, None),
        ({"launch": "ddp", "processes": 2}, "ACCELERATE_USE_CPU=true accelerate launch --config_file "
         "config/accelerate/cpu.yaml --num_processes 2 -m prefmoe run shared llava-mini LoRA && python -m prefmoe"),
        ({"launch": "fsdp", "processes": 2}, "llava-mini runs on CPUs, where hardware.launch fsdp does not start"),
    ],
)  # fmt: skip
def test_processes_without_gpus_start_when_they_are_asked_for(clone, hardware, expected):
    tiny = yaml.safe_load((clone / "config/tiny.yaml").read_text(encoding="utf-8"))
    (clone / "config/shared.yaml").write_text(yaml.safe_dump(tiny | {"name": "shared", "hardware": hardware}))
    target = f"{RUN}/LoRA.ipynb".replace("tiny", "shared")
    result = _snakemake(clone, "--dry-run", "--printshellcmds", "--", target, edition="shared")
    text = result.stdout + result.stderr
    assert ("accelerate launch" in text) == bool(expected and "accelerate launch" in expected)
    assert expected is None or expected in text
    assert (f"threads: {hardware.get('processes')}" in text) == (hardware == {"launch": "ddp", "processes": 2})


def test_a_table_of_unseen_users_is_promised_only_where_there_are_some(plans_of):
    for edition, expected in (("tiny", False), ("smoke", True)):
        result = plans_of(edition)
        assert _planned(result)["tables"] == 1
        assert ("unseen.csv" in result.stdout + result.stderr) == expected


WITHOUT_CORES = """\
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings
with SnakemakeApi(OutputSettings(printshellcmds=True)) as api:
    settings = {"config_settings": ConfigSettings(config={"edition": "tiny"}), "snakefile": Path("Snakefile")}
    workflow = api.workflow(resource_settings=ResourceSettings(nodes=2), **settings)
    workflow.dag(DAGSettings(targets={"pretrain"})).execute_workflow(executor="dryrun")
"""


def test_a_cluster_needs_no_total_number_of_cores(clone):
    """Its nodes have cores, the whole has no number of them: the command line fills one in for dry runs only."""
    result = warm_python.run(["-c", WITHOUT_CORES], clone, _environment())
    assert _planned(result) == {"pretrain": 1, "pretrain_miniature": 4}
    assert "threads: 8" in result.stdout + result.stderr


def test_pretraining_makes_the_backbones_in_their_order(clone):
    result = _snakemake(clone, "--dry-run", "--", "pretrain")
    assert _planned(result) == {"pretrain": 1, "pretrain_miniature": 4}
    text = result.stdout + result.stderr
    assert text.index("miniature=llava-mini") < text.index("miniature=qwen2.5-vl-mini")
    alone = _snakemake(clone, "--dry-run", "--", "results/pretraining/idefics2-mini.done")
    assert _planned(alone) == {"pretrain_miniature": 1}


def test_the_protocols_runs_are_planned_once_each_and_only_when_asked_for(clone, plans_of):
    edition = load_edition("smoke")
    planned = _planned(_snakemake(clone, "--dry-run", "--", "protocol", edition="smoke"))
    made = [one.own for one in plans(edition, load_protocol(edition)).values()]
    assert planned == {
        "protocol": 1, "protocol_questions": 1, "protocol_tables": 1, "protocol_run": made.count(False),
        "run": made.count(True), "data": 1,
    }  # fmt: skip
    assert planned["run"] == 2, "LoRA and PrefMoE as they are"
    assert "protocol_run" not in _planned(plans_of("smoke"))


def test_the_settings_of_the_page_about_clusters_reach_the_jobs(tmp_path):
    """The page's YAML on top of the profile, planned without Slurm: every rule gets the partition that it says."""
    page, own = (REPOSITORY / name for name in ("docs/cluster.md", "profiles/slurm/config.yaml"))
    (block,) = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    settings, own = yaml.safe_load(block), yaml.safe_load(own.read_text(encoding="utf-8"))
    assert set(settings["default-resources"]) > set(own["default-resources"])
    profile = {k: v for k, v in own.items() if not k.startswith(("executor", "jobs", "slurm-"))} | settings
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    command = [*SNAKEMAKE, "--profile", str(tmp_path), "--dry-run", "--forceall", "--config", "edition=smoke"]
    result = warm_python.run(command, REPOSITORY, os.environ)
    planned = re.findall(r"^rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", result.stdout + result.stderr, re.M)
    assert result.returncode == 0 and planned, result.stdout + result.stderr
    with_gpus = set()
    for rule, declared in planned:
        needs_gpus = "gpus=" in declared
        assert f"slurm_partition={'gpu' if needs_gpus else 'cpu'}" in declared and "slurm_account=my-acc" in declared
        with_gpus |= {rule} if needs_gpus else set()
    assert with_gpus == set(settings["set-resources"])


def test_the_linter_has_no_complaint():
    result = warm_python.run([*SNAKEMAKE, "--lint"], REPOSITORY, os.environ)
    assert result.returncode == 0 and "good condition" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ("editon=mini", r"unknown --config editon; expected edition=<name>"),
        ("edition=$(touch pwned)", r"the name '\$\(touch pwned\)' of an edition is refused: expected letters, digits"),
        ("edition=../elsewhere/mine.yaml", r"elsewhere/mine.yaml: the workflow makes editions of config/; put the"),
    ],
)
def test_a_typo_on_the_command_line_is_named(clone, configuration, message):
    """What is wrong with a name itself is said by load_edition (tests/test_config.py), and passed on."""
    (clone.parent / "elsewhere").mkdir(exist_ok=True)
    text = (clone / "config/tiny.yaml").read_text(encoding="utf-8")
    (clone.parent / "elsewhere/mine.yaml").write_text(text.replace("name: tiny", "name: mine"))
    result = warm_python.run(
        [*SNAKEMAKE, "--cores", "1", "--dry-run", "--config", configuration], clone, _environment()
    )
    assert result.returncode != 0
    assert re.search(message, result.stdout + result.stderr, re.DOTALL)
    assert not (clone / "pwned").exists()


def test_a_method_that_would_be_a_command_is_refused_before_any_shell_sees_it(clone):
    text = (clone / "config/tiny.yaml").read_text(encoding="utf-8").replace("LoRA", "$(touch pwned)")
    (clone / "config/nasty.yaml").write_text(text.replace("name: tiny", "name: nasty"))
    result = _snakemake(clone, edition="nasty")
    assert result.returncode != 0 and not (clone / "pwned").exists()
    assert "the name '$(touch pwned)' is refused" in result.stdout + result.stderr


def test_everything_that_varies_is_quoted_for_the_shell(clone, tmp_path):
    """Except what holds a whole command (launcher, joined with quotes) or a fixed option."""
    for path in (REPOSITORY / "Snakefile", *(REPOSITORY / "workflow/rules").glob("*.smk")):
        text = path.read_text(encoding="utf-8")
        blocks = re.findall(r"^ +shell:\n(.*?)(?=^\S|^ +\w+:|\Z)", text, re.M | re.S)
        assert len(blocks) == len(re.findall(r"\bshell\s*:", re.sub(r"#.*", "", text))), path
        bare = [name for block in blocks for name in re.findall(r"\{+([\w.]+)\}+", block)]
        assert set(bare) <= {"threads", "params.launcher", "params.ship", "PYTHON_FOR_LONG"}, path
    folder = tmp_path / "my weights; touch pwned"
    result = _snakemake(clone, "--dry-run", "--printshellcmds", "--", "projector", PREFMOE_WEIGHTS=str(folder))
    assert f"python workflow/scripts/align.py '{folder}/smollm2-lite' drawings --ship" in result.stdout + result.stderr


def test_an_edition_with_a_method_of_one_s_own_is_planned(clone):
    tiny = yaml.safe_load((clone / "config/tiny.yaml").read_text(encoding="utf-8"))
    tiny |= {"name": "mine", "own_methods": ["own.py"], "table1": ["Own"]}
    tiny["methods"] = {"Own": {"kind": "own", "label": "Own"}}
    (clone / "config/mine.yaml").write_text(yaml.safe_dump(tiny), encoding="utf-8")
    (clone / "config/own.py").write_text(OWN_METHOD, encoding="utf-8")
    result = _snakemake(clone, "--dry-run", edition="mine")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "backbone=llava-mini, method=Own" in result.stdout + result.stderr
    (clone / "config/own.py").write_text("1 / 0\n", encoding="utf-8")
    result = _snakemake(clone, "--dry-run", edition="mine")
    assert result.returncode and "own.py, line 1: ZeroDivisionError" in result.stdout + result.stderr


def test_a_mistake_in_an_edition_is_named(clone):
    text = (clone / "config/tiny.yaml").read_text(encoding="utf-8")
    (clone / "config/broken.yaml").write_text(text.replace("llava-mini", "lava-mini").replace("tiny", "broken"))
    result = _snakemake(clone, "--dry-run", edition="broken")
    assert result.returncode != 0
    assert "backbones: unknown lava-mini; known backbones: llava-mini" in result.stdout + result.stderr


def test_a_missing_notebook_is_named(clone):
    path = clone / "notebooks/11_routing.ipynb"
    hidden = path.rename(path.with_suffix(".hidden"))
    try:
        result = _snakemake(clone, "--dry-run", edition="smoke")
        assert result.returncode != 0
        assert "11_routing.ipynb does not exist" in result.stdout + result.stderr
    finally:
        hidden.rename(path)


def test_a_killed_workflow_goes_on_and_a_finished_one_rests(clone):
    targets = ["--", f"{RUN}/LoRA.ipynb", "results/tiny/notebooks/03_backbone.ipynb"]
    steps = clone / "results/tiny/runs/llava-mini/LoRA/steps"
    command = [*SNAKEMAKE, "--cores", "1", "--config", "edition=tiny", *targets[:2]]
    process = warm_python.start(command, clone, _environment())
    _wait_for(lambda: steps.exists() and len(steps.read_text().split()) == 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert not (clone / f"{RUN}/LoRA.ipynb").exists()

    result = _snakemake(clone, *targets)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Edition 'tiny' has no committed tables: there is nothing to compare" in result.stdout + result.stderr
    assert steps.read_text().split() == [str(step) for step in range(8)], "a step was lost or done twice"
    assert re.search(r"started from 3\b", (clone / f"{RUN}/LoRA.ipynb").read_text())
    assert (clone / "results/tiny/figures/backbone_abilities.png").read_text() == "drawn"
    assert not list((clone / RUN).glob("*.running.ipynb"))

    _change(clone / "notebooks/03_backbone.ipynb", "# 03_backbone", "# The backbone, in better words")
    _change(clone / "notebooks/06_train_and_evaluate.ipynb", "# 06_train", "# Train")
    for path in (*(clone / "notebooks").iterdir(), *(clone / "prefmoe").rglob("*.py"), *(clone / "config").iterdir()):
        path.touch()
    again = _snakemake(clone, *targets)
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr, (
        "a finished one rests: prose or times of files must not trigger anything"
    )

    _change(clone / "notebooks/03_backbone.ipynb", "drawn", "drawn again")
    assert _planned(_snakemake(clone, "--dry-run", *targets)) == {"backbone": 1}

    _change(clone / "config/tiny.yaml", "steps: 4", "steps: 5")
    assert _planned(_snakemake(clone, "--dry-run", *targets)) == {"backbone": 1, "run": 1}


def test_a_run_is_repeated_when_its_benchmark_or_its_weights_change(clone, tmp_path):
    """The data in the home folder, the weights in a folder of the registry, and neither below the clone."""
    make(tmp_path / "data")
    model = shutil.copytree(REPOSITORY / "prefmoe/weights/llava-mini", tmp_path / "model")
    with (clone / "prefmoe/config/registry.yaml").open("a") as registry:
        registry.write(f"  own-llava: {{folder: {model}, model_class: LlavaForConditionalGeneration}}\n")
    own = yaml.safe_load((clone / "config/tiny.yaml").read_text(encoding="utf-8"))
    own |= {"name": "own", "backbones": ["own-llava"], "table1": ["NT"], "data": {"kind": "mmpb", "folder": "~/data"}}
    (clone / "config/own.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    target = "results/own/notebooks/06_train_and_evaluate/own-llava/NT.ipynb"

    def planned() -> dict[str, int]:
        return _planned(_snakemake(clone, "--dry-run", "--", target, edition="own", HOME=str(tmp_path)))

    made = _snakemake(clone, "--", target, edition="own", HOME=str(tmp_path))
    assert made.returncode == 0, made.stdout + made.stderr
    for path in (*(tmp_path / "data").rglob("*"), *model.iterdir()):
        path.touch()
    assert planned() == {}, "the times of files say nothing"
    (tmp_path / "data/multi_turn/generic_text/talk.json").write_text('[{"role": "user", "content": "x"}]')
    assert planned() == {"data": 1, "run": 1}
    make(tmp_path / "again")
    (tmp_path / "again/multi_turn/generic_text/talk.json").rename(tmp_path / "data/multi_turn/generic_text/talk.json")
    with (model / "chat_template.jinja").open("a") as template:
        template.write(" ")
    assert planned() == {"run": 1}, "the old small talk is as good as before, another chat template is not"


def test_a_second_workflow_of_an_edition_is_told_who_makes_it(clone):
    text = (clone / "config/tiny.yaml").read_text(encoding="utf-8")
    (clone / "config/held.yaml").write_text(text.replace("name: tiny", "name: held"), encoding="utf-8")
    targets = ["--", "results/held/notebooks/01_published_results.ipynb"]
    command = [*SNAKEMAKE, "--cores", "1", "--config", "edition=held", *targets]
    first = warm_python.start(command, clone, _environment())
    try:
        _wait_for((clone / "results/held/.workflow.json").exists)
        os.killpg(first.pid, signal.SIGSTOP)
        second = _snakemake(clone, *targets, edition="held")
        assert second.returncode != 0
        holder = rf"edition 'held' is being made by process {first.pid} of \S+ on \S+ since .* --config edition=held"
        assert re.search(holder, second.stdout + second.stderr)
        plan = _snakemake(clone, "--dry-run", *targets, edition="held")
        assert plan.returncode == 0, "a plan changes nothing, and need not wait"
        job = _snakemake(clone, "--mode", "subprocess", "--", "results/held/data.json", edition="held")
        assert job.returncode == 0, "a job of the first workflow, which an executor starts as a snakemake of its own"
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.join()
    third = _snakemake(clone, *targets, edition="held")
    assert third.returncode == 0, third.stdout + third.stderr
    assert (clone / targets[1]).is_file()


def test_a_run_ends_with_the_verdict_and_is_no_failure_if_it_says_not_reproduced(clone, plans_of):
    """On the tables of another edition, without the jobs that would make its own."""
    assert "compare" not in _planned(plans_of("smoke"))
    made, committed = clone / "results/smoke/figures", clone / "figures/smoke"
    committed.mkdir(parents=True)
    for path in (REPOSITORY / "figures/small-sample").glob("*.csv"):
        few = pd.read_csv(path).query("method in ('PrefMoE', 'LoRA')" if "method" in path.read_text() else "index >= 0")
        few.to_csv(committed / path.name, index=False)
    shutil.copytree(committed, made)
    table = pd.read_csv(made / "table1.csv")
    table.assign(value=table["value"].where(table.index > 0, 0.0)).to_csv(made / "table1.csv", index=False)
    try:
        planned = _planned(_snakemake(clone, "--dry-run", edition="smoke"))
        assert planned["compare"] == 1
        (clone / "results/smoke/notebooks").mkdir()
        for path in (clone / "notebooks").glob("*.ipynb"):
            shutil.copy(path, clone / "results/smoke/notebooks")
        target = "results/smoke/reproduction/verdict.txt"
        result = _snakemake(clone, "--allowed-rules", "compare", "--", target, edition="smoke")
        text = result.stdout + result.stderr
        assert result.returncode == 0, text
        assert "Verdict: not reproduced: 1 of" in text and "Verdict: not" in (clone / target).read_text()
        (made / "table1.csv").unlink()
        result = _snakemake(clone, "--allowed-rules", "compare", "--forcerun", "compare", "--", target, edition="smoke")
        assert result.returncode != 0 and "Verdict" not in result.stdout + result.stderr
    finally:
        shutil.rmtree(clone / "results/smoke")
        shutil.rmtree(committed)


def test_a_failing_notebook_fails_the_workflow_and_leaves_no_result(clone):
    _change(clone / "notebooks/01_published_results.ipynb", "files = ", "files = no_such_name or ")
    target = "results/tiny/notebooks/01_published_results.ipynb"
    result = _snakemake(clone, "--", target)
    assert result.returncode != 0
    assert "code cell 3 failed with NameError: name 'no_such_name' is not defined" in result.stdout + result.stderr
    assert not (clone / target).exists() and (clone / target.replace(".ipynb", ".failed.ipynb")).exists()
    assert not list((clone / "results/tiny/figures").glob("published_*")), "figures of a failed notebook are removed"


def _change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def _wait_for(condition, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
