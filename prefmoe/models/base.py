"""What every method of the tables has in common: how it is trained, asked, described, saved and loaded."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, Self

import torch
from huggingface_hub import HfApi
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prefmoe import config as configuration
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch, Collator
from prefmoe.backbones.last_positions import last_positions_only
from prefmoe.backbones.pictures import load_pictures
from prefmoe.config import Profile
from prefmoe.data.benchmark import Benchmark, Described, Example, GrowingBenchmark, User
from prefmoe.data.prompts import PLAIN, Wording
from prefmoe.models import saved
from prefmoe.models.profiles import check_profile, check_words
from prefmoe.models.saved import CONFIG_FILE, WEIGHTS_FILE, MethodError
from prefmoe.system import distributed
from prefmoe.system.files import whole_file, write_json
from prefmoe.system.foreign_files import foreign_file


class Method(nn.Module):
    """A way of adapting a backbone to users.

    A kind's class names its settings, ``class LoRA(Method, settings=LoRAMethod)``, by which `build_method` finds it. A
    training step is ``with method.context(batch): sum(method.training_losses(batch).values()).backward()``,
    an answer ``with method.context(batch): method.model.generate(**batch.inputs)``.

    Args:
        config: the method's part of an edition.
        backbone: freshly loaded; it is frozen, and the method adds to it or changes it in place.
        benchmark: its users are the ones the method knows.
        prefix_length: soft tokens at the front of every prompt.
        profile: what prompts show of the user; when absent as the config says.
        wording: what the method changes in the words of a prompt.
        seed: of what is drawn beside the initial values, which torch's random state decides.
        cache: keep encoded questions and pictures in memory.

    Attributes:
        added_users: those who joined after the benchmark's, in their order.
        users_need_training: why nobody can be added without training; empty where somebody can.
        token_controls: the controls (`prefmoe.models.controls`) of the users' soft tokens; none without such tokens.
        adapts_to_user: of the class, whether whose question it is matters though prompts show the name alone.
        auxiliary: of the class, the terms of the objective beside what the method is to do (`training.auxiliary_ramp`).
        decodes_with_cache: whether steps of decoding reuse keys and values of the tokens before.
        kept: of the class, the buffers that are saved beside the trained parameters.

    Raises MethodError if the backbone carries another method's adapters.
    """

    users_need_training: ClassVar[str] = ""
    token_controls: tuple[configuration.ControlKind, ...] = ()
    adapts_to_user: ClassVar[bool] = False
    auxiliary: ClassVar[frozenset[str]] = frozenset()
    decodes_with_cache: bool = True
    kept: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, settings: type[configuration.MethodSettings] | None = None, **options: Any) -> None:
        """Notes, where settings are given, that this class does what they say; raises TypeError if another one does."""
        super().__init_subclass__(**options)
        if settings is not None:
            name = getattr(settings.implementation, "__qualname__", cls.__qualname__)
            if (cls.__module__, cls.__qualname__) != (settings.module, name):
                raise TypeError(f"{cls.__name__}: a class of {settings.module} has settings={settings.__name__}")
            settings.implementation = cls

    def __init__(
        self,
        config: configuration.MethodSettings,
        backbone: Backbone,
        benchmark: Benchmark,
        *,
        prefix_length: int = 0,
        profile: Profile | None = None,
        wording: Wording = PLAIN,
        seed: int = 0,
        cache: bool = True,
    ) -> None:
        super().__init__()
        for name, module in backbone.model.named_modules():
            if isinstance(module, BaseTunerLayer) or getattr(module, "is_adapter", False):
                raise MethodError(f"backbone {backbone.entry.name!r} already carries adapters ({name}); load it anew")
        backbone.freeze()
        self.config, self.backbone, self.benchmark = config, backbone, benchmark
        self.prefix_length, self.seed = prefix_length, seed
        self.profile: Profile = getattr(config, "profile", "none") if profile is None else profile
        self.model = backbone.model
        self.added_users: list[User] = []
        self.collator = self._make_collator(wording=replace(wording, answers=config.answers), cache=cache)

    def _make_collator(self, *, wording: Wording, cache: bool) -> Any:
        """What turns questions into batches."""
        settings = {"prefix_length": self.prefix_length, "profile": self.profile}
        return Collator(self.backbone, self.benchmark, **settings, wording=wording, cache=cache)

    # --- training and asking

    @property
    def beginning(self) -> Literal["talk", "user", "question"]:
        """What the hidden states of a prompt up to its final turn depend on: the small talk alone, the user as well
        (a profile or soft tokens), or even the question, so that no two questions can share them."""
        shown = self.prefix_length or self.profile != "none" or self.collator.wording.opening
        return "user" if shown or self.adapts_to_user else "talk"

    @contextmanager
    def context(self, batch: Batch) -> Iterator[None]:
        """Within it forward passes, backward passes and generate() are about this batch's users."""
        yield

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the objective by name, each times its weight; "answer" is always among them. Call it, and the
        backward pass, within ``context(batch)``."""
        return {"answer": self.answer_loss(batch, batch.answer_span)[0]}

    def answer_loss(self, batch: Batch, span: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean cross entropy of the answer tokens, and the last hidden states (B, T, H), as in token_losses. With
        several processes the mean over them is the mean over all of their answer tokens."""
        losses, _, hidden = self.token_losses(batch, span)
        return distributed.share_of_all(len(losses), losses.device) * losses.mean(), hidden

    def token_losses(self, batch: Batch, span: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Cross entropy of each of the N answer tokens (N,), the example (N,) it answers, and the last hidden
        states (B, T, H); where a span is given, these are right at the last ``span`` positions alone.

        The vocabulary is looked at where an answer stands, not at every position.

        Raises ValueError if the batch has no answers.
        """
        if batch.labels is None:
            raise ValueError("the batch has no labels; collate it with_answer=True")
        with last_positions_only(self.backbone, span):
            hidden = self.model.base_model(**batch.inputs, use_cache=False).last_hidden_state
        hidden = hidden.to(batch.labels.device)  # a large backbone may end on another device than it starts on
        target = batch.labels[:, 1:]
        answered = target != -100
        logits = self.backbone.lm_head(hidden[:, :-1][answered]).to(target.device)
        return cross_entropy(logits.float(), target[answered], reduction="none"), answered.nonzero()[:, 0], hidden

    def mixture_losses(self, tasks: Mapping[str, Sequence[Example]]) -> dict[str, Tensor]:
        """The losses of several tasks from one forward pass: for each the mean over its answer tokens, times its
        share of all examples; 0 for a task without any. With several processes as in answer_loss."""
        batch = self.collator([e for chosen in tasks.values() for e in chosen], with_answer=True)
        batch = batch.to(self.backbone.device)
        with self.context(batch):
            losses, example, _ = self.token_losses(batch, batch.answer_span)
        counts = torch.tensor([len(chosen) for chosen in tasks.values()], device=losses.device)  # (K,)
        task = torch.arange(len(tasks), device=losses.device).repeat_interleave(counts)[example]  # (N,)
        sums = losses.new_zeros(len(tasks)).index_add(0, task, losses)
        tokens = torch.bincount(task, minlength=len(tasks))
        counts, tokens = distributed.sum_over_all(torch.stack([counts, tokens]))
        means = distributed.processes() * sums / tokens.clamp_min(1)
        return dict(zip(tasks, (counts / counts.sum() * means).unbind(), strict=True))

    def gates(self, output: Any = None) -> dict[str, Tensor]:
        """The routers' gates of the latest forward pass by name, (B, k); empty for methods without routers."""
        return {}

    # --- parameters

    def _groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        """Trainable parameters and their learning rate, by the name of the part they belong to."""
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameter groups for AdamW: params and lr."""
        return [{"params": params, "lr": lr} for params, lr in self._groups().values()]

    def sparse_parameters(self) -> list[nn.Parameter]:
        """Those of them whose gradient is sparse in the users of a batch, and which SparseAdam updates."""
        return []

    def describe(self) -> dict[str, Any]:
        """What the method is and how many parameters it trains, in JSON types: kind, label, prefix_length (tokens),
        profile, trainable (by group) and trainable_total."""
        trainable = {name: sum(p.numel() for p in params) for name, (params, _) in self._groups().items()}
        return {
            "kind": self.config.kind,
            "label": self.config.label,
            "prefix_length": self.prefix_length,
            "profile": self.profile,
            "trainable": trainable,
            "trainable_total": sum(trainable.values()),
        }

    # --- users

    def add_user(self, user: User) -> int:
        """Makes somebody known whom the model never saw, without training; returns the user's row.

        Everything that can fail comes first: after an error the method is as it was, and can be asked again. Each user
        takes the same time, however many there are.

        Raises MethodError if the method cannot add users, one of this name is known already, the profile lacks what
        prompts show or says what cannot be shown, or a picture cannot be read.
        """
        self._check_new(user.name)
        try:
            check_profile(user, self.backbone)
            self._check_prompts(user)
            encoded = self._encode_user(user)
        except ValueError as error:
            raise MethodError(f"user {user.name!r} cannot be added: {error}") from error
        return self._register(user, encoded)

    def _check_new(self, name: str) -> None:
        if self.users_need_training:
            raise MethodError(f"{self.config.label} cannot add {name!r}: {self.users_need_training}")
        if name in self.benchmark.users:
            raise MethodError(f"user {name!r} is known already (row {self.benchmark.row(name)})")

    def _check_prompts(self, user: User) -> None:
        """Raises ValueError if the profile lacks what this method's prompts show beside `profile`; opens no picture."""

    def _encode_user(self, user: User) -> Any:
        """What the method computes from a profile; nothing is changed by that."""
        return None

    def _append_user(self, groups: list[int], encoded: Any) -> None:
        """Makes room for a user of these preference groups; all of it or, after an error, nothing. ``encoded``: of
        `_encode_user`; None where it is loaded afterwards."""

    def _register(self, user: User, encoded: Any) -> int:
        benchmark, collator = self.benchmark, self.collator
        if not isinstance(benchmark, GrowingBenchmark):
            benchmark = GrowingBenchmark.of(benchmark)
            collator = collator.of(benchmark)
        groups = benchmark.groups_of(user)
        self._append_user(groups, encoded)
        row = benchmark.join(user, groups)
        self.benchmark, self.collator = benchmark, collator
        self.added_users.append(user)
        return row

    # --- saving and loading

    def _buffers_to_save(self) -> dict[str, Tensor]:
        """Tensors beside the trained parameters that a loaded method needs: `kept`."""
        return {name: self.get_buffer(name) for name in self.kept}

    def _tensors(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad} | self._buffers_to_save()

    @cached_property
    def _own_users(self) -> saved.SavedUsers:
        """What identifies the users that the method was built with."""
        added = {user.name for user in self.added_users}
        return saved.identify(user for name, user in self.benchmark.users.items() if name not in added)

    def identity(self) -> dict[str, Any]:
        """Which backbone and which users the saved tensors belong to."""
        entry = self.backbone.entry
        backbone = saved.SavedBackbone(
            name=entry.name, hub_id=entry.hub_id, revision=entry.revision, digest=self.backbone.digest
        )
        return {"backbone": backbone.model_dump(), "users": self._own_users.model_dump(exclude={"profiles"})}

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes what was trained (not the backbone) as method.safetensors and method.json; returns the folder.

        Of added users it keeps all but their pictures; these too, as PNG files, where prompts show them. Of several
        processes the main one writes; all of them call this at once.
        """
        folder = Path(folder)
        tensors = {}
        for name, tensor in self._tensors().items():  # one at a time, as a sharded one is gathered on the way
            full = distributed.whole(tensor.detach())
            if distributed.state().is_main_process:
                tensors[name] = full.cpu().contiguous()
        if not distributed.state().is_main_process:
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        content = saved.SavedMethod(
            method=self.config,
            backbone=saved.SavedBackbone(**self.identity()["backbone"]),
            users=self._own_users,
            added_users=tuple(Described(**user.model_dump(exclude={"images"})) for user in self.added_users),
        )
        for number, user in enumerate(self.added_users):
            for k, picture in enumerate(user.images[: self._pictures_shown]):
                with whole_file(folder / saved.added_picture(number, k)) as partial:
                    load_pictures([picture])[0].save(partial, format="PNG")
        with whole_file(folder / WEIGHTS_FILE) as partial:
            save_file(tensors, partial)
        write_json(folder / CONFIG_FILE, content.model_dump(mode="json"))
        return folder

    @property
    def _pictures_shown(self) -> int:
        """How many pictures of the user prompts show."""
        return int(self.profile in ("image", "both"))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        backbone: Backbone,
        benchmark: Benchmark,
        *,
        revision: str | None = None,
        cache: bool = True,
    ) -> Self:
        """Loads what save_pretrained wrote, from a folder or a repository of the Hugging Face hub.

        No picture is opened for the users that were added before: the tensors hold what was read from theirs.

        Raises MethodError if files are missing or damaged, or belong to other weights, other users or other profiles
        (the message names them), or a class of methods other than this one.
        """
        try:
            path = saved.folder_of(folder, revision)
            files = {name: foreign_file(path, name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
            content = saved.read(files[CONFIG_FILE])
            saved.check_sizes(files[CONFIG_FILE], content.method, files[WEIGHTS_FILE])
        except ValueError as error:
            raise MethodError(str(error)) from error
        method = build_method(content.method, backbone, benchmark, seed=0, cache=cache)
        if not isinstance(method, cls):
            raise MethodError(f"{path}: holds a {type(method).__name__}, expected a {cls.__name__}")
        if content.backbone.digest != backbone.digest:
            raise MethodError(
                f"{files[CONFIG_FILE]}, backbone.digest: trained on {content.backbone.name!r} with the weights "
                f"{content.backbone.digest}, the backbone given here ({backbone.entry.name!r}) has {backbone.digest}"
            )
        if mistake := saved.users_mistake(content.users, method._own_users):
            raise MethodError(f"{files[CONFIG_FILE]}, users: {mistake}")
        for number, user in enumerate(content.added_users):
            method._register_saved(user, path, number)
        method._load_tensors(files[WEIGHTS_FILE])
        return method.eval()

    def _register_saved(self, user: Described, folder: Path, number: int) -> None:
        """Makes an adapter's added user known; the tensors come afterwards. Raises MethodError if the user is known
        already or cannot be added, or a picture that prompts show is missing."""
        try:
            self._check_new(user.name)
            images = tuple(foreign_file(folder, saved.added_picture(number, k)) for k in range(self._pictures_shown))
            profile = User(**user.model_dump(), images=images)
            check_words(profile, self.backbone)
            self._check_prompts(profile)
            self._register(profile, None)
        except ValueError as error:
            raise MethodError(f"{folder / CONFIG_FILE}, added_users.{number}: {error}") from error

    @torch.no_grad()
    def _load_tensors(self, path: Path, expected: Mapping[str, Tensor] | None = None) -> None:
        expected = self._tensors() if expected is None else expected
        found = saved.read_tensors(path, expected)
        for name, tensor in expected.items():
            distributed.put(tensor, found[name])

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = "Upload an adapter of prefmoe",
    ) -> str:
        """Uploads what save_pretrained writes, with a model card, to a hub repository; returns its address. Raises the
        errors of huggingface_hub: without a right to write, say, or a network."""
        api = HfApi(token=token)
        repository = api.create_repo(repo_id, private=private, exist_ok=True)
        with TemporaryDirectory() as folder:
            (self.save_pretrained(folder) / "README.md").write_text(self.model_card(), encoding="utf-8")
            api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message=commit_message)
        return str(repository)

    def model_card(self) -> str:
        """The README.md of a hub repository with this method."""
        return saved.adapter_card(self.config, self.backbone.entry, self._own_users.count)


def build_method(
    config: configuration.MethodSettings, backbone: Backbone, benchmark: Benchmark, *, seed: int, cache: bool = True
) -> Method:
    """An untrained method on a freshly loaded backbone: of the class that names the settings, wherever it is.

    Args:
        seed: of the initial values; the global random state is left as it was.
        cache: keep encoded questions and pictures in memory.

    Raises MethodError if no class in the settings' module names them.
    """
    made = implementation_of(config)
    with torch.random.fork_rng([backbone.device] if backbone.device.type == "cuda" else []):
        torch.manual_seed(seed)
        return made(config, backbone, benchmark, seed=seed, cache=cache)


def implementation_of(config: configuration.MethodSettings) -> type:
    """The class that does what settings say, imported where it has not been. Raises MethodError if no class in the
    settings' module names them."""
    settings = type(config)
    importlib.import_module(settings.module)
    if settings.implementation is None:
        raise MethodError(
            f"{settings.module}: nothing does what {settings.__name__} says; expected a class that opens with "
            f"class ...(Method, settings={settings.__name__})"
        )
    return settings.implementation
