"""Runs of editions that draw for users: raters as in editions about choices, probes on their states, and what draws."""

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from prefmoe.backbones.loading import load_backbone
from prefmoe.config import (
    RESULTS,
    ControlKind,
    Edition,
    Method,
    ProbesMethod,
    RaterMethod,
    UserTokensMethod,
    WrongUserMethod,
    is_trained,
    load_edition,
)
from prefmoe.config.backbone_files import CARDS, LOADED
from prefmoe.generation import probes
from prefmoe.generation.branch import UserBranch, WrongUser, liked_batches, training_histories
from prefmoe.generation.drawer import Drawer
from prefmoe.generation.drawing import Drawing, check_prompts, requests
from prefmoe.generation.measures import noted
from prefmoe.generation.plain import Plain
from prefmoe.generation.reader import READER, AttributeReader, load_reader
from prefmoe.generation.rewards import Rewarded
from prefmoe.generation.states import History, user_states
from prefmoe.generation.user_tokens import Known
from prefmoe.models.base import implementation_of
from prefmoe.models.raters import Rater
from prefmoe.models.saved import WEIGHTS_FILE
from prefmoe.running.choices import ChoiceWorkbench
from prefmoe.running.runs import Asked, RunError
from prefmoe.running.training import train
from prefmoe.system import distributed, provenance
from prefmoe.system.file_digests import files_below
from prefmoe.system.files import is_intact, sha256, whole_file, write_json, write_parquet
from prefmoe.system.places import drawer_folder
from prefmoe.system.run_files import METHOD_FOLDER, PREDICTIONS_FILE, read_predictions, read_story, verify

STATES = "states"
"""The folder of an edition's results in which what raters know of users is kept."""


class DrawingWorkbench(ChoiceWorkbench):
    """A workbench for editions that draw; raters are run as `ChoiceWorkbench` runs them."""

    def __init__(self, edition: Edition | str | Path, backbone_name: str, **options: Any) -> None:
        super().__init__(edition, backbone_name, **options)
        if self.edition.generation is None:
            raise RunError(f"edition {self.edition.name!r} draws nothing: it has no section generation")
        check_prompts(self.edition, self.benchmark)
        drawer, steps = self.drawer(), self.edition.generation.steps
        drawer.token_ids(self.edition.generation.prompts)
        if steps > (most := drawer.scheduler.config.num_train_timesteps):
            raise RunError(f"generation.steps: expected at most {most}, as this drawer's noise has steps; got {steps}")

    def drawer(self) -> Drawer:
        """The drawer, without a user branch of an earlier run."""
        return Drawer.from_pretrained(drawer_folder(self.edition.generation.drawer))

    @cached_property
    def reader(self) -> AttributeReader:
        """What says which attributes a picture shows."""
        return load_reader(drawer_folder(self.edition.generation.drawer) / READER.name)

    def rater(self, name: str, seed: int) -> Rater:
        """A rater as its run left it, which is made first if it is not there."""
        folder = self.needed(name, seed)
        verify(folder)
        return Rater.from_pretrained(folder / METHOD_FOLDER, load_backbone(self.backbone_name), self.benchmark)

    def inputs(self, config: Method, seed: int, asked: Asked, controls: Sequence[ControlKind] = ()) -> dict[str, Any]:
        """Everything a run's result depends on; equal inputs, equal result."""
        found = super().inputs(config, seed, asked, controls)
        if config.generates:
            found["code"] = provenance.code_digest((*provenance.RUN_MODULES, __name__), methods=(config.source(),))
            settings, apart = self.edition.generation, {"scales", "at_scales", "batch_size"}
            found["generation"] = settings.model_dump(mode="json", exclude=apart)
            found["reward"] = read_story(self.needed(settings.reward, seed))["inputs_digest"]
            found["drawer"] = folder_digest(drawer_folder(settings.drawer))
        return found

    def asked(self, method: str) -> Asked:
        """As of `ChoiceWorkbench`; what draws is asked after histories of the edition's lengths, with its scales."""
        lengths = super().asked(method)
        if not self.edition.methods[method].generates:
            return lengths
        scaled = method in self.edition.generation.at_scales
        return {**lengths, "scales": self.edition.generation.scales if scaled else ()}

    def _work(
        self, config: Method, seed: int, folder: Path, asked: Asked, controls: Sequence[ControlKind],
        about: dict[str, Any],
    ) -> None:  # fmt: skip
        """Fills a run's folder; run.json comes last."""
        if isinstance(config, ProbesMethod):
            self._probe(config, seed, folder, about)
        elif config.generates:
            self._draw(config, seed, folder, about)
        else:
            super()._work(config, seed, folder, asked, controls, about)

    def _probe(self, config: ProbesMethod, seed: int, folder: Path, about: dict[str, Any]) -> None:
        started = time.perf_counter()
        rater = self.rater(config.begins_with, seed)
        found = probes.probe(rater, config, n_ref=self.edition.histories.n_ref, seed=seed)
        write_parquet(folder / PREDICTIONS_FILE, found)
        described = {"rater": config.begins_with, "layers": int(found["layer"].max())}
        write_json(folder / METHOD_FOLDER / "probes.json", described)
        about |= {"parameters": {"trainable_total": 0}}
        self._finish(config, seed, folder, about, None, {"evaluate": _since(started)})

    def _draw(self, config: Method, seed: int, folder: Path, about: dict[str, Any]) -> None:
        method, training = self._built(config, seed), None
        if is_trained(config):
            training = self._trained(method, seed, folder)
        name = about["method"]
        asked = requests(self.edition, name, self.benchmark)
        started = time.perf_counter()
        self._tell(method, config, seed, asked)
        pictures = method.eval().draw(asked)
        drawn = _since(started)
        started = time.perf_counter()
        rater = self.rater(self.edition.generation.reward, seed)
        frame = noted(asked, pictures, reader=self.reader, rater=rater, n_ref=self.edition.histories.n_ref)
        method.save_pretrained(folder / METHOD_FOLDER)
        write_parquet(folder / PREDICTIONS_FILE, frame)
        about |= {"pictures": len(asked), "parameters": method.describe()}
        self._finish(config, seed, folder, about, training, {"draw": drawn, "evaluate": _since(started)})

    def _finish(self, config: Method, seed: int, folder: Path, about: dict[str, Any], *measured: Any) -> None:
        if distributed.state().is_main_process:
            sections = {"generation": self.edition.generation.model_dump(mode="json")}
            where = {"sections": sections, "device": torch.device("cpu")}
            self._seal(config, seed, folder, about, *measured, **where)

    # --- what draws

    def _built(self, config: Method, seed: int) -> Drawing:
        """A method that draws, untrained; a wrong user's and a judged one's with what they begin with."""
        drawer, generation = self.drawer(), self.edition.generation
        backbone = load_backbone(self.backbone_name)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            options = {"seed": seed, "drawer": drawer, "generation": generation}
            if isinstance(config, UserTokensMethod):
                return UserBranch(config, backbone, self.benchmark, **self._shape(config, seed, backbone), **options)
            if isinstance(config, WrongUserMethod):
                first = self.edition.methods[config.begins_with]
                shape = self._shape(first, seed, backbone)
                built = WrongUser(first, backbone, self.benchmark, **shape, **options)
                built.load(self.begun_with(config, seed) / METHOD_FOLDER / WEIGHTS_FILE)
                return built
            built = implementation_of(config)(config, backbone, self.benchmark, **options)
        if isinstance(built, Rewarded):
            built.judge(self.rater(config.begins_with, seed))
        if isinstance(built, Plain):
            built.see_with(self.reader)
        return built

    def _shape(self, config: UserTokensMethod, seed: int, backbone: Any) -> dict[str, int]:
        """The layer of e_core, which the probes chose, how many layers there are, and the width of what it sees."""
        found = read_predictions(self.begun_with(config, seed))
        layers = int(found["layer"].max())
        chosen = probes.chosen_layer(found, config.core_layers(layers))
        return {"core_layer": chosen, "layers": layers, "picture_width": backbone.hidden_size}

    def rater_of(self, config: Method) -> str:
        """The rater whose states user tokens are made of."""
        while not isinstance(config, RaterMethod):
            config, name = self.edition.methods[config.begins_with], config.begins_with
        return name

    def _trained(self, method: UserBranch, seed: int, folder: Path) -> Any:
        settings = self.edition.histories
        told, fitting = training_histories(
            self.benchmark, n_ref=settings.n_ref, lengths=settings.lengths, draws=method.config.draws
        )
        known = self.known(self.rater_of(method.config), seed, told)
        make = liked_batches(method, told, fitting, known)
        choices, training = self.benchmark.select("train"), self.edition.training
        return train(method, choices, training, folder=folder, seed=seed, make_batches=make)

    def _tell(self, method: Drawing, config: Method, seed: int, asked: pd.DataFrame) -> None:
        if isinstance(method, UserBranch):
            told = method.histories(asked)
            method.tell(told, self.known(self.rater_of(config), seed, told))

    def known(self, rater_name: str, seed: int, histories: Sequence[History]) -> Known:
        """What a rater knows of the users of some histories; computed once for all methods, and kept."""
        folder = self.needed(rater_name, seed)
        named = [(one.user, one.n_ref, one.draw, [choice.index for choice in one.without]) for one in histories]
        code = provenance.code_digest(("prefmoe.generation.states",), methods=())
        name = provenance.digest([read_story(folder)["inputs_digest"], code, named])
        path = self.results / self.edition.name / STATES / f"{name}.safetensors"
        if not is_intact(path):
            rater = self.rater(rater_name, seed)
            pictures = [one.liked(self.benchmark) for one in histories]
            states = user_states(rater, histories)
            rater.look_at(set(pictures))
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path, sealed=True) as partial:
                save_file({"states": states, "picture": rater.features(pictures).float().cpu().contiguous()}, partial)
        return Known(**load_file(path))


def folder_digest(folder: Path) -> str:
    """A hash of all files in a drawer's folder that may be loaded, its reader's and its tokenizer's among them."""
    files = [path for path in files_below(folder) if path.name not in CARDS and any(map(path.match, LOADED))]
    return provenance.digest({path.relative_to(folder).as_posix(): sha256(path) for path in files})


def _since(started: float) -> float:
    return time.perf_counter() - started


run_all_seeds = DrawingWorkbench.run_all_seeds


def trained_branch(
    edition: Edition | str | Path, backbone_name: str, method_name: str, seed: int, *, results: str | Path = RESULTS
) -> tuple[UserBranch, DrawingWorkbench]:
    """A user branch as its run left it, and its workbench; the run is made first if it is not there."""
    workbench = DrawingWorkbench(load_edition(edition), backbone_name, results=results)
    folder = workbench.run_method(method_name, seed)
    method = workbench._built(workbench.edition.methods[method_name], seed)
    method.load(folder / METHOD_FOLDER / WEIGHTS_FILE)
    return method.eval(), workbench
