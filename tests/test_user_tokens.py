"""User tokens and the branch that reads them: what they are made of, how they are aligned, what learns."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from small_choices import benchmark
from small_generation import asked_of, branch, known_of
from tiny_drawers import tiny_drawer
from torch.nn.functional import cosine_similarity

from prefmoe.config import Training
from prefmoe.data.choice_tastes import TasteError, excess, words
from prefmoe.data.choices import HistoryError
from prefmoe.generation.branch import WrongUser, embed_words, liked_batches, training_histories
from prefmoe.generation.drawer import DrawerError
from prefmoe.generation.drawing import Drawing, drawn_users, noise_seeds
from prefmoe.generation.sampling import sample
from prefmoe.generation.states import History
from prefmoe.generation.user_tokens import Known, alignment
from prefmoe.losses import median_bandwidths, mmd
from prefmoe.models.base import MethodError

USERS = benchmark().trained_users


def told(count: int = 4) -> list[History]:
    return [History(user, 3, 0) for user in USERS[:count]]


def moved(one, scale: float = 0.5):
    """A branch whose values are no longer zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in one.branch.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return one


def test_tokens_are_the_parts_one_behind_the_other_at_the_scale_of_text():
    whole = branch()
    known = known_of(whole, told())
    with torch.no_grad():
        tokens = whole.tokens(known)
        assert tokens.shape == (4, 4 + 4 + 4, whole.drawer.width)
        torch.testing.assert_close(tokens[:, :4], whole.tokens.semantic(known))
        text = whole.drawer.encode_prompts([""])
    assert float(tokens.square().mean().sqrt()) == pytest.approx(float(text.square().mean().sqrt()), rel=0.01)
    for parts, count in ((["sem"], 4), (["core"], 4), (["img"], 4), (["sem", "img"], 8)):
        one = branch(parts=parts, alignment="none")
        assert one.tokens(known).shape[1] == count
    with pytest.raises(ValueError, match="no e_sem"):
        branch(parts=["img"], alignment="none").tokens.semantic(known)


def test_each_part_reads_its_own_layers_and_nothing_else():
    one = branch(top_layers=1)
    known = known_of(one, told())
    layers = known.states.shape[2]
    with torch.no_grad():
        before = one.tokens(known)
        for layer in range(layers):
            states = known.states.clone()
            states[:, :, layer] *= -1
            changed = (one.tokens(Known(states, known.picture)) != before).any(-1).any(0)
            assert bool(changed[:8].any()) == (layer == layers - 1) and not changed[8:].any()
        other = Known(known.states, known.picture + torch.randn_like(known.picture))
        changed = (one.tokens(other) != before).any(-1).any(0)
        assert changed[8:].all() and not changed[:8].any()


def test_states_are_standardised_by_the_training_users():
    one = branch()
    known = known_of(one, told())
    one.tokens.standardise(5 + 3 * known.states)
    standard = one.tokens._states(Known(5 + 3 * known.states, known.picture))
    torch.testing.assert_close(standard.mean(0), torch.zeros_like(standard[0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(standard.std(0), torch.ones_like(standard[0]), rtol=1e-4, atol=1e-4)


def test_alignment_by_hand():
    generator = torch.Generator().manual_seed(0)
    semantic, liked, disliked = (torch.randn(5, n, 6, generator=generator) for n in (4, 3, 3))
    mse = cosine = 0.0
    for user in range(5):
        for tokens, said in ((semantic[user, :2], liked[user]), (semantic[user, 2:], disliked[user])):
            mse += float((tokens.mean(0) - said.mean(0)).square().mean()) / 10
            cosine += float(1 - cosine_similarity(tokens.mean(0), said.mean(0), dim=0)) / 10
    assert float(alignment(semantic, liked, disliked, "mse")) == pytest.approx(mse, rel=1e-5)
    assert float(alignment(semantic, liked, disliked, "cosine")) == pytest.approx(cosine, rel=1e-5)
    sides = ((semantic[:, :2], liked), (semantic[:, 2:], disliked))
    parts = [(tokens.reshape(10, 6), said.reshape(15, 6)) for tokens, said in sides]
    by_hand = sum(float(mmd(x, y, bandwidths=median_bandwidths(x, y))) for x, y in parts) / 2
    assert float(alignment(semantic, liked, disliked, "mmd")) == pytest.approx(by_hand, rel=1e-5)
    with pytest.raises(ValueError, match="expected mmd, mse or cosine, found 'mae'"):
        alignment(semantic, liked, disliked, "mae")


def test_mmd_is_blind_to_whose_words_they_are_and_points_are_not():
    generator = torch.Generator().manual_seed(1)
    semantic, liked = (torch.randn(5, n, 6, generator=generator) for n in (4, 3))
    for how, same in (("mmd", True), ("mse", False), ("cosine", False)):
        values = [float(alignment(semantic, some, some, how)) for some in (liked, liked.flip(0))]
        assert (values[0] == pytest.approx(values[1], rel=1e-5, abs=1e-6)) is same


def test_words_lie_behind_their_prompt_in_the_drawers_text_space():
    drawer = branch().drawer
    found = embed_words(drawer, ["scarlet", "night"], "two cats")
    with torch.no_grad():
        whole = drawer.encode_prompts(["two cats, scarlet", "two cats, night"])
    for row, text in zip(found, whole, strict=True):
        assert any(torch.allclose(row, one) for one in text)
    assert not torch.allclose(found[0], found[1])
    ids = drawer.token_ids(["two cats, scarlet"])[0]
    place = ids.tolist().index(drawer.tokenizer.convert_tokens_to_ids("scarlet"))
    torch.testing.assert_close(found[0], whole[0, place])


def test_the_words_of_a_user_are_what_the_training_choices_show():
    one = branch(words=2)
    liked, disliked = one.words(told())
    own = benchmark().by_user("train")
    carrier = min({choice.prompt for choice in benchmark().select("train")})
    for row, user in enumerate(USERS[:4]):
        seen = excess(benchmark(), own[user])
        for found, side in ((liked, True), (disliked, False)):
            expected = embed_words(one.drawer, list(words(seen, 2, liked=side).values()), carrier)
            torch.testing.assert_close(found[row], expected)
    with pytest.raises(TasteError, match="expected choices that show 7 liked"):
        branch(words=7).words(told())


# --- the branch


def test_an_untrained_branch_draws_as_if_there_were_no_user_and_a_trained_one_does_not():
    one = branch()
    one.tell(told(2), known_of(one, told(2)))
    asked = asked_of(USERS[:2])
    noise = noise_seeds(asked, one.generation.prompts, one.benchmark.users)
    nobody = sample(branch().drawer, list(asked["prompt"]), noise=noise, steps=2, text_scale=2.0)
    torch.testing.assert_close(one.draw(asked), nobody, rtol=0, atol=1e-5)
    drawn = moved(one).draw(asked)
    assert not torch.allclose(drawn, nobody, atol=1e-3)
    assert not torch.allclose(drawn[:2], drawn[2:], atol=1e-3)  # two users, the same noise
    torch.testing.assert_close(one.draw(asked.assign(scale=0.0)), nobody, rtol=0, atol=1e-5)
    assert torch.equal(one.draw(asked), drawn)


def test_pictures_come_in_the_order_of_the_requests_however_they_are_batched():
    one = moved(branch())
    one.tell(told(3), known_of(one, told(3)))
    asked = asked_of(USERS[:3])
    asked.loc[asked.index[::2], "scale"] = 1.0
    together = one.draw(asked)
    for row in range(len(asked)):
        alone = one.draw(asked.iloc[[row]].reset_index(drop=True))
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-4)


def test_each_picture_is_denoised_behind_histories_that_do_not_hold_it():
    found, fitting = training_histories(benchmark(), n_ref=3, lengths=(1,), draws=2)
    choices = benchmark().select("train")
    assert set(fitting) == {choice.index for choice in choices}
    for choice in choices:
        lengths = [found[place].n_ref for place in fitting[choice.index]]
        assert len(lengths) == 2 and lengths[0] == 3
        for place in fitting[choice.index]:
            entries = found[place].entries(benchmark())
            assert found[place].user == choice.user and choice.liked not in {entry.picture for entry in entries}
    assert {one.n_ref for one in found} == {1, 3}
    with pytest.raises(HistoryError, match="has 6 choices, expected more than n_ref = 6"):
        training_histories(benchmark(), n_ref=6, lengths=(), draws=1)


def batches(one, seed: int = 0, steps: int = 4):
    found, fitting = training_histories(benchmark(), n_ref=3, lengths=(), draws=1)
    make = liked_batches(one, found, fitting, known_of(one, found))
    return make(one, benchmark().select("train"), Training(steps=steps, batch_size=6), seed)


def test_batches_are_liked_pictures_with_their_prompts_and_their_users():
    one = branch()
    made, choices = batches(one), benchmark().select("train")
    batch = made.collate(0, 0, 1)
    assert batch.pictures.shape == (6, 3, 32, 32) and -1 <= batch.pictures.min() < batch.pictures.max() <= 1
    with torch.no_grad():
        for row, place in enumerate(made.plan[0]):
            torch.testing.assert_close(batch.text[row], one.drawer.encode_prompts([choices[place].prompt])[0])
    shown = sorted(place for part in made.plan for place in part)
    assert len(set(shown)) == 24  # four batches of six: no choice twice before all were seen
    parts = [made.collate(0, rank, 3) for rank in range(3)]
    assert torch.equal(torch.stack([part.pictures[0] for part in parts]), batch.pictures[:3])
    assert batches(one, seed=1).plan != made.plan and batches(one).plan == made.plan


@pytest.mark.parametrize("changes", [{}, {"alignment": "none"}, {"parts": ["img"], "alignment": "none"}])
def test_only_the_branch_and_the_tokens_learn(changes):
    one = branch(**changes).train()
    drawer = {name: p.clone() for name, p in one.drawer.unet.named_parameters() if "_ip" not in name}
    optimizer = torch.optim.AdamW(one.parameter_groups())
    batch = batches(one).collate(0, 0, 1)
    for _ in range(2):  # with values of zero, nothing but the values has a gradient in the first step
        losses = one.training_losses(batch)
        assert set(losses) == ({"answer"} if one.config.alignment == "none" else {"answer", "alignment"})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in one.tokens.parameters())
    assert all(p.grad.abs().sum() > 0 for p in one.branch.parameters())
    assert all(p.grad is None for p in [*one.drawer.text_encoder.parameters(), *one.backbone.model.parameters()])
    assert all(torch.equal(one.drawer.unet.get_parameter(name), p) for name, p in drawer.items())
    assert {name.split(".")[0] for name in one._tensors()} == {"tokens", "branch", "drawn_with"}


def test_what_is_saved_draws_the_same_when_loaded(tmp_path):
    one = moved(branch())
    one.tokens.standardise(known_of(one, told()).states)
    one.save_pretrained(tmp_path)
    other = branch(seed=4)
    other.load(tmp_path / "method.safetensors")
    asked = asked_of(USERS[:2])
    for each in (one, other):
        each.seed = 0
        each.tell(told(2), known_of(one, told(2)))
    assert torch.equal(one.draw(asked), other.draw(asked))


def test_a_branch_of_another_drawer_is_refused(tmp_path):
    branch().save_pretrained(tmp_path)
    with pytest.raises(MethodError, match="trained beside the drawer [0-9a-f]{16}, and this one is [0-9a-f]{16}"):
        branch(drawer=tiny_drawer(1)).load(tmp_path / "method.safetensors")
    noisier = tiny_drawer()
    noisier.scheduler = DDIMScheduler.from_config(noisier.scheduler.config, beta_schedule="linear")
    with pytest.raises(MethodError, match="trained beside the drawer"):
        branch(drawer=noisier).load(tmp_path / "method.safetensors")


def test_pictures_that_are_not_finite_are_refused_when_they_are_drawn():
    one = moved(branch())
    with torch.no_grad():
        for parameter in one.branch.parameters():  # keys alone would do nothing: findings/torch_attention_loses_nan.sh
            parameter.fill_(float("nan"))
    one.tell(told(2), known_of(one, told(2)))
    with pytest.raises(DrawerError, match=r"picture 0 \('two cameras'\) is not finite"):
        one.draw(asked_of(USERS[:2]))


def test_a_wrong_user_is_drawn_for_by_the_history_of_another():
    """Three users of each group (the edition draws for so many): nobody gets his own, everybody's is given once."""
    right, wrong = moved(branch()), moved(branch(WrongUser))
    asked = asked_of(USERS[:3])
    histories = right.histories(asked)
    assert wrong.histories(asked) == histories
    for one in (right, wrong):
        one.tell(histories, known_of(right, histories))
    others = [wrong.other(user) for user in USERS[:3]]
    assert sorted(others) == USERS[:3] and all(a != b for a, b in zip(others, USERS[:3], strict=True))
    swapped = asked.assign(user=asked["user"].map(dict(zip(USERS[:3], others, strict=True))))
    assert torch.equal(wrong.user_tokens(asked), right.user_tokens(swapped))
    assert not torch.equal(wrong.draw(asked), right.draw(asked))


@pytest.mark.parametrize("groups", [(0, 0, 0, 1, 1, 2), (2, 1, 0, 2, 1, 0), (0, 0, 0, 0, 1, 1)])
def test_a_wrong_user_is_of_another_taste_group_wherever_that_can_be(groups):
    """Counted by trying every way of giving everybody another's history."""
    world = benchmark()
    users = next(iter(drawn_users(world, 6).values()))
    utilities = world.utilities.copy()
    utilities.loc[users, "group"] = groups[: len(users)]
    one = branch(WrongUser)
    one.benchmark, one.generation = replace(world, utilities=utilities), one.generation.model_copy(update={"users": 6})
    alike = sum(utilities.loc[user, "group"] == utilities.loc[one.other(user), "group"] for user in users)
    places = range(len(users))
    ways = [way for way in permutations(places) if all(k != way[k] for k in places)]
    assert alike == min(sum(groups[k] == groups[way[k]] for k in places) for way in ways)


def test_words_of_who_was_not_trained_on_are_read_off_what_a_history_may_hold():
    one, world = branch(), benchmark()
    (user, *_) = world.by_user("unseen")
    choices = [world.choices[k] for k in world.references[user]]
    try:
        liked, disliked = one.words([History(user, 3, 0)])
    except TasteError as error:
        assert user in str(error)
    else:
        carrier = min({choice.prompt for choice in world.select("train")})
        named = list(words(excess(world, choices), one.config.words, liked=True).values())
        torch.testing.assert_close(liked[0], torch.stack(list(embed_words(one.drawer, named, carrier))))
        assert disliked.shape == liked.shape


def test_nobody_is_added_without_a_history():
    assert Drawing.users_need_training and branch().prompts(asked_of(USERS[:1])) == ["two cameras", "one crown"]
