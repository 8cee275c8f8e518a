"""Looking inside a method: what is shown is what the model computes."""

import ast
import json
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_cells import NOTEBOOKS, cells
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from small_world import PREFMOE, lay_out, small_backbone, small_benchmark, small_edition

from prefmoe.config import PrefMoEMethod
from prefmoe.data.benchmark import FACETS
from prefmoe.inspection import attention, routing, users
from prefmoe.inspection.questions import (
    InspectionError,
    answers,
    most_probable_answers,
    prompts,
    same_picture,
    shared_questions,
    trained_method,
)
from prefmoe.models.base import build_method
from prefmoe.running.evaluation import answer_probabilities, first_tokens


def build(kind: str = "llava", attn: str = "eager", **changes):
    """A PrefMoE whose trainable numbers have all been moved, so that nothing is zero by its start."""
    config = PrefMoEMethod(**{**PREFMOE, **changes})
    method = build_method(config, small_backbone(kind, attn=attn), small_benchmark(), seed=0, cache=False).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return method


@cache
def moved():
    return build()


@cache
def untouched():
    config = PrefMoEMethod(**PREFMOE)
    return build_method(config, small_backbone(), small_benchmark(), seed=0, cache=False).eval()


@cache
def of(notebook: str, *ids: str):
    """The functions that these cells of a notebook define."""
    return SimpleNamespace(**cells(notebook, *ids))


def space():
    return of("09", "tsne-function", "purity-function")


def questions(count: int = 6):
    return shared_questions(small_benchmark(), 1, count)[0]


def test_facet_tokens_are_anchor_residual_and_their_sum_with_the_prototype():
    method, state = moved(), moved().user_state
    tokens = users.facet_tokens(method)
    trained = small_benchmark().trained_users
    assert len(tokens.labels) == sum(len(small_benchmark().users[name].preferences) for name in trained)
    for position in (0, 7, len(tokens.labels) - 1):
        user, facet = tokens.labels.loc[position, ["user", "facet"]]
        row, f = small_benchmark().row(user), FACETS.index(facet)
        anchor = state.anchors[row, 3 + f]
        residual = anchor - state.center[f] + state.bound[2 + f] * torch.tanh(state.delta[row, 2 + f])
        expected = {"anchor": anchor, "residual": residual, "full token": residual + state.prototypes[f]}
        for kind, vector in expected.items():
            np.testing.assert_allclose(tokens.vectors[kind][position], vector.detach().numpy(), atol=1e-6)


def test_the_largest_group_of_a_facet_has_rank_zero():
    labels = users.facet_tokens(moved()).labels
    for _, part in labels.groupby("facet"):
        sizes = part.groupby("rank")["user"].count()
        assert list(sizes.index) == list(range(len(sizes))) and sizes.is_monotonic_decreasing
        assert part.groupby("rank")["group"].nunique().eq(1).all()


def test_user_space_has_a_picture_and_a_number_for_every_stage_and_kind():
    stages = {"before": users.facet_tokens(untouched()), "after": users.facet_tokens(moved())}
    coordinates, purity = space().map_and_purity(stages, neighbours=3)
    panels = {(stage, kind) for stage in stages for kind in users.KINDS}
    assert set(zip(coordinates["stage"], coordinates["tokens"], strict=True)) == panels
    assert len(purity) == 2 * len(panels)
    assert (purity["value"] <= purity["best"] + 1e-9).all() and purity["neighbours"].eq(3).all()
    draw = cells("09", "panels-function", "space-function", backbone="b", seed=0)["user_space"]
    drawn = draw(coordinates, purity, "group", list(users.KINDS))
    assert len(drawn.axes) == len(panels)


def test_purity_does_not_depend_on_the_drawing():
    stages = {"after": users.facet_tokens(moved())}
    (one, first), (other, second) = (space().map_and_purity(stages, perplexity=p) for p in (3, 8))
    pd.testing.assert_frame_equal(first, second)
    assert not np.allclose(one[["x", "y"]], other[["x", "y"]])


def test_purity_by_hand():
    """Two tight bundles of directions; each user has one vector in each bundle, so neighbours are all of
    one label."""
    angles = np.array([0.0, 0.01, 0.02, 1.5, 1.51, 1.52])
    X = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels, people = list("aaabbb"), [0, 1, 2, 0, 1, 2]
    estimate = users.neighbourhood_purity(X, labels, 2, people)
    assert (estimate["value"], estimate["low"], estimate["high"], estimate["n"]) == (1, 1, 1, 6)
    assert estimate["chance"] == pytest.approx(0.5)
    mixed = users.neighbourhood_purity(X, list("abbabb"), 2, people)
    # Nearest two of other users: row 0 {b, b}; 1 {a, b}; 2 {b, a}; the same for the second bundle.
    assert mixed["value"] == pytest.approx((0 + 0.5 + 0.5) / 3)
    with pytest.raises(ValueError, match="5 neighbours"):
        users.neighbourhood_purity(X, labels, 5, people)


def test_a_users_own_vectors_are_no_neighbours():
    X = np.array([[1, 0], [1, 0.01], [0, 1], [0.01, 1]], dtype=float)
    estimate = users.neighbourhood_purity(X, list("aabb"), 1, [0, 0, 1, 1])
    assert estimate["value"] == 0


def test_purity_ignores_length_and_matches_sklearn():
    rng = np.random.default_rng(1)
    X, labels = rng.normal(size=(40, 6)), rng.integers(0, 3, 40)
    estimate = users.neighbourhood_purity(X * rng.uniform(1, 9, size=(40, 1)), labels, 4, np.arange(40))
    near = NearestNeighbors(n_neighbors=4, metric="cosine").fit(X).kneighbors(return_distance=False)
    assert estimate["value"] == pytest.approx((labels[near] == labels[:, None]).mean())


def test_tsne_is_repeatable_and_keeps_bundles_together():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=8) * 5 + rng.normal(size=(12, 8)) * 0.1 for _ in range(3)])
    tsne = space().tsne
    first, second = tsne(X, 0), tsne(X.copy(), 0)
    assert np.array_equal(first, second)
    centres = first.reshape(3, 12, 2).mean(axis=1)
    spread = np.linalg.norm(first.reshape(3, 12, 2) - centres[:, None], axis=-1).max()
    assert min(np.linalg.norm(centres[a] - centres[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > spread
    with pytest.raises(ValueError, match="at least 5 vectors, got 3"):
        tsne(X[:3])


def test_the_axes_that_the_drawing_starts_from_have_fixed_signs():
    X = np.random.default_rng(0).normal(size=(30, 4)) * [5, 2, 1, 1]
    principal_axes = PCA(2, svd_solver="full").fit_transform
    scores = principal_axes(X)
    assert scores.var(axis=0) == pytest.approx(np.sort(np.linalg.eigvalsh(np.cov(X.T, bias=True)))[::-1][:2])
    assert principal_axes(X[::-1])[::-1] == pytest.approx(scores)


def test_similarity_between_users_against_a_loop_over_pairs():
    table = users.similarity_between_users(moved()).set_index(["token", "pairs"])
    benchmark, trained = small_benchmark(), small_benchmark().trained_users
    prefix = moved().user_state(torch.tensor([benchmark.row(name) for name in trained])).prefix.detach()
    t, f = users.PREFIX_TOKENS.index("r travel"), FACETS.index("travel")
    found = {"same group": [], "other group": []}
    for i in range(len(trained)):
        for j in range(i):
            mine, theirs = (benchmark.groups[benchmark.row(trained[k])][f] for k in (i, j))
            cosine = torch.cosine_similarity(prefix[i, t], prefix[j, t], dim=0)
            found["same group" if mine == theirs else "other group"].append(float(cosine))
    for pairs, values in found.items():
        if values:
            assert table.loc[("r travel", pairs), "value"] == pytest.approx(np.mean(values), abs=1e-5)
            assert table.loc[("r travel", pairs), "n"] == len(values)
    assert table.loc[("p travel", "all"), "value"] == pytest.approx(1)
    within = of("05", "prefix-function").prefix_similarity(moved(), trained[:2])
    np.testing.assert_allclose(np.diagonal(within[trained[0]]), 1, atol=1e-5)
    first, second = (benchmark.users[name] for name in trained[:2])
    given = {"trained": moved(), "first": first, "second": second}
    between, tokens = cells("05", "prefix", "prefix-function", "prefix-detail", **given).figures
    assert [axis.get_title() for axis in tokens.axes[:2]] == [f"Tokens of {name}" for name in trained[:2]]
    drawn = np.concatenate([c.get_offsets()[:, 0] for c in between.axes[0].collections if len(c.get_offsets()) > 1])
    assert sorted(drawn) == pytest.approx(sorted(table["value"]))


def test_corrections_stay_within_the_bound_and_start_at_zero():
    corrections = of("05", "bound-function").corrections
    table = corrections(moved())
    assert (table["largest"] <= table["bound"]).all() and (table["largest"] > 0).all()
    np.testing.assert_allclose(table["bound"], 0.1 * table["anchor_rms"])
    assert corrections(untouched())["largest"].eq(0).all()


def test_published_residuals_hold_the_mean_and_centred_ones_do_not():
    step = of("05", "anchors-function", "residual-function")
    table = step.residual_variants(moved()).pivot(index="facet", columns="variant", values="between_users")
    assert (table["published"] > table["centred"]).all()
    described = step.anchor_table(moved(), small_benchmark().trained_users[0])
    assert list(described["anchor"][:3]) == ["name", "image", "description"] and (described["rms"] > 0).all()


def test_experts_change_nothing_before_training_and_something_once_moved():
    mixture_effect = of("05", "zero-function").mixture_effect
    assert mixture_effect(untouched(), questions(2)) == 0
    assert mixture_effect(moved(), questions(2)) > 1e-3


def test_gates_are_shares_that_start_even():
    for method, even in ((untouched(), True), (moved(), False)):
        table = routing.gates(method, questions(2))
        sums = table.groupby(["user", "router"])["gate"].sum()
        np.testing.assert_allclose(sums, 1, atol=1e-5)
        spread = table.groupby(["user", "router"])["gate"].agg(lambda gates: gates.max() - gates.min())
        assert (spread.max() < 1e-6) == even


def test_the_same_picture_has_the_answer_that_is_true_of_each_user():
    asked = questions(6)
    assert len({example.name for example in asked}) == len(asked)
    assert len({(example.image, example.question) for example in asked}) == 1
    for example in asked:
        assert (example.answer_text == "yes") == (example.name in example.bucket_names)
    inverted = asked[0].model_copy(update={"semantic_invert": True})
    assert same_picture(inverted, [asked[0].name])[0].answer_text != asked[0].answer_text
    with pytest.raises(InspectionError, match="expected a preference yes/no question"):
        same_picture(asked[0].model_copy(update={"category": "recognition"}), [asked[0].name])


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_attention_is_that_of_the_model(kind):
    method, asked = (moved() if kind == "llava" else build(kind)), questions(4)
    seen = attention.attention(method, asked)
    batch = method.collator(asked[:1], with_answer=False)  # alone, hence without padding
    with torch.no_grad(), method.context(batch):
        output = method.model(**batch.inputs, output_attentions=True, use_cache=False)
    image = batch.inputs["input_ids"][0] == method.backbone.image_token_id
    for layer, weights in enumerate(output.attentions):
        mean = weights[0].mean(0).numpy()  # (T, T)
        np.testing.assert_allclose(seen.answer_to_prefix[0, layer], mean[-1, :13], atol=1e-5)
        np.testing.assert_allclose(seen.image_to_prefix[0, layer], mean[image.numpy(), :13].mean(0), atol=1e-5)
        np.testing.assert_allclose(seen.answer_to_image[0][layer].ravel(), mean[-1, image.numpy()], atol=1e-5)
    assert seen.even[0] == pytest.approx(1 / batch.inputs["input_ids"].shape[1])
    made = of("10", "table-function", "budget-function")
    np.testing.assert_allclose(made.attention_budget(seen).sum(axis=1), 1, atol=1e-5)
    long = made.attention_table(seen, asked).set_index(["user", "origin", "layer", "token"])["share"]
    assert long[(asked[1].name, "answer", 2, "r travel")] == seen.answer_to_prefix[1, 1, 6]


def test_only_the_part_of_a_picture_that_the_processor_keeps_is_visible(tmp_path):
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:, 16:48] = 200  # what is left when the middle is cropped to a square
    path = tmp_path / "wide.png"
    Image.fromarray(pixels).save(path)
    visible_part = of("10", "visible-function").visible_part
    cropped = visible_part(moved().backbone, path)
    assert cropped.size == (32, 32) and np.asarray(cropped).min() == 200
    assert visible_part(small_backbone("qwen2_5_vl"), path).size == (64, 32)


def test_users_of_one_picture_get_their_own_prompts():
    asked = questions(4)
    seen = attention.attention(moved(), asked)
    alone = attention.attention(moved(), asked[-1:])
    assert seen.p_yes[-1] == pytest.approx(alone.p_yes[0], abs=1e-5)
    assert not np.allclose(seen.answer_to_prefix[0], seen.answer_to_prefix[-1])


def test_attention_by_group_is_the_mean_over_its_questions():
    asked = small_benchmark().select("test")
    made = of("10", "groups-function", "own-function")
    table = made.attention_by_group(moved(), asked, batch_size=7)
    facet = asked[[e.facet_id >= 0 for e in asked].index(True)].concept
    seen = attention.attention(moved(), [e for e in asked if e.concept == facet and e.facet_id >= 0])
    row = table[(table["origin"] == "image") & (table["group"] == facet)].set_index("token").loc["name"]
    assert row["value"] == pytest.approx(seen.image_to_prefix.mean((0, 1))[0], abs=1e-5)
    own = made.own_residual(table).set_index("facet")
    value = seen.answer_to_prefix.mean((0, 1))[users.PREFIX_TOKENS.index(f"r {facet}")]
    assert own.loc[facet, "value"] == pytest.approx(value, abs=1e-5)


def test_gate_tables_by_hand():
    rows = [
        {"router": "preference", "group": f"preference, {facet}", "expert": k, "value": 0.6 if f == k else 0.1}
        for f, facet in enumerate(FACETS)
        for k in range(5)
    ]
    own = of("11", "own-function").own_expert(pd.DataFrame(rows))
    assert list(own["facet"]) == list(FACETS) and own["difference"].tolist() == pytest.approx([0.5] * 5)
    given = {"gates": pd.DataFrame(rows).assign(low=0.1, high=0.6, n=7), "backbone": "b", "frames": [0], "turns": 0}
    figure = cells("11", "gates-function", **given)["draw_gates"](["preference"], "Gates")
    bars = [bar for bar in figure.axes[0].patches if bar.get_x() == 0]  # of the first expert, from top to bottom
    widths = [bar.get_width() for bar in sorted(bars, key=lambda bar: bar.get_y())]
    assert widths == pytest.approx([0.6, 0.1, 0.1, 0.1, 0.1])
    assert len(figure.axes[0].get_legend().get_texts()) == 5
    ranges = cells("11", "gates-function", "gates-figure", **given)["ranges"]
    assert list(ranges.columns) == ["router", "expert", "lowest", "highest", "range"]
    assert list(ranges["expert"]) == list(FACETS) and ranges["range"].tolist() == pytest.approx([0.5] * 5)


def test_what_cannot_be_looked_at_is_named():
    plain = build(components="E", attn="sdpa")
    with pytest.raises(InspectionError, match="component P"):
        users.facet_tokens(plain)
    with pytest.raises(InspectionError, match="component M"):
        routing.gates(plain, questions(2))
    with pytest.raises(InspectionError, match="attn='eager'"):
        attention.attention(plain, questions(2))


@pytest.mark.parametrize(("notebook", "message"), [("05", "component P"), ("09", "component P"), ("10", "no prefix")])
def test_what_a_notebook_cannot_show_is_refused_before_it_is_trained(tmp_path, monkeypatch, notebook, message):
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path)
    given = {"settings": small_edition("tiny-llava", seeds=[0]), "backbone": "tiny-llava", "method": "LoRA", "seed": 0}
    names = cells(notebook, **given, trained_method=lambda *_, **__: pytest.fail("it was trained"))
    (path,) = NOTEBOOKS.glob(f"{notebook}_*.ipynb")
    sources = ["".join(cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"]]
    (source,) = [source for source in sources if "\ntrained = " in source]
    lines = ast.parse(source[source.index("untrained = ") :]).body
    with pytest.raises(InspectionError, match=message):
        exec(compile(ast.Module(lines, []), path.name, "exec"), names)


def test_a_missing_run_of_a_large_backbone_names_the_command(tmp_path):
    edition = small_edition("tiny-llava")
    with pytest.raises(InspectionError, match="prefmoe notebook .*06_train_and_evaluate.* -p method=PrefMoE"):
        trained_method(edition, "llava-1.5-7b", "PrefMoE", 0, results=tmp_path)


def test_a_missing_run_of_a_miniature_is_made_and_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path)
    edition = small_edition("tiny-llava", seeds=[0])
    method = trained_method(edition, "tiny-llava", "PrefMoE", 0, results="results")
    assert of("05", "zero-function").mixture_effect(method, questions(2)) > 0
    (frame,) = answers(edition, "tiny-llava", "PrefMoE", results="results")
    assert set(frame["split"]) == {"test"} and set(frame["turns"]) == {0}
    given = {"settings": edition, "backbone": "tiny-llava"}
    (losses,) = cells("05", "curves-function", **given)["loss_logs"]("PrefMoE", results="results")
    assert len(losses) == edition.training.steps
    outcome = of("11", "right-function").gates_by_outcome(frame).set_index(["router", "expert", "question"])
    task = outcome.xs("preference", level="question").loc["task"].dropna(axis=1)
    np.testing.assert_allclose(task.sum(), 1, atol=1e-5)


def test_the_same_picture_is_asked_about_a_holder_and_another_user():
    pictures = shared_questions(small_benchmark(), len(FACETS), 2)
    facets = [asked[0].concept for asked in pictures]
    assert len(set(facets)) == len(facets)  # the first question of each facet
    test = small_benchmark().select("test")
    for asked in pictures:
        holder, other = asked
        assert (holder.answer_text, other.answer_text) == ("yes", "no") and holder.image == other.image
        assert holder.name in holder.bucket_names and other.name not in other.bucket_names
        trained = set(small_benchmark().trained_users)
        plain = [e.index for e in test if e.category == "preference" and not e.is_multiple_choice
                 and not e.semantic_invert and e.concept == holder.concept
                 and set() < trained & set(e.bucket_names) < trained]  # fmt: skip
        assert holder.index == min(plain)


def test_most_probable_answers_agree_with_generation():
    method, pictures = moved(), shared_questions(small_benchmark(), 2, 2)
    examples = [example for asked in pictures for example in asked]
    table = most_probable_answers(method, examples)
    for example, row in zip(examples, table.itertuples(), strict=True):
        batch = prompts(method, [example])
        with torch.no_grad(), method.context(batch):
            output = method.model.generate(
                **batch.inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        alone = answer_probabilities(output.logits[0], [example], first_tokens(method.backbone.tokenizer))
        assert row.probability == pytest.approx(alone[f"p_{row.answer}"].iloc[0], abs=1e-4)
        assert row.probability >= 0.5 and row.right == (row.answer == example.answer_text)
        assert example.name in row.question
