"""The drawer's recipe and its reader, and that the shipped weights are what their card and the page say."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pretraining import drawer as recipe
from pretraining import drawer_abilities, small_drawings
from pretraining.attribute_reader import made_worse, train_reader
from pretraining.place import Place
from tiny_drawers import tiny_drawer

from prefmoe.data.choice_drawing import ATTRIBUTES
from prefmoe.generation.captions import OPEN, caption, small_drawing
from prefmoe.generation.drawer import FOLDER, Drawer
from prefmoe.generation.reader import AttributeReader, ReaderError, load_reader
from prefmoe.generation.sampling import STEPS, TEXT_SCALE, sample

SMALL = {
    "pool": 60,
    "drawer": {
        "phases": [{"steps": 2, "whole": 1, "items": 1, "large": 0, "most": 5},
                   {"steps": 2, "whole": 0.5, "items": 5, "large": 0.5, "most": 2}],
        "batch": 4, "lr": 1e-3, "decayed": 2, "untold": 0.1, "ema": 0.9,
    },
    "reader": {"steps": 3, "batch": 4, "lr": 1e-3},
}  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> tuple[np.ndarray, list[dict[str, str]]]:
    return small_drawings.draw_small_pool(60, seed=3)


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    """Of the items in the pool's drawings."""
    return small_drawings.draw_item_masks(60, seed=3)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _pictures(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


# ---- drawings and captions


def test_drawings_show_their_attributes_and_those_of_the_abilities_are_others(pool):
    pixels, attributes = pool
    again = small_drawings.draw_small_pool(60, seed=3)
    assert np.array_equal(again[0], pixels) and again[1] == attributes and pixels.shape == (60, 32, 32, 3)
    unseen = {picture.tobytes() for picture in small_drawings.draw_small_pool(60, seed=1000)[0]}
    assert not unseen & {picture.tobytes() for picture in pixels}
    for name, values in ATTRIBUTES.items():
        assert {one[name] for one in attributes} <= set(values)
    job = attributes[5], 17
    drawn = small_drawing(attributes[5], np.random.default_rng(17))
    assert np.array_equal(small_drawings._draw(job), drawn)


def test_captions_tell_any_number_of_attributes_everything_or_nothing(pool, rng):
    _, attributes = pool
    one = attributes[0]
    captions = [small_drawings.told_of(one, rng, 0.2, whole=0) for _ in range(4000)]
    empty = np.mean([not text for text in captions])
    assert abs(empty - 0.2) < 5 * (0.2 * 0.8 / 4000) ** 0.5
    told = np.array([text.count(",") for text in captions if text])
    shares = np.bincount(told, minlength=8) / len(told)
    assert np.abs(shares - 1 / 8).max() < 5 * (1 / 8 * 7 / 8 / len(told)) ** 0.5
    for name in OPEN:  # no attribute is told more often than another
        share = np.mean([one[name] in text.split(", ") for text in captions if text])
        assert abs(share - 0.5) < 5 * (0.25 / len(told)) ** 0.5
    assert {small_drawings.told_of(one, rng, 0.2, whole=1) for _ in range(50)} == {"", caption(one)}
    whole = np.mean([small_drawings.told_of(one, rng, 0.0, whole=0.6) == caption(one) for _ in range(2000)])
    assert abs(whole - (0.6 + 0.4 / 8)) < 5 * (0.25 / 2000) ** 0.5


def test_pictures_are_between_minus_one_and_one(pool):
    pixels, _ = pool
    made = small_drawings.as_pictures(pixels)
    np.testing.assert_allclose(made.permute(0, 2, 3, 1).numpy(), pixels / 127.5 - 1, atol=1e-6)


def test_masks_are_where_the_items_are(pool, masks):
    """What an item covers differs from the same ground without it; far from items a mask is empty."""
    _, attributes = pool
    assert masks.shape == (60, 32, 32) and set(np.unique(masks)) == {0, 1}
    columns = masks.any(1)
    for mask, shown, covered in zip(masks, attributes, columns, strict=True):
        bands = np.diff(np.concatenate([[0], mask.any(1).astype(int), [0]])).tolist().count(1)
        if shown["size"] == "small":  # large ones may touch
            assert bands == 1 + ATTRIBUTES["number"].index(shown["number"])
        middle = np.flatnonzero(covered).mean() / 31
        assert abs(middle - {"left": 0.28, "centre": 0.5, "right": 0.72}[shown["place"]]) < 0.11
    sizes = pd.Series(masks.mean((1, 2))).groupby([one["size"] for one in attributes]).mean()
    assert sizes["large"] > 1.5 * sizes["small"]


# ---- training


def test_a_training_that_is_stopped_goes_on_as_if_it_had_not_been(pool, masks, tmp_path, monkeypatch):
    monkeypatch.setattr(Place, "EVERY", 2)
    phases = [{"steps": 3, "whole": k, "items": 1 + k, "large": 0.5 * k, "most": 2} for k in (1, 0)]
    given = dict(phases=phases, batch=4, lr=1e-3, decayed=2, untold=0.1, ema=0.9, masks=masks)
    straight, halted = tiny_drawer(), tiny_drawer()
    recipe.train_drawer(straight, *pool, **given)
    path, kept = tmp_path / "drawer.place", Place.keep

    def keep(self, **at) -> None:
        kept(self, **at)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Place, "keep", keep)
        recipe.train_drawer(halted, *pool, **given, path=path)
    again = tiny_drawer()
    recipe.train_drawer(again, *pool, **given, path=path)
    for name, tensor in straight.unet.state_dict().items():
        torch.testing.assert_close(again.unet.state_dict()[name], tensor, rtol=0, atol=1e-6)
    changed = [not torch.equal(p, q) for p, q in zip(straight.unet.parameters(), tiny_drawer().unet.parameters(),
                                                      strict=True)]  # fmt: skip
    assert all(changed)


def test_what_is_left_is_the_moving_average(pool):
    """Against the average by hand, of the weights that shorter trainings end with."""

    def weights(steps: int, ema: float) -> torch.Tensor:
        drawer = tiny_drawer()
        recipe.train_drawer(
            drawer, *pool, masks=np.zeros((60, 32, 32), np.uint8), batch=4, lr=1e-3, decayed=1, untold=0.0, ema=ema,
            phases=[{"steps": steps, "whole": 1, "items": 1, "large": 0, "most": 5}],
        )  # fmt: skip
        return torch.cat([p.detach().flatten() for p in (*drawer.unet.parameters(), *drawer.text_encoder.parameters())])

    average = weights(1, 0.0)
    for step in (2, 3):
        decay = 1 - step ** (-3 / 4)
        average = decay * average + (1 - decay) * weights(step, 0.0)
    torch.testing.assert_close(weights(3, 0.999), average, rtol=0, atol=1e-6)
    assert (weights(3, 0.0) - average).abs().max() > 1e-5


def test_a_few_hundred_steps_teach_a_reader_a_background(rng):
    pixels, attributes = small_drawings.draw_small_pool(300, seed=4)
    torch.manual_seed(0)
    reader = AttributeReader((8, 16, 16, 16), 32)
    train_reader(reader, pixels, attributes, steps=120, batch=32, lr=5e-3)
    unseen, told = small_drawings.draw_small_pool(200, seed=5)
    read = reader.read(_pictures(unseen))
    assert list(read) == list(ATTRIBUTES) and len(read) == 200
    right = np.mean(read["background"].to_numpy() == np.array([one["background"] for one in told]))
    assert right > 0.2 + 5 * (0.2 * 0.8 / 200) ** 0.5


def test_drawings_are_made_worse_and_stay_pictures(rng, pool):
    pictures = _pictures(pool[0])
    worse = made_worse(pictures, rng)
    assert worse.shape == pictures.shape and worse.min() >= 0 and worse.max() <= 1
    near = (worse - pictures).abs().mean((1, 2, 3))
    far = (worse.roll(1, 0) - pictures).abs().mean((1, 2, 3))
    assert (near > 0).all() and near.mean() < far.mean()
    dots = torch.zeros(200, 3, 32, 32)
    dots[:, :, 10, 20] = 1
    where = made_worse(dots, rng).mean(1).flatten(1).argmax(1)
    rows, columns = where // 32 - 10, where % 32 - 20
    assert set(rows.tolist()) == set(columns.tolist()) == {-1, 0, 1}  # a shift is no other place


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        (torch.zeros(3, 32, 32), r"expected \(B, 3, 32, 32\), got \(3, 32, 32\)"),
        (torch.zeros(2, 3, 16, 16), r"got \(2, 3, 16, 16\)"),
        (torch.full((2, 3, 32, 32), torch.nan), "numbers from 0 to 1"),
        (torch.full((2, 3, 32, 32), 1.5), "numbers from 0 to 1"),
    ],
)
def test_what_is_no_picture_is_not_read(pictures, said):
    with pytest.raises(ReaderError, match=said):
        AttributeReader((4, 4, 4, 4), 8).read(pictures)


def test_a_folder_without_a_reader_is_refused(tmp_path):
    with pytest.raises(ReaderError, match="nothing: expected the folder of an attribute reader"):
        load_reader(tmp_path / "nothing")


# ---- the whole recipe


def test_the_recipe_makes_a_drawer_with_reader_and_card_and_keeps_finished_stages(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "build_drawer", tiny_drawer)
    monkeypatch.setattr(recipe, "AttributeReader", lambda: AttributeReader((4, 4, 4, 4), 8))
    monkeypatch.setattr(recipe, "unseen_captions", lambda count: drawer_abilities.unseen_captions(6))
    monkeypatch.setattr(recipe, "measure_reading", lambda reader: drawer_abilities.measure_reading(reader, 20))
    work = tmp_path / "work" / "drawer"
    first = recipe.pretrain_drawer(folder=tmp_path / "first", work=work, recipe=SMALL)
    card = json.loads((first / "miniature.json").read_text())
    assert card["recipe"] == SMALL and set(card["seconds"]) == {"drawer", "reader"}
    assert set(card["abilities"]) == {
        *(f"{verb} {name}" for verb in ("drawing", "reading") for name in ATTRIBUTES), "drawing the content",
    }  # fmt: skip
    drawer, reader = Drawer.from_pretrained(first), load_reader(first / "reader")
    assert reader.read(sample(drawer, ["one camera"], noise=[0], steps=1)).shape == (1, len(ATTRIBUTES))
    stages = {path.name: path.stat().st_mtime_ns for path in work.glob("*.safetensors")}
    second = recipe.pretrain_drawer(folder=tmp_path / "second", work=work, recipe=SMALL)
    assert {path.name: path.stat().st_mtime_ns for path in work.glob("*.safetensors")} == stages
    for path in first.rglob("*.safetensors"):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


def test_agreement_counts_an_open_attribute_only_where_it_was_told(monkeypatch):
    """A drawer that draws everything as told but the palette, and a reader that knows it."""
    told = drawer_abilities.unseen_captions(40)
    assert [len(said) for _, said in told[::2]] == [len(OPEN)] * 20
    shown = [{**one, "palette": "grey", "item": "dogs"} for one, _ in told]

    class Knowing:
        def read(self, pictures):
            return pd.DataFrame(shown)

    monkeypatch.setattr(drawer_abilities, "pictures_of", lambda *given, **more: None)
    found = drawer_abilities.measure_drawing(None, Knowing(), told)
    items = [one["item"] == "dogs" for one, _ in told]
    assert found["drawing item"] == found["drawing the content"] == {"accuracy": round(np.mean(items), 4), "n": 40}
    greys = [one["palette"] == "grey" for one, said in told if "palette" in said]
    assert found["drawing palette"] == {"accuracy": round(np.mean(greys), 4), "n": len(greys)}
    assert 20 < len(greys) < 40 and found["drawing tilt"]["accuracy"] == 1


# ---- the shipped weights


@pytest.fixture(scope="module")
def card() -> dict:
    return json.loads((FOLDER / "miniature.json").read_text(encoding="utf-8"))


def test_shipped_weights_belong_to_their_card_and_its_recipe_is_the_codes(card):
    files = {path.relative_to(FOLDER).as_posix(): path for path in FOLDER.rglob("*.safetensors")}
    assert card["weights_blake2b"] == {
        name: hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() for name, path in files.items()
    }
    assert len(files) == 3 and all(path.stat().st_size < 6e6 for path in files.values())
    assert card["recipe"] == json.loads(json.dumps(recipe.RECIPE)) and card["seed"] == 0
    assert card["sampling"] == {"steps": STEPS, "text_scale": TEXT_SCALE}
    made = recipe.build_drawer()
    drawer, reader = Drawer.from_pretrained(), load_reader()
    for own, shipped in (
        (made.unet, drawer.unet),
        (made.text_encoder, drawer.text_encoder),
        (AttributeReader(), reader),
    ):
        assert {n: t.shape for n, t in own.state_dict().items()} == {
            n: t.shape for n, t in shipped.state_dict().items()
        }
        assert all(p.dtype == torch.float32 for p in shipped.parameters())
    networks = {"unet": drawer.unet, "text_encoder": drawer.text_encoder, "reader": reader}
    assert card["parameters"] == {name: sum(p.numel() for p in one.parameters()) for name, one in networks.items()}


def test_shipped_weights_can_what_their_card_says(card):
    """The same measures on other captions and drawings, within five standard errors of two shares."""
    drawer, reader = Drawer.from_pretrained(), load_reader()
    found = drawer_abilities.measure_drawing(drawer, reader, drawer_abilities.unseen_captions(80, seed=7))
    found |= drawer_abilities.measure_reading(reader, 250)
    assert found.keys() == card["abilities"].keys()
    for name, said in card["abilities"].items():
        here, p = found[name], said["accuracy"]
        error = (max(p * (1 - p), 0.02) * (1 / here["n"] + 1 / said["n"])) ** 0.5
        assert abs(here["accuracy"] - p) < 5 * error, name


def test_the_page_says_what_the_card_says(card):
    page = (Path(__file__).parent.parent / "docs/miniatures.md").read_text(encoding="utf-8")
    part = page.partition("## The drawer: `drawer-mini`")[2].partition("\n## ")[0]
    for name in ("the content", *ATTRIBUTES):
        drawn, read = (card["abilities"].get(f"{verb} {name}") for verb in ("drawing", "reading"))
        cells = [name, f"{drawn['accuracy']:.3f}", str(drawn["n"])]
        cells += [f"{read['accuracy']:.3f}", str(read["n"])] if read else ["", ""]
        assert f"| {' | '.join(cells)} |" in part
    for stage, seconds in card["seconds"].items():
        assert f"{stage} about {seconds / 60:.0f} minutes" in part
    assert f"{card['parameters']['unet'] / 1e6:.2f} million" in part
