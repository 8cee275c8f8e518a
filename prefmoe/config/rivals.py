"""The settings of the rivals: other ways of knowing a user, each after a paper of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from prefmoe.config.method_settings import MethodSettings
from prefmoe.config.methods import LoRAMethod


class UserLoRAMethod(MethodSettings):
    """One LoRA per user, beside a pooled one where that has a rank."""

    table_type = "PEFT"
    module = "prefmoe.models.user_lora"
    kind: Literal["user_lora"]
    lr: float = Field(gt=0, description="of everybody's adapters")
    rank: int = Field(4, ge=1, description="of each user's own adapter")
    alpha: float = Field(4.0, gt=0, description="a user's update is alpha / rank * B A x")
    pooled_rank: int = Field(16, ge=0, description="of the adapter that all users share; 0 for none")
    last_layers: int | None = Field(None, ge=1, description="decoder layers adapted; all when absent")

    @property
    def information(self) -> str:
        return "adapters learned from answers"

    @property
    def information_in_training(self) -> str:
        return "answers"


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
