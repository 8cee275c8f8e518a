"""Loading through the registry, the parts of each architecture, anchors, and the vision cache."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_benchmark import make_picture
from tiny_models import ARCHITECTURES
from torch import nn

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch, Collator
from prefmoe.backbones.conversations import encode
from prefmoe.backbones.loading import load_backbone
from prefmoe.backbones.weights import checked_folder, weights_digest
from prefmoe.config.registry import BackboneError, find_backbone, read_registry
from prefmoe.data.benchmark import Benchmark
from prefmoe.system.places import PACKAGE, REGISTRY

# --- registry -----------------------------------------------------------------------------------------------------


def test_registry_knows_the_published_and_the_shipped_backbones() -> None:
    registry = read_registry()
    assert {"llava-mini", "qwen2.5-vl-mini", "llava-1.5-7b", "qwen2.5-vl-72b"} <= set(registry.backbones)
    assert {entry.model_class for entry in registry.backbones.values()} == set(registry.architectures)
    entry = registry.backbones["qwen2.5-vl-7b"]
    assert (entry.hub_id, entry.paths.projector) == ("Qwen/Qwen2.5-VL-7B-Instruct", "model.visual.merger")
    assert all(len(entry.revision or "") == 40 for entry in registry.backbones.values() if entry.hub_id)
    assert find_backbone("llava-mini").folder == PACKAGE / "weights" / "llava-mini"


def test_registry_mistakes_are_all_named(tmp_path: Path) -> None:
    content = yaml.safe_load(REGISTRY.read_text())
    content["backbones"] = {
        "both": {"hub_id": "a/b", "folder": "c", "model_class": "LlavaForConditionalGeneration"},
        "typo": {"hubid": "a/b", "folder": "c", "model_class": "LlavaForConditionalGeneration"},
    }
    del content["architectures"]["LlavaForConditionalGeneration"]["image_token"]
    path = tmp_path / "registry.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(BackboneError) as error:
        read_registry(path)
    message = str(error.value)
    assert str(path) in message
    for expected in ("LlavaForConditionalGeneration.image_token: Field required", "typo.hubid: Extra inputs"):
        assert expected in message
    content["backbones"] = {"odd": {"hub_id": "a/b", "model_class": "NoSuchModel"}}
    path.write_text(yaml.safe_dump(content))
    read_registry.cache_clear()
    with pytest.raises(BackboneError, match="backbones.odd.model_class: expected one of .*, found 'NoSuchModel'"):
        read_registry(path)
    path.write_text(REGISTRY.read_text() + "  own: {folder: a, model_class: LlavaForConditionalGeneration}\n" * 2)
    read_registry.cache_clear()
    with pytest.raises(BackboneError, match="backbones.own: given twice, again in line"):
        read_registry(path)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(BackboneError, match="backbone 'llava-mimi' is unknown .* known backbones: llava-mini, "):
        load_backbone("llava-mimi")


# --- loading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_parts_have_one_set_of_names(tiny_backbone: Callable[..., Backbone], kind: str) -> None:
    backbone = tiny_backbone(kind)
    assert backbone.hidden_size == 32 and len(backbone.layers) == 3
    assert backbone.embed_tokens is backbone.model.get_input_embeddings()
    assert backbone.lm_head is backbone.model.get_output_embeddings()
    assert backbone.layers is backbone.language_model.layers
    inside = any(module is backbone.projector for module in backbone.vision_tower.modules())
    assert inside == (kind == "qwen2_5_vl")
    assert isinstance(backbone.projector, nn.Module) and backbone.device.type == "cpu"
    assert not any(p.requires_grad for p in backbone.model.parameters()) and not backbone.model.training


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_target_modules_are_projections_of_the_last_decoder_layers(
    tiny_backbone: Callable[..., Backbone], kind: str
) -> None:
    backbone = tiny_backbone(kind)
    names = backbone.target_modules(2)
    assert len(names) == 12 and len(backbone.target_modules()) == len(backbone.target_modules(8)) == 18
    for name in names:
        layers = backbone.entry.paths.layers
        assert name.startswith((f"{layers}.1.", f"{layers}.2."))
        assert isinstance(backbone.model.get_submodule(name), nn.Linear)
    found = {name.rsplit(".", 1)[-1] for name in names}
    assert all(len(found & set(target.split("|"))) == 1 for target in backbone.entry.target_modules)


def test_half_precision_files_load_as_single_precision(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder("llava"), tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v.half() for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    backbone = load_backbone(folder)
    assert {p.dtype for p in backbone.model.parameters()} == {torch.float32} and backbone.dtype == torch.float32
    assert torch.equal(
        backbone.lm_head.weight, weights[next(k for k in weights if k.endswith("lm_head.weight"))].half().float()
    )
    assert load_backbone(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_digest_tells_weights_apart_and_not_folders(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    original = load_backbone(tiny_folder("llava")).digest
    copy = shutil.copytree(tiny_folder("llava"), tmp_path / "copy")
    assert load_backbone(copy).digest == original
    weights = load_file(copy / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert load_backbone(copy).digest != original


def test_every_file_that_is_loaded_has_a_part_in_the_digest(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder("llava"), tmp_path / "copy")
    entry = find_backbone(folder)
    original = weights_digest(entry)
    names = {path.name for path in folder.iterdir()}
    assert {"chat_template.jinja", "generation_config.json", "processor_config.json", "tokenizer_config.json"} <= names
    for path in folder.iterdir():
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert weights_digest(entry) != original, path.name
        path.write_bytes(content)
    for name in ("README.md", "miniature.json"):  # for people
        (folder / name).write_text("{}")
    assert weights_digest(entry) == original
    (folder / "added_tokens.json").write_text("{}")
    assert weights_digest(entry) != original


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "lacks tokenizer.json"),
        ("processor_config.json", "lacks processor_config.json or preprocessor_config.json"),
        ("model.safetensors", "lacks model.safetensors or model.safetensors.index.json"),
        ("chat_template.jinja", "has no chat template"),
    ],
)
def test_a_missing_file_is_named(
    tiny_folder: Callable[[str], Path], tmp_path: Path, removed: str, expected: str
) -> None:
    folder = shutil.copytree(tiny_folder("llava"), tmp_path / "model")
    (folder / removed).unlink()
    with pytest.raises(BackboneError, match=expected):
        load_backbone(folder)


def test_a_folder_of_another_kind_is_refused(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder("llava"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    with pytest.raises(BackboneError, match="architectures: found BertModel, expected one of LlavaFor"):
        load_backbone(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(BackboneError, match="config.json: expected JSON"):
        load_backbone(folder)


def test_a_class_that_nobody_has_is_named(monkeypatch: pytest.MonkeyPatch, llava: Backbone) -> None:
    architecture = llava.entry.architecture.model_copy(update={"processor_class": "NoSuchProcessor"})
    entry = llava.entry.model_copy(update={"architecture": architecture})
    monkeypatch.setattr("prefmoe.backbones.loading.find_backbone", lambda name: entry)
    with pytest.raises(BackboneError, match="neither transformers .* nor prefmoe.* has a class NoSuchProcessor"):
        load_backbone("any")


def test_a_shipped_folder_of_another_class_is_refused(tiny_folder: Callable[[str], Path]) -> None:
    entry = find_backbone(tiny_folder("llava"))
    wrong = entry.model_copy(update={"model_class": "Qwen2_5_VLForConditionalGeneration"})
    with pytest.raises(BackboneError, match="architectures: found LlavaFor.*, expected Qwen2_5_VLFor"):
        checked_folder(wrong)
    with pytest.raises(BackboneError, match="folder .*gone is missing"):
        checked_folder(entry.model_copy(update={"folder": Path("gone")}))


def test_missing_weights_are_refused(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder("llava"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights[next(key for key in weights if key.endswith("layers.1.mlp.up_proj.weight"))]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackboneError, match="missing keys: .*layers.1.mlp.up_proj.weight"):
        load_backbone(folder)


def test_a_broken_weights_file_is_named(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder("llava"), tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BackboneError, match="backbone 'model' cannot be loaded from .*model: .*"):
        load_backbone(folder)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_numbers_are_refused_by_name(tiny_folder, tmp_path: Path, value: float) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_folder("llava"), folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if "layers.1.mlp.up_proj" in name)
    tensors[name][3, 5] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"'broken'.*NaN or infinite: \S*layers.1.mlp.up_proj.weight$"):
        load_backbone(folder)


@pytest.mark.parametrize("content", ["null", "[]", "<html>Please log in</html>", ""])
@pytest.mark.parametrize(
    "name",
    ["config", "tokenizer", "tokenizer_config", "processor_config", "generation_config", "chat_template",
     "added_tokens", "video_preprocessor_config"],
)  # fmt: skip
def test_json_of_something_else_is_refused_by_name(tiny_folder, tmp_path: Path, name: str, content: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_folder("llava"), folder)
    (folder / f"{name}.json").write_text(content)
    with pytest.raises(BackboneError, match=rf"/{name}\.json: expected"):
        load_backbone(folder)


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_a_processor_without_patch_size_takes_it_from_the_model(
    tiny_folder: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    folder = shutil.copytree(tiny_folder(kind), tmp_path / "old")
    settings = json.loads((folder / "processor_config.json").read_text())
    names = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    expected = {name: settings.pop(name) for name in names}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    processor = load_backbone(folder).processor
    assert {name: getattr(processor, name) for name in names} == expected


@pytest.mark.parametrize("kind", ["llava", "llava_next", "llava_lite"])
@torch.no_grad()
def test_a_processor_saved_without_the_class_token_s_place_counts_it_by_the_tower(
    tiny_folder: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    folder = shutil.copytree(tiny_folder(kind), tmp_path / "4.46.3")
    settings = json.loads((folder / "processor_config.json").read_text())
    settings.pop("num_additional_image_tokens", None)
    (folder / "processor_config.json").write_text(json.dumps(settings))
    backbone = load_backbone(folder)
    assert backbone.processor.num_additional_image_tokens == (kind != "llava_lite")
    encoded = encode(backbone, [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Ann?"}]}],
                     [make_picture(0)])  # fmt: skip
    shown = int((encoded.input_ids == backbone.image_token_id).sum())
    assert shown == len(backbone.image_features([make_picture(0)])[0])


def test_a_wrong_path_is_named(llava: Backbone) -> None:
    architecture = llava.entry.architecture
    paths = architecture.paths.model_copy(update={"projector": "model.no_such.part"})
    entry = llava.entry.model_copy(update={"architecture": architecture.model_copy(update={"paths": paths})})
    with pytest.raises(BackboneError, match="projector: LlavaFor.* has no 'model.no_such.part' .*lacks 'no_such'"):
        Backbone(entry, llava.model, llava.processor)


def test_a_tokenizer_of_another_model_is_refused(llava: Backbone, qwen: Backbone) -> None:
    with pytest.raises(BackboneError, match="the tokenizer has id .* for '<image>', the model expects"):
        Backbone(llava.entry, llava.model, qwen.processor)


# --- features -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
@torch.no_grad()
def test_text_anchors_are_means_over_a_texts_own_tokens(tiny_backbone: Callable[..., Backbone], kind: str) -> None:
    backbone = tiny_backbone(kind)
    texts = ["User preference in travel: enjoys tea, jazz, dislikes hats", "Ann", "red hair"]
    for anchors in ("hidden", "embedding"):
        found = backbone.text_anchors(texts, anchors, batch_size=2)
        for row, text in enumerate(texts):
            ids = torch.tensor([backbone.tokenizer(text)["input_ids"]])
            own = [k for k, i in enumerate(ids[0].tolist()) if i not in backbone.tokenizer.all_special_ids]
            assert len(own) == len(ids[0]) - (kind == "llava")
            if anchors == "hidden":
                states = backbone.model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
            else:
                states = backbone.embed_tokens(ids)
            torch.testing.assert_close(found[row], states[0, own].mean(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="a text without tokens has no anchor: ''"):
        backbone.text_anchors(["Ann", ""])


@pytest.mark.parametrize("kind", ARCHITECTURES)
@torch.no_grad()
def test_image_features_are_what_the_language_model_receives(tiny_backbone: Callable[..., Backbone], kind: str) -> None:
    backbone = tiny_backbone(kind)
    images = [make_picture(0, (48, 16)), make_picture(1), make_picture(2, (16, 32))]
    features = backbone.image_features(images, batch_size=2)
    received: list[torch.Tensor] = []
    handle = backbone.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: received.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    for image, expected in zip(images, features, strict=True):
        prompt = backbone.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Ann?"}]}], tokenize=False
        )
        inputs = backbone.processor(images=[[image]], text=[prompt], return_tensors="pt")
        backbone.model(**inputs)
        found = received[-1][inputs["input_ids"] == backbone.image_token_id]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    handle.remove()


# --- vision cache -------------------------------------------------------------------------------------------------


def tower_calls(backbone: Backbone) -> list[int]:
    """Number of pictures (or patches) that enter the tower's own layers, one entry per call."""
    calls: list[int] = []
    names = ("embeddings", "patch_embed", "stem")
    first = next(getattr(backbone.vision_tower, name) for name in names if hasattr(backbone.vision_tower, name))
    first.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    return calls


def batches(backbone: Backbone, benchmark: Benchmark) -> list[Batch]:
    collator = Collator(backbone, benchmark, profile="image")
    return [collator([benchmark.examples[i] for i in rows], with_answer=True) for rows in ((0, 11, 1), (1, 22, 33, 0))]


@pytest.mark.parametrize("kind", ARCHITECTURES)
@torch.no_grad()
def test_vision_cache_is_exact_and_encodes_each_picture_once(
    tiny_backbone: Callable[..., Backbone], tiny_benchmark: Benchmark, kind: str
) -> None:
    backbone = tiny_backbone(kind)
    inputs = [batch.inputs for batch in batches(backbone, tiny_benchmark)]
    expected = [backbone.model(**one).logits for one in inputs]
    calls = tower_calls(backbone)
    cache = backbone.cache_images()
    for _ in range(2):
        for one, logits in zip(inputs, expected, strict=True):
            torch.testing.assert_close(backbone.model(**one).logits, logits, rtol=1e-4, atol=5e-5)
    assert len(calls) == 2
    if kind != "qwen2_5_vl":
        assert sum(calls) == len(cache)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_vision_cache_lets_the_projector_learn(
    tiny_backbone: Callable[..., Backbone], tiny_benchmark: Benchmark, kind: str
) -> None:
    gradients = []
    for cached in (False, True):
        backbone = tiny_backbone(kind, cache_images=cached)
        batch = batches(backbone, tiny_benchmark)[0]
        backbone.projector.requires_grad_(True)
        for _ in range(2):  # the second pass reads the cache
            backbone.model.zero_grad()
            backbone.model(**batch.inputs, labels=batch.labels).loss.backward()
        gradients.append([p.grad.clone() for p in backbone.projector.parameters()])
    for plain, found in zip(*gradients, strict=True):
        assert bool(plain.any())
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


@torch.no_grad()
def test_another_copy_goes_on_with_what_is_encoded(
    tiny_backbone: Callable[..., Backbone], tiny_benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (tiny_backbone("qwen2_5_vl", cache_images=True) for _ in range(2))
    inputs = [batch.inputs for batch in batches(first, tiny_benchmark)]
    expected = [first.model(**one).logits for one in inputs]
    second.adopt_caches(first)
    calls = tower_calls(second)
    monkeypatch.setattr("prefmoe.backbones.batches.encode", None)
    for batch, logits in zip(batches(second, tiny_benchmark), expected, strict=True):
        assert torch.equal(second.model(**batch.inputs).logits, logits)
    assert calls == []
    with pytest.raises(BackboneError, match="other weights"):
        second.adopt_caches(tiny_backbone("llava"))


def test_vision_cache_stands_aside_while_the_tower_learns(llava: Backbone, tiny_benchmark: Benchmark) -> None:
    cache = llava.cache_images()
    llava.vision_tower.requires_grad_(True)
    batch = batches(llava, tiny_benchmark)[0]
    llava.model(**batch.inputs, labels=batch.labels).loss.backward()
    assert len(cache) == 0
    assert any(p.grad is not None and bool(p.grad.any()) for p in llava.vision_tower.parameters())


def test_evaluating_64_examples_is_one_pass_through_tower_and_language_model(
    llava: Backbone, tiny_benchmark: Benchmark
) -> None:
    llava.cache_images()
    examples = list(tiny_benchmark.examples.values())
    batch = Collator(llava, tiny_benchmark, prefix_length=13)([*examples, *examples][:64], with_answer=False)
    calls, passes = tower_calls(llava), []
    llava.language_model.register_forward_pre_hook(lambda module, args: passes.append(1))
    llava.model.generate(**batch.inputs, max_new_tokens=1)
    assert calls == [len(tiny_benchmark.examples)] and len(passes) == 1
