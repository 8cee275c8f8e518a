"""Reading episodes: sums of words or features in the places of pictures, and what is learned of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from prefmoe.data.choice_drawing import ATTRIBUTES, prompt_of
from pretraining.episodes import NAMES, SIZES, STARTS, Episodes
from pretraining.idefics2 import IMAGE, LABEL_WORDS, LATENTS, MARK

MIDDLE = 2
"""After so many layers a picture's question and its label have read the picture, if the first lessons succeed."""


class EpisodeReader:
    """Reads episodes with an Idefics2's language model.

    Args:
        model, tokenizer: as `idefics2.build_model` makes them.
    """

    def __init__(self, model, tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.language_model, self.table = model.model.text_model, model.get_input_embeddings().weight
        token, self.device = tokenizer.convert_tokens_to_ids, model.device
        values = [word for words in ATTRIBUTES.values() for word in words]
        self.value_ids = torch.tensor(token(values), device=self.device)
        self.label_ids = torch.tensor(token(list(LABEL_WORDS)))
        self.image_id, self.start = token(IMAGE), tokenizer.bos_token_id
        image = f"{MARK}{IMAGE * len(LATENTS)}{MARK}"
        prompts = [prompt_of(number, item) for number in ATTRIBUTES["number"] for item in ATTRIBUTES["item"]]
        told = [f"{image} The prompt is {prompt}. Score for this image?" for prompt in prompts]
        self.told = self._ids(told)  # (48, Q)
        self.untold, self.short = self._ids([f"{image} Score for this image?"]), self._ids([f"{IMAGE * len(LATENTS)}?"])
        self.caption = self._ids([f"{image} The prompt is"]).shape[1]  # where a prompt's two words stand

    @contextmanager
    def others_stay(self) -> Iterator[None]:
        """Within it no gradient moves the embeddings of words that pre-training does not say, "+" and "-" among them.

        Their part in every softmax would make them alike, and no longer such vectors as strange labels are.
        """
        said = [*self.value_ids.tolist(), *self.label_ids.tolist(), *self.told.unique().tolist(), self.start]
        said += self.tokenizer.convert_tokens_to_ids([*ATTRIBUTES, "."])
        moves = torch.zeros(len(self.table), 1, device=self.device)
        moves[said] = 1
        handle = self.table.register_hook(lambda gradient: gradient * moves)
        try:
            yield
        finally:
            handle.remove()

    def _ids(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def questions(self, episodes: Episodes, form: str) -> Tensor:
        """Token ids (B, n, Q) of each picture's entry up to its label; form: "told", "untold" or "short"."""
        if form == "told":
            return self.told[torch.from_numpy(episodes.told @ np.array([SIZES[1], 1]))]
        return getattr(self, form).expand(*episodes.labels.shape, -1)

    def in_words(self, values: np.ndarray) -> Tensor:
        """What stands for pictures (B, n, 9): for each token of a picture the sum of its words, (B, n, L, H)."""
        words = self.table[self.value_ids[torch.from_numpy(values + STARTS).to(self.device)]]  # (B, n, 9, H)
        tokens = [words[..., [NAMES.index(name) for name in names], :].sum(-2) for names in LATENTS]
        return torch.stack([t / len(names) ** 0.5 for t, names in zip(tokens, LATENTS, strict=True)], -2)

    def read(self, questions: Tensor, shown: Tensor, labels: np.ndarray, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            questions: (B, n, Q). shown: (B, n, L, H), what stands in the places of the pictures.
            labels: (B, n). vectors: (B, 2, H), the embeddings of each episode's two labels.

        Returns:
            last hidden states (B, n, Q + 1, H) of each entry, and those in the middle of the last position that asks
            and of the label (B, n, 2, H).
        """
        questions = questions.to(self.device)
        rows, count, _ = questions.shape
        embedded = self.table[questions]
        embedded = embedded.masked_scatter((questions == self.image_id)[..., None], shown.to(embedded.dtype))
        side = torch.from_numpy(labels).to(self.device)[..., None].expand(-1, -1, vectors.shape[-1])
        entries = torch.cat([embedded, vectors.gather(1, side)[:, :, None]], 2)  # (B, n, Q + 1, H)
        start = self.table[self.start].expand(rows, 1, -1)
        output = self.language_model(
            inputs_embeds=torch.cat([start, entries.flatten(1, 2)], 1), use_cache=False, output_hidden_states=True
        )
        last, middle = output.last_hidden_state, self.language_model.norm(output.hidden_states[MIDDLE])
        last, middle = (states[:, 1:].unflatten(1, (count, -1)) for states in (last, middle))
        return last, middle[:, :, -2:]

    def label_vectors(self, rng: np.random.Generator, rows: int, strange: float) -> tuple[Tensor, Tensor]:
        """Embeddings (B, 2, H) of two label words for each episode, and their ids (B, 2).

        A share of episodes has strange words in their places: vectors that no table holds, without ids (-1).
        """
        ids = self.label_ids[torch.from_numpy(rng.random((rows, len(LABEL_WORDS))).argsort(1)[:, :2].copy())]
        drawn = torch.from_numpy(rng.normal(0, 1, (rows, 2, self.table.shape[1]))).to(self.table)
        drawn = drawn * self.table.detach()[self.label_ids].square().mean().sqrt()
        unknown = torch.from_numpy(rng.random(rows) < strange)[:, None]
        vectors = torch.where(unknown[..., None].to(self.device), drawn, self.table[ids.to(self.device)])
        return vectors, torch.where(unknown, -1, ids).to(self.device)

    def losses(
        self, rng: np.random.Generator, episodes: Episodes, form: str, shown: Tensor, late: int, strange: float = 0.7
    ) -> tuple[dict[str, Tensor], Tensor]:
        """
        Args:
            late: how many pictures at the beginning of an episode are not asked for.

        Returns:
            the terms of the loss: "label" (which of the two), "word" (among all words), "picture" (the attributes, from
            the middle of both positions) and, where prompts are told, "caption" (their words, if they are right); and
            which labels are right, (B, n) bool.
        """
        labels = torch.from_numpy(episodes.labels).to(self.device)
        vectors, ids = self.label_vectors(rng, len(labels), strange)
        questions = self.questions(episodes, form)
        last, middle = self.read(questions, shown, episodes.labels, vectors)
        sides = torch.einsum("bnh,bsh->bns", last[:, :, -2], vectors)
        terms = {"label": F.cross_entropy(sides[:, late:].flatten(0, 1), labels[:, late:].flatten())}
        wanted = ids.gather(1, labels)[:, late:].flatten()
        if (wanted >= 0).any():
            logits = last[:, late:, -2].flatten(0, 1)[wanted >= 0] @ self.table.T
            terms["word"] = F.cross_entropy(logits, wanted[wanted >= 0])
        values = torch.from_numpy(episodes.values).to(self.device)
        parts = (middle @ self.table[self.value_ids].T).flatten(0, 2).split(SIZES.tolist(), -1)
        shown_twice = values[:, :, None].expand(-1, -1, 2, -1).flatten(0, 2)  # (B n 2, 9)
        terms["picture"] = sum(map(F.cross_entropy, parts, shown_twice.unbind(-1))) / len(parts)
        if form == "told":
            right = torch.from_numpy((episodes.told == episodes.values[..., :2]).all(-1)).to(self.device)
            words = questions.to(self.device)[:, :, self.caption : self.caption + 2][right]
            logits = last[:, :, self.caption - 1 : self.caption + 1][right] @ self.table.T
            terms["caption"] = F.cross_entropy(logits.flatten(0, 1), words.flatten())
        return terms, sides.detach().argmax(-1) == labels


def questions_about(reader: EpisodeReader, values: np.ndarray, order: np.ndarray) -> tuple[Tensor, Tensor]:
    """Pictures and, in the given orders (B, 9) of attributes, "palette azure. size large.": names are the questions.

    Returns:
        token ids (B, T), and the positions (9,) that predict the answers.
    """
    token = reader.tokenizer.convert_tokens_to_ids
    names, values_of = np.array(token(list(NAMES))), reader.value_ids.cpu().numpy()[values + STARTS]
    told = np.stack([names[order], np.take_along_axis(values_of, order, 1), np.full_like(order, token("."))], -1)
    front = [reader.start, *token([MARK, *[IMAGE] * len(LATENTS), MARK])]
    ids = np.concatenate([np.tile(front, (len(values), 1)), told.reshape(len(values), -1)], 1)
    return torch.from_numpy(ids).to(reader.device), len(front) + 3 * torch.arange(len(NAMES), device=reader.device)


def answered(reader: EpisodeReader, ids: Tensor, where: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, 9, V) of the answers to `questions_about` pictures of these tokens (B, L, H), and the answers."""
    embedded = reader.table[ids].masked_scatter((ids == reader.image_id)[..., None], tokens)
    states = reader.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    return states[:, where] @ reader.table.T, ids[:, where + 1]
