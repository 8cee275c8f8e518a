"""What the workflow runs again, and what a kill, a failure and a second workflow cost."""

import os
import re
import shutil
import signal

import pandas as pd
import warm_python
import yaml
from small_clone import REPOSITORY
from synthetic_mmpb import make
from workflow_clones import RUN, SNAKEMAKE, change, environment, jobs_of, snakemake, wait_for

pytest_plugins = ["workflow_fixtures"]


def test_a_killed_workflow_goes_on_and_a_finished_one_rests(clone):
    targets = ["--", f"{RUN}/LoRA.ipynb", "results/tiny/notebooks/03_backbone.ipynb"]
    steps = clone / "results/tiny/runs/llava-mini/LoRA/steps"
    command = [*SNAKEMAKE, "--cores", "1", "--config", "edition=tiny", *targets[:2]]
    process = warm_python.start(command, clone, environment())
    wait_for(lambda: steps.exists() and len(steps.read_text().split()) == 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert not (clone / f"{RUN}/LoRA.ipynb").exists()

    result = snakemake(clone, *targets)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Edition 'tiny' has no committed tables: there is nothing to compare" in result.stdout + result.stderr
    assert steps.read_text().split() == [str(step) for step in range(8)], "a step was lost or done twice"
    assert re.search(r"started from 3\b", (clone / f"{RUN}/LoRA.ipynb").read_text())
    assert (clone / "results/tiny/figures/backbone_abilities.png").read_text() == "drawn"
    assert not list((clone / RUN).glob("*.running.ipynb"))

    change(clone / "notebooks/03_backbone.ipynb", "# 03_backbone", "# The backbone, in better words")
    change(clone / "notebooks/06_train_and_evaluate.ipynb", "# 06_train", "# Train")
    for path in (*(clone / "notebooks").iterdir(), *(clone / "prefmoe").rglob("*.py"), *(clone / "config").iterdir()):
        path.touch()
    again = snakemake(clone, *targets)
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr, (
        "a finished one rests: prose or times of files must not trigger anything"
    )

    change(clone / "notebooks/03_backbone.ipynb", "drawn", "drawn again")
    assert jobs_of(snakemake(clone, "--dry-run", *targets)) == {"backbone": 1}

    change(clone / "config/tiny.yaml", "steps: 4", "steps: 5")
    assert jobs_of(snakemake(clone, "--dry-run", *targets)) == {"backbone": 1, "run": 1}

    change(clone / "config/tiny.yaml", "steps: 5", "steps: 4")
    assert jobs_of(snakemake(clone, "--dry-run", *targets)) == {"backbone": 1}
    with (clone / "config/tiny.yaml").open("a") as settings:
        settings.write("more_seeds: {LoRA: [0, 1]}\nat_first: 1\n")
    assert jobs_of(snakemake(clone, "--dry-run", *targets)) == {"backbone": 1}
    every = snakemake(clone, "seeds=all", "--dry-run", *targets)
    assert jobs_of(every) == {"backbone": 1, "run": 1}, "`seeds=all` found nothing to be done where one seed was made"


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
        return jobs_of(snakemake(clone, "--dry-run", "--", target, edition="own", HOME=str(tmp_path)))

    made = snakemake(clone, "--", target, edition="own", HOME=str(tmp_path))
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


def test_tables_and_notebooks_that_quote_the_card_of_a_backbone_are_made_again_when_it_changes(clone):
    """On empty files, noted as made: nothing else is made again, and no run for a card."""
    wanted = [f"results/tiny/notebooks/{name}.ipynb" for name in ("02_benchmark", "03_backbone")]
    wanted.append("results/tiny/figures/information.csv")
    plan = snakemake(clone, "--dry-run", "--", *wanted)
    for outputs in re.findall(r"^    output: (.*)$", plan.stdout + plan.stderr, re.MULTILINE):
        for path in outputs.split(", "):
            (clone / path).parent.mkdir(parents=True, exist_ok=True)
            (clone / path).touch()
    assert snakemake(clone, "--touch", "--forceall", "--", *wanted).returncode == 0
    assert jobs_of(snakemake(clone, "--dry-run", "--", *wanted)) == {}
    change(clone / "prefmoe/weights/llava-mini/miniature.json", '"accuracy"', '"share"')
    assert jobs_of(snakemake(clone, "--dry-run", "--", *wanted)) == {"tables": 1, "backbone": 1}


def test_a_second_workflow_of_an_edition_is_told_who_makes_it(clone):
    text = (clone / "config/tiny.yaml").read_text(encoding="utf-8")
    (clone / "config/held.yaml").write_text(text.replace("name: tiny", "name: held"), encoding="utf-8")
    targets = ["--", "results/held/notebooks/01_published_results.ipynb"]
    command = [*SNAKEMAKE, "--cores", "1", "--config", "edition=held", *targets]
    first = warm_python.start(command, clone, environment())
    try:
        wait_for((clone / "results/held/.workflow.json").exists)
        os.killpg(first.pid, signal.SIGSTOP)
        second = snakemake(clone, *targets, edition="held")
        assert second.returncode != 0
        holder = rf"edition 'held' is being made by process {first.pid} of \S+ on \S+ since .* --config edition=held"
        assert re.search(holder, second.stdout + second.stderr)
        plan = snakemake(clone, "--dry-run", *targets, edition="held")
        assert plan.returncode == 0, "a plan changes nothing, and need not wait"
        job = snakemake(clone, "--mode", "subprocess", "--", "results/held/data.json", edition="held")
        assert job.returncode == 0, "a job of the first workflow, which an executor starts as a snakemake of its own"
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.join()
    third = snakemake(clone, *targets, edition="held")
    assert third.returncode == 0, third.stdout + third.stderr
    assert (clone / targets[1]).is_file()


def test_a_run_ends_with_the_verdict_and_is_no_failure_if_it_says_not_reproduced(clone, plans_of):
    """On the tables of another edition, without the jobs that would make its own."""
    assert "compare" not in jobs_of(plans_of("smoke"))
    made, committed = clone / "results/smoke/figures", clone / "figures/smoke"
    committed.mkdir(parents=True)
    for path in (REPOSITORY / "figures/small-sample").glob("*.csv"):
        few = pd.read_csv(path).query("method in ('PrefMoE', 'LoRA')" if "method" in path.read_text() else "index >= 0")
        few.to_csv(committed / path.name, index=False)
    shutil.copytree(committed, made)
    table = pd.read_csv(made / "table1.csv")
    table.assign(value=table["value"].where(table.index > 0, 2.0)).to_csv(made / "table1.csv", index=False)
    try:
        planned = jobs_of(snakemake(clone, "--dry-run", edition="smoke"))
        assert planned["compare"] == 1
        (clone / "results/smoke/notebooks").mkdir()
        for path in (clone / "notebooks").glob("*.ipynb"):
            shutil.copy(path, clone / "results/smoke/notebooks")
        target = "results/smoke/reproduction/verdict.txt"
        result = snakemake(clone, "--allowed-rules", "compare", "--", target, edition="smoke")
        text = result.stdout + result.stderr
        assert result.returncode == 0, text
        assert "Verdict: not reproduced: 1 of" in text and "Verdict: not" in (clone / target).read_text()
        (made / "table1.csv").unlink()
        result = snakemake(clone, "--allowed-rules", "compare", "--forcerun", "compare", "--", target, edition="smoke")
        assert result.returncode != 0 and "Verdict" not in result.stdout + result.stderr
    finally:
        shutil.rmtree(clone / "results/smoke")
        shutil.rmtree(committed)


def test_a_failing_notebook_fails_the_workflow_and_leaves_no_result(clone):
    change(clone / "notebooks/01_published_results.ipynb", "files = ", "files = no_such_name or ")
    target = "results/tiny/notebooks/01_published_results.ipynb"
    result = snakemake(clone, "--", target)
    assert result.returncode != 0
    assert "code cell 3 failed with NameError: name 'no_such_name' is not defined" in result.stdout + result.stderr
    assert not (clone / target).exists() and (clone / target.replace(".ipynb", ".failed.ipynb")).exists()
    assert not list((clone / "results/tiny/figures").glob("published_*")), "figures of a failed notebook are removed"
