"""The workflow in a copy of the clone with small notebooks: what it plans, asks a cluster for, and refuses."""

import os
import re

import pytest
import warm_python
import yaml
from small_clone import OWN_METHOD, REPOSITORY
from workflow_clones import RUN, SNAKEMAKE, environment, jobs_of, snakemake

from prefmoe.config import load_edition
from prefmoe.experiments.protocol import load_protocol, plans
from prefmoe.workflow import resources

pytest_plugins = ["workflow_fixtures"]


@pytest.mark.parametrize("edition", ["smoke", "mini", "sample", "small", "small-sample", "paper"])
def test_every_edition_plans_all_its_runs_and_notebooks(clone, plans_of, tmp_path, edition):
    (tmp_path / "mmpb_clean").mkdir()
    for name in ("sample.csv", "full.csv", "split.json"):
        (tmp_path / "mmpb_clean" / name).write_text("")
    settings = load_edition(edition)
    there = {"edition": edition, "PREFMOE_DATA": str(tmp_path)}
    result = plans_of(edition) if settings.drawn else snakemake(clone, "--dry-run", **there)
    planned = jobs_of(result)
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
    assert jobs_of(result)["run"] == len(settings.runs())
    assert (
        f"Planned without its data: edition {edition!r} needs MMPB-clean (mmpb_clean/): set the environment var" in text
    )
    for backbone, method in settings.runs():
        assert f"06_train_and_evaluate/{backbone}/{method}.ipynb" in text


def test_an_edition_is_not_run_without_its_data(clone):
    result = snakemake(clone, edition="paper")
    assert result.returncode != 0
    assert (
        "edition 'paper' needs MMPB-clean (mmpb_clean/): set the environment variable" in result.stdout + result.stderr
    )


def test_an_edition_about_choices_is_planned_in_its_stages_without_its_data(plans_of):
    result = plans_of("pick-a-pic")
    settings, text = load_edition("pick-a-pic"), result.stdout + result.stderr
    planned = jobs_of(result)
    chain = {name for name in settings.methods if settings.needs(name)} | {"Auxiliary"}
    assert planned["run_that_others_need"] == 1
    assert planned["run_of_a_chain"] == len([method for _, method in settings.runs() if method in chain]) - 1 > 1
    assert planned["run"] + planned["run_of_a_chain"] + 1 == len(settings.runs())
    assert planned["data"] == planned["tables"] == 1
    urgent = dict(re.findall(r"method=(\w+)\n    priority: (\d+)", text))
    assert {name for name, priority in urgent.items() if int(priority) > int(urgent["Baseline"])} == chain
    assert all(int(urgent["Auxiliary"]) > int(urgent[name]) for name in chain - {"Auxiliary"})
    assert "Planned without its data: edition 'pick-a-pic' needs the parquet files of Pick-a-Pic v2" in text
    found = re.findall(r"input: ([^\n]*)\n    output: results/pick-a-pic/notebooks/\S+/(\w+)\.ipynb", text)
    needed = {name: line for line, name in found}
    assert needed["Prototypes10"].endswith("/idefics2-8b/Auxiliary.ipynb") and "ipynb" not in needed["Auxiliary"]
    declared = re.search(r"method=Auxiliary\n.*?resources: ([^\n]*)", text, re.DOTALL)[1]
    expected = resources.job(settings, [("idefics2-8b", "Auxiliary")], training=True)
    assert all(f"{name}={value}" in declared for name, value in expected.items())


def test_what_a_notebook_shows_of_one_method_waits_for_no_other(clone):
    """A minute and a half of one core was left for the end of the edition about choices."""
    target = "results/preference-smoke/notebooks/20_prototypes_and_attention.ipynb"
    planned = jobs_of(snakemake(clone, "--dry-run", "--", target, edition="preference-smoke"))
    assert planned == {"data": 1, "run_that_others_need": 1, "run_of_a_chain": 1, "prototypes_and_attention": 1}


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
    result = snakemake(clone, "--dry-run", "--printshellcmds", "--", target, edition="sharded")
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
    result = snakemake(clone, "--dry-run", "--printshellcmds", "--", target, edition="shared")
    text = result.stdout + result.stderr
    assert ("accelerate launch" in text) == bool(expected and "accelerate launch" in expected)
    assert expected is None or expected in text
    assert (f"threads: {hardware.get('processes')}" in text) == (hardware == {"launch": "ddp", "processes": 2})


def test_a_table_of_unseen_users_is_promised_only_where_there_are_some(plans_of):
    for edition, expected in (("tiny", False), ("smoke", True)):
        result = plans_of(edition)
        assert jobs_of(result)["tables"] == 1
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
    result = warm_python.run(["-c", WITHOUT_CORES], clone, environment())
    assert jobs_of(result) == {"pretrain": 1, "pretrain_miniature": 4}
    assert "threads: 8" in result.stdout + result.stderr


def test_pretraining_makes_the_backbones_in_their_order(clone):
    result = snakemake(clone, "--dry-run", "--", "pretrain")
    assert jobs_of(result) == {"pretrain": 1, "pretrain_miniature": 4}
    text = result.stdout + result.stderr
    assert text.index("miniature=llava-mini") < text.index("miniature=qwen2.5-vl-mini")
    alone = snakemake(clone, "--dry-run", "--", "results/pretraining/idefics2-mini.done")
    assert jobs_of(alone) == {"pretrain_miniature": 1}


def test_the_protocols_runs_are_planned_once_each_and_only_when_asked_for(clone, plans_of):
    edition = load_edition("smoke")
    planned = jobs_of(snakemake(clone, "--dry-run", "--", "protocol", edition="smoke"))
    made = [one.own for one in plans(edition, load_protocol(edition)).values()]
    assert planned == {
        "protocol": 1, "protocol_questions": 1, "protocol_tables": 1, "protocol_run": made.count(False),
        "run": made.count(True), "data": 1,
    }  # fmt: skip
    assert planned["run"] == 2, "LoRA and PrefMoE as they are"
    assert "protocol_run" not in jobs_of(plans_of("smoke"))


def test_the_settings_of_the_page_about_clusters_reach_the_jobs(tmp_path):
    """The page's YAML on top of the profile, planned without Slurm: every rule gets the partition that it says."""
    page, own = (REPOSITORY / name for name in ("docs/cluster.md", "profiles/slurm/config.yaml"))
    (block,) = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    settings, own = yaml.safe_load(block), yaml.safe_load(own.read_text(encoding="utf-8"))
    assert set(settings["default-resources"]) > set(own["default-resources"])
    profile = {k: v for k, v in own.items() if not k.startswith(("executor", "jobs", "slurm-"))} | settings
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    with_gpus, elsewhere = set(), set(settings["set-resources"])
    for edition in ("smoke", "pick-a-pic", "prefgen", "rivals"):
        command = [*SNAKEMAKE, "--profile", str(tmp_path), "--dry-run", "--forceall", "--config", f"edition={edition}"]
        result = warm_python.run(command, REPOSITORY, os.environ)
        planned = re.findall(r"^rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", result.stdout + result.stderr, re.M)
        assert result.returncode == 0 and planned, result.stdout + result.stderr
        for rule, declared in planned:
            assert ("slurm_partition=gpu" in declared) == (rule in elsewhere) and "slurm_account=my-acc" in declared
            assert rule in elsewhere or "gpus=" not in declared, (edition, rule)
            with_gpus |= {rule} if "gpus=" in declared else set()
    assert with_gpus == elsewhere


def test_the_profile_asks_what_answers_with_accounting_and_without():
    own = yaml.safe_load((REPOSITORY / "profiles/slurm/config.yaml").read_text(encoding="utf-8"))
    assert own["executor"] == "slurm" and own["slurm-status-command"] == "squeue" and own["restart-times"] >= 1


def test_the_linter_has_no_complaint():
    result = warm_python.run([*SNAKEMAKE, "--lint"], REPOSITORY, os.environ)
    assert result.returncode == 0 and "good condition" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ("editon=mini", r"unknown --config editon; expected edition=<name>, seeds=<number or all>"),
        ("edition=", r"--config edition= has no value; expected edition=<name>, seeds=<number or all>"),
        ("seeds=", r"--config seeds= has no value; expected edition=<name>, seeds=<number or all>"),
        ("seeds=two", r"seeds: expected a number from 1 to 3, or all, got 'two'"),
        ("edition=$(touch pwned)", r"the name '\$\(touch pwned\)' of an edition is refused: expected letters, digits"),
        ("edition=../elsewhere/mine.yaml", r"elsewhere/mine.yaml: the workflow makes editions of config/; put the"),
    ],
)
def test_a_typo_on_the_command_line_is_named(clone, configuration, message):
    """What is wrong with a name itself is said by load_edition (tests/test_config.py), and passed on."""
    (clone.parent / "elsewhere").mkdir(exist_ok=True)
    text = (clone / "config/tiny.yaml").read_text(encoding="utf-8")
    (clone.parent / "elsewhere/mine.yaml").write_text(text.replace("name: tiny", "name: mine"))
    result = warm_python.run([*SNAKEMAKE, "--cores", "1", "--dry-run", "--config", configuration], clone, environment())
    assert result.returncode != 0
    assert re.search(message, result.stdout + result.stderr, re.DOTALL)
    assert not (clone / "pwned").exists()


def test_a_method_that_would_be_a_command_is_refused_before_any_shell_sees_it(clone):
    text = (clone / "config/tiny.yaml").read_text(encoding="utf-8").replace("LoRA", "$(touch pwned)")
    (clone / "config/nasty.yaml").write_text(text.replace("name: tiny", "name: nasty"))
    result = snakemake(clone, edition="nasty")
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
    result = snakemake(clone, "--dry-run", "--printshellcmds", "--", "projector", PREFMOE_WEIGHTS=str(folder))
    assert f"python workflow/scripts/align.py '{folder}/smollm2-lite' drawings --ship" in result.stdout + result.stderr


def test_an_edition_with_a_method_of_one_s_own_is_planned(clone):
    tiny = yaml.safe_load((clone / "config/tiny.yaml").read_text(encoding="utf-8"))
    tiny |= {"name": "mine", "own_methods": ["own.py"], "table1": ["Own"]}
    tiny["methods"] = {"Own": {"kind": "own", "label": "Own"}}
    (clone / "config/mine.yaml").write_text(yaml.safe_dump(tiny), encoding="utf-8")
    (clone / "config/own.py").write_text(OWN_METHOD, encoding="utf-8")
    result = snakemake(clone, "--dry-run", edition="mine")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "backbone=llava-mini, method=Own" in result.stdout + result.stderr
    (clone / "config/own.py").write_text("1 / 0\n", encoding="utf-8")
    result = snakemake(clone, "--dry-run", edition="mine")
    assert result.returncode and "own.py, line 1: ZeroDivisionError" in result.stdout + result.stderr


def test_a_mistake_in_an_edition_is_named(clone):
    text = (clone / "config/tiny.yaml").read_text(encoding="utf-8")
    (clone / "config/broken.yaml").write_text(text.replace("llava-mini", "lava-mini").replace("tiny", "broken"))
    result = snakemake(clone, "--dry-run", edition="broken")
    assert result.returncode != 0
    assert "backbones: unknown lava-mini; known backbones: llava-mini" in result.stdout + result.stderr


def test_a_missing_notebook_is_named(clone):
    path = clone / "notebooks/11_routing.ipynb"
    hidden = path.rename(path.with_suffix(".hidden"))
    try:
        result = snakemake(clone, "--dry-run", edition="smoke")
        assert result.returncode != 0
        assert "11_routing.ipynb does not exist" in result.stdout + result.stderr
    finally:
        hidden.rename(path)
