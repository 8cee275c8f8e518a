"""The published method's settings on tiny models: each against what docs/departures.md says of the published code."""

import json
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from synthetic_mmpb import write_pseudo_users
from test_prefmoe import BOTH, batch_of, configuration, logits, train

from prefmoe import losses
from prefmoe.config import Training
from prefmoe.data import counterfactual, published_texts
from prefmoe.data.benchmark import FACETS
from prefmoe.data.counterfactual import PseudoUser
from prefmoe.data.prompts import preference_phrase
from prefmoe.models.anchors import encode_counterfactual_users, encode_users
from prefmoe.models.base import CONFIG_FILE, WEIGHTS_FILE, MethodError, build_method
from prefmoe.models.moe_lora import MixtureOfLoRA, published_gates
from prefmoe.models.prefmoe import PrefMoE
from prefmoe.models.published_counterfactual import mixed_images
from prefmoe.models.user_state import FactorisedUsers
from prefmoe.running import training
from prefmoe.running.checkpoints import CheckpointError
from prefmoe.running.evaluation import evaluate

PUBLISHED = dict(
    routers="published", query="prompt", residual_query="unscaled", anchors="hidden", anchor_texts="published",
    unknown_users="zeros", residual="published", correction="absolute", facet_label="oracle",
    counterfactual_images="published", user_embedding="anchors", answers="lower",
)  # fmt: skip


@pytest.fixture
def build(tiny_backbone, tiny_benchmark):
    def build(components="EPICDM", kind="llava", *, benchmark=tiny_benchmark, **changes) -> PrefMoE:
        return build_method(configuration(components, **PUBLISHED | changes), tiny_backbone(kind), benchmark, seed=0)

    return build


@BOTH
@pytest.mark.parametrize("components", ["E", "EP", "EPICD", "EPICDM"])
def test_every_row_of_the_ablation_trains(build, kind, components):
    method = build(components, kind)
    log = train(method, 6)
    assert log[-1]["answer"] < 0.9 * log[0]["answer"]
    assert method.describe()["trainable_total"] == sum(p.numel() for p in method.parameters() if p.requires_grad)


@BOTH
def test_gradients_reach_every_router(build, kind):
    method = build(kind=kind)
    with torch.no_grad():
        for module in method.modules():
            if isinstance(module, MixtureOfLoRA):
                module.B.normal_(std=0.1)
    batch = batch_of(method)
    with method.context(batch):
        sum(method.training_losses(batch).values()).backward()
    still = [name for name, p in method.router.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_experts_start_as_published(build):
    A = torch.cat([m.A.flatten() for m in build().modules() if isinstance(m, MixtureOfLoRA)])
    B = [m.B for m in build().modules() if isinstance(m, MixtureOfLoRA)]
    assert A.std().item() == pytest.approx(0.01, rel=0.05) and abs(A.mean()) < 1e-3 and not any(b.any() for b in B)


@pytest.mark.parametrize("with_answer", [True, False])
def test_gates_are_the_published_functions_of_the_prompts_mean(build, with_answer):
    method = build()
    train(method, 2)
    batch = batch_of(method, "test", with_answer=with_answer)
    rows = []
    handle = method.backbone.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["inputs_embeds"].detach()), with_kwargs=True
    )
    with torch.no_grad(), method.context(batch):
        method.model(**batch.inputs)
        gates, context = dict(method.routing.gates), method.routing.context
        tokens = method.user_state(batch.user)
    handle.remove()
    query = []
    for b in range(len(batch)):
        length = int(batch.inputs["attention_mask"][b].sum())
        answer = 0 if batch.labels is None else int((batch.labels[b] != -100).sum())
        prompt = rows[0][b, -length:][13 : length - answer]
        query.append(prompt.mean(0))
    name, image, description = tokens.prefix[:, 0], tokens.prefix[:, 1], tokens.prefix[:, 2]
    full = tokens.prefix[:, 3::2] + tokens.prefix[:, 4::2]
    expected = published_gates(
        method.router.weights, facet_tokens=full, name=name, image=image, description=description,
        query=torch.stack(query), facet=batch.facet,
    )  # fmt: skip
    for part in ("task", "preference", "profile"):
        torch.testing.assert_close(gates[part], expected[f"{part}_gate"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(context, expected["user_context"], rtol=1e-4, atol=1e-5)


def test_generated_tokens_are_part_of_the_query(build):
    """Every step of decoding has the gates of a forward pass over prompt and answer so far."""
    method = build()
    train(method, 3)
    batch = batch_of(method, "test", with_answer=False)
    scales = []
    handle = method.router.register_forward_hook(lambda *_: scales.append(method.routing.scale))
    with torch.no_grad(), method.context(batch):
        output = method.model.generate(
            **batch.inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False, use_cache=False
        )
        gates = method.gates()
    handle.remove()
    assert len(scales) == 3 and not torch.equal(scales[0], scales[1])
    torch.testing.assert_close(gates["task"][:, 0], scales[0][:, 0])  # what is read afterwards is the prompt's
    with torch.no_grad(), method.context(batch):
        longer = output[:, :-1]
        mask = torch.cat([batch.inputs["attention_mask"], torch.ones(len(batch), 2, dtype=torch.long)], dim=1)
        method.model(**{**batch.inputs, "input_ids": longer, "attention_mask": mask})
        torch.testing.assert_close(method.routing.scale, scales[2])


def test_evaluation_decodes_without_a_cache_where_gates_follow_the_answer(build, tiny_benchmark, monkeypatch):
    for settings, expected in (({}, False), ({"query": "question"}, True)):
        method = build(answers="upper", **settings)
        used = []
        generate = method.model.generate
        monkeypatch.setattr(
            method.model,
            "generate",
            lambda *a, g=generate, u=used, **k: (u.append(k["generation_config"]), g(*a, **k))[1],
        )
        examples = tiny_benchmark.select("test")[:3]
        rows = evaluate(method, examples, turns=0, batch_size=2, max_new_tokens=2)
        assert len(rows) == 3 and {one.use_cache for one in used} == {expected}


# --- anchors and user state


def test_texts_are_the_published_ones(tiny_benchmark):
    ann = tiny_benchmark.users["Ann"].model_copy(update={"description": "<sks>  has  red hair."})
    travel = ann.preferences["travel"]
    ann = ann.model_copy(update={"preferences": {"travel": travel}})
    name, description, *facets = published_texts.anchor_texts(ann)
    assert name == "User name: Ann." and description == "User description: <sks> has red hair.."
    likes, dislikes = ", ".join(travel.likes), ", ".join(travel.dislikes)
    said = f"In terms of travel, <sks> enjoys {likes}, but dislikes {dislikes}."
    # the statement about travel stands for every facet: it is all of the preference text
    assert facets == [f"User preference in {facet}: {said}." for facet in FACETS]
    nobody = ann.model_copy(update={"preferences": {}})
    assert published_texts.anchor_texts(nobody)[3] == "User preference in travel: Unknown preferences."


def test_a_statement_is_its_own_facets_and_the_whole_text_elsewhere(tiny_benchmark):
    dot = tiny_benchmark.users["Dot"]  # has four facets
    missing = next(facet for facet in FACETS if facet not in dot.preferences)
    whole = " ".join(published_texts.statement(dot, facet) for facet in FACETS if facet != missing)
    assert published_texts.statement(dot, missing) == whole and whole.count("In terms of") == 4


def test_lines_are_folded_and_drawn_users_share_the_statements_of_real_ones(tiny_benchmark):
    ann = tiny_benchmark.users["Ann"].model_copy(update={"description": "He is\na man.\r\n Tall."})
    assert published_texts.anchor_texts(ann)[1] == "User description: He is a man. Tall.."
    facet, preference = next(iter(ann.preferences.items()))
    drawn = pseudo_user(0, facet, **{facet: preference_phrase(preference)})
    assert published_texts.statement(drawn, facet) != published_texts.statement(ann, facet), "a file's stays as it is"
    assert published_texts.statement(published_texts.worded(drawn), facet) == published_texts.statement(ann, facet)
    real, invented = published_texts.preference_groups(tiny_benchmark, [published_texts.worded(drawn)])
    place = list(tiny_benchmark.users).index("Ann"), FACETS.index(facet)
    assert invented[0][place[1]] == real[place[0]][place[1]] >= 0
    free = pseudo_user(1, facet, **{facet: "quiet ways"})
    assert published_texts.worded(free) == free


def test_groups_are_exact_statements_and_unknown_ones_take_no_part(tiny_benchmark):
    users = dict(tiny_benchmark.users)
    users["Dot"] = users["Dot"].model_copy(update={"preferences": {}})
    benchmark = replace(tiny_benchmark, users=users)
    pseudo = [pseudo_user(0, "travel"), pseudo_user(1, "travel", travel="Nan"), pseudo_user(2, "fashion")]
    real, invented = published_texts.preference_groups(benchmark, pseudo)
    ann, bob, *_, dot = real
    assert ann == bob and dot == [-1] * 5 and min(ann) >= 0
    assert invented[0] == invented[2] and invented[1][1] == -1
    assert not {row[1] for row in real} & {invented[0][1]}


@pytest.mark.parametrize("kind", ["hidden", "embedding"])
def test_anchors_are_means_with_special_tokens_of_at_most_192(llava, tiny_benchmark, kind):
    user = tiny_benchmark.users["Ann"].model_copy(update={"description": "red " * 300})
    anchors, known = encode_users(llava, [user], kind, "published")
    assert known.all()
    for place, text in zip((0, 2, *range(3, 8)), published_texts.anchor_texts(user), strict=True):
        ids = llava.tokenizer(text)["input_ids"][:192]
        assert ids[0] == llava.tokenizer.bos_token_id
        with torch.no_grad():
            states = llava.embed_tokens(torch.tensor([ids]))
            if kind == "hidden":
                states = llava.language_model(inputs_embeds=states).last_hidden_state
        torch.testing.assert_close(anchors[0, place], states[0].mean(0), rtol=1e-4, atol=1e-5)


def test_corrections_are_absolute(build):
    method = build()
    state = method.user_state
    with torch.no_grad():
        state.delta.normal_()
    rows = torch.arange(3)
    tokens, moved = state(rows), 0.1 * torch.tanh(state.delta[rows])
    torch.testing.assert_close(tokens.prefix[:, 1:3], state.anchors[rows, 1:3] + moved[:, :2])
    torch.testing.assert_close(tokens.prefix[:, 4::2], state.anchors[rows, 3:] + moved[:, 2:])  # not centred
    torch.testing.assert_close(state.prototypes.detach(), state.anchors[:, 3:].mean(0))  # of whole texts, too


def test_component_e_has_the_mean_of_the_facets_in_every_place(build):
    whole, first = build("EP").user_state, build("E").user_state
    assert isinstance(first, FactorisedUsers)
    rows = torch.arange(4)
    separated, mixed = whole(rows).prefix, first(rows).prefix
    torch.testing.assert_close(mixed[:, :3], separated[:, :3])
    for start in (3, 4):  # prototypes, residuals
        mean = separated[:, start::2].mean(1, keepdim=True)
        torch.testing.assert_close(mixed[:, start::2], mean.expand(-1, 5, -1))
    assert set(train(build("E"), 1)[0]) == {"answer"}


def test_unknown_users_are_zeros_beside_the_prototypes(build, tiny_benchmark):
    benchmark = replace(
        tiny_benchmark,
        splits={k: tuple(i for i in v if tiny_benchmark.examples[i].name != "Dot") if k == "train" else v
                for k, v in tiny_benchmark.splits.items()},
    )  # fmt: skip
    method = build(benchmark=benchmark)
    prefix = method.user_state(torch.tensor([benchmark.row("Dot")])).prefix[0]
    assert not prefix[:3].any() and not prefix[4::2].any()
    assert torch.equal(prefix[3::2], method.user_state.prototypes)
    row = method.add_user(tiny_benchmark.users["Ann"].model_copy(update={"name": "Eve"}))
    assert not method.user_state(torch.tensor([row])).residuals.any()


def test_the_residual_contrast_has_the_prompts_mean_state_as_it_is(build):
    method = build()
    batch, pseudo = batch_of(method), method.counterfactual
    with torch.no_grad(), method.context(batch):
        terms = method.training_losses(batch)
        tokens = method.user_state(batch.user)
        hidden = method.model(**batch.inputs, output_hidden_states=True).hidden_states[-1]
    query = []
    for b in range(len(batch)):
        length, answer = int(batch.inputs["attention_mask"][b].sum()), int((batch.labels[b] != -100).sum())
        query.append(hidden[b, -length:][13 : length - answer].mean(0))
    groups = torch.tensor(published_texts.preference_groups(method.benchmark)[0])[batch.user]
    pair = losses.residual_contrast(tokens.residuals, groups, torch.stack(query), pseudo.residuals, pseudo.groups)
    torch.testing.assert_close(terms["residual_contrast"], 0.2 * pair[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["residual_preservation"], 0.2 * pair[1], rtol=1e-4, atol=1e-5)


# --- counterfactual users


def pseudo_user(number: int, family: str, **changes: str) -> PseudoUser:
    phrases = {"entertainment": "films", "travel": "quiet travel", "lifestyle": "tea", "shopping": "mugs"}
    return PseudoUser(
        pseudo_id=number, name=f"Pseudo{number}", family=family, description=f"somebody {number}",
        preferences=phrases | {"fashion": "hats"} | changes, uid_seed=number, image_seed=100 + number,
    )  # fmt: skip


def test_images_are_mixed_of_two_of_the_eight_nearest_in_the_family_facet():
    torch.manual_seed(0)
    real, anchors = torch.randn(30, 8, 6), torch.randn(3, 8, 6)
    users = [pseudo_user(k, FACETS[k + 1]) for k in range(3)]
    found = mixed_images(anchors, real, users)
    for k, user in enumerate(users):
        wanted = anchors[k, 4 + k]
        likeness = torch.cosine_similarity(real[:, 4 + k], wanted[None], dim=1)
        nearest = sorted(range(30), key=lambda u: -likeness[u])[:8]
        drawn = torch.Generator().manual_seed(user.image_seed)
        a, b = (nearest[int(torch.randint(8, (1,), generator=drawn))] for _ in range(2))
        noise = torch.randn(6, generator=drawn)
        expected = 0.65 * real[a, 1] + 0.35 * real[b, 1] + 0.1 * (anchors[k, 2] + wanted) + 0.01 * noise
        torch.testing.assert_close(found[k], expected)


def test_counterfactual_users_of_the_file_are_used_as_they_stand(build, tiny_benchmark, tmp_path):
    users = [pseudo_user(k, facet) for k, facet in enumerate(FACETS)]
    (tmp_path / "mmpb_clean").mkdir()
    benchmark = replace(tiny_benchmark, root=tmp_path)
    with pytest.raises(MethodError, match=r"counterfactual_source: file: .*pseudo_users.csv"):
        build(benchmark=benchmark, counterfactual_source="file")
    before = counterfactual.file_digest(tmp_path)
    write_pseudo_users(users, tmp_path / counterfactual.FILE)
    assert before == "" != counterfactual.file_digest(tmp_path)
    method = build(benchmark=benchmark, counterfactual_source="file")
    made, anchors = method.counterfactual, method.user_state.anchors
    encoded = encode_counterfactual_users(
        build("E").backbone, users, "hidden", anchors, texts="published", images="published"
    )
    torch.testing.assert_close(made.image, encoded[:, 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.residuals, encoded[:, 3:], rtol=1e-4, atol=1e-5)  # not centred
    assert len({tuple(row) for row in made.groups.tolist()}) == 1  # equal statements are a group of their own


# --- saving, loading, mistakes


def test_saved_and_loaded_it_gives_the_same_answers(build, tiny_backbone, tiny_benchmark, tmp_path):
    method = build()
    train(method, 3)
    batch = batch_of(method, "test", with_answer=False)
    method.save_pretrained(tmp_path)
    assert "router.weights.facet_embedding" in load_file(tmp_path / WEIGHTS_FILE)
    loaded = PrefMoE.from_pretrained(tmp_path, tiny_backbone(), tiny_benchmark)
    assert loaded.config == method.config and torch.equal(logits(loaded, batch), logits(method, batch))


@pytest.mark.parametrize(("held", "said"), [("published", "own"), ("own", "published")])
def test_tensors_of_other_routers_than_the_settings_say_are_refused(
    build, tiny_backbone, tiny_benchmark, tmp_path, held, said
):
    build(routers=held).save_pretrained(tmp_path)
    content = json.loads((tmp_path / CONFIG_FILE).read_text())
    content["method"]["routers"] = said
    (tmp_path / CONFIG_FILE).write_text(json.dumps(content))
    message = (
        rf"method.json, method.routers: '{said}', but method.safetensors .* {held} routers; expected routers: {held}"
    )
    with pytest.raises(MethodError, match=message):
        PrefMoE.from_pretrained(tmp_path, tiny_backbone(), tiny_benchmark)


def test_a_checkpoint_of_other_routers_is_refused(build, tmp_path):
    for routers in ("published", "own"):
        method = build(routers=routers)
        arguments = (method, method.benchmark.select("train"), Training(steps=2, batch_size=4, warmup=0.0))
        if routers == "published":
            training.train(*arguments, folder=tmp_path, seed=0)
            continue
        with pytest.raises(CheckpointError, match=r"step-000002.*method.routers is 'published' there, 'own' here"):
            training.train(*arguments, folder=tmp_path, seed=0)


def test_published_routers_have_a_user_context():
    with pytest.raises(ValidationError, match="user_context: false goes with routers: own"):
        configuration(routers="published", user_context=False)
