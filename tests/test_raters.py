"""Readers of histories: what learns in which stage, the loss against one sequence at a time, what nobody may see."""

import json
import shutil

import pytest
import torch
from small_choices import METHODS, backbone, benchmark, method, model_folder, settings
from torch.nn.functional import cross_entropy, logsigmoid

from prefmoe.backbones.errors import PromptError
from prefmoe.backbones.histories import Session
from prefmoe.backbones.loading import load_backbone
from prefmoe.models.base import Method, MethodError, build_method
from prefmoe.models.raters import Prototypes, Rater
from prefmoe.running.choices import session as session_of

LABELS = ("+", "-")


def sessions(*targets: int) -> list[Session]:
    """Sessions of different users with so many choices as targets, after histories of different lengths."""
    found = []
    for row, count in enumerate(targets):
        user = list(benchmark().users)[row]
        chosen = [choice for choice in benchmark().choices.values() if choice.user == user][-count:]
        found.append(session_of(benchmark(), chosen, n_ref=2 + row % 2, draw=row, pairs=True))
    return found


def moved(one: Rater, scale: float = 0.3) -> Rater:
    """What learns, moved away from its start, where adapters change nothing."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        own = [*one.stage1, *([one.prototypes] if one.prototypes is not None else [])]
        for parameter in own:
            parameter += scale * parameter.std().clamp(min=0.1) * torch.randn(parameter.shape, generator=generator)
    return one


@torch.no_grad()
def ratings(one: Rater, some: list[Session]) -> torch.Tensor:
    return one.eval().rate(one.collator(some))


@torch.no_grad()
def alone(one: Rater, session: Session, target: int) -> torch.Tensor:
    """M+ and M- of one target: prototypes and a plain sequence as input embeddings, the whole vocabulary at its end."""
    own, tokens = one.backbone, one.backbone.tokenizer
    ids, files = list(tokens("")["input_ids"]), []
    for entry in session.history:
        ids += one.collator.question(entry.prompt) + tokens(entry.label, add_special_tokens=False)["input_ids"]
        files.append(entry.picture)
    picture, prompt = session.targets[target]
    ids += one.collator.question(prompt)
    images = [own.process_pictures([file]).inputs["pixel_values"] for file in [*files, picture]]
    seen = [own.model.get_image_features(pixel_values=image, return_dict=True).pooler_output[0] for image in images]
    embedded = own.embed_tokens(torch.tensor(ids))
    embedded[torch.tensor(ids) == own.image_token_id] = torch.cat(seen)
    if getattr(one, "prototypes", None) is not None:
        embedded = torch.cat([one.prototypes, embedded])
    logits = own.lm_head(own.language_model(inputs_embeds=embedded[None]).last_hidden_state[0, -1])
    return logits[tokens.convert_tokens_to_ids(list(LABELS))]


def learning(one: Method) -> set[str]:
    return {name for name, parameter in one.named_parameters() if parameter.requires_grad}


# --- what learns --------------------------------------------------------------------------------------------------


def test_what_learns_is_what_each_method_and_stage_says():
    groups = {name: method(name)._groups() for name in METHODS}
    assert {name: set(parts) for name, parts in groups.items()} == {
        "ZeroShot": set(),
        "ViPer": {"lora"},
        "Baseline": {"lora", "vision"},
        "Ranked": {"lora", "vision"},
        "Full": {"prototypes"},
    }
    assert groups["Full"]["prototypes"][1] == 1e-2 and groups["Ranked"]["vision"][1] == 1e-3


def test_the_first_stage_adapts_the_language_model_and_trains_the_tower_not_the_connector():
    names = learning(method("Ranked", targets="all_linear"))
    assert names and all("lora_" in name or "vision_model" in name for name in names)
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names if "lora_" in name} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    tower = [name for name, _ in method("Ranked").named_parameters() if "vision_model" in name]
    assert set(tower) <= names


def test_in_the_second_stage_gradients_reach_the_prototypes_alone():
    one = method("Full").train()
    assert learning(one) == {"prototypes"}
    batch = one.collate(sessions(2, 1))
    with one.context(batch):
        sum(one.training_losses(batch).values()).backward()
    assert {name for name, p in one.named_parameters() if p.grad is not None} == {"prototypes"}
    assert one.prototypes.grad.abs().sum(1).gt(0).all()


def test_prototypes_start_at_the_scale_of_word_embeddings():
    one = method("Full", prototypes=400)
    scale = one.backbone.embed_tokens.weight.square().mean().sqrt()
    assert float(one.prototypes.detach().square().mean().sqrt() / scale) == pytest.approx(1, abs=0.05)
    assert torch.equal(method("Full").prototypes, method("Full").prototypes)
    assert not torch.equal(method("Full").prototypes, method("Full", seed=1).prototypes)


def test_a_description_says_what_is_trained_and_with_what_it_begins():
    said = method("Full").describe()
    assert (said["begins_with"], said["trainable"], said["prefix_length"]) == ("Ranked", {"prototypes": 5 * 32}, 5)
    assert method("ZeroShot").describe()["trainable_total"] == 0


def test_a_tower_learns_in_float32_before_a_model_in_half_precision():
    one = method("Ranked", on=backbone(dtype=torch.bfloat16))
    assert {p.dtype for p in one.backbone.vision_tower.parameters()} == {torch.float32}
    assert one.backbone.embed_tokens.weight.dtype == torch.bfloat16
    batch = one.train().collate(sessions(1, 1))
    with one.context(batch):
        sum(one.training_losses(batch).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in one._groups()["lora"][0])
    assert sum(float(p.grad.abs().sum()) for p in one._groups()["vision"][0] if p.grad is not None) > 0


# --- the loss -----------------------------------------------------------------------------------------------------


def by_loops(one: Rater, some: list[Session]) -> dict[str, float]:
    base, plus, minus, rated = [], [], [], []
    for session in some:
        for k in range(0, len(session.targets), 2):
            liked, disliked = alone(one, session, k), alone(one, session, k + 1)
            both = torch.stack([liked, disliked])
            base.append(cross_entropy(both, torch.tensor([0, 1])))
            plus.append(-logsigmoid(liked[0] - disliked[0]))
            minus.append(-logsigmoid(disliked[1] - liked[1]))
            rated += [-liked.log_softmax(0)[0], -disliked.log_softmax(0)[1]]
        for k, entry in enumerate(session.history):
            before = Session(session.history[:k], ((entry.picture, entry.prompt),))
            rated.append(-alone(one, before, 0).log_softmax(0)[LABELS.index(entry.label)])
    if one.config.objective == "ratings":
        base = rated
    return {name: float(torch.stack(t).mean()) for name, t in (("answer", base), ("plus", plus), ("minus", minus))}


@pytest.mark.parametrize("name", ["ViPer", "Baseline", "Ranked", "Full"])
def test_the_loss_of_a_batch_is_that_of_one_sequence_at_a_time(name):
    one, some = moved(method(name)), sessions(2, 1, 3)
    batch = one.eval().collate(some)
    with one.context(batch), torch.no_grad():
        terms = {key: float(value) for key, value in one.training_losses(batch).items()}
    expected = by_loops(one, some)
    assert set(terms) == ({"answer", "plus", "minus"} if name in ("Ranked", "Full") else {"answer"})
    assert terms == pytest.approx({key: expected[key] for key in terms}, rel=1e-4, abs=1e-5)


def test_prompts_are_told_where_settings_say_so():
    session = sessions(1)[0]
    another = Session(session.history, tuple((picture, "three dogs") for picture, _ in session.targets))
    for name, told in (("Ranked", True), ("Baseline", False), ("ViPer", False)):
        one = moved(method(name))
        assert torch.equal(ratings(one, [session]), ratings(one, [another])) != told


def test_pictures_that_were_looked_at_are_rated_as_any_others_and_forgotten_when_the_tower_learns():
    one, some = moved(method("Ranked")), sessions(2, 1)
    before = ratings(one, some)
    one.look_at(file for file in one.collator(some).files)
    seen = one.features(one.collator(some).files)
    torch.testing.assert_close(ratings(one, some), before, rtol=1e-4, atol=1e-5)
    one.train()
    with torch.no_grad():
        for parameter in one.backbone.vision_tower.parameters():
            parameter += 0.1
    one.eval()
    assert not torch.allclose(one.features(one.collator(some).files), seen, atol=1e-3)


def test_what_is_seen_does_not_depend_on_what_was_seen_before():
    some = sessions(2, 3)
    first, second = method("Full"), method("Full")
    files = [first.collator([one]).files for one in some]
    first.look_at(file for part in files for file in part)
    second.look_at(files[1])
    second.look_at(file for part in reversed(files) for file in part)
    assert torch.equal(first.features(files[0]), second.features(files[0]))
    assert torch.equal(first.features(files[1]), second.features(files[1]))


def test_without_room_nothing_is_kept():
    one = build_method(settings("Full"), backbone(), benchmark(), seed=0, cache=False)
    one.look_at(one.collator(sessions(1)).files)
    assert not one._seen and ratings(one, sessions(1)).isfinite().all()


# --- what nobody may see ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ZeroShot", "Full"])
def test_a_rating_does_not_depend_on_which_target_is_liked_nor_on_the_others(name):
    one = method(name) if name == "ZeroShot" else moved(method(name))
    (session,) = sessions(3)
    before = ratings(one, [session])[0]
    swapped = [session.targets[k] for k in (1, 0, 3, 2, 5, 4)]  # each choice the other way round
    after = ratings(one, [Session(session.history, tuple(swapped))])[0]
    torch.testing.assert_close(after[[1, 0, 3, 2, 5, 4]], before, rtol=1e-4, atol=1e-5)
    replaced = (*session.targets[:5], (session.history[0].picture, "three dogs"))
    torch.testing.assert_close(
        ratings(one, [Session(session.history, replaced)])[0, :5], before[:5], rtol=1e-4, atol=1e-5
    )


def test_sessions_of_a_batch_do_not_see_each_other_whatever_their_order():
    one, some = moved(method("Full")), sessions(2, 1, 3)
    together, order = ratings(one, some), [2, 0, 1]
    torch.testing.assert_close(ratings(one, [some[k] for k in order]), together[order], rtol=1e-4, atol=1e-5)
    for row, session in enumerate(some):
        own = ratings(one, [session])[0]
        torch.testing.assert_close(together[row, : len(own)], own, rtol=1e-4, atol=1e-5)


def test_another_order_or_label_of_the_history_is_another_history():
    one, (session,) = moved(method("Full")), sessions(2)
    before = ratings(one, [session])
    turned = tuple(reversed(session.history))
    assert not torch.allclose(ratings(one, [Session(turned, session.targets)]), before, atol=1e-4)
    relabelled = tuple(entry._replace(label=LABELS[entry.label == "+"]) for entry in session.history)
    assert not torch.allclose(ratings(one, [Session(relabelled, session.targets)]), before, atol=1e-4)


def test_prototypes_are_seen_by_targets_and_order_among_them_counts_for_every_session_alike():
    one, some = moved(method("Full")), sessions(2, 2)
    before = ratings(one, some)
    with torch.no_grad():
        one.prototypes += 1.0
    after = ratings(one, some)
    assert all(not torch.allclose(after[row], before[row], atol=1e-4) for row in range(2))


# --- saving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(METHODS))
def test_a_loaded_method_rates_as_the_saved_one(tmp_path, name):
    one, some = method(name), sessions(2, 1)
    one = one if name == "ZeroShot" else moved(one)
    before = ratings(one, some)
    one.save_pretrained(tmp_path)
    loaded = Rater.from_pretrained(tmp_path, backbone(), benchmark())
    assert type(loaded) is type(one) and torch.equal(ratings(loaded, some), before)
    assert learning(loaded) == learning(one)


def test_a_method_that_begins_with_another_one_has_its_weights(tmp_path):
    first, some = moved(method("Ranked")), sessions(2, 1)
    first.save_pretrained(tmp_path)
    second = method("Full", seed=3)
    second.begin_with(tmp_path)
    own = dict(second.named_parameters())
    learned = dict(first.named_parameters())
    assert all(torch.equal(learned[name], own[name]) for name in learning(first))
    kept, second.prototypes = second.prototypes, None  # beside its prototypes nothing tells the two apart
    for session in some:
        for k in range(len(session.targets)):
            torch.testing.assert_close(alone(second, session, k), alone(first, session, k))
    second.prototypes = kept
    second.save_pretrained(tmp_path / "second")
    loaded = Prototypes.from_pretrained(tmp_path / "second", backbone(), benchmark())
    assert torch.equal(ratings(loaded, some), ratings(second, some))


@pytest.mark.parametrize(
    ("first", "changes", "complaint"),
    [("Ranked", {"rank": 2}, "shape"), ("ViPer", {}, "missing or unknown"), ("Full", {}, "missing or unknown")],
)
def test_weights_of_another_shape_are_no_beginning(tmp_path, first, changes, complaint):
    method(first, **changes).save_pretrained(tmp_path)
    with pytest.raises(MethodError, match=rf"method\.safetensors.*{complaint}"):
        method("Full").begin_with(tmp_path)


def test_weights_that_cannot_be_read_are_no_beginning(tmp_path):
    with pytest.raises(MethodError, match=r"method\.safetensors: cannot be read"):
        method("Full").begin_with(tmp_path)


# --- labels -------------------------------------------------------------------------------------------------------


def test_a_label_that_is_no_single_token_is_refused_before_anything_is_trained(tmp_path):
    """A tokenizer that does not know "-"."""
    folder = shutil.copytree(model_folder(), tmp_path / "model")
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    words = vocabulary["model"]["vocab"]
    words["minus"] = words.pop("-")
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    for name in ("ZeroShot", "Full"):
        with pytest.raises(PromptError, match="one known token, found '-'"):
            build_method(settings(name), load_backbone(folder), benchmark(), seed=0)
