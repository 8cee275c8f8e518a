"""The settings of the methods that choose between pictures; what each does is said in the module that it names."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from prefmoe.config.method_settings import MethodSettings
from prefmoe.system.names import Name, Some

Tried = Some[Annotated[int, Field(ge=1)]]
"""Numbers of which the best on validation choices is taken."""


class ChoiceMethod(MethodSettings):
    """What the settings of every method that chooses between pictures have."""

    about_choices = True
    table_type = "NT"


class RaterMethod(ChoiceMethod):
    """What the settings of every rater that reads a history have."""

    information_in_training: ClassVar[str] = "histories and choices of seen users"
    prompts: bool = Field(True, description="tell what pictures were made for")
    max_prompt_tokens: int = Field(100, ge=1, description="where a prompt is cut; 100 as published")

    @property
    def information(self) -> str:
        return "history of rated pictures" + (" with prompts" if self.prompts else "")


class ZeroShotMethod(RaterMethod):
    """The backbone as it is."""

    module = "prefmoe.models.raters"
    information_in_training = "nothing"
    kind: Literal["zero_shot"]


class PrototypesMethod(RaterMethod):
    """Latent preference prototypes: arXiv 2508.08220. Without any of them it is the paper's first stage. Stage 2 begins
    with a finished stage 1 and trains the prototypes alone."""

    table_type = "PEFT"
    module = "prefmoe.models.raters"
    kind: Literal["prototypes"]
    objective: Literal["choices", "ratings"] = Field(
        "choices", description="learn from target choices, or (ViPer-like) from every rated picture of a history"
    )
    auxiliary: bool = Field(True, description="the losses L+ and L- of pairs")
    prototypes: int = Field(0, ge=0, description="learned vectors in front of the history; 10 as published")
    begins_with: Name | None = Field(None, description="the method whose finished run stage 2 begins with")
    steps_factor: float = Field(1.0, gt=0, description="times the edition's steps (published: 16,000 after 5,000)")
    lr: float = Field(1e-5, gt=0, description="of LoRA and the vision encoder; as published")
    lr_prototypes: float = Field(1e-5, gt=0)
    rank: int = Field(16, ge=1)
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["projections", "all_linear"] = Field(
        "projections", description="of each decoder layer what PrefMoE adapts, or every linear map, as published"
    )
    vision: bool = Field(True, description="train the vision encoder in stage 1; as published")

    @model_validator(mode="after")
    def _stages(self) -> PrototypesMethod:
        if bool(self.prototypes) != bool(self.begins_with):
            raise ValueError("prototypes are trained in stage 2 and need begins_with, which nothing else has")
        if self.auxiliary and self.objective == "ratings":
            raise ValueError("auxiliary losses compare the two pictures of a choice; objective: ratings has none")
        return self

    def mistakes_of_beginning(self, first: MethodSettings) -> str:
        """Why it cannot begin with what a method has learned; empty where it can."""
        if not isinstance(first, PrototypesMethod) or first.prototypes:
            return "expected a method of this kind without prototypes"
        shared = ("prompts", "max_prompt_tokens", "rank", "alpha", "targets", "vision")
        different = [name for name in shared if getattr(first, name) != getattr(self, name)]
        return f"expected the same {', '.join(different)}" if different else ""


class PreferenceVQAMethod(PrototypesMethod):
    """A rater that learns from questions about several pictures, too: what the liked ones share, which is liked."""

    module = "prefmoe.models.preference_vqa"
    information_in_training: ClassVar[str] = "histories, choices and true attributes of seen users"
    kind: Literal["preference_vqa"]
    shared: float = Field(0.3, ge=0, description="weight of: which value of an attribute do the liked pictures share?")
    which: float = Field(0.3, ge=0, description="weight of: which of two pictures would this user like?")
    vision: bool = False

    @model_validator(mode="after")
    def _one_stage(self) -> PreferenceVQAMethod:
        if self.prototypes or self.objective != "choices":
            raise ValueError("preference VQA has neither prototypes nor objective: ratings")
        return self


class ScorerMethod(ChoiceMethod):
    """A score for everybody: of the picture, of its agreement with the prompt, or of both, from everybody's choices."""

    module = "prefmoe.models.scorers"
    kind: Literal["population_scorer"]
    reads: Literal["picture", "agreement", "both"]

    @property
    def information(self) -> str:
        return {"picture": "picture", "agreement": "picture and prompt", "both": "picture and prompt"}[self.reads]

    @property
    def information_in_training(self) -> str:
        return "nothing" if self.reads == "agreement" else "choices of seen users"


class NeighboursMethod(ChoiceMethod):
    """How near a picture is to the liked and the disliked ones of the history."""

    module = "prefmoe.models.scorers"
    information: ClassVar[str] = "history of rated pictures"
    information_in_training: ClassVar[str] = "nothing"
    kind: Literal["neighbours"]
    k: Tried = (1, 3, 8)


class PersonalScorerMethod(ChoiceMethod):
    """The population's score, moved by the choices of the history."""

    module = "prefmoe.models.scorers"
    information: ClassVar[str] = "history of rated pictures"
    information_in_training: ClassVar[str] = "choices of seen users"
    kind: Literal["personal_scorer"]
    penalties: Some[Annotated[float, Field(gt=0)]] = Field(
        (0.3, 1.0, 3.0, 10.0, 30.0), description="tried on validation choices"
    )


class FactorsMethod(ChoiceMethod):
    """Matrix factorisation of users and kinds of picture; unseen users get the mean user's factors."""

    module = "prefmoe.models.scorers"
    information: ClassVar[str] = "the user's choices in training"
    information_in_training: ClassVar[str] = "choices of seen users"
    random_start = True
    kind: Literal["factors"]
    clusters: Tried = Field((16, 64, 128), description="kinds of picture, tried on validation choices")
    factors: Tried = Field((2, 8, 32), description="tried on validation choices")


class LowRankMethod(ChoiceMethod):
    """Everybody's weights of a picture's features, moved along a few directions that are learned of all users."""

    module = "prefmoe.models.low_rank"
    information_in_training: ClassVar[str] = "choices of seen users"
    random_start = True
    kind: Literal["low_rank"]
    reads: Literal["history", "training"] = Field(
        "history", description="what a user's numbers are found from: a history, or (seen users) choices of training"
    )
    ranks: Tried = Field((2, 8, 32), description="directions, tried on validation choices")
    penalties: Some[Annotated[float, Field(gt=0)]] = Field((0.1, 0.3, 1.0), description="of training, tried as well")
    priors: Some[Annotated[float, Field(gt=0)]] = Field(
        (1e-3, 1e-2, 1e-1, 1.0), description="of a history's reading, tried as well"
    )

    @property
    def information(self) -> str:
        return "history of rated pictures" if self.reads == "history" else "the user's choices in training"
