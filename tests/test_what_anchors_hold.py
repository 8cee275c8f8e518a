"""What can be read off an anchor by a linear map, which docs/departures.md tells of the shipped LLaVA miniature."""

import re

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from prefmoe.backbones.loading import load_backbone
from prefmoe.config import ROOT
from prefmoe.data.benchmark import Preference
from prefmoe.data.counterfactual import preference_phrase
from prefmoe.data.drawing import ITEMS
from prefmoe.data.prompts import format_preferences

PEOPLE, LEARNED, FACET = 1500, 1000, "travel"
THINGS = list(ITEMS[FACET])


@pytest.fixture(scope="module")
def read():
    """kind of anchor -> (AUC of liked things among all, AUC of liked among liked and disliked ones), unseen people."""
    rng, backbone = np.random.default_rng(0), load_backbone("llava-mini")
    drawn = [[str(item) for item in rng.choice(THINGS, 4, replace=False)] for _ in range(PEOPLE)]
    people = [Preference(likes=tuple(four[:2]), dislikes=tuple(four[2:])) for four in drawn]
    likes, dislikes = (
        np.array([[item in held for item in THINGS] for held in all_held], dtype=float)
        for all_held in ([one.likes for one in people], [one.dislikes for one in people])
    )
    texts = {
        "hidden": [f"User preference in {FACET}: {format_preferences({FACET: one})}." for one in people],
        "embedding": [f"User preference in {FACET}: {preference_phrase(one)}" for one in people],
    }
    found = {}
    for kind, said in texts.items():
        anchors = backbone.text_anchors(said, kind=kind, special_tokens=kind == "hidden").numpy()
        model = Ridge(1e-3 * LEARNED * anchors.var()).fit(anchors[:LEARNED], likes[:LEARNED])
        told, liked, named = model.predict(anchors[LEARNED:]), likes[LEARNED:], (likes + dislikes)[LEARNED:] > 0
        columns = range(len(THINGS))
        found[kind] = (
            np.mean([roc_auc_score(liked[:, k], told[:, k]) for k in columns]),
            np.mean([roc_auc_score(liked[named[:, k], k], told[named[:, k], k]) for k in columns]),
        )
    return found


def test_means_of_states_hold_a_statement_and_means_of_embeddings_its_words(read):
    assert min(read["hidden"]) > 0.99
    among_all, from_disliked = read["embedding"]
    assert among_all > 0.85 and abs(from_disliked - 0.5) < 0.08


def test_the_page_says_what_was_read(read):
    page = (ROOT / "docs/departures.md").read_text(encoding="utf-8")
    pattern = r"\((\.\d\d|1\.00) and (\.\d\d|1\.00) of the pairs; of means of embeddings (\.\d\d) and (\.\d\d)\)"
    said = [float(number) for number in re.search(pattern, " ".join(page.split())).groups()]
    assert said == pytest.approx([*read["hidden"], *read["embedding"]], abs=0.011)
