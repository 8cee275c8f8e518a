"""The settings of the methods of the tables; what each does is said in the module that it names. Needs no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from prefmoe.config.method_settings import OF_OTHERS, MethodSettings, is_trained
from prefmoe.config.strict import Strict

COMPONENTS = "EPICDM"
"""Ablation switches in the order in which Table 2 of the paper adds them."""


Profile = Literal["none", "text", "statement", "image", "both"]
"""What a prompt shows of the user before the question: nothing; description and preferences; the one statement that the
question is about; the profile picture; text and picture."""


class Losses(Strict):
    """Weights of the published recipe (Table of losses in the paper's method section)."""

    alignment: float = Field(0.05, ge=0)
    profile_contrast: float = Field(0.10, ge=0)
    residual_contrast: float = Field(0.20, ge=0)
    residual_preservation: float = Field(0.20, ge=0)
    decorrelation: float = Field(0.05, ge=0)
    temperature: float = Field(0.07, gt=0)
    density_power: float = Field(1.0, ge=0)
    anchor_is_positive: bool = Field(True, description="count an example among its own positives, as published")

    @property
    def none(self) -> bool:
        """Whether the answer is all that is learned from."""
        weights = (self.alignment, self.profile_contrast, self.residual_contrast, self.residual_preservation)
        return not any((*weights, self.decorrelation))


class NonTunedMethod(MethodSettings):
    table_type = "NT"
    module = "prefmoe.models.baselines"
    kind: Literal["nontuned"]
    profile: Profile


class FullFineTuningMethod(MethodSettings):
    table_type = "FFT"
    module = "prefmoe.models.baselines"
    kind: Literal["fft"]
    lr: float = Field(gt=0)
    profile: Profile = Field("none", description="in training and in test; text as published")


class LoRAMethod(MethodSettings):
    table_type = "PEFT"
    module = "prefmoe.models.baselines"
    kind: Literal["lora"]
    lr: float = Field(gt=0)
    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    steps_factor: float = Field(1.0, gt=0, description="times the edition's steps (time-matched baseline)")
    last_layers: int | None = Field(None, ge=1, description="decoder layers adapted; all when absent")
    profile: Profile = Field("none", description="in training and in test; text as published")
    targets: Literal["projections", "all_linear"] = Field(
        "projections", description="of each layer PrefMoE's six, or every linear map as published"
    )
    projector: bool = Field(False, description="train the projector too, as published")
    lr_projector: float | None = Field(None, gt=0, description="the projector's; lr when absent")


class SoftPromptMethod(MethodSettings):
    table_type = "PEFT"
    module = "prefmoe.models.soft_prompt"
    kind: Literal["soft_prompt"]
    lr: float = Field(gt=0)
    tokens: int = Field(16, ge=1, description="soft tokens per user")
    profile: Profile = Field("none", description="in training and in test")

    @property
    def information(self) -> str:
        learned = "tokens learned from answers"
        return learned if self.profile == "none" else f"{super().information} and {learned}"

    @property
    def information_unseen(self) -> str:
        return OF_OTHERS if self.profile == "none" else f"{super().information} and {OF_OTHERS}"

    @property
    def information_in_training(self) -> str:
        return "answers" if self.profile == "none" else f"{super().information} and answers"


class YoLLaVAMethod(MethodSettings):
    """Defaults: the published tokens (16); the share of recognition examples is ours."""

    table_type = "PEFT"
    module = "prefmoe.models.yollava"
    information: ClassVar[str] = "tokens learned from answers and profile pictures"
    information_unseen: ClassVar[str] = OF_OTHERS
    information_in_training: ClassVar[str] = "profile pictures and answers"
    kind: Literal["yollava"]
    lr: float = Field(gt=0)
    tokens: int = Field(16, ge=1, description="latent tokens per user, beside the name <sks>")
    recognition: float = Field(0.25, ge=0, le=1, description="recognition examples added, per question")
    hard_negatives: int = Field(4, ge=1, description="most similar users, whose pictures show somebody else")


class LOVA3Method(LoRAMethod):
    """Defaults: the published mixture of 665 thousand answers, 842 of asking (at most one here), 64 of assessing."""

    module = "prefmoe.models.lova3"
    kind: Literal["lova3"]
    asking: float = Field(1.0, ge=0, le=1, description="examples of asking added, per question")
    assessing: float = Field(0.1, ge=0, le=1, description="examples of assessing added, per question")


class TGLLaVAMethod(LoRAMethod):
    """Defaults: the published 24 x 24 mask queries and 64 detail latents."""

    module = "prefmoe.models.tg_llava"
    kind: Literal["tg_llava"]
    lr_guidance: float = Field(gt=0, description="feature mask and detail perceiver; lr is that of the LoRA")
    side: int = Field(24, ge=1, description="the mask has side x side queries, a quarter picture as many patches")
    latents: int = Field(64, ge=1, description="detail latents behind the picture's tokens")

    @field_validator("profile")
    @classmethod
    def _one_picture(cls, value: str) -> str:
        if value in ("image", "both"):
            raise ValueError("the mask is made for the question's picture, and there can be no other in the prompt")
        return value


class PrefMoEMethod(MethodSettings):
    """PrefMoE; where a setting has a value `published` or says "published", that is what the published code does, and
    docs/departures.md lists all of them. The defaults are this companion's own."""

    table_type = "PEFT"
    module = "prefmoe.models.prefmoe"
    kind: Literal["prefmoe"]
    components: str = COMPONENTS
    lr: float = Field(gt=0, description="LoRA experts and routers")
    lr_user: float = Field(gt=0, description="user embeddings, prototypes and corrections")
    steps_factor: float = Field(1.0, ge=0, description="times the edition's steps; 0 leaves the method untrained")
    last_layers: int = Field(8, ge=1)
    preference_rank: int = Field(8, ge=1)
    user_rank: int = Field(64, ge=1)
    profile_rank: int = Field(8, ge=1)
    alpha: float = Field(1.0, gt=0, description="scale of the mixture: alpha times B gate A x")
    routers: Literal["own", "published"] = Field(
        "own", description="what the routers see and how they and the experts start"
    )
    query: Literal["question", "prompt"] = Field(
        "question", description="the tokens whose mean it is: the question's, or all behind the prefix (published)"
    )
    residual_query: Literal["scaled", "unscaled"] = Field(
        "scaled", description="the query beside the residuals: brought to their RMS, or as it is (published)"
    )
    user_embedding: Literal["free", "anchors"] = Field(
        "free", description="component E alone: free vectors, or anchors with preferences not separated (published)"
    )
    anchors: Literal["hidden", "embedding"] = "embedding"
    anchor_texts: Literal["own", "published"] = "own"
    unknown_users: Literal["profile", "zeros"] = Field(
        "profile", description="anchors of users without training questions: of their profiles, or 0 (published)"
    )
    residual: Literal["published", "centred"] = "centred"
    correction: Literal["relative", "absolute"] = Field(
        "relative", description="whether correction_scale is in units of the anchors' RMS or absolute (published)"
    )
    correction_scale: float = Field(0.1, ge=0, description="bound of a correction")
    user_context: bool = Field(True, description="bend the user expert's bottleneck by a context of the user")
    facet_label: Literal["none", "oracle"] = Field(
        "none", description="oracle tells the gold facet to the user expert's context (published) or to our routers"
    )
    user_state: Literal["trained", "frozen"] = Field(
        "trained", description="or prototypes and corrections (or the free embedding) as they start"
    )
    user_updates: Literal["dense", "sparse"] = Field(
        "dense", description="AdamW over all users, or SparseAdam over those of the batch: time independent of users"
    )
    counterfactual_users: int = Field(20, ge=0, le=100_000, description="how many are drawn; 0 for none")
    counterfactual_source: Literal["drawn", "file"] = Field(
        "drawn", description="or those of the benchmark's pseudo_users.csv (published), however many they are"
    )
    counterfactual_images: Literal["own", "published"] = Field("own", description="how their image anchors are mixed")
    losses: Losses = Losses()

    @property
    def information(self) -> str:
        told = "" if self.facet_label == "none" else ", facet of the question"
        if not self._free:
            return f"anchors of profile text and picture{told}"
        learned = is_trained(self) and self.user_state == "trained"
        return f"{'tokens learned from answers' if learned else 'random tokens'}{told}"

    @property
    def information_unseen(self) -> str:
        return self.information.replace("tokens learned from answers", OF_OTHERS)

    @property
    def information_in_training(self) -> str:
        return "answers" if self.information.startswith("tokens learned") else super().information_in_training

    @property
    def _free(self) -> bool:
        return self.components == COMPONENTS[0] and self.user_embedding == "free"

    @field_validator("components")
    @classmethod
    def _known(cls, value: str) -> str:
        if not value or not COMPONENTS.startswith(value):
            raise ValueError(f"components must be a non-empty prefix of {COMPONENTS}, got {value!r}")
        return value

    @model_validator(mode="after")
    def _context(self) -> PrefMoEMethod:
        if self.routers == "published" and not self.user_context:
            raise ValueError("routers: published have a user context; user_context: false goes with routers: own")
        return self
