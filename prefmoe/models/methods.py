"""What every method of the tables has in common: how it is trained, asked, described, saved and loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import torch
from huggingface_hub import HfApi
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prefmoe import config as configuration
from prefmoe import distributed, hub
from prefmoe.data.benchmark import Benchmark, Example, User
from prefmoe.data.collation import Batch, Collator
from prefmoe.data.prompts import PLAIN, Profile, Wording
from prefmoe.models.backbones import Backbone
from prefmoe.models.moe_lora import MixtureOfLoRA

CONFIG_FILE, WEIGHTS_FILE = "method.json", "method.safetensors"

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class MethodError(ValueError):
    """A method that does not fit its backbone, its benchmark, or the files it is loaded from."""


class Method(nn.Module):
    """A way of adapting a backbone to users.

    A training step is ``with method.context(batch): sum(method.training_losses(batch).values()).backward()``,
    an answer ``with method.context(batch): method.model.generate(**batch.inputs)``.

    Args:
        config: the method's part of an edition.
        backbone: freshly loaded; it is frozen, and the method adds to it or changes it in place.
        benchmark: its users are the ones the method knows.
        prefix_length: soft tokens at the front of every prompt. profile: what prompts show of the user.
        wording: what the method changes in the words of a prompt.
        cache: keep encoded questions and pictures in memory.

    Raises:
        MethodError: if the backbone carries another method's adapters.
    """

    def __init__(
        self,
        config: configuration.Method,
        backbone: Backbone,
        benchmark: Benchmark,
        *,
        prefix_length: int = 0,
        profile: Profile = "none",
        wording: Wording = PLAIN,
        cache: bool = True,
    ) -> None:
        super().__init__()
        for name, module in backbone.model.named_modules():
            if isinstance(module, (MixtureOfLoRA, BaseTunerLayer)):
                raise MethodError(f"backbone {backbone.entry.name!r} already carries adapters ({name}); load it anew")
        backbone.freeze()
        self.config, self.backbone, self.benchmark = config, backbone, benchmark
        self.prefix_length, self.profile = prefix_length, profile
        self.model = backbone.model
        self.added_users: list[User] = []
        self.collator = Collator(
            backbone, benchmark, prefix_length=prefix_length, profile=profile, wording=wording, cache=cache
        )

    # --- training and asking

    @property
    def beginning(self) -> Literal["talk", "user", "question"]:
        """What the hidden states of a prompt up to its final turn depend on: the small talk alone, the user as well
        (a profile or soft tokens), or even the question, so that no two questions can share them."""
        return "user" if self.prefix_length or self.profile != "none" or self.collator.wording.opening else "talk"

    @contextmanager
    def context(self, batch: Batch) -> Iterator[None]:
        """Within it forward passes, backward passes and generate() are about this batch's users."""
        yield

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of the objective by name, each times its weight; "answer" is always among them.

        Call it, and the backward pass, within ``context(batch)``.
        """
        return {"answer": self.answer_loss(batch)[0]}

    def answer_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean cross entropy of the answer tokens, and the last hidden states (B, T, H) it comes from.

        With several processes the mean over them is the mean over all of their answer tokens.

        Raises:
            ValueError: if the batch has no answers.
        """
        losses, _, hidden = self.token_losses(batch)
        return distributed.share_of_all(len(losses), losses.device) * losses.mean(), hidden

    def token_losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Cross entropy of each of the N answer tokens (N,), the example (N,) it answers, and the last hidden
        states (B, T, H).

        The vocabulary is looked at where an answer stands, not at every position.

        Raises:
            ValueError: if the batch has no answers.
        """
        if batch.labels is None:
            raise ValueError("the batch has no labels; collate it with_answer=True")
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
            losses, example, _ = self.token_losses(batch)
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
        """What the method is and how many parameters it trains, in JSON types."""
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

        Raises:
            MethodError: if a user of this name is known already.
        """
        if user.name in self.benchmark.users:
            raise MethodError(f"user {user.name!r} is known already (row {self.benchmark.row(user.name)})")
        self.benchmark = replace(
            self.benchmark,
            users={**self.benchmark.users, user.name: user},
            digest=f"{self.benchmark.digest}+{user.name}",
        )
        old = self.collator
        self.collator = Collator(
            self.backbone,
            self.benchmark,
            prefix_length=old.prefix_length,
            profile=old.profile,
            wording=old.wording,
            cache=old.cache,
        )
        self.added_users.append(user)
        return self.benchmark.row(user.name)

    # --- saving and loading

    def _buffers_to_save(self) -> dict[str, Tensor]:
        """Tensors beside the trained parameters that a loaded method needs."""
        return {}

    def _tensors(self) -> dict[str, Tensor]:
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        return trained | self._buffers_to_save()

    def identity(self) -> dict[str, Any]:
        """Which backbone and which users the saved tensors belong to."""
        added = {user.name for user in self.added_users}
        names = [name for name in self.benchmark.users if name not in added]
        entry = self.backbone.entry
        return {
            "backbone": {
                "name": entry.name,
                "hub_id": entry.hub_id,
                "revision": entry.revision,
                "digest": self.backbone.digest,
            },
            "users": {
                "count": len(names),
                "digest": hashlib.blake2b(json.dumps(names).encode(), digest_size=16).hexdigest(),
            },
        }

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes what was trained (not the backbone) as method.safetensors and method.json; returns the folder.

        Of several processes the main one writes; all of them call this at once.
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
        content = {
            "method": self.config.model_dump(mode="json"),
            **self.identity(),
            "added_users": [user.model_dump(mode="json") for user in self.added_users],
        }
        save_file(tensors, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return folder

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

        Raises:
            MethodError: if files are missing or damaged, or belong to another backbone, other users, or a class
                of methods other than this one.
        """
        path = Path(folder)
        if not path.is_dir():
            if not _HUB_ID.fullmatch(str(folder)):
                raise MethodError(f"{folder}: no such folder, and no name of a hub repository (owner/name)")
            path = hub.download(str(folder), revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE])
        config, content = _read_config(path / CONFIG_FILE)
        method = build_method(config, backbone, benchmark, seed=0, cache=cache)
        if not isinstance(method, cls):
            raise MethodError(f"{path}: holds a {type(method).__name__}, expected a {cls.__name__}")
        for part, expected in method.identity().items():
            for field, value in expected.items():
                found = content[part].get(field)
                if found != value:
                    raise MethodError(
                        f"{path / CONFIG_FILE}, {part}.{field}: trained with {found!r}, expected {value!r} "
                        f"(the {part} given here)"
                    )
        for user in content["added_users"]:
            method.add_user(User.model_validate(user))
        method._load_tensors(path / WEIGHTS_FILE)
        return method.eval()

    @torch.no_grad()
    def _load_tensors(self, path: Path) -> None:
        try:
            found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise MethodError(f"{path}: cannot be read: {error}") from error
        expected = self._tensors()
        different = sorted(found.keys() ^ expected.keys())
        if different:
            raise MethodError(f"{path}: tensors missing or unknown: {', '.join(different[:5])}")
        for name, tensor in expected.items():
            if tensor.shape != found[name].shape:
                raise MethodError(f"{path}, {name}: shape {tuple(found[name].shape)}, expected {tuple(tensor.shape)}")
            distributed.put(tensor, found[name])

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = "Upload an adapter of prefmoe",
    ) -> str:
        """Uploads what save_pretrained writes, with a model card, to a hub repository; returns its address."""
        api = HfApi(token=token)
        repository = api.create_repo(repo_id, private=private, exist_ok=True)
        with TemporaryDirectory() as folder:
            (self.save_pretrained(folder) / "README.md").write_text(self.model_card(), encoding="utf-8")
            api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message=commit_message)
        return str(repository)

    def model_card(self) -> str:
        """The README.md of a hub repository with this method."""
        entry = self.backbone.entry
        base = [f"base_model: {entry.hub_id}"] if entry.hub_id else []
        header = ["---", "library_name: prefmoe", *base, "tags: [personalisation, prefmoe]", "---", ""]
        load = f'PrefMoE.from_pretrained("<this repository>", load_backbone("{entry.name}"), benchmark)'
        if self.config.kind != "prefmoe":
            load = load.replace("PrefMoE", "Method")
        return "\n".join(
            [
                *header,
                f"# {self.config.label} on {entry.name}",
                "",
                f"An adapter for {self.identity()['users']['count']} users; the backbone is not included.",
                "",
                "```python",
                load,
                "```",
                "",
            ]
        )


def build_method(
    config: configuration.Method, backbone: Backbone, benchmark: Benchmark, *, seed: int, cache: bool = True
) -> Method:
    """An untrained method on a freshly loaded backbone.

    Args:
        config: of any kind of `prefmoe.config.Method`.
        seed: of the initial values; the global random state is left as it was.
        cache: keep encoded questions and pictures in memory.
    """
    from prefmoe.models.baselines import FullFineTuning, LoRA, NonTuned
    from prefmoe.models.lova3 import LOVA3
    from prefmoe.models.prefmoe import PrefMoE
    from prefmoe.models.soft_prompt import SoftPrompt
    from prefmoe.models.tg_llava import TGLLaVA
    from prefmoe.models.yollava import YoLLaVA

    kinds: dict[str, type[Method]] = {
        "nontuned": NonTuned,
        "fft": FullFineTuning,
        "lora": LoRA,
        "soft_prompt": SoftPrompt,
        "yollava": YoLLaVA,
        "lova3": LOVA3,
        "tg_llava": TGLLaVA,
        "prefmoe": PrefMoE,
    }
    devices = [backbone.device] if backbone.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        extra = {"seed": seed} if config.kind == "prefmoe" else {}
        return kinds[config.kind](config, backbone, benchmark, cache=cache, **extra)


def _read_config(path: Path) -> tuple[configuration.Method, dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for part in ("backbone", "users", "added_users"):
            content[part]
        return TypeAdapter(configuration.Method).validate_python(content["method"]), content
    except (OSError, ValueError, TypeError, KeyError, ValidationError) as error:
        raise MethodError(f"{path}: expected the method.json of a saved method ({error})") from error
