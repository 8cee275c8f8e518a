"""The configuration of an edition: every hyper-parameter of the workflow, read once and validated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from prefmoe.config.benchmarks import Choices, Data, Seed
from prefmoe.config.generation import Generation
from prefmoe.config.method_settings import OWN_FILES, Method, is_trained
from prefmoe.config.mistakes import mistakes_in
from prefmoe.config.own_methods import read_own_methods
from prefmoe.config.strict import ConfigError, Strict
from prefmoe.system.files import whole_file
from prefmoe.system.names import NAME, RULE, Name, Once, Some, did_you_mean
from prefmoe.system.places import ROOT, expanded, known_backbones
from prefmoe.system.yaml_settings import read_checked

CONFIG_FOLDER, RESULTS, FIGURES = ROOT / "config", ROOT / "results", ROOT / "figures"

DEFAULT_EDITION = "mini"
"""The edition that runs when none is named, and that the committed notebooks and README.md show."""

RESERVED = ("any_vlm", "course", "explorer", "pages", "pretraining", "projector", "site", "speed")
"""No names of editions: folders of results/ and figures/ that other commands write, and words of publish.py."""

SEEDS = "PREFMOE_SEEDS"
"""The environment's variable that says how many seeds an edition has: a number, or all."""

KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**29)}
"""Environment in which glibc keeps a large tensor's memory for the next one, and does not get it again page by page."""

TABLES = ("table1", "table2", "rivals", "beside")
"""Settings of an edition that list its methods."""

Split = Literal["train", "validation", "test", "unseen"]
Turns = Some[Annotated[int, Field(ge=0, le=10_000)]]
"""Numbers of exchanges of small talk."""


class Training(Strict):
    """Optimisation shared by all trained methods of an edition."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="after the warm-up; two reach 0")
    auxiliary_ramp: float = Field(
        0.0, ge=0, lt=1, description="share of the steps over which the auxiliary losses' factor rises from 0 to 1"
    )
    weight_decay: float = Field(0.0, ge=0)
    beta2: float = Field(0.999, gt=0, lt=1, description="AdamW's decay of squared gradients")
    clip_norm: float = Field(1.0, gt=0)
    checkpoint_every: int = Field(100, ge=1)
    group_batches: bool = Field(True, description="draw batches in which preference groups recur")
    batches_of_one_form: bool = Field(True, description="questions with options apart from others, as they are longer")
    gradient_checkpointing: bool = Field(False, description="compute activations again in the backward pass")
    mixed_precision: Literal["no", "bf16"] = Field(
        "no", description="of the forward pass of backbones in float32: bf16 multiplies in half the bits"
    )


TooLong = Literal["refuse", "drop_small_talk"]
"""What is done with a prompt that is longer than the model's positions."""


ControlKind = Literal["other_user", "zero_prefix", "shuffled_facets", "swapped_name", "blank_picture"]
"""What of a question's user or picture is exchanged or taken away (prefmoe.models.controls says how)."""


class Evaluation(Strict):
    """Which questions are asked, and how.

    turns: exchanges of small talk before a question; unseen_turns: the same for users without training questions.
    controls: under which the test questions are asked once more, without small talk, of every method that has them.
    """

    batch_size: int = Field(64, ge=1)
    turns: Turns = (0, 10)
    unseen_turns: Turns = (0,)
    max_new_tokens: int = Field(3, ge=1, le=10_000)
    splits: Some[Split] = ("test", "unseen")
    controls: Annotated[tuple[ControlKind, ...], Once] = ()
    reuse_prefixes: bool = Field(True, description="compute the beginning that prompts share once per batch")
    too_long: TooLong = Field("refuse", description="or leave out the oldest exchanges of small talk, whole ones")

    @model_validator(mode="after")
    def _controlled(self) -> Evaluation:
        if self.controls and "test" not in self.splits:
            raise ValueError("controls are about the test questions, and splits does not name test")
        return self

    @property
    def asked(self) -> dict[str, tuple[int, ...]]:
        """The exchanges of small talk before the questions of each split."""
        return {split: self.unseen_turns if split == "unseen" else self.turns for split in self.splits}


class Histories(Strict):
    """How users are told by histories, in editions about choices between pictures.

    n_ref: choices in a history. lengths: further numbers of them, after which the methods of at_lengths are asked too.
    draws: histories of each length, drawn for each user. targets: choices of one user that are trained on behind one
    history. batch_size: users asked about at once.
    """

    n_ref: int = Field(8, ge=1)
    lengths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Once] = ()
    at_lengths: Annotated[tuple[Name, ...], Once] = ()
    draws: int = Field(3, ge=1)
    targets: int = Field(4, ge=1)
    batch_size: int = Field(8, ge=1)

    def asked(self, method: str) -> tuple[int, ...]:
        """The lengths of the histories after which a method is asked, ascending."""
        return tuple(sorted({self.n_ref, *(self.lengths if method in self.at_lengths else ())}))


class Hardware(Strict):
    """How the workflow runs backbones; what is said of accelerators holds for those from the hub, miniatures need none.

    launch: "one" process spreads a backbone over its GPUs; "ddp" processes share the batches, each with the whole
    backbone; "fsdp" processes share the decoder layers as well.
    processes: how many; by default one for each GPU that a run needs. Two or more also start on a CPU ("ddp" only).
    """

    four_bit: bool = Field(False, description="decoder layers in 4-bit NF4 (bitsandbytes); frozen backbones only")
    attention: Literal["sdpa", "flash_attention_2"] = "sdpa"
    launch: Literal["one", "ddp", "fsdp"] = "one"
    processes: int | None = Field(None, ge=2)
    gpu_gigabytes: float = Field(80, gt=0, description="memory of each GPU of the cluster")
    gpus_per_node: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _launched(self) -> Hardware:
        if self.processes and self.launch == "one":
            raise ValueError("processes share a run with launch: ddp or fsdp only")
        return self


class Methods(dict[str, Method]):
    """An edition's methods by name; asking for another one names those that there are."""

    edition = "this edition"

    def __missing__(self, name: str) -> Method:
        known = f"it has {', '.join(self)}{did_you_mean(name, self)}"
        raise ConfigError(f"{self.edition} has no method {name!r}; {known}")


class Edition(Strict):
    """One configuration of the whole workflow.

    Attributes:
        seeds: of every trained method, but those of which more_seeds names others.
        at_first: so many of them are made unless more are asked for (`with_seeds`): tables in less time, to be held to
            the committed ones of all.
        later: methods of the tables that are not made at first either.
        rivals: methods of table1 that run on ablation_backbone alone, as most of the paper's competitors do on one.
        beside: methods that every other one is compared with, too: table beside.csv, with a correction of its own.
        own_methods: Python files, relative to the edition's, with methods that are not in the package.
    """

    name: Name
    purpose: str
    seeds: Some[Seed]
    backbones: Some[Name]
    more_seeds: dict[Name, Some[Seed]] = {}
    at_first: int | None = Field(None, ge=1)
    later: Annotated[tuple[Name, ...], Once] = ()
    ablation_backbone: str | None = None
    data: Annotated[Data, Field(discriminator="kind")]
    training: Training
    evaluation: Evaluation = Evaluation()
    histories: Histories = Histories()
    generation: Generation | None = None
    own_methods: Annotated[tuple[Path, ...], Once] = ()
    methods: dict[Name, Method] = Field(min_length=1)
    table1: Some[str]
    table2: Annotated[tuple[str, ...], Once] = ()
    rivals: Annotated[tuple[str, ...], Once] = ()
    beside: Annotated[tuple[str, ...], Once] = ()
    cache_images: bool = Field(True, description="keep encoded pictures in memory; off for large backbones")
    hardware: Hardware = Hardware()
    _file: Path | None = None  # where it was read, if elsewhere than in config/

    @field_validator("name")
    @classmethod
    def _free(cls, name: str, info: ValidationInfo) -> str:
        if name.lower() in RESERVED:
            raise ValueError(f"expected none of {', '.join(RESERVED)}, which other commands use; rename the file, too")
        if info.context and name != info.context.stem:
            raise ValueError(f"expected {info.context.stem!r} as in the file's name")
        return name

    @field_validator("backbones")
    @classmethod
    def _registered(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in known_backbones()]:
            known = f"known backbones: {', '.join(known_backbones())}{did_you_mean(unknown[0], known_backbones())}"
            raise ValueError(f"unknown {', '.join(unknown)}; {known}")
        return names

    @field_validator("own_methods")
    @classmethod
    def _run(cls, files: tuple[Path, ...], info: ValidationInfo) -> tuple[Path, ...]:
        """Before the methods are looked at, whose kinds they may define."""
        paths = tuple((info.context or Path()).parent.joinpath(expanded(file)).resolve() for file in files)
        for path in paths:
            read_own_methods(path)
        return paths

    @field_validator("methods")
    @classmethod
    def _named(cls, methods: dict[str, Method], info: ValidationInfo) -> Methods:
        """Two names that differ in their capitals alone would be one folder on some machines."""
        low = [name.lower() for name in methods]
        if same := [name for name in methods if low.count(name.lower()) > 1]:
            raise ValueError(f"names that differ in capitals alone: {', '.join(same)}")
        known = Methods(methods)
        known.edition = f"edition {info.data['name']!r}" if "name" in info.data else known.edition
        return known

    @model_validator(mode="after")
    def _consistent(self) -> Edition:
        named = {table: getattr(self, table) for table in (*TABLES, "more_seeds", "later")}
        named["histories.at_lengths"] = self.histories.at_lengths
        if self.generation:
            named |= {"generation.reward": (self.generation.reward,), "generation.at_scales": self.generation.at_scales}
        for table, names in named.items():
            unknown = [name for name in names if name not in self.methods]
            if unknown:
                near = did_you_mean(unknown[0], self.methods)
                raise ValueError(f"{table} names methods that are not defined: {', '.join(unknown)}{near}")
        for name, method in self.methods.items():
            source = OWN_FILES.get(type(method).__module__)
            if source and source.path not in self.own_methods:
                raise ValueError(f"methods.{name}: own_methods does not name {source.path}, which defines its kind")
        labels = [method.label for method in self.methods.values()]
        if repeated := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"labels name the rows of the tables; given to several methods: {', '.join(repeated)}")
        if (self.table2 or self.rivals) and self.ablation_backbone not in self.backbones:
            raise ValueError(f"ablation_backbone must be one of {', '.join(self.backbones)}")
        if elsewhere := [name for name in self.rivals if name not in self.table1]:
            raise ValueError(f"rivals names methods that table1 does not: {', '.join(elsewhere)}")
        if missing := [name for name, seeds in self.more_seeds.items() if not set(self.seeds) <= set(seeds)]:
            raise ValueError(f"more_seeds has to hold the edition's seeds too, for {', '.join(missing)}")
        self._check_choices()
        self._check_later()
        if self.training.batch_size % (self.hardware.processes or 1):
            raise ValueError(
                f"training.batch_size {self.training.batch_size} cannot be shared equally among "
                f"hardware.processes {self.hardware.processes}"
            )
        return self

    def _check_choices(self) -> None:
        """Methods and settings for choices between pictures, and for questions, do not mix."""
        about = self.about_choices
        if wrong := [name for name, method in self.methods.items() if method.about_choices != about]:
            kind = "choices between pictures" if about else "questions"
            raise ValueError(f"data are {self.data.kind}: methods that are not for {kind}: {', '.join(wrong)}")
        if self.generation is None and (wrong := [name for name, method in self.methods.items() if method.generates]):
            raise ValueError(f"methods that draw need the section generation: {', '.join(wrong)}")
        if self.generation is not None and not about:
            raise ValueError(f"data are {self.data.kind}, whose users have no histories: leave generation out")
        if self.generation is not None and (mistake := self.generation.mistakes(self.methods)):
            raise ValueError(mistake)
        if not about and self.histories != Histories():
            raise ValueError(f"data are {self.data.kind}, whose users have no histories: leave the setting out")
        if about and self.training.batch_size % self.histories.targets:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} is not a multiple of "
                f"histories.targets {self.histories.targets}"
            )
        for name in self.methods:
            chain = [name]
            while (before := getattr(self.methods[chain[-1]], "begins_with", None)) is not None:
                if before not in self.methods:
                    near = did_you_mean(before, self.methods)
                    raise ValueError(f"methods.{chain[-1]}.begins_with: no method {before!r}{near}")
                if before in chain:
                    raise ValueError(f"methods.{chain[-1]}.begins_with: {' < '.join([*chain, before])} is a circle")
                if mistake := self.methods[chain[-1]].mistakes_of_beginning(self.methods[before]):
                    raise ValueError(f"methods.{chain[-1]}.begins_with: {before!r}: {mistake}")
                chain.append(before)
            if missing := set(self.seeds_of(name)) - set(self.seeds_of(chain[-1])):
                raise ValueError(f"methods.{name} begins with {chain[-1]}, which has no seed {min(missing)}")

    def _check_later(self) -> None:
        later, at_first = set(self.later), {name for _, name in self.with_seeds(None).runs()}
        for what, wrong in (
            ("every method of table1", later if set(self.table1) <= later else ()),
            ("what neither table1 nor table2 does", later - {*self.table1, *self.table2}),
            ("what the rest of table2 is compared with", later & {*self.table2[-1:]}),
            ("what methods that are made at first need", later & at_first),
        ):
            if wrong:
                raise ValueError(f"later names {what}: {', '.join(sorted(wrong))}")

    def needs(self, method: str) -> tuple[str, ...]:
        """The methods whose runs have to be finished before this one's begin."""
        before = getattr(self.methods[method], "begins_with", None)
        reward = self.generation.reward if self.generation and self.methods[method].generates else None
        return tuple(dict.fromkeys(name for name in (before, reward) if name is not None))

    @property
    def about(self) -> Literal["questions", "choices", "pictures"]:
        """What its notebooks are about, as workflow/notebooks.yaml says it."""
        return "pictures" if self.generation else "choices" if self.about_choices else "questions"

    @property
    def about_choices(self) -> bool:
        """Whether it is about choices between pictures, and not about questions."""
        return isinstance(self.data, Choices)

    @property
    def drawn(self) -> bool:
        """Whether its users are invented, so that whatever shows them may leave this machine."""
        return self.data.kind in ("miniature", "choices")

    def runs(self) -> list[tuple[str, str]]:
        """Every (backbone, method) pair that the edition trains or evaluates, without repetition."""
        pairs = [
            (backbone, method)
            for backbone in self.backbones
            for method in self.table1
            if backbone == self.ablation_backbone or method not in self.rivals
        ]
        pairs += [(self.ablation_backbone, method) for method in self.table2]
        return list(dict.fromkeys(pair for backbone, method in pairs for pair in self._with_needs(backbone, method)))

    def _with_needs(self, backbone: str, method: str) -> Iterator[tuple[str, str]]:
        for before in self.needs(method):
            yield from self._with_needs(backbone, before)
        yield backbone, method

    def with_seeds(self, count: str | None) -> Edition:
        """With the first so many seeds of every method: a number, "all", or None for those of `at_first`, without those
        of `later` (then empty). Raises ConfigError if it is neither, or more than there are."""
        known = max(len(seeds) for seeds in (self.seeds, *self.more_seeds.values()))
        if count not in (None, "all") and not (count.isdecimal() and 0 < int(count) <= known):
            raise ConfigError(f"seeds: expected a number from 1 to {known}, or all, got {count!r:.80}")
        most = self.at_first if count is None else None if count == "all" else int(count)
        table = {key: tuple(one for one in getattr(self, key) if count or one not in self.later) for key in TABLES}
        more = {name: seeds[:most] for name, seeds in self.more_seeds.items()}
        fewer = {"seeds": self.seeds[:most], "more_seeds": more, "later": self.later if count else ()}
        return self.model_copy(update=table | fewer)

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """The seeds a method is run with; the first of the edition's alone when nothing in it is random: neither
        trained in steps nor fitted from a random start. What begins with what is has more if more_seeds says so."""
        settings, needed = self.methods[method], self.needs(method)
        if is_trained(settings) or settings.random_start:
            return self.more_seeds.get(method, self.seeds)
        begun = any(self.seeds_of(name) != self.seeds[:1] for name in needed)
        return self.more_seeds.get(method, self.seeds[:1]) if begun else self.seeds[:1]


def known_editions() -> list[str]:
    """The names of the editions in config/."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))


def load_edition(name: Edition | str | Path, *, seeds: str | None = None) -> Edition:
    """Reads config/<name>.yaml (or a YAML file given by path); an edition is returned as it is. ``seeds``: how many of
    its own (`Edition.with_seeds`); where that is not said, the environment's PREFMOE_SEEDS.

    Raises ConfigError if the edition is unknown, a file elsewhere has the name of one in config/ (whose results it
    would mix with its own), or with one line per mistake in the file.
    """
    if isinstance(name, Edition):
        return name
    given, known = str(name), known_editions()
    if not given.endswith((".yaml", ".yml")) and not NAME.fullmatch(given):
        raise ConfigError(f"the name {given!r:.80} of an edition is refused: expected {RULE}")
    path = Path(name) if given.endswith((".yaml", ".yml")) else CONFIG_FOLDER / f"{given}.yaml"
    if not path.is_file():
        end = f"known editions: {', '.join(known)}{did_you_mean(given, known)}"
        raise ConfigError(f"edition {given!r} is unknown: {path} does not exist; {end}")
    own = CONFIG_FOLDER / f"{path.stem}.yaml"
    if own.is_file() and not own.samefile(path):
        raise ConfigError(
            f"{path}: the name {path.stem!r} is taken by {own}, whose results are in results/{path.stem}; give the "
            "file and its setting `name` another one"
        )
    edition = read_checked(path, Edition, ConfigError, said=mistakes_in)
    edition._file = None if own.is_file() else path.resolve()
    return edition.with_seeds(seeds or os.environ.get(SEEDS) or None)


def claim_results(edition: Edition, results: str | Path) -> None:
    """Notes in <results>/<edition> which file elsewhere than in config/ the edition is. Raises ConfigError if what is
    there was made from another such file, which is still there."""
    note = Path(results) / edition.name / "edition.txt"
    if edition._file is None:
        return
    other = Path(note.read_text(encoding="utf-8").rstrip("\n")) if note.is_file() else edition._file
    if other.is_file() and not other.samefile(edition._file):
        end = "give the file and its setting `name` another one"
        raise ConfigError(f"{edition._file}: {note.parent} is of {other}; {end}")
    with suppress(OSError), whole_file(note) as partial:
        partial.write_text(f"{edition._file}\n", encoding="utf-8")


def run_folder(results: str | Path, edition: str, backbone: str, method: str, seed: int) -> Path:
    """Where a run of an edition is, or will be: <results>/<edition>/runs/<backbone>/<method>/seed<k>.

    Raises ConfigError for a seed that is no whole number from 0: "0" would take the place of 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ConfigError(f"seed: expected a whole number from 0, found {seed!r:.80}")
    return Path(results) / edition / "runs" / backbone / method / f"seed{seed}"
