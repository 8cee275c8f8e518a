"""How the language model is asked: logits of what it shall learn, and soft prefixes of invented people."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from prefmoe.data.benchmark import FACETS
from prefmoe.data.prompts import preference_phrase
from prefmoe.data.sizes import PREFIX_LENGTH
from pretraining.conversations import Conversations, Encoder, Introduced, Say, collate, invented_preferences
from pretraining.miniatures import BLANK, GRID


def _language_logits(model, kind: str, batch: dict, features: torch.Tensor | None, image_id: int,
                    prefix: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Logits (n, V), labels (n,) and rows (n,) of the labelled positions, with precomputed image features (m, 16, H).
    ``prefix``: (b, P, H) soft tokens for the first P positions after the padding, of the last b rows."""
    device = model.device
    ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
    embeds = model.get_input_embeddings()(ids)
    places = ids == image_id
    if batch["pictures"]:
        tokens = features[torch.tensor(batch["pictures"], device=device)].to(embeds.dtype)
        embeds = embeds.masked_scatter(places[..., None], tokens.reshape(-1, tokens.shape[-1]))
    if prefix is not None:
        front = mask.bool() & (mask.cumsum(1) <= prefix.shape[1])
        front[: len(front) - len(prefix)] = False
        embeds = embeds.masked_scatter(front[..., None], prefix)
    extra = {}
    if kind == "qwen2.5-vl":
        grid = torch.tensor([[1, 2 * GRID, 2 * GRID]] * len(batch["pictures"])) if batch["pictures"] else None
        asked = batch["input_ids"]  # counted token by token, which no accelerator likes
        positions, _ = model.model.get_rope_index(
            input_ids=asked, mm_token_type_ids=(asked == image_id).int(), image_grid_thw=grid,
            attention_mask=batch["attention_mask"],
        )  # fmt: skip
        extra["position_ids"] = positions.to(device)
    states = model.model.language_model(inputs_embeds=embeds, attention_mask=mask, **extra).last_hidden_state
    labels = batch["labels"][:, 1:].to(device)
    row, place = (labels != -100).nonzero(as_tuple=True)
    return model.lm_head(states[row, place]), labels[row, place], row


def _of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """The rows of a batch, in two parts where padding each to its own longest makes them smaller by a tenth."""
    order = sorted(range(len(lengths)), key=lambda k: lengths[k])
    longest, count = lengths[order[-1]], len(order)
    sizes = [k * lengths[order[k - 1]] + (count - k) * longest for k in range(1, count)]
    if not sizes or min(sizes) > 0.9 * count * longest:
        return [order]
    cut = 1 + sizes.index(min(sizes))
    return [order[:cut], order[cut:]]


def learned_tokens(
    model, encoder: Encoder, conversations: Sequence[list[Say]], features: torch.Tensor | None,
    prefix: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Logits (n, V) and ids (n,) of every token that some conversation says and that is to be learned.

    The order is that of the conversations only within each part of `_of_like_length`.

    ``features``: (n pictures, 16, H) projected image tokens, or None without pictures; ``prefix``: (B, P, H) soft
    tokens in front of each conversation.
    """
    encoded = [encoder(conversation) for conversation in conversations]
    parts, room = [], 0 if prefix is None else prefix.shape[1]
    lengths = [len(ids) for ids, _, _ in encoded]
    # an accelerator minds padding less than it minds a second pass
    for rows in _of_like_length(lengths) if model.device.type == "cpu" else [list(range(len(lengths)))]:
        front = None if prefix is None else prefix[rows]
        data = collate([encoded[k] for k in rows], encoder.tokenizer.pad_token_id, [room] * len(rows))
        parts.append(_language_logits(model, encoder.kind, data, features, encoder.image_id, front)[:2])
    logits, wanted = (torch.cat(column) for column in zip(*parts, strict=True))
    return logits, wanted


def learned_in_one_pass(
    model, encoder: Encoder, plain: Sequence[list[Say]], introduced: Sequence[list[Say]], features: torch.Tensor,
    prefix: torch.Tensor,
) -> list[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
    """`learned_tokens` of conversations without a prefix and of others with one: what an accelerator does at once."""
    rooms = [0] * len(plain) + [prefix.shape[1]] * len(introduced)
    data = collate([encoder(one) for one in (*plain, *introduced)], encoder.tokenizer.pad_token_id, rooms)
    logits, wanted, row = _language_logits(model, encoder.kind, data, features, encoder.image_id, prefix)
    return [(logits[part], wanted[part]) for part in (row < len(plain), row >= len(plain))]


CIRCLE = 200
"""How many invented people have learned tokens, in the practice that stands beside the one with anchors."""


class FreePeople(torch.nn.Module):
    """A circle of invented people whom learned tokens introduce, as many as a prefix has and free of any form.

    What stands in them comes from answers alone, as it does for methods with free tokens per user.

    ``conversations``: invents them; ``table``: (V, H) input embeddings, whose root mean square the tokens start with.
    """

    def __init__(self, conversations: Conversations, table: torch.Tensor, count: int):
        super().__init__()
        self.conversations = conversations
        self.people = [conversations.introduced(0)[0] for _ in range(count)]
        spread = table.detach().square().mean().sqrt()
        self.tokens = torch.nn.Parameter(spread * torch.randn(count, PREFIX_LENGTH, table.shape[1]).to(table.device))

    def ask(self, count: int, questions: int, talk: bool) -> tuple[torch.Tensor, list[list[Say]]]:
        """Tokens (count, 13, H) of people of the circle, and questions about each."""
        chosen = self.conversations.rng.integers(len(self.people), size=count)
        people = [self.people[k] for k in chosen]
        asked = [self.conversations.about(p.name, p.preferences, questions, talk) for p in people]
        return self.tokens[torch.from_numpy(chosen).to(self.tokens.device)], asked


def soft_prefix(
    table: torch.Tensor, encoder: Encoder, features: torch.Tensor, people: Sequence[Introduced], crowd: int,
    rng: np.random.Generator, *, blend: float, dislikes: float,
) -> torch.Tensor:  # fmt: skip
    """The 13 soft tokens of PrefMoE's prefix for invented people, or a step on the way to them.

    Name, image and description are means of their tokens. With s the sum of the word embeddings of "User preference
    in travel: ...", m its mean over these people and others, and a, b the two liked things, a facet has

        (1 - blend) a + blend m    and    (1 - blend) b + blend (s - m)

    so that blend = 0 shows single words, and blend = 1 the prototype and the residual of the untrained user state.

    Args:
        table: (V, H) input embeddings. features: (n pictures, 16, H).
        crowd: how many people m is taken over; rng invents the others. dislikes: weight in s of the things disliked.

    Returns (B, 13, H).
    """

    def total(texts: Sequence[str], light: Sequence[Sequence[str]] | None = None) -> torch.Tensor:
        """The sums (n, H) of the tokens of each text, some words of which weigh less."""
        ids = [encoder.ids(text) for text in texts]
        faint = [{i for word in words for i in encoder.ids(word)} for words in light or [()] * len(texts)]
        weights = [dislikes if i in less else 1.0 for row, less in zip(ids, faint, strict=True) for i in row]
        starts = torch.tensor([0, *np.cumsum([len(row) for row in ids])[:-1].tolist()], device=device)
        flat = torch.tensor([i for row in ids for i in row], device=device)
        weight = torch.tensor(weights, device=device)
        return F.embedding_bag(flat, table, starts, mode="sum", per_sample_weights=weight)

    def words(items: Sequence[str | None]) -> torch.Tensor:
        given = torch.tensor([[float(item is not None)] for item in items], device=device)
        return total([item or BLANK for item in items]) * given

    device = table.device
    names = total([p.name for p in people]) / torch.tensor([[len(encoder.ids(p.name))] for p in people], device=device)
    images = features[torch.tensor([p.portrait for p in people], device=device)].float().mean(1)
    lengths = torch.tensor([[len(encoder.ids(p.description))] for p in people], device=device)
    tokens = [names, images, total([p.description for p in people]) / lengths]
    for facet in FACETS:
        held = [p.preferences.get(facet) for p in people]
        known = [own for own in held if own is not None]
        everybody = known + [invented_preferences(rng, [facet])[facet] for _ in range(crowd - len(known))]
        sums = total(
            [f"User preference in {facet}: {preference_phrase(own)}" for own in everybody],
            [own.dislikes for own in everybody],
        )
        mean = sums.mean(0)
        residuals = table.new_zeros(len(people), table.shape[1])
        residuals[[own is not None for own in held]] = sums[: len(known)] - mean
        first, second = (words([own and own.likes[k] for own in held]) for k in (0, 1))
        tokens += [(1 - blend) * first + blend * mean, (1 - blend) * second + blend * residuals]
    return torch.stack(tokens, 1)
