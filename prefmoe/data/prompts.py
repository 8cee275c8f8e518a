"""Words and messages: what a model is shown about a user, and how it is asked a question."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from prefmoe.config import Profile
from prefmoe.data.benchmark import FACETS, OPTION_LETTERS, Example, Preference, Turn, User

PLACEHOLDER = "<sks>"
"""How MMPB's texts name the user."""

UNKNOWN = "Unknown preferences"
"""MMPB's preference text of a user about whom nothing is known."""

ACKNOWLEDGEMENT = "I got it."

EXPECTED_PREFERENCE = (
    f'"In terms of travel, {PLACEHOLDER} enjoys a, b, but dislikes c, d. In terms of ..." or "{UNKNOWN}"'
)

_SPACES = re.compile(r"[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_STATEMENT_END = re.compile(r"\.\s+(?=In terms of )")
_STATEMENT = re.compile(
    r"In terms of (?P<facet>[^,]+), (?P<subject>.+?) "
    r"(?:enjoys (?P<likes>.+?)(?:,? but dislikes (?P<dislikes>.+))?|dislikes (?P<only_dislikes>.+))",
    re.DOTALL,
)
_BRACKETS = {"(": ")", "[": "]", "“": "”"}


@dataclass(frozen=True)
class Wording:
    """What a method with words of its own changes in every conversation.

    Attributes:
        opening: the user's first utterance, acknowledged as a profile is; none when empty.
        name: how questions name the user; by the user's name when empty.
        after_picture: text right behind the question's picture.
        added: words of these texts that the method adds to the tokenizer; each has to be one token in every prompt.
        answers: case of the option letters that it is trained to say.
    """

    opening: str = ""
    name: str = ""
    after_picture: str = ""
    added: tuple[str, ...] = ()
    answers: Literal["upper", "lower"] = "upper"

    def said(self, answer: str) -> str:
        """An answer as the model is trained to say it."""
        return answer.lower() if self.answers == "lower" and answer in OPTION_LETTERS else answer


PLAIN = Wording()


class Profiled(Protocol):
    """Whatever has a name, a description and preferences: a User, or a counterfactual PseudoUser."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def preferences(self) -> Mapping[str, Preference | str]: ...


def clean(text: str) -> str:
    """The text with every run of blanks (non-breaking ones included) as one space, and none at its ends."""
    return _SPACES.sub(" ", text).strip()


def fill(text: str, name: str) -> str:
    """The text with the placeholder replaced by the user's name."""
    return text.replace(PLACEHOLDER, name)


def split_items(text: str) -> tuple[str, ...]:
    """The items of a list such as "a, b (c, d), 1,000 e": commas in brackets or words separate nothing. Raises
    ValueError if an item is empty or a bracket is not closed."""
    items, start, closing = [], 0, []
    for position, character in enumerate(text):
        if closing and character == closing[-1]:
            closing.pop()
        elif character in _BRACKETS:
            closing.append(_BRACKETS[character])
        elif character == "," and not closing and text[position + 1 : position + 2] in (" ", ""):
            items.append(text[start:position].strip())
            start = position + 1
    items.append(text[start:].strip())
    if closing:
        raise ValueError(f"no closing {closing[-1]!r} in {text!r}")
    if not all(items):
        raise ValueError(f"an empty item in {text!r}")
    return tuple(items)


def parse_preferences(text: str) -> dict[str, Preference]:
    """Preferences by facet, in the order of FACETS, read from MMPB's ``preference`` text.

    One statement per facet; the part about likes or the part about dislikes may be absent.

    Raises ValueError if the text has another form, or a facet is unknown or occurs twice.
    """
    text = clean(text)
    if text.rstrip(".") == UNKNOWN:
        return {}
    found: dict[str, Preference] = {}
    for statement in _STATEMENT_END.split(text):
        match = _STATEMENT.fullmatch(statement.removesuffix("."))
        if match is None:
            raise ValueError(f"expected {EXPECTED_PREFERENCE}, found {statement[:80]!r}")
        facet = match["facet"].strip()
        if facet not in FACETS:
            raise ValueError(f"unknown facet {facet!r}, expected one of {', '.join(FACETS)}")
        if facet in found:
            raise ValueError(f"facet {facet!r} occurs twice")
        likes, dislikes = match["likes"], match["dislikes"] or match["only_dislikes"]
        found[facet] = Preference(
            likes=split_items(likes) if likes else (), dislikes=split_items(dislikes) if dislikes else ()
        )
    return {facet: found[facet] for facet in FACETS if facet in found}


def format_preferences(preferences: Mapping[str, Preference], name: str = PLACEHOLDER) -> str:
    """MMPB's ``preference`` text for these preferences: the inverse of parse_preferences. Raises ValueError if a
    preference is empty, or an item could not be told from two items when read again."""
    statements = []
    for facet in FACETS:
        if facet not in preferences:
            continue
        likes, dislikes = preferences[facet].likes, preferences[facet].dislikes
        for item in (*likes, *dislikes):
            if split_items(item) != (item,):
                raise ValueError(f"preference item {item!r} would read as several items")
        parts = [f"enjoys {', '.join(likes)}"] if likes else []
        parts += [f"dislikes {', '.join(dislikes)}"] if dislikes else []
        if not parts:
            raise ValueError(f"the preference in {facet} neither likes nor dislikes anything")
        statements.append(f"In terms of {facet}, {name} {', but '.join(parts)}.")
    return " ".join(statements) or UNKNOWN


def preference_phrase(preference: Preference | str | None) -> str:
    """A preference in a few words: "enjoys a, b, dislikes c, d"; a phrase stays; None is "unknown"."""
    if preference is None:
        return "unknown"
    if isinstance(preference, str):
        return preference
    parts = [f"enjoys {', '.join(preference.likes)}"] if preference.likes else []
    parts += [f"dislikes {', '.join(preference.dislikes)}"] if preference.dislikes else []
    return ", ".join(parts) or "unknown"


def facet_sentence(user: Profiled, facet: str) -> str:
    """The sentence behind a facet's anchor: "User preference in travel: enjoys a, b, dislikes c, d". Raises KeyError if
    the facet is unknown."""
    if facet not in FACETS:
        raise KeyError(f"facet {facet!r} is unknown, expected one of {', '.join(FACETS)}")
    return f"User preference in {facet}: {preference_phrase(user.preferences.get(facet))}"


def description_text(user: Profiled) -> str:
    """The user's description, with the name in place."""
    return fill(user.description, user.name)


def profile_text(user: User) -> str:
    """The profile as a prompt shows it: description and preferences in words, with the name in place."""
    return f"{description_text(user)} {format_preferences(user.preferences, user.name)}"


def statement_text(example: Example, user: User) -> str:
    """What the profile says about what the question is about, with the name in place: the statement of its facet, of
    which nothing may be known, or for recognition the description. So a retriever that never errs would find it.

    Raises ValueError if the question is about a preference in no facet.
    """
    if example.category == "recognition":
        return description_text(user)
    if (facet := example.concept) not in FACETS:
        raise ValueError(f"concept {facet!r} is no facet, and has no statement; expected one of {', '.join(FACETS)}")
    return format_preferences({key: value for key, value in user.preferences.items() if key == facet}, user.name)


def question_text(example: Example, name: str = "") -> str:
    """The question with the user's name (or another) in place and a line break; four options follow, if any."""
    name = name or example.name
    lines = [fill(example.question, name)]
    if example.is_multiple_choice:
        lines.append("Options:")
        options = (fill(option, name) for option in example.options)
        lines += [f"{letter}. {option}" for letter, option in zip(OPTION_LETTERS, options, strict=True)]
    return "\n".join(lines) + "\n"


def messages(
    example: Example,
    user: User,
    *,
    profile: Profile = "none",
    transcript: Sequence[Turn] = (),
    wording: Wording = PLAIN,
) -> list[dict[str, Any]]:
    """The conversation that ends with the question, in the chat format of Hugging Face processors.

    The profile comes first and is acknowledged; then the small talk; then the picture and the question
    (Appendix of PrefMoE, Lyu et al. 2026; prompts of MMPB). Picture parts carry no picture: see images().

    Returns messages ``{"role", "content"}`` whose content is a list of ``{"type": "image"}`` and ``{"type": "text",
    "text"}`` parts.
    """
    conversation = []
    if profile != "none":
        if profile == "image":
            text = f"This is {user.name}."
        else:
            text = statement_text(example, user) if profile == "statement" else profile_text(user)
        conversation.append(message("user", text, pictures=int(profile in ("image", "both"))))
        conversation.append(message("assistant", ACKNOWLEDGEMENT))
    if wording.opening:
        conversation += [message("user", wording.opening), message("assistant", ACKNOWLEDGEMENT)]
    conversation += [message(role, text) for role, text in transcript]
    conversation.append(message("user", f"\n{question_text(example, wording.name)}", pictures=1))
    if wording.after_picture:
        conversation[-1]["content"].insert(1, {"type": "text", "text": wording.after_picture})
    return conversation


def images(example: Example, user: User, profile: Profile = "none") -> list[Path]:
    """The pictures of messages(), in the order of their image parts."""
    shown = [user.image] if profile in ("image", "both") else []
    return [*shown, example.image]


def message(role: str, text: str, *, pictures: int = 0, pictures_first: bool = True) -> dict[str, Any]:
    """One message with places for so many pictures before its text, or behind it."""
    places: list[dict[str, str]] = [{"type": "image"} for _ in range(pictures)]
    words = {"type": "text", "text": text}
    return {"role": role, "content": [*places, words] if pictures_first else [words, *places]}
