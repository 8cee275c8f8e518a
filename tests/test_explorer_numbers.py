"""What the explorer computes in a browser is what Python computes: answers, users, gates, measures, draws."""

import base64

import explorer_page
import numpy as np
import pytest
from explorer_browser import ASSETS, GRID, PEOPLE

from prefmoe import metrics
from prefmoe.analysis import pairs, statistics
from prefmoe.course import answers
from prefmoe.data.benchmark import FACETS

pytest_plugins = ["explorer_fixtures"]


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
            expected = metrics.estimates(*metrics.user_counts(said), resamples=2)
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
    expected = [[np.mean([c @ one @ c / (c @ fought @ c) for one in won]) for c in counts]]
    numerator, denominator = metrics.user_counts([f.assign(prediction=f["pred"]) for f in frames])
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


def test_held_probabilities_arrive_as_they_are(visit):
    packed = visit().page.evaluate(
        "async () => { await explorer.load('data/answers.js'); return explorer.data.answers.runs.at(-1); }"
    )
    frame = answers.scored(packed["method"], packed["seed"]).sort_values("index")
    outside, inside, _, _ = metrics.boundary(frame)
    held = np.frombuffer(base64.b64decode(packed["held"]), "<f4")
    np.testing.assert_array_equal(held, pairs.held_probability(frame)[outside | inside].astype("<f4"))
