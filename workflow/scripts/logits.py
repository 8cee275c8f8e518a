"""Records what a backbone says to fixed prompts, and checks it against such a record made elsewhere.

A backbone whose weights nobody could load here is checked where they are: against a record that another implementation
made of the same prompts (docs/deepseek_vl2.md), or against one's own from another machine or version:
`python workflow/scripts/logits.py record BACKBONE FILE`, and `check` in the place of `record`.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from transformers import GenerationConfig

from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import pad
from prefmoe.backbones.conversations import encode
from prefmoe.backbones.loading import load_backbone
from prefmoe.cli import call
from prefmoe.system.files import write_json

HIGHEST = 50
"""Logits that a record keeps of each prompt."""

NEW_TOKENS = 16
"""Tokens of the greedy answer that it keeps."""


class LogitsError(ValueError):
    """A record that cannot be read, or from which a backbone differs."""


def _turn(role: str, text: str, pictures: int = 0) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "image"}] * pictures + [{"type": "text", "text": text}]}


PROMPTS: dict[str, tuple[list[dict[str, Any]], list[tuple[int, int]]]] = {
    "text": ([_turn("user", "What colour is the sky on a clear day? Answer with one word.")], []),
    "picture": ([_turn("user", "\nWhat does this picture show?", 1)], [(640, 480)]),
    "turns": (
        [
            _turn("user", "\nRemember this picture.", 1),
            _turn("assistant", "I got it."),
            _turn("user", "\nIs this the same picture? Answer with yes or no.", 1),
        ],
        [(384, 384), (300, 900)],
    ),
}
"""By name: a conversation, and the width and height of its pictures."""


def fixed_picture(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards, blue is a chequerboard of squares of 32 pixels."""
    y, x = np.mgrid[:height, :width]
    red, green, blue = 255 * x // (width - 1), 255 * y // (height - 1), (x // 32 + y // 32) % 2 * 255
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


@torch.inference_mode()
def measure(backbone: Backbone) -> dict[str, Any]:
    """What a backbone says to the prompts.

    Returns backbone, dtype, versions, and for each prompt: messages, picture sizes, input_ids, pixel_sum and
    pixel_squares of the prepared pictures (absolute values and squares, to which padding adds nothing), the HIGHEST
    logits after the prompt (ids and values), log_total (log-sum-exp over the vocabulary), answer (NEW_TOKENS greedy
    tokens) and all logits as a tensor.
    """
    entry = backbone.entry
    record: dict[str, Any] = {
        "backbone": {"name": entry.name, "hub_id": entry.hub_id, "revision": entry.revision},
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "prompts": {},
    }
    greedy = GenerationConfig(
        max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True,
        return_dict_in_generate=True, pad_token_id=backbone.pad_token_id, eos_token_id=backbone.tokenizer.eos_token_id,
    )  # fmt: skip
    for name, (messages, sizes) in PROMPTS.items():
        one = encode(backbone, messages, [fixed_picture(*size) for size in sizes])
        batch = pad([one], backbone.pad_token_id).to(backbone.device)
        output = backbone.model.generate(**batch.inputs, generation_config=greedy)
        logits = output.logits[0][0].float()
        highest = logits.topk(min(HIGHEST, len(logits)))
        pixels = batch.inputs.get("pixel_values", torch.zeros(1)).double()
        record["prompts"][name] = {
            "messages": messages,
            "pictures": [list(size) for size in sizes],
            "input_ids": one.input_ids.tolist(),
            "pixel_sum": float(pixels.abs().sum()),
            "pixel_squares": float(pixels.square().sum()),
            "ids": highest.indices.tolist(),
            "values": highest.values.tolist(),
            "log_total": float(logits.logsumexp(-1)),
            "answer": output.sequences[0, -NEW_TOKENS:].tolist(),
            "all": logits.cpu(),
        }
    return record


def record(backbone: Backbone, path: str | Path) -> None:
    """Writes `measure(backbone)` as JSON, but for the tensor of all logits."""
    content = measure(backbone)
    for prompt in content["prompts"].values():
        del prompt["all"]
    write_json(Path(path), content)


def check(backbone: Backbone, path: str | Path, tolerance: float = 0.01) -> pd.DataFrame:
    """Compares a backbone with a record.

    ``tolerance``: largest difference of a logit. The default is for float32; bfloat16 has two to three digits. Returns
    one row per prompt: tokens, largest_difference (of the recorded logits), log_total_difference, same_answer
    (beginning tokens of the greedy answers that agree; for information). Raises LogitsError if the file is no record;
    or with one line per prompt that differs in its tokens, its prepared pictures or its logits.
    """
    path = Path(path)
    try:
        expected = json.loads(path.read_text(encoding="utf-8"))["prompts"]
        fields = {name: expected[name] for name in PROMPTS}
        for name, prompt in fields.items():
            if prompt["messages"] != PROMPTS[name][0] or len(prompt["ids"]) != len(prompt["values"]):
                raise LogitsError(f"{path}, prompts.{name}: recorded with another version of the prompts")
            float(prompt["pixel_sum"] + prompt["pixel_squares"] + prompt["log_total"] + len(prompt["answer"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        if isinstance(error, LogitsError):
            raise
        raise LogitsError(f"{path}: expected a record of logits.py record ({error!r})") from error
    rows, mistakes = [], []
    for name, found in measure(backbone)["prompts"].items():
        wanted = fields[name]
        if found["input_ids"] != wanted["input_ids"]:
            mistakes.append(f"{name}: {_first_difference(backbone, found['input_ids'], wanted['input_ids'])}")
            continue
        for field in ("pixel_sum", "pixel_squares"):
            if not math.isclose(found[field], wanted[field], rel_tol=1e-3):
                mistakes.append(f"{name}: {field} of the pictures is {found[field]:.1f}, recorded {wanted[field]:.1f}")
        difference = (found["all"][wanted["ids"]] - torch.tensor(wanted["values"])).abs().max().item()
        total = abs(found["log_total"] - wanted["log_total"])
        agree = np.equal(found["answer"], wanted["answer"][:NEW_TOKENS])
        rows.append([name, len(found["input_ids"]), difference, total, int(agree.cumprod().sum())])
        if not max(difference, total) <= tolerance:
            mistakes.append(f"{name}: logits differ by up to {difference:.4f}, their total by {total:.4f}")
    if mistakes:
        lines = "\n".join(f"  {mistake}" for mistake in mistakes)
        raise LogitsError(f"{backbone.entry.name!r} differs from {path} (tolerance {tolerance}):\n{lines}")
    columns = ["prompt", "tokens", "largest_difference", "log_total_difference", "same_answer"]
    return pd.DataFrame(rows, columns=columns)


def _first_difference(backbone: Backbone, found: list[int], wanted: list[int]) -> str:
    place = next((k for k, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        return f"the prompt has {len(found)} tokens, recorded {len(wanted)}"
    texts = [repr(backbone.tokenizer.decode([ids[place]])) for ids in (found, wanted)]
    return f"token {place} of the prompt is {found[place]} ({texts[0]}), recorded {wanted[place]} ({texts[1]})"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition(".")[0])
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, function, summary in (
        ("record", _record, "Write down what a backbone says to fixed prompts."),
        ("check", _check, "Compare a backbone with such a record."),
    ):
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(function=function)
        command.add_argument("backbone", help="a name of the registry, or a folder with the model's files")
        command.add_argument("file", type=Path, help="JSON file")
        command.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
        command.add_argument("--device", default="cpu", help='"auto" spreads the model over all accelerators')
    command.add_argument("--tolerance", type=float, default=0.01, help="largest difference of a logit (default: 0.01)")
    options = parser.parse_args(arguments)
    return call(options.function, options, own=("prefmoe", __name__))


def _record(options: argparse.Namespace) -> None:
    record(_backbone(options), options.file)


def _check(options: argparse.Namespace) -> None:
    print(check(_backbone(options), options.file, options.tolerance).to_string(index=False))


def _backbone(options: argparse.Namespace) -> Backbone:
    return load_backbone(options.backbone, dtype=getattr(torch, options.dtype), device=options.device)


if __name__ == "__main__":
    sys.exit(main())
