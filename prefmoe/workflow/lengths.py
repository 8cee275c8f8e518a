"""How long the prompts of a method are, estimated upwards, beside the positions that a backbone has."""

from prefmoe.config import Edition, InjectedMethod, Method, PrefMoEMethod
from prefmoe.config.registry import BackboneEntry, Shape
from prefmoe.data.sizes import PREFIX_LENGTH
from prefmoe.system.files import read_json
from prefmoe.workflow.shapes import shape_of

QUESTION_TOKENS, PROFILE_TOKENS, TURN_TOKENS = 100, 250, 40
"""Text tokens of a question with its template, of a profile, and of one exchange of small talk: rounded up."""
DESCRIPTION_TOKENS = {"none": 0, "simple": 50, "moderate": 100, "detailed": 250, "super_detailed": 800}
"""Text tokens of each of MMPB's descriptions, rounded up."""

POSITIONS = dict.fromkeys(("deepseek-vl2-tiny", "deepseek-vl2-small", "deepseek-vl2"), 4096)
"""Of the decoders whose published configuration is known here."""
ONE_TILE = {"DeepseekVLV2ForCausalLM": 421}
"""Tokens of each of three or more pictures, by the class that then cuts none of them into tiles."""


def prompt_tokens(method: Method, shape: Shape, turns: int) -> int:
    """An upper estimate of a prompt's length."""
    prefix = PREFIX_LENGTH if isinstance(method, PrefMoEMethod) else 0
    profile = PROFILE_TOKENS if getattr(method, "profile", "none") != "none" else 0
    if isinstance(method, InjectedMethod):
        profile = DESCRIPTION_TOKENS[method.description] + (PROFILE_TOKENS if method.preferences else 0)
    return prefix + profile + _pictures(method) * shape.image_tokens + QUESTION_TOKENS + turns * TURN_TOKENS


def _pictures(method: Method) -> int:
    return 1 + method.pictures if isinstance(method, InjectedMethod) else 1


def positions_of(entry: BackboneEntry) -> int | None:
    """How many a backbone's decoder has; None where nobody wrote it down, and no folder says it."""
    if entry.folder is None:
        return POSITIONS.get(entry.name)
    content = read_json(entry.folder / "config.json", "the configuration of a backbone")
    return content.get("text_config", content).get("max_position_embeddings")


def longest(edition: Edition, method: Method, entry: BackboneEntry) -> int:
    """Tokens, at most, of the longest prompt that is asked whole, and its answer. Raises ResourceError if the
    backbone's shape is not known."""
    settings, shape = edition.evaluation, shape_of(entry)
    if entry.model_class in ONE_TILE and _pictures(method) > 2:
        shape = shape.model_copy(update={"image_tokens": ONE_TILE[entry.model_class]})
    turns = max(settings.turns) if settings.too_long == "refuse" else 0  # else the talk is what goes
    return prompt_tokens(method, shape, turns) + settings.max_new_tokens


def too_long(edition: Edition, entry: BackboneEntry, name: str) -> str:
    """What to say of a method whose longest prompt a backbone may not have the positions for; nothing where it has
    them, or nobody knows how many it has."""
    tokens, room = longest(edition, edition.methods[name], entry), positions_of(entry)
    if not room or tokens <= room:
        return ""
    wanted = f"{name} on {entry.name}: up to {tokens:,} tokens, and it has {room:,} positions"
    return f"{wanted}; a prompt that is longer is refused before anything is asked"
