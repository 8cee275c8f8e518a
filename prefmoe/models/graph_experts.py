"""Users who answer alike learn from each other: a graph of users and kinds of things leads a mixture of LoRA."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn.functional import normalize, rms_norm, softplus

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch
from prefmoe.config import GraphExpertsMethod
from prefmoe.data.benchmark import Benchmark, Example, User
from prefmoe.models.anchors import encode_users
from prefmoe.models.base import Method, MethodError
from prefmoe.models.free_users import trained_rows
from prefmoe.models.given_answers import check_given
from prefmoe.models.growing import with_rows
from prefmoe.models.likeness import most_alike
from prefmoe.models.moe_lora import install_mixture
from prefmoe.models.routing import Routing

LIKENESS = 0.1
"""Temperature of the softmax over how alike profiles are."""


class GraphExperts(Method, settings=GraphExpertsMethod):
    """CoPL (Choi et al. 2025, arXiv 2503.01658): collaborative filtering by a graph, then a mixture of LoRA experts.

    The graph has the trained users on one side and kinds of pictures on the other, which are clusters of what training
    questions show. An edge says that a user answered to like (1) or not to like (-1) a kind more often than not. Light
    graph convolution (He et al. 2020, arXiv 2002.02126) over two hops, with the signed edges over the square roots of
    both degrees and no weights of its own, makes each user of kinds and of users who judge the same kinds alike: the
    mean of the three layers is the user's vector. A gate, softmax of a linear map of it, weighs LoRA experts, beside
    one that everybody has; and the vectors are to tell liked from disliked kinds (the term ``graph``).

    A user without training questions is no part of the graph. The vector is then that of the trained users whose
    profiles are most alike: a mean weighed by the softmax of the cosines of facet anchors. With answers of their own
    (`give_answers`) it is that of the trained users who judge the same kinds alike.

    Departures: the paper first learns the graph and then the experts, here all learns at once; its items are responses
    of models, its edges pairs of a preferred and another one; it adapts to an unseen user by a few judgements of this
    user, here by the profile unless there are such answers; the answer of a training question is among the edges that
    its own user is made of.
    """

    auxiliary = frozenset({"graph"})
    adapts_to_user = True
    kept = ("signs", "adjacency", "known_profiles", "made_of", "shares")

    def __init__(self, config: GraphExpertsMethod, backbone: Backbone, benchmark: Benchmark, **options: Any) -> None:
        super().__init__(config, backbone, benchmark, **options)
        device, users = backbone.device, list(benchmark.users.values())
        trained = trained_rows(benchmark, device)
        signs, self.centres = edges(backbone, benchmark, config.kinds, self.seed)
        signs = signs[trained.cpu()].to(device)  # (T, K)
        self.drawn = signs.clone()  # of this benchmark; an adapter's file may put others into the graph
        self.register_buffer("signs", signs, persistent=False)
        self.register_buffer("adjacency", normalised(signs), persistent=False)  # (T, K)
        profiles = self._profiles(users)
        self.register_buffer("known_profiles", profiles[trained], persistent=False)  # (T, F H)
        # (U, k) the trained users that a user is made of, and the share of each: of whoever is trained, the user alone
        made_of = (trained.cumsum(0) - 1)[:, None].repeat(1, min(config.neighbours, len(signs)))
        shares = torch.zeros(made_of.shape, device=device)
        shares[:, 0] = 1
        made_of[~trained], shares[~trained] = self._alike(profiles[~trained])
        self.register_buffer("made_of", made_of, persistent=False)
        self.register_buffer("shares", shares, persistent=False)
        self.people, self.things = (
            nn.Parameter(torch.randn(count, config.size, device=device) / math.sqrt(config.size))
            for count in signs.shape
        )
        self.gate = nn.Linear(config.size, config.experts).to(device)
        self.routing = Routing()
        rank = config.pooled_rank + config.experts * config.expert_rank
        install_mixture(self.model, backbone.target_modules(config.last_layers), rank, self.routing)
        self.experts = [p for p in self.model.parameters() if p.requires_grad]

    def _profiles(self, users: Sequence[User]) -> Tensor:
        """(N, F H) the facets' anchors side by side."""
        return encode_users(self.backbone, list(users), "embedding")[0][:, 3:].flatten(1)

    def _alike(self, profiles: Tensor) -> tuple[Tensor, Tensor]:
        """The trained users whose profiles are most alike, and the share of each in somebody of such a profile: both
        (N, k)."""
        centre = self.known_profiles.mean(0)
        asked, known = (normalize(some - centre, dim=1) for some in (profiles, self.known_profiles))
        likeness, rows = most_alike(asked, known, min(self.config.neighbours, len(known)))
        return rows, (likeness / LIKENESS).softmax(1)

    # --- training and asking

    def convolved(self) -> tuple[Tensor, Tensor]:
        """The vectors of trained users (T, D) and of kinds (K, D): means over zero, one and two hops."""
        people, things = [self.people], [self.things]
        for _ in range(2):
            people, things = ([*people, self.adjacency @ things[-1]], [*things, self.adjacency.T @ people[-1]])
        return torch.stack(people).mean(0), torch.stack(things).mean(0)

    def user_gates(self, rows: Tensor) -> Tensor:
        """(B, E) the shares of the experts for users, by row; rows (B,)."""
        people = self.convolved()[0]
        asked = (self.shares[rows, :, None] * people[self.made_of[rows]]).sum(1)  # (B, D)
        return self.gate(rms_norm(asked, asked.shape[1:], eps=1e-12)).softmax(1)

    @contextmanager
    def context(self, batch: Batch) -> Iterator[None]:
        config = self.config
        gate = self.user_gates(batch.user)
        scale = config.experts * gate.repeat_interleave(config.expert_rank, dim=1)  # an even mixture is a plain LoRA
        self.routing.scale = torch.cat([scale.new_ones(len(scale), config.pooled_rank), scale], dim=1)
        self.routing.gates = {"experts": gate.detach()}
        try:
            yield
        finally:
            self.routing.clear()

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The answers' loss, and the mean logistic loss of the graph's edges."""
        terms = super().training_losses(batch)
        people, things = self.convolved()
        known = self.signs != 0
        wrong = softplus(-self.signs * (people @ things.T)) * known
        return {**terms, "graph": self.config.graph_weight * wrong.sum() / known.sum().clamp_min(1)}

    def gates(self, output: Any = None) -> dict[str, Tensor]:
        return self.routing.gates

    def _groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return {
            "experts": (self.experts, self.config.lr),
            "gate": (list(self.gate.parameters()), self.config.lr),
            "graph": ([self.people, self.things], self.config.lr_graph),
        }

    def describe(self) -> dict[str, Any]:
        edges = {"likes": int((self.signs > 0).sum()), "dislikes": int((self.signs < 0).sum())}
        return {**super().describe(), "graph": {"users": len(self.signs), "kinds": self.signs.shape[1], **edges}}

    # --- users

    @torch.no_grad()
    def give_answers(self, name: str, examples: Sequence[Example]) -> None:
        """Makes a user without training questions of the trained users who judge the same kinds of pictures alike, by
        the cosines of their edges, in the place of those with alike profiles. Nobody else changes.

        Raises MethodError if the user is unknown or has training questions, a question is about somebody else, none
        says what the user likes, or this graph is not of the benchmark's training answers.
        """
        check_given(self.benchmark, name, examples, "the graph's")
        if not torch.equal(self.drawn.to(self.signs), self.signs):
            raise MethodError("the graph was trained on other answers than this benchmark's, and has other kinds")
        own = self.signs.new_zeros(1, len(self.centres))
        if judged := [example for example in examples if verdict(example)]:
            kinds = torch.cdist(_seen(self.backbone, judged), self.centres).argmin(1).to(own.device)
            own[0].index_add_(0, kinds, own.new_tensor([verdict(example) for example in judged]))
        if not own.any():
            raise MethodError(f"user {name!r}: expected yes/no answers that say what is liked and what is not")
        most = self.made_of.shape[1]
        likeness, rows = most_alike(normalize(own.sign(), dim=1), normalize(self.signs, dim=1), most)
        row = self.benchmark.row(name)
        self.made_of[row], self.shares[row] = rows[0], (likeness / LIKENESS).softmax(1)[0]

    def _encode_user(self, user: User) -> tuple[Tensor, Tensor]:
        return self._alike(self._profiles([user]))

    def _append_user(self, groups: list[int], encoded: tuple[Tensor, Tensor] | None) -> None:
        made_of, shares = encoded or (torch.zeros_like(some[:1]) for some in (self.made_of, self.shares))
        self.made_of, self.shares = with_rows(self, "made_of", made_of), with_rows(self, "shares", shares)


def verdict(example: Example) -> int:
    """What an answered question says of its user: 1 to like what the picture shows, -1 not to, 0 neither."""
    if example.category != "preference" or example.is_multiple_choice:
        return 0
    return 1 if (example.answer == 4) != example.semantic_invert else -1


def edges(backbone: Backbone, benchmark: Benchmark, kinds: int, seed: int) -> tuple[Tensor, Tensor]:
    """(U, K) the signed edges between users and kinds of pictures, of the training questions alone; K is ``kinds``, or
    how many different pictures there are where these are fewer. And (K, H) the kinds' centres."""
    judged = [example for example in benchmark.select("train") if verdict(example)]
    counts, centres = torch.zeros(len(benchmark.users), 1), torch.zeros(1, backbone.hidden_size)
    if judged:
        pictures = _seen(backbone, judged)
        count = min(kinds, len(pictures.unique(dim=0)))
        found = KMeans(count, n_init=4, random_state=seed).fit(pictures.numpy())
        users = torch.tensor([benchmark.row(example.name) for example in judged])
        values = torch.tensor([float(verdict(example)) for example in judged])
        counts, centres = torch.zeros(len(benchmark.users), count), torch.from_numpy(found.cluster_centers_)
        counts.index_put_((users, torch.from_numpy(found.labels_).long()), values, accumulate=True)
    return counts.sign(), centres


def _seen(backbone: Backbone, examples: Sequence[Example]) -> Tensor:
    """(N, H) the mean token of each question's picture."""
    features = backbone.image_features([example.image for example in examples])
    return torch.stack([tokens.float().mean(0).cpu() for tokens in features])


def normalised(signs: Tensor) -> Tensor:
    """Signed edges (T, K) over the square roots of both ends' degrees; 0 where there is no edge."""
    degrees = [signs.abs().sum(axis, keepdim=True).clamp_min(1) for axis in (1, 0)]
    return signs / (degrees[0] * degrees[1]).sqrt()
