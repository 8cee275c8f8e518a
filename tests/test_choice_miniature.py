"""The Idefics2 miniature: its recipe's parts, and that the shipped weights are what their card and the pages say."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pretraining import choosing, episodes, idefics2, sorting, sorting_abilities, tower
from pretraining.errors import PretrainingError
from pretraining.place import Place
from safetensors import safe_open

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.histories import HistoryCollator, Rated, Session, hidden_states, label_ids, label_logits
from prefmoe.backbones.loading import load_backbone
from prefmoe.config.registry import find_backbone
from prefmoe.data.choice_drawing import ATTRIBUTES, prompt_of

SMALL = {
    "pool": 60,
    "words": {"lr": 1e-3, "rows": 3, "lessons": [
        {"repeated": 1, "entries": 4, "goal": 0.0, "most": 30}, {"varying": 1, "entries": 4, "goal": 0.0, "most": 3},
        {"varying": 9, "entries": 4, "goal": 1.0, "most": 3},
    ]},
    "tower": {"lr": 1e-3, "shapes": {"easy": 1, "steps": 3, "batch": 4}, "tokens": {"steps": 2, "batch": 4}},
    "joint": {"words": 1, "steps": 3, "rows": 2, "entries": 4, "lr": 1e-3},
}  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> tower.ChoicePictures:
    return tower.draw_choice_pool(120, seed=3)


@pytest.fixture(scope="module")
def untrained() -> Backbone:
    model, processor = idefics2.build_model()
    return Backbone(find_backbone(idefics2.NAME), model.eval(), processor)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(idefics2.NAME)


@pytest.fixture
def few(monkeypatch):
    """Few drawings to measure abilities on, and few shuffled histories."""
    drawn = tower.draw_choice_pool(200, seed=1001)
    monkeypatch.setattr(sorting_abilities, "unseen_choice_pictures", lambda: drawn)
    monkeypatch.setattr(sorting_abilities, "ORDERS", 2)


# ---- words and drawings


def test_entries_of_an_episode_read_as_those_of_a_history(untrained):
    reader = sorting.EpisodeReader(untrained.model, untrained.tokenizer)
    told, untold = HistoryCollator(untrained), HistoryCollator(untrained, prompts=False)
    prompts = [prompt_of(number, item) for number in ATTRIBUTES["number"] for item in ATTRIBUTES["item"]]
    assert reader.told.tolist() == [told.question(prompt) for prompt in prompts]
    assert reader.untold[0].tolist() == untold.question("")
    for prompt, ids in zip(prompts, reader.told, strict=True):
        assert untrained.tokenizer.decode(ids[reader.caption : reader.caption + 2]) == prompt
    assert untrained.tokenizer.unk_token_id not in reader.told


def test_labels_of_histories_are_words_that_no_episode_is_labelled_with(untrained):
    words = [*idefics2.LABEL_WORDS, "+", "-"]
    assert len(set(label_ids(untrained, words))) == len(words) == 54
    values = [value for values in ATTRIBUTES.values() for value in values]
    assert len(set(label_ids(untrained, values))) == len(values) == episodes.SIZES.sum()


def test_a_drawing_is_what_the_image_processor_makes_of_the_picture(untrained):
    from prefmoe.data.choice_drawing import draw_choice_picture, random_attributes

    attributes = random_attributes(np.random.default_rng(5))
    whole = draw_choice_picture(attributes, np.random.default_rng(6))
    images = untrained.processor.image_processor
    drawn = Image.fromarray(tower._draw((attributes, 6)))
    inputs = [images(images=[[picture]], return_tensors="pt")["pixel_values"] for picture in (whole, drawn)]
    torch.testing.assert_close(inputs[0], inputs[1])


def test_drawings_show_their_values_and_those_of_the_abilities_are_others(pool):
    again = tower.draw_choice_pool(120, seed=3)
    assert np.array_equal(again.pixels, pool.pixels) and pool.pixels.shape == (120, 64, 64, 3)
    assert (pool.values.max(0) == episodes.SIZES - 1).all() and pool.values.min() == 0
    unseen = {picture.tobytes() for picture in tower.draw_choice_pool(120, seed=1000).pixels}
    assert not unseen & {picture.tobytes() for picture in pool.pixels}


# ---- episodes


def test_a_rule_weighs_the_relevant_attributes_alone_and_evenly():
    rng = np.random.default_rng(0)
    relevant = episodes.some(rng, np.full(200, 4))
    assert (relevant.sum(1) == 4).all() and relevant.any(0).all()
    weights = episodes.rules(rng, relevant)
    values = np.stack([rng.integers(0, size, (200, 3)) for size in episodes.SIZES], -1)
    found = episodes.utilities(weights, values)
    for row in range(0, 200, 20):
        for start, size, matters in zip(episodes.STARTS, episodes.SIZES, relevant[row], strict=True):
            part = weights[row, start : start + size]
            assert abs(part.sum()) < 1e-9 and (0.49 < part.std() < 1.51 if matters else not part.any())
        for entry in range(3):
            chosen = [start + v for start, v in zip(episodes.STARTS, values[row, entry], strict=True)]
            assert found[row, entry] == pytest.approx(sum(weights[row, k] for k in chosen))


def test_pictures_differ_in_the_varying_attributes_and_are_sorted_by_some_of_them():
    drawn = episodes.ruled(np.random.default_rng(1), 40, 30, 3, (1, 1))
    differ = (drawn.values != drawn.values[:, :1]).any(1)
    assert set(differ.sum(1)) <= {2, 3} and (differ.sum(1) == 3).mean() > 0.8
    for values, labels in zip(drawn.values, drawn.labels, strict=True):  # one attribute alone tells the label
        assert any(len({*zip(column, labels, strict=True)}) == len(set(column)) for column in values.T)


def test_what_is_repeated_has_the_label_that_it_had():
    same = episodes.repeated(np.random.default_rng(2), 20, 8, 0)
    for values, labels in zip(same.values, same.labels, strict=True):
        known = dict(zip(map(tuple, values[:4]), labels[:4], strict=True))
        assert [known[tuple(one)] for one in values[4:]] == labels[4:].tolist()
    changed = episodes.repeated(np.random.default_rng(2), 20, 8, 2)
    distance = (changed.values[:, 4:, None] != changed.values[:, None, :4]).sum(-1).min(-1)
    assert distance.max() <= 2 and distance.mean() > 0.5


def test_episodes_of_a_pool_show_its_pictures_and_rivals_have_their_content(pool, monkeypatch):
    asked, whole = [], episodes.utilities
    monkeypatch.setattr(episodes, "utilities", lambda weights, values: asked.append(values) or whole(weights, values))
    drawn = episodes.PoolEpisodes(pool.values)(np.random.default_rng(3), 300, 10, (1, 9), rivals=0.5)
    assert np.array_equal(drawn.values, pool.values[drawn.pictures])
    rivals, shown = asked
    assert np.array_equal(rivals[..., :2], shown[..., :2]) and not np.array_equal(rivals, shown)
    assert abs(drawn.labels.mean() - 0.5) < 0.05
    wrong = drawn.told != drawn.values[..., :2]
    assert not wrong.all(-1).any() and 0.08 < wrong.any(-1).mean() < 0.15


def test_a_linear_reader_follows_a_rule_and_counting_does_not(pool):
    drawn = episodes.PoolEpisodes(pool.values)(np.random.default_rng(4), 300, 60, (1, 1), rivals=0.0)
    last = drawn.labels[:, -1]
    assert (sorting_abilities.by_logistic_regression(drawn) == last).mean() > 0.85
    assert (sorting_abilities.by_counting(drawn) == last).mean() < 0.7


# ---- reading


def test_the_reader_of_episodes_answers_as_the_backbone_does(untrained, pool, tmp_path):
    reader = sorting.EpisodeReader(untrained.model, untrained.tokenizer)
    drawn = episodes.PoolEpisodes(pool.values)(np.random.default_rng(5), 3, 6, (1, 3), rivals=0.0)
    tokens = tower.all_tokens(untrained.model, untrained.processor.image_processor, pool)
    paths = [tmp_path / f"{k}.png" for k in range(len(pool.pixels))]
    for k in np.unique(drawn.pictures):
        Image.fromarray(pool.pixels[k]).save(paths[k])
    sessions = []
    for pictures, told, labels in zip(drawn.pictures, drawn.told, drawn.labels, strict=True):
        names = [prompt_of(ATTRIBUTES["number"][n], ATTRIBUTES["item"][i]) for n, i in told]
        rated = [Rated(paths[p], name, "-+"[y]) for p, name, y in zip(pictures, names, labels, strict=True)]
        sessions.append(Session(tuple(rated[:-1]), ((rated[-1].picture, rated[-1].prompt),)))
    for form, prompts in (("told", True), ("untold", False)):
        batch = HistoryCollator(untrained, prompts=prompts)(sessions)
        with torch.no_grad():
            logits = label_logits(untrained, hidden_states(untrained, batch), batch.target, ("-", "+"))
        found = sorting_abilities.by_model(reader, drawn, tokens, ("-", "+"), form)
        torch.testing.assert_close(found, logits[:, 0].softmax(-1)[:, 1], rtol=1e-4, atol=1e-5)


def test_words_in_the_place_of_a_picture_are_sums_of_what_its_tokens_tell(untrained):
    reader = sorting.EpisodeReader(untrained.model, untrained.tokenizer)
    values = np.array([[[1, 3, 0, 2, 1, 0, 2, 1, 0]]])
    found = reader.in_words(values)[0, 0]
    words = {name: ATTRIBUTES[name][v] for name, v in zip(episodes.NAMES, values[0, 0], strict=True)}
    for token, names in zip(found, idefics2.LATENTS, strict=True):
        ids = untrained.tokenizer.convert_tokens_to_ids([words[name] for name in names])
        torch.testing.assert_close(token, reader.table[ids].sum(0) / len(names) ** 0.5)
    assert sorted(name for names in idefics2.LATENTS for name in names) == sorted(ATTRIBUTES)


def test_episodes_are_answered_alike_however_many_are_read_together(untrained, pool, monkeypatch):
    reader = sorting.EpisodeReader(untrained.model, untrained.tokenizer)
    drawn = episodes.PoolEpisodes(pool.values)(np.random.default_rng(8), 5, 4, (1, 3), rivals=0.0)
    shape = (len(pool.pixels), len(idefics2.LATENTS), reader.table.shape[1])
    tokens, whole = torch.from_numpy(np.random.default_rng(9).normal(size=shape)).float(), []
    for together in (2, 5):
        monkeypatch.setattr(sorting_abilities, "TOGETHER", together)
        whole.append(sorting_abilities.by_model(reader, drawn, tokens, ("-", "+"), "told"))
    torch.testing.assert_close(*whole, rtol=1e-4, atol=1e-5)
    assert len(whole[0]) == 5 and whole[0].std() > 0


def test_strange_labels_are_in_no_table_and_as_long_as_words(untrained):
    reader = sorting.EpisodeReader(untrained.model, untrained.tokenizer)
    vectors, ids = reader.label_vectors(np.random.default_rng(6), 400, 0.5)
    strange = (ids < 0).any(1)
    assert torch.equal(strange, (ids < 0).all(1)) and 0.4 < strange.float().mean() < 0.6
    torch.testing.assert_close(vectors[~strange], reader.table[ids[~strange]])
    lengths = [vectors[rows].norm(dim=-1).mean().item() for rows in (strange, ~strange)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.05)
    assert (ids[~strange][:, 0] != ids[~strange][:, 1]).all()


def test_names_of_attributes_stand_before_their_values(untrained):
    reader = sorting.EpisodeReader(untrained.model, untrained.tokenizer)
    values, order = np.array([[1, 3, 0, 2, 1, 0, 2, 1, 0]]), np.array([[2, 0, 1, 3, 4, 5, 6, 8, 7]])
    ids, where = sorting.questions_about(reader, values, order)
    text = untrained.tokenizer.decode(ids[0].tolist(), skip_special_tokens=True)
    told = [f"{episodes.NAMES[k]} {ATTRIBUTES[episodes.NAMES[k]][values[0, k]]}." for k in order[0]]
    assert text.replace(" ", "") == "".join(told).replace(" ", "")
    asked = untrained.tokenizer.convert_ids_to_tokens(ids[0][where])
    assert asked == [episodes.NAMES[k] for k in order[0]]


# ---- training


class Killed(RuntimeError):
    """Stands for the end of a process."""


def test_the_recipe_makes_a_backbone_that_loads_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(choosing, "measure_sorting", lambda *model: {"sorting": {"accuracy": 0.5, "n": 1}})
    whole = choosing.pretrain_choices(folder=tmp_path / "whole", work=tmp_path / "a" / "work", recipe=SMALL)
    assert load_backbone(whole).hidden_size == 128
    stages = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "work").iterdir()}
    assert {path.name.partition(".")[0] for path in stages} == {"words", "tower", "joint"}
    choosing.pretrain_choices(folder=tmp_path / "again", work=tmp_path / "a" / "work", recipe=SMALL)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "work").iterdir()} == stages
    monkeypatch.setattr(Place, "EVERY", 1)
    killed, keep = set(), Place.keep

    def once_in_each_stage(self, **at):
        keep(self, **at)
        if at["step"] == 2 and self.path.name not in killed:
            killed.add(self.path.name)
            raise Killed

    monkeypatch.setattr(Place, "keep", once_in_each_stage)
    work = tmp_path / "b" / "work"
    for stage in ("words.place", "tower.place", "joint.place"):
        with pytest.raises(Killed):
            choosing.pretrain_choices(folder=tmp_path / "parts", work=work, recipe=SMALL)
        assert (work / stage).exists() and stage in killed
    parts = choosing.pretrain_choices(folder=tmp_path / "parts", work=work, recipe=SMALL)
    first, second = ((folder / "model.safetensors").read_bytes() for folder in (whole, parts))
    assert first == second
    assert json.loads((parts / "miniature.json").read_text())["recipe"] == SMALL


def test_a_model_that_has_not_learned_to_sort_ends_the_pretraining(untrained):
    model, processor = idefics2.build_model(1)
    lessons = [{"repeated": 0, "entries": 4, "goal": 1.2, "most": 2}, SMALL["words"]["lessons"][-1]]
    with pytest.raises(PretrainingError, match=r"lesson 0 ended at .* where 1.2 was wanted.* --seed 8"):
        choosing.train_words(model, processor.tokenizer, lessons=lessons, lr=1e-3, rows=2, seed=7)


def test_another_seed_is_another_model_with_stages_of_its_own():
    first, again, other = (idefics2.build_model(seed)[0].lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


# ---- the shipped weights


@pytest.fixture(scope="module")
def card() -> dict:
    return json.loads((idefics2.FOLDER / "miniature.json").read_text(encoding="utf-8"))


def test_shipped_weights_belong_to_their_card_and_its_recipe_is_the_code_s(backbone, card):
    content = (idefics2.FOLDER / "model.safetensors").read_bytes()
    assert hashlib.blake2b(content, digest_size=16).hexdigest() == card["weights_blake2b"]
    assert len(content) < 4_000_000
    with safe_open(idefics2.FOLDER / "model.safetensors", "pt") as tensors:
        assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.float16}
    assert card["recipe"] == json.loads(json.dumps(choosing.RECIPE)) and card["seed"] == 0
    assert card["parameters"] == sum(p.numel() for p in backbone.model.parameters())
    assert card["seconds"].keys() == {"words", "tower", "joint"} and card["hardware"]


def test_a_picture_has_as_many_tokens_as_the_perceiver_has_latents(backbone):
    assert HistoryCollator(backbone).tokens == len(idefics2.LATENTS) == len(backbone.image_features([
        Image.new("RGB", (128, 96), (200, 10, 10))])[0])  # fmt: skip
    assert backbone.processor.image_processor.do_image_splitting is False


def bounds(found: dict) -> list[bool]:
    """What trained weights do and untrained ones do not, with room for other processors and few episodes."""
    kinds = [found[f"sorting by {name}, + and -"] for name in sorting_abilities.SORTED]
    gain = np.mean([one["accuracy"] - one["counting"] for one in kinds])
    return [
        gain > 0.08,
        found["telling the content"]["accuracy"] > 0.6,
        np.mean([found[f"telling {name}"]["accuracy"] for name in ATTRIBUTES]) > 0.8,
    ]


@pytest.fixture
def only_what_is_bounded(monkeypatch) -> Callable[[], None]:
    """When it is called, what `bounds` does not ask for is not computed from then on."""

    def patch() -> None:
        by_model = sorting_abilities.by_model

        def with_new_labels(reader, episodes, tokens, labels, form):
            known = labels != ("-", "+")
            return torch.zeros(len(episodes.labels)) if known else by_model(reader, episodes, tokens, labels, form)

        monkeypatch.setattr(sorting_abilities, "by_model", with_new_labels)
        monkeypatch.setattr(sorting_abilities, "by_logistic_regression", sorting_abilities.by_counting)
        monkeypatch.setattr(sorting_abilities, "ORDERS", 1)

    return patch


def test_shipped_weights_can_what_their_card_says_and_untrained_ones_cannot(
    backbone, untrained, card, few, only_what_is_bounded
):
    found = sorting_abilities.measure_sorting(backbone.model, backbone.processor, count=100)
    assert found.keys() == card["abilities"].keys()
    for name, ability in card["abilities"].items():
        share, counts = ability["accuracy"], (ability["n"], found[name]["n"])
        error = np.sqrt(share * (1 - share) * sum(1 / count for count in counts))
        assert found[name]["accuracy"] == pytest.approx(share, abs=max(0.04, 4 * error)), name
    assert all(bounds(found)), found
    only_what_is_bounded()
    assert not any(bounds(sorting_abilities.measure_sorting(untrained.model, untrained.processor, count=100)))


def test_the_page_says_what_the_card_says(card):
    page = (Path(__file__).resolve().parent.parent / "docs" / "miniatures.md").read_text(encoding="utf-8")
    part = page[page.index("## Choices between pictures") : page.index("## The ladder")]
    rows = {cells[1]: cells[2:-1] for line in part.splitlines() if len(cells := re.split(r" *\| *", line)) > 5}
    for name, ability in card["abilities"].items():
        told = [ability.get(key) for key in ("accuracy", "counting", "logistic")]
        numbers = ["" if value is None else f"{value:.3f}".lstrip("0") for value in told]
        assert rows[name] == [str(ability["n"]), *numbers], name
    minutes, moved = sum(card["seconds"].values()) / 60, card["abilities"]["another order"]["shift"]
    assert f"about {minutes:.0f} minutes" in part and f"{card['parameters'] / 1e6:.2f} million" in part
    assert f"moves by {moved:.2f}".replace("0.", ".") in part
