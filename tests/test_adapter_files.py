"""The files of adapters and of backbones, whoever made them: what identifies them, and what is refused by name."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from method_checks import logits
from safetensors.torch import load_file, save_file
from tiny_benchmark import make_picture

from prefmoe import config
from prefmoe.backbones.loading import load_backbone
from prefmoe.config.registry import BackboneError
from prefmoe.models.base import CONFIG_FILE, WEIGHTS_FILE, Method, MethodError, build_method


@pytest.fixture(scope="module")
def build(tiny_backbone, tiny_benchmark):
    """build(): an untrained PrefMoE."""
    settings = config.PrefMoEMethod(
        kind="prefmoe", label="PrefMoE", components="EPICDM", lr=1e-3, lr_user=1e-2, preference_rank=2, user_rank=4,
        profile_rank=2, counterfactual_users=5,
    )  # fmt: skip
    return lambda: build_method(settings, tiny_backbone(), tiny_benchmark, seed=0)


@pytest.fixture(scope="module")
def adapter(build, tmp_path_factory):
    """A saved PrefMoE."""
    return build().save_pretrained(tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def copied(adapter, tmp_path):
    return shutil.copytree(adapter, tmp_path / "adapter")


def test_the_weights_identify_the_backbone_whatever_its_folder_is_called(
    build, adapter, tiny_folder, tiny_benchmark, tmp_path
):
    moved = shutil.copytree(tiny_folder("llava"), tmp_path / "another name")
    loaded = Method.from_pretrained(adapter, load_backbone(moved), tiny_benchmark)
    assert torch.equal(logits(loaded), logits(build().eval()))
    (tmp_path / "tiny-llava").mkdir()
    same_name = shutil.copytree(moved, tmp_path / "tiny-llava", dirs_exist_ok=True)
    tensors = load_file(same_name / "model.safetensors")
    name = next(name for name in tensors if "layers.0" in name)
    save_file(tensors | {name: tensors[name] + 1}, same_name / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MethodError, match="backbone.digest: trained on 'tiny-llava' with the weights"):
        Method.from_pretrained(adapter, load_backbone(same_name), tiny_benchmark)


def test_users_whose_profiles_have_changed_are_named(adapter, tiny_backbone, tiny_benchmark, tmp_path):
    picture = tmp_path / "face.png"
    make_picture(3).save(picture)
    users = dict(tiny_benchmark.users)
    users["Ann"] = users["Ann"].model_copy(update={"description": "Somebody else."})
    users["Cid"] = users["Cid"].model_copy(update={"images": (picture,)})
    with pytest.raises(MethodError, match="with another profile: 'Ann', 'Cid'$"):
        Method.from_pretrained(adapter, tiny_backbone(), replace(tiny_benchmark, users=users))
    turned = dict(reversed(tiny_benchmark.users.items()))
    with pytest.raises(MethodError, match="their order is another one"):
        Method.from_pretrained(adapter, tiny_backbone(), replace(tiny_benchmark, users=turned))
    # The same picture elsewhere is the same profile.
    shutil.copy(tiny_benchmark.users["Cid"].image, picture)
    users = tiny_benchmark.users | {"Cid": users["Cid"]}
    Method.from_pretrained(adapter, tiny_backbone(), replace(tiny_benchmark, users=users))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"null", "found null"),
        (b"[]", "found a list"),
        (b"<!doctype html><title>Log in</title>", "found no JSON"),
        (b"\xff\xfe", "found no JSON"),
        (b"{}", "method: Field required"),
        (b"[" * 100_000, "found brackets"),
        ({"backbone": []}, "backbone: Input should be"),
        ({"backbone": None}, "backbone: Input should be"),
        ({"users": {"count": 4, "digest": "a"}}, "written by an older version"),
        ({"added_users": None}, "added_users: Input should be"),
        ({"added_users": [None]}, "added_users.0: Input should be"),
        ({"added_users": [{"name": "Eve", "images": ["/etc/passwd"]}]}, "added_users.0.images: Extra"),
    ],
)
def test_a_damaged_description_of_an_adapter_is_refused(copied, tiny_backbone, tiny_benchmark, content, message):
    path = copied / CONFIG_FILE
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content).encode()
    path.write_bytes(content)
    with pytest.raises(MethodError, match=f"{CONFIG_FILE}: .*{message}"):
        Method.from_pretrained(copied, tiny_backbone(), tiny_benchmark)


def test_added_users_of_a_strange_adapter_are_refused_by_name(copied, tiny_backbone, tiny_benchmark):
    path = copied / CONFIG_FILE
    content = json.loads(path.read_text())
    user = {"name": "Ann", "attribute": "human", "description": "A person.", "preferences": {}}
    for users, message in {
        ("Ann",): "added_users.0: user 'Ann' is known already",
        ("Eve", "Eve"): "added_users.1: user 'Eve' is known already",
        ("a | b",): "added_users.0: (.|\\n)*a name without '|'",
        ("Eve",): "user_state.delta: shape",
    }.items():
        path.write_text(json.dumps(content | {"added_users": [user | {"name": name} for name in users]}))
        with pytest.raises(MethodError, match=message):
            Method.from_pretrained(copied, tiny_backbone(), tiny_benchmark)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "<image>"}, "name: expected words without <image>, which stands for a picture"),
        ({"name": "Ev\u200be"}, "(.|\\n)*a name without"),
        ({"description": "word " * 100_000}, "description: the text 'word .* takes 100,00. positions, and backbone"),
        ({"preferences": {"sport": {"likes": ["tea"], "dislikes": []}}}, "unknown facet 'sport', expected one of"),
        ({"preferences": {"travel": {"likes": ["a, b"], "dislikes": []}}}, "preference item 'a, b' would read as sev"),
    ],
)
def test_an_added_user_of_an_adapter_is_checked_as_one_who_is_added(
    copied, tiny_backbone, tiny_benchmark, change, message
):
    path = copied / CONFIG_FILE
    user = {"name": "Eve", "attribute": "human", "description": "A person.", "preferences": {}} | change
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_users": [user]}))
    with pytest.raises(MethodError, match=f"{CONFIG_FILE}.*added_users.0.*: {message}"):
        Method.from_pretrained(copied, tiny_backbone(), tiny_benchmark)


def test_a_key_that_stands_twice_is_refused(copied, tiny_backbone, tiny_benchmark):
    path = copied / CONFIG_FILE
    path.write_text(path.read_text().replace('"added_users"', '"added_users": [], "added_users"'))
    with pytest.raises(MethodError, match=f"{CONFIG_FILE}: .*given twice: 'added_users'"):
        Method.from_pretrained(copied, tiny_backbone(), tiny_benchmark)


def test_settings_of_larger_tensors_than_the_file_has_are_refused_before_room_is_made(
    copied, tiny_backbone, tiny_benchmark, monkeypatch
):
    """A layer has no more directions than inputs, and the file's widest tensor is no matter of ranks."""
    path = copied / CONFIG_FILE
    content = json.loads(path.read_text())
    rank = load_file(copied / WEIGHTS_FILE)["model.model.language_model.layers.0.self_attn.q_proj.A"].shape[0]
    monkeypatch.setattr("prefmoe.models.base.build_method", None)
    for name in ("preference_rank", "user_rank", "profile_rank"):
        for value in (rank + 1, 10**9):
            path.write_text(json.dumps(content | {"method": content["method"] | {name: value}}))
            with pytest.raises(MethodError, match=f"{CONFIG_FILE}, method.{name}: {value}, but {WEIGHTS_FILE} has no"):
                Method.from_pretrained(copied, tiny_backbone(), tiny_benchmark)


def test_more_counterfactual_users_than_anybody_draws_are_refused_before_any_is_drawn(
    copied, tiny_backbone, tiny_benchmark, monkeypatch
):
    path = copied / CONFIG_FILE
    content = json.loads(path.read_text())
    monkeypatch.setattr("prefmoe.data.counterfactual.generate", None)
    path.write_text(json.dumps(content | {"method": content["method"] | {"counterfactual_users": 10**9}}))
    message = f"{CONFIG_FILE}: (.|\\n)*counterfactual_users: .*less than or equal to 100000"
    with pytest.raises(MethodError, match=message):
        Method.from_pretrained(copied, tiny_backbone(), tiny_benchmark)


def test_truths_that_are_numbers_are_refused_by_name(copied, tiny_backbone, tiny_benchmark):
    tensors = load_file(copied / WEIGHTS_FILE)
    tensors["user_state.known"] = tensors["user_state.known"].long() - 5
    save_file(tensors, copied / WEIGHTS_FILE)
    with pytest.raises(MethodError, match=r"user_state.known: torch.int64, expected torch.bool"):
        Method.from_pretrained(copied, tiny_backbone(), tiny_benchmark)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(copied, tiny_backbone, tiny_benchmark, value):
    tensors = load_file(copied / WEIGHTS_FILE)
    tensors["user_state.prototypes"][0, :2] = value
    save_file(tensors, copied / WEIGHTS_FILE)
    with pytest.raises(MethodError, match="NaN or infinite values in user_state.prototypes$"):
        Method.from_pretrained(copied, tiny_backbone(), tiny_benchmark)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_an_adapter_and_what_is_kept_of_users_have_the_mode_of_the_umask(
    tiny_backbone, tiny_benchmark, tmp_path, umask, mode
):
    settings, before = config.PrefMoEMethod(kind="prefmoe", label="PrefMoE", lr=1e-3, lr_user=1e-2), os.umask(umask)
    try:
        method = build_method(settings, tiny_backbone(anchors=tmp_path / "anchors"), tiny_benchmark, seed=0)
        method.save_pretrained(tmp_path / "adapter")
    finally:
        os.umask(before)
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent.name for path in made} == {"anchors", "adapter"}
    assert {path.stat().st_mode & 0o777 for path in made} == {mode}


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_an_adapters_files_are_regular_files_in_its_folder(copied, tiny_backbone, tiny_benchmark, tmp_path, name):
    def refused(message: str) -> None:
        with pytest.raises(MethodError, match=f"{name}: .*{message}"):
            Method.from_pretrained(copied, tiny_backbone(), tiny_benchmark)

    elsewhere = (copied / name).rename(tmp_path / name)
    refused("no such file")
    (copied / name).symlink_to(elsewhere)
    refused("another folder")
    (copied / name).unlink()
    os.mkfifo(copied / name)
    refused("expected a regular file")
    (copied / name).unlink()
    (copied / name).mkdir()
    refused("expected a regular file")


def as_hub_cache(folder, root):
    """The folder as the cache of the Hugging Face hub keeps it: names that link to blobs."""
    snapshot, blobs = root / "models--a--b" / "snapshots" / ("0" * 40), root / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        blob = shutil.copy(path, blobs / f"blob of {path.name}")
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def test_folders_of_the_hubs_cache_are_read(adapter, tiny_folder, tiny_benchmark, tmp_path):
    backbone = load_backbone(as_hub_cache(tiny_folder("llava"), tmp_path / "one"))
    Method.from_pretrained(as_hub_cache(adapter, tmp_path / "two"), backbone, tiny_benchmark)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"])
@pytest.mark.parametrize("make", ["pipe", "link"])
def test_a_backbones_files_are_regular_files_in_its_folder(tiny_folder, tmp_path, name, make):
    folder = shutil.copytree(tiny_folder("llava"), tmp_path / "model")
    elsewhere = (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(elsewhere) if make == "link" else os.mkfifo(folder / name)
    expected = "another folder" if make == "link" else "expected a regular file"
    with pytest.raises(BackboneError, match=f"{name}: .*{expected}"):
        load_backbone(folder)


@pytest.mark.parametrize("name", ["../model-1.safetensors", "{tmp}/model-1.safetensors", "", "..", 7])
def test_an_index_of_weights_names_plain_files_alone(tiny_folder, tmp_path, name):
    folder = shutil.copytree(tiny_folder("llava"), tmp_path / "model")
    weights = (folder / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    name = name.format(tmp=tmp_path) if isinstance(name, str) else name
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(weights), name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BackboneError, match="weight_map: .*expected the plain name of a file in this folder"):
        load_backbone(folder)


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        ("config", "text_config", {}, "text_config: expected the settings of this part, found none"),
        ("config", "vision_config", None, "vision_config: expected the settings of this part, found none"),
        ("tokenizer_config", None, {}, "pad_token: expected the text of a token, found neither it nor eos_token"),
        ("tokenizer_config", "pad_token", "abc", r"pad_token: expected one of the model's \d+ tokens, found 'abc'"),
        ("generation_config", "eos_token_id", "abc", "eos_token_id: expected the number of a token, .*found 'abc'"),
        ("processor_config", "num_additional_image_tokens", 2,
         r"num_additional_image_tokens 2 \(expected 1\): a picture becomes 5 <image> tokens, and the model has 4"),
        ("processor_config", "patch_size", 4, r"patch_size 4 \(expected 8\): a picture becomes 16 <image> tokens"),
        ("processor_config", "patch_size", "8", r"patch_size '8' \(expected 8\): no picture can be shown to the model"),
        ("processor_config", "vision_feature_select_strategy", "full",
         r"vision_feature_select_strategy 'full' \(expected 'default'\): a picture becomes 5 <image> tokens"),
        ("processor_config", "image_token", "abc", r"image_token 'abc' \(expected '<image>'\): a picture becomes 0"),
        ("processor_config", "image_processor.crop_size", -1, r"crop_size -1 \(expected positive numbers\): no"),
        ("processor_config", "image_processor.rescale_factor", "a", r"rescale_factor 'a' \(expected positive numbers"),
    ],
)  # fmt: skip
def test_what_would_stop_the_first_question_is_refused_by_file_and_field(
    tiny_folder, tmp_path, file, field, value, message
):
    path = shutil.copytree(tiny_folder("llava"), tmp_path / "model") / f"{file}.json"
    content = json.loads(path.read_text())
    *parents, name = field.split(".") if field else (None,)
    inner = content[parents[0]] if parents else content
    if name is None:
        content = value
    elif value is None:
        del inner[name]
    else:
        inner[name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(BackboneError, match=rf"/{file}\.json, {message}"):
        load_backbone(path.parent)


def test_settings_that_stand_beside_the_parts_are_read_as_before(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("qwen2_5_vl"), tmp_path / "flat")
    content = json.loads((folder / "config.json").read_text())
    text = content.pop("text_config")
    text.pop("model_type")
    (folder / "config.json").write_text(json.dumps(text | content))
    assert load_backbone(folder).hidden_size == 32
