"""Whether somebody's profile can be shown, asked before a method makes room for its user."""

from prefmoe.backbones.pictures import load_pictures
from prefmoe.config import Profile
from prefmoe.data.benchmark import FACETS, User, name_mistake
from prefmoe.data.prompts import profile_text


def check_profile(user: User, shown: Profile) -> None:
    """``shown``: what prompts show of a profile. Raises ValueError if the name is none, there is no picture or one that
    cannot be read, a facet is unknown, or what a prompt has to say cannot be said."""
    if mistake := name_mistake(user.name):  # a user's model_copy checks nothing
        raise ValueError(f"expected {mistake}")
    if not user.images:
        raise ValueError("expected at least one picture in images")
    if unknown := [facet for facet in user.preferences if facet not in FACETS]:
        raise ValueError(f"unknown facet {unknown[0]!r}, expected one of {', '.join(FACETS)}")
    for picture in user.images:
        load_pictures([picture])
    if shown in ("text", "statement", "both"):
        profile_text(user)
