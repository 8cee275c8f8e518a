"""Prompts: preference texts are read and written back exactly, and conversations have the published order."""

import csv
from pathlib import Path

import pytest

from prefmoe.data import prompts
from prefmoe.data.benchmark import Example, Preference, User
from prefmoe.system.places import data_folder

TEXT = (
    "In terms of travel, <sks> enjoys fine dining, street food, but dislikes skydiving, cave exploration. "
    "In terms of fashion, <sks> enjoys winter coats, denim jeans, but dislikes gothic clothing, silk scarves."
)


@pytest.fixture
def user() -> User:
    return User(
        name="Ye Wen",
        attribute="human",
        description="<sks> has grey hair; <sks>'s shirt is blue.",
        preferences=prompts.parse_preferences(TEXT),
        images=(Path("face1.png"), Path("face2.png")),
    )


def question(**changes) -> Example:
    fields = dict(
        index=3, name="Ye Wen", category="preference", l2_category="awareness", concept="travel", target="",
        question="Does this match <sks>'s taste?", options=(), answer=4, image=Path("picture.png"),
        semantic_invert=False, bucket_names=("Ye Wen",),
    )  # fmt: skip
    return Example(**{**fields, **changes})


def test_preferences_are_read_by_facet_in_facet_order():
    found = prompts.parse_preferences(TEXT)
    assert list(found) == ["travel", "fashion"]
    assert found["travel"] == Preference(
        likes=("fine dining", "street food"), dislikes=("skydiving", "cave exploration")
    )


@pytest.mark.parametrize("text", ["Unknown preferences", "Unknown preferences.", " Unknown\u00a0preferences"])
def test_unknown_preferences_are_empty(text):
    assert prompts.parse_preferences(text) == {}


def test_order_of_statements_does_not_matter():
    first, second = TEXT.split(". ")
    assert prompts.format_preferences(prompts.parse_preferences(f"{second} {first}.")) == TEXT


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a, b", ("a", "b")),
        ("puzzles of 1,000 pieces, chess", ("puzzles of 1,000 pieces", "chess")),
        ("shoes (red, blue), hats", ("shoes (red, blue)", "hats")),
        ("J.R. Tolkien, D. Adams", ("J.R. Tolkien", "D. Adams")),
        ("rock and roll", ("rock and roll",)),
    ],
)
def test_items_keep_commas_that_separate_nothing(text, items):
    assert prompts.split_items(text) == items
    text = f"In terms of shopping, <sks> enjoys {text}, but dislikes x."
    assert prompts.parse_preferences(text)["shopping"].likes == items


@pytest.mark.parametrize("name", ["<sks>", "Ye Wen", "asian_doll"])
def test_writing_then_reading_gives_the_same_preferences(name):
    preferences = {
        "entertainment": Preference(likes=("K-pop concerts", "1,000 films"), dislikes=("Mr. Bean",)),
        "travel": Preference(likes=("trains",), dislikes=()),
        "fashion": Preference(likes=(), dislikes=("hats (felt, straw)", "rings")),
    }
    assert prompts.parse_preferences(prompts.format_preferences(preferences, name)) == preferences


def test_items_that_cannot_be_read_back_are_refused():
    with pytest.raises(ValueError, match="would read as several items"):
        prompts.format_preferences({"travel": Preference(likes=("sun, sea",), dislikes=())})
    with pytest.raises(ValueError, match="neither likes nor dislikes"):
        prompts.format_preferences({"travel": Preference(likes=(), dislikes=())})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected"),
        ("likes everything", "expected"),
        ("In terms of travel, <sks> adores trains.", "expected"),
        (TEXT.replace("travel", "cooking"), "unknown facet 'cooking'.*entertainment, travel"),
        (TEXT.replace("travel", "fashion"), "occurs twice"),
        (TEXT.replace("street food", ""), "empty item"),
        (TEXT.replace("street food", "street (food"), "closing"),
    ],
)
def test_malformed_preferences_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        prompts.parse_preferences(text)


def test_facet_sentences_of_preferences_phrases_and_nothing(user):
    assert prompts.facet_sentence(user, "travel") == (
        "User preference in travel: enjoys fine dining, street food, dislikes skydiving, cave exploration"
    )
    assert prompts.facet_sentence(user, "lifestyle") == "User preference in lifestyle: unknown"
    assert prompts.preference_phrase("quiet travel") == "quiet travel"
    with pytest.raises(KeyError, match="cooking"):
        prompts.facet_sentence(user, "cooking")


def test_the_name_replaces_every_placeholder(user):
    text = prompts.profile_text(user)
    assert text == f"Ye Wen has grey hair; Ye Wen's shirt is blue. {TEXT.replace('<sks>', 'Ye Wen')}"
    assert prompts.question_text(question()) == "Does this match Ye Wen's taste?\n"


def test_multiple_choice_lists_the_options():
    example = question(l2_category="inconsistency", options=("x", "<sks>'s y", "z", "w"), answer=1)
    assert prompts.question_text(example) == (
        "Does this match Ye Wen's taste?\nOptions:\nA. x\nB. Ye Wen's y\nC. z\nD. w\n"
    )


@pytest.mark.parametrize("profile", ["none", "text", "image", "both"])
def test_conversation_order(user, profile):
    transcript = (("user", "Hello."), ("assistant", "Hello to you."))
    conversation = prompts.messages(question(), user, profile=profile, transcript=transcript)
    roles = [message["role"] for message in conversation]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    parts = [part for message in conversation for part in message["content"]]
    assert sum(part["type"] == "image" for part in parts) == len(prompts.images(question(), user, profile))
    assert [part["type"] for part in conversation[-1]["content"]] == ["image", "text"]
    assert conversation[-1]["content"][1]["text"] == "\nDoes this match Ye Wen's taste?\n"
    texts = [part["text"] for part in parts if part["type"] == "text"]
    shown = {"none": None, "image": "This is Ye Wen."}.get(profile, prompts.profile_text(user))
    assert texts[:-1] == [*([shown, "I got it."] if shown else []), "Hello.", "Hello to you."]
    assert prompts.images(question(), user, profile)[-1] == Path("picture.png")
    if profile in ("image", "both"):
        assert conversation[0]["content"][0] == {"type": "image"}
        assert prompts.images(question(), user, profile)[0] == Path("face1.png")


def test_blanks_of_every_kind_become_one_space():
    assert prompts.clean("\u00a0what\u00a0 <sks>\u202fprefers ") == "what <sks> prefers"


@pytest.mark.skipif(data_folder(None) is None, reason="PREFMOE_DATA does not point to the real rows")
def test_real_preferences_survive_the_round_trip():
    with open(data_folder(None) / "mmpb_clean" / "sample.csv", encoding="utf-8") as file:
        texts = {row["preference"] for row in csv.DictReader(file)}
    assert len(texts) == 49
    for text in texts:
        preferences = prompts.parse_preferences(text)
        assert len(preferences) in (0, 5)
        assert prompts.format_preferences(preferences) == text
        assert all(len(p.likes) == len(p.dislikes) == 2 for p in preferences.values())
