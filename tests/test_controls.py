"""Controls at test time: what is exchanged is what they say, of nobody else, and only within them."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from method_checks import logits
from PIL import Image
from small_world import PREFMOE, small_backbone, small_benchmark
from test_prefix_cache import KINDS, ask, method_of

from prefmoe.backbones.errors import CollationError
from prefmoe.backbones.pictures import mean_picture
from prefmoe.data.benchmark import FACETS, Example
from prefmoe.data.controls import Control
from prefmoe.models.base import Method, MethodError
from prefmoe.models.controls import controlled, controls_of
from prefmoe.running.evaluation import evaluate

ALL = ("other_user", "zero_prefix", "shuffled_facets", "swapped_name", "blank_picture")
TEXT = {**KINDS["LoRA"], "profile": "text"}
STATEMENT = {**KINDS["LoRA"], "profile": "statement"}
PUBLISHED = {
    **PREFMOE, "routers": "published", "facet_label": "oracle", "query": "prompt", "residual": "published",
    "correction": "absolute", "anchor_texts": "published",
}  # fmt: skip
EXPECTED = {
    "PrefMoE": ALL,
    "published": ALL,
    "E of anchors": ("other_user", "zero_prefix", "swapped_name", "blank_picture"),
    "EPICD": ALL,
    "E": ("other_user", "zero_prefix", "swapped_name", "blank_picture"),
    "soft prompt": ("other_user", "zero_prefix", "swapped_name", "blank_picture"),
    "Yo'LLaVA": ("other_user", "zero_prefix", "blank_picture"),
    "NT": ("other_user", "swapped_name", "blank_picture"),
}
CONTENTS = KINDS | {"text": TEXT, "statement": STATEMENT, "published": PUBLISHED}
CONTENTS |= {"E of anchors": {**PREFMOE, "components": "E", "user_embedding": "anchors"}}
EXPECTED |= dict.fromkeys(("text", "statement", "retrieved", "one LoRA each", "graph"), EXPECTED["NT"])
EXPECTED |= dict.fromkeys(("history", "embedding"), EXPECTED["soft prompt"])
EXPECTED |= {"joint": EXPECTED["Yo'LLaVA"]}  # their questions say no name


def method(name: str, kind: str = "llava") -> Method:
    return method_of(CONTENTS[name], small_backbone(kind))


def questions(count: int = 6) -> list[Example]:
    return small_benchmark().select("test")[::5][:count]


def others(seed: int = 0) -> dict[str, str]:
    return Control("other_user", seed).stand_ins(small_benchmark())


@pytest.mark.parametrize("name", CONTENTS)
def test_a_method_has_the_controls_of_what_it_is_shown(name):
    assert controls_of(method(name)) == EXPECTED.get(name, ())


def test_a_control_that_means_nothing_is_refused_by_name():
    with pytest.raises(MethodError, match=r"adapter has no control 'zero_prefix': its prompts show nothing of a user"):
        with controlled(method("LoRA"), "zero_prefix"):
            pass
    with pytest.raises(MethodError, match="no control 'shuffled_facets': it has other_user, zero_prefix"):
        with controlled(method("soft prompt"), "shuffled_facets"):
            pass


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_everybody_stands_in_for_somebody_else_who_is_as_well_trained(seed):
    benchmark, found = small_benchmark(), others(seed)
    trained = set(benchmark.trained_users)
    assert set(found) == set(found.values()) == trained  # the one unseen user has nobody of the sort
    assert all(name != other for name, other in found.items())
    assert found == others(seed)
    assert sorted(order := Control("shuffled_facets", seed).facet_order) == list(range(5))
    assert all(place != facet for facet, place in enumerate(order))
    assert len({tuple(sorted(others(seed).items())) for seed in range(6)}) > 1


def test_whoever_is_alone_has_no_stand_in():
    benchmark = small_benchmark()
    prefmoe = method("PrefMoE")
    unseen = benchmark.select("unseen")[0]
    with (
        controlled(prefmoe, "other_user"),
        pytest.raises(MethodError, match=rf"\({unseen.name}\): nobody can stand in"),
    ):
        prefmoe.collator([unseen], with_answer=False)
    one = benchmark.trained_users[0]
    few = {name: user for name, user in benchmark.users.items() if name == one}
    prefmoe.benchmark = replace(benchmark, users=few)
    with pytest.raises(MethodError, match="expected two users at least"):
        with controlled(prefmoe, "other_user"):
            pass


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "llava") for name in ("PrefMoE", "published", "EPICD", "E", "E of anchors", "soft prompt")),
        ("Yo'LLaVA", "llava"),
        ("published", "qwen2_5_vl"), ("Yo'LLaVA", "qwen2_5_vl"),
    ],
)  # fmt: skip
def test_other_user_is_asking_with_the_others_row(name, kind):
    asked = method(name, kind)
    plain = logits(asked, questions())
    batch = asked.collator(questions(), with_answer=False)
    rows = [small_benchmark().row(others()[example.name]) for example in questions()]
    exchanged = replace(batch, user=torch.tensor(rows))
    with torch.no_grad(), asked.context(exchanged):
        expected = asked.model(**exchanged.inputs).logits
    with controlled(asked, "other_user"):
        found = logits(asked, questions())
    assert torch.equal(found, expected) and not torch.allclose(found, plain, atol=1e-4)
    assert torch.equal(logits(asked, questions()), plain)


@pytest.mark.parametrize("name", ["NT", "text", "statement"])
def test_other_user_shows_the_others_profile_and_asks_about_the_user(name):
    asked, benchmark = method(name), small_benchmark()
    for example in questions():
        plain = asked.collator.encode(example)
        told = asked.collator.encode(example.model_copy(update={"name": others()[example.name]}))
        with controlled(asked, "other_user"):
            found = asked.collator.encode(example)
        before, acknowledged, after = found.prompt.partition("I got it.")
        assert before == told.prompt.partition(acknowledged)[0] != plain.prompt.partition(acknowledged)[0]
        assert after == plain.prompt.partition(acknowledged)[2]
        assert example.name in after and benchmark.users[example.name].description not in before


@pytest.mark.parametrize("name", ["PrefMoE", "E", "text", "NT"])
def test_swapped_name_asks_about_the_other_with_the_users_own_context(name):
    asked = method(name)
    rows = asked.collator(questions(), with_answer=False).user
    for example in questions():
        plain = asked.collator.encode(example)
        with controlled(asked, "swapped_name"):
            found = asked.collator.encode(example)
            batch = asked.collator(questions(), with_answer=False)
        before, acknowledged, after = found.prompt.rpartition("I got it.")
        expected = plain.prompt.rpartition("I got it.")
        assert (before, acknowledged) == expected[:2]
        assert after == expected[2].replace(example.name, others()[example.name]) != expected[2]
        assert torch.equal(batch.user, rows)


@pytest.mark.parametrize("name", ["PrefMoE", "published", "EPICD", "E", "E of anchors", "soft prompt"])
def test_zero_prefix_is_zeros_in_the_prompt(name):
    asked = method(name)
    batch = asked.collator(questions(), with_answer=False)
    embed = asked.backbone.embed_tokens

    def blank(module, args, output):  # behind the prefix hook
        return output.masked_fill(batch.prefix_mask[..., None], 0.0) if output.shape[1] > 1 else None

    handle = embed.register_forward_hook(blank)
    expected = logits(asked, questions())
    handle.remove()
    with controlled(asked, "zero_prefix"):
        found = logits(asked, questions())
    assert torch.equal(found, expected) and not torch.allclose(found, logits(asked, questions()), atol=1e-4)


def test_without_its_words_yollava_reads_zeros():
    asked = method("Yo'LLaVA")
    with controlled(asked, "zero_prefix"):
        found = logits(asked, questions())
    with torch.no_grad():
        for parameter in asked.inputs.parameters():
            parameter.zero_()
    assert torch.equal(found, logits(asked, questions()))


@pytest.mark.parametrize(("name", "seed"), [("PrefMoE", 0), ("published", 3), ("EPICD", 1)])
def test_shuffled_facets_are_other_facets_residuals_everywhere(name, seed):
    asked = method(name)
    plain = logits(asked, questions())
    with controlled(asked, "shuffled_facets", seed):
        found = logits(asked, questions())
    order = Control("shuffled_facets", seed).facet_order
    forward = asked.user_state.forward

    def by_hand(rows):
        tokens = forward(rows)
        residuals = torch.stack([tokens.residuals[:, order[facet]] for facet in range(len(FACETS))], dim=1)
        prefix = tokens.prefix.clone()
        for facet in range(len(FACETS)):
            prefix[:, 3 + 2 * facet + 1] = residuals[:, facet]
        return replace(tokens, residuals=residuals, prefix=prefix)

    asked.user_state.forward = by_hand
    assert torch.equal(found, logits(asked, questions()))
    assert not torch.allclose(found, plain, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "name"), [("llava", "E"), ("qwen2_5_vl", "text"), ("idefics3", "E"), ("deepseek_vl2", "text")]
)
def test_a_blank_picture_is_of_the_same_size_and_all_of_one_colour(kind, name, tmp_path):
    asked = method(name, kind)
    mean = np.array(asked.backbone.processor.image_processor.image_mean)
    for example in questions(2):
        (size,) = {picture.size for picture in [Image.open(example.image)]}
        Image.new("RGB", size, tuple(int(v) for v in np.round(255 * mean))).save(tmp_path / "grey.png")
        grey = example.model_copy(update={"image": tmp_path / "grey.png", "index": -5})
        plain, expected = asked.collator.encode(example), asked.collator.encode(grey)
        with controlled(asked, "blank_picture"):
            found = asked.collator.encode(example)
        assert torch.equal(found.input_ids, plain.input_ids) and found.prompt == plain.prompt
        assert found.prompt_digest == expected.prompt_digest != plain.prompt_digest
        pixels = found.pictures.inputs["pixel_values"]
        assert torch.equal(pixels, expected.pictures.inputs["pixel_values"]) and pixels.abs().max() < 0.05
        assert asked.collator.encode(example) is plain


def test_tg_llava_looks_at_the_blank_picture_too():
    content = {**KINDS["TG-LLaVA"], "profile": "text"}
    asked = method_of(content, small_backbone())
    with controlled(asked, "blank_picture"):
        batch = asked.collator(questions(2), with_answer=False)
        with torch.no_grad():
            patches = asked._patches([example.image for example in batch.examples])
    assert torch.equal(patches[0], patches[1])


def test_a_processor_without_a_mean_gives_grey_and_one_with_a_black_mean_no_zeros():
    processor = small_backbone().processor
    processor.image_processor.image_mean = None
    assert mean_picture(processor, (3, 2)).getpixel((0, 0)) == (128, 128, 128)
    processor.image_processor.image_mean = [0.0, 0.5, 1.0]
    picture = mean_picture(processor, (3, 2))
    assert picture.size == (3, 2) and picture.getpixel((2, 1)) == (1, 128, 255)


@pytest.mark.parametrize("mean", [(0.5, 0.5), (0.5,) * 4, "x", 0.5, [None] * 3, ["0.5"] * 3, [float("nan")] * 3])
def test_a_mean_that_is_no_colour_is_named(mean):
    processor = SimpleNamespace(image_processor=SimpleNamespace(image_mean=mean))
    with pytest.raises(CollationError, match=re.escape(f"image_mean: expected three numbers, found {mean!r}")):
        mean_picture(processor, (2, 2))


@pytest.mark.parametrize("name", ["E", "soft prompt", "text", "PrefMoE"])
def test_nothing_of_one_control_is_left_in_another(name):
    """In any order, with shared beginnings or without, every control has the answers that it has by itself."""
    kinds = EXPECTED[name]

    def answers(asked: Method, kind: str | None, reuse: bool):
        if kind is None:
            return ask(asked, reuse, turns=1)[0]
        with controlled(asked, kind):
            return ask(asked, reuse, turns=1)[0]

    asked = method(name)
    alone = {kind: answers(method(name), kind, False) for kind in (None, *kinds)}
    for kind in (*kinds, None, *reversed(kinds), None):
        found, numbers = answers(asked, kind, True), ["p_yes", "p_a", "p_allowed"]
        np.testing.assert_allclose(found[numbers], alone[kind][numbers], rtol=0, atol=1e-5)
        assert found["prediction"].tolist() == alone[kind]["prediction"].tolist()
        assert (found["name"] == alone[None]["name"]).all() and (found["user"] == alone[None]["user"]).all()
    shares = {kind: frame["p_yes"].to_numpy() for kind, frame in alone.items()}
    for kind in kinds:
        assert np.nanmax(np.abs(shares[kind] - shares[None])) > 1e-4, kind


def test_what_was_read_under_a_control_is_kept_for_the_same_control_alone():
    first, again = method("text"), small_backbone()
    again.adopt_caches(first.backbone)
    second = method_of(TEXT, again)
    example, found = questions(1)[0], {}
    for asked in (first, second):
        for kind in EXPECTED["text"]:
            for seed in (0, 1):
                with controlled(asked, kind, seed):
                    found.setdefault((kind, seed), []).append(asked.collator.encode(example))
    assert all(one is other for one, other in found.values())
    assert len({id(one) for one, _ in found.values()}) == len(found) == 6
    plain = asked.collator.encode(example)
    assert all(plain is not one for one, _ in found.values())


def test_after_an_error_a_method_is_asked_as_before():
    asked = method("E")
    plain = asked.collator
    with pytest.raises(KeyboardInterrupt), controlled(asked, "zero_prefix"):
        assert asked.collator is not plain
        raise KeyboardInterrupt
    assert asked.collator is plain


def test_somebody_who_was_added_stands_in_too_and_nobody_is_added_under_a_control():
    asked = method_of({**PREFMOE, "components": "EP"}, small_backbone())
    first = next(iter(small_benchmark().users.values()))
    zoe = first.model_copy(update={"name": "Zoe"})
    with controlled(asked, "other_user"), pytest.raises(MethodError, match="'other_user' nobody can be added"):
        asked.add_user(zoe)
    asked.add_user(zoe)
    found = Control("other_user").stand_ins(asked.benchmark)
    unseen = next(name for name in small_benchmark().users if name not in small_benchmark().trained_users)
    assert found["Zoe"] == unseen and found[unseen] == "Zoe"
    example = questions(1)[0].model_copy(update={"name": "Zoe"})
    with controlled(asked, "other_user"):
        frame = evaluate(asked, [example], turns=0, batch_size=1, max_new_tokens=1)
    assert frame["name"].tolist() == ["Zoe"]
