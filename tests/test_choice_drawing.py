"""Pictures that people choose between: what they should show is measured in their pixels."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from prefmoe.data.choice_drawing import (
    ATTRIBUTES,
    PROMPTED,
    content_of,
    draw_choice_picture,
    prompt_of,
    random_attributes,
)
from prefmoe.data.drawing import ITEM_FACET

PLAIN = {
    "number": "one", "item": "shirts", "palette": "azure", "background": "plain", "style": "filled",
    "size": "small", "place": "centre", "tilt": "upright", "shadow": "flat",
}  # fmt: skip


def _pixels(seed=0, **changed):
    """A picture drawn at its own size and reduced, as a small tower sees it; (64, 64, 3)."""
    picture = draw_choice_picture({**PLAIN, **changed}, np.random.default_rng(seed))
    return np.asarray(picture.resize((64, 64), Image.BICUBIC)).astype(float)


def _shown(**changed):
    """Where a picture with a plain ground shows something; (64, 64) bool."""
    pixels = _pixels(**changed)
    return np.abs(pixels - pixels[0, 0]).max(-1) > 60


def test_no_word_is_the_value_of_two_attributes_and_items_come_from_all_facets():
    words = [word for values in ATTRIBUTES.values() for word in values]
    assert len(words) == len(set(words))
    assert len({ITEM_FACET[item] for item in ATTRIBUTES["item"]}) == 5
    assert set(PROMPTED) < set(ATTRIBUTES)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_every_attribute_shows_in_a_small_picture_whatever_the_others_are(attribute):
    """Two values of one attribute, everything else the same: at least one in a hundred pixels differs clearly."""
    rng = np.random.default_rng(3)
    for case in range(25):
        given = random_attributes(rng)
        first, second = rng.choice(ATTRIBUTES[attribute], 2, replace=False)
        one, other = (_pixels(seed=case, **{**given, attribute: str(value)}) for value in (first, second))
        assert (np.abs(one - other).max(-1) > 30).mean() > 0.01, (given, first, second)


@pytest.mark.parametrize("style", ATTRIBUTES["style"])
def test_place_size_and_number_can_be_measured(style):
    columns = [np.nonzero(_shown(style=style, place=place))[1].mean() for place in ATTRIBUTES["place"]]
    assert np.diff(columns).min() > 10 and abs(columns[1] - 31.5) < 3
    for number, count in zip(ATTRIBUTES["number"], (1, 2, 3), strict=True):
        assert ndimage.label(_shown(style=style, number=number), np.ones((3, 3)))[1] == count
        small, large = (np.ptp(np.nonzero(_shown(style=style, number=number, size=s))[1]) for s in ATTRIBUTES["size"])
        assert large > 1.4 * small


def test_colours_styles_and_tilts_can_be_measured():
    def colour(**changed):
        pixels, shown = _pixels(**changed), ndimage.binary_erosion(_shown(**changed))
        return np.median(pixels[shown], 0)

    measured = [colour(palette=palette, size="large") for palette in ATTRIBUTES["palette"]]
    distances = np.linalg.norm(np.subtract.outer(measured, measured).diagonal(axis1=1, axis2=3), axis=-1)
    assert distances[~np.eye(len(measured), dtype=bool)].min() > 70
    for item in ATTRIBUTES["item"]:
        filled, outlined = (_shown(item=item, style=s, size="large").sum() for s in ATTRIBUTES["style"])
        assert outlined < 0.85 * filled, item
    rows, cols = np.nonzero(_shown(item="novels", tilt="tilted", size="large"))
    upright = np.nonzero(_shown(item="novels", size="large"))
    assert abs(np.corrcoef(rows, cols)[0, 1]) > 0.1 > abs(np.corrcoef(*upright)[0, 1])


def test_a_seed_draws_the_same_picture_and_another_seed_another():
    assert (_pixels(seed=1) == _pixels(seed=1)).all() and (_pixels(seed=1) != _pixels(seed=2)).any()
    assert draw_choice_picture(PLAIN, np.random.default_rng(0), 64).size == (64, 64)


def test_attributes_are_uniform_where_they_are_not_given():
    rng = np.random.default_rng(0)
    drawn = [random_attributes(rng, palette="grey") for _ in range(600)]
    assert {d["palette"] for d in drawn} == {"grey"} and all(d.keys() == ATTRIBUTES.keys() for d in drawn)
    for name in ("item", "place", "shadow"):
        shares = np.array([[d[name] == value for value in ATTRIBUTES[name]] for d in drawn]).mean(0)
        assert np.abs(shares - 1 / len(shares)).max() < 5 * np.sqrt(0.25 / 600)


def test_a_prompt_counts_in_the_singular():
    assert prompt_of("one", "cameras") == "one camera" and prompt_of("two", "cameras") == "two cameras"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"palette": "beige"}, "palette: expected one of scarlet, .*got 'beige'"),
        ({"hue": "red"}, "expected the attrib"),
    ],
)
def test_unknown_attributes_and_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        draw_choice_picture({**PLAIN, **change}, np.random.default_rng(0))


def test_what_a_prompt_names_is_read_from_it():
    for number in ATTRIBUTES["number"]:
        for item in ATTRIBUTES["item"]:
            assert content_of(prompt_of(number, item)) == {"number": number, "item": item}
    for prompt in ("four cats", "one cats", "", "a cat"):
        with pytest.raises(ValueError, match=f"prompt '{prompt}': expected a number and an item .*'two drums'"):
            content_of(prompt)
