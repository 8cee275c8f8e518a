"""Controls at test time: a trained method is asked with something of the user, or of the picture, exchanged or gone.

    other_user        prefix, words or profile are somebody else's, and the question still names the user
    zero_prefix       soft tokens are zero vectors (routers and user expert read the user's state as always)
    shuffled_facets   each facet has the residual of another one, in the prefix and for routers and user expert
    swapped_name      the question names somebody else; what is shown of the user stays
    blank_picture     the question's picture is one of its size in the processor's mean colour

Answers are scored as if nothing had been exchanged: a method that knows its users has to get worse.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch

from prefmoe.backbones.batches import Batch, Collator
from prefmoe.backbones.encodings import Encoded
from prefmoe.backbones.pictures import Picture, load_pictures, mean_picture
from prefmoe.config import ControlKind
from prefmoe.data.benchmark import Benchmark, Example, Turn, User
from prefmoe.data.controls import Control
from prefmoe.models.base import Method, MethodError
from prefmoe.models.free_users import UserTokens, prefix_of


def controls_of(method: Method) -> tuple[ControlKind, ...]:
    """The controls that a method can be asked under; none where prompts show nothing of a user but the name."""
    if not (method.token_controls or method.adapts_to_user) and method.profile == "none":
        return ()
    known = {"other_user", "blank_picture", *method.token_controls}
    if not method.collator.wording.name:  # else no question says a name
        known.add("swapped_name")
    return tuple(kind for kind in get_args(ControlKind) if kind in known)


@contextmanager
def controlled(method: Method, kind: ControlKind, seed: int = 0) -> Iterator[None]:
    """Within it a method's collator, and with it whoever asks, puts questions under a control. Raises MethodError if
    the control means nothing for the method, or nobody can stand in for anybody."""
    if kind not in (known := controls_of(method)):
        able = f"it has {', '.join(known)}" if known else "its prompts show nothing of a user but the name"
        raise MethodError(f"{method.config.label} has no control {kind!r}: {able}")
    control, plain = Control(kind, seed), method.collator
    if kind in ("other_user", "swapped_name") and not control.stand_ins(method.benchmark):
        raise MethodError(f"control {kind!r}: expected two users at least who can stand in for each other")
    with TemporaryDirectory() as folder:
        method.collator = ControlledCollator(plain, control, Path(folder))
        try:
            yield
        finally:
            method.collator = plain


class ControlledCollator(Collator):
    """A collator that puts every question under a control. ``plain``: the collator of the method as it is; ``folder``:
    for blank pictures."""

    def __init__(self, plain: Collator, control: Control, folder: Path) -> None:
        super().__init__(
            plain.backbone,
            plain.benchmark,
            prefix_length=plain.prefix_length,
            profile=plain.profile,
            wording=plain.wording,
            cache=plain.cache,
        )
        self.plain, self.control, self._folder, self._blank = plain, control, folder, {}
        exchanged = control.kind in ("other_user", "swapped_name")
        self._stand_ins = control.stand_ins(plain.benchmark) if exchanged else {}
        says_the_same = control.kind in ("zero_prefix", "shuffled_facets")
        says_the_same |= control.kind == "other_user" and plain.profile == "none"
        if not says_the_same:
            self._examples = self._known.examples[*plain.form, control]
        if control.kind == "blank_picture":
            self._pictures = {}

    def conversation(
        self, example: Example, user: User, transcript: Sequence[Turn]
    ) -> tuple[list[dict[str, Any]], Sequence[Picture]]:
        return self.plain.conversation(example, user, transcript)

    def of(self, benchmark: Benchmark) -> Collator:
        """Raises MethodError: who is exchanged with whom would have to be drawn anew."""
        raise MethodError(f"under control {self.control.kind!r} nobody can be added; add users before or after it")

    def pad(self, encoded: Sequence[Encoded], examples: Sequence[Example]) -> Batch:
        return replace(super().pad(encoded, examples), control=self.control)

    def whose(self, example: Example) -> str:
        return self._stand_in(example) if self.control.kind == "other_user" else example.name

    def asked(self, example: Example) -> Example:
        if self.control.kind == "swapped_name":
            return example.model_copy(update={"name": self._stand_in(example)})
        if self.control.kind == "blank_picture":
            return example.model_copy(update={"image": self._blank_picture(example.image)})
        return example

    def _stand_in(self, example: Example) -> str:
        if example.name not in self._stand_ins:
            raise MethodError(
                f"question {example.index} ({example.name}): nobody can stand in for this user; a control exchanges "
                "users with training questions among themselves, and those without"
            )
        return self._stand_ins[example.name]

    def _blank_picture(self, path: Path) -> Path:
        """A file with a picture of the size of another one, in the processor's mean colour."""
        if path not in self._blank:
            (picture,) = load_pictures([path])
            blank = self._folder / f"{picture.width}x{picture.height}.png"
            if not blank.is_file():
                mean_picture(self.backbone.processor, picture.size).save(blank)
            self._blank[path] = blank
        return self._blank[path]


def controlled_tokens(tokens: UserTokens, control: Control | None) -> UserTokens:
    """The users' tokens of a batch as its control has them (`Batch.control`); as they are without one."""
    kind = None if control is None else control.kind
    if kind == "zero_prefix":
        return replace(tokens, prefix=torch.zeros_like(tokens.prefix))
    if kind == "shuffled_facets":
        residuals = tokens.residuals[:, list(control.facet_order)]
        prefix = prefix_of(tokens.profile, tokens.prototypes, residuals)
        return replace(tokens, prefix=prefix, residuals=residuals)
    return tokens
