"""Makes the drawer's miniature: a U-Net and a text encoder learn to draw what captions tell, from nothing.

The drawings have attributes at random, each value as often as any other, and nothing here knows a user or a taste. A
caption names the content and tells some of the attributes that it leaves open, from none to all; now and then there
is no caption at all, for classifier-free guidance.

The U-Net works on patches of 4 x 4 pixels, at 8 x 8 and 4 x 4 places, so that an hour of one processor core teaches
something. It predicts the clean picture: with as many channels in a patch as this, noise takes more to predict than a
picture does. Words enter twice: pooled, beside the time step, and token by token, through cross-attention.
"""

import copy
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.pre_tokenizers import Split
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from prefmoe.config.backbone_files import MINIATURE_CARD as CARD
from prefmoe.generation.captions import SIZE, words
from prefmoe.generation.drawer import FOLDER, Drawer
from prefmoe.generation.reader import READER, AttributeReader, load_reader
from prefmoe.generation.sampling import STEPS, TEXT_SCALE
from prefmoe.running.record import hardware
from prefmoe.system.files import open_to_readers, write_json
from prefmoe.system.places import DRAWER
from pretraining.attribute_reader import train_reader
from pretraining.drawer_abilities import measure_drawing, measure_reading, unseen_captions
from pretraining.drawer_training import train_drawer
from pretraining.judging import judge
from pretraining.place import finished, work_folder
from pretraining.small_drawings import draw_item_masks, draw_small_pool

RECIPE: dict = {
    "pool": 40000,
    "drawer": {
        "phases": [
            {"steps": 2500, "whole": 1, "items": 1, "large": 0, "most": 5},
            {"steps": 4900, "whole": 0, "items": 1, "large": 0, "most": 5},
            {"steps": 1000, "whole": 0, "items": 5, "large": 0, "most": 5},
            {"steps": 3100, "whole": 0.6, "items": 5, "large": 0.75, "most": 2},
            {"steps": 1500, "whole": 0, "items": 5, "large": 0, "most": 2},
        ],
        "batch": 32, "lr": 1e-3, "decayed": 3000, "untold": 0.1, "ema": 0.999,
    },
    "reader": {"steps": 4500, "batch": 64, "lr": 3e-3},
}  # fmt: skip
"""Sizes of the stages."""

WANTED = {"drawing number": 0.9, "drawing item": 0.4, "drawing palette": 0.9, "reading item": 0.9, "reading tilt": 0.9}
"""Accuracies that drawer and reader are made for; of the shipped ones all are .99, but .51 of drawing items."""

PATCH, WIDTH, LENGTH = 4, 96, 11
"""Pixels along a patch, width of text tokens, and tokens of a caption: nine words, a beginning and an end."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of captions; commas and spaces stand between them."""
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    ids = {token: k for k, token in enumerate([*special, *words()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([Split(",", "removed"), pre_tokenizers.WhitespaceSplit()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(token, ids[token]) for token in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        model_max_length=LENGTH,
    )  # fmt: skip


def build_drawer(seed: int = 0, channels: Sequence[int] = (96, 96), width: int = WIDTH) -> Drawer:
    """An untrained drawer.

    Args:
        channels: of the U-Net at 8 x 8 and at 4 x 4 places.
        width: of text tokens.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    text_encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=LENGTH, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    ))  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=SIZE // PATCH, in_channels=3 * PATCH**2, out_channels=3 * PATCH**2, layers_per_block=1,
        block_out_channels=tuple(channels), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn", up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width, num_attention_heads=None, attention_head_dim=4, norm_num_groups=8,
        addition_embed_type="text", addition_embed_type_num_heads=4, resnet_time_scale_shift="scale_shift",
        time_embedding_dim=80,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=True, timestep_spacing="trailing"
    )
    return Drawer(unet, text_encoder, tokenizer, scheduler, patch=PATCH)


def pretrain_drawer(
    *,
    folder: Path | None = None,
    work: Path | None = None,
    recipe: dict | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Path:
    """Makes the drawer from nothing; a finished stage is kept and not repeated.

    Args:
        folder: where the weights go; the package's own by default.
        work: where the stages are kept; `work_folder` by default.
        recipe: another one than RECIPE, for trying things out.
        device: where to train.
        seed: of the first weights and of everything that is drawn but the pictures, which all seeds share.

    Returns:
        ``folder``.

    Raises:
        PretrainingError: if worse weights would replace the package's (`judge`).
    """
    replaces = folder is None
    recipe, folder, work = recipe or RECIPE, folder or FOLDER, work or work_folder(DRAWER, seed)
    work.mkdir(parents=True, exist_ok=True)
    drawer = build_drawer(seed)
    torch.manual_seed(seed)
    reader = AttributeReader().to(device)
    parts = nn.ModuleDict({"unet": drawer.unet, "text_encoder": drawer.text_encoder}).to(device)
    pool = draw_small_pool(recipe["pool"], seed=0, folder=work.parent)
    seconds: dict[str, float] = {}

    def stage(name: str, learning: nn.Module, train: Callable[..., float], learner: Drawer | nn.Module) -> None:
        seconds[name] = finished(
            name, work, learning, lambda place: train(learner, *pool, **recipe[name], seed=seed, path=place)
        )

    masks = draw_item_masks(recipe["pool"], seed=0, folder=work.parent)
    stage("drawer", parts, partial(train_drawer, masks=masks), drawer)
    stage("reader", reader, train_reader, reader)
    made = work / "made"
    write(drawer, reader, made)
    drawer, reader = Drawer.from_pretrained(made), load_reader(made / READER.name)  # rounded, as they ship
    abilities = measure_drawing(drawer, reader, unseen_captions(1000)) | measure_reading(reader)
    if recipe is RECIPE:
        judge(abilities, WANTED, DRAWER, seed=seed, replaces=replaces)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    card = {
        "drawer": DRAWER,
        "made_by": f"python workflow/scripts/pretrain.py {DRAWER} --seed {seed}",
        "seed": seed,
        "recipe": recipe,
        "parameters": {name: sum(p.numel() for p in network.parameters()) for name, network in (
            ("unet", drawer.unet), ("text_encoder", drawer.text_encoder), ("reader", reader))},
        "seconds": seconds,
        "hardware": hardware(torch.device(device)),
        "sampling": {"steps": STEPS, "text_scale": TEXT_SCALE},
        "abilities": abilities,
        "weights_blake2b": {path.relative_to(folder).as_posix(): blake2b(path.read_bytes(), digest_size=16).hexdigest()
                            for path in sorted(folder.rglob("*.safetensors"))},
    }  # fmt: skip
    write_json(folder / CARD, card)
    return folder


def write(drawer: Drawer, reader: AttributeReader, folder: Path) -> None:
    """Writes a drawer as a folder of diffusers' pipelines, in half precision, with its reader beside it."""
    networks = (drawer.unet, drawer.text_encoder, reader)
    states = [copy.deepcopy(network.state_dict()) for network in networks]
    for network in networks:
        network.half()
    drawer.save_pretrained(folder)
    reader.save_pretrained(folder / READER.name)
    open_to_readers(folder / READER.name)
    for network, state in zip(networks, states, strict=True):
        network.float().load_state_dict(state)
