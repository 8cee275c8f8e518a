"""The retriever finds what a question is about, keys compared one by one; the prompt says what the user says of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from method_checks import batch_of
from sklearn.feature_extraction.text import TfidfVectorizer
from small_world import data_folder, small_edition
from torch.nn.functional import cosine_similarity

from prefmoe.analysis.statistics import resample_counts
from prefmoe.config import ConfigError, RetrievedMethod
from prefmoe.data import prompts
from prefmoe.data.benchmark import FACETS
from prefmoe.data.sources import load_benchmark
from prefmoe.models.base import build_method
from prefmoe.models.controls import controlled
from prefmoe.models.retrieved import ENTRIES, RetrievedLoRA, entry_of, statement
from prefmoe.running.answers import context_tokens

BOTH = pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
LORA = {"lr": 1e-2, "rank": 2, "alpha": 2.0, "dropout": 0.0}


def build(backbone, benchmark, **changes) -> RetrievedLoRA:
    config = RetrievedMethod(kind="retrieved", label="Retrieved", **(LORA | {"statements": 2} | changes))
    return build_method(config, backbone, benchmark, seed=0).eval()


@BOTH
@torch.no_grad()
def test_scores_are_those_of_keys_compared_one_by_one(tiny_backbone, tiny_benchmark, kind):
    method, plain = build(tiny_backbone(kind), tiny_benchmark), tiny_backbone(kind)
    training = tiny_benchmark.select("train")
    users = list(tiny_benchmark.users.values())
    seen = {e.image: plain.image_features([e.image])[0] for e in tiny_benchmark.examples.values()}
    centre = torch.cat([seen[e.image] for e in training]).mean(0)
    faces = [plain.image_features([path])[0].mean(0) - centre for user in users for path in user.images]
    documents = []
    for facet in FACETS:
        told = [user.preferences[facet] for user in users if facet in user.preferences]
        documents.append(sorted({item for one in told for item in one.likes + one.dislikes}))
    texts = [" ".join(items) for items in documents] + [" ".join(user.description for user in users)]
    reader = TfidfVectorizer().fit(texts)

    def raw(example) -> list[float]:
        scores = []
        for items in documents:
            ids = {i for item in items for i in plain.tokenizer(item, add_special_tokens=False)["input_ids"]}
            words = [plain.embed_tokens.weight[i] for i in ids - set(plain.tokenizer.all_special_ids)]
            pairs = [cosine_similarity(word, token, dim=0) for word in words for token in seen[example.image]]
            scores.append(max(map(float, pairs)))
        mean = seen[example.image].mean(0) - centre
        scores.append(max(float(cosine_similarity(face, mean, dim=0)) for face in faces))
        question = reader.transform([prompts.question_text(example, " ")]).toarray()[0]
        return [
            s + float(question @ reader.transform([text]).toarray()[0]) for s, text in zip(scores, texts, strict=True)
        ]

    expected = torch.tensor([raw(example) for example in training])
    mean, spread = expected.mean(0), expected.std(0, correction=0)
    for example in tiny_benchmark.select("test")[:6]:
        found = method.index.scores(example)
        torch.testing.assert_close(found, (torch.tensor(raw(example)) - mean) / spread, rtol=1e-3, atol=2e-3)
        order = found.argsort(descending=True, stable=True)
        assert method.index.entries(example, 3) == tuple(ENTRIES[k] for k in order[:3])


@BOTH
def test_prompts_open_with_what_the_user_s_own_profile_says_of_it(tiny_backbone, tiny_benchmark, kind):
    method = build(tiny_backbone(kind), tiny_benchmark, statements=2)
    for example in tiny_benchmark.select("train")[:4] + tiny_benchmark.select("test")[:4]:
        user = tiny_benchmark.users[example.name]
        prompt = method.collator.encode(example, with_answer=example.index in tiny_benchmark.splits["train"]).prompt
        texts = [statement(user, entry).rstrip(".") for entry in method.index.entries(example, 2)]
        places = [prompt.index(text) for text in texts]
        assert places == sorted(places) and places[-1] < prompt.index(prompts.question_text(example).split("\n")[0])
        others = [statement(user, entry).rstrip(".") for entry in ENTRIES]
        assert sum(text in prompt for text in others if text != prompts.UNKNOWN) == 2 - (prompts.UNKNOWN in texts)


def test_its_accuracy_is_counted_from_the_gold_labels(tiny_backbone, tiny_benchmark):
    method = build(tiny_backbone(), tiny_benchmark)
    examples = tiny_benchmark.select("test")
    gold = [e.concept if e.category == "preference" else "description" for e in examples]
    assert [entry_of(e) for e in examples] == gold
    order = [[ENTRIES[k] for k in method.index.scores(e).argsort(descending=True, stable=True)] for e in examples]
    found = method.describe()["retrieval"]
    assert found.keys() == {"train", "test"}
    expected = {"n": len(examples)}
    names = sorted(tiny_benchmark.users)
    for name, k in (("first", 1), ("shown", 2)):
        right = [entry in one[:k] for one, entry in zip(order, gold, strict=True)]
        by_user = [[hit for hit, e in zip(right, examples, strict=True) if e.name == user] for user in names]
        shares = []
        for draw in resample_counts(len(names)).astype(int).tolist():  # whole users, each as often as drawn
            drawn = [hit for times, own in zip(draw, by_user, strict=True) for hit in times * own]
            shares.append(sum(drawn) / len(drawn))
        low, high = np.percentile(shares, [2.5, 97.5])
        expected |= {name: pytest.approx(sum(right) / len(right)), f"{name}_low": pytest.approx(low)}
        expected[f"{name}_high"] = pytest.approx(high)
    assert found["test"] == expected and found["test"]["first_low"] < found["test"]["first"]


def test_of_one_user_s_questions_its_accuracy_has_no_interval(tiny_backbone, tiny_benchmark):
    method = build(tiny_backbone(), tiny_benchmark)
    own = tuple(e.index for e in tiny_benchmark.select("test") if e.name == "Ann")
    method.benchmark = replace(tiny_benchmark, splits={**tiny_benchmark.splits, "test": own}, digest="Ann's alone")
    assert method.retrieval("test").keys() == {"n", "first", "shown"}


def test_on_the_miniature_it_finds_the_right_statement():
    """The pre-trained miniature's pictures are near its words: far above the most frequent entry (three in ten)."""
    from prefmoe.backbones.loading import load_backbone

    data_folder()
    edition = small_edition("llava-mini")
    benchmark = load_benchmark(edition, data_folder().parent.parent)
    method = build(load_backbone("llava-mini"), benchmark)
    found = method.retrieval("test")
    assert found["first"] > 0.6 and found["shown"] >= found["first"]


def test_no_label_of_a_question_is_looked_at(tiny_backbone, tiny_benchmark):
    method = build(tiny_backbone(), tiny_benchmark)
    for example in tiny_benchmark.select("test")[:5]:
        other = example.model_copy(update={"concept": "travel", "category": "preference", "answer": 0, "target": "x"})
        assert torch.equal(method.index.scores(other), method.index.scores(example))
    answered = {i: e.model_copy(update={"answer": 9 - e.answer}) if e.answer > 3 else e
                for i, e in tiny_benchmark.examples.items()}  # fmt: skip
    changed = replace(tiny_benchmark, examples=answered, digest="turned round")
    again = build(tiny_backbone(), changed)
    example = tiny_benchmark.select("test")[0]
    torch.testing.assert_close(again.index.scores(example), method.index.scores(example))


def test_under_a_control_the_other_user_s_profile_is_searched(tiny_backbone, tiny_benchmark):
    method = build(tiny_backbone(), tiny_benchmark)
    example = tiny_benchmark.select("test")[0]
    entries = method.index.entries(example, 2)
    with controlled(method, "other_user"):
        stand_in = tiny_benchmark.users[method.collator.whose(example)]
        prompt = method.collator.encode(example).prompt
    assert stand_in.name != example.name
    assert all(statement(stand_in, entry).rstrip(".") in prompt for entry in entries)
    with controlled(method, "blank_picture"):
        blank = method.collator.asked(example)
        assert method.collator.encode(example).prompt.count("In terms of") <= 2
        assert not torch.equal(method.index.scores(blank), method.index.scores(example))


def test_what_a_prompt_is_longer_by_is_counted_question_by_question(tiny_backbone, tiny_benchmark):
    method = build(tiny_backbone(), tiny_benchmark)
    examples = tiny_benchmark.select("test")
    plain = method.collator.untold()
    longer = [method.collator.length(e) - plain.length(e) for e in examples]
    assert context_tokens(method, examples) == pytest.approx(sum(longer) / len(longer))


@pytest.mark.parametrize(("change", "message"), [
    ({"profile": "text"}, "leave the setting profile out"),
    ({"projector": True}, "has to stay as it is"),
    ({"statements": 7}, "less than or equal to 6"),
])  # fmt: skip
def test_settings_that_contradict_the_index_are_refused(change, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        RetrievedMethod(kind="retrieved", label="Retrieved", **(LORA | change))


def test_padding_changes_nothing(tiny_backbone, tiny_benchmark):
    method = build(tiny_backbone(), tiny_benchmark)
    examples = tiny_benchmark.select("test")[:3]
    batch = batch_of(method, examples, with_answer=False)
    with torch.no_grad():
        together = method.model(**batch.inputs).logits[:, -1]
        for row, example in enumerate(examples):
            alone = method.model(**batch_of(method, [example], with_answer=False).inputs).logits[0, -1]
            torch.testing.assert_close(together[row], alone, rtol=1e-3, atol=1e-4)
