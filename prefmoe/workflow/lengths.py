"""How long the prompts of a method are, estimated upwards, beside the positions that a backbone has."""

from prefmoe.config import Edition, InjectedMethod, Method, PrefMoEMethod
from prefmoe.config.registry import Shape
from prefmoe.data.sizes import PREFIX_LENGTH

QUESTION_TOKENS, PROFILE_TOKENS, TURN_TOKENS = 100, 250, 40
"""Text tokens of a question with its template, of a profile, and of one exchange of small talk: rounded up."""
DESCRIPTION_TOKENS = {"none": 0, "simple": 50, "moderate": 100, "detailed": 250, "super_detailed": 800}
"""Text tokens of each of MMPB's descriptions, rounded up."""


def prompt_tokens(method: Method, shape: Shape, turns: int) -> int:
    """An upper estimate of a prompt's length."""
    prefix = PREFIX_LENGTH if isinstance(method, PrefMoEMethod) else 0
    profile, pictures = PROFILE_TOKENS if getattr(method, "profile", "none") != "none" else 0, 1
    if isinstance(method, InjectedMethod):
        profile, pictures = DESCRIPTION_TOKENS[method.description], 1 + method.pictures
        profile += PROFILE_TOKENS if method.preferences else 0
    each = shape.image_tokens if pictures < 3 else shape.image_tokens_of_many or shape.image_tokens
    return prefix + profile + pictures * each + QUESTION_TOKENS + turns * TURN_TOKENS


def longest(edition: Edition, method: Method, shape: Shape) -> int:
    """The same of the longest prompt that is asked whole, and the answer."""
    settings = edition.evaluation
    turns = max(settings.turns) if settings.too_long == "refuse" else 0  # else the talk is what goes
    return prompt_tokens(method, shape, turns) + settings.max_new_tokens


def too_long(edition: Edition, backbone: str, name: str, shape: Shape) -> str:
    """What to say of a method whose longest prompt a backbone may not have the positions for; nothing where it has
    them, or nobody wrote down how many it has."""
    tokens = longest(edition, edition.methods[name], shape)
    if not shape.positions or tokens <= shape.positions:
        return ""
    wanted = f"{name} on {backbone}: up to {tokens:,} tokens, and it has {shape.positions:,} positions"
    return f"{wanted}; a prompt that is longer is refused before anything is asked"
