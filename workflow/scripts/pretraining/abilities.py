"""What a miniature can do, measured on people and pictures that no stage has seen."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from pretraining.conversations import Conversations, Encoder, Introduced, Say
from pretraining.drawings import unseen_pictures
from pretraining.reading import learned_tokens, soft_prefix
from pretraining.vision import pool_features

WANTED = {
    "naming an item": 0.9, "preference yes/no": 0.9, "preference choice": 0.9,
    "preference yes/no from a soft prefix": 0.7, "presence from portrait": 0.85, "place from portrait": 0.8,
}  # fmt: skip
"""Accuracies that a miniature is made for: some .1 below what the shipped ones have. One run of the recipe has read
profiles and recognised nobody."""


@torch.no_grad()
def measure_abilities(model, kind: str, image_processor, tokenizer, count: int = 400) -> dict[str, dict[str, float]]:
    """What a miniature can do, on pictures and people of ``unseen_pictures``.

    Returns ability -> {"accuracy", "n"}: naming an item, yes/no and choice questions about preferences read from a
    profile text or (yes/no) from a soft prefix, and recognising somebody from a portrait or from a description alone. A
    soft prefix does not tell what is liked from what is disliked (a mean has no order), so that not all of its
    questions can be answered.
    """
    pool = unseen_pictures()
    was_training = model.training
    model.eval()
    features, table = pool_features(model, image_processor, pool), model.get_input_embeddings()
    encoder = Encoder(kind, tokenizer)
    drawn = Conversations(pool, np.random.default_rng(97))
    letters = set(tokenizer.convert_tokens_to_ids(list("ABCD")))
    asked: dict[str, list[tuple[int, int]]] = {}

    def run(conversations: Sequence[list[Say]], name: Callable[[int], str], people: Sequence[Introduced] = ()) -> None:
        for first in range(0, len(conversations), 40):
            part, prefix = slice(first, first + 40), None
            if people:
                prefix = soft_prefix(
                    table.weight, encoder, features, people[part], 40, drawn.rng, blend=1.0, dislikes=1.0
                )
            logits, wanted = learned_tokens(model, encoder, conversations[part], features, prefix)
            for want, got in zip(wanted.tolist(), logits.argmax(-1).tolist(), strict=True):
                if want != tokenizer.eos_token_id:
                    asked.setdefault(name(want), []).append((want, got))

    run([drawn.preferences(5, 1) for _ in range(count)],
        lambda want: "preference choice" if want in letters else "preference yes/no")  # fmt: skip
    for source in ("portrait", "description"):
        run([drawn.recognition(1, source=source) for _ in range(count)],
            lambda want, s=source: f"{'place' if want in letters else 'presence'} from {s}")  # fmt: skip
    run([drawn.captions(1, faces=False) for _ in range(count)], lambda want: "naming an item")
    people, asked_about = zip(*(drawn.introduced(1) for _ in range(count)), strict=True)
    run(asked_about, lambda want: "preference yes/no from a soft prefix", people)
    model.train(was_training)
    return {
        name: {"accuracy": round(float(np.mean([w == g for w, g in pairs])), 4), "n": len(pairs)}
        for name, pairs in sorted(asked.items())
    }
