"""Makes the miniature backbones: real architectures, small configurations, trained on user-free drawings and texts.

Three stages, all on randomly invented people and on pictures of the drawing world, never on benchmark users:

1. text: the language model learns to read a profile and answer questions about it, from one facet to five;
2. vision: the tower and its projector learn to emit, at the place of an item or a person, the sum of the word
   embeddings that name it (cross entropy over the words, plus MSE to the sum);
3. joint: pictures take the place of words; items, preferences, captions, recognition from a portrait or a
   description, small talk in between; and, last, soft tokens in the place of a profile text.

Large language models make something of the mean of a few word embeddings; four layers do not, unless they have met
such a thing. The last lessons therefore lead from single words in the place of a soft prefix to means of sentences,
about people invented for one conversation.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from prefmoe import provenance
from prefmoe.config import RESULTS, MiniatureData
from prefmoe.data import miniature as world
from prefmoe.data.benchmark import FACETS, Preference
from prefmoe.data.drawing import ATTRIBUTES, ITEM_FACET, ITEMS, Face, draw_items, draw_people
from prefmoe.data.prompts import format_preferences, preference_phrase
from prefmoe.files import whole_file
from prefmoe.models.backbones import load_backbone, pictures_only

log = logging.getLogger(__name__)

IMAGE_SIZE, GRID, HIDDEN = 64, 4, 128
"""Pixels the towers see, image tokens per side, hidden size of the language models."""

BLANK = "background"
"""The word whose embedding an image token takes where there is nothing."""

LLAVA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ 'USER:' if m['role'] == 'user' else 'ASSISTANT:' }}"
    "{% if m['content'] is string %} {{ m['content'] }} {% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %} {{ p['text'] }} {% endif %}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %} {{ p['text'] }} {% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)

CAPTION_QUESTIONS = ("What is this?", "Name the thing in this picture.")
FACE_QUESTION = "Describe the person."


# --- words and tokenizer ------------------------------------------------------------------------------------------


def vocabulary() -> list[str]:
    """Every whole word of the miniature world, in a fixed order."""
    talk = " ".join(t for k in range(40) for _, t in world.small_talk(np.random.default_rng(k), 10))
    questions = " ".join(
        [*world.LIKES_QUESTIONS, *world.NEGATED_QUESTIONS, *world.CHOICE_QUESTIONS.values(),
         *world.PRESENCE_QUESTIONS, world.PLACE_QUESTION, *CAPTION_QUESTIONS, FACE_QUESTION]
    )  # fmt: skip
    phrases = (
        f"{talk} {questions} In terms of enjoys but dislikes and is a person with skin hair in clothes person "
        "I got it Options A B C D yes no Yes No user assistant User preference in profile name image description "
        f"{BLANK} nothing unknown someone enjoy dislike suits there are people picture the this that"
    )
    words = [w for v in ATTRIBUTES.values() for w in v] + list(ITEM_FACET) + list(world.PLACE_OPTIONS)
    words += [*FACETS, *world.NAMES, *re.findall(r"[A-Za-z]+|[0-9]+", phrases)]
    return list(dict.fromkeys(words))


def build_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer: whole words of the world, and single characters for everything else."""
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    if kind == "llava":
        special += ["<image>", "USER:", "ASSISTANT:"]
    else:
        special += [
            "<|im_start|>",
            "<|im_end|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|image_pad|>",
            "<|video_pad|>",
        ]
    characters = [chr(c) for c in range(33, 127)]
    entries = [*special, *characters, *(f"##{c}" for c in characters), *vocabulary()]
    ids = {token: i for i, token in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<unk>", max_input_chars_per_word=60))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    extra = special[4:]
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
        eos_token="</s>" if kind == "llava" else "<|im_end|>", additional_special_tokens=extra,
        padding_side="left", model_max_length=1024,
    )  # fmt: skip
    wrapped.chat_template = LLAVA_TEMPLATE if kind == "llava" else QWEN_TEMPLATE
    if kind == "llava":
        wrapped.image_token = "<image>"
    return wrapped


# --- models -------------------------------------------------------------------------------------------------------


def build_model(kind: str, seed: int = 0):
    """An untrained miniature backbone of the real classes.

    Args:
        kind: "llava" (CLIP tower + Llama) or "qwen2.5-vl".

    Returns:
        (model, image processor, tokenizer).
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(kind)
    rope = {"rope_type": "default", "rope_theta": 1e6}
    text = dict(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024, initializer_range=0.08,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )  # fmt: skip
    token = tokenizer.convert_tokens_to_ids
    if kind == "llava":
        vision = CLIPVisionConfig(
            hidden_size=HIDDEN, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
            image_size=IMAGE_SIZE, patch_size=IMAGE_SIZE // GRID, projection_dim=HIDDEN,
        )  # fmt: skip
        config = LlavaConfig(
            vision_config=vision, text_config=LlamaConfig(**text, rope_parameters=rope), vision_feature_layer=-1,
            image_token_index=token("<image>"), image_seq_length=GRID * GRID,
        )  # fmt: skip
        model = LlavaForConditionalGeneration(config)
        size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        images = CLIPImageProcessorPil(size=size, do_center_crop=False, crop_size=size)
    else:
        vision = dict(
            depth=3, hidden_size=96, intermediate_size=192, num_heads=4, patch_size=8, spatial_merge_size=2,
            temporal_patch_size=2, window_size=IMAGE_SIZE, fullatt_block_indexes=[0, 1, 2], out_hidden_size=HIDDEN,
        )  # fmt: skip
        config = Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": rope | {"rope_type": "default", "mrope_section": [4, 6, 6]}},
            vision_config=vision, image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
            vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
            tie_word_embeddings=False,
        )  # fmt: skip
        model = Qwen2_5_VLForConditionalGeneration(config)
        pixels = IMAGE_SIZE * IMAGE_SIZE
        geometry = dict(patch_size=8, merge_size=2, temporal_patch_size=2, min_pixels=pixels, max_pixels=pixels,
                        size={"shortest_edge": pixels, "longest_edge": pixels})  # fmt: skip
        images = Qwen2VLImageProcessorPil(**geometry)
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, do_sample=False,
    )  # fmt: skip
    with torch.no_grad():  # keys start close to queries: equal things attend to each other from the first step
        for layer in model.model.language_model.layers:
            attention = layer.self_attn
            attention.k_proj.weight.copy_(attention.q_proj.weight + 0.01 * torch.randn_like(attention.q_proj.weight))
    return model, images, tokenizer


# --- pictures -----------------------------------------------------------------------------------------------------


@dataclass
class Pictures:
    """A pool of drawings with what each of the 16 image tokens should say.

    Attributes:
        pixels: (n, 64, 64, 3) uint8.
        labels: (n, 16, 8) word indices: item, six attributes, place; -1 = none. All -1 = background.
        people: person id -> [(picture, place)]; a place is "left", "middle" or "right".
        faces: person id -> Face.
        items: item word -> pictures that show it alone.
        groups: pictures of people -> person ids from left to right.
    """

    pixels: np.ndarray
    labels: np.ndarray
    items: dict[str, list[int]]
    quarters: dict[int, list[str]]
    groups: dict[int, list[int]]
    faces: list[Face]
    appearances: dict[int, list[tuple[int, str]]] = field(default_factory=dict)


LABEL_WORDS: list[list[str]] = [
    list(ITEM_FACET),
    *(list(w) for w in ATTRIBUTES.values()),
    list(world.PLACE_OPTIONS[:3]),
]
"""The vocabulary of each label column of Pictures.labels."""

_REGIONS = {
    ("item", 1): [[5, 6, 9, 10]],
    ("item", 4): [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]],
    ("people", 1): [[5, 6, 9, 10, 13, 14]],
    ("people", 2): [[8, 9, 12, 13], [10, 11, 14, 15]],
    ("people", 3): [[8, 12], [9, 10, 13, 14], [11, 15]],
}
"""Which of the 4 x 4 image tokens speak for each thing in a picture."""


def _draw(job: tuple[str, list, int]) -> np.ndarray:
    kind, content, seed = job
    rng = np.random.default_rng(seed)
    picture = draw_items(content, rng) if kind == "item" else draw_people(content, rng)
    return np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.BICUBIC))


def _drawn(jobs: list[tuple[str, list, int]], folder: Path | None) -> np.ndarray:
    """The pixels (n, 64, 64, 3) of all jobs, drawn by as many processes as torch has threads."""
    if folder is None:
        return np.stack([_draw(job) for job in jobs])
    drawing = provenance.code_digest(("prefmoe.data.drawing",))
    path = folder / f"drawings-{provenance.digest([drawing, IMAGE_SIZE, repr(jobs)])[:16]}.npy"
    if not path.is_file():
        drawn = Parallel(n_jobs=torch.get_num_threads(), return_as="generator", batch_size=50)(
            delayed(_draw)(job) for job in jobs
        )
        pixels = np.stack(list(tqdm(drawn, desc="drawing", total=len(jobs), mininterval=5)))
        with whole_file(path) as partial, partial.open("wb") as file:
            np.save(file, pixels)
    return np.load(path)


def draw_pool(items: int, quarters: int, groups: int, people: int, seed: int, avoid: Collection[Face],
              folder: Path | None = None) -> Pictures:  # fmt: skip
    """Draws the pre-training pictures; people are invented and never have the face of anybody in ``avoid``.

    With a folder the drawings are kept there, in a file named after what is drawn and by which code.
    """
    rng = np.random.default_rng([seed, 11])
    faces: list[Face] = []
    while len(faces) < people:
        face = Face.random(rng)
        if rng.random() < 0.5 and faces:  # half have a lookalike
            face = faces[rng.integers(len(faces))].altered(rng, int(rng.integers(2, 4)))
        if face not in avoid:
            faces.append(face)
    words = list(ITEM_FACET)
    jobs: list[tuple[str, list, int]] = []
    members: list[list] = []
    for k in range(items):
        members.append([words[k % len(words)]])
    for _ in range(quarters):
        members.append([str(w) for w in rng.choice(words, 4, replace=False)])
    for k in range(groups):
        size = 1 if k < 2 * people else int(rng.integers(1, 4))
        first = k % people
        others = [int(p) for p in rng.integers(people, size=size - 1)]
        members.append([int(p) for p in rng.permutation([first, *others])])
    for k, content in enumerate(members):
        kind = "item" if k < items + quarters else "people"
        drawn = content if kind == "item" else [faces[p] for p in content]
        jobs.append((kind, drawn, int(rng.integers(2**62))))
    pixels = _drawn(jobs, folder)
    labels = np.full((len(jobs), GRID * GRID, 8), -1, dtype=np.int64)
    pool = Pictures(pixels, labels, {w: [] for w in words}, {}, {}, faces)
    for k, content in enumerate(members):
        kind = jobs[k][0]
        for place, (region, thing) in enumerate(zip(_REGIONS[kind, len(content)], content, strict=True)):
            if kind == "item":
                labels[k, region, 0] = words.index(thing)
            else:
                values = [list(ATTRIBUTES[a]).index(getattr(faces[thing], a)) for a in ATTRIBUTES]
                where = world.PLACES[len(content)][place]
                labels[k, region, 1:7] = values
                labels[k, region, 7] = world.PLACE_OPTIONS.index(where)
                pool.appearances.setdefault(thing, []).append((k, where))
        if kind == "people":
            pool.groups[k] = content
        elif len(content) == 1:
            pool.items[content[0]].append(k)
        else:
            pool.quarters[k] = content
    return pool


# --- where a stage stands -----------------------------------------------------------------------------------------


class Place:
    """How far a stage is, kept in a file with its weights, its optimiser and its random generator.

    Args:
        path: the file; None keeps nothing.
        rng: continues where it was.
        parts: name -> whatever has a state_dict (model, optimiser, schedule); restored in place.

    Attributes:
        at: what `keep` was given last, empty at the beginning.

    Raises:
        ValueError: if the file cannot be read.
    """

    def __init__(self, path: Path | None, rng: np.random.Generator, **parts):
        self.path, self.rng, self.parts = path, rng, parts
        self.at: dict = {}
        self.began = time.time()
        if path is None or not path.is_file():
            return
        try:
            kept = torch.load(path, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(kept[name])
            self.at, rng.bit_generator.state = kept["at"], json.loads(kept["rng"])
        except Exception as error:
            raise ValueError(f"{path}: cannot be read ({error}); delete the file to begin the stage again") from error
        self.began -= self.at["seconds"]
        log.info("%s: goes on from %s", path, {k: v for k, v in self.at.items() if k != "hits"})

    def keep(self, **at) -> None:
        """Writes everything, under a temporary name first."""
        if self.path is None:
            return
        at["seconds"] = time.time() - self.began
        states = {name: part.state_dict() for name, part in self.parts.items()}
        with whole_file(self.path) as partial:
            torch.save({**states, "at": at, "rng": json.dumps(self.rng.bit_generator.state)}, partial)


KEEP_EVERY = 100
"""Steps between two writings of a stage's place."""


# --- stage 2: vision ----------------------------------------------------------------------------------------------


def word_ids(tokenizer) -> list[torch.Tensor]:
    """Token ids of the words of each label column."""
    return [torch.tensor(tokenizer.convert_tokens_to_ids(words)) for words in LABEL_WORDS]


def image_tokens(model, image_processor, pixels: np.ndarray) -> torch.Tensor:
    """Projected image tokens (n, 16, H) of uint8 pictures (n, 64, 64, 3), through the model's own code path."""
    inputs = image_processor(images=list(pixels), return_tensors="pt")
    features = model.model.get_image_features(**inputs).pooler_output
    return torch.stack([f.reshape(GRID * GRID, -1) for f in features])


def vision_targets(labels: torch.Tensor, table: torch.Tensor, ids: Sequence[torch.Tensor], blank: int) -> torch.Tensor:
    """The sum of the embeddings of a token's words, scaled to the norm of one word; (n, 16, 8) -> (n, 16, H)."""
    total = torch.zeros(*labels.shape[:2], table.shape[1])
    for column, words in enumerate(ids):
        named = labels[..., column] >= 0
        total[named] += table[words[labels[..., column][named]]]
    count = (labels >= 0).sum(-1, keepdim=True)
    return torch.where(count > 0, total / count.clamp(min=1).sqrt(), table[blank])


def _shifted(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random translations by up to four pixels, and small changes of brightness: cheap new pictures."""
    dy, dx = rng.integers(-4, 5, 2)
    padded = np.pad(pixels, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")
    moved = padded[:, 4 + dy : 4 + dy + IMAGE_SIZE, 4 + dx : 4 + dx + IMAGE_SIZE].astype(np.float32)
    gain = rng.uniform(0.93, 1.07, (len(pixels), 1, 1, 3))
    return np.clip(moved * gain, 0, 255).astype(np.uint8)


def vision_accuracy(tokens: torch.Tensor, labels: torch.Tensor, table: torch.Tensor, ids) -> dict[str, float]:
    """Share of labelled image tokens whose nearest word is right, per label column."""
    names = ["item", *ATTRIBUTES, "place"]
    result = {}
    for column, name in enumerate(names):
        named = labels[..., column] >= 0
        scores = tokens[named] @ table[ids[column]].T
        result[name] = (scores.argmax(-1) == labels[..., column][named]).float().mean().item()
    return result


def whiten_patches(model, image_processor, pool: Pictures) -> None:
    """Starts the patch embedding as a PCA whitening of the pool's patches: shape is seen beside colour at once."""
    inputs = image_processor(images=list(pool.pixels[:: max(1, len(pool.pixels) // 3000)]), return_tensors="pt")
    pixels = inputs["pixel_values"].float()
    vision = getattr(model.model, "vision_tower", None) or model.model.visual
    convolution = next(m for m in vision.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Conv3d)))
    weight = convolution.weight
    if pixels.ndim == 4:  # pictures: cut them into patches; Qwen's processor has done so already
        size = weight.shape[-1]
        pixels = F.unfold(pixels, size, stride=size).transpose(1, 2)
    patches = pixels.reshape(-1, weight[0].numel())
    values, directions = torch.linalg.eigh(torch.cov(patches[torch.randperm(len(patches))[:20000]].T))
    top = directions[:, -weight.shape[0] :] / (values[-weight.shape[0] :].clamp(min=0) + 1e-2).sqrt()
    with torch.no_grad():
        weight.copy_(0.5 * top.T.reshape(weight.shape))


def train_vision(
    model, image_processor, tokenizer, pool: Pictures, *, steps: int, lr: float, batch: int = 64, seed: int = 0,
    path: Path | None = None,
) -> dict:  # fmt: skip
    """Stage 2. Trains tower and projector; word embeddings stay as they are. ``path`` keeps its `Place`.

    Returns:
        accuracy per label column on pictures that were not trained on.
    """
    rng = np.random.default_rng([seed, 21])
    whiten_patches(model, image_processor, pool)
    table = model.get_input_embeddings().weight.detach().clone()
    ids, blank = word_ids(tokenizer), tokenizer.convert_tokens_to_ids(BLANK)
    vision = [p for name, p in model.model.named_parameters() if not name.startswith("language_model")]
    optimizer = torch.optim.AdamW(vision, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    scale = 12.0 / table.norm(dim=1).mean() ** 2
    order = rng.permutation(len(pool.pixels))
    held, train = np.split(order, [min(512, len(order) // 8)])
    place = Place(path, rng, model=model, optimizer=optimizer, schedule=schedule)
    first = place.at.get("step", 0)
    bar = tqdm(range(first, steps), desc="vision", initial=first, total=steps, mininterval=5)
    for step in bar:
        chosen = rng.choice(train, batch, replace=False)
        tokens = image_tokens(model, image_processor, _shifted(pool.pixels[chosen], rng))
        labels = torch.from_numpy(pool.labels[chosen])
        target = vision_targets(labels, table, ids, blank)
        loss = 4.0 * F.mse_loss(tokens, target) / target.var()
        for column, words in enumerate(ids):
            named = labels[..., column] >= 0
            weight = 1.0 if column == 0 else 0.5
            loss = loss + weight * F.cross_entropy(scale * tokens[named] @ table[words].T * (1 if column == 0 else 2.4),
                                                   labels[..., column][named])  # fmt: skip
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vision, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if step % 250 == 249 or step == steps - 1:
            with torch.no_grad():
                got = torch.cat(
                    [
                        image_tokens(model, image_processor, pool.pixels[held[i : i + 64]])
                        for i in range(0, len(held), 64)
                    ]
                )
            scores = vision_accuracy(got, torch.from_numpy(pool.labels[held]), table, ids)
            log.info("vision %d: loss %.3f %s", step + 1, loss.item(), {k: round(v, 3) for k, v in scores.items()})
        if step % KEEP_EVERY == KEEP_EVERY - 1 and step < steps - 1:
            place.keep(step=step + 1)
    return scores


# --- stages 1 and 3: conversations ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Say:
    """One utterance: its text, the pictures before the text, and whether the model learns to say it.

    The role "bare" adds its text without any chat markup (the first lessons of stage 1).
    """

    role: str
    text: str
    pictures: tuple[int, ...] = ()
    learn: bool = False


def _invented(rng: np.random.Generator, facets: Sequence[str]) -> dict[str, Preference]:
    """Preferences of an invented person: uniform items, so that popularity cannot stand in for reading."""
    result = {}
    for facet in facets:
        picked = [str(i) for i in rng.choice(list(ITEMS[facet]), 4, replace=False)]
        result[facet] = Preference(likes=tuple(picked[:2]), dislikes=tuple(picked[2:]))
    return result


@dataclass(frozen=True)
class Introduced:
    """An invented person whom a soft prefix introduces. portrait: index of a picture of the pool."""

    name: str
    portrait: int
    description: str
    preferences: dict[str, Preference]


def _named(text: str, name: str) -> str:
    return text.replace("<sks>", name)


class Conversations:
    """Draws training conversations about invented people.

    Args:
        pool: pictures, or None for stage 1, where the word of an item stands in for its picture.
        rng: source of every choice.
    """

    def __init__(self, pool: Pictures | None, rng: np.random.Generator):
        self.rng, self.pool = rng, pool
        if pool is None:
            return
        self.quarters, self.group_list = list(pool.quarters), list(pool.groups)
        self.portraits = {p: [k for k, _ in a if len(pool.groups[k]) == 1] for p, a in pool.appearances.items()}
        self.known = [p for p, a in pool.appearances.items() if self.portraits[p] and len(a) > 1]

    def _pick(self, options: Sequence):
        return options[int(self.rng.integers(len(options)))]

    def _shown(self, item: str) -> dict:
        """A picture of the item, or the word for it in stage 1."""
        return {"pictures": (self._pick(self.pool.items[item]),)} if self.pool else {"prefix": f"{item}. "}

    def _ask(self, question: str, answer: str, pictures: tuple[int, ...] = (), prefix: str = "") -> list[Say]:
        return [Say("user", prefix + question, pictures), Say("assistant", answer, learn=True)]

    def _preference_question(self, name: str, preferences: dict[str, Preference], choices: float) -> list[Say]:
        facet = self._pick(list(preferences))
        own = preferences[facet]
        if self.rng.random() < choices:
            target = self._pick(list(world.CHOICE_QUESTIONS))
            right_pool, wrong_pool = (own.likes, own.dislikes) if target == "like" else (own.dislikes, own.likes)
            neutral = [i for i in ITEMS[facet] if i not in own.likes + own.dislikes]
            right = self._pick(right_pool)
            options = [right, self._pick(wrong_pool), *(str(i) for i in self.rng.choice(neutral, 2, replace=False))]
            pictures: tuple[int, ...] = ()
            if self.pool:  # the options may be the four things in some picture of the pool
                pictures = (self._pick(self.quarters),)
            return self._choice(_named(world.CHOICE_QUESTIONS[target], name), self._shuffled(options), right, pictures)
        kind = self.rng.random()
        if kind < 0.5:
            item = self._pick(own.likes)
        elif kind < 0.75:
            item = self._pick(own.dislikes)
        else:
            item = self._pick(list(ITEMS[facet] if self.rng.random() < 0.6 else list(ITEM_FACET)))
        return self._liking_question(name, item, any(item in p.likes for p in preferences.values()))

    def _liking_question(self, name: str, item: str, liked: bool) -> list[Say]:
        negated = self.rng.random() < world.NEGATED_SHARE
        question = self._pick(world.NEGATED_QUESTIONS if negated else world.LIKES_QUESTIONS)
        return self._ask(_named(question, name), "yes" if liked != negated else "no", **self._shown(item))

    def _choice(self, question: str, options: Sequence[str], right: str, pictures: tuple[int, ...]) -> list[Say]:
        listed = "".join(f"{letter}. {option}\n" for letter, option in zip("ABCD", options, strict=True))
        return self._ask(f"{question}\nOptions:\n{listed}", "ABCD"[options.index(right)], pictures)

    def _shuffled(self, options: Sequence[str]) -> list[str]:
        return [str(option) for option in self.rng.permutation(options)]

    def _talk(self, share: float = 0.3) -> list[Say]:
        if self.rng.random() < share:
            return [Say(role, text) for role, text in world.small_talk(self.rng, int(self.rng.integers(1, 11)))]
        return []

    def preferences(self, facets: int, questions: int, talk: bool = False, choices: float = 0.3) -> list[Say]:
        """A profile text with some facets, then questions about likings."""
        name = self._pick(world.NAMES)
        chosen = sorted(self.rng.choice(len(FACETS), facets, replace=False))
        held = _invented(self.rng, [FACETS[f] for f in chosen])
        if self.rng.random() < 0.15:
            facet = FACETS[chosen[0]]
            own = held = {facet: held[facet]}
            likes, dislikes = ", ".join(own[facet].likes), ", ".join(own[facet].dislikes)
            profile = f"User preference in {facet}: enjoys {likes}, dislikes {dislikes}"
        else:
            profile = _named(format_preferences(held), name)
            if self.rng.random() < 0.5:
                profile = f"{_named(Face.random(self.rng).description(), name)} {profile}"
        turns = [Say("user", profile), Say("assistant", "I got it.")] + (self._talk() if talk else [])
        for _ in range(questions):
            turns += self._preference_question(name, held, choices)
        return turns

    def lesson(self, level: int) -> list[Say]:
        """Stage 1, from looking up a word to choosing between four options by a whole profile (levels 0 to 8)."""
        if level == 0:
            items = [str(i) for i in self.rng.choice(list(ITEM_FACET), 6, replace=False)]
            truth = {i: self._pick(("yes", "no")) for i in items}
            return [Say("bare", f"{i} {a} ") for i, a in truth.items()] + self._drill(truth, 14, chat=False)
        if level <= 3:
            facet = self._pick(FACETS)
            own = _invented(self.rng, [facet])[facet]
            truth = dict.fromkeys(own.likes, "yes") | dict.fromkeys(own.dislikes, "no")
            text = format_preferences({facet: own}).removeprefix(f"In terms of {facet}, <sks> ")
            if level == 1:
                return [Say("bare", text), *self._drill(truth, 12, chat=False)]
            turns = [Say("user", text), Say("assistant", "I got it.")]
            if level == 2:
                return turns + self._drill(truth, 8, chat=True)
            name = self._pick(world.NAMES)
            for item in [self._pick(list(truth)) for _ in range(6)]:
                question = _named(self._pick(world.LIKES_QUESTIONS), name)
                turns += self._ask(question, truth[item], **self._shown(item))
            return turns
        if level == 4:
            return self.preferences(int(self.rng.integers(1, 4)), 6)
        if level == 5:
            return self.preferences(int(self.rng.integers(2, 6)), 8)
        if level == 6:  # find a word among four options and say its letter
            turns = []
            for _ in range(5):
                options = [str(i) for i in self.rng.choice(list(ITEM_FACET), 4, replace=False)]
                turns += self._choice(f"{options[0]}.", self._shuffled(options), options[0], ())
            return turns
        return self.preferences(
            1 if level == 7 else int(self.rng.integers(1, 6)), 5, choices=0.8 if level == 7 else 0.5
        )

    def _drill(self, truth: dict[str, str], count: int, chat: bool) -> list[Say]:
        turns: list[Say] = []
        for _ in range(count):
            item = self._pick(list(truth))
            if chat:
                turns += [Say("user", item), Say("assistant", truth[item], learn=True)]
            else:
                turns += [Say("bare", item), Say("bare", truth[item], learn=True)]
        return turns

    def _company(self, person: int, level: int) -> tuple[int, str | None]:
        """A picture with the person or without, and the person's place in it (None: absent).

        Level 0: one person at a time, strangers look very different. Level 1: groups, strangers look different.
        Level 2: a quarter of the pictures show a lookalike that has up to four attributes in common.
        """
        pool, most = self.pool, 4 if level == 2 else 2
        face = pool.faces[person]
        while True:
            draw = self.rng.random()
            if draw < 0.5:
                picture, _ = self._pick(pool.appearances[person])
            elif draw < 0.75 and level == 2:
                near = [int(p) for p in self.rng.integers(0, len(pool.faces), 40) if face.shared(pool.faces[p]) <= most]
                best = max(near, key=lambda p: face.shared(pool.faces[p]))
                picture, _ = self._pick(pool.appearances[best])
            else:
                picture = self._pick(self.group_list)
            members = pool.groups[picture]
            if level == 0 and len(members) > 1:
                continue
            if all(m == person or face.shared(pool.faces[m]) <= most for m in members):
                return picture, dict(pool.appearances[person]).get(picture)

    def recognition(self, questions: int, talk: bool = False, source: str | None = None, level: int = 2,
                    places: float = 0.3, in_words: float = 0.0) -> list[Say]:  # fmt: skip
        """A portrait, a description or both (or the given source), then questions about pictures of people.

        ``places`` is the share of questions about where somebody is (none at level 0), ``in_words`` the share of
        these that are answered with the place itself and not with the letter of an option; the others ask whether.
        """
        name, person = self._pick(world.NAMES), self._pick(self.known)
        draw = {"portrait": 0.0, "description": 1.0, None: self.rng.random()}[source]
        text = _named(self.pool.faces[person].description(), name) if draw > 0.5 else f"This is {name}."
        pictures = (self._pick(self.portraits[person]),) if draw < 0.8 else ()
        if draw > 0.5 and self.rng.random() < 0.3:
            facets = [FACETS[f] for f in sorted(self.rng.choice(5, int(self.rng.integers(1, 3)), replace=False))]
            text += " " + _named(format_preferences(_invented(self.rng, facets)), name)
        turns = [Say("user", text, pictures), Say("assistant", "I got it.")] + (self._talk() if talk else [])
        for _ in range(questions):
            picture, place = self._company(person, level)
            while picture in pictures:
                picture, place = self._company(person, level)
            if self.rng.random() < places and level > 0:
                if self.rng.random() < in_words:
                    turns += self._ask(_named(world.PLACE_QUESTION, name), place or "absent", (picture,))
                    continue
                question = _named(world.PLACE_QUESTION, name)
                turns += self._choice(question, world.PLACE_OPTIONS, place or "absent", (picture,))
            else:
                question = _named(self._pick(world.PRESENCE_QUESTIONS), name)
                turns += self._ask(question, "yes" if place else "no", (picture,))
        return turns

    def strangers(self, talk: bool = False) -> list[Say]:
        """A question about somebody of whom nothing was said: only a guess of the right form can be learned."""
        asked = self.preferences(5, 1, choices=0.3) if self.rng.random() < 0.65 else self.recognition(1)
        return (self._talk(0.8) if talk else []) + asked[-2:]

    def introduced(self, questions: int, talk: bool = False) -> tuple[Introduced, list[Say]]:
        """Somebody whom a soft prefix introduces, and questions about the liking of things."""
        name, person = self._pick(world.NAMES), self._pick(self.known)
        facets = [FACETS[f] for f in sorted(self.rng.choice(len(FACETS), int(self.rng.integers(1, 6)), replace=False))]
        held = _invented(self.rng, facets)
        likes = [item for own in held.values() for item in own.likes]
        turns = self._talk() if talk else []
        for _ in range(questions):
            if self.rng.random() < 0.5:
                item = self._pick(likes)
            else:
                item = self._pick(list(ITEMS[self._pick(facets)] if self.rng.random() < 0.6 else ITEM_FACET))
            turns += self._liking_question(name, item, item in likes)
        description = _named(self.pool.faces[person].description(), name)
        return Introduced(name, self._pick(self.portraits[person]), description, held), turns

    def captions(self, questions: int, faces: bool = True) -> list[Say]:
        """Pictures to be named or described."""
        turns: list[Say] = []
        for _ in range(questions):
            if not faces or self.rng.random() < 0.6:
                item = self._pick(list(ITEM_FACET))
                turns += self._ask(self._pick(CAPTION_QUESTIONS), item, **self._shown(item))
            else:
                person = self._pick(self.known)
                description = self.pool.faces[person].description().removeprefix("<sks> is ")
                turns += self._ask(FACE_QUESTION, description, (self._pick(self.portraits[person]),))
        return turns


class Encoder:
    """Turns conversations into token ids, exactly as the chat template does (a test compares the two)."""

    def __init__(self, kind: str, tokenizer):
        self.kind, self.tokenizer = kind, tokenizer
        self.ids = lru_cache(maxsize=100_000)(lambda text: tuple(tokenizer(text, add_special_tokens=False).input_ids))
        self.image_id = tokenizer.convert_tokens_to_ids("<image>" if kind == "llava" else "<|image_pad|>")

    def __call__(self, turns: Sequence[Say]) -> tuple[list[int], list[int], list[int]]:
        """Returns (input ids, labels with -100 where nothing is learned, pictures in order)."""
        ids: list[int] = []
        labels: list[int] = []
        pictures: list[int] = []
        if self.kind == "llava":
            ids += self.ids("<s>")
            opening = {"user": "USER:", "assistant": "ASSISTANT:"}
            before, after, closing = "", "", {"user": "", "assistant": "</s>"}
        else:
            opening = {"user": "<|im_start|> user", "assistant": "<|im_start|> assistant"}
            before, after, closing = (
                "<|vision_start|>",
                "<|vision_end|>",
                dict.fromkeys(("user", "assistant"), "<|im_end|>"),
            )
        labels += [-100] * len(ids)
        for say in turns:
            start = list(self.ids(opening[say.role])) if say.role in opening else []
            for picture in say.pictures:
                start += [*self.ids(before), *([self.image_id] * (GRID * GRID)), *self.ids(after)]
                pictures.append(picture)
            said = list(self.ids(say.text) + self.ids(closing.get(say.role, "")))
            ids += start + said
            labels += [-100] * len(start) + (said if say.learn else [-100] * len(said))
        return ids, labels, pictures


def collate(encoded: Sequence[tuple[list[int], list[int], list[int]]], pad: int, prefix: int = 0) -> dict:
    """Left-pads conversations to (B, T), with room for ``prefix`` soft tokens, and lists their pictures in order."""
    rows = [([pad] * prefix + ids, [-100] * prefix + labels) for ids, labels, _ in encoded]
    length = max(len(ids) for ids, _ in rows)
    blanks = [length - len(ids) for ids, _ in rows]
    return {
        "input_ids": torch.tensor([[pad] * n + ids for n, (ids, _) in zip(blanks, rows, strict=True)]),
        "labels": torch.tensor([[-100] * n + labels for n, (_, labels) in zip(blanks, rows, strict=True)]),
        "attention_mask": torch.tensor([[0] * n + [1] * (length - n) for n in blanks]),
        "pictures": [p for _, _, pictures in encoded for p in pictures],
    }


def language_logits(model, kind: str, batch: dict, features: torch.Tensor | None, image_id: int,
                    prefix: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
    """Logits at the labelled positions (in order), with precomputed image features (n pictures, 16, H).

    Args:
        prefix: (B, P, H) soft tokens for the first P positions after the padding.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    embeds = model.get_input_embeddings()(ids)
    places = ids == image_id
    if batch["pictures"]:
        tokens = features[torch.tensor(batch["pictures"])].to(embeds.dtype)
        embeds = embeds.masked_scatter(places[..., None], tokens.reshape(-1, tokens.shape[-1]))
    if prefix is not None:
        front = mask.bool() & (mask.cumsum(1) <= prefix.shape[1])
        embeds = embeds.masked_scatter(front[..., None], prefix)
    extra = {}
    if kind == "qwen2.5-vl":
        grid = torch.tensor([[1, 2 * GRID, 2 * GRID]] * len(batch["pictures"])) if batch["pictures"] else None
        positions, _ = model.model.get_rope_index(
            input_ids=ids, mm_token_type_ids=places.int(), image_grid_thw=grid, attention_mask=mask
        )
        extra["position_ids"] = positions
    states = model.model.language_model(inputs_embeds=embeds, attention_mask=mask, **extra).last_hidden_state
    learned = batch["labels"][:, 1:] != -100
    return model.lm_head(states[:, :-1][learned])


def soft_prefix(
    table: torch.Tensor, encoder: Encoder, features: torch.Tensor, people: Sequence[Introduced], crowd: int,
    rng: np.random.Generator, *, blend: float, dislikes: float,
) -> torch.Tensor:  # fmt: skip
    """The 13 soft tokens of PrefMoE's prefix for invented people, or a step on the way to them.

    Name, image and description are means of their tokens. With s the sum of the word embeddings of "User preference
    in travel: ...", m its mean over these people and others, and a, b the two liked things, a facet has

        (1 - blend) a + blend m    and    (1 - blend) b + blend (s - m)

    so that blend = 0 shows single words, and blend = 1 the prototype and the residual of the untrained user state.

    Args:
        table: (V, H) input embeddings. features: (n pictures, 16, H).
        crowd: how many people m is taken over; rng invents the others. dislikes: weight in s of the things disliked.

    Returns:
        (B, 13, H).
    """

    def total(texts: Sequence[str], light: Sequence[Sequence[str]] | None = None) -> torch.Tensor:
        """The sums (n, H) of the tokens of each text, some words of which weigh less."""
        ids = [encoder.ids(text) for text in texts]
        faint = [{i for word in words for i in encoder.ids(word)} for words in light or [()] * len(texts)]
        weights = [dislikes if i in less else 1.0 for row, less in zip(ids, faint, strict=True) for i in row]
        starts = torch.tensor([0, *np.cumsum([len(row) for row in ids])[:-1].tolist()])
        flat = torch.tensor([i for row in ids for i in row])
        return F.embedding_bag(flat, table, starts, mode="sum", per_sample_weights=torch.tensor(weights))

    def words(items: Sequence[str | None]) -> torch.Tensor:
        return total([item or BLANK for item in items]) * torch.tensor([[float(item is not None)] for item in items])

    names = total([p.name for p in people]) / torch.tensor([[len(encoder.ids(p.name))] for p in people])
    images = features[torch.tensor([p.portrait for p in people])].float().mean(1)
    lengths = torch.tensor([[len(encoder.ids(p.description))] for p in people])
    tokens = [names, images, total([p.description for p in people]) / lengths]
    for facet in FACETS:
        held = [p.preferences.get(facet) for p in people]
        known = [own for own in held if own is not None]
        everybody = known + [_invented(rng, [facet])[facet] for _ in range(crowd - len(known))]
        sums = total(
            [f"User preference in {facet}: {preference_phrase(own)}" for own in everybody],
            [own.dislikes for own in everybody],
        )
        mean = sums.mean(0)
        residuals = torch.zeros(len(people), table.shape[1])
        residuals[[own is not None for own in held]] = sums[: len(known)] - mean
        first, second = (words([own and own.likes[k] for own in held]) for k in (0, 1))
        tokens += [(1 - blend) * first + blend * mean, (1 - blend) * second + blend * residuals]
    return torch.stack(tokens, 1)


def _of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """The rows of a batch, in two parts where padding each to its own longest makes them smaller by a tenth."""
    order = sorted(range(len(lengths)), key=lambda k: lengths[k])
    longest, count = lengths[order[-1]], len(order)
    sizes = [k * lengths[order[k - 1]] + (count - k) * longest for k in range(1, count)]
    if not sizes or min(sizes) > 0.9 * count * longest:
        return [order]
    cut = 1 + sizes.index(min(sizes))
    return [order[:cut], order[cut:]]


class LanguageTrainer:
    """Optimises a miniature's language model on conversations; image features are frozen and given.

    Args:
        model, kind, tokenizer: as build_model returns them.
        features: (n pictures, 16, H) projected image tokens, or None for stage 1.
        fixed_words: token ids whose input embeddings must not move (the vision stage aims at them).
    """

    def __init__(self, model, kind: str, tokenizer, features: torch.Tensor | None = None,
                 fixed_words: torch.Tensor | None = None):  # fmt: skip
        self.model, self.kind, self.tokenizer, self.features = model, kind, tokenizer, features
        self.encoder = Encoder(kind, tokenizer)
        self.parameters = [p for n, p in model.named_parameters() if "language_model" in n or n.startswith("lm_head")]
        self.optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.98), weight_decay=0.01)
        if fixed_words is not None:
            moves = torch.ones(len(tokenizer), 1)
            moves[fixed_words] = 0
            model.get_input_embeddings().weight.register_hook(lambda gradient: gradient * moves)

    def loss(
        self, conversations: Sequence[list[Say]], prefix: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, float]:
        """Cross entropy, and the accuracy over the learned tokens, ends of turns not counted."""
        encoded = [self.encoder(c) for c in conversations]
        parts, room = [], 0 if prefix is None else prefix.shape[1]
        for rows in _of_like_length([len(ids) for ids, _, _ in encoded]):
            front = None if prefix is None else prefix[rows]
            data = collate([encoded[k] for k in rows], self.tokenizer.pad_token_id, room)
            logits = language_logits(self.model, self.kind, data, self.features, self.encoder.image_id, front)
            parts.append((logits, data["labels"][:, 1:][data["labels"][:, 1:] != -100]))
        logits, wanted = (torch.cat(column) for column in zip(*parts, strict=True))
        answer = wanted != self.tokenizer.eos_token_id
        hits = (logits.argmax(-1) == wanted)[answer].float().mean().item()
        return F.cross_entropy(logits, wanted), hits

    def step(self, loss: torch.Tensor, lr: float) -> None:
        """One step down the gradient of a loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()


LESSONS = (
    *((0, 0.95, 600), (1, 0.95, 400), (2, 0.95, 500), (3, 0.93, 500), (4, 0.93, 900), (5, 0.95, 900)),
    *((6, 0.95, 500), (7, 0.93, 700), (8, 0.95, 700)),
)
"""Stage 1: level, the accuracy at which the next level begins, and the most steps a level may take."""


def train_text(model, kind: str, tokenizer, *, seed: int = 0, lr: float = 2e-3, lessons=LESSONS,
               path: Path | None = None) -> float:  # fmt: skip
    """Stage 1; every fourth conversation repeats an earlier level. ``path`` keeps its `Place`.

    Returns:
        the last level's accuracy.
    """
    rng = np.random.default_rng([seed, 31])
    conversations = Conversations(None, rng)
    fixed = torch.cat([*word_ids(tokenizer), torch.tensor([tokenizer.convert_tokens_to_ids(BLANK)])])
    trainer = LanguageTrainer(model, kind, tokenizer, fixed_words=fixed)
    place = Place(path, rng, model=model, optimizer=trainer.optimizer)
    start, first, done = (place.at.get(key, 0) for key in ("lesson", "step", "done"))
    hits: list[float] = place.at.get("hits", [])
    for number, (level, goal, limit) in list(enumerate(lessons))[start:]:
        if number > start:
            first, hits = 0, []
        bar = tqdm(range(first, limit), desc=f"lesson {level}", initial=first, total=limit, mininterval=5)
        for k in bar:
            if k and k % 50 == 0:
                bar.set_postfix(accuracy=f"{np.mean(hits[-25:]):.3f}")
                if np.mean(hits[-25:]) > goal:
                    break
            done += 1
            levels = [
                level if level == 0 or i % 4 else int(rng.integers(level)) for i in range(24 if level < 4 else 16)
            ]
            rate = (lr if level < 4 else 0.75 * lr) * min(1.0, done / 60)
            loss, accuracy = trainer.loss([conversations.lesson(n) for n in levels])
            trainer.step(loss, rate)
            hits.append(accuracy)
            if done % KEEP_EVERY == 0:
                place.keep(lesson=number, step=k + 1, done=done, hits=hits[-25:])
        log.info("lesson %d: accuracy %.3f, %d steps so far", level, np.mean(hits[-25:]), done)
    return float(np.mean(hits[-25:]))


@torch.no_grad()
def pool_features(model, image_processor, pool: Pictures) -> torch.Tensor:
    """Projected image tokens of every picture of the pool, (n, 16, H) in half precision."""
    parts = [
        image_tokens(model, image_processor, pool.pixels[k : k + 64]).half() for k in range(0, len(pool.pixels), 64)
    ]
    return torch.cat(parts)


def train_joint(model, kind: str, image_processor, tokenizer, pool: Pictures, features: torch.Tensor, *,
                phases: Sequence[dict], batch: int = 16, seed: int = 0, path: Path | None = None) -> float:  # fmt: skip
    """Stage 3: preferences, recognition and captions with pictures, in some batches with small talk in between.

    Args:
        phases: one after the other, each with steps, lr (its peak), recognition (arguments of that lesson), and
            shares: how many conversations of a batch are about preferences, recognition, captions and, if there is a
            fourth number, strangers. Every fifth batch has small talk, or every ``talk_every``th. With ``prefix``
            (steps, goal and, to go on from somewhere, begin) half of a batch makes room for introduced people, whose
            soft prefix turns from single words to means of sentences in that many steps, each of them taken when the
            accuracy is above the goal.
        path: keeps the stage's `Place`.

    Returns:
        the last steps' accuracy.
    """
    rng = np.random.default_rng([seed, 41])
    conversations = Conversations(pool, rng)
    trainer = LanguageTrainer(model, kind, tokenizer, features)
    place = Place(path, rng, model=model, optimizer=trainer.optimizer)
    start, first, way = (place.at.get(key, 0) for key in ("phase", "step", "way"))
    hits: list[float] = place.at.get("hits", [])
    table = model.get_input_embeddings()
    for number, phase in list(enumerate(phases))[start:]:
        if number > start:
            first, hits = 0, []
        steps, prefix = phase["steps"], phase.get("prefix")
        if prefix and not first:
            way = prefix.get("begin", way)
        bar = tqdm(range(first, steps), desc=f"joint, phase {number}", initial=first, total=steps, mininterval=5)
        for k in bar:
            every = phase.get("talk_every", 5)
            talk = k % every == every - 1
            drawn = []
            topics = rng.permutation(np.repeat(np.arange(len(phase["shares"])), phase["shares"]))
            for topic in topics[: batch // 2 if talk or prefix else batch]:
                if topic == 0:
                    drawn.append(conversations.preferences(int(rng.integers(1, 6)), 4, talk, choices=0.4))
                elif topic == 1:
                    drawn.append(conversations.recognition(4, talk, **phase["recognition"]))
                elif topic == 2:
                    drawn.append(conversations.captions(4))
                else:
                    drawn.append(conversations.strangers(talk))
            rate = phase["lr"] * min(1.0, (k + 1) / 60) * (0.05 + 0.95 * min(1.0, 1.6 * (1 - k / steps)))
            loss, accuracy = trainer.loss(drawn)
            if prefix:
                people, asked = zip(
                    *(conversations.introduced(5, talk) for _ in range(batch // 2 if talk else batch)), strict=True
                )
                tokens = soft_prefix(
                    table.weight, trainer.encoder, features, people, 40, rng,
                    blend=_ramp(way, 0.0, 0.6), dislikes=_ramp(way, 0.6, 1.0),
                )  # fmt: skip
                more, accuracy = trainer.loss(asked, tokens)
                loss = loss + more
                if k > 100 and np.mean(hits[-20:]) > prefix["goal"]:
                    way += 1 / prefix["steps"]
            trainer.step(loss, rate)
            hits.append(accuracy)
            if k % 100 == 99:
                bar.set_postfix(accuracy=f"{np.mean(hits[-100:]):.3f}")
                log.info("joint, phase %d, %d (%.2f): accuracy %.3f", number, k + 1, way, np.mean(hits[-100:]))
            if k % KEEP_EVERY == KEEP_EVERY - 1:
                place.keep(phase=number, step=k + 1, way=way, hits=hits[-100:])
        found = abilities(model, kind, image_processor, tokenizer, count=150)
        log.info("abilities %s", {name: ability["accuracy"] for name, ability in found.items()})
    return float(np.mean(hits[-100:]))


def _ramp(value: float, first: float, last: float) -> float:
    """From 0 to 1 between two values."""
    return min(1.0, max(0.0, (value - first) / (last - first)))


@lru_cache(maxsize=1)
def unseen_pictures() -> Pictures:
    """Drawings of newly invented people and of items that no stage has seen, for measuring the abilities."""
    return draw_pool(items=240, quarters=60, groups=240, people=40, seed=1000, avoid=frozenset())


@torch.no_grad()
def abilities(model, kind: str, image_processor, tokenizer, count: int = 400) -> dict[str, dict[str, float]]:
    """What a miniature can do, on pictures and people of ``unseen_pictures``.

    Returns:
        ability -> {"accuracy", "n"}: naming an item, yes/no and choice questions about preferences read from a
        profile text or (yes/no) from a soft prefix, and recognising somebody from a portrait or from a description
        alone. A soft prefix does not tell what is liked from what is disliked (a mean has no order), so that not
        all of its questions can be answered.
    """
    pool = unseen_pictures()
    was_training = model.training
    model.eval()
    features, table = pool_features(model, image_processor, pool), model.get_input_embeddings()
    encoder = Encoder(kind, tokenizer)
    drawn = Conversations(pool, np.random.default_rng(97))
    letters = set(tokenizer.convert_tokens_to_ids(list("ABCD")))
    asked: dict[str, list[tuple[int, int]]] = {}

    def run(conversations: Sequence[list[Say]], name: Callable[[int], str], people: Sequence[Introduced] = ()) -> None:
        for first in range(0, len(conversations), 40):
            part, prefix = slice(first, first + 40), None
            if people:
                prefix = soft_prefix(
                    table.weight, encoder, features, people[part], 40, drawn.rng, blend=1.0, dislikes=1.0
                )
            encoded = [encoder(c) for c in conversations[part]]
            data = collate(encoded, tokenizer.pad_token_id, 0 if prefix is None else prefix.shape[1])
            logits = language_logits(model, kind, data, features, encoder.image_id, prefix)
            wanted = data["labels"][:, 1:][data["labels"][:, 1:] != -100]
            for want, got in zip(wanted.tolist(), logits.argmax(-1).tolist(), strict=True):
                if want != tokenizer.eos_token_id:
                    asked.setdefault(name(want), []).append((want, got))

    run([drawn.preferences(5, 1) for _ in range(count)],
        lambda want: "preference choice" if want in letters else "preference yes/no")  # fmt: skip
    for source in ("portrait", "description"):
        run([drawn.recognition(1, source=source) for _ in range(count)],
            lambda want, s=source: f"{'place' if want in letters else 'presence'} from {s}")  # fmt: skip
    run([drawn.captions(1, faces=False) for _ in range(count)], lambda want: "naming an item")
    people, asked_about = zip(*(drawn.introduced(1) for _ in range(count)), strict=True)
    run(asked_about, lambda want: "preference yes/no from a soft prefix", people)
    model.train(was_training)
    return {
        name: {"accuracy": round(float(np.mean([w == g for w, g in pairs])), 4), "n": len(pairs)}
        for name, pairs in sorted(asked.items())
    }


def adopt_language_model(model, tokenizer, source, source_tokenizer) -> None:
    """Starts a Qwen2.5-VL text model from the Llama's weights: the same blocks, with attention biases at zero.

    Embedding and output rows are matched by token; the chat markers of one template take the other's rows.
    """
    mine, theirs = model.model.language_model, source.model.language_model
    weights = theirs.state_dict()
    embedding = weights.pop("embed_tokens.weight")
    missing = mine.load_state_dict(weights, strict=False).missing_keys
    with torch.no_grad():
        for name, parameter in mine.named_parameters():
            if name in missing and name.endswith("bias"):
                parameter.zero_()
        markers = {"<|im_start|>": "<s>", "user": "USER:", "assistant": "ASSISTANT:", "<|im_end|>": "</s>"}
        known = source_tokenizer.get_vocab()
        for token, row in tokenizer.get_vocab().items():
            other = known.get(markers.get(token, token))
            if other is not None:
                mine.embed_tokens.weight[row] = embedding[other]
                model.lm_head.weight[row] = source.lm_head.weight[other]


# --- keeping the result -------------------------------------------------------------------------------------------

FOLDERS = {"llava": "llava-mini", "qwen2.5-vl": "qwen2.5-vl-mini"}
CARD = "miniature.json"
WEIGHTS = Path(__file__).parent / "weights"


def save(model, image_processor, tokenizer, kind: str, folder: Path, card: dict) -> None:
    """Writes a miniature as an ordinary folder of save_pretrained, in half precision, with a card.

    The card (miniature.json) gets the digest of the weights, so that a test can tell whether the two belong together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "llava":
        processor = LlavaProcessor(
            image_processor, tokenizer, patch_size=IMAGE_SIZE // GRID, vision_feature_select_strategy="default",
            num_additional_image_tokens=1, chat_template=LLAVA_TEMPLATE,
        )  # fmt: skip
    else:
        processor = pictures_only(Qwen2_5_VLProcessor)(image_processor, tokenizer, chat_template=QWEN_TEMPLATE)
    half = copy.deepcopy(model).half()
    half.config.dtype = torch.float16
    half.save_pretrained(folder)
    processor.save_pretrained(folder)
    weights = (folder / "model.safetensors").read_bytes()
    card = {**card, "weights_blake2b": hashlib.blake2b(weights, digest_size=16).hexdigest()}
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


_SPELLED = {
    "steps": 600, "lr": 1e-3, "shares": [4, 11, 1], "recognition": {"level": 1, "places": 0.7, "in_words": 0.6},
}  # fmt: skip
_STRANGERS = {
    "steps": 1000, "lr": 1e-3, "shares": [5, 8, 1, 2], "recognition": {"level": 2, "places": 0.5, "in_words": 0.2},
}  # fmt: skip

_TALKATIVE = {
    "steps": 500, "lr": 6e-4, "shares": [4, 6, 1, 5], "talk_every": 2,
    "recognition": {"level": 2, "places": 0.5, "in_words": 0.2},
}  # fmt: skip

_INTRODUCED = {
    "steps": 1300, "lr": 8e-4, "shares": [4, 8, 1, 3], "prefix": {"steps": 800, "goal": 0.83},
    "recognition": {"level": 2, "places": 0.5, "in_words": 0.2},
}  # fmt: skip

_READ = {
    "steps": 2000, "lr": 9e-4, "shares": [6, 7, 1, 2], "prefix": {"steps": 800, "goal": 0.74},
    "recognition": {"level": 2, "places": 0.5, "in_words": 0.2},
}  # fmt: skip

RECIPES: dict[str, dict] = {
    "llava": {
        "pool": {"items": 18000, "quarters": 4000, "groups": 18000, "people": 2250},
        "vision": {"steps": 4500, "batch": 64, "lr": 1e-3},
        "joint": {
            "phases": [
                {"steps": 2600, "lr": 1.2e-3, "shares": [8, 6, 2], "recognition": {"level": 2}},
                {"steps": 600, "lr": 1e-3, "shares": [4, 10, 2], "recognition": {"level": 0}},
                {"steps": 600, "lr": 1e-3, "shares": [4, 10, 2], "recognition": {"level": 1}},
                {"steps": 1500, "lr": 1e-3, "shares": [5, 8, 3], "recognition": {"level": 2}},
                {"steps": 700, "lr": 1e-3, "shares": [3, 11, 2], "recognition": {"level": 1, "places": 0.6}},
                {"steps": 900, "lr": 1e-3, "shares": [5, 9, 2], "recognition": {"level": 2, "places": 0.4}},
                _SPELLED,
                _STRANGERS,
                _TALKATIVE,
                _INTRODUCED,
                {**_INTRODUCED, "steps": 700, "prefix": {"steps": 800, "goal": 0.8}},
                {**_READ, "steps": 1200, "lr": 8e-4},
                {**_READ, "steps": 2600, "lr": 1e-3, "shares": [7, 6, 1, 2]},
            ]
        },
    },
    "qwen2.5-vl": {
        "pool": {"items": 18000, "quarters": 4000, "groups": 18000, "people": 2250},
        "vision": {"steps": 4500, "batch": 40, "lr": 1e-3},
        "joint": {
            "phases": [
                {"steps": 500, "lr": 1e-3, "shares": [5, 8, 3], "recognition": {"level": 0}},
                {"steps": 700, "lr": 1e-3, "shares": [5, 9, 2], "recognition": {"level": 1, "places": 0.5}},
                {"steps": 900, "lr": 1e-3, "shares": [5, 9, 2], "recognition": {"level": 2, "places": 0.4}},
                _SPELLED,
                _STRANGERS,
                _STRANGERS,
                _STRANGERS,
                _TALKATIVE,
                _INTRODUCED,
                {**_INTRODUCED, "steps": 700, "prefix": {"steps": 800, "goal": 0.8}},
                {**_READ, "lr": 8e-4},
                _READ,
            ]
        },
    },
}
"""Sizes of the stages. The Qwen2.5-VL text model starts from the LLaVA miniature's instead of stage 1."""


def pretrain(
    backbone: str, *, folder: Path | None = None, work: Path | None = None, recipe: dict | None = None
) -> Path:
    """Makes a miniature backbone from nothing; a finished stage is kept and not repeated.

    Args:
        backbone: "llava-mini" or "qwen2.5-vl-mini" (which needs the weights of llava-mini).
        folder: where the weights go; the package's own by default.
        work: where the stages are kept; results/pretraining/<backbone> by default.
        recipe: another entry than that of RECIPES, for trying things out.

    Returns:
        ``folder``.

    Raises:
        ValueError: if the backbone is not a miniature.
    """
    kinds = {name: kind for kind, name in FOLDERS.items()}
    if backbone not in kinds:
        raise ValueError(f"{backbone!r} is not a miniature; expected one of {', '.join(kinds)}")
    kind = kinds[backbone]
    recipe = recipe or RECIPES[kind]
    folder = folder or WEIGHTS / backbone
    work = work or RESULTS / "pretraining" / backbone
    work.mkdir(parents=True, exist_ok=True)
    model, image_processor, tokenizer = build_model(kind)
    seconds = 0.0

    def stage(name: str, train: Callable[[Path], object]) -> None:
        nonlocal seconds
        path, place = work / f"{name}.safetensors", work / f"{name}.place"
        if not path.is_file():
            began = time.time()
            if place.is_file():  # what an interrupted run had spent
                began -= torch.load(place, weights_only=True)["at"]["seconds"]
            train(place)
            with whole_file(path) as partial:
                save_model(model, str(partial), metadata={"seconds": f"{time.time() - began:.0f}"})
            place.unlink(missing_ok=True)
        load_model(model, path)
        with safe_open(path, "pt") as file:
            seconds += float((file.metadata() or {}).get("seconds", 0))

    trained, unseen = world.people(MiniatureData(kind="miniature"))
    avoid = {person.face for person in trained + unseen}
    pool = draw_pool(**recipe["pool"], seed=0, avoid=avoid, folder=work.parent)
    if kind == "llava":
        lessons = recipe.get("lessons", LESSONS)
        stage("text", lambda place: train_text(model, kind, tokenizer, lessons=lessons, path=place))
    else:
        llava = load_backbone("llava-mini")
        stage("text", lambda place: adopt_language_model(model, tokenizer, llava.model, llava.tokenizer))
    seeing, talking = recipe["vision"], recipe["joint"]
    stage("vision", lambda place: train_vision(model, image_processor, tokenizer, pool, **seeing, path=place))
    features = pool_features(model, image_processor, pool)
    stage("joint", lambda place: train_joint(model, kind, image_processor, tokenizer, pool, features, **talking,
                                             path=place))  # fmt: skip
    card = {
        "backbone": backbone,
        "made_by": "snakemake --cores all pretrain",
        "recipe": recipe,
        "parameters": sum(p.numel() for p in model.parameters()),
        "minutes": round(seconds / 60, 1),
        "abilities": abilities(model.half().float(), kind, image_processor, tokenizer),
    }
    save(model, image_processor, tokenizer, kind, folder, card)
    return folder
