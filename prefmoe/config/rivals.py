"""The settings of the rivals: other ways of knowing a user, each after a paper of its own."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from prefmoe.config.method_settings import INFORMATION, MethodSettings
from prefmoe.config.methods import LoRAMethod


class UserLoRAMethod(MethodSettings):
    """One LoRA per user, beside a pooled one where that has a rank."""

    table_type = "PEFT"
    module = "prefmoe.models.user_lora"
    information: ClassVar[str] = "adapters learned from answers"
    information_in_training: ClassVar[str] = "answers"
    information_unseen: ClassVar[str] = INFORMATION["none"]
    kind: Literal["user_lora"]
    lr: float = Field(gt=0, description="of everybody's adapters")
    rank: int = Field(4, ge=1, description="of each user's own adapter")
    alpha: float = Field(4.0, gt=0, description="a user's update is alpha / rank * B A x")
    pooled_rank: int = Field(16, ge=0, description="of the adapter that all users share; 0 for none")
    last_layers: int | None = Field(None, ge=1, description="decoder layers adapted; all when absent")


class RetrievedMethod(LoRAMethod):
    """LoRA that is shown what a retriever finds in the user's profile."""

    module = "prefmoe.models.retrieved"
    kind: Literal["retrieved"]
    statements: int = Field(2, ge=1, le=6, description="of a profile's five and its description, in every prompt")

    @model_validator(mode="after")
    def _frozen_index(self) -> RetrievedMethod:
        if self.profile != "none":
            raise ValueError("what is retrieved stands in the place of the profile: leave the setting profile out")
        if self.projector:
            raise ValueError("the index reads pictures by way of the projector, which has to stay as it is")
        return self

    @property
    def information(self) -> str:
        return f"{self.statements} retrieved statement{'s' * (self.statements > 1)} of the profile"


class BesideLoRA(MethodSettings):
    """Rivals that say their user in soft tokens: published before a frozen model, and here before a LoRA, too."""

    table_type = "PEFT"
    pooled_rank: int = Field(0, ge=0, description="of a LoRA that everybody shares; 0 for none, as published")
    lr_pooled: float = Field(2e-3, gt=0, description="of that LoRA")


class EmbeddingPrefixMethod(BesideLoRA):
    """One vector per user, fixed beforehand, that a small network turns into soft tokens."""

    module = "prefmoe.models.embedding_prefix"
    information: ClassVar[str] = "one vector of profile text and picture"
    kind: Literal["embedding_prefix"]
    lr: float = Field(gt=0)
    tokens: int = Field(1, ge=1, description="soft tokens made of the vector; 1 as published")
    width: int = Field(256, ge=1, description="of the network's hidden layer")


class HistoryMethod(BesideLoRA):
    """An embedder of what a user has answered, attended to by what is asked."""

    module = "prefmoe.models.history"
    information: ClassVar[str] = "the user's answers to training questions"
    information_in_training: ClassVar[str] = "answers, other than the one asked for"
    information_unseen: ClassVar[str] = "mean of everybody's answers"
    kind: Literal["history"]
    lr: float = Field(gt=0)
    width: int = Field(128, ge=1, description="of keys, queries and the hidden layer that values come from")


class GraphExpertsMethod(MethodSettings):
    """A graph of users and kinds of things, whose users lead the gate of LoRA experts."""

    table_type = "PEFT"
    module = "prefmoe.models.graph_experts"
    information: ClassVar[str] = "answers of the user and of alike users"
    information_in_training: ClassVar[str] = "answers"
    information_unseen: ClassVar[str] = "profile text, by which alike users are found"
    kind: Literal["graph_experts"]
    lr: float = Field(gt=0, description="of experts and gate")
    lr_graph: float = Field(1e-2, gt=0, description="of the vectors of users and kinds")
    kinds: int = Field(64, ge=1, description="kinds of pictures asked about, which are the graph's items")
    size: int = Field(32, ge=1, description="of the vectors")
    experts: int = Field(8, ge=1, description="between which a user's gate chooses")
    expert_rank: int = Field(2, ge=1)
    pooled_rank: int = Field(4, ge=0, description="of the expert that everybody has; 0 for none")
    neighbours: int = Field(5, ge=1, description="trained users of whom an unseen one is made")
    graph_weight: float = Field(0.5, ge=0, description="of the loss that tells liked from disliked kinds")
    last_layers: int | None = Field(None, ge=1, description="decoder layers adapted; all when absent")


class JointTokensMethod(MethodSettings):
    """Tokens of several users in one prompt, trained together."""

    table_type = "PEFT"
    module = "prefmoe.models.joint_tokens"
    information: ClassVar[str] = "tokens made of profile pictures and learned from answers"
    information_in_training: ClassVar[str] = "profile pictures and answers"
    information_unseen: ClassVar[str] = "tokens made of profile pictures"
    kind: Literal["joint_tokens"]
    lr: float = Field(gt=0)
    tokens: int = Field(16, ge=1, description="latent tokens per user, beside the user's word")
    together: int = Field(2, ge=1, description="users in a prompt, the one asked about among them")
