"""The settings of the rivals: other ways of knowing a user, each after a paper of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prefmoe.config.method_settings import MethodSettings


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
