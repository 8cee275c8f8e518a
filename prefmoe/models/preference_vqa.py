"""Preference VQA: a rater that is also asked what a user's liked pictures share, and which of two would be liked.

The first part of preference-conditioned generation (arXiv 2512.06020). The paper does not publish its questions; ours
are of the miniature's few words. Answers come from the history's choices alone: what liked pictures show more often
than disliked ones, and what the user chose.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from torch.nn.functional import cross_entropy

from prefmoe.backbones.histories import Question, Session
from prefmoe.config import PreferenceVQAMethod
from prefmoe.data.choice_tastes import excess, words
from prefmoe.data.choices import Choice
from prefmoe.models.raters import Prototypes, RatedBatch

SHARED = "The {attribute} is"
WHICH = "{image} one {image} two The image is"
"""The two questions; the second one's answer is "one" or "two"."""

CLEAR = 1.0
"""Standard deviations by which a value has to stand out to be asked for."""

ASKED = 2
"""Attributes that are asked for behind a history, at most."""


class PreferenceVQA(Prototypes, settings=PreferenceVQAMethod):
    """LoRA learns to rate, as in the second paper, and to answer both questions behind the same histories."""

    config: PreferenceVQAMethod
    auxiliary = frozenset({"plus", "minus", "shared", "which"})

    def collate(self, sessions: Sequence[Session]) -> RatedBatch:
        """Sessions as a batch, with their questions. Raises CollationError, PromptError naming the session."""
        return super().collate([replace(one, questions=self.questions(one)) for one in sessions])

    def questions(self, session: Session) -> tuple[Question, ...]:
        """What is asked behind a session's history: first which of its first two targets is liked (the first of them),
        then what the liked pictures share, where anything stands out and attributes are known."""
        asked = []
        if self.config.which:
            pair = [picture for picture, _ in session.targets[:2]]
            shown = [*(entry.picture for entry in session.history), *pair]
            second = zlib.crc32("/".join(picture.name for picture in shown).encode()) % 2  # as good as drawn, and fixed
            asked.append(Question(WHICH, ("one", "two")[second], tuple(pair[::-1] if second else pair)))
        if self.config.shared and self.benchmark.attributes is not None:
            liked, disliked = ([e for e in session.history if e.label == label] for label in ("+", "-"))
            choices = [
                Choice(0, "", entry.prompt, entry.picture, other.picture)
                for entry, other in zip(liked, disliked, strict=True)
            ]
            shared = words(excess(self.benchmark, choices), ASKED, least=CLEAR) if choices else {}
            asked += [Question(SHARED.format(attribute=name), value) for name, value in shared.items()]
        return tuple(asked)

    def _losses(self, hidden: Tensor, batch: RatedBatch) -> dict[str, Tensor]:
        losses = super()._losses(hidden, batch)
        row, place, token, question = batch.histories.answers
        said = self.backbone.lm_head(hidden[row, place]).float()
        each = cross_entropy(said, token, reduction="none")
        which = (question == 0) & bool(self.config.which)
        for name, mine in (("which", which), ("shared", ~which)):
            if weight := getattr(self.config, name):
                losses[name] = weight * (each * mine).sum() / mine.sum().clamp_min(1)
        return losses
