"""Whether somebody's profile can be shown, asked before a method makes room for its user."""

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.pictures import load_pictures
from prefmoe.data.benchmark import FACETS, User, name_mistake
from prefmoe.data.prompts import description_text, format_preferences


def check_profile(user: User, backbone: Backbone) -> None:
    """Raises ValueError as `check_words`, and if there is no picture, or one that cannot be read."""
    check_words(user, backbone)
    if not user.images:
        raise ValueError("expected at least one picture in images")
    for picture in user.images:
        load_pictures([picture])


def check_words(user: User, backbone: Backbone) -> None:
    """Raises ValueError if the name is none, a facet is unknown, or something cannot be said in a prompt: an item that
    reads as several, a picture's token, or more than the backbone has positions for."""
    if mistake := name_mistake(user.name):  # a user's model_copy checks nothing
        raise ValueError(f"expected {mistake}")
    if unknown := [facet for facet in user.preferences if facet not in FACETS]:
        raise ValueError(f"unknown facet {unknown[0]!r}, expected one of {', '.join(FACETS)}")
    texts = {"name": user.name, "description": description_text(user)}
    texts |= {facet: format_preferences({facet: told}, user.name) for facet, told in user.preferences.items()}
    token = getattr(backbone.processor, "image_token", None)
    for field, text in texts.items():
        if token and token in text:
            raise ValueError(f"{field}: expected words without {token}, which stands for a picture")
        backbone.check_length(len(backbone.tokenizer(text)["input_ids"]), f"{field}: the text {text[:60]!r}")
