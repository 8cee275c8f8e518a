"""The settings of editions that draw pictures for users: the drawer, what is drawn, and the methods that draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from prefmoe.config.choice_methods import ChoiceMethod, RaterMethod
from prefmoe.config.method_settings import MethodSettings
from prefmoe.config.strict import Strict
from prefmoe.system.names import Name, Once, Some

Part = Literal["sem", "core", "img"]
"""What user tokens are made of: mapped states of the top layers (e_sem), states of the layer that the probes choose
(e_core), a liked picture of the history (e_img)."""

BRANCH_SHOWN = "histories, liked pictures and true attributes of seen users"
"""What a branch is trained on whose e_sem is brought to the texts of the attributes that a history's pictures share."""


class Generation(Strict):
    """What is drawn, with which drawer, and how it is measured.

    Attributes:
        drawer: a name of prefmoe/weights, a folder, or a checkpoint of the hub.
        reward: the rater, trained apart from what draws, whose Q is one of the measures.
        users: of each group (seen, unseen), the first so many. noises: pictures for one user and prompt.
        text_scale, user_scale: the two scales of guidance, of the prompt and of the user.
        scales: further values of user_scale, with which the methods of at_scales draw too.
    """

    drawer: str = "drawer-mini"
    revision: str | None = Field(None, description="commit of a checkpoint of the hub")
    reward: Name
    prompts: Some[str]
    users: int = Field(24, ge=1)
    noises: int = Field(2, ge=1)
    steps: int = Field(12, ge=1)
    text_scale: float = Field(2.0, ge=0)
    user_scale: float = Field(2.0, ge=0)
    scales: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Once] = ()
    at_scales: Annotated[tuple[Name, ...], Once] = ()
    batch_size: int = Field(96, ge=1, description="pictures drawn at once")

    def mistakes(self, methods: Mapping[str, MethodSettings]) -> str:
        """What is wrong with an edition's methods beside these settings; empty if nothing is."""
        if not isinstance(methods[self.reward], RaterMethod):
            return f"generation.reward: {self.reward!r}: expected a rater, whose word is a measure"
        for name, method in methods.items():
            if isinstance(method, RewardedMethod) and method.begins_with == self.reward:
                return f"methods.{name}.begins_with: {self.reward!r} judges (generation.reward): expected another rater"
            if isinstance(method, WrongUserMethod) and self.users < 2:
                return f"generation.users: methods.{name} draws for another user of the same group: expected 2 or more"
        return ""


class DrawingMethod(ChoiceMethod):
    """What the settings of every method that draws have.

    Attributes:
        reads_history: whether a history of the user is told. is_guided: whether guidance follows a user branch.
    """

    generates = True
    reads_history: ClassVar[bool] = True
    is_guided: ClassVar[bool] = False
    information: ClassVar[str] = "history of rated pictures"


class ProbesMethod(ChoiceMethod):
    """Linear probes on the states of a rater, which also choose the layer of e_core."""

    module = "prefmoe.generation.probes"
    information: ClassVar[str] = "states of a rater"
    information_in_training: ClassVar[str] = "histories and choices of seen users"
    kind: Literal["probes"]
    begins_with: Name
    users: int = Field(40, ge=2, description="users that the inter-user probe tells apart")
    draws: int = Field(4, ge=1, description="histories of each to learn from, and as many to tell apart")
    penalty: float = Field(1.0, gt=0, description="C of the logistic regressions")

    def mistakes_of_beginning(self, first: MethodSettings) -> str:
        return "" if isinstance(first, RaterMethod) else "expected a rater, whose states are probed"


class PlainDrawingMethod(DrawingMethod):
    """The drawer as it is; the user is told in words, or not at all. Or drawings that nobody generated.

    told: nobody; the true favourites of all attributes, or of the three that matter most (what `liked` counts: the
    ceiling); words that the history's liked pictures share, by the true attributes, or as the attribute reader sees
    them.
    """

    module = "prefmoe.generation.plain"
    information_in_training: ClassVar[str] = "nothing"
    kind: Literal["drawer", "drawings"]
    told: Literal["nobody", "favourites", "three", "history", "read"] = "nobody"

    @property
    def reads_history(self) -> bool:
        return self.told in ("history", "read")

    @model_validator(mode="after")
    def _drawn(self) -> PlainDrawingMethod:
        if self.kind == "drawings" and self.reads_history:
            raise ValueError("drawings are of random attributes (nobody) or of the users' favourites")
        return self

    @property
    def information(self) -> str:
        favourites = {"favourites": "the true tastes", "three": "three true favourites"}
        words = {"history": "true attributes of the history's pictures", "read": "history of rated pictures"}
        return {"nobody": "nothing", **favourites, **words}[self.told]


class UserTokensMethod(DrawingMethod):
    """e_u = [mapped e_sem; e_core; e_img], any of them, in a cross-attention branch of its own."""

    table_type = "PEFT"
    module = "prefmoe.generation.branch"
    is_guided = True
    kind: Literal["user_tokens"]
    begins_with: Name = Field(description="the probes of the rater whose states are used")
    parts: Some[Part] = ("sem", "core", "img")
    alignment: Literal["mmd", "mse", "cosine", "none"] = Field(
        "mmd", description="how mapped e_sem is brought to the drawer's text embeddings of the user's attributes"
    )
    alignment_weight: float = Field(0.1, ge=0)
    top_layers: int = Field(2, ge=1, description="4 in the paper, whose model has more layers than our miniature's 4")
    tokens: int = Field(2, ge=1, description="of liked and of disliked pictures each, in e_sem and in e_core")
    words: int = Field(3, ge=1, description="attributes of a user whose text embeddings e_sem is aligned with")
    hidden: int = Field(256, ge=1, description="of the MLP")
    draws: int = Field(3, ge=1, description="histories of a user for each part of the choices that they leave out")
    drop_prompt: float = Field(0.1, ge=0, lt=1)
    earliest: float = Field(0.6, ge=0, lt=1, description="share of the noise schedule from which on it learns")
    lr: float = Field(1e-3, gt=0)
    steps_factor: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _aligned(self) -> UserTokensMethod:
        if "sem" not in self.parts and self.alignment != "none":
            raise ValueError("only e_sem is aligned; without it, alignment is none")
        return self

    @property
    def information_in_training(self) -> str:
        return "histories and liked pictures of seen users" if self.alignment == "none" else BRANCH_SHOWN

    def core_layers(self, layers: int) -> range:
        """The layers of a rater with so many, among which that of e_core is chosen: middle ones, below e_sem's."""
        half = max(1, layers // 2)
        return range(half, max(half, layers - self.top_layers) + 1)

    def mistakes_of_beginning(self, first: MethodSettings) -> str:
        return "" if isinstance(first, ProbesMethod) else "expected probes, which choose the layer of e_core"


class WrongUserMethod(DrawingMethod):
    """The same trained branch, given the history of somebody else."""

    module = "prefmoe.generation.branch"
    is_guided = True
    information = "history of another user"
    information_in_training: ClassVar[str] = BRANCH_SHOWN
    kind: Literal["wrong_user"]
    begins_with: Name

    def mistakes_of_beginning(self, first: MethodSettings) -> str:
        return "" if isinstance(first, UserTokensMethod) else "expected trained user tokens"


class RewardedMethod(DrawingMethod):
    """The drawer's noise guided by what a rater says of the picture (Figures 6 and 8 of arXiv 2508.08220).

    by: like raises M+, dislike lowers M-, and displease raises M-: a picture of what the user does not like.
    how: gradient ascent on the noise (ReNO, arXiv 2406.04312) or the best of so many noises.
    """

    module = "prefmoe.generation.rewards"
    information_in_training: ClassVar[str] = "histories and choices of seen users"
    kind: Literal["rewarded"]
    begins_with: Name = Field(description="the rater that guides; another one than generation.reward")
    by: Literal["like", "dislike", "displease"]
    how: Literal["gradient", "best"] = "best"
    candidates: int = Field(8, ge=1, description="noises of best, or steps of ascent")
    few_steps: int = Field(4, ge=1, description="of the sampler that the gradient goes through")
    step_size: float = Field(5.0, gt=0)
    stay: float = Field(0.01, ge=0, description="weight of the penalty that keeps noise as long as noise is")

    def mistakes_of_beginning(self, first: MethodSettings) -> str:
        return "" if isinstance(first, RaterMethod) else "expected a rater, which guides"
