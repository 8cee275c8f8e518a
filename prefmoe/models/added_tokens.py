"""Soft tokens anywhere in a prompt: words added to the tokenizer, whose embeddings belong to each example."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from tokenizers import AddedToken
from torch import Tensor, nn

from prefmoe.backbones.backbone import Backbone
from prefmoe.models.base import MethodError


class AddedTokens:
    """Words that are one token each, with rows of the input embedding that differ from example to example.

    The vocabulary grows in the tokenizer alone: the embedding matrix stays as it is, and a hook fills in the
    rows at the added ids, so that no row of the backbone can change, and nothing has to be restored.

    Args:
        backbone: freshly loaded; its tokenizer learns the words.
        words: K texts, found anywhere in a prompt.

    Attributes:
        first: the first of their K consecutive ids.

    Raises MethodError if the tokenizer knows one of the words already.
    """

    def __init__(self, backbone: Backbone, words: Sequence[str]) -> None:
        tokenizer = backbone.tokenizer
        if known := [word for word in words if word in tokenizer.get_vocab()]:
            raise MethodError(f"backbone {backbone.entry.name!r} already has a token {known[0]!r}; load it anew")
        # Looked for in the text as it is: a normalizer (Llama 2's puts a mark before a text and for each blank) would
        # change the words too, and those without a blank before them were not found.
        tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
        self.first, self.count = tokenizer.convert_tokens_to_ids(words[0]), len(words)
        self._rows: Tensor | None = None
        self._ids: Tensor | None = None
        backbone.embed_tokens.register_forward_pre_hook(self._hide)
        backbone.embed_tokens.register_forward_hook(self._fill)

    def contains(self, ids: Tensor) -> Tensor:
        """Which of the ids are added ones; bool, of the same shape."""
        return (ids >= self.first) & (ids < self.first + self.count)

    @contextmanager
    def active(self, rows: Tensor) -> Iterator[None]:
        """Within it example b's added tokens have the embeddings rows[b]; rows (B, K, H). May be nested."""
        outer, self._rows = self._rows, rows
        try:
            yield
        finally:
            self._rows, self._ids = outer, None

    def _hide(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Shows the embedding matrix only ids that it has."""
        ids, self._ids = args[0], None
        if self._rows is None or ids.dim() != 2:
            return None
        if len(ids) != len(self._rows):
            raise ValueError(f"added tokens are set for {len(self._rows)} examples, but {len(ids)} are embedded")
        self._ids = ids
        return (ids.masked_fill(self.contains(ids), 0), *args[1:])

    def _fill(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Puts the rows (B, K, H) where the ids (B, T) ask for them."""
        ids, rows = self._ids, self._rows
        if ids is None or rows is None:
            return None
        which = (ids - self.first).clamp(0, self.count - 1)  # (B, T)
        example = torch.arange(len(ids), device=ids.device)[:, None]
        return torch.where(self.contains(ids)[..., None], rows[example, which].to(output), output)
