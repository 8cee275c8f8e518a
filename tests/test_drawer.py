"""The drawer: prompts, guidance, the branch for users, and what it refuses."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_drawers import PROMPTS, some_users, tiny_drawer
from torch.nn import functional as F

from prefmoe.data.choice_drawing import ATTRIBUTES, draw_choice_picture, random_attributes
from prefmoe.generation import sampling
from prefmoe.generation.captions import OPEN, caption, reduced, words
from prefmoe.generation.denoising import denoising_loss
from prefmoe.generation.drawer import Drawer, DrawerError
from prefmoe.generation.reader import AttributeReader, ReaderError, load_reader
from prefmoe.generation.sampling import drawn, noise_of, sample
from prefmoe.generation.user_branch import add_user_branch, remove_user_branch

SEEDS = (5, 6, 7)


@pytest.fixture(scope="module")
def drawer() -> Drawer:
    return tiny_drawer()


@pytest.fixture
def personal(drawer):
    """The drawer with an untrained branch for users, and the branch."""
    yield drawer, add_user_branch(drawer)
    remove_user_branch(drawer)


def _trained(branch: torch.nn.ModuleDict, seed: int = 0) -> None:
    """Values that are no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in branch.named_parameters():
            if "to_v_ip" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


# Captions


def test_a_caption_tells_the_content_first_and_then_what_is_told_in_one_order():
    shown = {**random_attributes(np.random.default_rng(0)), "number": "two", "item": "cameras", "palette": "scarlet",
             "background": "night", "tilt": "tilted"}  # fmt: skip
    assert caption(shown, ("tilt", "background", "palette")) == "two cameras, scarlet, night, tilted"
    assert caption({**shown, "number": "one"}, ()) == "one camera"
    assert caption(shown).count(",") == len(OPEN) == 7


@pytest.mark.parametrize(
    ("told", "said"), [(("colour",), "told: .* got colour"), (("palette",), "tells palette, .* only number, item")]
)
def test_a_caption_refuses_what_it_cannot_tell(told, said):
    with pytest.raises(ValueError, match=said):
        caption({"number": "two", "item": "cameras"}, told)


def test_every_caption_is_of_known_words_and_fits(drawer):
    rng = np.random.default_rng(1)
    captions = [caption(random_attributes(rng)) for _ in range(200)]
    ids = drawer.token_ids(captions)
    said = {word for one in captions for word in one.replace(",", "").split()}
    assert said == set(words())
    known = drawer.tokenizer.get_vocab()
    for row, one in zip(ids.tolist(), captions, strict=True):
        assert row[1:-1] == [known[word] for word in one.replace(",", " ").split()]
    assert ids.shape[1] == drawer.length == 2 + len(ATTRIBUTES)


def test_a_reduced_picture_has_the_mean_of_the_pixels_that_each_of_its_own_replaces():
    rng = np.random.default_rng(2)
    picture = draw_choice_picture(random_attributes(rng), rng)
    blocks = np.asarray(picture, float).reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(reduced(picture) - blocks).max() <= 1  # it rounds twice
    assert reduced(Image.new("L", (9, 9), 40)).tolist() == [[[40] * 3] * 32] * 32


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("two zebras, scarlet", "'two zebras, scarlet': .* not know zebras$"), ("two " * 12, "at most 9 words")],
)
def test_prompts_that_cannot_be_read_are_refused(drawer, prompt, said):
    with pytest.raises(DrawerError, match=said):
        sample(drawer, [prompt], noise=[0], steps=1)


# Drawing


def test_a_prediction_is_the_networks_own_on_patches(drawer):
    noisy, text = noise_of(drawer, SEEDS), drawer.encode_prompts(PROMPTS)
    times = torch.tensor([10, 500, 999])
    got = drawer.predict(noisy, times, text)
    patches = noisy.reshape(3, 3, 8, 4, 8, 4).permute(0, 1, 3, 5, 2, 4).reshape(3, 48, 8, 8)
    seen = drawer.unet(patches, times, text).sample
    back = seen.reshape(3, 3, 4, 4, 8, 8).permute(0, 1, 4, 2, 5, 3).reshape(3, 3, 32, 32)
    torch.testing.assert_close(got, back)


def test_the_same_noise_makes_the_same_picture_and_another_makes_another(drawer):
    first = sample(drawer, PROMPTS, noise=SEEDS, steps=3)
    assert first.shape == (3, 3, 32, 32) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, sample(drawer, PROMPTS, noise=noise_of(drawer, SEEDS), steps=3))
    assert not torch.equal(first, sample(drawer, PROMPTS, noise=[5, 6, 8], steps=3))


def test_pictures_of_a_batch_are_those_drawn_one_by_one(personal):
    drawer, branch = personal
    _trained(branch)
    users = some_users(drawer, 3)
    given = dict(steps=3, text_scale=1.7, user_scale=2.2)
    together = sample(drawer, PROMPTS, noise=SEEDS, user_tokens=users, **given)
    for k, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        alone = sample(drawer, [prompt], noise=[seed], user_tokens=users[k : k + 1], **given)
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("text_scale", "user_scale"), [(0.0, 0.0), (1.0, 1.0), (2.5, 0.0), (1.5, 3.0)])
def test_guidance_has_two_scales(personal, text_scale, user_scale):
    """One step of DDIM from pure noise, by hand: noise is what guidance is written in, and so are clean pictures."""
    drawer, branch = personal
    _trained(branch)
    users, noise = some_users(drawer, 3), noise_of(drawer, SEEDS)
    got = sample(drawer, PROMPTS, noise=noise, user_tokens=users, steps=1, text_scale=text_scale,
                 user_scale=user_scale)  # fmt: skip
    last = torch.full((3,), drawer.scheduler.config.num_train_timesteps - 1)
    kept = drawer.scheduler.alphas_cumprod[last].view(-1, 1, 1, 1)

    @torch.no_grad()
    def foretold(prompts, tokens):
        clean = drawer.predict(noise, last, drawer.encode_prompts(prompts), tokens)
        return (noise - kept.sqrt() * clean) / (1 - kept).sqrt()

    nobody = torch.zeros_like(users)
    empty, text, both = foretold([""] * 3, nobody), foretold(PROMPTS, nobody), foretold(PROMPTS, users)
    guided = empty + text_scale * (text - empty) + user_scale * (both - text)
    wanted = (noise - (1 - kept).sqrt() * guided) / kept.sqrt()
    # alpha is tiny at the last step, which amplifies rounding of the noise
    torch.testing.assert_close(got, wanted.clamp(-1, 1) / 2 + 0.5, rtol=0, atol=2e-2)


def test_what_users_share_is_computed_once(personal, monkeypatch):
    """Rows that the network sees: two conditions of each kind and one of each user at first, three of each after."""
    drawer, branch = personal
    _trained(branch)
    prompts, seeds, users = [PROMPTS[0], PROMPTS[1]] * 3, [5, 6] * 3, some_users(drawer, 6)
    alone = [
        sample(drawer, [p], noise=[n], user_tokens=u[None], steps=3)
        for p, n, u in zip(prompts, seeds, users, strict=True)
    ]
    nobody = sample(drawer, prompts[:2], noise=seeds[:2], steps=3)
    asked, predict = [], drawer.predict
    monkeypatch.setattr(drawer, "predict", lambda *given: asked.append(len(given[0])) or predict(*given))
    together = sample(drawer, prompts, noise=seeds, user_tokens=users, steps=3)
    assert asked == [2 + 2 + 6, 18, 18]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
    for given in ({}, {"user_tokens": users, "user_scale": 0.0}):
        asked.clear()
        pictures = sample(drawer, prompts, noise=seeds, steps=3, **given)
        assert asked == [4, 4, 4]
        torch.testing.assert_close(pictures, nobody.repeat(3, 1, 1, 1), rtol=0, atol=1e-5)


def test_so_many_pictures_as_fit_take_their_steps_together(drawer, monkeypatch):
    whole = sample(drawer, PROMPTS, noise=SEEDS, steps=2)
    monkeypatch.setattr(sampling, "AT_ONCE", 2)
    torch.testing.assert_close(sample(drawer, PROMPTS, noise=SEEDS, steps=2), whole, rtol=0, atol=1e-5)


def test_a_gradient_goes_back_to_the_noise(drawer):
    noise = noise_of(drawer, SEEDS).requires_grad_()
    drawn(drawer, PROMPTS, noise=noise, steps=2).square().sum().backward()
    assert torch.isfinite(noise.grad).all() and noise.grad.abs().sum() > 0
    assert not sample(drawer, PROMPTS, noise=noise, steps=1).requires_grad


def test_a_drawers_own_scheduler_is_left_alone(drawer):
    before = drawer.scheduler.timesteps.clone()
    sample(drawer, PROMPTS, noise=SEEDS, steps=2)
    assert torch.equal(drawer.scheduler.timesteps, before)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text_scale": -0.1}, "text_scale: expected a number from 0, got -0.1"),
        ({"user_scale": float("nan")}, "user_scale: expected a number from 0, got nan"),
        ({"steps": 0}, "steps: expected a whole number from 1 to 1000, got 0"),
        ({"steps": 2.5}, "steps: expected a whole number from 1 to 1000, got 2.5"),
        ({"noise": torch.full((3, 3, 32, 32), torch.nan)}, "noise of picture 0 of 3: expected finite numbers"),
        ({"noise": torch.zeros(2, 3, 32, 32)}, r"noise: expected \(3, 3, 32, 32\), got \(2, 3, 32, 32\)"),
        ({"noise": [1, 2]}, r"noise: expected \(3, 3, 32, 32\)"),
        ({"user_tokens": torch.zeros(3, 4, 16)}, "no branch for users"),
    ],
)
def test_bad_wishes_are_refused(drawer, given, said):
    with pytest.raises(DrawerError, match=said):
        sample(drawer, PROMPTS, **{"noise": SEEDS, "steps": 1, **given})


# Users


def test_an_untrained_branch_draws_as_if_there_were_no_user(drawer):
    plain = sample(drawer, PROMPTS, noise=SEEDS, steps=3)
    add_user_branch(drawer)
    users = some_users(drawer, 3)
    for given in ({}, {"user_tokens": users}, {"user_tokens": users, "user_scale": 4.0}):
        torch.testing.assert_close(sample(drawer, PROMPTS, noise=SEEDS, steps=3, **given), plain, rtol=0, atol=1e-5)
    remove_user_branch(drawer)
    assert torch.equal(sample(drawer, PROMPTS, noise=SEEDS, steps=3), plain)


def test_zeros_are_nobody_and_users_are_told_apart(personal):
    drawer, branch = personal
    _trained(branch)
    users = some_users(drawer, 3)
    given = dict(noise=SEEDS, steps=2)
    nobody = sample(drawer, PROMPTS, **given)
    zeros = sample(drawer, PROMPTS, user_tokens=torch.zeros_like(users), user_scale=3.0, **given)
    torch.testing.assert_close(zeros, nobody, rtol=0, atol=1e-5)
    right = sample(drawer, PROMPTS, user_tokens=users, **given)
    wrong = sample(drawer, PROMPTS, user_tokens=users.roll(1, 0), **given)
    assert (right - nobody).abs().max() > 1e-3 and (right - wrong).abs().max() > 1e-3


def test_the_branch_is_attention_beside_the_texts(personal):
    """Against attention written out, in one of the U-Net's blocks."""
    drawer, branch = personal
    _trained(branch)
    attention = drawer.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    generator = torch.Generator().manual_seed(3)
    states, text = (torch.randn(2, n, 16, generator=generator) for n in (5, 11))
    users = some_users(drawer, 2)
    own = branch["mid_block/attentions/0/transformer_blocks/0/attn2"]

    def attended(keys, values):
        split = [x.unflatten(-1, (4, 4)).transpose(1, 2) for x in (attention.to_q(states), keys, values)]
        weights = (split[0] @ split[1].transpose(-1, -2) / 2).softmax(-1)
        return (weights @ split[2]).transpose(1, 2).flatten(-2)

    both = attended(attention.to_k(text), attention.to_v(text))
    both = both + attended(F.linear(users, own.to_k_ip[0].weight), F.linear(users, own.to_v_ip[0].weight))
    got = attention(states, encoder_hidden_states=(text, [users]))
    torch.testing.assert_close(got, attention.to_out[0](both))


def test_only_the_branch_is_trained(personal):
    drawer, branch = personal
    own = {name for name, p in branch.named_parameters() if p.requires_grad}
    assert len(own) == 2 * len(branch) == len(list(branch.parameters()))
    others = [p for p in (*drawer.unet.parameters(), *drawer.text_encoder.parameters()) if p.requires_grad]
    assert {id(p) for p in others} == {id(p) for p in branch.parameters()}
    clean, users = torch.zeros(3, 3, 32, 32), some_users(drawer, 3)
    text = drawer.encode_prompts(PROMPTS)
    denoising_loss(drawer, clean, text, np.random.default_rng(0), users).backward()
    assert all(one.to_v_ip[0].weight.grad.abs().sum() > 0 for one in branch.values())
    branch.zero_grad(set_to_none=True)


def test_the_loss_of_denoising_is_weighted_by_the_signal_to_noise_ratio(drawer):
    clean = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    text, rng = drawer.encode_prompts(PROMPTS), np.random.default_rng(8)
    got = denoising_loss(drawer, clean, text, rng, most=3)
    rng = np.random.default_rng(8)
    times = (1000 * np.sqrt(rng.random(3))).astype(int)
    noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
    each = []
    for k, time in enumerate(times.tolist()):
        kept = float(drawer.scheduler.alphas_cumprod[time])
        noisy = kept**0.5 * clean[k] + (1 - kept) ** 0.5 * noise[k]
        seen = drawer.predict(noisy[None], torch.tensor([time]), text[k : k + 1])[0]
        each.append(min(max(kept / (1 - kept), 1), 3) * (seen - clean[k]).detach().square().mean(0))
    assert got.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-4)
    emphasis = torch.ones(3, 1, 32, 32)
    emphasis[:, :, 5:9, 7:] = 4
    stressed = denoising_loss(drawer, clean, text, np.random.default_rng(8), emphasis=emphasis, most=3)
    assert stressed.item() == pytest.approx((torch.stack(each) * emphasis[:, 0]).mean().item(), rel=1e-4)


# Folders


def test_a_drawer_is_the_same_after_saving_and_loading(drawer, tmp_path):
    drawer.save_pretrained(tmp_path / "drawer")
    again = Drawer.from_pretrained(tmp_path / "drawer")
    given = dict(noise=SEEDS, steps=2)
    assert torch.equal(sample(again, PROMPTS, **given), sample(drawer, PROMPTS, **given))
    assert (again.size, again.width, again.length) == (32, 16, 11)
    assert len({path.stat().st_mode for path in (tmp_path / "drawer").rglob("*") if path.is_file()}) == 1


def test_a_drawer_is_saved_without_its_branch(personal, tmp_path):
    with pytest.raises(DrawerError, match="saved without its branch for users: remove_user_branch"):
        personal[0].save_pretrained(tmp_path / "with branch")
    assert not (tmp_path / "with branch").exists()


def test_folders_without_a_drawer_are_refused(drawer, tmp_path):
    with pytest.raises(DrawerError, match="model_index.json is missing"):
        Drawer.from_pretrained(tmp_path / "nothing")
    index = tmp_path / "other" / "model_index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(DrawerError, match="expected a Drawer, found a pipeline of the kind StableDiffusionPipeline"):
        Drawer.from_pretrained(index.parent)
    index.write_text("no JSON")
    with pytest.raises(DrawerError, match="model_index.json"):
        Drawer.from_pretrained(index.parent)
    drawer.save_pretrained(tmp_path / "damaged")
    (tmp_path / "damaged" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DrawerError, match="damaged: not the weights of a drawer"):
        Drawer.from_pretrained(tmp_path / "damaged")


def _of_nan(path):
    tensors = load_file(path)
    name = sorted(name for name in tensors if name.endswith("weight"))[-1]
    tensors[name].view(-1)[-1] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    return f"NaN or infinite values in {name}"


def _without_a_tensor(path):
    tensors = load_file(path)
    name = sorted(name for name in tensors if name.endswith("weight"))[-1]
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    return f"no file has the tensors {name}"


def _cut(path):
    path.write_bytes(path.read_bytes()[:-10])
    return f"{path.name}: cannot be read"


def _pickled(path):
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    return path.name


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A drawer's folder with a reader in it."""
    folder = tmp_path_factory.mktemp("saved") / "drawer"
    tiny_drawer().save_pretrained(folder)
    AttributeReader((4, 4, 4, 4), 8).save_pretrained(folder / "reader")
    return folder


def _loaded(folder, part):
    return load_reader(folder / part) if part == "reader" else Drawer.from_pretrained(folder)


@pytest.mark.parametrize("damage", [_of_nan, _without_a_tensor, _cut, _pickled])
@pytest.mark.parametrize("part", ["unet", "text_encoder", "reader"])
def test_damaged_weights_are_refused_by_name_and_never_begin_at_random(saved, tmp_path, part, damage):
    folder = shutil.copytree(saved, tmp_path / "copy")
    _loaded(folder, part)
    (weights,) = (folder / part).glob("*.safetensors")
    said = damage(weights)
    with pytest.raises((DrawerError, ReaderError), match=re.escape(said)):
        _loaded(folder, part)


@pytest.mark.parametrize("content", ["null", "[1]", "<html>Please log in</html>"])
def test_json_of_something_else_is_refused_by_name(saved, tmp_path, content):
    folder = shutil.copytree(saved, tmp_path / "copy")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.json"))
    assert len(files) == 7
    for file in files:
        whole = (folder / file).read_text()
        (folder / file).write_text(content)
        with pytest.raises((DrawerError, ReaderError), match=rf"{file}: expected .*found"):
            _loaded(folder, file.parent.name)
        (folder / file).write_text(whole)


def test_a_pipe_among_the_files_is_not_waited_for(saved, tmp_path):
    for part in ("unet", "reader"):
        folder = shutil.copytree(saved, tmp_path / part)
        (folder / part / "config.json").unlink()
        os.mkfifo(folder / part / "config.json")
        with pytest.raises((DrawerError, ReaderError), match="config.json: expected a regular file"):
            _loaded(folder, part)
