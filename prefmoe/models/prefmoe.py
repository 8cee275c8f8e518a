"""PrefMoE (Lyu et al. 2026) on any backbone: user state, prefix, mixture of experts and objective put together.

The components E P I C D M of the ablation are added in this order:

    E  a free embedding of 13 tokens per user and a plain LoRA of the mixture's total rank
    P  the factorised user state in its place; profile alignment, profile contrasts, residual contrast
    I  imbalance-aware residual preservation
    C  counterfactual users in the contrasts' denominators
    D  decorrelation of residuals and prototypes
    M  the hierarchical mixture of LoRA experts in the place of the plain LoRA
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from prefmoe import losses
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch
from prefmoe.config import ControlKind, PrefMoEMethod
from prefmoe.data import counterfactual
from prefmoe.data.benchmark import Benchmark, User
from prefmoe.data.sizes import PREFIX_LENGTH, Ranks
from prefmoe.models.anchors import encode_counterfactual_users, encode_users
from prefmoe.models.base import Method, MethodError
from prefmoe.models.controls import controlled_tokens
from prefmoe.models.free_users import FreeUsers, UserTokens
from prefmoe.models.growing import with_rows
from prefmoe.models.lora import install_lora
from prefmoe.models.moe_lora import HierarchicalRouter, install_mixture
from prefmoe.models.prefix import PrefixHook
from prefmoe.models.routing import Routing
from prefmoe.models.user_state import CounterfactualUsers, FactorisedUsers
from prefmoe.system import distributed


class PrefMoE(Method, settings=PrefMoEMethod):
    """A frozen backbone with a soft prefix per user and, with component M, routed experts.

    Attributes:
        user_state: FactorisedUsers, or FreeUsers for component E alone; user_state(rows) are the users' tokens.
        router: HierarchicalRouter, or None without M.
        counterfactual: CounterfactualUsers; None without C, or where no user has preferences to start from.

    Raises:
        MethodError: if the oracle's facet label is asked for without M: only routers read it.
    """

    def __init__(self, config: PrefMoEMethod, backbone: Backbone, benchmark: Benchmark, **options: Any) -> None:
        super().__init__(config, backbone, benchmark, prefix_length=PREFIX_LENGTH, **options)
        self.components = frozenset(config.components)
        if config.facet_label == "oracle" and "M" not in self.components:
            raise MethodError("facet_label: oracle is read by the routers, which only component M has")
        trained = set(benchmark.trained_users)
        is_trained = torch.tensor([name in trained for name in benchmark.users], device=backbone.device)
        self.counterfactual = None
        if "P" in self.components:
            anchors, known = encode_users(backbone, list(benchmark.users.values()), config.anchors)
            self.user_state: FactorisedUsers | FreeUsers = FactorisedUsers(
                anchors,
                known,
                is_trained,
                residual=config.residual,
                scale=config.correction_scale,
                sparse=config.user_updates == "sparse",
            )
            if "C" in self.components and config.counterfactual_users:
                self.counterfactual = self._make_counterfactual_users(anchors[is_trained, 1])
        else:
            rms = float(backbone.embed_tokens.weight.float().square().mean().sqrt())
            sparse = config.user_updates == "sparse"
            self.user_state = FreeUsers(is_trained, backbone.hidden_size, rms, sparse=sparse).to(backbone.device)
        self.user_state.requires_grad_(config.user_state == "trained")
        groups = torch.tensor(benchmark.groups, device=backbone.device)  # (U, F)
        self.register_buffer("groups", groups, persistent=False)

        ranks = Ranks(config.preference_rank, config.user_rank, config.profile_rank)
        self.router, self.routing = None, Routing()
        if "M" in self.components:
            names = backbone.target_modules(config.last_layers)
            install_mixture(backbone.model, names, ranks, self.routing)
            self.experts = [p for p in backbone.model.parameters() if p.requires_grad]
            self.router = HierarchicalRouter(
                backbone.hidden_size,
                ranks,
                alpha=config.alpha,
                facet_label=config.facet_label,
                user_context=config.user_context,
            ).to(backbone.device)
            backbone.language_model.register_forward_pre_hook(self._route, with_kwargs=True)
        else:
            self.experts = install_lora(
                backbone,
                config.last_layers,
                rank=ranks.total,
                alpha=ranks.total,
                dropout=0.0,
            )
        self.prefix = PrefixHook(backbone.embed_tokens)
        self._active: tuple[Batch, UserTokens] | None = None

    def _make_counterfactual_users(self, image_anchors: Tensor) -> CounterfactualUsers | None:
        config, benchmark = self.config, self.benchmark
        pseudo = counterfactual.generate(benchmark, config.counterfactual_users, self.seed)
        if not pseudo:
            return None
        anchors = encode_counterfactual_users(self.backbone, pseudo, config.anchors, image_anchors)
        groups = torch.tensor(counterfactual.groups(pseudo, benchmark), device=anchors.device)
        used = 1 + max(group for row in benchmark.groups for group in row)
        families = [user.family for user in pseudo]
        return CounterfactualUsers(anchors, self.user_state.center, families, groups, used)

    # --- training and asking

    @property
    def token_controls(self) -> tuple[ControlKind, ...]:
        return ("zero_prefix", "shuffled_facets") if "P" in self.components else ("zero_prefix",)

    @property
    def beginning(self) -> Literal["talk", "user", "question"]:
        """With routed experts every position depends on the question, which sets the gates."""
        return "question" if self.router else super().beginning

    @contextmanager
    def context(self, batch: Batch) -> Iterator[None]:
        """Prefix and routing of the batch's users, until the backward pass (or generate()) is done."""
        tokens = controlled_tokens(self.user_state(batch.user), batch.control)
        self._active = (batch, tokens)
        try:
            with self.prefix.active(tokens.prefix, batch.prefix_mask):
                yield
        finally:
            self._active = None
            self.routing.clear()

    def _route(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Sets the gates when a prompt enters the language model; steps of decoding keep them."""
        if self._active is None:
            return
        (batch, tokens), embeddings = self._active, kwargs["inputs_embeds"]
        if embeddings.shape[:2] == batch.query_mask.shape:
            self.router(self.routing, tokens, masked_mean(embeddings, batch.query_mask), batch.facet)

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of the objective (the paper's method section); those of absent components are absent.

        With several processes the terms beside the answer's are those of all their examples together.

        Raises:
            RuntimeError: outside ``context(batch)``.
        """
        if self._active is None or self._active[0] is not batch:
            raise RuntimeError("training_losses(batch) and its backward pass belong inside context(batch)")
        tokens, weights = self._active[1], self.config.losses
        alone = "P" not in self.components or weights.none
        answer, hidden = self.answer_loss(batch, batch.answer_span if alone else batch.question_span)
        terms = {"answer": answer}
        if alone:
            return terms
        pseudo = self.counterfactual
        together = distributed.rows_of_all
        _, image, description = together(tokens.profile).unbind(1)
        anchors, residuals = together(tokens.profile_anchors), together(tokens.residuals)
        user, facet = together(batch.user), together(batch.facet)
        terms["alignment"] = weights.alignment * losses.profile_alignment(image, description)
        pool = None if pseudo is None else pseudo.pool[facet]  # the last row is that of facet -1
        for kind, (name, token) in enumerate({"image": image, "description": description}.items()):
            contrast = losses.profile_contrast(
                token,
                anchors[:, kind],
                user,
                None if pseudo is None else getattr(pseudo, name),
                pool,
                temperature=weights.temperature,
            )
            terms[f"{name}_contrast"] = weights.profile_contrast * contrast
        # The query joins residuals, which may be far smaller than hidden states: it is brought to their rms.
        query = together(masked_mean(hidden, batch.query_mask))
        query = self.user_state.residual_rms * rms_norm(query, query.shape[-1:])
        contrast, focal = losses.residual_contrast(
            residuals,
            self.groups[user],
            query,
            None if pseudo is None else pseudo.residuals,
            None if pseudo is None else pseudo.groups,
            temperature=weights.temperature,
            density_power=weights.density_power,
            anchor_is_positive=weights.anchor_is_positive,
        )
        terms["residual_contrast"] = weights.residual_contrast * contrast
        if "I" in self.components:
            terms["residual_preservation"] = weights.residual_preservation * focal
        if "D" in self.components:
            decorrelation = losses.decorrelation(residuals, tokens.prototypes)
            terms["decorrelation"] = weights.decorrelation * decorrelation
        return terms

    def gates(self, output: Any = None) -> dict[str, Tensor]:
        return self.routing.gates

    # --- parameters

    def _groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        groups = {"experts" if self.router else "lora": (self.experts, self.config.lr)}
        if self.config.user_state == "trained":
            groups = {"user_state": (list(self.user_state.parameters()), self.config.lr_user), **groups}
        if self.router:
            groups["routers"] = (list(self.router.parameters()), self.config.lr)
        return groups

    def sparse_parameters(self) -> list[nn.Parameter]:
        state = self.user_state
        if not state.sparse or self.config.user_state == "frozen":
            return []
        return [state.delta if isinstance(state, FactorisedUsers) else state.embedding]

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "components": self.config.components,
            "users": len(self.benchmark.users),
            "trained_users": len(self.benchmark.trained_users),
            "counterfactual_users": 0 if self.counterfactual is None else len(self.counterfactual.image),
        }

    # --- users

    def _encode_user(self, user: User) -> tuple[Tensor, Tensor] | None:
        """A new user's anchors (1, 8, H) and which are known (1, F); there is no correction (delta = 0).

        With component E alone nothing is computed from a profile, and this is None: the user gets the mean embedding.
        """
        if isinstance(self.user_state, FreeUsers):
            return None
        with self._plain_backbone():
            return encode_users(self.backbone, [user], self.config.anchors)

    def _append_user(self, groups: list[int], encoded: tuple[Tensor, Tensor] | None) -> None:
        grown = with_rows(self, "groups", torch.tensor([groups]))
        if isinstance(state := self.user_state, FreeUsers):
            state.append(1)
        elif encoded is None:
            state.append(torch.zeros(1, *state.anchors.shape[1:]), torch.zeros(1, *state.known.shape[1:]))
        else:
            state.append(*encoded)
        self.groups = grown

    @contextmanager
    def _plain_backbone(self) -> Iterator[None]:
        """Within it the backbone is as it was loaded: anchors do not depend on what was trained, or on dropout."""
        layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        modes = {module: module.training for module in self.model.modules()}
        needed = {parameter: parameter.requires_grad for layer in layers for parameter in layer.parameters()}
        try:
            self.model.eval()
            for layer in layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            for parameter, value in needed.items():  # switching adapters on lets all of them be trained
                parameter.requires_grad_(value)
            for module, mode in modes.items():
                module.training = mode

    def _buffers_to_save(self) -> dict[str, Tensor]:
        kept = dict(self.user_state.named_buffers())
        if self.config.user_state == "frozen":
            kept |= dict(self.user_state.named_parameters())
        return {f"user_state.{name}": tensor for name, tensor in kept.items()}


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values (B, T, H) over the positions in mask (B, T), as (B, H) float32; 0 without positions."""
    total = torch.einsum("bth,bt->bh", values, mask.to(values.dtype))
    return total.float() / mask.sum(1, keepdim=True).clamp_min(1)
