"""The explorer in a real browser: its numbers are Python's, mouse, touch and keys will do, and it asks nobody else."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import explorer_page
import numpy as np
import pytest
from explorer_browser import Visit, chromium, served

from prefmoe import metrics
from prefmoe.analysis import pairs, statistics
from prefmoe.course import answers
from prefmoe.data.benchmark import FACETS
from prefmoe.figures.style import METHODS

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / explorer_page.ASSETS
GRID = json.loads((ASSETS / "grid.json").read_text(encoding="utf-8"))
PEOPLE = json.loads((ASSETS / "people.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def made(browser, tmp_path_factory) -> tuple[Path, list[str]]:
    """The page's folder, and what is missing in it."""
    folder = tmp_path_factory.mktemp("explorer") / "page"
    return folder, explorer_page.build(folder)


@pytest.fixture(scope="module")
def address(made) -> Iterator[str]:
    with served(made[0]) as found:
        yield f"{found}index.html"


@pytest.fixture
def visit(browser, address) -> Iterator:
    """visit(part of the address after #, ...): opens the page; it must not have run into an error."""
    opened: list[Visit] = []

    def go(chosen: str = "", **options) -> Visit:
        opened.append(Visit(browser, f"{address}#{chosen}", **options))
        return opened[-1]

    yield go
    for one in opened:
        one.page.close()
    assert [error for one in opened for error in one.errors] == []


@pytest.fixture(scope="module")
def with_plots(made) -> None:
    if any("plots" in sentence for sentence in made[1]):
        pytest.skip(" ".join(made[1]))


@pytest.fixture(scope="module")
def with_model(made) -> None:
    if made[1]:
        pytest.skip(" ".join(made[1]))


@pytest.fixture(scope="module")
def lively(browser, address, with_model) -> Iterator[Visit]:
    """A page that has been scrolled through, with the model loaded; ``first_view``: what it asked for before that."""
    one = Visit(browser, address)
    one.page.wait_for_load_state("networkidle")
    one.first_view = list(one.requests)
    for part in ("threshold", "maps", "resample"):
        one.near(part)
        one.page.wait_for_selector(f"#{part} .chart svg")
    one.load_model()
    one.page.evaluate("async () => { window.model = await explorer.model.load(); }")
    yield one
    assert one.errors == []


@pytest.fixture
def asking(lively):
    """For questions to the functions of a page with the model."""
    return lively.page


# The numbers are Python's


ASK = """async (asked) => {
    const found = [];
    for (const { method, user, item, question } of asked) {
        const { tables } = model;
        const answer = await explorer.model.answer(model, {
            method, item, question, user: method === "PrefMoE" ? explorer.users.known(tables, user) : null });
        found.push(answer.yes);
    }
    return found;
}"""


def test_the_browser_gives_the_probabilities_that_pytorch_gave(asking):
    """The test questions whose pictures are shown, of three methods: 180 answers of finished runs."""
    asked, expected = [], []
    for label, method in {"PrefMoE": "PrefMoE", "LoRA": "LoRA", "Non-tuned without profile": "none"}.items():
        frame = answers.scored(label).sort_values("index")
        yes_no = frame[(frame["category"] == "preference") & (frame["l2-category"] != "inconsistency")]
        first = yes_no.drop_duplicates("item").set_index("item")
        for place, item in enumerate(GRID["items"]):
            row = first.loc[item]
            user = GRID["users"].index(row["name"])
            question = row["question"].replace("<sks>", row["name"])
            asked.append({"method": method, "user": user, "item": place, "question": question})
            expected.append(row["p_yes"])
    assert len(asked) == 180
    found = asking.evaluate(ASK, asked)
    assert np.abs(np.array(found) - expected).max() < 1e-4


MAKE = """async (people) => {
    const { tables } = model;
    const found = [];
    for (const { item, question, gates, ...told } of people) {
        const user = explorer.users.made(tables, told);
        const answer = await explorer.model.answer(model, { method: "PrefMoE", user, item, question, gates });
        found.push({ yes: answer.yes, gates: answer.gates, prefix: [...explorer.users.prefix(tables, user)] });
    }
    return found;
}"""


def somebody_new(rng) -> dict:
    """Chips at random: from none to three likes and dislikes in every facet."""
    told = {}
    for facet, items in PEOPLE["facets"].items():
        drawn = rng.permutation(items)
        likes, dislikes = int(rng.integers(0, 4)), int(rng.integers(0, 4))
        told[facet] = [sorted(drawn[:likes].tolist()), sorted(drawn[likes : likes + dislikes].tolist())]
    face = int(rng.integers(40, 46))
    names = explorer_page.free_names(GRID["users"])
    return {
        "name": str(rng.choice(names)),
        "face": face,
        "description": PEOPLE["users"][face]["description"],
        "told": told,
    }


def part_of(tensors, prefix: str) -> dict:
    """Those whose names begin so, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def gates_by_hand(rng) -> dict:
    task, profile = rng.random(2)
    preference = rng.dirichlet(np.ones(5))
    return {"task": [task, 1 - task], "preference": preference.tolist(), "profile": [profile, 1 - profile]}


def test_users_made_of_chips_and_gates_set_by_hand_get_the_answers_of_the_modules_of_the_package(asking):
    """The same with PrefMoE's own modules: text anchors, user state, router, mixture of experts."""
    torch = pytest.importorskip("torch")
    import explorer_model
    from PIL import Image

    from prefmoe.data import prompts
    from prefmoe.data.benchmark import Preference
    from prefmoe.data.sizes import Ranks
    from prefmoe.models.free_users import UserTokens, prefix_of
    from prefmoe.models.moe_lora import HierarchicalRouter
    from prefmoe.models.routing import Routing

    rng = np.random.default_rng(3)
    people = [somebody_new(rng) | {"item": int(rng.integers(60))} for _ in range(8)]
    for one in people:
        one["question"] = f"Would {one['name']} like this?"
    people += [one | {"gates": gates_by_hand(rng)} for one in people[:4]]
    found = asking.evaluate(MAKE, people)

    adapters = explorer_model.read(ASSETS)
    tables, backbone, config = explorer_model.tables(adapters), adapters.backbone, adapters.prefmoe
    ranks = Ranks(config.preference_rank, config.user_rank, config.profile_rank)
    router = HierarchicalRouter(backbone.hidden_size, ranks, alpha=config.alpha)
    router.load_state_dict(part_of(adapters.routed, "router."))
    state, graphs = part_of(adapters.routed, "user_state."), explorer_model.modules(adapters)
    pixels = np.asarray(Image.open(ASSETS / "pixels.webp").convert("RGB"))

    class Somebody:
        def __init__(self, one: dict) -> None:
            self.name, self.description = one["name"], one["description"]
            self.preferences = {
                facet: Preference(likes=tuple(likes), dislikes=tuple(dislikes))
                for facet, (likes, dislikes) in one["told"].items()
                if likes or dislikes
            }

    with torch.no_grad():
        for one, answer in zip(people, found, strict=True):
            user = Somebody(one)
            texts = [user.name, prompts.description_text(user), *(prompts.facet_sentence(user, f) for f in FACETS)]
            anchors = backbone.text_anchors(texts, kind="embedding")
            picture = state["anchors"][one["face"], 1]
            profile = torch.stack([anchors[0], picture, anchors[1]])[None]
            known = torch.tensor([facet in user.preferences for facet in FACETS])
            residuals = ((anchors[2:] - state["center"]) * known[:, None])[None]
            prefix = prefix_of(profile, tables["prototypes"], residuals)
            np.testing.assert_allclose(answer["prefix"], prefix.flatten().numpy(), atol=1e-6)

            x, y = one["item"] % 10 * 64, one["item"] // 10 * 64
            cut = torch.tensor(pixels[y : y + 64, x : x + 64].transpose(2, 0, 1).copy())[None]
            image = graphs["see"](cut)
            words = torch.tensor([backbone.tokenizer(one["question"], add_special_tokens=False)["input_ids"]])
            query = torch.cat([backbone.embed_tokens(words), image], dim=1).mean(1)
            routing = Routing()
            router(
                routing, UserTokens(prefix, profile, None, tables["prototypes"], residuals), query, torch.tensor([-1])
            )
            if "gates" in one:
                gates = {name: torch.tensor([values]) for name, values in one["gates"].items()}
                routing.fill(ranks, **gates, context=routing.context, alpha=config.alpha)
            for name, values in answer["gates"].items():
                np.testing.assert_allclose(values, routing.gates[name][0].numpy(), atol=1e-5)
            scale = torch.cat([routing.scale, torch.zeros(1, adapters.lora.rank)], dim=1).float()
            special = backbone.tokenizer.convert_tokens_to_ids(["<s>", "USER:", "ASSISTANT:"])
            before, end = torch.tensor([special[:2]]), torch.tensor([special[2:]])
            logits = graphs["ask"](before, image, torch.cat([words, end], 1), prefix, scale, routing.context)[0]
            ids = explorer_model.wording(backbone)["answers"]
            yes, no = (logits[ids[word]].logsumexp(0) for word in ("yes", "no"))
            assert abs(answer["yes"] - float(torch.sigmoid(yes - no))) < 1e-4


def test_collapse_recall_and_auc_are_those_of_python_at_every_threshold(visit):
    page = visit().page
    thresholds = [0.05, 0.3, 0.5, 0.7, 0.95]
    found = page.evaluate(
        """async (thresholds) => {
            await explorer.load("data/answers.js");
            const asked = explorer.data.answers;
            return [...explorer.threshold.held()].map(([label, runs]) => ({
                label, auc: explorer.metrics.auc(asked, runs),
                points: thresholds.map((threshold) => explorer.metrics.plane(asked, runs, threshold)) }));
        }""",
        thresholds,
    )
    assert [one["label"] for one in found] == list(answers.methods())
    for one in found:
        frames = [answers.scored(one["label"], seed) for seed in answers.methods()[one["label"]]]
        assert one["auc"] == pytest.approx(pairs.duels(frames)["auc_same"].values.mean(), abs=1e-9)
        for threshold, point in zip(thresholds, one["points"], strict=True):
            said = []
            for frame in frames:
                likes = pairs.held_probability(frame).astype("<f4") >= threshold
                literal = np.where(likes ^ metrics.inverted(frame), "yes", "no")
                yes_no = frame["l2-category"] != "inconsistency"
                said.append(metrics.score(frame.assign(prediction=np.where(yes_no, literal, frame["prediction"]))))
            expected = metrics.estimates(*metrics.user_counts(said)[1:], resamples=2)
            for name in ("collapse", "recall", "sensitivity"):
                assert point[name] == pytest.approx(expected[name]["value"], abs=1e-9), (one["label"], threshold, name)


def test_resampled_measures_are_those_of_python_for_the_same_draws(visit):
    counts = statistics.resample_counts(40, resamples=7, seed=5)
    found = visit().page.evaluate(
        """async (draws) => {
            await explorer.load("data/answers.js");
            const runs = explorer.threshold.held().get("PrefMoE");
            return ["auc_same", "recall", "collapse"].map((measure) =>
                draws.map(explorer.resample.estimator(explorer.data.answers, runs, measure)));
        }""",
        counts.tolist(),
    )
    frames = [answers.scored("PrefMoE", seed) for seed in answers.methods()["PrefMoE"]]
    won, fought = pairs.duels(frames)["auc_same"].by_user
    expected = [[np.mean([c @ won[..., s] @ c / (c @ fought @ c) for s in range(won.shape[2])]) for c in counts]]
    _, numerator, denominator = metrics.user_counts([f.assign(prediction=f["pred"]) for f in frames])
    shares = statistics.ratio(np.tensordot(counts, numerator, 1), np.tensordot(counts, denominator, 1)).mean(1)
    expected += [shares[:, metrics.METRICS.index(name)].tolist() for name in ("recall", "collapse")]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_draws_follow_from_the_seed_and_percentiles_are_numpys(visit):
    values = np.random.default_rng(1).normal(size=57).tolist()
    found = visit().page.evaluate(
        """(values) => {
            const { draw, generator } = explorer.statistics;
            const draws = [1, 1, 2].map((seed) => [...draw(40, generator(seed))]);
            return { draws, interval: explorer.statistics.interval(values) };
        }""",
        values,
    )
    assert found["draws"][0] == found["draws"][1] != found["draws"][2]
    assert all(sum(draw) == 40 for draw in found["draws"])
    np.testing.assert_allclose(found["interval"], np.percentile(values, [2.5, 97.5]), rtol=1e-12)


# What a visitor does


def test_a_click_on_a_picture_a_user_and_a_method_changes_what_is_shown_and_the_address(visit):
    one = visit()
    page = one.page
    page.click("#pick-picture label:has(input[value=pizza])")
    page.click("#pick-user button:has-text('Zoe')")
    page.click("#answers label:has-text('Non-tuned with profile')")
    assert "pizza" in page.inner_text("#shown-facts") and "Zoe" in page.inner_text("#cards")
    method, item, user = (
        next(place for place, m in enumerate(GRID["methods"]) if m["name"] == "NT-profile"),
        GRID["items"].index("pizza"), GRID["users"].index("Zoe"),
    )  # fmt: skip
    cells = page.locator("#answers tr.chosen td").all_inner_texts()
    assert f"{GRID['p_yes'][method][item][user] / 10000:.2f}".lstrip("0") in cells[1]
    assert page.inner_text("#reading").startswith("Non-tuned with profile says")
    one.addressed("item=pizza", "second=Zoe", "method=NT-profile")
    again = visit(page.url.partition("#")[2]).page
    assert again.inner_text("#answers") == page.inner_text("#answers")


def test_a_finger_will_do(visit):
    one = visit(width=390, touch=True)
    page = one.page
    page.tap("summary:has-text('another picture')")
    page.tap("#pick-picture label:has(input[value=pizza])")
    page.tap("summary:has-text('the two users')")
    page.tap("#pick-user button:has-text('Zoe')")
    page.tap("#answers label:has-text('Non-tuned with profile')")
    page.tap("#cut", position={"x": 60, "y": 15})
    one.addressed("item=pizza", "second=Zoe", "method=NT-profile", "t=0.")
    assert float(page.inner_text("#cut-shown")) < 0.3 and "Zoe" in page.inner_text("#cards")


def test_a_link_to_a_part_keeps_what_was_chosen(visit):
    one = visit("item=pizza")
    one.page.click("nav a[href='#maps']")
    one.addressed("item=pizza")
    assert "pizza" in one.page.inner_text("#shown-facts")


def test_the_questions_at_the_end_of_the_first_part_say_at_once_what_is_right_and_why(visit):
    page = visit().page
    page.click("summary:has-text('Three questions')")
    questions = page.locator("#quiz .question")
    assert questions.count() == 3
    values = np.array(GRID["p_yes"][[method["name"] for method in GRID["methods"]].index("LoRA")]) / 10_000
    spread = f"{np.ptp(values, axis=1).mean():.2f}".lstrip("0")
    for question in questions.all():
        said = []
        for option in question.locator("input").all():
            option.check()
            said.append(question.locator(".verdict").inner_text())
        assert sorted(text.partition(". ")[0] for text in said) == ["Not so", "Not so", "Right"]
        assert len({text.partition(". ")[2] for text in said}) == 1
    assert f"by {spread} at most" in questions.first.inner_text()


def test_an_address_with_nonsense_shows_what_is_shown_without_it(visit, with_plots):
    keys = "item first second method t tokens stage perplexity seed colour one other measure chance".split()
    shown = []
    for chosen in ("", "&".join(f"{key}=n.o-n<sense" for key in keys)):
        one = visit(chosen)
        for part in ("threshold", "maps", "resample"):
            one.near(part)
            one.page.wait_for_selector(f"#{part} .chart svg")
        shown.append([one.page.inner_text(f"#{part}") for part in ("pictures", "threshold", "maps", "resample")])
    assert shown[0] == shown[1]


def test_a_method_compared_with_itself_differs_by_nothing(visit, with_plots):
    one = visit("one=LoRA&other=LoRA&measure=recall&first=Uma&second=Uma")
    one.near("resample")
    one.page.click("text=Draw 100 times")
    assert "between .000 and .000" in one.page.inner_text("#resample-reading")


def test_the_profiles_are_those_of_the_benchmark(visit):
    page = visit("first=Uma&second=Hana").page
    for user in (one for one in PEOPLE["users"] if one["name"] in ("Uma", "Hana")):
        card = page.inner_text(f"article[aria-label='Profile of {user['name']}']")
        assert all(item in card for likes, dislikes in user["told"].values() for item in (*likes, *dislikes))
    assert "Never asked about" in card


def test_dragging_the_threshold_moves_methods_and_leaves_their_auc(visit, with_plots):
    one = visit()
    one.near("threshold")
    page = one.page
    page.wait_for_selector("#plane svg")
    cells = lambda: {  # noqa: E731
        row.locator("th").inner_text().strip(): row.locator("td").all_inner_texts()
        for row in page.locator("#plane-table tbody tr").all()
    }
    before, box = cells(), page.locator("#cut").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    after = cells()
    one.addressed("t=0.9")
    assert float(page.inner_text("#cut-shown")) > 0.8
    assert {name: row[3] for name, row in before.items()} == {name: row[3] for name, row in after.items()}
    assert all(float(after[name][k]) < float(before[name][k]) for name in ("LoRA", "PrefMoE") for k in (0, 1))


def test_everything_is_done_by_keys(visit, lively):
    one = visit("item=movies")
    page = one.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.focus("#pick-picture input[value=movies]")
    page.keyboard.press("ArrowRight")
    one.addressed("item=concerts")
    page.focus("#pick-user button:has-text('Theo')")
    page.keyboard.press("Enter")
    assert "Theo" in page.inner_text("#cards")
    page.focus("#answers input:checked")
    page.keyboard.press("ArrowUp")
    one.addressed("method=LoRA")
    assert page.evaluate("document.activeElement.value") == "LoRA"
    page.focus("#cut")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#cut-shown") == ".51"
    page = lively.page  # whose model need not be loaded again
    chip = page.locator("#made .chip[data-state=neither]").first
    name = chip.get_attribute("data-item")
    chip.focus()
    for state in ("like", "dislike", "neither"):
        page.keyboard.press("Space")
        assert page.get_attribute(f"#made .chip[data-item={name}]", "data-state") == state


def test_likes_and_dislikes_exchanged_change_no_answer_and_other_things_do(lively):
    page = lively.page
    page.evaluate("explorer.address.set({ start: '', likes: '', dislikes: '', routing: 'router', name: 'Wanda' })")
    page.evaluate("explorer.address.set({ asked: 'karaoke.pizza.movies.hats' })")
    page.select_option("#made-start", "Hana")
    page.wait_for_function("() => explorer.maker.rows.length === 4 && explorer.maker.settled()")
    read = "() => Object.fromEntries(explorer.maker.rows.map((row) => [row.item, row.answers.map((one) => one.yes)]))"

    def after(change) -> dict[str, np.ndarray]:
        change()
        page.wait_for_function("() => explorer.maker.settled()")
        return {item: np.array(values) for item, values in page.evaluate(read).items()}

    first = after(lambda: None)
    swapped = after(lambda: page.click("#made-swap"))
    assert all(np.allclose(first[item], swapped[item], atol=1e-5) for item in first)
    other = after(lambda: page.select_option("#made-start", "Mila"))
    assert max(abs(other[item] - first[item])[0] for item in first) > 0.05
    assert max(abs(other[item] - first[item])[1:].max() for item in first) < 1e-5  # LoRA and the backbone see a name
    even = after(lambda: page.check("input[name=routing][value=hand]"))
    page.focus("#gate-0")
    alone = after(lambda: page.keyboard.press("End"))
    lively.addressed("gates=100")
    assert max(abs(alone[item] - even[item])[0] for item in even) > 1e-4
    assert max(abs(alone[item] - even[item])[1:].max() for item in even) < 1e-6


def test_maps_change_with_perplexity_and_seed_and_purity_does_not(visit, with_plots):
    one = visit()
    one.near("maps")
    page = one.page
    page.wait_for_selector("#map svg")
    read = lambda: (page.inner_html("#map"), page.inner_text("#map-purity table"))  # noqa: E731
    drawn, purity = read()
    page.select_option("#map-perplexity", "5")
    page.wait_for_function("(old) => document.getElementById('map').innerHTML !== old", arg=drawn)
    other, same = read()
    page.select_option("#map-seed", "1")
    page.wait_for_function("(old) => document.getElementById('map').innerHTML !== old", arg=other)
    one.addressed("perplexity=5", "seed=1")
    assert purity == same == read()[1]


def test_drawing_users_gives_an_interval_about_the_books(visit, with_plots):
    one = visit("one=NT&other=PrefMoE")
    one.near("resample")
    page = one.page
    page.click("text=Draw once")
    assert sum(int(text.split("\n")[1].rstrip("×")) for text in page.locator("#drawn .one").all_inner_texts()) == 40
    page.click("text=Draw 1,000 times")
    assert "1,001 draws" in page.inner_text("#resample-reading")
    low, high = page.evaluate("explorer.statistics.interval(explorer.resample.drawn())")
    frames = {label: [answers.scored(label, s) for s in answers.methods()[label]] for label in answers.methods()}
    drawn = [pairs.duels(frames[label])["auc_same"].resampled() for label in ("PrefMoE", "Non-tuned without profile")]
    expected = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
    assert np.abs(np.array([low, high]) - expected).max() < 0.03


# What it asks for, and what it says when something is missing


def test_no_request_leaves_the_folder_and_the_first_view_is_small(lively, made, address):
    place = address.removesuffix("index.html")
    inside = (place, "data:", "blob:")
    first = [made[0] / name.removeprefix(place) for name in lively.first_view if name.startswith(place)]
    assert {path.name for path in first} >= {"index.html", "explorer.css", "grid.js", "pictures.webp", "faces.webp"}
    assert not {path.parent.name for path in first} & {"vendor", "model"}
    assert sum(path.stat().st_size for path in first) < 300_000
    assert [name for name in lively.requests if not name.startswith(inside)] == []
    assert {name.rpartition("/")[2] for name in lively.requests} >= {
        "ask.js",
        "see.js",
        "runtime.js",
        "plot.umd.min.js",
    }


def test_it_works_from_a_stick(browser, made, with_model):
    one = Visit(browser, (made[0] / "index.html").as_uri())
    one.load_model()
    assert one.errors == [] and not [name for name in one.requests if name.startswith("http")]
    one.page.close()


@pytest.mark.parametrize("gone", ["model/ask.js", "vendor/runtime.js"])
def test_a_missing_file_of_the_model_is_named_and_everything_else_stays(browser, made, tmp_path, with_model, gone):
    folder = tmp_path / "page"
    shutil.copytree(made[0], folder, copy_function=shutil.os.link)
    (folder / gone).unlink()
    with served(folder) as place:
        one = Visit(browser, f"{place}index.html")
        one.near("maker")
        one.page.click("#load-model")
        one.page.wait_for_selector(f"#model-status:has-text('{gone} is missing')")
        assert one.page.locator("#answers tbody tr").count() == len(GRID["methods"])
        one.near("threshold")
        one.page.wait_for_selector("#plane-table tbody tr")
        assert one.page.is_enabled("#load-model") and one.errors == []
        one.page.close()


def test_a_browser_without_webassembly_is_told_so(visit, with_model):
    one = visit(script="delete globalThis.WebAssembly")
    one.near("maker")
    one.page.click("#load-model")
    one.page.wait_for_selector("#model-status:has-text('runs no WebAssembly')")
    assert one.page.locator("#answers tbody tr").count() == len(GRID["methods"])


def test_without_npm_and_onnx_the_page_is_made_says_so_and_shows_what_was_computed(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(explorer_page.shutil, "which", lambda name: None)
    monkeypatch.setattr(explorer_page, "EXPORTED_WITH", ("a-package-that-nobody-has",))
    missing = explorer_page.build(tmp_path / "page", cache=tmp_path / "cache")
    assert "npm was not installed" in missing[0] and "a-package-that-nobody-has was not installed" in missing[1]
    one = Visit(browser, (tmp_path / "page/index.html").as_uri())
    assert all(sentence in one.page.inner_text("#missing") for sentence in missing)
    assert one.page.is_disabled("#load-model")
    one.near("threshold")
    one.page.wait_for_selector("#plane-table tbody tr")
    one.page.wait_for_selector("#plane:has-text('d3.min.js is missing')")
    assert one.errors == []
    one.page.close()


@pytest.mark.parametrize("width", [1200, 390])
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_window(lively, width):
    modules, _ = explorer_page.installed(ROOT, explorer_page.CACHE)
    page = lively.page
    page.set_viewport_size({"width": width, "height": 800})
    page.add_script_tag(path=modules / "axe-core/axe.min.js")
    found = page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
    grave = [rule for rule in found if rule["impact"] in ("serious", "critical")]
    assert {rule["id"]: [node["html"] for node in rule["nodes"]] for rule in grave} == {}
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_methods_have_the_colours_of_the_books_figures_and_pictures_a_text(visit):
    page = visit().page
    for method in GRID["methods"]:
        row = page.locator(f"#answers tr:has(input[value='{method['name']}'])")
        assert row.locator("svg.swatch path").get_attribute("fill") == METHODS[method["label"]].colour
    assert page.get_attribute("#shown-picture", "aria-label").startswith("A picture of ")
    assert re.match(
        r"P\(yes\) of PrefMoE for every user: mean \.\d\d of the \d+", page.get_attribute("#strip svg", "aria-label")
    )


def test_held_probabilities_arrive_as_they_are(visit):
    packed = visit().page.evaluate(
        "async () => { await explorer.load('data/answers.js'); return explorer.data.answers.runs.at(-1); }"
    )
    frame = answers.scored(packed["method"], packed["seed"]).sort_values("index")
    outside, inside, _, _ = metrics.boundary(frame)
    held = np.frombuffer(base64.b64decode(packed["held"]), "<f4")
    np.testing.assert_array_equal(held, pairs.held_probability(frame)[outside | inside].astype("<f4"))
