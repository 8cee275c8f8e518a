"""Downloads that fail, weights folders that are incomplete or wrong, too little memory: what the messages say."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from small_world import model_folder, small_benchmark, small_edition

from prefmoe.backbones import loading
from prefmoe.backbones.loading import load_backbone
from prefmoe.backbones.weights import weights_digest
from prefmoe.config import Training
from prefmoe.config.registry import BackboneEntry, BackboneError, find_backbone
from prefmoe.models.base import Method, MethodError, build_method
from prefmoe.running import evaluation
from prefmoe.running.checkpoints import TrainingError
from prefmoe.running.evaluation import EvaluationError, evaluate
from prefmoe.running.training import train
from prefmoe.system import hub, memory

ENTRY = find_backbone("llava-1.5-7b")


def response(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://huggingface.co/api/models/a/b"))


FAILURES = {
    "gated": (
        errors.GatedRepoError("403", response=response(403)),
        r"is gated: accept its terms on https://huggingface.co/llava-hf/llava-1.5-7b-hf, then `hf auth login`",
    ),
    "missing": (
        errors.RepositoryNotFoundError("404", response=response(404)),
        "does not exist, or is private: check the name",
    ),
    "revision": (errors.RevisionNotFoundError("404", response=response(404)), "has no such revision"),
    "offline": (errors.OfflineModeIsEnabled("offline"), "not in the local cache and the hub cannot be reached"),
    "not cached": (errors.LocalEntryNotFoundError("no"), "not in the local cache and the hub cannot be reached"),
    "server": (errors.HfHubHTTPError("503 Service", response=response(503)), r"broke off \(503 Service\)"),
    "connection": (httpx2.ReadTimeout("timed out"), r"broke off \(timed out\); run the same command again: finished"),
    "disk": (OSError(28, "No space left on device"), "No space left on device"),
}


@pytest.mark.parametrize("failure", list(FAILURES))
def test_a_backbone_that_cannot_be_downloaded_says_why_and_what_helps(monkeypatch, failure):
    error, message = FAILURES[failure]
    asked = {}

    def fail(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    monkeypatch.delenv("PREFMOE_WEIGHTS", raising=False)
    with pytest.raises(hub.HubError, match=message) as caught:
        load_backbone("llava-1.5-7b")
    assert f"model llava-hf/llava-1.5-7b-hf at revision {ENTRY.revision}" in str(caught.value)
    assert "without the hub, put the files into $PREFMOE_WEIGHTS/llava-1.5-7b" in str(caught.value)
    assert asked["revision"] == ENTRY.revision and "*.bin" not in asked["allow_patterns"]
    assert caught.value.__cause__ is error


def test_a_saved_method_on_the_hub_that_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(FAILURES["missing"][0]))
    with pytest.raises(hub.HubError, match="model some/adapter at revision main does not exist"):
        Method.from_pretrained("some/adapter", load_backbone(model_folder()), small_benchmark())


# --- folders in the place of the hub ------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Path:
    """$PREFMOE_WEIGHTS with a folder named llava-1.5-7b, which holds a tiny model of its class."""
    monkeypatch.setenv("PREFMOE_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(hub, "snapshot_download", None)
    return shutil.copytree(model_folder(), tmp_path / "llava-1.5-7b")


def note_revision(folder: Path, revision: str) -> None:
    """What `hf download --local-dir` leaves beside the files: for each the commit, its name in git and the time."""
    notes = folder / ".cache/huggingface/download"
    notes.mkdir(parents=True)
    for path in (path for path in folder.iterdir() if path.is_file()):
        command = ["git", "hash-object", "--no-filters", str(path)]
        name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        (notes / f"{path.name}.metadata").write_text(f"{revision}\n{name}\n{time.time()}\n")


def test_a_folder_takes_the_place_of_the_hub(offline):
    backbone = load_backbone("llava-1.5-7b")
    assert backbone.entry == ENTRY and backbone.hidden_size == 32
    assert backbone.digest == load_backbone(model_folder()).digest != f"{ENTRY.hub_id}@{ENTRY.revision}"
    note_revision(offline, ENTRY.revision)
    assert weights_digest(ENTRY) == f"{ENTRY.hub_id}@{ENTRY.revision}"
    assert load_backbone("llava-1.5-7b").hidden_size == 32


@pytest.mark.parametrize("name", ["chat_template.jinja", "added_tokens.json", "model.safetensors"])
def test_a_folder_with_a_changed_or_added_file_is_no_longer_its_commit(offline, name):
    note_revision(offline, ENTRY.revision)
    with (offline / name).open("a") as file:
        file.write(" ")
    os.utime(offline / name, (time.time() + 60,) * 2)
    assert weights_digest(ENTRY) == weights_digest(find_backbone(offline)) != f"{ENTRY.hub_id}@{ENTRY.revision}"


def test_a_folder_of_another_revision_is_refused(offline):
    note_revision(offline, "0" * 40)
    with pytest.raises(BackboneError, match=f"holds revision {'0' * 40}, the registry pins {ENTRY.revision}: hf down"):
        load_backbone("llava-1.5-7b")


def test_a_folder_of_another_class_is_refused(offline):
    config = json.loads((offline / "config.json").read_text())
    (offline / "config.json").write_text(json.dumps(config | {"architectures": ["LlavaNextForConditionalGeneration"]}))
    with pytest.raises(BackboneError, match="found LlavaNextForConditionalGeneration, expected LlavaForCond"):
        load_backbone("llava-1.5-7b")


def test_every_weights_file_of_the_index_must_be_there(offline):
    weights = load_file(offline / "model.safetensors")
    (offline / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {f"model-0000{k + 1}-of-00002.safetensors": names[k::2] for k in range(2)}
    for file, own in parts.items():
        save_file({name: weights[name] for name in own}, offline / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (offline / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_backbone("llava-1.5-7b").hidden_size == 32
    (offline / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BackboneError, match="incomplete, it lacks 1 of 2 weights files: model-00002-of-00002.safetens"):
        load_backbone("llava-1.5-7b")
    (offline / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(BackboneError, match="index.json: expected JSON with a mapping `weight_map`"):
        load_backbone("llava-1.5-7b")


def test_an_entry_pins_a_revision():
    with pytest.raises(ValueError, match="a hub_id needs a revision"):
        BackboneEntry.model_validate(ENTRY.model_dump() | {"revision": None})


# --- what is not installed, and memory ----------------------------------------------------------------------------


def test_options_that_need_another_package_say_which(monkeypatch):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=r"4-bit loading needs bitsandbytes: python -m pip install -e '.\[four-bit"):
        load_backbone(model_folder(), four_bit=True)
    with pytest.raises(BackboneError, match="cannot be loaded from .*: .*[Ff]lash"):
        load_backbone(model_folder(), attn="flash_attention_2")


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore about it.")


def test_too_little_memory_names_the_settings_that_help(monkeypatch, tmp_path):
    benchmark = small_benchmark()
    method = build_method(small_edition("tiny").methods["LoRA"], load_backbone(model_folder()), benchmark, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(type(method), "training_losses", out_of_memory)
        with pytest.raises(TrainingError, match=r"step 1 of 2: not enough memory \(CUDA out of .* GiB\.\); .*_checkp"):
            train(method, benchmark.select("train"), Training(steps=2, batch_size=4), folder=tmp_path, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "_answer", out_of_memory)
        with pytest.raises(EvaluationError, match="a batch of 3 questions: not enough memory .* evaluation.batch_size"):
            evaluate(method, benchmark.select("test")[:5], turns=0, batch_size=3, max_new_tokens=1)
    with monkeypatch.context() as patch:
        patch.setattr(loading.transformers.LlavaForConditionalGeneration, "from_pretrained", out_of_memory)
        with pytest.raises(BackboneError, match="not enough memory .* hardware.four_bit: true"):
            load_backbone(model_folder())


@pytest.mark.parametrize(
    ("error", "explained"),
    [
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_only_a_lack_of_memory_is_explained(error, explained):
    with pytest.raises(TrainingError if explained else RuntimeError) as caught:
        with memory.explained(TrainingError, "here", "do that"):
            raise error
    assert ("here: not enough memory" in str(caught.value)) == explained


def test_full_fine_tuning_refuses_quantised_weights():
    backbone = load_backbone(model_folder())
    backbone.model.is_loaded_in_4bit = True
    with pytest.raises(MethodError, match="hardware.four_bit: false"):
        build_method(small_edition("tiny").methods["FFT"], backbone, small_benchmark(), seed=0)
