"""Embedding to prefix: tokens are a network's of one fixed vector, for whoever was never trained on too."""

from dataclasses import replace

import pytest
import torch
from method_checks import batch_of, fit, logits, moved_by

from prefmoe.config import EmbeddingPrefixMethod
from prefmoe.data.benchmark import Benchmark
from prefmoe.models.anchors import encode_users
from prefmoe.models.base import build_method
from prefmoe.models.controls import controlled
from prefmoe.models.embedding_prefix import EmbeddingPrefix
from prefmoe.models.prefix import PrefixHook

CONFIG = EmbeddingPrefixMethod(kind="embedding_prefix", label="E2P", lr=1e-2, tokens=2, width=8)
BOTH = pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])


def without(benchmark: Benchmark, name: str) -> Benchmark:
    train = tuple(i for i in benchmark.splits["train"] if benchmark.examples[i].name != name)
    return replace(benchmark, splits={**benchmark.splits, "train": train}, digest=f"without {name}")


def by_hand(method: EmbeddingPrefix, backbone, benchmark: Benchmark) -> torch.Tensor:
    """Every user's tokens, user by user."""
    vectors = [encode_users(backbone, [user], "embedding")[0].flatten() for user in benchmark.users.values()]
    known = torch.stack([vectors[benchmark.row(name)] for name in benchmark.trained_users])
    centre, spread = known.mean(0), known.var(0, correction=0).sqrt()
    typical = spread.square().mean().sqrt()
    first, _, second = method.network
    tokens = []
    for vector in vectors:
        x = (vector - centre) / torch.where(spread > 1e-3 * typical, spread, typical)
        hidden = torch.nn.functional.gelu(first.weight @ x + first.bias)
        tokens.append((second.weight @ hidden + second.bias).view(2, -1))
    return backbone.embed_tokens.weight.square().mean().sqrt() * torch.stack(tokens)


@BOTH
@torch.no_grad()
def test_it_is_the_backbone_behind_what_the_network_says_of_a_vector(tiny_backbone, tiny_benchmark, kind):
    benchmark = without(tiny_benchmark, "Dot")
    method = build_method(CONFIG, tiny_backbone(kind), benchmark, seed=0).eval()
    backbone = tiny_backbone(kind)
    expected = by_hand(method, backbone, benchmark)
    torch.testing.assert_close(method.tokens(torch.arange(4)), expected, rtol=1e-4, atol=1e-5)
    batch = batch_of(method, benchmark.select("test")[::4], with_answer=False)
    with PrefixHook(backbone.embed_tokens).active(expected[batch.user], batch.prefix_mask):
        out = backbone.model(**batch.inputs).logits
    torch.testing.assert_close(logits(method, benchmark.select("test")[::4]), out, rtol=1e-3, atol=1e-4)


def test_the_network_alone_learns_and_serves_whom_nobody_asked_about(tiny_backbone, tiny_benchmark):
    benchmark = without(tiny_benchmark, "Dot")
    method = build_method(CONFIG, tiny_backbone(), benchmark, seed=0)
    before = method.tokens(torch.arange(4)).detach()
    assert moved_by(method) == {name for name, p in method.named_parameters() if name.startswith("network.")}
    fit(method, 2)
    moved = (method.tokens(torch.arange(4)) - before).abs().amax((1, 2)) > 0
    assert moved.all()
    assert not torch.allclose(method.tokens(torch.tensor([3])), method.tokens(torch.tensor([0])))


@torch.no_grad()
def test_a_new_user_of_a_known_profile_gets_the_known_tokens(tiny_backbone, tiny_benchmark):
    method = build_method(CONFIG, tiny_backbone(), tiny_benchmark, seed=0).eval()
    bob = tiny_benchmark.users["Bob"]
    row = method.add_user(bob.model_copy(update={"name": "Eve"}))
    anchors = encode_users(tiny_backbone(), [bob.model_copy(update={"name": "Eve"})], "embedding")[0].flatten(1)
    torch.testing.assert_close(method.vectors[row], anchors[0])
    torch.testing.assert_close(method.vectors[row, method.backbone.hidden_size :][:32], method.vectors[1, 32:64])


def test_a_prefix_of_zeros_is_everybody_s(tiny_backbone, tiny_benchmark):
    method = build_method(CONFIG, tiny_backbone(), tiny_benchmark, seed=0).eval()
    question = tiny_benchmark.select("test")[0]
    before = logits(method, [question])
    with controlled(method, "zero_prefix"):
        zero = logits(method, [question])
    assert not torch.allclose(zero, before)
    with torch.no_grad():
        for parameter in method.network[2].parameters():
            parameter.zero_()
    torch.testing.assert_close(logits(method, [question]), zero)
