"""The ladder of readers: its rungs are in the registry, take equally many steps, and practise what their names say."""

import json

import pandas as pd
import pretrain as command
import pytest
import torch
from pretraining import MADE_BY, abilities, drawings, ladder, language, miniatures, vision
from pretraining.abilities import measure_abilities
from pretraining.place import Place
from safetensors.torch import save_model

from prefmoe.analysis.information import _practice
from prefmoe.backbones.loading import load_backbone
from prefmoe.config import FIGURES, ROOT
from prefmoe.system.files import seal_of, whole_file
from prefmoe.system.places import is_miniature, made_backbones

HEIGHTS = [
    ("llava-mini-unread", "llava-mini-unread-practised"),
    ("llava-mini-half", "llava-mini-half-practised"),
    ("llava-mini-reader", "llava-mini-reader-practised", "llava-mini-reader-placebo"),
]
POOL = {"items": 60, "quarters": 4, "groups": 16, "people": 6}


@pytest.fixture(scope="module")
def pool():
    return drawings.draw_pool(**POOL, seed=0, avoid=())


def test_the_rungs_are_the_backbones_that_the_command_makes():
    assert list(ladder.RUNGS) == command.RUNGS == [name for names in HEIGHTS for name in names]
    for name in ladder.RUNGS:
        assert made_backbones()[name] == f"python workflow/scripts/pretrain.py {name} --folder" and is_miniature(name)
    assert MADE_BY not in made_backbones().values() and not is_miniature("smollm2-lite")


@pytest.mark.parametrize("names", HEIGHTS)
def test_rungs_of_one_height_start_alike_and_take_equally_many_steps_of_each_kind(names):
    seen = []
    for name in names:
        rung, counts = ladder.RUNGS[name], [0, 0, 0, 0]
        for phase in ladder.phases_of(rung):
            assert sum(phase["shares"]) == 16 and min(phase["shares"]) >= 0
            counts = [total + phase["steps"] * share for total, share in zip(counts, phase["shares"], strict=True)]
        seen.append((rung.language, rung.preferences, rung.steps, counts))
    assert all(one == seen[0] for one in seen)
    practices = [ladder.RUNGS[name].practice for name in names]
    assert practices == ["none", "anchors", "free"][: len(names)]
    assert all(ladder.phases_of(ladder.RUNGS[name]) == ladder.phases_of(ladder.RUNGS[names[0]]) for name in names)


def test_only_who_has_learned_from_profiles_is_asked_about_preferences():
    shares = {name: ladder.phases_of(rung)[0]["shares"][0] for name, rung in ladder.RUNGS.items()}
    assert [shares[names[0]] for names in HEIGHTS] == [0, 1, 6]
    practised = [phase for phase in ladder.phases_of(ladder.RUNGS["llava-mini-reader"]) if "prefix" in phase]
    assert len(practised) == len(ladder.phases_of(ladder.RUNGS["llava-mini-reader"])) == 2


def test_practice_of_the_same_steps_reads_anchors_free_tokens_or_nothing(pool, monkeypatch):
    monkeypatch.setattr(language, "measure_abilities", lambda *_, **__: {})
    model, image_processor, tokenizer = miniatures.build_model("llava")
    features = vision.pool_features(model, image_processor, pool)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    phase = {"steps": 1, "lr": 1e-3, "shares": [1, 1], "recognition": {"level": 1}, "prefix": {"steps": 1, "goal": 0.5}}
    widths: dict[str, list] = {}
    for practice in ("none", "anchors", "free"):
        model.load_state_dict(start)
        seen = widths[practice] = []

        class Watched(language.LanguageTrainer):
            def loss(self, conversations, prefix=None, seen=seen):
                seen.append(None if prefix is None else prefix.detach().clone())
                return super().loss(conversations, prefix)

        monkeypatch.setattr(language, "LanguageTrainer", Watched)
        language.train_joint(model, "llava", image_processor, tokenizer, pool, features, phases=[phase], batch=2,
                             practice=practice)  # fmt: skip
        monkeypatch.undo()
        monkeypatch.setattr(language, "measure_abilities", lambda *_, **__: {})
    assert widths["none"] == [None]
    for practice in ("anchors", "free"):
        plain, prefix = widths[practice]
        assert plain is None and prefix.shape == (2, 13, miniatures.HIDDEN)
    assert not torch.equal(widths["anchors"][1], widths["free"][1])


def test_a_rung_is_climbed_from_what_the_miniature_had_learned(tmp_path, monkeypatch, pool):
    monkeypatch.setattr(abilities, "unseen_pictures", lambda: pool)
    monkeypatch.setattr(language, "measure_abilities", lambda *_, **__: {})
    monkeypatch.setattr(ladder, "measure_abilities", lambda *model: measure_abilities(*model, count=1))
    work, name = tmp_path / "work", "llava-mini-unread-practised"
    work.mkdir()
    with pytest.raises(ladder.FileError, match=r"vision.safetensors is missing: make llava-mini first, .* --seed"):
        ladder.climb(name, tmp_path / name, work=work, pool=POOL)
    kept = {}
    for seed, snapshot in enumerate(("vision", "lesson0"), 3):
        kept[snapshot] = miniatures.build_model("llava", seed)[0]
        with whole_file(work / f"{snapshot}.safetensors", sealed=True) as partial:
            save_model(kept[snapshot], str(partial))
    assert seal_of(work / "lesson0.safetensors").is_file()
    phases = [{**phase, "steps": 1} for phase in ladder.phases_of(ladder.RUNGS[name])]
    monkeypatch.setattr(Place, "EVERY", 1)
    trained: list[dict] = []

    def watched(*model, **asked):
        trained.append(asked)
        return language.train_joint(*model, **asked)

    monkeypatch.setattr(ladder, "train_joint", watched)
    ladder.climb(name, tmp_path / name, work=work, pool=POOL, phases=phases, seed=5)
    (asked,) = trained
    assert (asked["practice"], asked["seed"], asked["phases"]) == ("anchors", 5, phases)
    monkeypatch.setenv("PREFMOE_WEIGHTS", str(tmp_path))
    made, sources = load_backbone(name).model.state_dict(), {k: one.state_dict() for k, one in kept.items()}
    for tensor, source in (("model.language_model.embed_tokens.weight", "lesson0"), ("lm_head.weight", "lesson0"),
                           ("model.multi_modal_projector.linear_1.weight", "vision")):  # fmt: skip
        assert torch.allclose(made[tensor], sources[source][tensor], atol=1e-3), tensor  # after three small steps
    card = json.loads((tmp_path / name / miniatures.CARD).read_text())
    assert (card["seed"], card["recipe"]["language"]) == (5, "lesson0") and card["made_by"].endswith(f"{name} --seed 5")
    assert _practice(name) == "prefixes like PrefMoE's, 2 steps"
    assert {path.name.partition(".")[0] for path in work.iterdir()} == {"vision", "lesson0"}, "nothing of its place"


def test_results_say_which_rungs_were_not_made():
    """The page is to change with the tables."""
    climbed = pd.read_csv(FIGURES / "ladder/table1.csv")["backbone"]
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    missing = {name for rungs in HEIGHTS for name in rungs} - {*climbed}
    assert missing == {"llava-mini-half", "llava-mini-half-practised"}
    assert "The two half-way rungs (without practice and with it) were not made" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ladder"], "ladder: expected --folder"),
        (["llava-mini-half"], "llava-mini-half: expected --folder"),
        (["llava-mini", "--seed", "-1"], "--seed -1: expected a whole number from 0"),
    ],
)
def test_what_the_command_refuses(arguments, message, capsys):
    assert command.main(arguments) == 1
    assert message in capsys.readouterr().err
