"""What the Idefics2 miniature can do on drawings that no stage has seen, beside what others make of the same."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pretraining.episodes import NAMES, SIZES, STARTS, Episodes, PoolEpisodes
from pretraining.sorting import EpisodeReader, answered, questions_about
from pretraining.tower import all_tokens, unseen_choice_pictures

ENTRIES = 17
"""Pictures of an episode: as many as the histories of eight choices have, and one more."""

SORTED = {"one attribute": (1, 1), "up to three attributes": (1, 3), "all attributes": (9, 9)}
"""How many attributes matter in the episodes that the abilities are measured on."""

ORDERS = 5
"""How often a history is shuffled."""

TOGETHER = 20
"""Episodes that are read in one pass: what more of them hold does not fit a processor's cache."""


def one_hot(values: np.ndarray) -> np.ndarray:
    """(..., 9) values as zeros and ones, (..., V)."""
    found = np.zeros((*values.shape[:-1], SIZES.sum()))
    np.put_along_axis(found, values + STARTS, 1.0, -1)
    return found


def by_logistic_regression(episodes: Episodes) -> np.ndarray:
    """What a linear reader of the true attributes says of each last picture, having seen the others: (B,)."""
    said, features = [], one_hot(episodes.values)
    for seen, labels in zip(features, episodes.labels, strict=True):
        sides = set(labels[:-1].tolist())
        known = (
            LogisticRegression().fit(seen[:-1], labels[:-1]).predict(seen[-1:])[0] if len(sides) > 1 else sides.pop()
        )
        said.append(known)
    return np.array(said)


def by_counting(episodes: Episodes) -> np.ndarray:
    """The label that most of the others have: (B,)."""
    return (episodes.labels[:, :-1].mean(1) > 0.5).astype(int)


@torch.no_grad()
def by_model(reader: EpisodeReader, episodes: Episodes, tokens: Tensor, labels: tuple[str, str], form: str) -> Tensor:
    """The probability of the second label for each last picture, (B,)."""
    ids = torch.tensor(reader.tokenizer.convert_tokens_to_ids(list(labels)), device=reader.device)
    found = []
    for first in range(0, len(episodes.labels), TOGETHER):
        some = _some(episodes, slice(first, first + TOGETHER))
        vectors = reader.table[ids].expand(len(some.labels), 2, -1)
        last, _ = reader.read(
            reader.questions(some, form), tokens[torch.from_numpy(some.pictures)], some.labels, vectors
        )
        found.append(torch.einsum("bh,bsh->bs", last[:, -1, -2], vectors).softmax(-1)[:, 1].cpu())
    return torch.cat(found)


def measure_sorting(model, processor, count: int = 600) -> dict[str, dict[str, float]]:
    """What a miniature can do.

    Returns:
        ability -> {"accuracy", "n"}: the two words of a prompt, each attribute by a question, and the last label of
        episodes of 17 pictures by how many attributes matter, with words that pre-training has used and with "+" and
        "-", which it has not. Beside the latter: "counting" (the more frequent label) and "logistic" (a linear reader
        of the true attributes). "another order": how often the answer stays when the history is shuffled, and "shift",
        by how much its probability changes in the mean.
    """
    was_training = model.training
    model.eval()
    reader, pool = EpisodeReader(model, processor.tokenizer), unseen_choice_pictures()
    tokens = all_tokens(model, processor.image_processor, pool)
    rng, draw = np.random.default_rng(97), PoolEpisodes(pool.values)
    found: dict[str, dict[str, float]] = {}

    def note(name: str, right, **beside: float) -> None:
        right = np.asarray(right, dtype=float).ravel()
        others = {key: round(float(value), 4) for key, value in beside.items()}
        found[name] = {"accuracy": round(float(right.mean()), 4), "n": len(right), **others}

    some = rng.permutation(len(pool.values))[:count]
    with torch.no_grad():
        order = np.tile(np.arange(len(NAMES)), (len(some), 1))
        logits, wanted = answered(reader, *questions_about(reader, pool.values[some], order), tokens[some])
        right = (logits.argmax(-1) == wanted).cpu().numpy()
        content = pool.values[some, :2]
        shown = Episodes(pool.values[some][:, None], content[:, None], np.zeros((len(some), 1), int))
        questions = reader.questions(shown, "told")
        vectors = reader.table[:2].expand(len(some), 2, -1)
        states, _ = reader.read(questions, tokens[some][:, None], shown.labels, vectors)
        said = (states[:, 0, reader.caption - 1 : reader.caption + 1] @ reader.table.T).argmax(-1).cpu()
        told = questions[:, 0, reader.caption : reader.caption + 2]
    note("telling the content", (said == told).all(-1))
    for k, name in enumerate(NAMES):
        note(f"telling {name}", right[:, k])
    for name, relevant in SORTED.items():
        episodes = draw(rng, count, ENTRIES, relevant, rivals=0.0)
        last = episodes.labels[:, -1]
        known = by_model(reader, episodes, tokens, ("A", "B"), "told") > 0.5
        note(f"sorting by {name}, known labels", known.numpy() == last)
        answers = by_model(reader, episodes, tokens, ("-", "+"), "told")
        note(f"sorting by {name}, + and -", (answers > 0.5).numpy() == last,
             counting=(by_counting(episodes) == last).mean(),
             logistic=(by_logistic_regression(episodes) == last).mean())  # fmt: skip
        if relevant == (1, 3):
            orders = [np.append(rng.permutation(ENTRIES - 1), ENTRIES - 1) for _ in range(ORDERS)]
            moved = [by_model(reader, _reordered(episodes, one), tokens, ("-", "+"), "told") for one in orders]
            same = [((one > 0.5) == (answers > 0.5)).numpy() for one in moved]
            note("another order", same, shift=np.mean([(one - answers).abs().mean() for one in moved]))
    model.train(was_training)
    return found


def _some(episodes: Episodes, rows: slice) -> Episodes:
    pictures = None if episodes.pictures is None else episodes.pictures[rows]
    return Episodes(episodes.values[rows], episodes.told[rows], episodes.labels[rows], pictures)


def _reordered(episodes: Episodes, order: np.ndarray) -> Episodes:
    pictures = None if episodes.pictures is None else episodes.pictures[:, order]
    return Episodes(episodes.values[:, order], episodes.told[:, order], episodes.labels[:, order], pictures)
