"""Users who join later: every kind of method, all or nothing, and what travels of them."""

import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from method_checks import fit, logits
from pydantic import TypeAdapter
from tiny_benchmark import make_picture
from work import bytecodes

from prefmoe import config
from prefmoe.backbones import batches
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Collator
from prefmoe.data import benchmark
from prefmoe.data.benchmark import GrowingBenchmark, Preference, User
from prefmoe.models import base, joint_tokens, prefmoe, saved, user_state
from prefmoe.models.base import CONFIG_FILE, WEIGHTS_FILE, Method, MethodError, build_method

SMALL = {"preference_rank": 2, "user_rank": 4, "profile_rank": 2, "counterfactual_users": 5, "lr_user": 1e-2}
LORA = {"rank": 2, "alpha": 2, "dropout": 0.0}
KINDS = {
    "nontuned": {"kind": "nontuned", "profile": "none"},
    "text": {"kind": "nontuned", "profile": "text"},
    "image": {"kind": "nontuned", "profile": "image"},
    "both": {"kind": "nontuned", "profile": "both"},
    "injected": {"kind": "injected", "pictures": 1},
    "fft": {"kind": "fft"},
    "lora": {"kind": "lora"} | LORA,
    "lova3": {"kind": "lova3"} | LORA,
    "tg_llava": {"kind": "tg_llava", "latents": 2, "side": 2, "lr_guidance": 1e-3} | LORA,
    "E": {"kind": "prefmoe", "components": "E"} | SMALL,
    "EPICD": {"kind": "prefmoe", "components": "EPICD"} | SMALL,
    "EPICDM": {"kind": "prefmoe", "components": "EPICDM"} | SMALL,
    "retrieved": {"kind": "retrieved"} | LORA,
    "user_lora": {"kind": "user_lora", "rank": 2, "alpha": 2, "pooled_rank": 2},
    "history": {"kind": "history", "width": 8, "pooled_rank": 2},
    "embedding_prefix": {"kind": "embedding_prefix", "width": 8},
    "graph_experts": {"kind": "graph_experts", "kinds": 4, "size": 4, "experts": 2, "expert_rank": 2, "pooled_rank": 2,
                      "neighbours": 2},
    "joint_tokens": {"kind": "joint_tokens", "tokens": 2},
}  # fmt: skip
REFUSING = {"soft_prompt": {"kind": "soft_prompt", "tokens": 2}, "yollava": {"kind": "yollava", "tokens": 2}}
EVERY = pytest.mark.parametrize("kind", KINDS)


def test_every_kind_of_method_is_in_these_tests():
    asking = {kind for kind, settings in config.KINDS.items() if not settings.about_choices}
    assert {content["kind"] for content in (KINDS | REFUSING).values()} == asking


@pytest.fixture(scope="module")
def build(tiny_backbone, tiny_benchmark):
    def build(kind: str, benchmark=tiny_benchmark) -> Method:
        content = {"label": kind} | (KINDS | REFUSING)[kind]
        if content["kind"] not in ("nontuned", "injected"):
            content |= {"lr": 1e-3}
        method = TypeAdapter(config.Method).validate_python(content)
        return build_method(method, tiny_backbone(), benchmark, seed=0)

    return build


@pytest.fixture
def eve(tmp_path) -> User:
    """Somebody new, with a preference that nobody has."""
    path = tmp_path / "eve.png"
    make_picture(77).save(path)
    preferences = {"travel": Preference(likes=("tea",), dislikes=("jazz", "hats"))}
    return User(
        name="Eve", attribute="human", description="A person with blue hair.", preferences=preferences, images=(path,)
    )


def asked(method: Method, name: str):
    """Test questions about somebody of whom the benchmark has none."""
    return [e.model_copy(update={"name": name, "index": e.index + 1000}) for e in method.benchmark.select("test")[:3]]


def state(method: Method) -> dict:
    """All that adding a user may change: users, rows, groups, tensors, what is trained, modes, and answers."""
    training = {name: module.training for name, module in method.named_modules()}
    return {
        "users": dict(method.benchmark.users),
        "rows": [method.benchmark.row(name) for name in method.benchmark.users],
        "groups": [list(row) for row in method.benchmark.groups],
        "added": list(method.added_users),
        "collator": list(method.collator.benchmark.users),
        "tensors": {name: t.detach().clone() for name, t in [*method.named_parameters(), *method.named_buffers()]},
        "needed": {name: p.requires_grad for name, p in method.named_parameters()},
        "training": training,
        "answers": logits(method),
    }


def assert_same(one: dict, other: dict) -> None:
    for key in one.keys() - {"tensors", "answers"}:
        assert one[key] == other[key], key
    assert one["tensors"].keys() == other["tensors"].keys()
    for name, tensor in one["tensors"].items():
        assert torch.equal(tensor, other["tensors"][name]), name
    assert torch.equal(one["answers"], other["answers"])


class Injected(RuntimeError):
    """A failure in the midst of things."""


PLACES = {
    "pictures": (Backbone, "image_features"),
    "texts": (Backbone, "text_anchors"),
    "benchmark": (GrowingBenchmark, "of"),
    "collator": (Collator, "of"),
    "groups": (GrowingBenchmark, "groups_of"),
    "rows of groups": (prefmoe, "with_rows"),
    "rows of users": (user_state, "with_rows"),
    "rows of joint tokens": (joint_tokens, "with_rows"),
}
REACHED = {"joint_tokens": {"rows of joint tokens"}}
REACHED |= dict.fromkeys(("EPICD", "EPICDM"), {"pictures", "texts", "rows of groups", "rows of users"})


def failing(monkeypatch, place: str, after: int) -> list[str]:
    """Makes a function fail after some calls; the list holds its calls."""
    owner, name = PLACES[place]
    original, calls = getattr(owner, name), []

    def fail(*arguments, **options):
        calls.append(place)
        if len(calls) > after:
            raise Injected(place)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, fail)
    return calls


@EVERY
def test_a_user_who_cannot_be_added_leaves_everything_as_it_was(build, eve, tmp_path, monkeypatch, kind):
    def prepared() -> Method:
        """In training mode, and with a parameter that is trained frozen: both have to stay so."""
        method = build(kind).train()
        for group in method.parameter_groups()[:1]:
            group["params"][0].requires_grad_(False)
        return method

    method, plain = prepared(), prepared()
    before = state(method)
    (tmp_path / "text.png").write_text("no picture")
    os.mkfifo(tmp_path / "pipe.png")
    wrong = {
        "no such": {"images": (tmp_path / "none.png",)},
        "at least one picture": {"images": ()},
        "text.png": {"images": (eve.image, tmp_path / "text.png")},
        "pipe.png": {"images": (tmp_path / "pipe.png",)},
        "unknown facet 'food'": {"preferences": {"food": Preference(likes=("tea",), dislikes=())}},
    }
    if kind in ("text", "both", "injected"):
        wrong["neither likes"] = {"preferences": {"travel": Preference(likes=(), dislikes=())}}
    if "P" in kind:
        wrong["without tokens"] = {"description": ""}
    for message, change in wrong.items():
        with pytest.raises(MethodError, match=f"user 'Eve' cannot be added: .*{message}"):
            method.add_user(eve.model_copy(update=change))
        assert_same(state(method), before)
    with monkeypatch.context() as patch:  # how often each stage is reached where nothing fails
        reached = {place: failing(patch, place, after=1000) for place in PLACES}
        prepared().add_user(eve)
    met = set()
    for place, calls in reached.items():
        for after in range(min(3, len(calls))):
            failed = False
            with monkeypatch.context() as patch:
                failing(patch, place, after)
                try:
                    method.add_user(eve)
                except Injected:
                    failed = True
            if not failed:  # the stage was not reached again: what it gave was kept
                method = prepared()
                break
            met.add(place)
            assert_same(state(method), before)
    assert met >= {"benchmark", "collator", "groups"} | REACHED.get(kind, set())
    # And then it works, as if nothing had been tried, in whatever order.
    other = eve.model_copy(update={"name": "Hal", "preferences": {}})
    for someone in (other, eve):
        assert method.add_user(someone) == plain.add_user(someone)
    assert_same(state(method), state(plain))
    assert [method.benchmark.row(name) for name in ("Hal", "Eve")] == [4, 5]
    assert torch.equal(logits(method, asked(method, "Eve")), logits(plain, asked(plain, "Eve")))
    with pytest.raises(MethodError, match="'Eve' is known already .row 5."):
        method.add_user(eve)


@pytest.mark.parametrize("kind", REFUSING)
def test_methods_without_new_users_refuse_them_and_stay_as_they_are(build, eve, kind):
    method = build(kind).eval()
    before = state(method)
    with pytest.raises(MethodError, match="cannot add 'Eve'.*training questions"):
        method.add_user(eve)
    assert_same(state(method), before)


@EVERY
def test_an_adapter_with_added_users_travels_without_their_pictures(
    build, tiny_backbone, tiny_benchmark, eve, tmp_path, kind
):
    method = build(kind)
    if method.parameter_groups():
        fit(method, 1)
    method.add_user(eve)
    answers = logits(method.eval()), logits(method, asked(method, "Eve"))
    method.save_pretrained(tmp_path / "here")
    text = (tmp_path / "here" / CONFIG_FILE).read_text()
    assert str(tmp_path) not in text and ".png" not in text
    eve.image.unlink()
    (tmp_path / "here").rename(tmp_path / "there")
    for folder in ("there", "again"):
        loaded = Method.from_pretrained(tmp_path / folder, tiny_backbone(), tiny_benchmark)
        assert list(loaded.benchmark.users) == [*tiny_benchmark.users, "Eve"]
        assert torch.equal(logits(loaded), answers[0])
        assert torch.equal(logits(loaded, asked(loaded, "Eve")), answers[1])
        loaded.save_pretrained(tmp_path / "again")
    shown = {path.name for path in (tmp_path / "again").iterdir()} - {CONFIG_FILE, WEIGHTS_FILE}
    assert shown == ({saved.added_picture(0)} if kind in ("image", "both", "injected") else set())


def test_what_an_injected_method_shows_is_asked_for_before_a_user_is_added_and_travels(
    tiny_backbone, tiny_benchmark, eve, tmp_path
):
    """Two pictures and another description than the profile's, which the benchmark's table has."""
    asked_of = {name: f"<sks> looks simple, says {name}." for name in (*tiny_benchmark.users, "Eve")}
    frame = tiny_benchmark.frame.assign(description_simple=tiny_benchmark.frame["name"].map(asked_of))
    last = frame.tail(1).assign(name="Eve", description_simple=asked_of["Eve"]).rename(index=lambda index: index + 1)
    benchmarks = {
        name: replace(tiny_benchmark, frame=table, digest=name)
        for name, table in {"without Eve": frame, "with Eve": pd.concat([frame, last])}.items()
    }
    settings = config.InjectedMethod(kind="injected", label="simple", pictures=2, description="simple")
    make_picture(78).save(tmp_path / "eve2.png")
    both = eve.model_copy(update={"images": (eve.image, tmp_path / "eve2.png")})
    method = build_method(settings, tiny_backbone(), benchmarks["without Eve"], seed=0)
    before = state(method)
    with pytest.raises(MethodError, match="'Eve' cannot be added: .*no description_simple; expected one in the bench"):
        method.add_user(both)
    assert_same(state(method), before)
    method = build_method(settings, tiny_backbone(), benchmarks["with Eve"], seed=0)
    before = state(method)
    with pytest.raises(MethodError, match="'Eve' cannot be added: expected 2 pictures of user 'Eve'.*found 1"):
        method.add_user(eve)
    assert_same(state(method), before)
    assert method.add_user(both) == 4
    questions = asked(method, "Eve")
    messages, shown = method.collator.conversation(questions[0], both, ())
    assert messages[0]["content"][-1]["text"].startswith("Eve looks simple, says Eve. In terms of travel, Eve enjoys")
    assert shown == [*both.images, questions[0].image]
    answers = logits(method), logits(method, questions)
    method.save_pretrained(tmp_path / "there")
    for picture in both.images:
        picture.unlink()
    for folder in ("there", "again"):
        loaded = Method.from_pretrained(tmp_path / folder, tiny_backbone(), benchmarks["with Eve"])
        assert torch.equal(logits(loaded), answers[0])
        assert torch.equal(logits(loaded, questions), answers[1])
        loaded.save_pretrained(tmp_path / "again")
    with pytest.raises(MethodError, match="added_users.0: user 'Eve' has no description_simple"):
        Method.from_pretrained(tmp_path / "there", tiny_backbone(), benchmarks["without Eve"])
    (tmp_path / "there" / saved.added_picture(0, 1)).unlink()
    with pytest.raises(MethodError, match=f"added_users.0: .*{saved.added_picture(0, 1)}: no such file"):
        Method.from_pretrained(tmp_path / "there", tiny_backbone(), benchmarks["with Eve"])


@pytest.mark.parametrize("switches", [{"names": "shuffled", "pictures": 2, "portraits": "other"}, {"names": "random"}])
def test_an_injected_method_exchanges_added_users_too_and_the_others_as_before(
    tiny_backbone, tiny_benchmark, eve, tmp_path, switches
):
    settings = config.InjectedMethod(kind="injected", label="exchanged", talk="topic", **switches)
    method = build_method(settings, tiny_backbone(), tiny_benchmark, seed=0)
    talk = (("user", "hello"), ("assistant", "hi")) * 2
    said = [method.collator.protocol.conversation(example, talk) for example in tiny_benchmark.examples.values()]
    for name in ("Eve", "Fay"):
        method.add_user(eve.model_copy(update={"name": name}))
        questions = asked(method, name)
        logits(method, questions)
    protocol = method.collator.protocol
    assert [protocol.conversation(example, talk) for example in tiny_benchmark.examples.values()] == said
    assert all(protocol.name(example) in tiny_benchmark.users for example in questions)
    method.save_pretrained(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}
    loaded = Method.from_pretrained(tmp_path / "adapter", tiny_backbone(), tiny_benchmark)
    assert torch.equal(logits(loaded), logits(method))
    assert torch.equal(logits(loaded, questions), logits(method, questions))


def test_loading_opens_no_picture_that_the_adapter_brings(build, tiny_backbone, tiny_benchmark, eve, tmp_path):
    """Not even one that is none, as long as nobody asks about its user."""
    method = build("image")
    method.add_user(eve)
    method.save_pretrained(tmp_path / "adapter")
    picture = tmp_path / "adapter" / saved.added_picture(0)
    picture.write_text("no picture")
    loaded = Method.from_pretrained(tmp_path / "adapter", tiny_backbone(), tiny_benchmark)
    with pytest.raises(ValueError, match=picture.name):
        logits(loaded, asked(loaded, "Eve"))
    picture.unlink()
    for make in (lambda: picture.symlink_to(eve.image), lambda: os.mkfifo(picture), lambda: None):
        make()
        with pytest.raises(MethodError, match=f"added_users.0: .*{picture.name}"):
            Method.from_pretrained(tmp_path / "adapter", tiny_backbone(), tiny_benchmark)
        picture.unlink(missing_ok=True)


GROWING = (
    "lora",
    "E",
    "EPICD",
    "retrieved",
    "user_lora",
    "history",
    "embedding_prefix",
    "graph_experts",
    "joint_tokens",
)
CODE = [benchmark.__file__, batches.__file__, *map(str, Path(base.__file__).parent.glob("*.py"))]

ROWS = {
    "EPICD": {"PrefMoE.groups", "FactorisedUsers.anchors"}, "user_lora": {"UserLoRA.slot"},
    "history": {"History.places"}, "embedding_prefix": {"EmbeddingPrefix.vectors"},
    "graph_experts": {"GraphExperts.made_of", "GraphExperts.shares"},
    "joint_tokens": {"JointTokens.start", "JointTokens.slot", "JointTokens.companions"},
}  # fmt: skip


@pytest.mark.parametrize("kind", GROWING)
def test_each_user_costs_the_same_however_many_there_are(build, eve, kind):
    """Instructions of adding ten users to four, and to a hundred; rows are copied once for as many as there are."""
    method = build(kind)
    people = [eve.model_copy(update={"name": f"Eve {k}"}) for k in range(130)]

    def work(some: list[User]) -> int:
        return bytecodes(lambda: [method.add_user(user) for user in some], *CODE)

    def places() -> dict[str, int]:
        """Where the tensors lie that get rows."""
        grown = [(module, name) for module in method.modules() for name in module.__dict__.get("_rooms", ())]
        return {f"{type(module).__name__}.{name}": getattr(module, name).data_ptr() for module, name in grown}

    method.add_user(people[0])
    first = work(people[1:11])
    for user in people[11:100]:
        method.add_user(user)
    assert work(people[100:110]) < 1.5 * first
    before = places()
    assert before.keys() >= ROWS.get(kind, set())
    for user in people[110:]:
        method.add_user(user)
        assert places() == before


@pytest.mark.parametrize("name", ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0915\u094d\u200d\u0937"])
def test_a_name_may_have_the_joiners_that_its_script_needs(llava, tiny_benchmark, eve, name):
    plain = config.NonTunedMethod(kind="nontuned", label="plain", profile="none")
    method = build_method(plain, llava, tiny_benchmark, seed=0)
    assert method.add_user(eve.model_copy(update={"name": name})) == len(tiny_benchmark.users)


@pytest.mark.parametrize("name", ["", "Eve | Ann", "Eve\nAnn", "Ev\u200be"])
def test_a_name_that_no_saved_adapter_may_hold_is_refused_when_it_is_added(llava, tiny_benchmark, eve, name):
    """A user's model_copy checks nothing, and loading would refuse what was saved."""
    plain = config.NonTunedMethod(kind="nontuned", label="plain", profile="none")
    method = build_method(plain, llava, tiny_benchmark, seed=0)
    with pytest.raises(MethodError, match="expected a (user's )?name"):
        method.add_user(eve.model_copy(update={"name": name}))
    assert list(method.benchmark.users) == list(tiny_benchmark.users)
