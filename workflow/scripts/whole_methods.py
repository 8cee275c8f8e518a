"""Whole methods on an edition's first backbone, as speed.py measures them: steps, answers, rankings."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from loops import Variant
from torch import Tensor

from prefmoe.backbones.histories import HistoryBatch
from prefmoe.config import Edition, LoRAMethod, PrefMoEMethod, UserLoRAMethod
from prefmoe.config.registry import find_backbone
from prefmoe.data.benchmark import Example
from prefmoe.losses import pairwise_preference
from prefmoe.models.base import Method
from prefmoe.models.moe_lora import Ranks
from prefmoe.models.raters import Rater
from prefmoe.running.choices import ChoiceWorkbench, session
from prefmoe.running.evaluation import evaluate
from prefmoe.running.ranking import item_pictures, questions
from prefmoe.running.runs import Workbench
from prefmoe.running.together import score
from prefmoe.system.files import read_json


def wide_llava(folder: Path, width: int = 256, layers: int = 8, side: int = 24) -> Path:
    """Writes a random LLaVA with llava-mini's words and tower, and side x side image tokens; returns the folder.

    The miniature's pictures are few tokens, so that 13 soft tokens lengthen its prompts by a third; those of the
    published backbones are 576 tokens and more.
    """
    entry = find_backbone("llava-mini")
    assert entry.folder is not None
    config = transformers.AutoConfig.from_pretrained(entry.folder)
    text, pixels = config.text_config, side * config.vision_config.patch_size
    text.hidden_size, text.num_hidden_layers, text.intermediate_size = width, layers, round(2.7 * width)
    text.num_attention_heads = text.num_key_value_heads = width // text.head_dim
    text.max_position_embeddings = max(text.max_position_embeddings, 2 * side * side)
    config.vision_config.image_size = pixels
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    shutil.copytree(entry.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "config*"))
    path = folder / "processor_config.json"
    settings = read_json(path, "the settings of a processor")
    settings["image_processor"] |= {key: {"height": pixels, "width": pixels} for key in ("size", "crop_size")}
    path.write_text(json.dumps(settings), encoding="utf-8")
    return folder


class Bench:
    """Methods on an edition's first backbone, with the edition's batches."""

    def __init__(self, edition: Edition, folder: Path) -> None:
        self.workbench = Workbench(edition, edition.backbones[0], results=folder)
        self.edition = edition
        methods = edition.methods.values()
        full = [m for m in methods if isinstance(m, PrefMoEMethod) and m.components == "EPICDM"]
        if not full:
            raise ValueError(f"edition {edition.name!r} has no full PrefMoE to measure")
        self.prefmoe = full[0]

    def plain_lora(self) -> LoRAMethod:
        """LoRA of PrefMoE's total rank, on the same layers."""
        ranks = Ranks(self.prefmoe.preference_rank, self.prefmoe.user_rank, self.prefmoe.profile_rank)
        return LoRAMethod(
            kind="lora", label="LoRA", lr=self.prefmoe.lr, rank=ranks.total, alpha=ranks.total, dropout=0.0,
            last_layers=self.prefmoe.last_layers,
        )  # fmt: skip

    def training_variants(self, batch_size: int) -> dict[str, Variant]:
        """An optimiser's step on one batch: LoRA on the same layers and on all, one per user beside it, PrefMoE and its
        parts."""
        lora = self.plain_lora()
        configs = {
            "LoRA, same layers": lora,
            "LoRA, all layers": lora.model_copy(update={"last_layers": None}),
            "LoRA, all layers, and one per user": UserLoRAMethod(
                kind="user_lora", label="LoRA per user", lr=lora.lr, rank=4, alpha=4.0, pooled_rank=lora.rank
            ),
            "prefix, losses and LoRA (EPICD)": self.prefmoe.model_copy(update={"components": "EPICD"}),
            "PrefMoE": self.prefmoe,
        }
        return {name: self._step(config, batch_size) for name, config in configs.items()}

    def _step(self, config: LoRAMethod | UserLoRAMethod | PrefMoEMethod, batch_size: int) -> Variant:
        method = self.workbench.method(config, seed=0).train()
        examples = self.workbench.benchmark.select("train")[:batch_size]
        batch = method.collator(examples, with_answer=True).to(method.backbone.device)
        groups = method.parameter_groups()
        optimizer = torch.optim.AdamW(groups, fused=True)

        def run() -> None:
            with method.context(batch):
                sum(method.training_losses(batch).values()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return run

    def evaluation_variants(self, count: int) -> dict[str, Variant]:
        """Answering ``count`` test questions: the edition's batches, and one question at a time."""
        method = self.workbench.method(self.prefmoe, seed=0)
        examples = self.workbench.benchmark.select("test")[:count]
        settings = self.edition.evaluation

        def run(size: int) -> Variant:
            return lambda: evaluate(method, examples, turns=0, batch_size=size, max_new_tokens=settings.max_new_tokens)

        return {f"batches of {settings.batch_size}": run(settings.batch_size), "one by one": run(1)}

    def beginning_variants(self, count: int, turns: int) -> dict[str, Variant]:
        """Questions after small talk, with the beginnings of prompts computed once and with all of them computed.

        LoRA shares a transcript among all users; with a soft prefix it is shared among the questions about one user.
        """
        benchmark, settings = self.workbench.benchmark, self.edition.evaluation
        examples = benchmark.select("test")[:count]
        without = self.prefmoe.model_copy(update={"components": "EPICD"})
        methods = {"LoRA": self.plain_lora(), "PrefMoE without mixture": without}

        def run(method: Method, reuse: bool) -> Variant:
            return lambda: evaluate(
                method, examples, turns=turns, transcripts=benchmark.transcripts, batch_size=settings.batch_size,
                max_new_tokens=settings.max_new_tokens, reuse_prefixes=reuse,
            )  # fmt: skip

        built = {name: self.workbench.method(config, seed=0) for name, config in methods.items()}
        return {
            f"{name}, {'shared' if reuse else 'whole'}": run(method, reuse)
            for name, method in built.items()
            for reuse in (True, False)
        }

    def _rankings(self) -> list[Example]:
        """All items for one user after the other."""
        pictures = item_pictures(self.workbench.results / self.edition.name / "items" / "0")
        return questions(list(self.workbench.benchmark.users), pictures)

    def ranking_variants(self, count: int) -> dict[str, Variant]:
        """All items for one user after the other, ``count`` questions: asked together, and one at a time."""
        settings, asked = self.edition.evaluation, self._rankings()[:count]
        built = {
            "LoRA": self.workbench.method(self.plain_lora(), seed=0),
            "PrefMoE": self.workbench.method(self.prefmoe, seed=0),
        }

        def single(method: Method) -> Variant:
            return lambda: evaluate(method, asked, turns=0, batch_size=1, max_new_tokens=settings.max_new_tokens)

        def together(method: Method) -> Variant:
            return lambda: score(method, asked)

        return {
            f"{name}, {how}": made(method)
            for name, method in built.items()
            for how, made in (("together", together), ("one by one", single))
        }

    def call_variants(self, name: str, calls: int) -> tuple[dict[str, Variant], int]:
        """All items for all users asked together by a method of the edition, and so many of these questions each in a
        call of its own, as `prefmoe ask` asks; and how many questions there are."""
        method, settings = self.workbench.method(self.edition.methods[name], seed=0), self.edition.evaluation
        asked = self._rankings()
        some = asked[:: len(asked) // calls][:calls]

        def each() -> None:
            for one in some:
                evaluate(method, [one], turns=0, batch_size=1, max_new_tokens=settings.max_new_tokens)

        return {"together": lambda: score(method, asked), "a call each": each}, len(asked)


class HistoryBench:
    """A rater on an edition about choices: a session per user, where what its targets share is computed once, and the
    plain way, a sequence of its own for every target.

    Args:
        method: of the edition, in what its tower learns, so that pictures are looked at anew in each step.
    """

    def __init__(self, edition: Edition, folder: Path, method: str) -> None:
        self.edition = edition
        self.workbench = ChoiceWorkbench(edition, edition.backbones[0], results=folder)
        self.method = edition.methods[method].model_copy(update={"vision": True})

    def _sessions(self, rater: Rater, split: str, users: int, choices: int | None = None) -> list:
        """Sessions of the first users of a split, with so many choices each, or all."""
        by_user = list(rater.benchmark.by_user(split).values())[:users]
        n_ref = self.edition.histories.n_ref
        return [session(rater.benchmark, own[:choices], n_ref=n_ref, draw=0, pairs=True) for own in by_user]

    def step_variants(self) -> dict[str, Variant]:
        """Losses and their gradients of one of the edition's batches of training choices; each returns its loss."""
        rater = self.workbench.method(self.method, seed=0).train()
        targets = self.edition.histories.targets
        sessions = self._sessions(rater, "train", self.edition.training.batch_size // targets, targets)
        shared, apart = rater.collate(sessions), in_plain_sequences(rater.collator(single(sessions)))

        def of_sessions() -> Tensor:
            return sum(rater.training_losses(shared).values())

        def of_sequences() -> Tensor:
            liked, disliked = rater.rate(apart)[:, 0].float().view(-1, 2, 2).unbind(1)
            return sum(pairwise_preference(liked[:, 0], disliked[:, 0], liked[:, 1], disliked[:, 1]))

        def step(loss: Callable[[], Tensor]) -> Variant:
            def run() -> float:
                total = loss()
                total.backward()
                rater.zero_grad(set_to_none=True)
                return float(total.detach())

            return run

        return {"shared": step(of_sessions), "a sequence for each target": step(of_sequences)}

    def answer_variants(self, users: int) -> dict[str, Variant]:
        """Ratings of the test choices of some users, (targets, 2): a session per user, and one target at a time."""
        rater = self.workbench.method(self.method, seed=0).eval()
        sessions = self._sessions(rater, "test", users)
        shared, apart = rater.collator(sessions), [rater.collator([one]) for one in single(sessions)]

        @torch.inference_mode()
        def together() -> Tensor:
            return rater.rate(shared)[shared.target >= 0]

        @torch.inference_mode()
        def one_by_one() -> Tensor:
            return torch.cat([rater.rate(batch)[0] for batch in apart])

        return {"shared": together, "one by one": one_by_one}


def single(sessions: list) -> list:
    """A session of its own for each target."""
    return [replace(one, targets=(target,)) for one in sessions for target in one.targets]


def in_plain_sequences(batch: HistoryBatch) -> HistoryBatch:
    """The batch with each picture looked at wherever it is shown."""
    shown = tuple(batch.files[slot] for slot in batch.slots)
    return replace(batch, files=shown, slots=torch.arange(len(shown)))
