"""Yo'LLaVA: a user becomes a new word, and a sentence of latent tokens says what it means."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch
from prefmoe.config import YoLLaVAMethod
from prefmoe.data.benchmark import Benchmark, Example
from prefmoe.data.prompts import PLACEHOLDER, Wording
from prefmoe.models.added_tokens import AddedTokens
from prefmoe.models.base import Method, MethodError
from prefmoe.models.controls import controlled_tokens
from prefmoe.models.free_users import FreeUsers, trained_rows
from prefmoe.models.likeness import most_alike

QUESTION = f"Can you see {PLACEHOLDER}?"


class YoLLaVA(Method, settings=YoLLaVAMethod):
    """Yo'LLaVA (Nguyen et al. 2024, arXiv 2406.09400, Section 3) for many users at once.

    Every conversation opens with ``<sks> is <token_1> ... <token_k>.``, and the question says <sks> where it
    means the user. Trained are, for each user, what k + 1 new words need, theta = {<sks>, <token_1> ...
    <token_k>, W(., <sks>)}: their rows of the input embedding, and their rows of the output layer, which the
    softmax of every answer runs over too. The published code trains both matrices and restores all other rows
    after each step; here the new rows are kept apart, one set per user, and no other row ever has a gradient.

    Beside the questions the model is asked "Can you see <sks>?" about pictures of the user (yes) and hard negatives
    (no): pictures of the users who look most alike, by the mean projected tokens of their profile pictures.

    Users without training questions get the mean rows: nothing is known of them.

    Departures: the opening is an acknowledged turn, as the profile of this benchmark is, because not every chat
    template has a system prompt; the output rows of the latent tokens are trained as in the published code, where the
    paper's theta names that of <sks> alone; hard negatives come from the benchmark instead of a web-scale collection;
    no conversations written by another model, since the training questions take their place; the edition's batches,
    schedule and weight decay (published: AdamW 1e-3, weight decay 1e-2, batches of 1, 15 epochs per user).
    """

    users_need_training = "a user's words come from training questions"
    token_controls = ("zero_prefix",)
    kept = ("inputs.slot", "outputs.slot")

    def __init__(self, config: YoLLaVAMethod, backbone: Backbone, benchmark: Benchmark, **options: Any) -> None:
        latent = [f"<token{k}>" for k in range(config.tokens)]
        opening, words = f"{PLACEHOLDER} is {''.join(latent)}.", (PLACEHOLDER, *latent)
        wording = Wording(opening=opening, name=PLACEHOLDER, added=words)
        super().__init__(config, backbone, benchmark, wording=wording, **options)
        self.added = AddedTokens(backbone, words)
        trained = trained_rows(benchmark, backbone.device)
        spread = backbone.model.config.get_text_config().initializer_range  # as new rows of a resized matrix
        size = (backbone.hidden_size, spread, 1 + config.tokens)
        self.inputs, self.outputs = (FreeUsers(trained, *size).to(backbone.device) for _ in range(2))
        self.similar = self._similar(trained) if config.recognition else {}
        self._active: tuple[Tensor, Tensor | None] | None = None
        backbone.lm_head.register_forward_hook(self._widen)

    # --- recognition

    def _similar(self, trained: Tensor) -> dict[int, list[int]]:
        """For each trained user's row, the rows of those who look most alike. Raises MethodError if there is nobody to
        confuse a user with."""
        users, rows = list(self.benchmark.users.values()), trained.nonzero()[:, 0].tolist()
        if len(rows) < 2:
            raise MethodError(f"{self.config.label}: hard negatives need two users with training questions")
        features = self.backbone.image_features([users[row].image for row in rows])
        faces = normalize(torch.stack([tokens.float().mean(0) for tokens in features]), dim=-1)  # (N, H)
        themselves = torch.arange(len(rows), device=faces.device)
        _, nearest = most_alike(faces, faces, min(self.config.hard_negatives, len(rows) - 1), own=themselves)
        return {row: [rows[k] for k in found] for row, found in zip(rows, nearest.tolist(), strict=True)}

    def recognition_example(self, row: int) -> Example:
        """Draws a question whether a user is in a picture; half of the pictures show the user."""
        users, yes = list(self.benchmark.users.values()), bool(torch.rand(()) < 0.5)
        other = row if yes else _draw(self.similar[row])
        picture = _draw(range(len(users[other].images)))
        most = max(len(user.images) for user in users)
        return Example(
            index=-1 - (row * len(users) + other) * most - picture,  # equal index, equal example; none is a question's
            name=users[row].name,
            category="recognition",
            l2_category="awareness" if yes else "overconcept",
            concept=users[row].attribute,
            target=users[other].name,
            question=QUESTION,
            options=(),
            answer=4 if yes else 5,
            image=users[other].images[picture],
            semantic_invert=False,
            bucket_names=(),
        )

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The answers' loss and that of some recognition examples, each times its share of the examples."""
        asked = [row for row in batch.user.tolist() if torch.rand(()) < self.config.recognition]
        recognition = [self.recognition_example(row) for row in asked]
        return self.mixture_losses({"answer": batch.examples, "recognition": recognition})

    # --- training and asking

    @contextmanager
    def context(self, batch: Batch) -> Iterator[None]:
        """The words of the batch's users, in the embedding and in the output layer. May be nested."""
        outer = self._active
        answered = None if batch.labels is None else (batch.labels[:, 1:] != -100).nonzero()[:, 0]
        self._active = self.outputs(batch.user).prefix, answered
        try:
            with self.added.active(controlled_tokens(self.inputs(batch.user), batch.control).prefix):
                yield
        finally:
            self._active = outer

    def _widen(self, module: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> Tensor | None:
        """Puts the added words' logits at their ids.

        States are (B, T, H), or (N, H) of the N answer tokens (Method.answer_loss); logits (..., V) before
        and, where the ids are beyond the matrix, (..., V + K) after.
        """
        if self._active is None:
            return None
        states, (rows, answered) = args[0], self._active
        if states.dim() == 2:
            rows = rows[answered]  # (N, K, H)
        new = torch.einsum("...th,...kh->...tk", states if states.dim() == 3 else states[:, None], rows.to(states))
        new = new if states.dim() == 3 else new[:, 0]
        first, end = self.added.first, self.added.first + self.added.count
        return torch.cat([logits[..., :first], new, logits[..., end:]], dim=-1)

    # --- parameters, users

    def _groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        parts = {"input_rows": self.inputs, "output_rows": self.outputs}
        return {name: (list(part.parameters()), self.config.lr) for name, part in parts.items()}


def _draw(items: Sequence[int]) -> int:
    return items[int(torch.randint(len(items), ()))]
