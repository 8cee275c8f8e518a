"""The prefix hook against embeddings and positions computed by hand, with and without the key-value cache."""

from collections.abc import Callable

import pytest
import torch
from tiny_benchmark import make_picture
from tiny_models import ARCHITECTURES

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch, pad
from prefmoe.backbones.conversations import encode
from prefmoe.models.prefix import PrefixHook

PREFIX = 13


def conversation(question: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"\n{question}\n"}]}]


def batch_of(backbone: Backbone, prefix_length: int = PREFIX, answer: str | None = None) -> Batch:
    questions = ("Does Cid like tea?", "Is Bob in this picture?", "Which name does Cid like, Dot or Bob?")
    sizes = ((16, 16), (48, 16), (16, 32))
    encoded = [
        encode(backbone, conversation(question), [make_picture(k, size)], answer, prefix_length)
        for k, (question, size) in enumerate(zip(questions, sizes, strict=True))
    ]
    return pad(encoded, backbone.pad_token_id)


def user_tokens(backbone: Backbone, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, PREFIX, backbone.hidden_size, generator=torch.Generator().manual_seed(7))


def embeddings_by_hand(backbone: Backbone, batch: Batch, tokens: torch.Tensor) -> torch.Tensor:
    """Text embeddings, then the pictures' tokens, then the prefix, written row by row."""
    ids = batch.inputs["input_ids"]
    embeddings = backbone.model.get_input_embeddings().weight[ids].clone()
    extra = ("pixel_values", "pixel_attention_mask", "image_sizes", "image_grid_thw", "batch_num_images", "image_tiles")
    pictures = {key: value for key, value in batch.inputs.items() if key in extra}
    features = iter(torch.cat(list(backbone.model.get_image_features(**pictures, return_dict=True).pooler_output)))
    for row in range(len(ids)):
        for column in range(ids.shape[1]):
            if ids[row, column] == backbone.image_token_id:
                embeddings[row, column] = next(features)
        start = int(batch.inputs["attention_mask"][row].argmax())
        embeddings[row, start : start + PREFIX] = tokens[row]
    return embeddings


@pytest.mark.parametrize("kind", ARCHITECTURES)
@torch.no_grad()
def test_forward_with_prefix_equals_explicit_embeddings(tiny_backbone: Callable[..., Backbone], kind: str) -> None:
    backbone = tiny_backbone(kind)
    batch, tokens = batch_of(backbone), user_tokens(backbone)
    hook = PrefixHook(backbone.embed_tokens)
    with hook.active(tokens, batch.prefix_mask):
        found = backbone.model(**batch.inputs).logits
    mask = batch.inputs["attention_mask"]
    options = {}
    if kind == "qwen2_5_vl":
        options["position_ids"] = qwen_positions(backbone, batch)
    expected = backbone.model(
        inputs_embeds=embeddings_by_hand(backbone, batch, tokens), attention_mask=mask, **options
    ).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)
    without = backbone.model(**batch.inputs).logits
    assert not torch.allclose(found[mask.bool()], without[mask.bool()], atol=1e-2)


def qwen_positions(backbone: Backbone, batch: Batch) -> torch.Tensor:
    """(3, B, T): text counts on; an image's rows and columns count from the same start; what follows, from its end."""
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    grids = iter(batch.inputs["image_grid_thw"].tolist())
    positions = torch.zeros(3, *ids.shape, dtype=torch.long)
    for row in range(len(ids)):
        column, count = int(mask[row].argmax()), 0
        while column < ids.shape[1]:
            if ids[row, column] == backbone.image_token_id:
                _, height, width = (value // factor for value, factor in zip(next(grids), (1, 2, 2), strict=True))
                for y in range(height):
                    for x in range(width):
                        positions[:, row, column] = torch.tensor([count, count + y, count + x])
                        column += 1
                count += max(height, width)
            else:
                positions[:, row, column] = count
                column, count = column + 1, count + 1
    return positions


@torch.no_grad()
def test_positions_beside_labels_are_the_models_own(qwen: Backbone) -> None:
    batch = batch_of(qwen, answer="yes")
    positions = batch.inputs["position_ids"]
    mask = batch.inputs["attention_mask"].bool()
    torch.testing.assert_close(positions[:, mask], qwen_positions(qwen, batch)[:, mask])
    own = qwen.model(**{key: value for key, value in batch.inputs.items() if key != "position_ids"}).logits
    torch.testing.assert_close(qwen.model(**batch.inputs).logits[mask], own[mask])


@pytest.mark.parametrize("kind", ARCHITECTURES)
@torch.no_grad()
def test_generation_is_the_same_with_and_without_cache(tiny_backbone: Callable[..., Backbone], kind: str) -> None:
    backbone = tiny_backbone(kind)
    batch, tokens = batch_of(backbone), user_tokens(backbone)
    hook = PrefixHook(backbone.embed_tokens)
    with hook.active(tokens, batch.prefix_mask):
        outputs = [
            backbone.model.generate(
                **batch.inputs, max_new_tokens=6, min_new_tokens=6, use_cache=cached, do_sample=False,
                output_logits=True, return_dict_in_generate=True,
            )
            for cached in (True, False)
        ]  # fmt: skip
    assert outputs[0].sequences.tolist() == outputs[1].sequences.tolist()
    torch.testing.assert_close(torch.stack(outputs[0].logits), torch.stack(outputs[1].logits), rtol=1e-3, atol=1e-4)
    without = backbone.model.generate(
        **batch.inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True
    )
    assert not torch.allclose(outputs[0].logits[0], without.logits[0], atol=1e-2)


@torch.no_grad()
def test_a_row_of_a_padded_batch_equals_the_row_alone(qwen: Backbone) -> None:
    batch, tokens = batch_of(qwen), user_tokens(qwen)
    hook = PrefixHook(qwen.embed_tokens)
    with hook.active(tokens, batch.prefix_mask):
        together = qwen.model(**batch.inputs).logits[:, -1]
    one = encode(qwen, conversation("Is Bob in this picture?"), [make_picture(1, (48, 16))], None, PREFIX)
    single = pad([one], qwen.pad_token_id)
    with hook.active(tokens[1:2], single.prefix_mask):
        alone = qwen.model(**single.inputs).logits[:, -1]
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_user_token_and_no_placeholder(llava: Backbone) -> None:
    batch, tokens = batch_of(llava, answer="yes"), user_tokens(llava).requires_grad_()
    weight = llava.embed_tokens.weight.requires_grad_()
    hook = PrefixHook(llava.embed_tokens)
    with hook.active(tokens, batch.prefix_mask):
        loss = llava.model(**batch.inputs, labels=batch.labels).loss
        loss.backward()
    assert tokens.grad is not None and bool((tokens.grad.abs().sum(-1) > 0).all())
    assert llava.tokenizer.convert_ids_to_tokens(llava.placeholder_id) == "Ann"  # which no question names
    assert not bool(weight.grad[llava.placeholder_id].any()) and bool(weight.grad.any())


def test_gradients_survive_gradient_checkpointing(llava: Backbone) -> None:
    hook = PrefixHook(llava.embed_tokens)
    batch, gradients = batch_of(llava, answer="yes"), []
    for checkpointing in (False, True):
        if checkpointing:
            llava.model.activation_checkpointing_enable({"use_reentrant": False})
            llava.model.train()
        tokens = user_tokens(llava).requires_grad_()
        with hook.active(tokens, batch.prefix_mask):
            llava.model(**batch.inputs, labels=batch.labels).loss.backward()
        gradients.append(tokens.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_nothing_changes_outside_the_context(llava: Backbone) -> None:
    ids = torch.tensor([[5, 6, 7]])
    expected = llava.embed_tokens(ids)
    hook = PrefixHook(llava.embed_tokens)
    with pytest.raises(RuntimeError, match="inside"), hook.active(torch.ones(1, 1, 32), torch.tensor([[1, 0, 0]]) > 0):
        assert bool((llava.embed_tokens(ids)[0, 0] == 1).all())
        raise RuntimeError("inside")
    assert torch.equal(llava.embed_tokens(ids), expected)


def test_wrong_shapes_are_refused(llava: Backbone) -> None:
    hook = PrefixHook(llava.embed_tokens)
    mask = torch.tensor([[True, True, False]])
    wrong = r"expected 3 placeholders per row, found \[2\]"
    with pytest.raises(ValueError, match=wrong), hook.active(torch.ones(1, 3, 32), mask):
        pass
    with pytest.raises(ValueError, match="expected prefix tokens"), hook.active(torch.ones(4, 2, 32), mask):
        pass
    with hook.active(torch.ones(1, 2, 32), mask), pytest.raises(ValueError, match=r"batch of shape \(1, 3\)"):
        llava.embed_tokens(torch.tensor([[5, 6, 7], [5, 6, 7]]))
