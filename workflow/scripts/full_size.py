"""Holds `prefmoe plan` to a full-size model: LLaVA-1.5-7B with random weights, trained and asked on an accelerator.

Nothing is downloaded: sizes are the registry's, weights are drawn on the accelerator, words are the miniature's. Random
weights answer nothing, but take the memory and the time of real ones.

    python workflow/scripts/full_size.py figures/speed/full_size.csv --steps 12
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from speed import hardware_line
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from prefmoe.backbones.backbone import Backbone
from prefmoe.cli import call
from prefmoe.config import Edition, MiniatureData, load_edition
from prefmoe.config.registry import Shape, find_backbone
from prefmoe.data import miniature, mmpb
from prefmoe.data.benchmark import Benchmark
from prefmoe.models.base import build_method
from prefmoe.running.evaluation import evaluate
from prefmoe.running.training import train
from prefmoe.workflow import resources

NAME = "llava-1.5-7b"
METHODS = ("LoRA", "E", "EPICD", "PrefMoE")


def random_backbone(shape: Shape, device: str, folder: Path) -> Backbone:
    """A LLaVA of these sizes with random weights in bfloat16 (float32 on a CPU). ``folder``: for its configuration and
    processor."""
    from pretraining.miniatures import LLAVA_TEMPLATE, build_tokenizer

    tokenizer = build_tokenizer("llava")
    side = round(shape.image_tokens**0.5)
    width, depth = (1024, 24) if shape.hidden >= 1024 else (32, 2)
    vision = CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=depth, num_attention_heads=width // 64 or 2,
        image_size=14 * side, patch_size=14, projection_dim=768,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=4096, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, vision_feature_layer=-2, image_seq_length=shape.image_tokens,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    pixels = {"height": 14 * side, "width": 14 * side}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size=pixels, crop_size=pixels, do_center_crop=False), tokenizer, patch_size=14,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=LLAVA_TEMPLATE,
    )  # fmt: skip
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "model.safetensors").touch()  # what identifies a folder; the weights are never written
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa")
    with torch.no_grad():  # never the likeliest: an answer with a picture's place in it would want a picture
        model.lm_head.weight[config.image_token_index] = 0
    backbone = Backbone(find_backbone(folder), model.eval(), processor)
    backbone.freeze()
    return backbone


def measured(
    edition: Edition, method: str, shape: Shape, benchmark: Benchmark, *, device: str, steps: int, checkpointing: bool
) -> dict[str, object]:
    """One row: seconds per step (median) and per answered question, peak memory, and what the plan said."""
    training = edition.training.model_copy(
        update={"steps": steps, "gradient_checkpointing": checkpointing, "checkpoint_every": 10**6}
    )
    config = edition.methods[method]
    if hasattr(config, "counterfactual_source"):  # as many as the file would hold: the miniature has none
        config = config.with_settings({"counterfactual_source": "drawn"})
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        place.mkdir()
        backbone = random_backbone(shape, device, place)
        adapted = build_method(config, backbone, benchmark, seed=0, cache=False)
        times: list[float] = []
        fresh(device)

        def clock(step: int, terms: dict[str, float]) -> None:
            times.append(time.perf_counter())

        train(adapted, benchmark.select("train"), training, folder=Path(folder) / "run", seed=0, on_step=clock)
        learning = peak(device)
        fresh(device)
        asked = benchmark.select("test")[: 4 * edition.evaluation.batch_size]
        began = time.perf_counter()
        evaluate(adapted, asked, turns=0, transcripts=benchmark.transcripts, batch_size=edition.evaluation.batch_size,
                 max_new_tokens=edition.evaluation.max_new_tokens)  # fmt: skip
        answering = (time.perf_counter() - began) / len(asked)
    users = len(benchmark.users)
    tokens = resources.prompt_tokens(config, shape, 0)
    width = 4 if device == "cpu" else 2
    planned = resources.training_memory(
        config, shape, users=users, tokens=training.batch_size * tokens, width=width, four_bit=False,
        checkpointing=checkpointing,
    )  # fmt: skip
    step = resources.seconds_per_step(edition.model_copy(update={"training": training}), config, shape)
    gaps = pd.Series(times).diff().iloc[3:]
    return {
        "backbone": f"{NAME}, random weights", "method": config.label, "information": config.information,
        "gradient_checkpointing": checkpointing, "batch_size": training.batch_size, "steps": steps,
        "seconds_per_step": gaps.median(), "planned_seconds_per_step": step,
        "seconds_per_question": answering, "training_bytes": learning, "planned_training_bytes": planned.total,
        "evaluation_bytes": peak(device), "parameters_trained": adapted.describe()["trainable_total"],
        "hardware": hardware_line(torch.device(device)),
    }  # fmt: skip


def fresh(device: str) -> None:
    """Forgets the memory that was used so far."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> int:
    """Most bytes of the accelerator in use since then; 0 on a CPU."""
    return 0 if device == "cpu" else torch.cuda.max_memory_allocated()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--layers", type=int, help="fewer than the model has, for trying this out")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    return call(_measure, parser.parse_args(arguments), own=("prefmoe", "full_size"))


def _measure(options: argparse.Namespace) -> None:
    shape, edition = find_backbone(NAME).shape, load_edition("paper")
    if options.layers:
        small = {"hidden": 64, "intermediate": 128, "heads": 4, "key_value_heads": 4, "head_size": 16}
        small |= {"layers": options.layers, "vocabulary": 1200, "image_tokens": 16}
        shape = shape.model_copy(update=small)
    with tempfile.TemporaryDirectory() as folder:
        data = MiniatureData(kind="miniature", users=40, unseen_users=0, train_per_user=5, validation_per_user=1)
        benchmark = mmpb.read(miniature.build(data, Path(folder) / "data"))
        rows = []
        for checkpointing in (True, False):
            for method in options.methods:
                rows.append(measured(edition, method, shape, benchmark, device=options.device, steps=options.steps,
                                     checkpointing=checkpointing))  # fmt: skip
                print({k: v for k, v in rows[-1].items() if k != "hardware"}, flush=True)
                if options.device != "cpu":
                    torch.cuda.empty_cache()
    options.table.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(options.table, index=False, float_format="%.6g")


if __name__ == "__main__":
    sys.exit(main())
