"""The loss terms against golden cases, against plain loops, and in the cases that have closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from prefmoe.losses import decorrelation, pairwise_preference, profile_alignment, profile_contrast, residual_contrast

DATA = Path(__file__).parent / "data"


def cosine(a, b) -> float:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def profile_contrast_by_loops(tokens, anchors, users, pseudo=None, pool=None, *, tau=0.07, real=1.0, cf=0.5):
    losses = []
    for i in range(len(tokens)):
        own = math.exp(cosine(tokens[i], anchors[i]) / tau)
        others = [anchors[j] for j in range(len(tokens)) if users[j] != users[i]]
        others = [math.exp(cosine(tokens[i], a) / tau) for a in others]
        total = own + (real * sum(others) / len(others) if others else 0)
        if pseudo is not None:
            admitted = [math.exp(cosine(tokens[i], c) / tau) for c in pseudo[pool[i]]]
            total += cf * sum(admitted) / len(admitted) if admitted else 0
        losses.append(-math.log(own / total))
    return sum(losses) / len(losses)


def residual_contrast_by_loops(
    residuals, groups, query, pseudo=(), pseudo_groups=(), *, tau=0.07, eta=1.0, anchor_is_positive=True
):
    contrast, focal = [], []
    for f in range(residuals.shape[1]):
        active = [i for i in range(len(residuals)) if groups[i, f] >= 0]
        terms, weighted = [], []
        for i in active:
            a = residuals[i, f] + query[i]
            others = [j for j in active if anchor_is_positive or j != i]
            everybody = [(residuals[j, f] + query[j], groups[j, f]) for j in others]
            joining = [k for k in range(len(pseudo)) if pseudo_groups[k, f] >= 0]
            everybody += [(pseudo[k, f] + query[i], pseudo_groups[k, f]) for k in joining]
            mass = [(math.exp(cosine(a, c) / tau), g == groups[i, f]) for c, g in everybody]
            if not any(same for _, same in mass):
                continue
            p = sum(m for m, same in mass if same) / sum(m for m, _ in mass)
            rho = sum(groups[j, f] == groups[i, f] for j in active) / len(active)
            p = min(max(p, 1e-6), 1.0)
            terms.append(-math.log(p))
            weighted.append(-((1 - rho) ** eta) * (1 - p) * math.log(p))
        contrast.append(sum(terms) / len(terms) if terms else 0.0)
        focal.append(sum(weighted) / len(weighted) if weighted else 0.0)
    return sum(contrast) / len(contrast), sum(focal) / len(focal)


@pytest.fixture(params=[0, 1])
def golden(request):
    with np.load(DATA / f"losses_{request.param}.npz") as file:
        return {name: torch.as_tensor(file[name]) for name in file}


def expect(value, golden, name):
    torch.testing.assert_close(value.double(), golden[f"out_{name}"].double(), rtol=1e-5, atol=1e-7)


def test_golden_profile_terms(golden):
    image, description = golden["in_image"], golden["in_description"]
    users, pool = golden["in_user_ids"], golden["in_cf_pool_mask"]
    expect(profile_alignment(image, description), golden, "profile_alignment")
    for name, token in (("image", image), ("description", description)):
        anchor, pseudo = golden[f"in_{name}_prototype"], golden[f"in_cf_{name}"]
        expect(profile_contrast(token, anchor, users, pseudo, pool), golden, f"{name}_contrast")
    plain = profile_contrast(image, golden["in_image_prototype"], users)
    expect(plain, golden, "image_contrast_no_cf")


def test_golden_residual_terms(golden):
    real = golden["in_residuals"], golden["in_groups"], golden["in_query"]
    contrast, focal = residual_contrast(*real, golden["in_cf_residuals"], golden["in_cf_groups"])
    expect(contrast, golden, "residual_contrast")
    expect(focal, golden, "residual_focal")
    contrast, focal = residual_contrast(*real)
    expect(contrast, golden, "residual_contrast_no_cf")
    expect(focal, golden, "residual_focal_no_cf")
    expect(residual_contrast(*real, density_power=2)[1], golden, "residual_focal_no_cf_eta2")
    expect(decorrelation(golden["in_residuals"], golden["in_prototypes"]), golden, "decorrelation")


def random_batch(batch=9, facets=5, hidden=16, pseudo=4, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    return {
        "residuals": normal(batch, facets, hidden),
        "groups": integers(-1, 3, batch, facets),
        "query": normal(batch, hidden),
        "pseudo": normal(pseudo, facets, hidden),
        "pseudo_groups": integers(-1, 4, pseudo, facets),
        "tokens": normal(batch, hidden),
        "anchors": normal(batch, hidden),
        "users": integers(0, 5, batch),
        "pool": integers(0, 2, batch, pseudo).bool(),
    }


@pytest.mark.parametrize("seed", range(3))
def test_vectorised_terms_equal_loops(seed):
    b = random_batch(seed=seed)
    value = profile_contrast(
        b["tokens"], b["anchors"], b["users"], b["pseudo"][:, 0], b["pool"], temperature=0.3, real_weight=0.7
    )
    loops = profile_contrast_by_loops(
        b["tokens"], b["anchors"], b["users"], b["pseudo"][:, 0], b["pool"], tau=0.3, real=0.7
    )
    assert float(value) == pytest.approx(loops, rel=1e-9)
    arguments = b["residuals"], b["groups"], b["query"], b["pseudo"], b["pseudo_groups"]
    found = []
    for own in (True, False):
        values = residual_contrast(*arguments, temperature=0.2, density_power=1.5, anchor_is_positive=own)
        loops = residual_contrast_by_loops(*arguments, tau=0.2, eta=1.5, anchor_is_positive=own)
        assert [float(v) for v in values] == pytest.approx([float(v) for v in loops])
        found.append(float(values[0]))
    assert found[0] < found[1]  # an example is nearest to itself


def test_without_itself_an_example_alone_in_its_group_takes_no_part():
    residuals = torch.eye(3, dtype=torch.float64)[:, None].requires_grad_()  # orthogonal, one facet
    groups = torch.tensor([[0], [0], [1]])
    contrast, focal = residual_contrast(residuals, groups, temperature=1.0, anchor_is_positive=False)
    # of two equally similar others, one is of the group; the third example has nobody
    assert contrast.item() == pytest.approx(math.log(2))
    assert focal.item() == pytest.approx((1 - 2 / 3) * 0.5 * math.log(2))
    (contrast + focal).backward()
    assert torch.isfinite(residuals.grad).all()
    alone = residual_contrast(residuals.detach(), torch.tensor([[0], [1], [2]]), anchor_is_positive=False)
    assert [float(value) for value in alone] == [0.0, 0.0]


def test_decorrelation_equals_loops():
    b = random_batch()
    prototypes = b["pseudo"][0]
    pairs = [(f, g) for f in range(5) for g in range(5) if f != g]
    between = np.mean([cosine(r[f], r[g]) ** 2 for r in b["residuals"] for f, g in pairs])
    shared = np.mean([cosine(r[f], prototypes[f]) ** 2 for r in b["residuals"] for f in range(5)])
    assert float(decorrelation(b["residuals"], prototypes)) == pytest.approx(between + shared)


def test_alignment_is_zero_for_equal_and_two_for_opposite_directions():
    x = random_batch()["tokens"]
    assert float(profile_alignment(x, 3 * x)) == pytest.approx(0)
    assert float(profile_alignment(x, -x)) == pytest.approx(2)


def test_profile_contrast_with_one_orthogonal_negative_has_its_closed_form():
    tokens = torch.eye(2, dtype=torch.float64)
    for tau in (0.07, 0.5, 2.0):
        value = profile_contrast(tokens, tokens, torch.tensor([0, 1]), temperature=tau)
        assert float(value) == pytest.approx(math.log1p(math.exp(-1 / tau)), rel=1e-5)


def test_a_high_temperature_leaves_the_weights_alone():
    b = random_batch()
    everybody = torch.arange(9)
    value = profile_contrast(b["tokens"], b["anchors"], everybody, b["pseudo"][:, 0], temperature=1e9)
    assert float(value) == pytest.approx(math.log(1 + 1.0 + 0.5))


def test_empty_pools_add_nothing():
    b = random_batch()
    one_user = torch.zeros(9, dtype=torch.long)
    assert float(profile_contrast(b["tokens"], b["anchors"], one_user)) == 0
    nobody = torch.zeros(9, 4, dtype=torch.bool)
    without = profile_contrast(b["tokens"], b["anchors"], b["users"])
    for pseudo, pool in ((b["pseudo"][:, 0], nobody), (b["pseudo"][:0, 0], nobody[:, :0])):
        assert profile_contrast(b["tokens"], b["anchors"], b["users"], pseudo, pool) == without
    real = b["residuals"], b["groups"], b["query"]
    no_part = torch.full((4, 5), -1)
    torch.testing.assert_close(residual_contrast(*real, b["pseudo"], no_part), residual_contrast(*real))


def test_examples_of_the_same_user_are_no_negatives():
    b = random_batch()
    twice = {k: torch.cat([b[k], b[k]]) for k in ("tokens", "anchors", "users")}
    alone = profile_contrast(b["tokens"], b["anchors"], b["users"])
    assert float(profile_contrast(twice["tokens"], twice["anchors"], twice["users"])) == pytest.approx(float(alone))


def test_nobody_annotated_gives_zero_with_finite_gradients():
    b = random_batch()
    residuals = b["residuals"].requires_grad_()
    nobody = torch.full((9, 5), -1)
    contrast, focal = residual_contrast(residuals, nobody, b["query"], b["pseudo"], b["pseudo_groups"])
    assert float(contrast.detach()) == float(focal.detach()) == 0
    (contrast + focal).backward()
    assert residuals.grad.abs().max() == 0


@pytest.mark.parametrize("seed", range(3))
def test_small_losses_keep_their_digits(seed):
    """Where token and anchor are alike, as at the start of training, two large numbers were subtracted: .7 % were lost,
    and all of it in half precision."""
    tokens = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)) + 0.5
    users = torch.arange(8)
    exact = profile_contrast(tokens.double(), tokens.double(), users)
    assert 0 < exact < 1e-3
    torch.testing.assert_close(profile_contrast(tokens, tokens, users).double(), exact, rtol=1e-5, atol=0)
    half = tokens.bfloat16()
    found = profile_contrast(half, half, users)
    torch.testing.assert_close(found.double(), profile_contrast(half.double(), half.double(), users), rtol=1e-5, atol=0)
    clusters = torch.eye(64)[:4].repeat_interleave(2, 0)[:, None] + 0.02 * tokens[:, None]
    groups = torch.arange(4).repeat_interleave(2)[:, None]
    both = (residual_contrast(one, groups) for one in (clusters, clusters.double()))
    for one, other in zip(*both, strict=True):
        assert other > 0
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=0)
    assert all(one > 0 for one in residual_contrast(clusters.bfloat16(), groups))
    pair = half, (half + 0.01 * torch.randn_like(half)).bfloat16()
    torch.testing.assert_close(profile_alignment(*pair).double(), profile_alignment(pair[0].double(), pair[1].double()))


def test_a_single_facet_has_no_others_to_repeat():
    residuals, prototypes = torch.randn(3, 1, 4), torch.randn(1, 4)
    expected = np.mean([cosine(one[0], prototypes[0]) ** 2 for one in residuals])
    assert float(decorrelation(residuals, prototypes)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_is_positive(temperature):
    tokens, users = torch.randn(3, 4), torch.arange(3)
    with pytest.raises(ValueError, match="expected a temperature above 0, found"):
        profile_contrast(tokens, tokens, users, temperature=temperature)
    with pytest.raises(ValueError, match="expected a temperature above 0, found"):
        residual_contrast(tokens[:, None], users[:, None], temperature=temperature)


def test_a_pool_may_be_of_whole_numbers_and_a_token_of_zeros():
    tokens, other, users = torch.randn(3, 4), torch.randn(5, 4), torch.arange(3)
    pool = torch.rand(3, 5) > 0.5
    for kind in (torch.uint8, torch.int64, torch.float32):
        found = profile_contrast(tokens, tokens, users, other, pool.to(kind))
        assert torch.equal(found, profile_contrast(tokens, tokens, users, other, pool))
    zero = torch.zeros(3, 4, requires_grad=True)
    profile_contrast(zero, tokens, users).backward()
    assert zero.grad.abs().max() < 1e9


def test_an_empty_facet_counts_as_zero_in_the_average():
    b = random_batch()
    full = residual_contrast(b["residuals"][:, :1], torch.zeros(9, 1), b["query"])
    assert float(full[0]) == pytest.approx(0)  # one group only: p = 1
    groups = torch.arange(9)[:, None].expand(9, 2).clone()
    groups[:, 1] = -1
    half = residual_contrast(b["residuals"][:, :2], groups, b["query"])
    whole = residual_contrast(b["residuals"][:, :1], groups[:, :1], b["query"])
    assert [2 * float(v) for v in half] == pytest.approx([float(v) for v in whole])


def test_orthogonal_groups_of_unequal_size_have_their_closed_form():
    x = torch.eye(2)[torch.tensor([0, 0, 0, 1])][:, None]  # (4, 1, 2): a group of three and a loner
    groups = torch.tensor([[0], [0], [0], [1]])
    tau = 0.5
    e = math.exp(1 / tau)
    many, one = 3 * e / (3 * e + 1), e / (e + 3)
    contrast, focal = residual_contrast(x, groups, temperature=tau)
    assert float(contrast) == pytest.approx(-(3 * math.log(many) + math.log(one)) / 4, rel=1e-5)
    weighted = 3 * 0.25 * (1 - many) * math.log(many) + 0.75 * (1 - one) * math.log(one)
    assert float(focal) == pytest.approx(-weighted / 4, rel=1e-5)


def test_probability_is_clamped_where_everything_is_against_the_anchor():
    x = torch.tensor([[[1.0, 0.0]], [[1.0, 1e-4]], [[-1.0, 0.0]]])
    contrast, _ = residual_contrast(x, torch.tensor([[0], [1], [2]]), temperature=1e-3)
    assert torch.isfinite(contrast)
    far = residual_contrast(
        torch.tensor([[[1.0, 0.0]]]), torch.tensor([[0]]), torch.tensor([[1.0, 0.0]]),
        torch.ones(10**6, 1, 1) * torch.tensor([1.0, 0.0]), torch.ones(10**6, 1, dtype=torch.long),
    )[0]  # fmt: skip
    assert float(far) <= -math.log(1e-6) * (1 + 1e-6)


def test_counterfactual_residuals_without_groups_are_refused():
    b = random_batch()
    with pytest.raises(ValueError, match="counterfactual_groups"):
        residual_contrast(b["residuals"], b["groups"], b["query"], b["pseudo"])


def test_gradients_are_those_of_finite_differences():
    b = random_batch(batch=5, hidden=6)
    residuals, query = b["residuals"][:, :2].requires_grad_(), b["query"].requires_grad_()
    tokens = b["tokens"].requires_grad_()
    others = b["groups"][:, :2], b["pseudo"][:, :2], b["pseudo_groups"][:, :2]
    assert torch.autograd.gradcheck(
        lambda r, q: residual_contrast(r, others[0], q, others[1], others[2], temperature=0.5),
        (residuals, query),
    )
    assert torch.autograd.gradcheck(
        lambda t: profile_contrast(t, b["anchors"], b["users"], b["pseudo"][:, 0], b["pool"], temperature=0.5),
        (tokens,),
    )


def test_descent_on_the_contrast_gathers_groups_and_parts_them():
    generator = torch.Generator().manual_seed(0)
    residuals = torch.randn(8, 1, 8, generator=generator).requires_grad_()
    groups = torch.arange(8)[:, None] // 4
    for _ in range(50):
        (gradient,) = torch.autograd.grad(sum(residual_contrast(residuals, groups, temperature=0.5)), residuals)
        residuals = (residuals - 5 * gradient).detach().requires_grad_()
    unit = residuals.detach()[:, 0]
    similarity = cosine_similarity(unit[:, None], unit[None], dim=-1)
    same = groups == groups.T
    assert similarity[same].mean() > similarity[~same].mean() + 0.5


# --- choices between pictures -------------------------------------------------------------------------------------


def pairwise_preference_by_loops(plus_liked, plus_disliked, minus_liked, minus_disliked):
    base, plus, minus = [], [], []
    for a, b, c, d in zip(
        *(t.flatten().tolist() for t in (plus_liked, plus_disliked, minus_liked, minus_disliked)), strict=True
    ):
        of_liked, of_disliked = math.exp(a) / (math.exp(a) + math.exp(c)), math.exp(d) / (math.exp(b) + math.exp(d))
        base.append((-math.log(of_liked) - math.log(of_disliked)) / 2)
        plus.append(-math.log(1 / (1 + math.exp(b - a))))
        minus.append(-math.log(1 / (1 + math.exp(c - d))))
    return [sum(terms) / len(terms) for terms in (base, plus, minus)]


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 4)])
def test_the_loss_of_choices_is_what_its_equations_say(shape):
    logits = [3 * torch.randn(shape, dtype=torch.float64, generator=torch.manual_seed(k)) for k in range(4)]
    assert [float(term) for term in pairwise_preference(*logits)] == pytest.approx(
        pairwise_preference_by_loops(*logits)
    )


def test_an_undecided_choice_costs_log_2_in_every_term():
    same = torch.full((5,), 0.7)
    assert [float(term) for term in pairwise_preference(same, same, same, same)] == pytest.approx([math.log(2)] * 3)


def test_ranking_terms_see_differences_between_pictures_and_the_base_those_within_one():
    """M+ - M- equal in both pictures leaves the base where one error undoes the other; a shift of both pictures' M+
    moves the base and no ranking."""
    zeros, gap = torch.zeros(3), torch.full((3,), 2.0)
    base, plus, minus = pairwise_preference(gap, zeros, gap, zeros)  # each picture undecided; M+ of the liked is higher
    assert (float(base), float(plus)) == pytest.approx((math.log(2), math.log1p(math.exp(-2))))
    assert float(minus) == pytest.approx(math.log1p(math.exp(2)))
    shifted = pairwise_preference(gap + 1, gap + 1, zeros, zeros)
    assert [float(t) for t in shifted] == pytest.approx(
        [(math.log1p(math.exp(-3)) + math.log1p(math.exp(3))) / 2, math.log(2), math.log(2)]
    )


def test_terms_of_logits_far_apart_are_finite_and_so_are_their_gradients():
    logits = [torch.tensor([value], requires_grad=True) for value in (-1e4, 1e4, 1e4, -1e4)]
    terms = pairwise_preference(*logits)
    assert [float(term.detach()) for term in terms] == pytest.approx([2e4, 2e4, 2e4])
    sum(terms).backward()
    # base pulls at every logit with 1/2, plus and minus at two each with 1.
    assert [float(one.grad) for one in logits] == pytest.approx([-1.5, 1.5, 1.5, -1.5])


@pytest.mark.parametrize("shapes", [[(2,), (2,), (2,), (3,)], [(2,), (2, 1), (2,), (2,)], [(0,)] * 4])
def test_logits_that_are_not_those_of_the_same_choices_are_refused(shapes):
    with pytest.raises(ValueError, match="four logits for each choice"):
        pairwise_preference(*map(torch.zeros, shapes))
