"""Encoding and batching against the processors' own output and against rows computed alone."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_benchmark import make_picture
from tiny_models import ARCHITECTURES, save_tiny

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Collator, pad
from prefmoe.backbones.conversations import encode, render
from prefmoe.backbones.errors import CollationError
from prefmoe.backbones.loading import load_backbone
from prefmoe.backbones.pictures import load_pictures
from prefmoe.data import prompts
from prefmoe.data.benchmark import Benchmark

TEMPLATES = {
    "plain": "{% for m in messages %}{{ m.role }}: {% for p in m.content %}"
    "{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}",
    "trimmed, bos, system": "{{ bos_token }}system: hello.{% for m in messages %}{{ m.role }}: {% for p in m.content %}"
    "{% if p.type == 'image' %}<image>{% else %}{{ p.text | trim }}{% endif %}{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "pictures first": "{% for m in messages %}{{ m.role }}"
    "{% for p in m.content if p.type == 'image' %}<image>{% endfor %}\n"
    "{% for p in m.content if p.type == 'text' %} {{ p.text }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}\nassistant\n{% endif %}",
    "repeats the question's words": "Does Ann like tea?{% for m in messages %}{{ m.role }}: {% for p in m.content %}"
    "{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}Does Ann like tea? assistant:{% endif %}",
}


def say(role: str, *parts: str) -> dict:
    """A message; the part "@" is a picture."""
    content = [{"type": "image"} if part == "@" else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}


CONVERSATION = [
    say("user", "@", "Ann enjoys tea, jazz."),
    say("assistant", "I got it."),
    say("user", "@", "\nDoes Ann like tea?\n"),
]


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("sizes", [((16, 16),), ((40, 16), (16, 32))], ids=["one picture", "two pictures"])
def test_encoding_equals_the_processors_own(tiny_backbone: Callable[..., Backbone], kind: str, sizes: tuple) -> None:
    backbone = tiny_backbone(kind)
    images = [make_picture(k, size) for k, size in enumerate(sizes)]
    messages = CONVERSATION[-1:] if len(images) == 1 else CONVERSATION
    prompt = backbone.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    expected = backbone.processor(images=[images], text=[prompt], return_tensors="pt")
    batch = pad([encode(backbone, messages, images)], backbone.pad_token_id)
    if kind == "idefics3":  # crops of both pictures in one row; ours has a row per picture, padded with empty crops
        for key in ("pixel_values", "pixel_attention_mask"):
            kept = batch.inputs["pixel_attention_mask"].flatten(2).any(-1)
            torch.testing.assert_close(batch.inputs.pop(key)[kept], expected.pop(key)[0], check_dtype=False)
    if (rope_index := getattr(backbone.model.model, "get_rope_index", None)) is not None:
        expected["position_ids"] = rope_index(**{k: v for k, v in expected.items() if k != "pixel_values"})[0]
    assert set(batch.inputs) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(batch.inputs[key], value, check_dtype=False)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_query_mask_marks_the_last_turns_words_and_pictures(llava: Backbone, template: str) -> None:
    llava.processor.chat_template = template
    encoded = encode(llava, CONVERSATION, [make_picture(0), make_picture(1)], "yes", 13)
    tokens = llava.tokenizer.convert_ids_to_tokens(encoded.input_ids.tolist())
    marked = [token for token, inside in zip(tokens, encoded.query_mask.tolist(), strict=True) if inside]
    assert marked == ["<image>"] * 4 + ["Does", "Ann", "like", "tea", "?"]
    images = [k for k, token in enumerate(tokens) if token == "<image>"]
    assert len(images) == 8 and encoded.query_mask[images].tolist() == [False] * 4 + [True] * 4
    first_tail = encoded.labels.tolist().index(encoded.input_ids[-2])
    after = tokens[max(k for k, inside in enumerate(encoded.query_mask.tolist()) if inside) + 1 : first_tail]
    assert "tea" not in after or template == TEMPLATES["repeats the question's words"]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_query_mask_with_each_architectures_template(tiny_backbone: Callable[..., Backbone], kind: str) -> None:
    backbone = tiny_backbone(kind)
    encoded = encode(backbone, CONVERSATION, [make_picture(0, (40, 16)), make_picture(1)], None, 13)
    ids = encoded.input_ids[encoded.query_mask]
    is_image = ids == backbone.image_token_id
    words = backbone.tokenizer.decode(ids[~is_image], skip_special_tokens=True)  # Idefics3 names rows and columns
    assert words == "Does Ann like tea?"
    features = backbone.image_features([make_picture(1)])
    if kind != "llava_onevision":  # several pictures in one conversation are not cut into crops there
        assert int(is_image.sum()) == len(features[0])
    assert not bool(encoded.query_mask[:13].any())


def test_several_text_parts_and_plain_string_content(llava: Backbone) -> None:
    llava.processor.chat_template = TEMPLATES["plain"]
    prompt, spans = render(llava, [say("user", "Ann likes", "@", " tea? ", "  ")])
    assert [prompt[start:end] for start, end in spans] == ["Ann likes", "tea?", ""]
    llava.processor.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    prompt, spans = render(llava, [{"role": "user", "content": " Ann? "}])
    assert (prompt, spans) == ("[ Ann? ]", [(2, 6)])


def test_labels_are_the_answer_and_the_end_of_sequence(llava: Backbone) -> None:
    encoded = encode(llava, CONVERSATION[-1:], [make_picture(0)], "yes", 13)
    target = encoded.labels != -100
    assert llava.tokenizer.convert_ids_to_tokens(encoded.labels[target].tolist()) == ["yes", "</s>"]
    assert target.tolist() == [False] * (len(encoded) - 2) + [True, True]
    torch.testing.assert_close(encoded.labels[target], encoded.input_ids[target])
    prompt_only = encode(llava, CONVERSATION[-1:], [make_picture(0)], None, 13)
    assert prompt_only.labels is None
    torch.testing.assert_close(prompt_only.input_ids, encoded.input_ids[:-2])


def test_the_prefix_stands_before_the_beginning_of_sequence(llava: Backbone) -> None:
    encoded = encode(llava, CONVERSATION[-1:], [make_picture(0)], None, 13)
    assert encoded.prefix_mask.tolist() == [True] * 13 + [False] * (len(encoded) - 13)
    assert encoded.input_ids[13] == llava.tokenizer.bos_token_id
    assert set(encoded.input_ids[:13].tolist()) == {llava.placeholder_id}
    assert llava.placeholder_id not in (llava.image_token_id, llava.pad_token_id, *llava.tokenizer.all_special_ids)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@torch.no_grad()
def test_rows_of_a_padded_batch_equal_single_examples(tiny_backbone: Callable[..., Backbone], kind: str) -> None:
    backbone = tiny_backbone(kind)
    cases = [
        (CONVERSATION, [make_picture(0, (40, 16)), make_picture(1)]),
        (CONVERSATION[-1:], [make_picture(2, (16, 48))]),
        ([say("user", "Does Bob like jazz?")], []),
    ]
    encoded = [encode(backbone, messages, images, "no", 13) for messages, images in cases]
    batch = pad(encoded, backbone.pad_token_id)
    logits = backbone.model(**batch.inputs).logits
    for row, one in enumerate(encoded):
        single = pad([one], backbone.pad_token_id)
        alone = backbone.model(**single.inputs).logits[0]
        torch.testing.assert_close(logits[row, -len(one) :], alone, rtol=1e-4, atol=1e-5)
        for mask in ("prefix_mask", "query_mask", "labels"):
            torch.testing.assert_close(getattr(batch, mask)[row, -len(one) :], getattr(single, mask)[0])
        assert not batch.inputs["attention_mask"][row, : -len(one)].any()
        assert not batch.prefix_mask[row, : -len(one)].any() and not batch.query_mask[row, : -len(one)].any()


def test_collator_fills_a_batch_in_the_examples_order(llava: Backbone, tiny_benchmark: Benchmark) -> None:
    examples = [tiny_benchmark.examples[index] for index in (13, 2, 38, 7)]
    batch = Collator(llava, tiny_benchmark, prefix_length=13)(examples, with_answer=True)
    assert batch.index.tolist() == [13, 2, 38, 7]
    assert batch.user.tolist() == [1, 0, 3, 0]
    assert batch.facet.tolist() == [3, 2, -1, -1]
    answers = [llava.tokenizer.decode(row[row >= 0], skip_special_tokens=True) for row in batch.labels]
    assert answers == [example.answer_text for example in examples]
    assert len(set(batch.prompt_digest)) == 4 and len(batch) == 4
    for row, example in enumerate(examples):
        ids = batch.inputs["input_ids"][row, batch.query_mask[row]]
        words = llava.tokenizer.decode(ids[ids != llava.image_token_id])
        compact = prompts.question_text(example).replace("\n", " ")
        assert words.replace(" ", "") == compact.replace(" ", "")


def test_transcripts_and_profile_enter_the_prompt(llava: Backbone, tiny_benchmark: Benchmark) -> None:
    example = tiny_benchmark.examples[0]
    plain = Collator(llava, tiny_benchmark)
    with_profile = Collator(llava, tiny_benchmark, profile="both")
    transcript = tiny_benchmark.transcripts[0]
    lengths = [plain.length(example), plain.length(example, transcript), with_profile.length(example, transcript)]
    assert lengths == sorted(set(lengths))
    batch = with_profile([example], transcripts=[transcript], with_answer=False)
    assert batch.inputs["pixel_values"].shape[0] == 2 and batch.labels is None
    text = llava.tokenizer.decode(batch.inputs["input_ids"][0])
    assert "A person with blue hair" in text and "hello" in text and text.endswith("ASSISTANT :")
    digests = [c([example], with_answer=False).prompt_digest[0] for c in (plain, with_profile)]
    assert digests[0] != digests[1] != batch.prompt_digest[0]


def test_examples_are_encoded_once(llava: Backbone, tiny_benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = tiny_benchmark.select("train")
    first = Collator(llava, tiny_benchmark, prefix_length=13)(examples, with_answer=True)
    monkeypatch.setattr("prefmoe.backbones.batches.encode", None)
    again = Collator(llava, tiny_benchmark, prefix_length=13)(examples, with_answer=True)
    for key, value in first.inputs.items():
        assert torch.equal(value, again.inputs[key])
    with pytest.raises(TypeError):
        Collator(llava, tiny_benchmark, prefix_length=13, cache=False)(examples, with_answer=True)
    with pytest.raises(TypeError):
        Collator(llava, tiny_benchmark, prefix_length=0)(examples, with_answer=True)


@pytest.mark.parametrize("remembered", [1, 4096])
@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_questions_after_one_conversation_are_encoded_as_each_would_be_alone(
    tiny_backbone: Callable[..., Backbone], monkeypatch: pytest.MonkeyPatch, kind: str, remembered: int
) -> None:
    monkeypatch.setattr("prefmoe.backbones.encodings.REMEMBERED", remembered)
    questions = ("Does Ann like tea?", "Does Ann avoid loud jazz?", "Which one?", "Does Ann like tea?")
    asked = [
        ([*CONVERSATION[:2], say("user", "@", text)], [make_picture(0, (16, 16)), make_picture(1, size)], answer)
        for text, size in zip(questions, ((16, 16), (40, 16), (16, 16), (32, 32)), strict=True)
        for answer in ("yes", "no", None)
    ]
    shared = tiny_backbone(kind)
    for messages, images, answer in asked:
        found, alone = (encode(one, messages, images, answer) for one in (shared, tiny_backbone(kind)))
        assert (found.prompt, found.prompt_digest) == (alone.prompt, alone.prompt_digest)
        for field in ("input_ids", "labels", "query_mask", "positions"):
            one, other = getattr(found, field), getattr(alone, field)
            assert (one is None and other is None) or torch.equal(one, other), field
    memory = shared.encodings
    assert all(len(known) <= remembered for known in (memory.outlines, memory.answers, memory.positions))
    assert memory.outlines and memory.answers


def test_a_cached_batch_costs_little_beside_encoding(llava: Backbone, tiny_benchmark: Benchmark) -> None:
    examples = [example for example in tiny_benchmark.examples.values()][:32]
    collator = Collator(llava, tiny_benchmark, prefix_length=13)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        collator(examples, with_answer=True)
        seconds.append(time.process_time() - start)
    assert min(seconds[1:]) < seconds[0] / 4


def test_moving_a_batch_moves_every_tensor(qwen: Backbone, tiny_benchmark: Benchmark) -> None:
    batch = Collator(qwen, tiny_benchmark)(tiny_benchmark.select("train")[:2], with_answer=True).to("meta")
    tensors = [*batch.inputs.values(), batch.labels, batch.prefix_mask, batch.query_mask, batch.user, batch.facet]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_pictures_of_any_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / f"picture.{'jpg' if mode == 'CMYK' else 'png'}"
    make_picture(0).convert(mode).save(path)
    (image,) = load_pictures([path])
    assert image.mode == "RGB" and image.size == (16, 16)


def test_bad_pictures_are_named(llava: Backbone, tiny_benchmark: Benchmark, tmp_path: Path) -> None:
    text, cut = tmp_path / "text.png", tmp_path / "cut.png"
    text.write_text("no picture")
    make_picture(0, (64, 64)).save(cut)
    cut.write_bytes(cut.read_bytes()[:100])
    with pytest.raises(CollationError, match="text.png: expected a picture"):
        load_pictures([text])
    with pytest.raises(CollationError, match="cut.png: expected a complete picture"):
        load_pictures([cut])
    gone = tiny_benchmark.examples[0].model_copy(update={"image": tmp_path / "gone.png"})
    broken = replace(tiny_benchmark, examples={0: gone}, digest="broken")
    with pytest.raises(CollationError, match=r"question 0 \(Ann\): .*gone.png: no such picture"):
        Collator(llava, broken)([gone], with_answer=False)


def test_bad_conversations_are_refused(llava: Backbone) -> None:
    with pytest.raises(CollationError, match="1 places for pictures, 2 were given"):
        encode(llava, CONVERSATION[-1:], [make_picture(0), make_picture(1)])
    with pytest.raises(CollationError, match="expected a final user message with text"):
        encode(llava, CONVERSATION[:2], [make_picture(0)])
    with pytest.raises(CollationError, match="2 places for pictures, 1 were given"):
        encode(llava, [say("user", "@", "What is <image>?")], [make_picture(0)])
    llava.processor.chat_template = "{% for m in messages %}{{ m.content[-1].text | upper }}{% endfor %}"
    with pytest.raises(CollationError, match="does not show 'Does Ann like tea"):
        encode(llava, [say("user", "Does Ann like tea?")])
    llava.processor.chat_template = TEMPLATES["plain"]
    answered, asked = (encode(llava, [say("user", "Ann?")], (), answer) for answer in ("yes", None))
    with pytest.raises(ValueError, match="in every conversation of a batch or in none"):
        pad([answered, asked], llava.pad_token_id)
    with pytest.raises(ValueError, match="at least one"):
        pad([], llava.pad_token_id)


def test_a_picture_whose_values_are_all_0_is_no_padding(tmp_path):
    """Idefics2 leaves out pictures of zeros: beside another one the picture had no tokens, and nothing was said."""
    folder = save_tiny("idefics2", tmp_path / "tiny", words="Score")
    idefics = load_backbone(folder)
    idefics.processor.image_processor.do_normalize = False
    pictures = [make_picture(1, (32, 32)), Image.new("RGB", (32, 32))]
    with pytest.raises(CollationError, match="all values of picture 2 are 0, which this model leaves out"):
        idefics.process_pictures(pictures)
    assert idefics.process_pictures(pictures[:1])


def test_a_picture_that_a_processor_takes_not_is_refused_by_its_size(qwen, tmp_path):
    make_picture(0, (300, 1)).save(tmp_path / "line.png")
    with pytest.raises(CollationError, match="takes no picture of 300 x 1 pixels"):
        encode(qwen, CONVERSATION[-1:], [tmp_path / "line.png"])
