"""Histories of rated pictures: packed targets and pictures seen once against each target alone in a plain sequence."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_benchmark import make_picture
from tiny_models import save_tiny

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.errors import CollationError, PromptError, PromptTooLong
from prefmoe.backbones.histories import (
    HistoryBatch,
    HistoryCollator,
    Question,
    Rated,
    Session,
    hidden_states,
    label_ids,
    label_logits,
    layer_states,
    picture_features,
)
from prefmoe.backbones.loading import load_backbone
from prefmoe.config.registry import BackboneError
from prefmoe.models.prefix import PrefixHook

WORDS = "The prompt is Score for this image one two three cats dogs + -"
PROMPTS = ("two cats", "three dogs", "one cat")
SIZES = ((16, 16), (32, 16), (16, 24))
KINDS = ("idefics2", "llava")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: save_tiny(kind, tmp_path_factory.mktemp(kind), words=WORDS) for kind in KINDS}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{k}.png" for k in range(9)]
    for k, path in enumerate(paths):
        make_picture(k, SIZES[k % 3]).save(path)
    return paths


@pytest.fixture
def backbone(folders) -> Backbone:
    return load_backbone(folders["idefics2"])


def session(pictures: Sequence[Path], entries: int, targets: int, seed: int = 0) -> Session:
    """Some of the pictures, now and then one more than once."""
    drawn = torch.randint(len(pictures), (entries + targets,), generator=torch.Generator().manual_seed(seed)).tolist()
    shown = [(pictures[k], PROMPTS[k % 3]) for k in drawn]
    history = tuple(Rated(*one, "+-"[k % 2]) for k, one in enumerate(shown[:entries]))
    return Session(history, tuple(shown[entries:]))


def entry_text(prompt: str) -> str:
    return f"<image> The prompt is {prompt}. Score for this image?"


@torch.no_grad()
def plain(backbone: Backbone, one: Session, target: int) -> torch.Tensor:
    """Label logits after every question of a plain sequence that ends with one target, through the model's forward."""
    picture, prompt = one.targets[target]
    text = "".join(f"{entry_text(entry.prompt)} {entry.label} " for entry in one.history) + entry_text(prompt)
    files = [entry.picture for entry in one.history] + [picture]
    images = [Image.open(file).convert("RGB") for file in files]
    inputs = backbone.processor(text=[text], images=[images], return_tensors="pt")
    logits = backbone.model(**inputs).logits[0]
    asked = (inputs["input_ids"][0] == backbone.tokenizer.convert_tokens_to_ids("?")).nonzero().flatten()
    return logits[asked][:, backbone.tokenizer.convert_tokens_to_ids(["+", "-"])]


@torch.no_grad()
def answers(backbone: Backbone, batch: HistoryBatch) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = hidden_states(backbone, batch)
    return label_logits(backbone, hidden, batch.rated), label_logits(backbone, hidden, batch.target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_packed_targets_are_answered_as_each_alone_in_a_plain_sequence(folders, pictures, kind, attn):
    backbone = load_backbone(folders[kind], attn=attn)
    sessions = [session(pictures, 5, 3, seed=1), session(pictures, 2, 4, seed=2), session(pictures, 0, 1, seed=3)]
    rated, target = answers(backbone, HistoryCollator(backbone)(sessions))
    for row, one in enumerate(sessions):
        for k in range(len(one.targets)):
            expected = plain(backbone, one, k)
            torch.testing.assert_close(target[row, k], expected[-1], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(rated[row, : len(one.history)], expected[:-1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_questions_are_answered_as_alone_in_a_plain_sequence_and_move_no_target(backbone, pictures):
    """One session has two questions, of which one has two pictures of its own and an answer of two words."""
    which = Question("{image} one {image} two The image is", "two dogs", tuple(pictures[:2]))
    asked = (which, Question("The image is", "cats"))
    sessions = [session(pictures, 3, 2, seed=1), replace(session(pictures, 2, 1, seed=2), questions=asked)]
    batch, token = HistoryCollator(backbone)(sessions), backbone.tokenizer.convert_tokens_to_ids
    hidden = hidden_states(backbone, batch)
    row, place, said, number = batch.answers
    assert (row.tolist(), number.tolist()) == ([1, 1, 1], [0, 0, 1])
    assert said.tolist() == token(["two", "dogs", "cats"])
    found = backbone.lm_head(hidden[row, place])
    history = "".join(f"{entry_text(entry.prompt)} {entry.label} " for entry in sessions[1].history)
    files = [entry.picture for entry in sessions[1].history]
    for k, (text, shown) in enumerate((
        ("<image> one <image> two The image is", pictures[:2]),
        ("<image> one <image> two The image is two", pictures[:2]),
        ("The image is", []),
    )):  # fmt: skip
        images = [Image.open(file).convert("RGB") for file in [*files, *shown]]
        inputs = backbone.processor(text=[history + text], images=[images], return_tensors="pt")
        torch.testing.assert_close(found[k], backbone.model(**inputs).logits[0, -1], rtol=1e-4, atol=1e-5)
    without = HistoryCollator(backbone)([replace(one, questions=()) for one in sessions])
    assert without.answers.shape == (4, 0)
    torch.testing.assert_close(answers(backbone, batch)[1], answers(backbone, without)[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "question, message",
    [
        (("{image} is", "one", ()), "a place {image} for each picture"),
        (("The image is", "one", (Path("a.png"),)), "a place {image} for each picture"),
        (("The image is", "", ()), "an answer that follows it"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(backbone, pictures, question, message):
    text, answer, shown = question
    one = replace(session(pictures, 2, 1), questions=(Question(text, answer, shown),))
    with pytest.raises(PromptError, match=f"session 0: question.*{message}"):
        HistoryCollator(backbone)([one])


@torch.no_grad()
def test_the_states_of_the_last_layer_are_the_hidden_states_and_the_first_layers_are_others(backbone, pictures):
    batch = HistoryCollator(backbone)([session(pictures, 3, 2, seed=1)])
    layers = layer_states(backbone, batch)
    assert len(layers) == backbone.model.config.text_config.num_hidden_layers
    torch.testing.assert_close(layers[-1], hidden_states(backbone, batch))
    assert not torch.allclose(layers[0], layers[-1])


def test_places_without_an_entry_or_a_target_are_marked_and_say_nothing(backbone, pictures):
    batch = HistoryCollator(backbone)([session(pictures, 3, 1), session(pictures, 1, 2)])
    assert (batch.rated < 0).tolist() == [[False] * 3, [False, True, True]]
    assert (batch.target < 0).tolist() == [[False, True], [False, False]]
    assert torch.equal(batch.target_image[..., 0] < 0, batch.target < 0)
    rated, target = answers(backbone, batch)
    assert not rated[batch.rated < 0].any() and not target[batch.target < 0].any()
    assert rated[batch.rated >= 0].all() and target[batch.target >= 0].all()


def test_a_row_is_the_same_with_padding_and_without(backbone, pictures):
    sessions = [session(pictures, 2, 2, seed=4), session(pictures, 6, 2, seed=5)]
    collator = HistoryCollator(backbone, prefix_length=3)
    together, alone = collator(sessions), [collator([one]) for one in sessions]
    padding = together.input_ids.shape[1] - alone[0].input_ids.shape[1]
    assert padding > 0
    assert torch.equal(together.input_ids[0, padding:], alone[0].input_ids[0])
    assert torch.equal(together.position_ids[0, padding:], alone[0].position_ids[0])
    assert torch.equal(together.prefix_mask[0, padding:], alone[0].prefix_mask[0])
    assert not together.prefix_mask[0, :padding].any() and together.prefix_mask.sum(1).tolist() == [3, 3]
    found = answers(backbone, together)
    for row, batch in enumerate(alone):
        for whole, part in zip(found, answers(backbone, batch), strict=True):
            torch.testing.assert_close(whole[row, : part.shape[1]], part[0], rtol=1e-4, atol=1e-5)


def test_a_loop_over_positions_finds_who_sees_whom(backbone, pictures):
    sessions = [session(pictures, 3, 2, seed=6), session(pictures, 1, 3, seed=7)]
    batch = HistoryCollator(backbone, prefix_length=2)(sessions)
    ids, mark = batch.input_ids, backbone.tokenizer.convert_tokens_to_ids("<fake_token_around_image>")
    for row, one in enumerate(sessions):
        start, opening = int(batch.prefix_mask[row].int().argmax()), (ids[row] == mark).nonzero().flatten()[::2]
        places = opening.tolist()[len(one.history) :]  # where each target begins
        part = [sum(place >= begin for begin in places) for place in range(ids.shape[1])]
        for query in range(ids.shape[1]):
            for key in range(ids.shape[1]):
                seen = start <= key <= query and part[key] in (0, part[query])
                assert bool(batch.attention[row, 0, query, key]) == (seen or query == key)
        for k, begin in enumerate(places):  # every target goes on where the history ends
            end = places[k + 1] if k + 1 < len(places) else ids.shape[1]
            expected = torch.arange(places[0] - start, places[0] - start + end - begin)
            assert torch.equal(batch.position_ids[row, begin:end], expected)
            assert torch.equal(batch.target_image[row, k], begin + 1 + torch.arange(3))
            assert batch.target[row, k] == end - 1


def test_no_label_of_a_target_and_no_other_target_is_visible(backbone, pictures):
    one = session(pictures, 4, 3, seed=8)
    collator = HistoryCollator(backbone)
    batch = collator([one])
    labels = torch.tensor(label_ids(backbone))
    assert not torch.isin(batch.input_ids[0, int(batch.rated[0, -1]) + 2 :], labels).any()
    _, target = answers(backbone, batch)
    others = Session(one.history, (*one.targets[:1], (pictures[8], PROMPTS[0]), (pictures[7], PROMPTS[1])))
    _, changed = answers(backbone, collator([others]))
    torch.testing.assert_close(changed[0, 0], target[0, 0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed[0, 1:], target[0, 1:], atol=1e-3)
    flipped = tuple(entry._replace(label="-+"["+-".index(entry.label)]) for entry in one.history)
    _, other_user = answers(backbone, collator([Session(flipped, one.targets)]))
    assert not torch.allclose(other_user, target, atol=1e-3)


def test_another_order_of_the_history_moves_its_entries_and_nothing_else(backbone, pictures):
    prompts = [PROMPTS[0]] * 5  # of one length
    history = tuple(Rated(pictures[k], prompt, "+-"[k % 2]) for k, prompt in enumerate(prompts))
    order, collator = [3, 0, 4, 1, 2], HistoryCollator(backbone, prefix_length=2)
    targets = ((pictures[5], PROMPTS[1]), (pictures[0], PROMPTS[2]))
    batch = collator([Session(history, targets)])
    moved = collator([Session(tuple(history[k] for k in order), targets)])
    for name in ("position_ids", "attention", "prefix_mask", "rated", "target", "target_image"):
        assert torch.equal(getattr(moved, name), getattr(batch, name)), name
    first, length = int(batch.rated[0, 0]) + 2 - int(batch.rated[0, 1] - batch.rated[0, 0]), 5
    entries = batch.input_ids[0, first : int(batch.rated[0, -1]) + 2].view(length, -1)
    assert torch.equal(moved.input_ids[0, first : int(batch.rated[0, -1]) + 2].view(length, -1), entries[order])
    shown = [[one.files[k] for k in one.slots.tolist()] for one in (batch, moved)]
    assert shown[1] == [shown[0][k] for k in [*order, 5, 6]]
    assert set(batch.files) == set(moved.files) and len(batch.files) == 6


def test_every_picture_is_looked_at_once(backbone, pictures):
    sessions = [session(pictures, 8, 4, seed=9), session(pictures, 8, 4, seed=10)]
    batch = HistoryCollator(backbone)(sessions)
    assert len(set(batch.files)) == len(batch.files) < len(batch.slots) == 24
    rows = []
    backbone.vision_tower.register_forward_pre_hook(
        lambda module, args, named: rows.append(len(named["pixel_values"])), with_kwargs=True
    )
    hidden = hidden_states(backbone, batch)
    assert rows == [len(batch.files)]
    features = torch.stack(backbone.image_features(batch.files))
    torch.testing.assert_close(picture_features(backbone, batch.pictures), features, rtol=1e-4, atol=1e-5)
    without = HistoryCollator(backbone, pixels=False)(sessions)
    assert without.pictures == {} and without.files == batch.files
    torch.testing.assert_close(hidden_states(backbone, without, features=features), hidden, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="without pixels needs the features"):
        hidden_states(backbone, without)


def test_packing_leaves_less_than_a_quarter_of_the_work_at_eight_choices(backbone, pictures):
    """Of pictures that the tower sees and positions that the language model computes, eight targets after sixteen."""
    one = Session(session(pictures * 2, 16, 0).history, tuple((picture, PROMPTS[0]) for picture in pictures[:8]))
    collator = HistoryCollator(backbone)
    packed = collator([one])
    alone = [collator([Session(one.history, (target,))]) for target in one.targets]
    assert 4 * packed.input_ids.numel() < sum(batch.input_ids.numel() for batch in alone)
    assert 4 * len(packed.files) < sum(len(batch.slots) for batch in alone)


def test_gradients_reach_tower_and_prefix(backbone, pictures):
    backbone.model.requires_grad_(True)
    batch = HistoryCollator(backbone, prefix_length=2)([session(pictures, 4, 2)])
    prefix = torch.nn.Parameter(torch.randn(1, 2, backbone.hidden_size))
    with PrefixHook(backbone.embed_tokens).active(prefix, batch.prefix_mask):
        hidden = hidden_states(backbone, batch)
    label_logits(backbone, hidden, batch.target)[..., 0].sum().backward()
    assert prefix.grad.any()
    for part in (backbone.vision_tower, backbone.projector, backbone.layers):
        assert all(p.grad is not None for p in part.parameters())


def test_a_batch_moves_as_a_whole(backbone, pictures):
    batch = HistoryCollator(backbone)([session(pictures, 2, 1)]).to("meta")
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert {value.device.type for value in [*tensors, *batch.pictures.values()]} == {"meta"} and len(tensors) == 9
    assert len(batch) == 1


def test_prompts_are_cut_and_can_be_left_out(backbone, pictures):
    words = [WORDS.split()[k % 3 + 8] for k in range(7)]
    cut = HistoryCollator(backbone, max_prompt_tokens=4)
    assert cut.question(" ".join(words)) == HistoryCollator(backbone).question(" ".join(words[:4]))
    untold = HistoryCollator(backbone, prompts=False)
    batch = untold([session(pictures, 2, 1)])
    prompt = backbone.tokenizer.convert_tokens_to_ids("prompt")
    assert not (batch.input_ids == prompt).any() and untold.question("two cats") == untold.question("one cat")
    text = backbone.processor(text=["<image> Score for this image?"])["input_ids"][0]
    assert untold.question("") == list(text)


@pytest.mark.parametrize("label", ["very good", "?!", "unheard", "", "<image>"])
def test_a_label_that_is_not_one_known_token_is_refused(backbone, pictures, label):
    one = session(pictures, 2, 1)
    spoiled = replace(one, history=(one.history[0], one.history[1]._replace(label=label)))
    with pytest.raises(PromptError, match="session 1: expected a label of one known token, found"):
        HistoryCollator(backbone)([one, spoiled])


def test_what_is_wrong_with_a_session_is_said_with_its_number(backbone, pictures, tmp_path):
    one, collator = session(pictures, 2, 1), HistoryCollator(backbone)
    with pytest.raises(CollationError, match="expected at least one session"):
        collator([])
    with pytest.raises(CollationError, match="session 1: expected at least one target"):
        collator([one, replace(one, targets=())])
    with pytest.raises(CollationError, match="session 1: .*missing.png"):
        collator([one, replace(one, targets=((tmp_path / "missing.png", "two cats"),))])
    with pytest.raises(PromptError, match="session 0: the prompt 'two <image> cats' holds <image>"):
        collator([replace(one, targets=((pictures[0], "two <image> cats"),))])


def test_more_pictures_than_positions_allow_are_refused(backbone, pictures):
    collator = HistoryCollator(backbone, prompts=False)
    one = session(pictures, 20, 3)
    length = collator([replace(one, targets=one.targets[:1])]).input_ids.shape[1]
    backbone.model.config.get_text_config().max_position_embeddings = length
    assert collator([one]).input_ids.shape[1] > length  # targets share positions
    backbone.model.config.get_text_config().max_position_embeddings = length - 1
    with pytest.raises(PromptTooLong, match=f"session 0: a history of 20 pictures with its .* takes {length} pos"):
        collator([one])


def test_image_tokens_are_as_many_as_the_perceiver_has_latents(backbone, pictures):
    assert HistoryCollator(backbone).tokens == backbone.model.config.perceiver_config.resampler_n_latents == 3
    batch = HistoryCollator(backbone)([session(pictures, 2, 1)])
    assert picture_features(backbone, batch.pictures).shape == (len(batch.files), 3, backbone.hidden_size)
    assert int((batch.input_ids == backbone.image_token_id).sum()) == 3 * len(batch.slots)
    backbone.processor.image_seq_len = 4
    with pytest.raises(BackboneError, match="writes 4 tokens for a picture, of which the model makes 3 latents"):
        HistoryCollator(backbone)


def test_a_model_with_positions_in_rows_and_columns_is_refused(tiny_backbone):
    with pytest.raises(BackboneError, match="one position per token"):
        HistoryCollator(tiny_backbone("qwen2_5_vl"))
