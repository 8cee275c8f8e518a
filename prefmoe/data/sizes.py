"""What the user state and the experts count by, for everything that only counts: planning a workflow needs no torch."""

from dataclasses import dataclass

from prefmoe.data.benchmark import FACETS

ANCHORS = ("name", "image", "description", *FACETS)
"""The eight anchors of a user, in the order of every anchor axis; all but the name carry a correction."""

PREFIX_LENGTH = 3 + 2 * len(FACETS)

PROFILE_EXPERTS = ("image", "description")


@dataclass(frozen=True)
class Ranks:
    """Rank of each preference expert, of the user expert and of each profile expert."""

    preference: int = 8
    user: int = 64
    profile: int = 8

    @property
    def total(self) -> int:
        return self.user + len(FACETS) * self.preference + len(PROFILE_EXPERTS) * self.profile


def router_width(hidden: int) -> int:
    """Width g of the published routers and encoders on a backbone of this hidden size: H / 64, held to 32 ... 128."""
    return min(128, max(32, hidden // 64))


def published_router_shapes(hidden: int, ranks: Ranks) -> dict[str, tuple[int, int]]:
    """The shape (out, in) of each weight of the published routers and of the user expert's context, by name."""
    width = router_width(hidden)
    inputs = dict.fromkeys(("image", "description", "name", "query", "profile"), hidden)
    inputs["preference"] = len(FACETS) * hidden
    routers = {"task": (3 * width, 2), "preference": (hidden, 1), "profile": (3 * width, len(PROFILE_EXPERTS))}
    shapes = {f"{part}_encoder_0": (width, size) for part, size in inputs.items()}
    shapes |= {f"{part}_encoder_1": (width, width) for part in inputs}
    shapes |= {f"{part}_router_0": (width, size) for part, (size, _) in routers.items()}
    shapes |= {f"{part}_router_1": (outputs, width) for part, (_, outputs) in routers.items()}
    shapes |= {"user_context_0": (ranks.user, 3 * width), "user_context_1": (ranks.user, ranks.user)}
    shapes["facet_embedding"] = (len(FACETS) + 1, width)
    return shapes
