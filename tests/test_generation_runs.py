"""Runs that draw: what is asked, what is noted of pictures, guidance by a rater, an edition from raters to tables."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from small_choices import backbone, benchmark, lay_out, method
from small_generation import METHODS, asked_of, branch, content, drawer_folder, generation, small_edition
from tiny_drawers import tiny_drawer

from prefmoe.analysis import drawings, generation_tables
from prefmoe.analysis.answers import TableError
from prefmoe.config import Edition, load_edition, run_folder
from prefmoe.data.choice_drawing import ATTRIBUTES
from prefmoe.data.choice_tastes import favourites
from prefmoe.generation import judging
from prefmoe.generation.drawer import DrawerError
from prefmoe.generation.drawing import check_prompts, noise_seeds, requests
from prefmoe.generation.judging import judged, picture_inputs
from prefmoe.generation.measures import noted, random_features
from prefmoe.generation.pictures import as_bytes, small_pictures
from prefmoe.generation.plain import Plain
from prefmoe.generation.reader import READER, load_reader
from prefmoe.generation.rewards import NEXT, Rewarded
from prefmoe.generation.runs import DrawingWorkbench, folder_digest, trained_branch
from prefmoe.generation.sampling import sample
from prefmoe.models.base import MethodError
from prefmoe.running.choices import Session, told
from prefmoe.running.runs import RunError
from prefmoe.system.run_files import read_story

USERS = benchmark().trained_users
EDITION = Edition.model_validate(content())


def plain(**changes) -> Plain:
    settings = EDITION.methods["Nobody"].model_copy(update=changes)
    return Plain(settings, backbone(), benchmark(), drawer=tiny_drawer(), generation=EDITION.generation, seed=0)


def rewarded(name: str, **changes) -> Rewarded:
    settings = EDITION.methods[name].model_copy(update=changes)
    one = Rewarded(settings, backbone(), benchmark(), drawer=tiny_drawer(), generation=EDITION.generation, seed=0)
    one.judge(method("Ranked").eval())
    return one


def some_pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


# --- what is asked


def test_all_methods_are_asked_for_the_same_pictures_and_some_for_more():
    asked = {name: requests(EDITION, name, benchmark()) for name in METHODS if EDITION.methods[name].generates}
    usual = {name: one[one["n_ref"].isin((3, 0)) & one["scale"].isin((2.0, 0.0))] for name, one in asked.items()}
    usual["All"] = usual["All"][usual["All"]["scale"] == 2.0]
    first = asked["Nobody"][drawings.ASKED]
    assert len(first) == 2 * 3 * 2 * 2
    for one in usual.values():
        pd.testing.assert_frame_equal(one[drawings.ASKED].reset_index(drop=True), first)
    assert set(map(tuple, asked["All"][["n_ref", "scale"]].to_numpy())) == {(3, 2.0), (1, 2.0), (3, 0.0)}
    assert set(asked["Nobody"]["n_ref"]) == {0} and set(asked["Words"]["n_ref"]) == {3}
    assert set(asked["Wrong"]["scale"]) == {2.0} and set(asked["Like"]["scale"]) == {0.0}
    assert set(first.loc[first["split"] == "unseen", "user"]).isdisjoint(USERS)


def test_noise_is_the_same_for_every_method_and_another_for_every_user_prompt_and_number():
    """Four noises stood for all users: all four pictures without a user were of their prompt, of hundreds .87 are."""
    nobody, one = (requests(EDITION, name, benchmark()) for name in ("Nobody", "All"))
    one = one[(one["n_ref"] == 3) & (one["scale"] == 2.0)]
    seeds, paired = (noise_seeds(asked, EDITION.generation.prompts, benchmark().users) for asked in (nobody, one))
    assert seeds == paired and len(set(seeds)) == len(nobody)
    some = nobody.sample(frac=0.5, random_state=0)
    assert noise_seeds(some, EDITION.generation.prompts, benchmark().users) == [seeds[row] for row in some.index]


def test_prompts_that_cannot_be_drawn_are_refused_before_anything_is():
    strange = Edition.model_validate(content(generation=generation(prompts=["two zebras"])))
    with pytest.raises(ValueError, match="prompt 'two zebras': expected a number and an item"):
        check_prompts(strange, benchmark())
    one = plain()
    with pytest.raises(DrawerError, match="does not know zebras"):
        one.drawer.encode_prompts(["two zebras"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"generation": generation(user_scale=-1.0)}, "generation.user_scale"),
        ({"generation": generation(reward="Nobdy")}, "generation.reward names methods that are not defined: Nobdy"),
        ({"generation": None}, "methods that draw need the section generation"),
        (
            {"methods": METHODS | {"All": {**METHODS["All"], "begins_with": "Questions"}}},
            "expected probes, which choose",
        ),
        (
            {"methods": METHODS | {"Wrong": {**METHODS["Wrong"], "begins_with": "Nobody"}}},
            "expected trained user tokens",
        ),
        ({"methods": METHODS | {"Probes": {**METHODS["Probes"], "begins_with": "Nobody"}}}, "expected a rater"),
        ({"methods": METHODS | {"Image": {**METHODS["Image"], "alignment": "mmd"}}}, "only e_sem is aligned"),
        ({"generation": generation(reward="All")}, "generation.reward: 'All': expected a rater"),
        ({"generation": generation(reward="Questions")}, "Like.begins_with: 'Questions' judges"),
        ({"generation": generation(users=1)}, "generation.users: methods.Wrong draws for another user"),
        ({"methods": METHODS | {"Drawings": {**METHODS["Drawings"], "told": "history"}}}, "drawings are of random"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        Edition.model_validate(content(**changes))


def test_methods_run_after_all_that_they_need():
    order = [name for _, name in EDITION.runs()]
    for name in order:
        assert all(order.index(before) < order.index(name) for before in EDITION.needs(name))
    assert EDITION.needs("All") == ("Probes", "Reward") and EDITION.needs("Questions") == ()


# --- plain drawing


def test_favourites_are_told_in_words_and_drawn_without_a_drawer():
    asked = asked_of(USERS[:2])
    prompts = plain(told="favourites").prompts(asked)
    for prompt, user in zip(prompts, asked["user"], strict=True):
        assert set(prompt.split(", ")[1:]) == set(favourites(benchmark().utilities.loc[user]).values())
    assert plain().prompts(asked) == list(asked["prompt"])
    some = plain(kind="drawings", told="favourites").draw(asked)
    assert some.shape == (4, 3, 32, 32) and 0 <= some.min() < some.max() <= 1
    assert torch.equal(some, plain(kind="drawings", told="favourites").draw(asked)) and not torch.equal(
        some[0], some[2]
    )


def test_words_of_a_history_are_told_behind_the_prompt():
    asked = asked_of(USERS[:3])
    known = [value for name, values in ATTRIBUTES.items() if name not in ("number", "item") for value in values]
    for prompt, plain_prompt in zip(plain(told="history").prompts(asked), asked["prompt"], strict=True):
        content_, *said = prompt.split(", ")
        assert content_ == plain_prompt and 0 < len(said) <= 3 and set(said) <= set(known)


# --- what is noted


def test_pictures_that_are_tensors_are_seen_as_the_files_would_be(tmp_path):
    """Values of whole steps of 1/255, so that a file holds them."""
    one, pictures = backbone(), (some_pictures(2) * 255).round() / 255
    for k, picture in enumerate(as_bytes(pictures)):
        Image.fromarray(picture).save(tmp_path / f"{k}.png")
    seen = picture_inputs(one, pictures)
    for k in range(2):
        expected = one.process_pictures([tmp_path / f"{k}.png"]).inputs
        assert seen["pixel_values"][k].shape == expected["pixel_values"][0].shape
        assert (seen["pixel_values"][k] - expected["pixel_values"][0]).abs().max() < 0.02
    assert torch.equal(small_pictures([tmp_path / "1.png"], 32)[0], pictures[1])


@torch.no_grad()
def test_a_rater_judges_tensors_as_it_rates_the_files(tmp_path):
    one, pictures = method("Ranked").eval(), (some_pictures(4) * 255).round() / 255
    asked = asked_of([USERS[1], USERS[0]])
    for k, picture in enumerate(as_bytes(pictures)):
        Image.fromarray(picture).save(tmp_path / f"{k}.png")
    found = judged(one, asked, pictures, n_ref=3, draw=1)
    for k, (user, prompt) in enumerate(zip(asked["user"], asked["prompt"], strict=True)):
        alone = Session(told(benchmark(), user, 3, 1, ()), ((tmp_path / f"{k}.png", prompt),))
        torch.testing.assert_close(found[k], one.rate(one.collator([alone]))[0, 0], rtol=0.02, atol=0.02)


def test_gradients_reach_every_picture_and_no_other():
    one, pictures = method("Ranked").eval(), some_pictures(4).requires_grad_()
    said = judged(one, asked_of(USERS[:2]), pictures, n_ref=3, draw=0)
    (gradient,) = torch.autograd.grad(said[2, 0], pictures)
    assert gradient[2].abs().sum() > 0 and gradient[[0, 1, 3]].abs().sum() == 0


def test_equal_pictures_are_looked_at_once_and_judged_as_if_each_were_alone(monkeypatch):
    one, asked = method("Ranked").eval(), asked_of(USERS[:3])
    pictures = some_pictures(2)[[0, 1, 1, 0, 1, 0]]
    alone = [judged(one, asked.iloc[[k]], pictures[[k]], n_ref=3, draw=0)[0] for k in range(len(asked))]
    looked, look = [], judging.picture_features
    monkeypatch.setattr(judging, "picture_features", lambda *of: looked.append(look(*of)) or looked[-1])
    found = judged(one, asked, pictures, n_ref=3, draw=0)
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-4, atol=1e-4)
    assert [len(some) for some in looked] == [2]


def test_nan_pictures_are_refused_and_named():
    asked, pictures = asked_of(USERS[:1]), some_pictures(2)
    pictures[1, 0, 0, 0] = float("nan")
    options = {"reader": load_reader(drawer_folder() / READER.name), "rater": method("Ranked"), "n_ref": 3}
    with pytest.raises(DrawerError, match=f"picture 1 .test, {USERS[0]}, one crown.* is not finite"):
        noted(asked, pictures, **options)
    with pytest.raises(DrawerError, match="noise"):
        sample(tiny_drawer(), ["two cats"], noise=torch.full((1, 3, 32, 32), float("nan")), steps=1)


def test_what_is_noted_has_probabilities_reward_features_and_the_picture():
    asked, pictures = asked_of(USERS[:2]), some_pictures(4)
    rater, reader = method("Ranked"), load_reader(drawer_folder() / READER.name)
    frame = noted(asked, pictures, reader=reader, rater=rater, n_ref=3)
    for name, values in ATTRIBUTES.items():
        np.testing.assert_allclose(frame[[f"p_{value}" for value in values]].sum(axis=1), 1, atol=1e-5)
        assert list(drawings.shown(frame)[name]) == list(reader.read(pictures)[name])
    assert np.array_equal(drawings.pixels(frame), as_bytes(pictures))
    plus, minus = judged(rater, asked, pictures, n_ref=3, draw=1).detach().unbind(-1)
    np.testing.assert_allclose(frame["reward"], 1 / (1 + np.exp((minus - plus).numpy())), atol=1e-5)


def test_features_are_of_no_training_and_tell_pictures_apart():
    pictures = some_pictures(3)
    torch.manual_seed(77)
    found = random_features(pictures)
    assert torch.equal(found, random_features(pictures)) and found.shape == (3, 96)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_words_are_those_of_the_true_attributes_or_of_what_a_reader_sees_and_three_are_what_is_measured(monkeypatch):
    asked = asked_of(USERS, n_ref=3)
    true, read, three, every = (plain(told=how) for how in ("history", "read", "three", "favourites"))
    read.see_with(load_reader())
    pairs = list(zip(true.told(asked), read.told(asked), strict=True))
    assert np.mean([one == other for one, other in pairs]) > 0.7, "the shipped reader is right about nearly everything"
    monkeypatch.setattr(Plain, "_read", lambda self, asked: benchmark().attributes)
    assert read.prompts(asked) == true.prompts(asked)
    for few, whole in zip(three.told(asked), every.told(asked), strict=True):
        assert len(few) == 3 and list(few.items()) == list(whole.items())[:3]


# --- guidance by a rater


@pytest.mark.parametrize("name, by, side", [("Like", "like", 0), ("Like", "dislike", 1), ("Like", "displease", 1)])
def test_the_best_of_several_is_never_worse_than_the_first(name, by, side):
    asked = asked_of(USERS[:3], scale=0.0)
    first, best = (rewarded(name, by=by, candidates=n) for n in (1, 3))
    said = [one.said(asked, one.draw(asked)).detach() for one in (first, best)]
    assert (said[1] >= said[0] - 1e-5).all() and (said[1] > said[0] + 1e-6).any()
    logits = judged(best._rater[0], asked, best.draw(asked), n_ref=3, draw=0)[:, side].detach()
    torch.testing.assert_close(said[1], -logits if by == "dislike" else logits)
    torch.testing.assert_close(first.draw(asked), plain().draw(asked), rtol=0, atol=1e-5)


def test_the_best_is_chosen_among_the_noises_of_the_users_behind_in_any_batch():
    """They were drawn batch by batch: another size of the batch gave other pictures."""
    asked, best = asked_of(USERS[:4], scale=0.0), rewarded("Like", candidates=3)
    together, nobody = best.draw(asked), plain().draw(asked)
    best.generation = best.generation.model_copy(update={"batch_size": 4})
    torch.testing.assert_close(best.draw(asked), together, rtol=0, atol=1e-5)
    for row, picture in enumerate(together):
        alike = [k for k in range(len(nobody)) if (nobody[k] - picture).abs().max() < 1e-5]
        assert {(k - row) // 2 % 4 for k in alike} <= {0, 1, 2} and all(k % 2 == row % 2 for k in alike) and alike


def test_with_more_candidates_than_users_new_noises_are_tried():
    asked, best = asked_of(USERS[:2], scale=0.0), rewarded("Like", candidates=5)
    seeds = np.array(noise_seeds(asked, best.generation.prompts, best.benchmark.users))
    tried = best._candidates(asked, seeds)
    assert tried.shape == (5, 4) and all(len(set(column)) == 5 for column in tried.T)
    assert (tried[0] == seeds).all() and (tried >= NEXT).sum() == 3 * 4


def test_noise_follows_the_gradient_uphill():
    """With as few steps in the end as the gradient went through; the step is small, for a random drawer."""
    asked = asked_of(USERS[:3], scale=0.0)
    still, led = (rewarded("Gradient", candidates=n, step_size=0.3, stay=0.0) for n in (1, 6))
    still.config = still.config.model_copy(update={"step_size": 1e-6})
    gain = led.said(asked, led.draw(asked)) - still.said(asked, still.draw(asked))
    assert (gain.detach() > 0).all()


# --- an edition


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The small edition, run as a whole."""
    place = tmp_path_factory.mktemp("clone")
    lay_out(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        edition = small_edition()
        workbench = DrawingWorkbench(edition, "tiny", results=place / "results", benchmark=benchmark())
        for _, name in edition.runs():
            workbench.run_method(name, 0)
        tables = generation_tables.build(edition, benchmark(), results=place / "results")
        yield place, workbench, tables


def test_a_prompt_with_unknown_words_is_refused_before_anything_is_trained(made, monkeypatch):
    place, _, _ = made
    monkeypatch.chdir(place)
    strange = small_edition(generation=generation(prompts=["two zebras"]))
    untold = replace(benchmark(), attributes=None)  # whose prompts may be anything, but for the drawer's words
    for one, message in ((benchmark(), "prompt 'two zebras': expected a number and an item"),
                         (untold, "does not know zebras")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            DrawingWorkbench(strange, "tiny", results=place / "strange", benchmark=one).run_method("All", 0)
    assert not list((place / "strange").rglob("*.partial"))


def folder_of(made, name: str):
    return run_folder(made[0] / "results", "small-choices", "tiny", name, 0)


def test_an_edition_runs_from_raters_to_tables(made):
    _, _, tables = made
    table1 = pd.read_csv(tables["table1"])
    assert list(table1.columns) == [*drawings.TABLE1_COLUMNS, "information"] and table1["information"].notna().all()
    drawing = [one["label"] for name, one in METHODS.items() if EDITION.methods[name].generates]
    assert list(table1["condition"].unique()) == drawing
    distance = table1[table1["measure"] == "distance"]
    labels = {name: EDITION.methods[name].label for name in METHODS}
    assert set(distance["condition"]) == set(drawing) - {labels["Drawings"]}
    assert len(distance) == 3 * (len(drawing) - 1)
    probes = pd.read_csv(tables["probes"])
    assert {"layer", "task", "value", "low", "high", "n"} <= set(probes.columns) and set(probes["task"]) == {
        "inter",
        "intra",
    }
    lengths, scales = (pd.read_csv(tables[name]) for name in ("lengths", "scales"))
    assert set(lengths["n_ref"]) == {1, 3} and set(scales["scale"]) == {0.0, 2.0}
    assert set(lengths["condition"]) == set(scales["condition"]) == {"All"}
    comparisons = pd.read_csv(tables["comparisons"])
    assert not comparisons.duplicated(["condition", "baseline", "users", "measure"]).any()
    paired = set(zip(comparisons["condition"], comparisons["baseline"], strict=True))
    assert {(labels["All"], one) for one in drawing if one != labels["All"]} <= paired
    told = set(drawing) - {labels[name] for name in ("All", "Nobody", "Drawings", "Favourites")}
    assert {one for one, other in paired if other == labels["Nobody"]} == told | {labels["All"]}
    assert (labels["Gradient"], labels["Like"]) in paired
    assert set(pd.read_csv(tables["raters"])["method"]) == {"Reward", "Questions"}


def test_runs_are_not_repeated_and_states_are_kept(made, monkeypatch):
    place, workbench, _ = made
    kept = sorted((place / "results/small-choices/states").glob("*.safetensors"))
    assert len(kept) == 3  # of training histories, of those drawn for, with and without a shorter one
    monkeypatch.setattr("prefmoe.generation.runs.user_states", None)
    monkeypatch.setattr(DrawingWorkbench, "_draw", None)
    for _, name in workbench.edition.runs():
        workbench.run_method(name, 0)


def test_runs_depend_on_what_they_are_made_of(made):
    _, workbench, _ = made
    asked = workbench.asked("All")
    before = workbench.inputs(workbench.edition.methods["All"], 0, asked)
    assert {"generation", "reward", "drawer", "begins_with"} <= set(before)
    assert "drawer" not in workbench.inputs(workbench.edition.methods["Questions"], 0, workbench.asked("Questions"))
    story = read_story(folder_of(made, "Wrong"))
    assert story["inputs"]["begins_with"] == read_story(folder_of(made, "All"))["inputs_digest"]
    assert read_story(folder_of(made, "All"))["pictures"] == 3 * 2 * 3 * 2 * 2


def test_every_file_of_a_drawer_that_is_loaded_has_a_part_in_its_digest_and_its_card_has_none(tmp_path):
    folder = shutil.copytree(drawer_folder(), tmp_path / "drawer")
    for name in ("miniature.json", "tokenizer/merges.txt", "tokenizer/spiece.model", "tokenizer/chat_template.jinja"):
        (folder / name).write_text("{}")
    before = folder_digest(folder)
    (folder / "README.md").write_text("what it is")
    loaded = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("miniature.json", "README.md")]
    parts = {"drawer", "unet", "text_encoder", "tokenizer", "scheduler", "reader"}
    assert {path.parent.name for path in loaded} == parts
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert (folder_digest(folder) != before) == (path in loaded), path
        path.write_bytes(content)
    (folder / "tokenizer/vocab.txt").touch()
    assert folder_digest(folder) != before


def test_a_trained_branch_draws_what_its_run_drew(made):
    place, workbench, _ = made
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(DrawingWorkbench, "benchmark", benchmark())
        method_, _ = trained_branch(workbench.edition, "tiny", "All", 0, results=place / "results")
        asked = requests(workbench.edition, "All", benchmark())
        histories = method_.histories(asked)
        method_.tell(histories, workbench.known("Questions", 0, histories))
        frame = pd.read_parquet(folder_of(made, "All") / "predictions.parquet")
        assert np.abs(as_bytes(method_.draw(asked)).astype(int) - drawings.pixels(frame).astype(int)).max() <= 1


def test_missing_runs_are_named_by_the_tables(made, tmp_path):
    _, workbench, _ = made
    with pytest.raises(TableError, match=r"10 run\(s\) of edition 'small-choices' are missing"):
        generation_tables.build(workbench.edition, benchmark(), results=tmp_path)


def test_a_checkpoint_of_other_parts_is_refused(made, tmp_path):
    shutil.copytree(folder_of(made, "All") / "method", tmp_path / "method")
    with pytest.raises(MethodError, match="tensors missing or unknown|shape"):
        branch(parts=["sem"]).load(tmp_path / "method" / "method.safetensors")


def test_an_edition_that_draws_nothing_has_no_such_workbench():
    with pytest.raises(RunError, match="'preference-smoke' draws nothing"):
        DrawingWorkbench(load_edition("preference-smoke"), "idefics2-mini")


def test_the_smoke_edition_has_every_kind_of_method_of_the_mini_edition():
    kinds = []
    for name in ("generation-smoke", "generation-mini"):
        methods = load_edition(name).methods.values()
        kinds.append({(one.kind, getattr(one, "told", ""), getattr(one, "how", "")) for one in methods})
    of_plain_drawing = {("drawings", "favourites", ""), ("drawer", "three", ""), ("drawer", "read", "")}
    assert kinds[1] - kinds[0] == of_plain_drawing, "minutes of CI that tests of what is told save"
