"""The routing state: what the layers of a mixture read of the routers' decision about a batch."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prefmoe.data.sizes import Ranks


@dataclass
class Routing:
    """What every layer reads during a forward (and the recomputing backward) pass; None = the plain backbone.

    It belongs to the model and is emptied after the backward pass, so that gradient checkpointing recomputes
    layers under the routing of their first pass.

    Attributes:
        scale: (B, R) factor of each low-rank activation. context: (B, user rank), or None without a user expert.
        gates: the routers' outputs by name, (B, experts) each; kept until the next forward pass.
    """

    scale: Tensor | None = None
    context: Tensor | None = None
    gates: dict[str, Tensor] = field(default_factory=dict)

    def clear(self) -> None:
        """Back to the plain backbone; the last gates stay readable."""
        self.scale = self.context = None

    def fill(
        self, ranks: Ranks, *, task: Tensor, preference: Tensor, profile: Tensor, context: Tensor, alpha: float
    ) -> None:
        """Sets the mixture for a batch; rows are those of the experts: user, preference in their order, profile.

        Args:
            task: (B, 2) preference branch, profile branch. preference: (B, F). profile: (B, 2).
            context: (B, user rank). alpha: scale of the mixture's output.
        """
        first, second = alpha * task[:, :1], alpha * task[:, 1:]
        self.scale = torch.cat(
            [
                first.expand(-1, ranks.user),
                (first * preference).repeat_interleave(ranks.preference, dim=1),
                (second * profile).repeat_interleave(ranks.profile, dim=1),
            ],
            dim=1,
        )  # (B, R)
        self.context = context
        gates = {"task": task, "preference": preference, "profile": profile}
        self.gates = {name: gate.detach() for name, gate in gates.items()}
