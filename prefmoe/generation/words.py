"""Words as points of a drawer's text space, to which mapped states of a rater are brought."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prefmoe.generation.drawer import Drawer


@torch.no_grad()
def embed_words(drawer: Drawer, words: Sequence[str], carrier: str) -> Tensor:
    """Text embeddings of words behind a prompt, (N, D): the mean over each word's own tokens. ``carrier``: the prompt.
    Raises DrawerError if the drawer does not know a word."""
    prompts = [f"{carrier}, {word}" for word in words]
    ids, embedded = drawer.token_ids(prompts), drawer.encode_prompts(prompts)
    plain = drawer.token_ids([carrier])[0]
    begins = int((plain != ids[:1]).any(0).nonzero()[0])  # where the word stands in the place of the end
    stops = torch.tensor([len(drawer.tokenizer(prompt)["input_ids"]) - 1 for prompt in prompts])
    places = torch.arange(ids.shape[1])[None]
    own = ((places >= begins) & (places < stops[:, None])).to(embedded)
    return (embedded * own[..., None]).sum(1) / own.sum(1, keepdim=True)
