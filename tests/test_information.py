"""What a row is shown of the user: the same in training and in test, as the non-tuned rows show it, and shared."""

import re
from dataclasses import replace

import pandas as pd
import pytest
import torch
from method_checks import batch_of, fit, logits, moved_by, trained_names
from pydantic import ValidationError
from small_world import small_backbone, small_benchmark
from test_prefix_cache import ask, assert_same, method_of

from prefmoe.config import FIGURES, FullFineTuningMethod, LoRAMethod, SoftPromptMethod, TGLLaVAMethod, load_edition
from prefmoe.data import prompts
from prefmoe.data.benchmark import Preference
from prefmoe.models.base import Method, MethodError, build_method
from prefmoe.models.lora import merged_lora

LORA = {"kind": "lora", "label": "LoRA", "lr": 3e-3, "rank": 4, "alpha": 8, "dropout": 0.0}
TRAINED = {
    "FFT": {"kind": "fft", "label": "FFT", "lr": 1e-3},
    "LoRA": LORA,
    "LOVA3": {**LORA, "kind": "lova3"},
    "TG-LLaVA": {**LORA, "kind": "tg_llava", "lr_guidance": 1e-3, "side": 4, "latents": 3},
    "soft prompt": {"kind": "soft_prompt", "label": "prompt", "lr": 1e-2, "tokens": 3},
}
PUBLISHED = {**LORA, "profile": "text", "targets": "all_linear", "projector": True}


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("profile", ["text", "statement", "image"])
def test_a_trained_row_shows_what_the_non_tuned_row_shows_in_training_and_in_test(name, profile):
    if name == "TG-LLaVA" and profile == "image":
        pytest.skip("has no room for a second picture")
    method = method_of({**TRAINED[name], "profile": profile}, small_backbone())
    non_tuned = method_of({"kind": "nontuned", "label": "NT", "profile": profile}, small_backbone())
    assert method.describe()["profile"] == profile
    for split, with_answer in (("train", True), ("test", False)):
        for example in small_benchmark().select(split)[::7]:
            ours, theirs = (m.collator.encode(example, with_answer=with_answer) for m in (method, non_tuned))
            words = "".join(method.collator.wording.added)
            assert ours.prompt.replace(words, "").split() == theirs.prompt.split()
            assert "I got it." in ours.prompt.partition("Options")[0]
            assert len(ours.pictures.digests) == (2 if profile == "image" else 1)


def test_a_statement_is_the_one_that_the_question_is_about():
    benchmark = small_benchmark()
    for example in benchmark.select("test"):
        user = benchmark.users[example.name]
        (first, *_), *_ = (m["content"] for m in prompts.messages(example, user, profile="statement"))
        said = first["text"]
        if example.category == "recognition":
            assert said == user.description.replace("<sks>", user.name)
            continue
        # the sentence of the whole text that names the facet, cut out of it by its beginning
        sentences = prompts.format_preferences(user.preferences, user.name).split("In terms of ")
        own = [f"In terms of {text}".strip() for text in sentences if text.startswith(f"{example.concept},")]
        assert said == (own[0] if own else prompts.UNKNOWN)
        nothing = user.model_copy(update={"preferences": {}})
        assert prompts.statement_text(example, nothing) == "Unknown preferences"


def test_users_without_any_preference_have_no_statements():
    benchmark = small_benchmark()
    strangers = {name: user.model_copy(update={"preferences": {}}) for name, user in benchmark.users.items()}
    config = LoRAMethod.model_validate({**LORA, "profile": "statement"})
    with pytest.raises(ValueError, match=r"profile: statement .* none of the 7 users of .* has a preference"):
        build_method(config, small_backbone(), replace(benchmark, users=strangers, digest=""), seed=0)


def test_a_question_without_a_facet_has_no_statement():
    example = next(e for e in small_benchmark().select("test") if e.category == "preference")
    method = method_of({**LORA, "profile": "statement"}, small_backbone())
    odd = example.model_copy(update={"concept": "food"})
    with pytest.raises(ValueError, match=r"question \d+ .*'food' is no facet.*entertainment, travel"):
        method.collator.encode(odd)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("profile", ["text", "statement", "image"])
def test_what_is_shown_of_a_user_is_computed_once(kind, profile):
    method = method_of({**PUBLISHED, "profile": profile}, small_backbone(kind))
    assert method.beginning == "user"
    (shared, less), (alone, more) = ask(method, True, turns=0), ask(method, False, turns=0)
    assert_same(shared, alone)
    if profile == "text":
        assert less < 0.75 * more


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "deepseek_vl2", "deepseek_vl2_tiny", "llava_next"])
def test_all_linear_is_every_linear_map_of_the_decoder_and_nothing_else(kind):
    plain = small_backbone(kind)
    linear = {name for name, module in plain.model.named_modules() if isinstance(module, torch.nn.Linear)}
    decoder = {name for name in linear if name.startswith(plain.entry.paths.layers + ".")}
    assert set(plain.linear_modules()) == decoder > set(plain.target_modules())
    assert {name.split(".")[plain.entry.paths.layers.count(".") + 1] for name in plain.linear_modules(1)} == {"2"}
    method = method_of(PUBLISHED, small_backbone(kind))
    adapted = {name.partition(".lora_")[0] for name, _ in method.model.named_parameters() if ".lora_" in name}
    assert adapted == decoder
    sizes = [plain.model.get_submodule(name) for name in decoder]
    assert method.describe()["trainable"]["lora"] == 4 * sum(map_.in_features + map_.out_features for map_ in sizes)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_lora_as_published_trains_the_projector_merges_and_comes_back(kind, tmp_path):
    method = method_of(PUBLISHED, small_backbone(kind))
    groups = method.describe()["trainable"]
    projector = sum(p.numel() for p in small_backbone(kind).projector.parameters())
    assert groups.keys() == {"lora", "projector"} and groups["projector"] == projector
    assert moved_by(method) & {name for name in trained_names(method) if ".lora_" not in name}
    before = {name: value.clone() for name, value in method.backbone.projector.state_dict().items()}
    log = fit(method, 8)
    assert log[-1]["answer"] < 0.9 * log[0]["answer"]
    assert any(not torch.equal(v, before[name]) for name, v in method.backbone.projector.state_dict().items())
    apart = logits(method)
    with merged_lora(method.model):
        torch.testing.assert_close(logits(method), apart, rtol=1e-3, atol=1e-3)
    assert torch.equal(logits(method), apart)
    method.save_pretrained(tmp_path)
    loaded = Method.from_pretrained(tmp_path, small_backbone(kind), small_benchmark())
    assert torch.equal(logits(loaded), apart)
    assert loaded.config == method.config


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_the_gradients_of_lora_as_published_are_those_of_the_models_own_loss(kind):
    method = method_of(PUBLISHED, small_backbone(kind))
    batch = batch_of(method)
    wanted = [p for group in method.parameter_groups() for p in group["params"]]
    ours = torch.autograd.grad(method.training_losses(batch)["answer"], wanted, allow_unused=True)
    theirs = torch.autograd.grad(method.model(**batch.inputs, labels=batch.labels).loss, wanted, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert sum(one is not None and float(one.abs().max()) > 0 for one in ours) > 0.8 * len(wanted)


def test_a_preference_that_cannot_be_said_is_refused_whatever_shows_it():
    benchmark = small_benchmark()
    odd = Preference(likes=("tea, jam",), dislikes=())
    first = next(iter(benchmark.users.values()))
    for profile in ("text", "statement"):
        method = method_of({**LORA, "profile": profile}, small_backbone())
        with pytest.raises(MethodError, match="'Zoe' cannot be added: .*'tea, jam' would read as several"):
            method.add_user(first.model_copy(update={"name": "Zoe", "preferences": {"travel": odd}}))


def test_the_projector_may_learn_at_a_rate_of_its_own():
    for rate, expected in ((None, 3e-3), (1e-4, 1e-4)):
        method = method_of({**LORA, "projector": True, "lr_projector": rate}, small_backbone())
        assert [group["lr"] for group in method.parameter_groups()] == [3e-3, expected]


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_beside_half_precision_the_projector_learns_in_float32(kind):
    backbone = small_backbone(kind, dtype=torch.bfloat16, cache_images=True)
    method = method_of({**LORA, "projector": True}, backbone)
    projector = list(backbone.projector.parameters())
    assert all(p.dtype == torch.float32 and p.requires_grad for p in projector)
    assert moved_by(method) and logits(method).dtype == torch.bfloat16
    kept = small_backbone(kind, dtype=torch.bfloat16, cache_images=True)
    kept.adopt_caches(backbone)  # what was seen is not in the projector's precision
    assert logits(method_of(LORA, kept)).dtype == torch.bfloat16


def test_somebody_who_comes_later_is_shown_as_the_others_are(tmp_path):
    benchmark = small_benchmark()
    method = method_of(PUBLISHED, small_backbone())
    first = next(iter(benchmark.users.values()))
    method.add_user(first.model_copy(update={"name": "Zoe"}))
    example = benchmark.select("test")[0].model_copy(update={"name": "Zoe"})
    assert first.description.replace("<sks>", "Zoe") in method.collator.encode(example).prompt
    method.save_pretrained(tmp_path)
    loaded = Method.from_pretrained(tmp_path, small_backbone(), benchmark)
    assert torch.equal(logits(loaded, [example]), logits(method, [example]))


@pytest.mark.parametrize(
    ("settings", "content"),
    [
        (LoRAMethod, {**LORA, "profile": "words"}),
        (LoRAMethod, {**LORA, "targets": "linear"}),
        (LoRAMethod, {**LORA, "lr_projector": 0}),
        (FullFineTuningMethod, {**TRAINED["FFT"], "profile": True}),
        (SoftPromptMethod, {**TRAINED["soft prompt"], "profile": ""}),
        (TGLLaVAMethod, {**TRAINED["TG-LLaVA"], "profile": "both"}),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, content):
    with pytest.raises(ValidationError):
        settings.model_validate(content)


def test_by_default_nothing_is_shown_and_nothing_more_is_trained():
    for name, content in TRAINED.items():
        method = build_method(method_of(content, small_backbone()).config, small_backbone(), small_benchmark(), seed=0)
        assert method.profile == "none", name
        assert "projector" not in method.describe()["trainable"]


@pytest.mark.parametrize("edition", ["mini", "rivals", "ranking"])
def test_nobody_without_training_questions_is_said_to_be_known_by_answers(edition):
    """Unseen tables said "adapters learned from answers" of users who had given none."""
    methods = load_edition(edition).methods.values()
    learned = {one.label for one in methods if "answers" in one.information}
    changed = {one.label for one in methods if one.information_unseen != one.information}
    assert learned == changed and learned
    for one in methods:
        assert not re.search(r"learned from answers|user.s answers|answers of the user", one.information_unseen)
    told = {one.label: (one.information, one.information_unseen) for one in methods}
    for table, where in (("table1", 0), ("unseen", 1)):
        rows = pd.read_csv(FIGURES / f"{edition}/{table}.csv").drop_duplicates("method").set_index("method")
        for label in set(told) & set(rows.index):
            assert rows.loc[label, "information"] == told[label][where], (table, label)
