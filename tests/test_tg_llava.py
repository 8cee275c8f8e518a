"""TG-LLaVA: zero at the start, guided by the question alone, each mask query at its place in the picture."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from method_checks import batch_of, fit, logits, moved_by, trained_names
from PIL import Image
from tiny_benchmark import make_picture
from tiny_models import ARCHITECTURES

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.pictures import stack_pictures
from prefmoe.backbones.tower_layout import nearest, places, quarters, tower_states
from prefmoe.config import TGLLaVAMethod
from prefmoe.data import prompts
from prefmoe.models.added_tokens import AddedTokens
from prefmoe.models.base import build_method
from prefmoe.models.tg_llava import DetailPerceiver, FeatureMask, TGLLaVA

EVERY = pytest.mark.parametrize("kind", ARCHITECTURES)
BOTH = pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
LATENTS = 3


@pytest.fixture
def build(tiny_backbone, tiny_benchmark):
    def build(kind: str = "llava", *, side: int = 2, benchmark=tiny_benchmark, **options) -> TGLLaVA:
        config = TGLLaVAMethod(
            kind="tg_llava", label="TG", lr=3e-3, lr_guidance=3e-3, rank=2, alpha=2, dropout=0.0, side=side,
            latents=LATENTS,
        )  # fmt: skip
        return build_method(config, tiny_backbone(kind, **options), benchmark, seed=0)

    return build


def inputs_of(backbone: Backbone, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
    return stack_pictures([backbone.process_pictures([picture]) for picture in pictures])


def wake(method: TGLLaVA) -> None:
    """Takes the zero layer away from zero."""
    with torch.no_grad():
        method.mask.zero.weight.normal_(std=0.3)


def projector_input(method: TGLLaVA, batch) -> torch.Tensor:
    """What the projector computes with, guidance included."""
    seen = []
    handle = method.backbone.projector.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad(), method.context(batch):
        method.model(**batch.inputs)
    handle.remove()
    return seen[-1]


# --- zero at the start


@EVERY
def test_untrained_it_is_the_backbone_with_the_latents_behind_the_picture(build, tiny_backbone, kind):
    method, backbone = build(kind).eval(), tiny_backbone(kind)
    added = AddedTokens(backbone, [f"<detail{k}>" for k in range(LATENTS)])
    examples = method.benchmark.select("test")[:4]
    batch = batch_of(method, examples, with_answer=False)
    ids = batch.inputs["input_ids"]
    details = []
    handle = method.details.register_forward_hook(lambda module, args, output: details.append(output))
    found = logits(method, examples)
    handle.remove()
    with torch.no_grad(), added.active(details[0]):
        expected = backbone.model(**batch.inputs).logits
    assert details[0].shape == (4, LATENTS, backbone.hidden_size)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    pictures = {key: value for key, value in batch.inputs.items() if "pixel" in key or "image" in key}
    torch.testing.assert_close(projector_input(method, batch), tower_states(backbone, pictures))
    for row in ids:
        places = method.added.contains(row).nonzero()[:, 0].tolist()
        assert row[places].tolist() == list(range(method.added.first, method.added.first + LATENTS))
        assert places == list(range(places[0], places[0] + LATENTS))
        assert 0 < places[0] - int((row == backbone.image_token_id).nonzero().max()) <= 2  # a marker in between


@BOTH
def test_gradients_pass_the_zero_layer_once_it_has_moved(build, kind):
    method = build(kind)
    names, moved = trained_names(method), moved_by(method)
    mask = {name for name in names if name.startswith("mask.")}
    assert moved & mask == {"mask.zero.weight", "mask.zero.bias"}
    assert {name for name in names if name.startswith("details.")} <= moved
    fit(method, 2)
    assert moved_by(method) == names


# --- the question


@BOTH
def test_it_reads_the_question_s_words_and_nothing_else(build, tiny_benchmark, kind):
    method = build(kind).eval()
    examples = tiny_benchmark.select("test")[:5]
    questions, words = [], []
    method.mask.register_forward_hook(lambda module, args, output: questions.append(args[0]))
    method.details.register_forward_hook(lambda module, args, output: words.append(args[1].sum(1)))
    logits(method, examples)
    tokenizer, table = method.backbone.tokenizer, method.backbone.embed_tokens.weight
    for row, example in enumerate(examples):
        ids = tokenizer(prompts.question_text(example).strip(), add_special_tokens=False)["input_ids"]
        torch.testing.assert_close(questions[0][row], table[ids].mean(0))
        assert int(words[0][row]) == len(ids)


@BOTH
def test_the_question_changes_what_the_projector_receives(build, tiny_benchmark, kind):
    one, other = tiny_benchmark.select("test")[:2]
    assert one.question != other.question
    same_picture = other.model_copy(update={"image": one.image})
    examples = {**tiny_benchmark.examples, other.index: same_picture}
    method = build(kind, benchmark=replace(tiny_benchmark, examples=examples, digest="same picture")).eval()
    wake(method)
    first, second, again = (
        projector_input(method, batch_of(method, [example])) for example in (one, same_picture, one)
    )
    assert torch.equal(first, again)
    assert (first - second).abs().max() > 1e-3


# --- places


@EVERY
def test_every_state_has_one_place(tiny_backbone, kind):
    for cached in (False, True):
        backbone = tiny_backbone(kind, cache_images=cached)
        inputs = inputs_of(backbone, [make_picture(1), make_picture(2, (40, 24)), make_picture(3, (16, 32))])
        states = tower_states(backbone, inputs)
        layout = places(backbone, inputs, states)
        assert len(layout) == 3
        everywhere = torch.cat([where.flatten() for crops in layout for where in crops])
        assert everywhere.sort().values.tolist() == list(range(states.shape[:-1].numel()))


def test_patches_of_qwen_are_where_the_picture_has_them(tiny_backbone):
    backbone = tiny_backbone("qwen2_5_vl", cache_images=True)
    colours = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    picture = Image.fromarray(colours.repeat(4, axis=0).repeat(4, axis=1))
    inputs = inputs_of(backbone, [make_picture(1), picture])
    states = tower_states(backbone, inputs)
    where = places(backbone, inputs, states)[1][0]
    assert where.shape == (6, 10)
    pixels = inputs["pixel_values"].view(len(states), 3, -1).mean(-1)  # rows are packed as the cached states are
    processor = backbone.processor.image_processor
    expected = (colours / 255.0 - np.array(processor.image_mean)) / np.array(processor.image_std)
    np.testing.assert_allclose(pixels[where].numpy(), expected, atol=1e-5)
    plain = tiny_backbone("qwen2_5_vl")
    windows = tower_states(plain, inputs)
    other = places(plain, inputs, windows)[1][0]
    assert not torch.equal(other, where)
    torch.testing.assert_close(windows[other], states[where], rtol=1e-4, atol=1e-5)


def test_nearest_cells():
    assert nearest(4, 4).tolist() == [0, 1, 2, 3]
    assert nearest(6, 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert nearest(2, 6).tolist() == [1, 4]
    assert nearest(3, 1).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("kind", "cached"), [("llava", False), ("qwen2_5_vl", False), ("qwen2_5_vl", True)])
def test_the_mask_lands_where_its_queries_look(build, tiny_benchmark, kind, cached):
    method = build(kind, side=2, cache_images=cached).eval()
    batch = batch_of(method, tiny_benchmark.select("test")[:3], with_answer=False)
    before = projector_input(method, batch)
    with torch.no_grad():  # query q adds q + 1 to every channel
        method.mask.forward = lambda question: (torch.arange(4.0) + 1)[None, :, None].expand(
            len(question), 4, before.shape[-1]
        )
    change = projector_input(method, batch) - before
    pictures = {key: value for key, value in batch.inputs.items() if "pixel" in key or "image" in key}
    for crops in places(method.backbone, pictures, before):
        for where in crops:
            height, width = where.shape
            for y in range(height):
                for x in range(width):
                    cell = 2 * int(2 * (y + 0.5) / height) + int(2 * (x + 0.5) / width)
                    row = change.flatten(0, -2)[where[y, x]]
                    torch.testing.assert_close(row, torch.full_like(row, cell + 1.0), rtol=0, atol=1e-4)


@EVERY
def test_quarters_are_read_from_enlarged_parts_of_the_picture(build, tiny_benchmark, kind):
    method = build(kind, side=2)
    path = tiny_benchmark.users["Ann"].image
    with Image.open(path) as image:
        picture = image.convert("RGB")
    parts = quarters(picture)
    assert [part.size for part in parts] == [(picture.width // 2, picture.height // 2)] * 4
    whole = np.vstack([np.hstack([parts[0], parts[1]]), np.hstack([parts[2], parts[3]])])
    assert np.array_equal(whole, np.array(picture))
    found = method._patches([path, path])
    assert torch.equal(found[0], found[1])
    expected = []
    for part in parts:
        inputs = inputs_of(method.backbone, [part])
        states = tower_states(method.backbone, inputs)
        where = places(method.backbone, inputs, states)[0][0]
        picked = where[nearest(2, where.shape[0])][:, nearest(2, where.shape[1])]
        expected.append(states.flatten(0, -2)[picked.flatten()])
    torch.testing.assert_close(found[0], torch.cat(expected), rtol=1e-4, atol=1e-5)


# --- modules


def test_the_mask_is_a_q_former_layer_by_the_paper_s_equation():
    torch.manual_seed(0)
    mask = FeatureMask(6, 8, 3)
    question = torch.randn(2, 6)
    assert torch.equal(mask(question), torch.zeros(2, 9, 8))
    torch.nn.init.normal_(mask.zero.weight)

    def attend(module, queries, keys):
        q, k, v = (
            x @ w.T + b
            for x, w, b in zip(
                (queries, keys, keys),
                module.in_proj_weight.chunk(3),
                module.in_proj_bias.chunk(3),
                strict=True,
            )
        )
        return module.out_proj((q @ k.T / 8**0.5).softmax(-1) @ v)

    for row, text in enumerate(question):
        x = mask.queries[0]
        x = mask.norms[0](x + attend(mask.among, x, x))
        x = mask.norms[1](x + attend(mask.across, x, mask.read(text)[None]))
        x = mask.norms[2](x + mask.feed_forward(x))
        torch.testing.assert_close(mask(question)[row], x @ mask.zero.weight.T, rtol=1e-4, atol=1e-5)


def test_details_ignore_words_outside_the_mask_and_depend_on_text_and_patches():
    torch.manual_seed(0)
    perceiver = DetailPerceiver(6, 8, 2, 5)
    words, patches = torch.randn(2, 4, 6), torch.randn(2, 16, 8)
    mask = torch.tensor([[False, True, True, False], [True, True, True, True]])
    out = perceiver(words, mask, patches)
    assert out.shape == (2, 5, 6)
    alone = perceiver(words[:1, 1:3], mask[:1, 1:3], patches[:1])
    torch.testing.assert_close(out[:1], alone, rtol=1e-4, atol=1e-5)
    changed = words.clone()
    changed[0, 2] += 1.0
    assert (perceiver(changed, mask, patches)[0] - out[0]).abs().max() > 1e-4
    assert (perceiver(words, mask, patches.flip(1))[0] - out[0]).abs().max() > 1e-4


def test_the_vision_cache_keeps_pictures_as_they_are_without_guidance(build, tiny_backbone, tiny_benchmark):
    method = build("qwen2_5_vl", cache_images=True).eval()
    wake(method)
    examples = tiny_benchmark.select("test")
    for chosen in (examples[:3], examples[2:6], examples[:6]):  # old and new pictures in one batch
        guided = batch_of(method, chosen, with_answer=False)
        projector_input(method, guided)
    pictures = {key: value for key, value in guided.inputs.items() if "pixel" in key or "image" in key}
    plain = tiny_backbone("qwen2_5_vl", cache_images=True)
    torch.testing.assert_close(tower_states(method.backbone, pictures), tower_states(plain, pictures))
