"""The simplest way to know a user: a soft prompt each, in front of a frozen model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch
from prefmoe.config import SoftPromptMethod
from prefmoe.data.benchmark import Benchmark
from prefmoe.models.base import Method
from prefmoe.models.controls import controlled_tokens
from prefmoe.models.free_users import FreeUsers, trained_rows
from prefmoe.models.prefix import PrefixHook


class SoftPrompt(Method, settings=SoftPromptMethod):
    """Prompt tuning (Lester et al. 2021, arXiv 2104.08691, Section 2), a prompt per user, not per task.

    For a question X about user i with answer Y, ``max over P_i of log Pr(Y | [P_i; X])``: P_i are free vectors in the
    place of word embeddings, and nothing else is trained. Users without training questions get the mean prompt.

    Departures: drawn from N(0, rms^2) of the word embeddings rather than from the embeddings of frequent
    words; AdamW with the edition's schedule rather than Adafactor.
    """

    users_need_training = "a soft prompt comes from training questions"
    token_controls = ("zero_prefix",)
    kept = ("users.slot",)

    def __init__(self, config: SoftPromptMethod, backbone: Backbone, benchmark: Benchmark, **options: Any) -> None:
        super().__init__(config, backbone, benchmark, prefix_length=config.tokens, **options)
        rms = float(backbone.embed_tokens.weight.float().square().mean().sqrt())
        trained = trained_rows(benchmark, backbone.device)
        self.users = FreeUsers(trained, backbone.hidden_size, rms, config.tokens).to(backbone.device)
        self.prefix = PrefixHook(backbone.embed_tokens)

    @contextmanager
    def context(self, batch: Batch) -> Iterator[None]:
        """The prompts of the batch's users, until the backward pass (or generate()) is done."""
        tokens = controlled_tokens(self.users(batch.user), batch.control)
        with self.prefix.active(tokens.prefix, batch.prefix_mask):
            yield

    def _groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return {"soft_prompt": (list(self.users.parameters()), self.config.lr)}
