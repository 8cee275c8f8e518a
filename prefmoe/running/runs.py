"""Runs: one backbone, one method, one seed, trained and evaluated into a folder that exists once complete."""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.loading import load_backbone
from prefmoe.backbones.prepared import prepared_pictures, seen_pictures
from prefmoe.backbones.weights import weights_digest
from prefmoe.config import RESULTS, ControlKind, Edition, Method, claim_results, is_trained, load_edition, run_folder
from prefmoe.config.registry import find_backbone, is_introduced
from prefmoe.data import counterfactual
from prefmoe.data.benchmark import Benchmark, Example
from prefmoe.data.sources import load_benchmark
from prefmoe.models.base import Method as BuiltMethod
from prefmoe.models.base import build_method
from prefmoe.running.answers import answers, context_tokens, controlled_answers
from prefmoe.running.evaluation import small_talk
from prefmoe.running.record import circumstances
from prefmoe.running.shortening import fitting_talks
from prefmoe.running.training import TrainingResult, train
from prefmoe.system import distributed, provenance
from prefmoe.system.files import FileError, read_json, sole_process, write_json, write_parquet
from prefmoe.system.names import did_you_mean
from prefmoe.system.run_files import CONTROLS_FILE, METHOD_FOLDER, PREDICTIONS_FILE, is_complete, seal

log = logging.getLogger(__name__)

Asked = Mapping[str, Sequence[int]]
"""The splits whose questions are answered, each after so many exchanges of small talk (choices: after histories of so
many choices)."""


APART = {"turns", "unseen_turns", "splits", "controls"}
"""What an edition says of the questions that are asked, which every kind of run chooses for itself."""


class RunError(RuntimeError):
    """A run that cannot start: unknown names, or another process at work on it."""


def use_threads() -> None:
    """Lets torch use as many CPU threads as PREFMOE_THREADS says; as many as it likes when that is not set. Raises
    RunError if the variable is not a positive whole number."""
    wanted = os.environ.get("PREFMOE_THREADS")
    if not wanted:
        return
    if not wanted.isdigit() or int(wanted) < 1:
        raise RunError(f"PREFMOE_THREADS is {wanted!r}; expected a positive whole number")
    torch.set_num_threads(int(wanted))


class Workbench:
    """An edition's benchmark and one of its backbones, loaded once and used for many runs.

    Every run starts from a backbone loaded anew, so that nothing of an earlier run is left in it; encoded questions
    and pictures, which no run changes, are handed on.

    Attributes:
        modules: of the class, whose code a result depends on beside `provenance.RUN_MODULES`.
    """

    modules: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        edition: Edition | str | Path,
        backbone_name: str,
        *,
        results: str | Path = RESULTS,
        benchmark: Benchmark | None = None,
    ) -> None:
        """``benchmark``: with other questions than the edition's. Raises RunError if the backbone is not one of the
        edition's, or the data are missing; ConfigError as `claim_results`."""
        self.edition = load_edition(edition)
        if backbone_name not in self.edition.backbones:
            raise RunError(
                f"edition {self.edition.name!r} has no backbone {backbone_name!r}; "
                f"it has {', '.join(self.edition.backbones)}{did_you_mean(backbone_name, self.edition.backbones)}"
            )
        use_threads()
        self.backbone_name = backbone_name
        self.results = Path(results)
        claim_results(self.edition, self.results)
        self._benchmark = benchmark
        self._latest: Backbone | None = None

    @cached_property
    def benchmark(self) -> Benchmark:
        """The questions, read and checked."""
        return load_benchmark(self.edition, self.results) if self._benchmark is None else self._benchmark

    def backbone(self, *, trained: bool = False, look: bool = False) -> Backbone:
        """A backbone as it was saved, with what earlier ones have encoded.

        ``trained``: whether its own weights will be: sharded ones have to be in float32 from the start; ``look``:
        whether all pictures will be asked about: then the tower looks at them first, for all runs.
        """
        backbone = self._load(trained, cache_images=self.edition.cache_images)
        if self._latest is not None:
            backbone.adopt_caches(self._latest)
        elif self.edition.cache_images:
            examples = self.benchmark.examples.values()
            folder, digest = self.results / self.edition.name / "pictures", self.benchmark.digest
            pictures = prepared_pictures(backbone, (example.image for example in examples), digest, folder)
            backbone.encodings.benchmarks[digest].pictures.update(pictures)
            if look:
                seen_pictures(backbone, pictures.values(), folder)
        self._latest = backbone
        return backbone

    def _load(self, trained: bool, *, cache_images: bool) -> Backbone:
        """In float32 on the CPU and for small backbones, which folders hold that nobody introduced; else in bfloat16, a
        lone process taking all accelerators."""
        state, settings = distributed.state(), self.edition.hardware
        entry = find_backbone(self.backbone_name)
        small = entry.hub_id is None and not is_introduced(self.backbone_name)
        plain = small or state.device.type == "cpu"
        compute, sharded = torch.float32 if plain else torch.bfloat16, distributed.sharding()
        if sharded and settings.four_bit:
            raise RunError("hardware.four_bit and sharded layers exclude each other; start with ddp.yaml instead")
        return load_backbone(
            self.backbone_name,
            device=state.device if plain or state.num_processes > 1 else "auto",
            dtype=torch.float32 if sharded and trained else compute,
            attn="sdpa" if plain else settings.attention,
            cache_images=cache_images,
            four_bit=settings.four_bit and not plain,
            shard=compute if sharded else None,
            anchors=self.results / self.edition.name / "anchors",
        )

    @cached_property
    def weights_digest(self) -> str:
        """Identifies the backbone's weights."""
        return weights_digest(find_backbone(self.backbone_name))

    def asked(self, method: str) -> Asked:
        """What a method of the edition is asked in a run of its own."""
        return self.edition.evaluation.asked

    def validation(self) -> Asked:
        """What settings are chosen by: validation questions, without small talk."""
        return {"validation": (0,)}

    def method(self, config: Method, seed: int, *, look: bool = False) -> BuiltMethod:
        """An untrained method on a pristine backbone; see `backbone`."""
        backbone = self.backbone(trained=config.table_type == "FFT", look=look)
        return build_method(config, backbone, self.benchmark, seed=seed, cache=self.edition.cache_images)

    def inputs(self, config: Method, seed: int, asked: Asked, controls: Sequence[ControlKind] = ()) -> dict[str, Any]:
        """Everything a run's result depends on; equal inputs, equal result."""
        return {
            **self._asked_inputs(config, seed, asked, controls),
            "method": config.model_dump(mode="json", exclude={"label"}),
            "training": self.edition.training.model_dump(mode="json", exclude={"checkpoint_every"}),
            "four_bit": self.edition.hardware.four_bit,
            "seed": seed,
            "data": self.benchmark.digest,
            "weights": self.weights_digest,
            "code": provenance.code_digest((*provenance.RUN_MODULES, *self.modules), methods=(config.source(),)),
        }

    def _asked_inputs(self, config: Method, seed: int, asked: Asked, controls: Sequence[ControlKind]) -> dict[str, Any]:
        """What a result depends on in one kind of run alone: what is asked, and what the method reads beside."""
        evaluation = self.edition.evaluation.model_dump(mode="json", exclude=APART)
        evaluation["asked"] = {split: list(turns) for split, turns in asked.items()}
        evaluation["controls"] = list(controls)
        if getattr(config, "counterfactual_source", "") != "file":
            return {"evaluation": evaluation}
        return {"evaluation": evaluation, "counterfactual_users": counterfactual.file_digest(self.benchmark.root)}

    def run_method(self, name: str, seed: int) -> Path:
        """`run_method` of a method of this edition."""
        return self.run(
            self.edition.methods[name],
            seed,
            run_folder(self.results, self.edition.name, self.backbone_name, name, seed),
            asked=self.asked(name),
            controls=self.edition.evaluation.controls,
            about={"edition": self.edition.name, "backbone": self.backbone_name, "method": name},
        )

    @classmethod
    def run_all_seeds(
        cls, edition: Edition | str | Path, backbone_name: str, method_name: str, *, results: str | Path = RESULTS
    ) -> list[Path]:
        """`run_method` for every seed of `Edition.seeds_of`, on one workbench."""
        workbench = cls(edition, backbone_name, results=results)
        return [workbench.run_method(method_name, seed) for seed in workbench.edition.seeds_of(method_name)]

    def run(
        self,
        config: Method,
        seed: int,
        folder: Path,
        *,
        asked: Asked,
        about: dict[str, Any],
        controls: Sequence[ControlKind] = (),
    ) -> Path:
        """Trains and evaluates into ``folder``, which exists from the moment everything in it is complete.

        An unchanged complete run is left alone. An interrupted one, in ``<folder>.partial``, goes on from its
        last checkpoint or shard of answers; when its inputs have changed since, it starts again.

        Args:
            about: what else run.json says (names of edition, backbone and method).
            controls: under which the test questions are asked once more; those that the method lacks are left out.

        Raises TrainingError, EvaluationError from training and evaluation; nothing is saved as complete then; RunError
        if another process is working on the same run.
        """
        inputs = self.inputs(config, seed, asked, controls)
        digest = provenance.digest(inputs)
        if is_complete(folder, digest):
            log.info("%s: complete and unchanged, nothing to do", folder)
            return folder
        main = distributed.state().is_main_process
        held = RunError(f"{folder}: another process is working on this run; wait for it, or stop it first")
        with sole_process(folder, held) if main else nullcontext():
            partial = folder.with_name(folder.name + ".partial")
            if main:
                _open_partial(partial, inputs)
            distributed.state().wait_for_everyone()
            finished = is_complete(partial, digest)
            distributed.state().wait_for_everyone()
            if not finished:
                self._work(config, seed, partial, asked, controls, {"inputs_digest": digest, "inputs": inputs, **about})
            if main:
                _publish(partial, folder)
            distributed.state().wait_for_everyone()
        return folder

    def check_training(self, config: Method) -> None:
        """Raises RunError if a method learns, and there is nothing to learn from."""
        if is_trained(config) and not self.benchmark.splits.get("train"):
            raise RunError(
                f"{self.benchmark.root}: expected rows of the split train, of which {config.label} learns; found none"
            )

    def _work(
        self,
        config: Method,
        seed: int,
        folder: Path,
        asked: Asked,
        controls: Sequence[ControlKind],
        about: dict[str, Any],
    ) -> None:
        """Fills a run's folder; run.json comes last."""
        questions: dict[int, list[Example]] = {}
        for split, turns in asked.items():
            for count in turns if self.benchmark.splits.get(split) else ():
                questions.setdefault(count, []).extend(self.benchmark.select(split))
        if not questions:
            raise RunError(f"{self.benchmark.root}: no questions in the split(s) {', '.join(asked)}")
        self.check_training(config)
        method = self.method(config, seed, look=True)
        device = method.backbone.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        training = None
        settings, frames, seconds = self.edition.evaluation, [], {}
        if is_trained(config):
            for count, examples in questions.items():  # hours of training are no use to a question that is refused
                talks = [small_talk(example, self.benchmark.transcripts, count) for example in examples]
                limits = {"max_new_tokens": settings.max_new_tokens, "too_long": settings.too_long}
                fitting_talks(method, examples, talks, **limits)
            train_examples = self.benchmark.select("train")
            training = train(method, train_examples, self.edition.training, folder=folder, seed=seed)
        for count, examples in questions.items():
            kept = answers(method, examples, settings, folder, turns=count, benchmark=self.benchmark)
            if kept is not None:
                frames.append(kept[0])
                seconds[str(count)] = kept[1]
        under, control_seconds = controlled_answers(method, settings, folder, kinds=controls, benchmark=self.benchmark)
        method.save_pretrained(folder / METHOD_FOLDER)
        if not distributed.state().is_main_process:
            return
        write_parquet(folder / PREDICTIONS_FILE, pd.concat(frames, ignore_index=True))
        if under is not None:
            write_parquet(folder / CONTROLS_FILE, under)
        told = {
            "parameters": method.describe(),
            "context_tokens": context_tokens(method, next(iter(questions.values()))),
            "shortened_questions": {str(f["turns"][0]): int((f["turns_left_out"] > 0).sum()) for f in frames},
        }
        seconds = {"evaluate": seconds} | ({"controls": control_seconds} if control_seconds else {})
        sections = {"evaluation": settings.model_dump(mode="json")}
        self._seal(config, seed, folder, about | told, training, seconds, sections=sections, device=device)

    def _seal(
        self, config: Method, seed: int, folder: Path, about: dict[str, Any], training: TrainingResult | None,
        seconds: dict[str, Any], *, sections: dict[str, Any], device: torch.device,
    ) -> None:  # fmt: skip
        """Writes run.json, by which a run is finished. ``about``: what it says of this one; ``seconds``: that took
        beside training; ``sections``: of the edition beside training."""
        told = {"method": config.model_dump(mode="json"), "training": self.edition.training.model_dump(mode="json")}
        steps, trained = (training.steps, training.seconds) if training else (0, 0.0)
        story = {"seed": seed, "config": told | sections, "steps": steps, "seconds": {"train": trained, **seconds}}
        seal(folder, {**about, **story, **circumstances(device)})


def _open_partial(partial: Path, inputs: dict[str, Any]) -> None:
    """Keeps what an interrupted run of the same inputs left behind; clears what any other run did."""
    note = partial / "inputs.json"
    try:
        found = read_json(note, "the inputs of a run")
    except FileError:
        found = None
    if partial.exists() and found != inputs:
        changed = [key for key in inputs if found is None or found.get(key) != inputs[key]]
        log.warning("%s: inputs have changed (%s), starting again", partial, ", ".join(changed))
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    write_json(note, inputs)


def _publish(partial: Path, folder: Path) -> None:
    """Gives a finished run its name, in place of an earlier one."""
    for path in (partial / "checkpoint", *partial.glob("answers-*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
    (folder / "inputs.json").unlink(missing_ok=True)


def run_method(
    edition: Edition | str | Path, backbone_name: str, method_name: str, seed: int, *, results: str | Path = RESULTS
) -> Path:
    """Trains and evaluates one method on one backbone with one seed; a complete, unchanged run is left alone.

    Returns the run's folder:
    run.json, predictions.parquet (all turns and splits), controls.parquet (where the edition asks under controls that
    the method has), losses.parquet (unless non-tuned) and method/ (`save_pretrained`). Raises ConfigError if the
    edition has no such method; RunError if it has no such backbone, data are missing, or somebody is at work on the
    run; TrainingError if a loss is not finite; the run is not complete then.
    """
    return Workbench(edition, backbone_name, results=results).run_method(method_name, seed)


run_all_seeds = Workbench.run_all_seeds
