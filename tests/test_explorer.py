"""The explorer in a real browser: mouse, touch and keys will do, it asks nobody else, and it says what is missing."""

import re
import shutil

import explorer_page
import numpy as np
import pytest
from explorer_browser import GRID, PEOPLE, Visit, served

from prefmoe.analysis import pairs
from prefmoe.course import answers
from prefmoe.figures.style import METHODS

pytest_plugins = ["explorer_fixtures"]


@pytest.fixture(scope="module")
def lively_address(made) -> str:
    """From a stick; what tests open anew comes from a server, and in the other file the model does, too."""
    return (made[0] / "index.html").as_uri()


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
    assert f"are {spread} apart on average" in questions.first.inner_text()


def test_what_is_said_of_the_opening_holds_whatever_is_chosen(visit):
    assert visit("item=pizza").page.inner_text("#opening").startswith("The page opens with the clearest case of ")


def test_words_of_the_strip_keep_their_size_when_a_phone_is_turned(visit):
    page = visit().page
    for width in (390, 1200):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_function(
            """() => {
                const drawn = document.querySelector("#strip svg");
                return Math.abs(drawn.clientWidth / drawn.viewBox.baseVal.width - 1) < 0.05;
            }"""
        )


def test_before_the_first_draw_the_axis_of_draws_has_no_numbers(visit, with_plots):
    one = visit()
    one.near("resample")
    one.page.wait_for_selector("#resample-chart svg")
    words = one.page.locator("#resample-chart text").all_text_contents()
    assert "↑ Draws" in words and not [word for word in words if re.fullmatch(r"0\.0{3,}", word)]
    one.page.click("text=Draw 100 times")
    one.page.wait_for_selector("#resample-chart svg rect")


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
    chip = page.locator("#made-person-2 .chip[data-state=neither]").first
    name = chip.get_attribute("data-item")
    chip.focus()
    for state in ("like", "dislike", "neither"):
        page.keyboard.press("Space")
        assert page.get_attribute(f"#made-person-2 .chip[data-item={name}]", "data-state") == state


def test_likes_and_dislikes_exchanged_change_no_answer_and_other_things_do(lively):
    page = lively.page
    page.evaluate("explorer.address.set({ start: '', likes: '', dislikes: '', routing: 'router', name: 'Wanda' })")
    page.evaluate("explorer.address.set({ asked: 'karaoke.pizza.movies.hats' })")
    page.select_option("#made-start", "Hana")
    page.wait_for_function("() => explorer.maker.rows.length === 4 && explorer.maker.settled()")
    read = "() => Object.fromEntries(explorer.maker.rows.map((row) => [row.item, row.both[0].map((one) => one.yes)]))"

    def after(change) -> dict[str, np.ndarray]:
        change()
        page.wait_for_function("() => explorer.maker.settled()")
        return {item: np.array(values) for item, values in page.evaluate(read).items()}

    first = after(lambda: None)
    swapped = after(lambda: page.click("#made-swap"))
    assert all(np.allclose(first[item], swapped[item], atol=1e-5) for item in first)
    other = after(lambda: page.select_option("#made-start", "Mila"))
    assert max(abs(other[item] - first[item])[0] for item in first) > 0.01
    assert max(abs(other[item] - first[item])[1:].max() for item in first) < 1e-5  # LoRA and the backbone see a name
    even = after(lambda: page.check("input[name=routing][value=hand]"))
    page.focus("#gate-0")
    alone = after(lambda: page.keyboard.press("End"))
    lively.addressed("gates=100")
    assert max(abs(alone[item] - even[item])[0] for item in even) > 1e-4
    assert max(abs(alone[item] - even[item])[1:].max() for item in even) < 1e-6


def test_two_made_users_get_two_answers_to_one_picture_from_whoever_reads_their_likes(lively):
    page, empty = lively.page, {f"{part}{two}": "" for part in ("start", "likes", "dislikes") for two in ("", "2")}
    page.evaluate("(state) => explorer.address.set(state)", empty | {"asked": "karaoke.theatre", "routing": "router"})
    read = "() => explorer.maker.rows.map((row) => row.both.map((answers) => answers.map((one) => one.yes)))"

    def after(change) -> np.ndarray:
        """(pictures, users, methods) P(yes)."""
        change()
        page.wait_for_function("() => explorer.maker.rows.length === 2 && explorer.maker.settled()")
        return np.array(page.evaluate(read))

    after(lambda: page.select_option("#made-start", "Hana"))
    before = after(lambda: page.select_option("#made-start-2", "Hana"))
    apart = after(lambda: page.select_option("#made-start-2", "Ravi"))
    np.testing.assert_allclose(apart[:, 0], before[:, 0], atol=1e-6)  # of the first user nothing was changed
    moved = abs(apart[:, 1] - before[:, 1]).max(0)
    assert moved[0] > 0.3 and moved[1:].max() < 1e-6
    yes = apart > 0.5
    split = (yes[:, 0] != yes[:, 1]).sum(0)
    assert split[0] > split[1]
    said = page.inner_text("#made-reading")
    assert f"of 2 pictures: PrefMoE {split[0]}, LoRA {split[1]}, Non-tuned without profile {split[2]}." in said
    rows = page.locator("#made-answers tbody tr").all_inner_texts()
    names = page.evaluate("['#made-name', '#made-name-2'].map((id) => document.querySelector(id).value)")
    assert names[0] != names[1] and [next(n for n in names if n in row) for row in rows] == names * 2
    lively.addressed("start2=Ravi")
    after(lambda: page.select_option("#made-start-2", ""))
    lively.addressed("likes2=none", "dislikes2=none")  # somebody without likes, whoever opens the link
    states = page.evaluate("[...document.querySelectorAll('#made-person-2 .chip')].map((chip) => chip.dataset.state)")
    assert set(states) == {"neither"}


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
    page.evaluate("location.hash = 'perplexity=50&seed=2'")  # as from a link on the page, or by the browser's back
    chosen = "['perplexity', 'seed'].map((name) => document.getElementById(`map-${name}`).value).join()"
    page.wait_for_function(f"() => {chosen} === '50,2'")


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


def test_no_request_leaves_the_folder_and_the_first_view_is_small(lively, made, lively_address):
    place = lively_address.removesuffix("index.html")
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


def test_it_works_from_a_stick(lively):
    assert lively.page.url.startswith("file:") and lively.page.locator("#made-answers tbody tr").count() > 0
    assert lively.errors == [] and not [name for name in lively.requests if name.startswith("http")]


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


@pytest.mark.parametrize(
    ("gone", "lost"),
    [
        ("maps.js", ["maps"]), ("metrics.js", ["threshold", "resample"]),
        ("data/answers.js", ["threshold", "resample"]), ("data/grid.js", None), ("charts.js", None),
    ],
)  # fmt: skip
def test_a_missing_script_is_named_where_its_part_would_be_and_other_parts_stay(browser, made, tmp_path, gone, lost):
    """None: no part can do without it."""
    folder = tmp_path / "page"
    shutil.copytree(made[0], folder, copy_function=shutil.os.link)
    (folder / gone).unlink()
    one = Visit(browser, (folder / "index.html").as_uri())
    told = f"{gone} is missing"
    if lost is None:
        assert told in one.page.inner_text("#missing") and "works without it" in one.page.inner_text("#missing")
        assert not one.page.is_visible("main")
    else:
        for part in lost:
            one.near(part)
            one.page.wait_for_selector(f"#{part} :text('{told}')")
        assert one.page.locator("#answers tbody tr").count() == len(GRID["methods"])
        assert not one.page.locator("#pictures .notice").count()
    one.page.close()


@pytest.mark.parametrize("gone", ["data/pictures.webp", "data/faces.webp"])
def test_missing_pictures_are_named_and_everything_else_stays(browser, made, tmp_path, gone):
    folder = tmp_path / "page"
    shutil.copytree(made[0], folder, copy_function=shutil.os.link)
    (folder / gone).unlink()
    one = Visit(browser, (folder / "index.html").as_uri())
    one.page.wait_for_selector(f"#missing:has-text('{gone} is missing')")
    assert one.page.locator("#missing .notice").count() == 1 and one.page.is_visible("main")
    assert one.page.locator("#answers tbody tr").count() == len(GRID["methods"])
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
    modules, _ = explorer_page.installed(explorer_page.ROOT, explorer_page.CACHE)
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
