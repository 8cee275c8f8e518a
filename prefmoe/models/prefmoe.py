"""PrefMoE (Lyu et al. 2026) on any backbone: user state, prefix, mixture of experts and objective put together.

The components E P I C D M of the ablation are added in this order:

    E  user tokens of which preferences are not told apart, and a plain LoRA of the mixture's total rank: as the paper's
       row fits it, anchors with the mean of the facets in each facet's place (user_embedding: anchors), or a row of our
       own, 13 free vectors per user (free)
    P  the factorised user state in its place; profile alignment, profile contrasts, residual contrast
    I  imbalance-aware residual preservation
    C  counterfactual users in the contrasts' denominators
    D  decorrelation of residuals and prototypes
    M  the hierarchical mixture of LoRA experts in the place of the plain LoRA
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from prefmoe import losses
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch
from prefmoe.config import ControlKind, PrefMoEMethod
from prefmoe.data import counterfactual, published_texts
from prefmoe.data.benchmark import Benchmark, User
from prefmoe.data.sizes import PREFIX_LENGTH, Ranks
from prefmoe.models import saved
from prefmoe.models.anchors import encode_counterfactual_users, encode_users
from prefmoe.models.base import Method, MethodError
from prefmoe.models.controls import controlled_tokens
from prefmoe.models.free_users import FreeUsers, UserTokens, trained_rows
from prefmoe.models.growing import with_rows
from prefmoe.models.lora import install_lora
from prefmoe.models.moe_lora import HierarchicalRouter, install_mixture
from prefmoe.models.prefix import PrefixHook, masked_mean
from prefmoe.models.published_routers import STD, PublishedRouter
from prefmoe.models.routing import Routing
from prefmoe.models.user_state import CounterfactualUsers, FactorisedUsers
from prefmoe.system import distributed


class PrefMoE(Method, settings=PrefMoEMethod):
    """A frozen backbone with a soft prefix per user and, with component M, routed experts.

    Attributes:
        user_state: FactorisedUsers, or FreeUsers for component E with free vectors; user_state(rows) are the users'
            tokens.
        router: HierarchicalRouter or PublishedRouter; None without M.
        counterfactual: CounterfactualUsers; None without C, or where no user has preferences to start from.

    Raises MethodError if counterfactual users are to be read from a file that is missing or damaged.
    """

    auxiliary = frozenset(
        {"alignment", "image_contrast", "description_contrast"}
        | {"residual_contrast", "residual_preservation", "decorrelation"}
    )

    def __init__(self, config: PrefMoEMethod, backbone: Backbone, benchmark: Benchmark, **options: Any) -> None:
        super().__init__(config, backbone, benchmark, prefix_length=PREFIX_LENGTH, **options)
        self.components = frozenset(config.components)
        is_trained = trained_rows(benchmark, backbone.device)
        self.counterfactual, groups = None, benchmark.groups
        sparse = config.user_updates == "sparse"
        if "P" in self.components or config.user_embedding == "anchors":
            anchors, known = encode_users(backbone, list(benchmark.users.values()), config.anchors, config.anchor_texts)
            if config.unknown_users == "zeros":
                anchors, known = anchors * is_trained[:, None, None], known & is_trained[:, None]
            self.user_state: FactorisedUsers | FreeUsers = FactorisedUsers(
                anchors,
                known,
                is_trained,
                residual=config.residual,
                scale=config.correction_scale,
                correction=config.correction,
                separated="P" in self.components,
                sparse=sparse,
            )
            if config.anchor_texts == "published":
                groups, _ = published_texts.preference_groups(benchmark)
            if "C" in self.components:
                self.counterfactual = self._make_counterfactual_users(anchors[is_trained])
        else:
            rms = float(backbone.embed_tokens.weight.float().square().mean().sqrt())
            self.user_state = FreeUsers(is_trained, backbone.hidden_size, rms, sparse=sparse).to(backbone.device)
        self.user_state.requires_grad_(config.user_state == "trained")
        self.register_buffer("groups", torch.tensor(groups, device=backbone.device), persistent=False)  # (U, F)

        ranks = Ranks(config.preference_rank, config.user_rank, config.profile_rank)
        self.router, self.routing = None, Routing()
        if "M" in self.components:
            names = backbone.target_modules(config.last_layers)
            published = config.routers == "published"
            install_mixture(backbone.model, names, ranks.total, self.routing, STD if published else None)
            self.experts = [p for p in backbone.model.parameters() if p.requires_grad]
            options = {"alpha": config.alpha, "facet_label": config.facet_label}
            if published:
                router = PublishedRouter(backbone.hidden_size, ranks, **options)
            else:
                router = HierarchicalRouter(backbone.hidden_size, ranks, user_context=config.user_context, **options)
            self.router = router.to(backbone.device)
            backbone.language_model.register_forward_pre_hook(self._route, with_kwargs=True)
        else:
            self.experts = install_lora(backbone, config.last_layers, rank=ranks.total, alpha=ranks.total, dropout=0.0)
        self.prefix = PrefixHook(backbone.embed_tokens)
        self._active: tuple[Batch, UserTokens] | None = None

    def _make_counterfactual_users(self, real: Tensor) -> CounterfactualUsers | None:
        """real (U, 8, H): the anchors of the trained users."""
        config, benchmark = self.config, self.benchmark
        if config.counterfactual_source == "file":
            try:
                pseudo = counterfactual.read(benchmark.root / counterfactual.FILE)
            except ValueError as error:
                raise MethodError(f"counterfactual_source: file: {error}") from error
        else:
            pseudo = counterfactual.generate(benchmark, config.counterfactual_users, self.seed)
            if config.anchor_texts == "published":
                pseudo = [published_texts.worded(user) for user in pseudo]
        if not pseudo:
            return None
        texts = config.anchor_texts
        anchors = encode_counterfactual_users(
            self.backbone, pseudo, config.anchors, real, texts=texts, images=config.counterfactual_images
        )
        if texts == "published":
            (_, groups), used = published_texts.preference_groups(benchmark, pseudo), None
        else:
            groups = counterfactual.groups(pseudo, benchmark)
            used = 1 + max(group for row in benchmark.groups for group in row)
        families = [user.family for user in pseudo]
        groups = torch.tensor(groups, device=anchors.device)
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

    @property
    def decodes_with_cache(self) -> bool:
        """Not where the query grows with the answer, which changes the gates and with them every hidden state."""
        return self.router is None or self.config.query == "question"

    def _query_mask(self, batch: Batch) -> Tensor:
        """(B, T) the positions whose mean is the query; never the answer's."""
        if self.config.query == "question":
            return batch.query_mask
        mask = batch.inputs["attention_mask"].bool() & ~batch.prefix_mask
        return mask if batch.labels is None else mask & (batch.labels == -100)

    def _route(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Sets the gates when a prompt enters the language model. Steps of decoding keep them, unless the query is that
        of the whole prompt and the sequence enters anew: then generated tokens are part of it."""
        if self._active is None:
            return
        (batch, tokens), embeddings = self._active, kwargs["inputs_embeds"]
        generated = embeddings.shape[1] - batch.query_mask.shape[1]
        if generated == 0 or (generated > 0 and self.config.query == "prompt"):
            mask, before = self._query_mask(batch), self.routing.gates
            if generated:
                mask = nn.functional.pad(mask, (0, generated), value=True)
            self.router(self.routing, tokens, masked_mean(embeddings, mask), batch.facet)
            if generated:  # what is read of the gates afterwards are the prompt's
                self.routing.gates = before

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of the objective (the paper's method section); those of absent components are absent.

        With several processes the terms beside the answer's are those of all their examples together.

        Raises RuntimeError outside ``context(batch)``.
        """
        if self._active is None or self._active[0] is not batch:
            raise RuntimeError("training_losses(batch) and its backward pass belong inside context(batch)")
        tokens, weights = self._active[1], self.config.losses
        alone = "P" not in self.components or weights.none
        span = batch.question_span if self.config.query == "question" else None  # None: everywhere
        answer, hidden = self.answer_loss(batch, batch.answer_span if alone else span)
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
        query = together(masked_mean(hidden, self._query_mask(batch)))
        if self.config.residual_query == "scaled":
            # It joins residuals, which may be far smaller than hidden states: it is brought to their rms.
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

        None where nothing is computed from a profile: with free vectors the user gets their mean, and with
        unknown_users: zeros nothing.
        """
        config = self.config
        if isinstance(self.user_state, FreeUsers) or config.unknown_users == "zeros":
            return None
        with self._plain_backbone():
            return encode_users(self.backbone, [user], config.anchors, config.anchor_texts)

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

    def _load_tensors(self, path: Path) -> None:
        """Says which routers an adapter's tensors are of, before their names and shapes are said to differ."""
        names = saved.tensor_names(path)
        kinds = {"own": "router.task.weight", "published": "router.weights.task_router_0"}
        found = next((kind for kind, name in kinds.items() if name in names), None)
        if self.router is not None and found not in (None, self.config.routers):
            raise MethodError(
                f"{path.with_name(saved.CONFIG_FILE)}, method.routers: {self.config.routers!r}, but {path.name} holds "
                f"the tensors of {found} routers; expected routers: {found}"
            )
        super()._load_tensors(path)

    def _buffers_to_save(self) -> dict[str, Tensor]:
        kept = dict(self.user_state.named_buffers())
        if self.config.user_state == "frozen":
            kept |= dict(self.user_state.named_parameters())
        return {f"user_state.{name}": tensor for name, tensor in kept.items()}
