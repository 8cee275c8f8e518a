"""Two processes on the CPU end like one: training, evaluation, sharded layers, and what a killed process leaves."""

import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from accelerate import PartialState
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from small_world import METHODS, PREFMOE, model_folder, small_benchmark, small_edition

from prefmoe import losses
from prefmoe.backbones.loading import load_backbone
from prefmoe.config import ROOT, Training
from prefmoe.models.base import build_method
from prefmoe.running.checkpoints import CheckpointError, TrainingError
from prefmoe.running.evaluation import evaluate
from prefmoe.running.training import train
from prefmoe.system import distributed

TRAINING = Training(steps=4, batch_size=6, checkpoint_every=2, gradient_accumulation=2)
CONFIGS = small_edition(
    "tiny",
    methods={
        **METHODS,
        "LoRA": METHODS["LoRA"] | {"dropout": 0.0},
        "sparse": PREFMOE | {"label": "sparse", "user_updates": "sparse"},
    },
).methods


def work(name: str, folder: Path, on_step: Callable[[int, dict[str, float]], None] | None = None) -> None:
    """Trains and evaluates a method, as one of several processes or alone; the folder holds all that came out."""
    benchmark = small_benchmark()
    backbone = load_backbone(model_folder(), shard=torch.float32 if distributed.sharding() else None)
    method = build_method(CONFIGS[name], backbone, benchmark, seed=0)
    train(method, benchmark.select("train"), TRAINING, folder=folder, seed=1, on_step=on_step)
    frame = evaluate(
        method, benchmark.select("test")[:13], turns=1, transcripts=benchmark.transcripts, batch_size=4,
        max_new_tokens=2, folder=folder / "answers", shard_batches=2,
    )  # fmt: skip
    assert frame["index"].tolist() == [example.index for example in benchmark.select("test")[:13]]
    method.save_pretrained(folder / "method")
    if distributed.state().is_main_process:
        frame.to_parquet(folder / "predictions.parquet")


def in_two_processes(function: Callable[..., Any], *arguments: Any, sharded: bool = False) -> list[int | None]:
    """Runs a function in two processes that work together, as a launcher would; their exit statuses."""
    model_folder(), small_benchmark()  # made once, before the fork
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(rank: int) -> None:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        } | ({"ACCELERATE_USE_FSDP": "true"} if sharded else {})  # fmt: skip
        PartialState._reset_state()
        AcceleratorState._reset_state()
        try:
            assert distributed.state().num_processes == 2 and distributed.sharding() == sharded
            function(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=start, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Callable[[str], Path]:
    """alone(method): the folder of the same work in one process."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            work(name, folders[name])
        return folders[name]

    return folder


def assert_same(found: Path, expected: Path) -> None:
    """Equal losses, weights and answers up to the order of sums."""
    ours, theirs = (pd.read_parquet(path / "losses.parquet") for path in (found, expected))
    pd.testing.assert_frame_equal(ours, theirs, rtol=2e-3, atol=1e-5)
    # Adam makes steps of full size out of gradients that are nothing but rounding: one entry in fifty may be one.
    ours, theirs = (load_file(path / "method" / "method.safetensors") for path in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if value.is_floating_point() and value.any():
            differ = ((ours[name] - value).abs() > 1e-2 * value.abs().max()).double().mean()
            assert differ < 0.02, f"{name}: {differ:.3f} of its entries differ"
    ours, theirs = (pd.read_parquet(path / "predictions.parquet") for path in (found, expected))
    numbers = theirs.select_dtypes("number").columns
    pd.testing.assert_frame_equal(ours.drop(columns=numbers), theirs.drop(columns=numbers))
    pd.testing.assert_frame_equal(ours[numbers], theirs[numbers], rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("name", ["PrefMoE", "sparse", "LoRA", "FFT"])
def test_two_processes_end_like_one_with_the_same_batches(tmp_path, alone, name):
    assert in_two_processes(work, name, tmp_path) == [0, 0]
    assert_same(tmp_path, alone(name))
    assert not (tmp_path / "answers").exists()


@pytest.mark.parametrize("name", ["PrefMoE", "FFT"])
def test_sharded_layers_end_like_whole_ones(tmp_path, alone, name):
    assert in_two_processes(work, name, tmp_path, sharded=True) == [0, 0]
    assert_same(tmp_path, alone(name))
    parts = sorted(path.name for path in (tmp_path / "checkpoint" / "step-000004").glob("parameters*.safetensors"))
    assert len(parts) == (2 if name == "FFT" else 1)


def _die(rank: int) -> Callable[[int, dict[str, float]], None]:
    def on_step(step: int, terms: dict[str, float]) -> None:
        if step == 3 and distributed.state().process_index == rank:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_step


def _work_until_killed(name: str, folder: Path, rank: int) -> None:
    work(name, folder, _die(rank))


@pytest.mark.parametrize(("name", "sharded", "rank"), [("PrefMoE", False, 1), ("FFT", True, 0)])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(tmp_path, alone, capfd, name, sharded, rank):
    ended = in_two_processes(_work_until_killed, name, tmp_path, rank, sharded=sharded)
    assert ended[rank] == -signal.SIGKILL and ended[1 - rank] == 1
    assert "Error" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "checkpoint").iterdir() if path.suffix != ".partial"] == ["step-000002"]
    assert not (tmp_path / "losses.parquet").exists()
    assert in_two_processes(work, name, tmp_path, sharded=sharded) == [0, 0]
    assert_same(tmp_path, alone(name))


def _refusals(folder: Path) -> None:
    """What processes that share a batch refuse."""
    benchmark = small_benchmark()
    method = build_method(CONFIGS["LoRA"], load_backbone(model_folder()), benchmark, seed=0)
    with pytest.raises(TrainingError, match="a batch of 5 cannot be shared equally among 2 processes"):
        odd = TRAINING.model_copy(update={"batch_size": 5})
        train(method, benchmark.select("train"), odd, folder=folder / "odd", seed=1)
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    method = build_method(CONFIGS["FFT"], load_backbone(model_folder(), shard=torch.float32), benchmark, seed=0)
    with pytest.raises(CheckpointError, match="layers_sharded_over is None there, 2 here"):
        train(method, benchmark.select("train"), TRAINING, folder=folder, seed=1)


def test_what_cannot_be_shared_is_said(tmp_path, alone):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.symlink_to(alone("FFT") / "checkpoint", target_is_directory=True)
    assert in_two_processes(_refusals, tmp_path) == [0, 0]


def _gradients_of_parts(path: Path) -> None:
    """Gradients of a loss of all rows with respect to this process's rows and to what all share."""
    content = load_file(path)
    rank = distributed.state().process_index
    rows, user = content["rows"][rank::2].requires_grad_(), content["user"][rank::2]
    shared = content["shared"].requires_grad_()
    together = distributed.rows_of_all(rows + shared)
    losses.profile_contrast(together, content["anchors"].view(4, 2, -1).transpose(0, 1).flatten(0, 1),
                            distributed.rows_of_all(user)).backward()  # fmt: skip
    table = torch.nn.Parameter(torch.zeros(7, 2))
    picked = torch.tensor([[1], [4, 4, 6]][rank] if rank else [1])
    values = torch.full((len(picked), 2), 1.0 + rank)
    table.grad = torch.sparse_coo_tensor(picked[None], values, table.shape)
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.full((3,), 2.0 + rank)
    distributed.average_gradients([shared, table, weight])
    norm = distributed.clip_gradients([shared, table, weight], 1.0)
    out = {"rows": rows.grad, "shared": shared.grad, "table": table.grad.to_dense(), "weight": weight.grad}
    save_file({k: v.contiguous() for k, v in out.items()} | {"norm": norm}, path.with_name(f"{rank}.safetensors"))


def test_the_mean_over_processes_is_the_gradient_of_the_whole_batch(tmp_path):
    torch.manual_seed(0)
    content = {"rows": torch.randn(8, 5), "anchors": torch.randn(8, 5), "shared": torch.randn(5)}
    content["user"] = torch.tensor([0, 1, 2, 0, 3, 1, 4, 5])
    save_file(content, tmp_path / "batch.safetensors")
    assert in_two_processes(_gradients_of_parts, tmp_path / "batch.safetensors") == [0, 0]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    rows, shared = content["rows"].requires_grad_(), content["shared"].requires_grad_()
    losses.profile_contrast(rows + shared, content["anchors"], content["user"]).backward()
    for rank, part in enumerate((first, second)):  # each process's gradient counts once in the mean of two
        torch.testing.assert_close(part["rows"] / 2, rows.grad[rank::2])
    table = torch.zeros(7, 2)
    table[1], table[4], table[6] = 0.5, 2.0, 1.0
    weight = torch.full((3,), 2.5)
    norm = torch.cat([shared.grad, table.flatten(), weight]).norm()
    for part in (first, second):
        torch.testing.assert_close(part["norm"], norm)
        for name, expected in {"shared": shared.grad, "table": table, "weight": weight}.items():
            torch.testing.assert_close(part[name], expected / norm)


def test_the_launchers_configurations_are_understood():
    folder = ROOT / "config" / "accelerate"
    found = {path.stem: load_config_from_file(str(path)) for path in folder.glob("*.yaml")}
    kinds = {"one_gpu": "NO", "cpu": "MULTI_GPU", "ddp": "MULTI_GPU", "fsdp": "FSDP"}
    assert {name: str(settings.distributed_type).rpartition(".")[2] for name, settings in found.items()} == kinds
    assert found["fsdp"].fsdp_config["fsdp_version"] == 2 and not any(s.use_cpu for s in found.values())


def test_one_process_alone_needs_no_others():
    rows = torch.randn(3, 2, requires_grad=True)
    assert distributed.rows_of_all(rows) is rows
    assert distributed.share_of_all(5, rows.device) == 1.0
    assert not distributed.sharding()
    assert distributed.whole(rows) is rows and distributed.local(rows) is rows
