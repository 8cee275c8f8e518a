"""What MMPB's protocol says under each switch: order, words, pictures, names and small talk."""

from dataclasses import replace

import pytest
from small_world import small_backbone, small_benchmark

from prefmoe.config import InjectedMethod
from prefmoe.models.base import build_method


def method_of(**switches):
    settings = InjectedMethod(kind="injected", label="condition", **switches)
    return build_method(settings, small_backbone(), small_benchmark(), seed=0, cache=False)


def questions(count: int = 9):
    examples = small_benchmark().select("test")
    return examples[:: len(examples) // count][:count]


def conversation(method, example, talk):
    return method.collator.conversation(example, small_benchmark().users[example.name], talk)


def said(example, turns=2, **switches) -> list[tuple[str, str, int]]:
    """Role, words and number of pictures of every message."""
    method = method_of(**switches)
    talk = small_benchmark().transcripts[0][: 2 * turns]
    messages, pictures = conversation(method, example, talk)
    found = [
        (m["role"], "".join(p["text"] for p in m["content"] if p["type"] == "text"),
         sum(p["type"] == "image" for p in m["content"]))
        for m in messages
    ]  # fmt: skip
    assert len(pictures) == sum(count for *_, count in found)
    return found


def test_injection_comes_first_and_is_acknowledged_or_after_so_many_turns():
    example = small_benchmark().select("test")[0]
    row = small_benchmark().frame.loc[example.index]
    words = f"{row['description_moderate']} {row['preference']}".replace("<sks>", example.name)
    first = said(example)
    assert first[:2] == [("user", words, 0), ("assistant", "I got it.", 0)] and len(first) == 7
    assert first[-1][1].startswith(f"\n{row['question'].replace('<sks>', example.name)}\n") and first[-1][2] == 1
    assert said(example, after_turns=1)[2:4] == first[:2]
    assert said(example, after_turns=10)[4:6] == first[:2] and said(example, after_turns=10)[-1] == first[-1]
    assert said(example, description="none", preferences=False) == first[2:]


def test_words_and_pictures_follow_the_switches():
    example = small_benchmark().select("test")[0]
    row = small_benchmark().frame.loc[example.index]
    described, preferred = (row[c].replace("<sks>", example.name) for c in ("description_moderate", "preference"))
    assert said(example, first="preferences")[0][1] == f"{preferred} {described}"
    assert said(example, description="none")[0][1] == preferred
    assert said(example, preferences=False)[0][1] == described
    several = said(example, description="none", pictures=3)[0]
    assert several == ("user", f"These images present {example.name}. {preferred}", 3)
    method = method_of(pictures=2, pictures_first=False)
    content = conversation(method, example, ())[0][0]["content"]
    assert [part["type"] for part in content] == ["text", "image", "image"]
    user = small_benchmark().users[example.name]
    assert conversation(method, example, ())[1] == [*user.images[:2], example.image]


@pytest.mark.parametrize("level", ["simple", "detailed", "super_detailed"])
def test_descriptions_are_the_table_s(level):
    protocol = method_of(description=level).collator.protocol
    frame = protocol.benchmark.frame.copy()
    frame[f"description_{level}"] = [f"<sks> is {level} {name}." for name in frame["name"]]
    protocol.benchmark = replace(protocol.benchmark, frame=frame)
    example = small_benchmark().select("test")[0]
    words = protocol.conversation(example, ()).messages[0]["content"][0]["text"]
    assert words.startswith(f"{example.name} is {level} {example.name}. In terms of")


@pytest.mark.parametrize(("names", "label"), [("sks", "<sks>"), ("fixed", "FixedUser"), ("neutral", "ENTITY_X")])
def test_labels_take_the_place_of_names_everywhere(names, label):
    for example in questions():
        told, *_, question = said(example, names=names)
        assert label in told[1] and example.name not in told[1] + question[1]


def test_drawn_names_are_somebody_else_s_and_the_same_in_profile_and_question():
    users = small_benchmark().users
    for names in ("random", "shuffled"):
        protocol = method_of(names=names).collator.protocol
        used = {example.index: protocol.name(example) for example in small_benchmark().examples.values()}
        own = {example.index: example.name for example in small_benchmark().examples.values()}
        assert all(used[k] != own[k] and used[k] in users for k in used)
        if names == "shuffled":
            assert len(set(zip(own.values(), used.values(), strict=True))) == len(users) == len(set(used.values()))
        for example in questions():
            told, *_, question = said(example, names=names)
            assert used[example.index] in told[1] and f"{example.name} " not in told[1]


def test_small_talk_is_about_the_question_s_topic_and_says_nothing_of_the_user():
    for example in questions():
        turns = said(example, talk="topic", turns=3)[2:8]
        assert [role for role, *_ in turns] == ["user", "assistant"] * 3
        text = " ".join(words for _, words, _ in turns)
        assert not any(name in text for name in small_benchmark().users)
        if example.category == "preference":
            users = small_benchmark().users.values()
            held = {i for u in users if (p := u.preferences.get(example.concept)) for i in (*p.likes, *p.dislikes)}
            assert all(any(item in words for item in held) for _, words, _ in turns)


def test_other_pictures_are_others():
    protocol = method_of(pictures=2, portraits="other", question_picture="other").collator.protocol
    users = small_benchmark().users
    for example in small_benchmark().select("test"):
        *portraits, shown = protocol.conversation(example, ()).pictures
        assert not set(portraits) & set(users[example.name].images) and len(portraits) == 2
        assert shown in {e.image for e in small_benchmark().select("test") if e.index != example.index}
