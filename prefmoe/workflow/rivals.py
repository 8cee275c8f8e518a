"""How many parameters the rivals train, from shapes alone."""

from prefmoe.config import (
    EmbeddingPrefixMethod,
    GraphExpertsMethod,
    HistoryMethod,
    JointTokensMethod,
    MethodSettings,
    UserLoRAMethod,
)
from prefmoe.data.sizes import ANCHORS


def parameters(method: MethodSettings, hidden: int, per_rank: int, users: int) -> int | None:
    """Trained parameters of a rival whose adapters have so many for each rank; None for any other method, and for those
    that are counted by their rank alone.

    ``users``: all of them in the training split. Of the graph, kinds of pictures are as many as the settings ask for.
    """
    if isinstance(method, UserLoRAMethod):
        return per_rank * (method.pooled_rank + users * method.rank)
    if isinstance(method, HistoryMethod):
        width = method.width
        embedder = 2 * 2 * hidden * width + (3 * hidden + 1) * width + (width + 1) * hidden + hidden
        return embedder + per_rank * method.pooled_rank
    if isinstance(method, EmbeddingPrefixMethod):
        network = (len(ANCHORS) * hidden + 1) * method.width + (method.width + 1) * method.tokens * hidden
        return network + per_rank * method.pooled_rank
    if isinstance(method, GraphExpertsMethod):
        experts = per_rank * (method.pooled_rank + method.experts * method.expert_rank)
        return experts + (method.size + 1) * method.experts + method.size * (users + method.kinds)
    if isinstance(method, JointTokensMethod):
        return users * (1 + method.tokens) * hidden
    return None
