# What the rules share: the edition, names of files, and digests that decide what has to run again.

import os
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError

from prefmoe.system import file_digests, provenance
from prefmoe.workflow import workflow_lock
from prefmoe.config import (CONFIG_FOLDER, DEFAULT_EDITION, KEEP_FREED_MEMORY, ROOT, SEEDS, ConfigError, InjectedMethod,
                            PrefMoEMethod, load_edition)
from prefmoe.config.backbone_files import cards_digest, registered_identity
from prefmoe.config.outputs import committed_folder
from prefmoe.system.places import (CHOICE_MINIATURE, DRAWER, MINIATURES, UNPACKED, data_folder, drawer_folder,
                                   from_environment, is_miniature, made_backbones, weights_folder)
from prefmoe.experiments.protocol import load_protocol, plans, protocol_path

if Path(workflow.basedir).resolve() != ROOT:
    raise WorkflowError(f"the installed prefmoe belongs to another clone, {ROOT}; run pip install -e . in this one")
if unknown := set(config) - {"edition", "seeds"}:
    raise WorkflowError(f"unknown --config {', '.join(sorted(unknown))}; expected edition=<name>, seeds=<number or all>")
if empty := [name for name, value in config.items() if value in (None, "")]:
    raise WorkflowError(f"--config {empty[0]}= has no value; expected edition=<name>, seeds=<number or all>")
if "seeds" in config:
    os.environ[SEEDS] = str(config["seeds"])  # for this and for every job
try:
    EDITION = load_edition(str(config.get("edition", DEFAULT_EDITION)))
    PROTOCOL = load_protocol(EDITION) if protocol_path(EDITION.name).is_file() else None
except ConfigError as error:
    raise WorkflowError(str(error))
if not (CONFIG_FOLDER / f"{EDITION.name}.yaml").is_file():
    raise WorkflowError(f"{config['edition']}: the workflow makes editions of config/; put the file there, and name it")

RESULTS = f"results/{EDITION.name}"
FIGURES = f"{RESULTS}/figures"
ENVIRONMENT = str(ROOT / "environment.yml")
DIGESTS = file_digests.FileDigests(ROOT / ".snakemake" / "file_digests.json")
provenance.MEMORY.read(ROOT / ".snakemake" / "code_digests.json")
# For hours of arithmetic: as many threads as there are cores given.
PYTHON_FOR_LONG = " ".join(
    [
        "OMP_NUM_THREADS={threads} PREFMOE_THREADS={threads}",
        *(f"{name}={value}" for name, value in KEEP_FREED_MEMORY.items()),
        "python",
    ]
)
# All cores that snakemake was given; where every job is given its own, on a cluster, some.
ALL_CORES = workflow.resource_settings.cores or 8
HOURS = 720  # of a cluster's job that goes on where a killed one stopped, in minutes
DATA_NEEDED = {
    "mmpb": "MMPB-clean (mmpb_clean/)",
    "pick_a_pic": "the parquet files of Pick-a-Pic v2",
    "choice_folder": "choices.csv and its pictures",
}
RUN_NOTEBOOK = {
    "questions": "06_train_and_evaluate",
    "choices": "18_train_and_choose",
    "pictures": "25_train_and_draw",
}[EDITION.about]
METHODS = tuple(dict.fromkeys(method.source() for method in EDITION.methods.values()))  # their code
PREFMOE_RUNS = [pair for pair in EDITION.runs() if isinstance(EDITION.methods[pair[1]], PrefMoEMethod)]
FULL_RUNS = [pair for pair in PREFMOE_RUNS if EDITION.methods[pair[1]].components == "EPICDM"]

COMPLETE_RUNS = [pair for pair in EDITION.runs() if pair[1] in EDITION.table2[-1:]]  # with all that they begin with

NOTEBOOKS = yaml.safe_load((ROOT / "workflow/notebooks.yaml").read_text(encoding="utf-8"))
ANALYSES = [
    name
    for name, row in NOTEBOOKS.items()
    if row.get("about", "questions") == EDITION.about
    and (FULL_RUNS or row.get("runs") != "full")
    and (COMPLETE_RUNS or row.get("runs") != "complete")
    and (EDITION.table2 or "table2" not in row.get("tables", ()))
    and row.get("data", EDITION.data.kind) == EDITION.data.kind
    and row.get("edition", EDITION.name) == EDITION.name
    and set(row.get("kinds", ())) <= {method.kind for method in EDITION.methods.values()}
]

ASKS_UNSEEN = EDITION.data.kind == "miniature" and EDITION.data.unseen_users and "unseen" in EDITION.evaluation.splits
UNSEEN_TABLE = ["unseen"] if ASKS_UNSEEN else []
# The tables that a run of this edition is compared with, if any are committed.
COMMITTED_TABLES = sorted(f"figures/{EDITION.name}/{path.name}" for path in committed_folder(EDITION.name).glob("*.csv"))
VERDICT = f"{RESULTS}/reproduction/verdict.txt"
SHORTENED_TABLE = [] if EDITION.evaluation.too_long == "refuse" else ["shortened"]
TOLD_TABLE = ["told_statistics"] if EDITION.data.kind == "miniature" and EDITION.data.untold else []
CONTROLS_TABLE = ["controls"] if EDITION.evaluation.controls else []
BESIDE_TABLE = ["beside"] if EDITION.beside else []
ATTRIBUTES_TABLE = ["attributes"] if any(isinstance(m, InjectedMethod) for m in EDITION.methods.values()) else []
TABLES = {  # by category of the report
    "Tables": ["table1", "table2", "information", "table1_seeds", "comparisons", "breakdown", "dataset_statistics"],
    "Uncertainty": ["turns", "forest", "detectable", "calibration", "reliability", "unparsed", "separation"],
}
TABLES["Tables"] += TOLD_TABLE + SHORTENED_TABLE + CONTROLS_TABLE + BESIDE_TABLE + UNSEEN_TABLE + ATTRIBUTES_TABLE
CHOICE_TABLES = {
    "Tables": ["table1", "table1_seeds", "table2", "table3", "table4", "table5"]
    + ["comparisons", "gaps", "more_history", "collapse", "information"],
}
PICTURE_TABLES = {
    "Tables": ["table1", "table1_seeds", "probes", "probes_paired", "comparisons", "lengths", "scales", "raters", "information"],
}
if EDITION.about == "choices":
    TABLES = CHOICE_TABLES
if EDITION.about == "pictures":
    TABLES = PICTURE_TABLES
TABLES["Tables"].append("made_with")


PLANS = plans(EDITION, PROTOCOL) if PROTOCOL else {}
OWN_PLANS = [place for place, one in PLANS.items() if one.own]  # a place is then a backbone and a method
NEEDED = sorted({before for _, method in EDITION.runs() for before in EDITION.needs(method)})  # others begin with them
CHAINED = sorted({method for _, method in EDITION.runs() if EDITION.needs(method)} - {*NEEDED})


# The last stage learns from photographs, which only those who fetched MMPB-clean have.
PROJECTOR_STAGES = ["drawings", "reading", *(["photographs"] if data_folder(None) else [])]


wildcard_constraints:
    stage="|".join(PROJECTOR_STAGES),
    backbone="|".join(map(re.escape, EDITION.backbones)),
    plan="|".join(re.escape(key) for _, key in PLANS) or "none",
    method="|".join(map(re.escape, EDITION.methods)),
    miniature="|".join(map(re.escape, [*MINIATURES, CHOICE_MINIATURE, DRAWER])),


# Jobs call the python that runs snakemake, unless snakemake makes the environment itself.
if not workflow.deployment_settings.deployment_method:
    shell.prefix(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")


def sole_workflow():
    """Nobody else may make this edition meanwhile; plans, reports and single jobs of this workflow do not ask."""
    if not workflow.is_main_process:
        return
    try:
        workflow_lock.hold(EDITION.name)
    except workflow_lock.WorkflowLockError as error:
        raise WorkflowError(str(error))


def print_verdict():
    """Whether the committed tables were reproduced, where the workflow ends: the main message of a run."""
    if not COMMITTED_TABLES:
        print(f"Edition {EDITION.name!r} has no committed tables: there is nothing to compare this machine's with.")
    elif Path(VERDICT).is_file():
        print(Path(VERDICT).read_text(encoding="utf-8"))


def executed(name):
    """The executed copy of an analysis notebook."""
    return f"{RESULTS}/notebooks/{name}.ipynb"


def run_notebooks(pairs):
    """The executed copies of the run notebook for (backbone, method) pairs."""
    return [f"{RESULTS}/notebooks/{RUN_NOTEBOOK}/{backbone}/{method}.ipynb" for backbone, method in pairs]


def tables(*names):
    """CSV files that the rule `tables` writes."""
    return [f"{FIGURES}/{name}.csv" for name in names]


def shown(path, category, name=None):
    """A file that the report shows, with the caption of its name; of a table that has a figure of its name, its own."""
    name = name or Path(path).stem
    own = f"{name}_table" if path.endswith(".csv") else name
    captions = [f"{EDITION.about}/{name}", own, name]  # what pairs of pictures or drawings say under a name that answers have, too
    caption = next((known for known in captions if (ROOT / f"workflow/report/{known}.rst").is_file()), name)
    return report(path, caption=f"../report/{caption}.rst", category=category)


def made_by(row):
    """Name and path of every file that an analysis notebook writes."""
    for file in row["makes"]:
        for path in dict.fromkeys(file.format(backbone=backbone) for backbone in EDITION.backbones):
            yield Path(file).stem.removesuffix("_{backbone}"), f"{FIGURES}/{path}"


def notebook_inputs(row):
    """What an analysis notebook reads."""
    runs = {"all": EDITION.runs(), "full": FULL_RUNS, "complete": COMPLETE_RUNS}.get(row.get("runs"), [])
    files = [file.format(results=RESULTS) for file in row.get("files", ())]
    return files + tables(*row.get("tables", ())) + run_notebooks(runs)


def code(name, methods=METHODS):
    """A digest of a notebook's code and of the modules it imports, methods among them; prose is not part of it."""
    try:
        return provenance.notebook_digest(ROOT / "notebooks" / f"{name}.ipynb", methods)
    except (provenance.NotebookCodeError, provenance.UnknownModuleError) as error:
        raise WorkflowError(str(error))


def run_inputs(wildcards):
    """A digest of what a run depends on besides the data; runs of equal inputs are not repeated."""
    about = {"choices": {"histories"}, "pictures": {"histories", "generation"}, "questions": {"evaluation"}}[EDITION.about]
    settings = EDITION.model_dump(mode="json", include={"training", "cache_images"} | about)
    settings["seeds"] = EDITION.seeds_of(wildcards.method)
    method = EDITION.methods[wildcards.method]
    code_behind = code(RUN_NOTEBOOK, (method.source(),))
    loaded = [weights(wildcards.backbone), *([drawer()] if EDITION.about == "pictures" else [])]
    return provenance.digest([code_behind, settings, method.model_dump(mode="json"), *loaded])


def table_inputs(wildcards):
    """A digest of the settings and the code behind the tables, and of the cards that they quote."""
    settings = EDITION.model_dump(mode="json", include={"methods", "table1", "table2", "backbones", "seeds", "more_seeds"})
    makers = {
        "choices": "prefmoe.analysis.choice_tables",
        "pictures": "prefmoe.analysis.generation_tables",
        "questions": "prefmoe.analysis.tables",
    }
    return provenance.digest([settings, provenance.code_digest((makers[EDITION.about],), ()), *map(cards, EDITION.backbones)])


def plan_inputs(wildcards):
    """A digest of what the runs of a protocol experiment depend on besides the settings that their name stands for."""
    evaluation = EDITION.evaluation.model_dump(mode="json")
    chosen = PLANS[wildcards.backbone, wildcards.plan]
    code_behind = provenance.code_digest(methods=(chosen.config.source(),))
    return provenance.digest([code_behind, chosen.seeds, evaluation, weights(wildcards.backbone)])


def protocol_inputs(wildcards):
    """A digest of the questions asked of the protocol, and of the code behind their tables."""
    code_behind = provenance.code_digest(("prefmoe.experiments.protocol_tables",), (), METHODS)
    return provenance.digest([PROTOCOL.model_dump(mode="json"), code_behind])


def tuning_inputs(wildcards):
    """A digest of what the trials on a backbone depend on besides the grid."""
    return provenance.digest([provenance.code_digest(methods=METHODS), weights(wildcards.backbone)])


def notebook_code(name, row):
    """The digest of an analysis notebook; with the weights and the cards of all backbones where it shows them."""
    shown_of = [*([weights] if row.get("model") == "first" else []), *([cards] if row.get("cards") else [])]
    if not shown_of:
        return lambda wildcards: code(name)
    backbones = dict.fromkeys([*MINIATURES, *EDITION.backbones])
    return lambda wildcards: provenance.digest([code(name), *(of(one) for of in shown_of for one in backbones)])


def data_inputs(wildcards):
    """A digest of the settings and the code behind the benchmark, and of every file of a real one."""
    source = provenance.code_digest(("prefmoe.data.sources",), ("prefmoe.config",))
    return provenance.digest([EDITION.data.model_dump(mode="json"), source, real_files()])


@cache
def real_files():
    """A digest of a real benchmark's files: questions, splits, annotations, pictures, small talk; not of the pictures
    that reading takes out of the table, which is watched itself."""
    folder = None if EDITION.drawn else data_folder(EDITION.data.folder)
    if folder is None:
        return "none"
    parts = {"questions": ("mmpb_clean", "multi_turn")}.get(EDITION.about, (".",))
    return file_digests.parts_digest(folder, parts, DIGESTS, UNPACKED)


@cache
def drawer():
    """What identifies the weights that draw, and those that read what was drawn, where they are here."""
    folder = drawer_folder(EDITION.generation.drawer)
    return file_digests.parts_digest(folder, (".",), DIGESTS) if folder.is_dir() else EDITION.generation.drawer


@cache
def weights(backbone):
    """What identifies a backbone's weights and all else that is loaded with them."""
    return registered_identity(backbone, DIGESTS.of)


@cache
def cards(backbone):
    """What identifies the cards of a backbone: how it was made, and what it can do."""
    return cards_digest(backbone, DIGESTS.of)


def absent(what, message):
    """No input where only a plan is wanted, which needs none; otherwise an error."""
    if not workflow.dryrun:
        raise WorkflowError(message)
    print(f"Planned without its {what}: {message}", file=sys.stderr)
    return []


def real_data(wildcards):
    """Nothing, or an error where a real benchmark is missing; its files are watched by their digest (`real_files`)."""
    if EDITION.drawn:
        return []
    folder, needed = data_folder(EDITION.data.folder), DATA_NEEDED[EDITION.data.kind]
    if folder is None:
        return absent(
            "data",
            f"edition {EDITION.name!r} needs {needed}: set the environment variable PREFMOE_DATA, or data.folder in "
            f"config/{EDITION.name}.yaml, to the folder that holds them",
        )
    if EDITION.data.kind == "mmpb" and not (folder / "mmpb_clean").is_dir():
        return absent("data", f"edition {EDITION.name!r} needs MMPB-clean: {folder / 'mmpb_clean'} does not exist")
    return []


def fetched_weights(wildcards):
    """Nothing, or an error where weights are missing that a command makes; they are watched by their digest."""
    name = wildcards.backbone
    if name not in made_backbones() or weights_folder(name) is not None:
        return []
    return absent(
        "weights",
        f"edition {EDITION.name!r} needs the weights of {name}: make them once with `{made_backbones()[name]} "
        f"<folder>/{name}` and set the environment variable PREFMOE_WEIGHTS to <folder>",
    )


def projector_folder():
    """The model folder whose parts are trained."""
    return (from_environment("PREFMOE_WEIGHTS") or ROOT / "weights") / "smollm2-lite"


def job_resources(pairs, training):
    """What a job asks the cluster for that works on (backbone, method) pairs one after the other."""
    if all(is_miniature(backbone) for backbone, _ in pairs):
        return {"gpus": 0, "mem_mb": 8000, "runtime": 240}
    from prefmoe.workflow import resources  # and the registry, for which plans of the miniatures need not wait

    return resources.job(EDITION, pairs, training=training)


def run_resources(wildcards):
    """For the run of one backbone and method."""
    return job_resources([(wildcards.backbone, wildcards.method)], training=True)


def notebook_resources(row):
    """What an analysis notebook that computes with a model asks for, as rules declare it; nothing for others."""
    if "model" not in row:
        return {}
    first = [pair for pair in EDITION.runs() if pair[0] == EDITION.backbones[0]]
    pairs = {"full": FULL_RUNS, "first": first}[row["model"]]
    asked = lambda wildcards: job_resources(pairs, training=False)
    return {name: needed(asked, name) for name in ("gpus", "gres", "mem_mb", "runtime")}


def needed(asked, name):
    """One entry of the above, as rules declare it; `gres` is how SLURM is asked for GPUs."""
    if name != "gres":
        return lambda wildcards: asked(wildcards)[name]
    return lambda wildcards: f"gpu:{asked(wildcards)['gpus']}" if asked(wildcards)["gpus"] else ""


def run_threads(wildcards):
    """CPU cores of a run: four for each GPU, or one for each process."""
    return 4 * run_resources(wildcards)["gpus"] or EDITION.hardware.processes or 1


def launcher(wildcards):
    """The command before the run's notebook: with several processes, they make the run and the notebook finds it."""
    gpus, hardware = run_resources(wildcards)["gpus"], EDITION.hardware
    processes = hardware.processes or gpus
    if hardware.launch == "one" or processes < 2:
        return ""
    if not gpus and hardware.launch != "ddp":
        raise WorkflowError(f"{wildcards.backbone} runs on CPUs, where hardware.launch {hardware.launch} does not start")
    settings = f"config/accelerate/{hardware.launch if gpus else 'cpu'}.yaml"
    run = ["-m", "prefmoe", "run", EDITION.name, wildcards.backbone, wildcards.method]
    start = ["accelerate", "launch", "--config_file", settings, "--num_processes", str(processes)]
    return f"{'' if gpus else 'ACCELERATE_USE_CPU=true '}{shlex.join([*start, *run])} &&"


def made_before(miniature):
    """Miniature backbones that have to be made before this one."""
    return MINIATURES[: MINIATURES.index(miniature)] if miniature in MINIATURES else ()


RUN_NOTEBOOKS = run_notebooks(EDITION.runs())
