"""The miniature backbones: their recipe's parts, and that the shipped weights are what their cards say."""

import hashlib
import json
from pathlib import Path

import align
import numpy as np
import pretrain as pretrain_script
import pretraining
import pytest
import torch
from PIL import Image
from pretraining import abilities, drawings, language, miniatures, reading, vision
from pretraining.abilities import measure_abilities
from pretraining.conversations import Conversations, Encoder, Say
from pretraining.errors import PretrainingError
from pretraining.place import Place, alone, finished, work_folder
from safetensors import safe_open

from prefmoe.backbones.loading import load_backbone
from prefmoe.data.benchmark import FACETS, User
from prefmoe.data.drawing import ATTRIBUTES, ITEM_FACET
from prefmoe.models.anchors import encode_users
from prefmoe.models.user_state import FactorisedUsers

KINDS = list(miniatures.FOLDERS)


@pytest.fixture(scope="module")
def pool():
    return drawings.draw_pool(items=60, quarters=6, groups=30, people=10, seed=3, avoid=())


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_are_encoded_as_the_chat_template_does(kind, pool):
    backbone = load_backbone(miniatures.FOLDERS[kind])
    encoder = Encoder(kind, backbone.tokenizer)
    drawn = Conversations(pool, np.random.default_rng(0))
    for turns in (drawn.preferences(3, 2, talk=True), drawn.recognition(2), drawn.captions(2)):
        messages = [
            {
                "role": say.role,
                "content": [{"type": "image"}] * len(say.pictures) + [{"type": "text", "text": say.text}],
            }
            for say in turns
        ]
        text = backbone.processor.apply_chat_template(messages, tokenize=False)
        image = backbone.tokenizer.convert_ids_to_tokens(encoder.image_id)
        expected = backbone.tokenizer(text.replace(image, image * 16), add_special_tokens=False).input_ids
        assert encoder(turns)[0] == expected


def test_only_what_is_to_be_learned_has_labels():
    tokenizer = miniatures.build_tokenizer("llava")
    turns = [Say("user", "chess"), Say("assistant", "yes", learn=True)]
    ids, labels, _ = Encoder("llava", tokenizer)(turns)
    assert [i for i, y in zip(ids, labels, strict=True) if y != -100] == tokenizer("yes</s>").input_ids


def test_labels_of_pictures_say_what_is_drawn(pool):
    words = list(ITEM_FACET)
    for item, pictures in pool.items.items():
        for picture in pictures:
            named = pool.labels[picture, :, 0]
            assert set(named[named >= 0]) == {words.index(item)}
    for picture, members in pool.groups.items():
        styles = pool.labels[picture, :, 1]
        expected = {list(ATTRIBUTES["hair_style"]).index(pool.faces[m].hair_style) for m in members}
        assert set(styles[styles >= 0]) == expected


def test_questions_about_people_are_answered_by_who_is_in_the_picture(pool):
    drawn = Conversations(pool, np.random.default_rng(1))
    for level in (0, 1, 2):
        for _ in range(20):
            person = drawn._pick(drawn.known)
            picture, place = drawn._company(person, level)
            assert (person in pool.groups[picture]) == (place is not None)


def test_a_place_is_told_in_words_or_by_the_letter_of_an_option(pool):
    drawn = Conversations(pool, np.random.default_rng(2))
    for in_words, answers in ((1.0, {"left", "middle", "right", "absent"}), (0.0, set("ABCD"))):
        for _ in range(20):
            *_, question, answer = drawn.recognition(1, level=2, places=1.0, in_words=in_words)
            assert answer.text in answers
            assert ("Options:" in question.text) == (in_words == 0.0)


def test_of_a_stranger_nothing_is_said_before_the_question(pool):
    drawn = Conversations(pool, np.random.default_rng(3))
    for _ in range(20):
        question, answer = drawn.strangers()
        assert (question.role, answer.learn, len(question.pictures)) == ("user", True, 1)
        assert answer.text in {"yes", "no", *"ABCD"}


def test_a_soft_prefix_goes_from_words_to_the_tokens_of_the_untrained_user_state(pool, tmp_path):
    backbone = load_backbone("llava-mini")
    drawn, encoder = Conversations(pool, np.random.default_rng(4)), Encoder("llava", backbone.tokenizer)
    people = [drawn.introduced(1)[0] for _ in range(8)]
    pictures = [pool.pixels[person.portrait] for person in people]
    paths = [tmp_path / f"{k}.png" for k in range(len(people))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    users = [
        User(name=p.name, attribute="human", description=p.description, preferences=p.preferences, images=(path,))
        for p, path in zip(people, paths, strict=True)
    ]
    anchors, known = encode_users(backbone, users, "embedding")
    state = FactorisedUsers(anchors, known, torch.ones(len(users), dtype=torch.bool))
    with torch.no_grad():
        expected = state(torch.arange(len(users))).prefix
        features = vision.pool_features(backbone.model, backbone.processor.image_processor, pool)

        def prefix(blend: float) -> torch.Tensor:
            rng, table = np.random.default_rng(5), backbone.embed_tokens.weight
            return reading.soft_prefix(table, encoder, features, people, 0, rng, blend=blend, dislikes=1.0)

        means, words = prefix(1.0), prefix(0.0)
    assert torch.allclose(means[:, [0, 2]], expected[:, [0, 2]], atol=1e-5)
    assert torch.allclose(means[:, 1], expected[:, 1], atol=2e-3)  # the pool's features are kept in half precision
    held = expected[:, 3:].norm(dim=-1) > 0
    assert held.any() and not held.all()
    likeness = torch.cosine_similarity(means[:, 3:], expected[:, 3:], dim=-1)  # sums there, means here
    assert torch.allclose(likeness[held], torch.ones(int(held.sum())), atol=1e-4)
    assert not means[:, 3:][~held].any()
    for person, tokens in zip(people, words, strict=True):
        for facet, own in person.preferences.items():
            at = 3 + 2 * FACETS.index(facet)
            ids = backbone.tokenizer.convert_tokens_to_ids(list(own.likes))
            assert torch.allclose(tokens[at : at + 2], backbone.embed_tokens.weight[ids], atol=1e-6)


def test_the_qwen_text_model_starts_as_the_llama_it_adopts():
    source = load_backbone("llava-mini")
    model, _, tokenizer = miniatures.build_model("qwen2.5-vl")
    miniatures.adopt_language_model(model, tokenizer, source.model, source.tokenizer)
    text = "enjoys chess, drums, but dislikes cats, dogs. chess"
    with torch.no_grad():
        expected, found = (
            m(input_ids=t(text, add_special_tokens=False, return_tensors="pt").input_ids).logits[0, -1]
            for m, t in ((source.model, source.tokenizer), (model.eval(), tokenizer))
        )
    shared = [w for w in ITEM_FACET if w in tokenizer.get_vocab()] + ["yes", "no", "A", "B"]
    mine, theirs = (t.convert_tokens_to_ids(shared) for t in (tokenizer, source.tokenizer))
    assert torch.allclose(found[mine], expected[theirs], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_shipped_weights_belong_to_their_card(kind):
    folder = miniatures.WEIGHTS / miniatures.FOLDERS[kind]
    card = json.loads((folder / miniatures.CARD).read_text())
    content = (folder / "model.safetensors").read_bytes()
    assert hashlib.blake2b(content, digest_size=16).hexdigest() == card["weights_blake2b"]
    assert len(content) < 6_000_000
    assert card["recipe"] == json.loads(json.dumps(pretraining.RECIPES[kind]))
    assert (card["seed"], card["made_by"]) == (0, "snakemake --cores all pretrain")  # one run, from nothing
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.float16}
    backbone = load_backbone(miniatures.FOLDERS[kind])
    assert card["parameters"] == sum(p.numel() for p in backbone.model.parameters())
    assert 1e6 < card["parameters"] < 3e6


@pytest.mark.parametrize("kind", KINDS)
def test_shipped_weights_have_the_recorded_abilities(kind, pool, monkeypatch):
    """On a quarter of the questions, about other drawings: the shares lie within four standard errors."""
    monkeypatch.setattr(abilities, "unseen_pictures", lambda: pool)
    folder = miniatures.WEIGHTS / miniatures.FOLDERS[kind]
    recorded = json.loads((folder / miniatures.CARD).read_text())["abilities"]
    backbone = load_backbone(miniatures.FOLDERS[kind])
    found = measure_abilities(backbone.model, kind, backbone.processor.image_processor, backbone.tokenizer, count=100)
    assert found.keys() == recorded.keys()
    asked = 5  # kinds of conversation
    assert (sum(a["n"] for a in recorded.values()), sum(a["n"] for a in found.values())) == (400 * asked, 100 * asked)
    for name, ability in recorded.items():
        share = (ability["accuracy"] * ability["n"] + 1) / (ability["n"] + 2)  # a share of 1 has an error, too
        error = (share * (1 - share) / found[name]["n"]) ** 0.5
        assert found[name]["accuracy"] == pytest.approx(ability["accuracy"], abs=4 * error + 0.02), name
    for name in ("preference yes/no", "presence from portrait", "naming an item"):
        assert recorded[name]["accuracy"] > 0.9 and found[name]["accuracy"] > 0.8, name


def test_parts_of_like_length_add_up_to_the_whole_batch(pool, monkeypatch):
    model, image_processor, tokenizer = miniatures.build_model("llava")
    features = vision.pool_features(model, image_processor, pool)
    drawn = Conversations(pool, np.random.default_rng(6))
    people, asked = zip(*(drawn.introduced(1 + 4 * (k % 2)) for k in range(6)), strict=True)
    prefix = reading.soft_prefix(
        model.get_input_embeddings().weight, Encoder("llava", tokenizer), features, people, 10, drawn.rng,
        blend=0.5, dislikes=0.5,
    ).detach()  # fmt: skip

    def learned() -> tuple[float, float, torch.Tensor]:
        model.zero_grad()
        trainer = language.LanguageTrainer(model, "llava", tokenizer, features)
        loss, accuracy = trainer.loss(asked, prefix)
        loss.backward()
        return loss.item(), accuracy, torch.cat([p.grad.flatten() for p in trainer.parameters])

    in_parts = learned()
    sizes = [len(Encoder("llava", tokenizer)(c)[0]) for c in asked]
    split = reading._of_like_length(sizes)
    assert len(split) == 2 and sorted(split[0] + split[1]) == list(range(6))
    assert max(sizes[k] for k in split[0]) <= min(sizes[k] for k in split[1])
    monkeypatch.setattr(reading, "_of_like_length", lambda lengths: [list(range(len(lengths)))])
    whole = learned()
    assert in_parts[:2] == pytest.approx(whole[:2], rel=1e-5)
    assert (in_parts[2] - whole[2]).norm() < 1e-5 * whole[2].norm()


@pytest.mark.parametrize("length", [[7, 7, 7], [5]])
def test_a_batch_without_much_padding_stays_whole(length):
    assert reading._of_like_length(length) == [list(range(len(length)))]


def test_a_backbone_that_is_no_miniature_is_refused():
    with pytest.raises(ValueError, match="llava-mini, qwen2.5-vl-mini"):
        pretraining.pretrain("llava-1.5-7b")


@pytest.mark.parametrize("goals", [(1.05, 0.0), (0.0, 1.05)])
def test_a_text_stage_that_has_learned_nothing_begins_again_at_lower_rates(tmp_path, monkeypatch, caplog, goals):
    monkeypatch.setattr(Place, "EVERY", 1)
    lessons = [(level, goal, 1) for level, goal in enumerate(goals)]

    def weights(*rates: float, path: Path | None = None) -> torch.Tensor:
        model, _, tokenizer = miniatures.build_model("llava")
        with pytest.raises(pretraining.PretrainingError, match=r"lesson \d ended at .* 0\.\d+ where 1.05 .* --seed 8"):
            language.train_text(model, "llava", tokenizer, lessons=lessons, seed=7, rates=rates, path=path)
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    alone = weights(2e-3)
    assert not torch.equal(alone, weights(3e-3)) and "begins again" not in caplog.text
    for _ in range(2):  # the second time it goes on from its place, at the rate at which it stood
        assert torch.equal(weights(3e-3, 2e-3, path=tmp_path / "text.place"), alone)
        assert caplog.text.count("at a rate of 0.003, lesson") == 1
    model, _, tokenizer = miniatures.build_model("llava")
    assert 0 <= language.train_text(model, "llava", tokenizer, lessons=((0, 0.0, 1), (1, 0.1, 1))) <= 1


def test_another_seed_is_another_model_with_stages_of_its_own():
    first, again, other = (
        miniatures.build_model("llava", seed)[0].state_dict()["lm_head.weight"] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    names = [*miniatures.FOLDERS.values(), "idefics2-mini", "drawer-mini"]
    folders = {work_folder(name, seed) for name in names for seed in (0, 1, 2)}
    assert len(folders) == 12 and work_folder("llava-mini").name == "llava-mini"
    assert work_folder("idefics2-mini", 2).name == "idefics2-mini-seed2"


def test_one_process_at_a_time_makes_what_two_workflows_ask_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    rung, rungs = pretrain_script.RUNGS[0], ["--folder", "rungs"]
    for script, words, place in (
        (pretrain_script, ["drawer-mini"], work_folder("drawer-mini")),
        (pretrain_script, [rung, *rungs], work_folder(rung)),
        (pretrain_script, ["ladder", *rungs], work_folder(rung)),
        (align, ["smollm2", "drawings"], Path("smollm2")),
    ):
        with alone(place):
            assert script.main(words) == 1
        assert f"error: {place}: another process is making these weights; wait for it" in capsys.readouterr().err
        with alone(place):  # it ends with who held it
            pass


def test_the_recipe_makes_a_backbone_that_loads_and_goes_on_where_it_stopped(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(abilities, "unseen_pictures", lambda: pool)  # and one conversation of each kind on few of them
    for module in (pretraining, language):
        monkeypatch.setattr(module, "measure_abilities", lambda *model, count=0: measure_abilities(*model, count=1))
    recipe = {
        "pool": {"items": 60, "quarters": 4, "groups": 16, "people": 6},
        "vision": {"steps": 2, "batch": 4, "lr": 1e-3},
        "lessons": ((0, 0.0, 2), (4, 0.0, 1)),
        "joint": {
            "phases": [
                {"steps": 2, "lr": 1e-3, "shares": [1, 1, 1, 1], "recognition": {"level": 1}},
                {
                    "steps": 3,
                    "lr": 1e-3,
                    "shares": [1, 1],
                    "recognition": {"level": 1},
                    "prefix": {"steps": 2, "goal": 0.0},
                },
            ]
        },
    }
    work = tmp_path / "work"
    folder = pretraining.pretrain("llava-mini", folder=tmp_path / "first", work=work, recipe=recipe)
    assert load_backbone(folder).hidden_size == miniatures.HIDDEN
    stages = {path: path.stat().st_mtime_ns for path in work.iterdir()}
    again = pretraining.pretrain("llava-mini", folder=tmp_path / "second", work=work, recipe=recipe)
    assert {path: path.stat().st_mtime_ns for path in work.iterdir()} == stages
    first, second = ((f / "model.safetensors").read_bytes() for f in (folder, again))
    assert first == second


class Killed(RuntimeError):
    """Stands for the end of a process."""


def test_a_stage_goes_on_from_the_step_it_had_reached(pool, tmp_path, monkeypatch):
    phases = [
        {"steps": 2, "lr": 1e-3, "shares": [1, 1], "recognition": {"level": 1}},
        {"steps": 3, "lr": 1e-3, "shares": [1, 1], "recognition": {"level": 1}, "prefix": {"steps": 2, "goal": 0.0}},
    ]
    features = vision.pool_features(*miniatures.build_model("llava")[:2], pool)

    def whole(folder, dies: dict[str, int]) -> list[torch.Tensor]:
        """The weights after all three stages, each killed after so many writings of its place and begun again."""
        model, image_processor, tokenizer = miniatures.build_model("llava")
        stages = {
            "text": lambda path: language.train_text(
                model, "llava", tokenizer, lessons=((0, 0.0, 2), (1, 0.0, 2)), path=path
            ),
            "vision": lambda path: vision.train_vision(
                model, image_processor, tokenizer, pool, steps=3, lr=1e-3, batch=4, path=path
            ),
            "joint": lambda path: language.train_joint(
                model, "llava", image_processor, tokenizer, pool, features, phases=phases, batch=4, path=path
            ),
        }  # fmt: skip
        keep = Place.keep
        for name, train in stages.items():
            if name in dies:
                left = [dies[name]]

                def once(self, left=left, **at):
                    keep(self, **at)
                    left[0] -= 1
                    if not left[0]:
                        raise Killed

                monkeypatch.setattr(Place, "keep", once)
                before = [p.detach().clone() for p in model.parameters()]
                with pytest.raises(Killed):
                    train(folder / name)
                monkeypatch.setattr(Place, "keep", keep)
                for p, old in zip(model.parameters(), before, strict=True):  # a new process begins with these
                    p.data.copy_(old)
            train(folder / name if dies else None)
        return [p.detach().clone() for p in model.parameters()]

    monkeypatch.setattr(Place, "EVERY", 1)
    monkeypatch.setattr(language, "measure_abilities", lambda *_, **__: {})
    for name in ("early", "late"):
        (tmp_path / name).mkdir()
    expected = whole(tmp_path / "never", {})
    for name, dies in (("early", {"text": 1, "vision": 1, "joint": 1}), ("late", {"text": 3, "vision": 2, "joint": 4})):
        found = whole(tmp_path / name, dies)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), name


@pytest.mark.parametrize("damage", [lambda content: content[:-3], lambda content: content[:-1] + b"\x7f"])
def test_a_damaged_place_is_named_and_its_stage_begins_again(tmp_path, caplog, damage):
    def place() -> Place:
        model = torch.nn.Linear(1, 1)
        return Place(tmp_path / "joint.place", np.random.default_rng(0), model, torch.optim.AdamW(model.parameters()))

    place().keep(step=100)
    assert place().at["step"] == 100
    path = tmp_path / "joint.place"
    path.write_bytes(damage(path.read_bytes()))
    assert place().at == {} and "joint.place: damaged" in caplog.text


@pytest.mark.parametrize("where", ["weight", "moment"])
def test_a_weight_that_turned_nan_does_not_replace_a_good_place(tmp_path, where):
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    place = Place(tmp_path / "joint.place", np.random.default_rng(0), model, optimizer)
    place.keep(step=100)
    before = (tmp_path / "joint.place").read_bytes()
    spoilt = model.weight if where == "weight" else optimizer.state[model.weight]["exp_avg"]
    with torch.no_grad():
        spoilt.fill_(float("nan"))
    with pytest.raises(PretrainingError, match="joint.place is left as it was: NaN or infinite values in "):
        place.keep(step=200)
    assert (tmp_path / "joint.place").read_bytes() == before
    if where == "weight":
        with pytest.raises(PretrainingError, match="text.safetensors is not written: NaN or infinite values in weight"):
            finished("text", tmp_path, model, lambda path: None)
        assert not (tmp_path / "text.safetensors").exists()


def test_drawings_are_made_once(tmp_path, monkeypatch):
    wanted = {"items": 4, "quarters": 1, "groups": 3, "people": 2, "seed": 5, "avoid": ()}
    drawn = drawings.draw_pool(**wanted, folder=tmp_path)
    (kept,) = tmp_path.glob("*.npy")
    monkeypatch.setattr(drawings, "_draw", None)
    again = drawings.draw_pool(**wanted, folder=tmp_path)
    assert np.array_equal(drawn.pixels, again.pixels) and list(tmp_path.glob("*.npy")) == [kept]
    monkeypatch.undo()
    assert np.array_equal(drawn.pixels, drawings.draw_pool(**wanted).pixels)


def test_conversations_with_and_without_a_prefix_are_read_in_one_pass_as_in_two(pool):
    backbone = load_backbone("llava-mini")
    model, encoder, rng = backbone.model, Encoder("llava", backbone.tokenizer), np.random.default_rng(5)
    features = vision.pool_features(model, backbone.processor.image_processor, pool).float()
    drawn = Conversations(pool, rng)
    plain = [drawn.captions(2), drawn.preferences(2, 3)]
    asked = [drawn.introduced(2)[1] for _ in range(3)]
    prefix = torch.randn(3, 13, model.config.text_config.hidden_size)
    parts = reading.learned_in_one_pass(model, encoder, plain, asked, features, prefix)
    separate = (reading.learned_tokens(model, encoder, plain, features),
                reading.learned_tokens(model, encoder, asked, features, prefix))  # fmt: skip
    for (logits, ids), (expected, wanted) in zip(parts, separate, strict=True):  # rows may come in another order
        of = {tuple(row[:3].tolist()): (row, k) for row, k in zip(expected, wanted.tolist(), strict=True)}
        for row, k in zip(logits, ids.tolist(), strict=True):
            near = min(of, key=lambda key, row=row: sum(abs(a - b) for a, b in zip(key, row[:3].tolist(), strict=True)))
            torch.testing.assert_close(row, of[near][0], rtol=1e-3, atol=1e-3)
            assert k == of[near][1]
