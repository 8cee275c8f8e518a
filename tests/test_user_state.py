"""The user state: anchors, prototype + residual, corrections, prefix, free embeddings, counterfactual users."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prefmoe.data import counterfactual
from prefmoe.data.benchmark import FACETS
from prefmoe.data.prompts import facet_sentence
from prefmoe.data.sizes import ANCHORS, PREFIX_LENGTH
from prefmoe.models.anchors import encode_counterfactual_users, encode_users
from prefmoe.models.free_users import FreeUsers
from prefmoe.models.user_state import CounterfactualUsers, FactorisedUsers

USERS, HIDDEN = 6, 8


@pytest.fixture
def anchors() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(USERS, len(ANCHORS), HIDDEN) * torch.tensor([1, 2, 3, 1, 1, 5, 1, 1.0])[:, None]


@pytest.fixture
def known() -> torch.Tensor:
    known = torch.ones(USERS, len(FACETS), dtype=torch.bool)
    known[1, 2] = known[4, 4] = False
    return known


TRAINED = torch.tensor([True, True, True, True, True, False])


def test_the_prefix_is_profile_then_prototype_and_residual_of_each_facet(anchors, known):
    state = FactorisedUsers(anchors, known, TRAINED)
    with torch.no_grad():
        state.delta.normal_()
        state.prototypes.normal_()
    rows = torch.tensor([3, 1, 3])
    tokens = state(rows)
    assert tokens.prefix.shape == (3, PREFIX_LENGTH, HIDDEN)
    torch.testing.assert_close(tokens.prefix[:, :3], tokens.profile)
    torch.testing.assert_close(tokens.prefix[:, 0], anchors[rows, 0])
    for f in range(len(FACETS)):
        torch.testing.assert_close(tokens.prefix[1, 3 + 2 * f], state.prototypes[f])
        torch.testing.assert_close(tokens.prefix[:, 4 + 2 * f], tokens.residuals[:, f])
    torch.testing.assert_close(tokens.profile_anchors, anchors[rows, 1:3])
    torch.testing.assert_close(tokens.prefix[0], tokens.prefix[2])


@pytest.mark.parametrize("residual", ["centred", "published"])
def test_tokens_equal_the_equations_user_by_user(anchors, known, residual):
    state = FactorisedUsers(anchors, known, TRAINED, residual=residual, scale=0.3)
    with torch.no_grad():
        state.delta.normal_()
    tokens = state(torch.arange(USERS))
    trained = [u for u in range(USERS) if TRAINED[u]]

    def rms(rows):
        return torch.stack(rows).square().mean().sqrt()

    for kind in (1, 2):
        bound = 0.3 * rms([anchors[u, kind] for u in trained])
        for u in range(USERS):
            expected = anchors[u, kind] + bound * torch.tanh(state.delta[u, kind - 1])
            torch.testing.assert_close(tokens.profile[u, kind], expected)
    for f in range(len(FACETS)):
        holders = [anchors[u, 3 + f] for u in trained if known[u, f]]
        mean = torch.stack(holders).mean(0)
        torch.testing.assert_close(state.prototypes[f], mean)
        bound = 0.3 * rms(holders)
        for u in range(USERS):
            own = anchors[u, 3 + f] - (mean if residual == "centred" else 0)
            own = own + bound * torch.tanh(state.delta[u, 2 + f])
            expected = own if known[u, f] else torch.zeros(HIDDEN)
            torch.testing.assert_close(tokens.residuals[u, f], expected)


def test_prototype_and_centred_residual_add_up_to_the_anchor_before_training(anchors, known):
    tokens = FactorisedUsers(anchors, known, TRAINED)(torch.arange(USERS))
    whole = tokens.prototypes + tokens.residuals
    torch.testing.assert_close(whole[known], anchors[:, 3:][known])
    torch.testing.assert_close(whole[~known], tokens.prototypes.expand_as(whole)[~known])


def test_where_all_share_an_anchor_the_residual_is_nothing(anchors, known):
    """What rounding left had a direction, which decorrelation drove with gradients ten thousand times the others'."""
    same = anchors.clone()
    same[:, 7] = same[0, 7]
    state = FactorisedUsers(same, torch.ones_like(known), torch.ones(len(anchors), dtype=torch.bool))
    assert (state(torch.arange(len(anchors))).residuals[:, 4] == 0).all()


def test_no_correction_leaves_its_bound(anchors, known):
    state = FactorisedUsers(anchors, known, TRAINED, scale=0.1)
    before = state(torch.arange(USERS)).residuals.detach()
    with torch.no_grad():
        state.delta.fill_(1e6)
    moved = (state(torch.arange(USERS)).residuals - before).abs().amax((0, 2))
    torch.testing.assert_close(moved, state.bound[2:, 0])


def test_gradients_reach_the_batchs_users_and_the_prototypes_only(anchors, known):
    state = FactorisedUsers(anchors, known, TRAINED)
    state(torch.tensor([0, 1])).prefix.square().sum().backward()
    assert {name for name, _ in state.named_parameters()} == {"delta", "prototypes"}
    touched = state.delta.grad.abs().sum(2) > 0
    assert touched[0].all() and not touched[2:].any()
    assert touched[1].tolist() == [True, True, True, True, False, True, True]  # no annotation, no correction
    assert (state.prototypes.grad.abs().sum(1) > 0).all()


def test_unseen_users_do_not_shape_the_means(anchors, known):
    changed = anchors.clone()
    changed[5] += 100
    first, second = (FactorisedUsers(a, known, TRAINED) for a in (anchors, changed))
    assert torch.equal(first.prototypes, second.prototypes) and torch.equal(first.bound, second.bound)


def test_a_state_without_trained_users_is_refused(anchors, known):
    with pytest.raises(ValueError, match="at least one user"):
        FactorisedUsers(anchors, known, torch.zeros(USERS, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one user"):
        FreeUsers(torch.zeros(USERS, dtype=torch.bool), HIDDEN, 1.0)


class LargestResult(TorchDispatchMode):
    """Notes the size of the largest tensor that an operation allocates."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("kind", [FactorisedUsers, FreeUsers])
def test_making_tokens_does_not_touch_all_users(kind):
    users, rows = 5000, torch.tensor([4999, 0])
    everybody = torch.ones(users, dtype=torch.bool)
    if kind is FactorisedUsers:
        state = kind(torch.randn(users, 8, HIDDEN), everybody[:, None].expand(-1, 5), everybody)
    else:
        state = kind(everybody, HIDDEN, 1.0)
    with LargestResult() as largest:
        state(rows)
    assert 0 < largest.elements <= len(rows) * PREFIX_LENGTH * HIDDEN


def test_added_users_start_without_correction_and_change_nobody(anchors, known):
    state = FactorisedUsers(anchors, known, TRAINED)
    with torch.no_grad():
        state.delta.normal_()
    before = state(torch.arange(USERS)).prefix
    state.append(anchors[2:3], known[2:3])
    after = state(torch.arange(USERS + 1)).prefix
    torch.testing.assert_close(after[:USERS], before)
    assert state.delta.requires_grad and state.delta[USERS].abs().max() == 0
    torch.testing.assert_close(after[USERS, 1], anchors[2, 1])


def test_free_users_without_training_get_the_mean_of_the_trained():
    torch.manual_seed(0)
    trained = torch.tensor([True, False, True])
    state = FreeUsers(trained, HIDDEN, 0.5).eval()
    prefix = state(torch.arange(3)).prefix
    assert torch.equal(prefix[[0, 2]], state.embedding)
    torch.testing.assert_close(prefix[1], prefix[[0, 2]].mean(0))
    state.append(1)
    torch.testing.assert_close(state(torch.tensor([3])).prefix[0], prefix[1])
    wide = FreeUsers(torch.ones(50, dtype=torch.bool), 64, 0.5).embedding
    assert wide.std().item() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("kind", ["embedding", "hidden"])
def test_anchors_are_those_of_the_backbone_one_user_at_a_time(llava, tiny_benchmark, kind):
    users = list(tiny_benchmark.users.values())
    anchors, known = encode_users(llava, users, kind)
    assert anchors.shape == (4, 8, llava.hidden_size) and not anchors.requires_grad
    assert known.tolist()[3] == [True, True, True, True, False] and known[:3].all()
    for u, user in enumerate(users):
        texts = [user.name, user.description]
        alone = torch.cat([llava.text_anchors([text], kind=kind) for text in texts])
        torch.testing.assert_close(anchors[u, [0, 2]], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(anchors[u, 1], llava.image_features([user.image])[0].mean(0), rtol=1e-4, atol=1e-5)
        for f, facet in enumerate(FACETS):
            if facet in user.preferences:
                alone = llava.text_anchors([facet_sentence(user, facet)], kind=kind)[0]
                torch.testing.assert_close(anchors[u, 3 + f], alone, rtol=1e-4, atol=1e-5)
            else:
                assert anchors[u, 3 + f].abs().max() == 0
    torch.testing.assert_close(anchors[0, 3:], anchors[1, 3:])  # Ann and Bob have the same preferences


@pytest.fixture
def pseudo_state(llava, tiny_benchmark):
    pseudo = counterfactual.generate(tiny_benchmark, 13, 0)
    users = list(tiny_benchmark.users.values())
    anchors, known = encode_users(llava, users, "embedding")
    state = FactorisedUsers(anchors, known, torch.ones(4, dtype=torch.bool))
    encoded = encode_counterfactual_users(llava, pseudo, "embedding", anchors)
    groups = torch.tensor(counterfactual.groups(pseudo, tiny_benchmark))
    made = CounterfactualUsers(encoded, state.center, [user.family for user in pseudo], groups, 100)
    return pseudo, anchors, state, encoded, groups, made


def test_counterfactual_anchors_come_from_texts_and_two_similar_faces(llava, pseudo_state):
    pseudo, anchors, state, encoded, _, made = pseudo_state
    alone = llava.text_anchors([facet_sentence(pseudo[2], "travel")], kind="embedding")[0]
    torch.testing.assert_close(encoded[2, 4], alone)
    torch.testing.assert_close(made.residuals[2, 1], alone - state.center[1])
    faces = anchors[:, 1]
    unit = torch.nn.functional.normalize(faces, dim=-1)
    likeness = unit @ unit.T
    near = likeness.fill_diagonal_(-2).argmax(1)
    mixtures = 0.65 * faces + 0.35 * faces[near]  # one per real user
    rms = faces.square().mean().sqrt()
    for token in made.image:
        distance = (token - mixtures).square().mean(1).sqrt().min()
        assert 0 < distance < 0.25 * rms
    assert len({tuple(row.tolist()) for row in made.image}) == 13


def test_counterfactual_users_meet_the_users_they_were_drawn_from_not_all_meet_all(llava, pseudo_state):
    pseudo, users = pseudo_state[0][:3], 3000
    real = torch.randn(users, 8, llava.hidden_size)
    with LargestResult() as largest:
        encode_counterfactual_users(llava, pseudo, "embedding", real)
    assert largest.elements < users * users / 10


def test_counterfactual_users_join_real_groups_or_have_their_own(pseudo_state):
    *_, groups, made = pseudo_state
    assert torch.equal(made.groups[groups >= 0], groups[groups >= 0])
    own = made.groups[groups < 0]
    assert (own >= 100).all() and len(own.unique()) == len(own) > 0


def test_a_question_admits_the_pseudo_users_of_its_facet_and_recognition_two_of_each(pseudo_state):
    pseudo, *_, made = pseudo_state
    for f, facet in enumerate(FACETS):
        assert made.pool[f].tolist() == [user.family == facet for user in pseudo]
    recognition = made.pool[torch.tensor(-1)]
    counts = {
        facet: sum(u.family == facet and bool(m) for u, m in zip(pseudo, recognition, strict=True)) for facet in FACETS
    }
    assert set(counts.values()) == {2}
    assert not list(made.state_dict())
