"""Preference VQA: what is asked, from what it is answered, and the terms of the loss against one question at a time."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from small_choices import LEARNED, backbone, benchmark, settings
from torch.nn.functional import cross_entropy

from prefmoe.backbones.histories import Question
from prefmoe.data.choice_drawing import ATTRIBUTES
from prefmoe.data.choice_tastes import TasteError, excess, favourites, words
from prefmoe.data.choice_world import OPEN
from prefmoe.models.base import build_method
from prefmoe.models.preference_vqa import PreferenceVQA
from prefmoe.models.raters import Prototypes
from prefmoe.running.choices import session

VQA = {**LEARNED, "kind": "preference_vqa", "label": "Preference VQA", "vision": False, "prompts": False}


def vqa(**changes) -> PreferenceVQA:
    return build_method(settings("Ranked", **VQA, **changes), backbone(), benchmark(), seed=0)


def sessions(count: int = 4):
    by_user = benchmark().by_user("train")
    return [session(benchmark(), own[:2], n_ref=3, draw=7, pairs=True) for own in list(by_user.values())[:count]]


def test_liked_values_stand_out_by_their_surplus_over_disliked_ones():
    """By hand, for one user: liked minus disliked, in standard deviations of a coin with as many sides as values."""
    choices = benchmark().by_user("train")[benchmark().trained_users[0]]
    found = excess(benchmark(), choices)
    assert set(found.index) == {(name, value) for name in OPEN for value in ATTRIBUTES[name]}
    table = benchmark().attributes
    for name, value in (("palette", "scarlet"), ("tilt", "tilted"), ("background", "night")):
        shown = ([c.liked for c in choices], [c.disliked for c in choices])
        n = [sum(table.loc[benchmark().relative(file), name] == value for file in some) for some in shown]
        p = 1 / len(ATTRIBUTES[name])
        assert found[name, value] == pytest.approx((n[0] - n[1]) / (2 * len(choices) * p * (1 - p)) ** 0.5)


def test_words_are_the_clearest_value_of_each_attribute():
    index = pd.MultiIndex.from_tuples(
        [("palette", "amber"), ("palette", "grey"), ("tilt", "tilted"), ("tilt", "upright"), ("size", "small")],
        names=["attribute", "value"],
    )
    found = pd.Series([1.5, 2.0, 0.5, -0.5, 3.0], index)
    assert words(found, 2) == {"size": "small", "palette": "grey"}
    assert words(found, 3, least=1.0) == {"size": "small", "palette": "grey"}
    assert list(words(found, 1, liked=False)) == ["tilt"] and words(found, 1, liked=False)["tilt"] == "upright"


def test_favourites_are_the_best_values_of_the_attributes_that_matter_most():
    utilities = pd.Series(0.0, [value for values in ATTRIBUTES.values() for value in values])
    utilities["night"], utilities["plain"], utilities["small"], utilities["azure"] = 2.0, -2.0, 1.0, 0.5
    assert favourites(utilities, 3) == {"background": "night", "size": "small", "palette": "azure"}
    assert favourites(utilities).keys() == set(OPEN)


def test_a_user_without_liked_pictures_and_unknown_attributes_are_refused():
    with pytest.raises(TasteError, match="without liked pictures"):
        excess(benchmark(), [])
    unknown = replace(benchmark(), attributes=None)
    with pytest.raises(TasteError, match=r"attributes of the pictures are not known \(attributes.csv\)"):
        excess(unknown, unknown.select("train"))


def test_it_asks_which_picture_is_liked_in_no_fixed_order_and_what_the_history_shares():
    one, seen = vqa(), []
    for made in sessions(10):
        which, *shared = one.questions(made)
        assert which.pictures[("one", "two").index(which.answer)] == made.targets[0][0]
        assert set(which.pictures) == {file for file, _ in made.targets[:2]}
        seen.append(which.answer)
        pairs = [[e for e in made.history if e.label == label] for label in "+-"]
        for question in shared:
            name = question.text.split()[1]
            values = benchmark().attributes[name]
            liked, disliked = (
                sum(values[benchmark().relative(e.picture)] == question.answer for e in some) for some in pairs
            )
            assert liked > disliked and question.answer in ATTRIBUTES[name]
        assert one.questions(made) == (which, *shared)
    assert set(seen) == {"one", "two"}


def test_without_attributes_or_weights_nothing_of_that_kind_is_asked():
    made, one = sessions(1)[0], vqa()
    one.benchmark = replace(benchmark(), attributes=None)
    assert [question.text.count("{image}") for question in one.questions(made)] == [2]
    assert vqa(which=0.0, shared=0.0).questions(made) == ()
    assert all("{image}" not in question.text for question in vqa(which=0.0).questions(made))


@torch.no_grad()
def test_the_terms_are_the_mean_cross_entropies_of_the_answers_beside_the_second_papers_losses():
    one, made = vqa(), sessions(3)
    losses = one.training_losses(one.collate(made))
    plain = Prototypes.training_losses(one, one.collate(made))
    by_kind: dict[str, list[float]] = {"which": [], "shared": []}
    for some in made:
        for question in one.questions(some):
            alone = one.collator([replace(some, questions=(question,))])
            row, place, token, _ = alone.answers
            logits = one.backbone.lm_head(one.hidden(alone)[row, place])
            by_kind["which" if question.pictures else "shared"].append(float(cross_entropy(logits, token)))
    assert by_kind["shared"]
    for name, values in by_kind.items():
        assert float(losses[name]) == pytest.approx(0.3 * sum(values) / len(values), rel=1e-4)
    for name in ("answer", "plus", "minus"):
        assert float(losses[name]) == pytest.approx(float(plain[name]), rel=1e-4)


def test_questions_teach():
    """A few steps on three users' questions alone: the answers become more probable, and are then said."""
    one, made = vqa(auxiliary=False).train(), sessions(3)
    batch, optimizer = one.collate(made), torch.optim.AdamW(one.parameter_groups(), lr=3e-2)
    first = None
    for _ in range(60):
        losses = one.training_losses(batch)
        loss = losses["which"] + losses["shared"]
        first = float(loss.detach()) if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3 * first
    row, place, token, number = batch.histories.answers
    with torch.no_grad():
        said = one.backbone.lm_head(one.eval().hidden(batch.histories)[row, place]).argmax(-1)
    assert set(number.tolist()) > {0} and torch.equal(said[number == 0], token[number == 0])


def test_settings_of_another_stage_are_refused():
    with pytest.raises(ValidationError, match="neither prototypes nor objective"):
        settings("Ranked", **VQA, objective="ratings", auxiliary=False)


def test_a_question_is_compared_by_what_it_says():
    assert Question("a", "b") == Question("a", "b", ())
