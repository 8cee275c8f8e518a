"""What happens inside a trained method: its users' tokens, its gates, and where its answers look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from prefmoe import metrics
from prefmoe.analysis import statistics
from prefmoe.backbones.backbone import Backbone
from prefmoe.backbones.batches import Batch, Collator
from prefmoe.backbones.loading import load_backbone
from prefmoe.backbones.pictures import load_pictures
from prefmoe.config import RESULTS, Edition, run_folder
from prefmoe.config.registry import find_backbone
from prefmoe.data.benchmark import FACETS, Benchmark, Example
from prefmoe.data.prompts import PLACEHOLDER, description_text, facet_sentence
from prefmoe.data.sizes import ANCHORS
from prefmoe.data.sources import load_benchmark
from prefmoe.figures import old_forms as figures
from prefmoe.models.base import Method
from prefmoe.models.moe_lora import PROFILE_EXPERTS
from prefmoe.models.prefmoe import PrefMoE
from prefmoe.models.user_state import FactorisedUsers
from prefmoe.running import runs
from prefmoe.running.evaluation import ANSWERS, answer_probabilities, first_tokens
from prefmoe.system import run_files

EXPERTS = {"task": ("preference branch", "profile branch"), "preference": FACETS, "profile": PROFILE_EXPERTS}
"""What each router chooses between, in the order of its gates."""

KINDS = ("anchor", "residual", "full token")
"""The three vectors of a user's facet: the frozen anchor, the residual r, and p + r."""


class InspectionError(ValueError):
    """Something that cannot be looked at: a run that is missing, or a method without the part asked for."""


def trained_method(
    edition: Edition,
    backbone_name: str,
    method_name: str,
    seed: int,
    *,
    attn: str = "sdpa",
    results: str | Path = RESULTS,
) -> Method:
    """A trained method from its run folder, on a backbone loaded anew, ready to answer.

    A run on a miniature backbone that is absent, or older than its settings, is made first; that takes a minute or
    two.

    Args:
        attn: "eager" where attention maps will be asked for.

    Raises:
        InspectionError: if the run of a large backbone is absent; the message holds the command that makes it.
        MethodError: if the run belongs to other weights or other users than those of today.
    """
    folder = _run(edition, backbone_name, method_name, seed, results)
    backbone = load_backbone(backbone_name, attn=attn)
    return Method.from_pretrained(folder / "method", backbone, load_benchmark(edition, results))


def _run(edition: Edition, backbone_name: str, method_name: str, seed: int, results: str | Path) -> Path:
    """The folder of a complete run; see `trained_method`."""
    if find_backbone(backbone_name).hub_id is None:
        return runs.run_method(edition, backbone_name, method_name, seed, results=results)
    folder = run_folder(results, edition.name, backbone_name, method_name, seed)
    try:
        run_files.verify(folder)
    except run_files.RunFileError as error:
        raise InspectionError(
            f"{folder}: no complete run ({error}); make it with: prefmoe notebook "
            f"notebooks/06_train_and_evaluate.ipynb results/run.ipynb "
            f"-p edition={edition.name} -p backbone={backbone_name} -p method={method_name}"
        ) from error
    return folder


def answers(edition: Edition, backbone_name: str, method_name: str, split: str = "test", turns: int = 0,
            results: str | Path = RESULTS) -> list[pd.DataFrame]:  # fmt: skip
    """The per-question answers of a method to one split after so many turns of small talk, a frame per seed.

    Runs on a miniature backbone that are absent, or older than their settings, are made first.

    Raises:
        InspectionError: if a run of a large backbone is absent.
    """
    frames = []
    for seed in runs.seeds_of(edition, method_name):
        folder = _run(edition, backbone_name, method_name, seed, results)
        frame = run_files.read_predictions(folder)
        frames.append(frame[(frame["split"] == split) & (frame["turns"] == turns)])
    return frames


def loss_logs(
    edition: Edition, backbone_name: str, method_name: str, results: str | Path = RESULTS
) -> list[pd.DataFrame]:
    """The loss terms during training, a frame per seed whose run is complete."""
    folders = [
        run_folder(results, edition.name, backbone_name, method_name, seed)
        for seed in runs.seeds_of(edition, method_name)
    ]
    return [run_files.read_losses(folder) for folder in folders if (folder / run_files.RUN_FILE).is_file()]


# --- user tokens --------------------------------------------------------------------------------------------------


def _factorised(method: Method) -> FactorisedUsers:
    state = getattr(method, "user_state", None)
    if not isinstance(state, FactorisedUsers):
        raise InspectionError(f"{method.config.label!r} has no anchors, prototypes and residuals (component P)")
    return state


def _trained_rows(method: Method) -> Tensor:
    rows = [method.benchmark.row(name) for name in method.benchmark.trained_users]
    return torch.tensor(rows, device=method.backbone.device)


def _ranks(groups: NDArray) -> NDArray:
    """(U, F) preference groups to the rank of each by its size within its facet: 0 for the largest, -1 for none."""
    ranks = np.full_like(groups, -1)
    for f in range(groups.shape[1]):
        names, counts = np.unique(groups[groups[:, f] >= 0, f], return_counts=True)
        for rank, k in enumerate(np.lexsort((names, -counts))):
            ranks[groups[:, f] == names[k], f] = rank
    return ranks


@dataclass(frozen=True)
class FacetTokens:
    """The facet vectors of all trained users, N = one per user and annotated facet.

    Attributes:
        labels: N rows; user, facet, group (equal annotation, equal id) and rank (of the group by size within its
            facet, 0 is the largest).
        vectors: anchor, residual, full token -> (N, H).
    """

    labels: pd.DataFrame
    vectors: dict[str, NDArray]


@torch.no_grad()
def facet_tokens(method: Method) -> FacetTokens:
    """Anchors, residuals r and full tokens p + r of every trained user's annotated facets.

    Raises:
        InspectionError: if the method's users are not factorised.
    """
    state, rows = _factorised(method), _trained_rows(method)
    tokens = state(rows)
    groups = np.array(method.benchmark.groups)[rows.cpu().numpy()]  # (U, F)
    ranks, users = _ranks(groups), np.array(method.benchmark.trained_users)
    user, facet = np.nonzero(groups >= 0)
    labels = pd.DataFrame(
        {
            "user": users[user],
            "facet": np.array(FACETS)[facet],
            "group": groups[user, facet],
            "rank": ranks[user, facet],
        }
    )
    full = tokens.prototypes + tokens.residuals
    vectors = (state.anchors[rows, 3:], tokens.residuals, full)  # (U, F, H) each
    kept = [vector.float().cpu().numpy()[user, facet] for vector in vectors]
    return FacetTokens(labels, dict(zip(KINDS, kept, strict=True)))


def user_space(
    stages: Mapping[str, FacetTokens], *, neighbours: int = 5, seed: int = 0, perplexity: float = 30.0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """t-SNE coordinates of facet tokens and the purity of their neighbourhoods, per stage and kind of token.

    Args:
        stages: stage of training -> tokens.
        neighbours: of each token, in the full space, that purity looks at; fewer where there are not so many.
        perplexity: of the drawing alone; the purity does not depend on it.

    Returns:
        coordinates with stage, tokens, user, facet, group (rank of the preference group; 7 stands for the eighth
        and all smaller ones), x, y;
        purity with stage, tokens, colour ("facet", "group"), neighbours, value, low, high, n, chance and best: the
        largest value possible, because a group of two users has one right neighbour only.
    """
    points, numbers = [], []
    for stage, tokens in stages.items():
        labels = tokens.labels
        users = labels["user"].to_numpy()
        admissible = users[:, None] != users[None, :]
        count = min(neighbours, int(admissible.sum(1).min()))
        for kind, vectors in tokens.vectors.items():
            x, y = figures.tsne(vectors, seed, perplexity=perplexity).T
            place = {"stage": stage, "tokens": kind}
            group = labels["rank"].clip(upper=7)
            points.append(labels[["user", "facet"]].assign(**place, group=group, x=x, y=y))
            for colour in ("facet", "group"):
                names = labels[colour].to_numpy()
                same = ((names[:, None] == names[None, :]) & admissible).sum(1)
                estimate = figures.neighbourhood_purity(vectors, names, count, users, seed=seed)
                best = float(np.minimum(same, count).mean() / count)
                numbers.append({**place, "colour": colour, "neighbours": count, **estimate, "best": best})
    columns = ["stage", "tokens", "user", "facet", "group", "x", "y"]
    return pd.concat(points, ignore_index=True)[columns], pd.DataFrame(numbers)


@torch.no_grad()
def anchors(method: Method, name: str) -> pd.DataFrame:
    """A user's eight anchors: anchor, made_of (the text, or the picture's file name), dimensions, rms.

    Raises:
        InspectionError: if the method's users are not factorised.
    """
    state, user = _factorised(method), method.benchmark.users[name]
    texts = [user.name, f"picture {user.image.name}", description_text(user)]
    texts += [facet_sentence(user, facet) if facet in user.preferences else "(none)" for facet in FACETS]
    values = state.anchors[method.benchmark.row(name)].float()  # (8, H)
    rms = values.square().mean(1).sqrt().tolist()
    return pd.DataFrame({"anchor": ANCHORS, "made_of": texts, "dimensions": values.shape[1], "rms": rms})


@torch.no_grad()
def prefix_similarity(method: Method, names: Sequence[str]) -> dict[str, NDArray]:
    """For each user the (13, 13) cosines between the tokens of the prefix."""
    rows = torch.tensor([method.benchmark.row(name) for name in names], device=method.backbone.device)
    unit = normalize(method.user_state(rows).prefix.float(), dim=-1)  # (B, 13, H)
    cosines = (unit @ unit.transpose(1, 2)).cpu().numpy()
    return dict(zip(names, cosines, strict=True))


@torch.no_grad()
def similarity_between_users(method: Method) -> pd.DataFrame:
    """How alike the same token is in two trained users, for each of the 13 tokens of the prefix.

    Returns:
        token, pairs ("same group", "other group" for a facet's residual; "all" for the rest), value (mean cosine),
        low and high (the 10th and 90th percentile of the pairs), n (pairs).

    Raises:
        InspectionError: if the method's users are not factorised.
    """
    state, rows = _factorised(method), _trained_rows(method)
    unit = normalize(state(rows).prefix.float(), dim=-1).transpose(0, 1)  # (13, U, H)
    cosines = (unit @ unit.transpose(1, 2)).cpu().numpy()
    groups = np.array(method.benchmark.groups)[rows.cpu().numpy()]
    first, second = np.triu_indices(len(rows), 1)
    table = []
    for t, token in enumerate(figures.PREFIX_TOKENS):
        values, kinds = cosines[t][first, second], np.full(len(first), "all", dtype=object)
        if token.startswith("r "):
            mine, theirs = (groups[side, FACETS.index(token[2:])] for side in (first, second))
            kinds = np.where(mine == theirs, "same group", "other group").astype(object)
            kinds[(mine < 0) | (theirs < 0)] = None
        for kind in ("all", "same group", "other group"):
            chosen = values[kinds == kind]
            if len(chosen):
                low, high = np.quantile(chosen, [0.1, 0.9])
                estimate = {"value": chosen.mean(), "low": low, "high": high, "n": len(chosen)}
                table.append({"token": token, "pairs": kind, **estimate})
    return pd.DataFrame(table)


@torch.no_grad()
def corrections(method: Method) -> pd.DataFrame:
    """How much of the bound of the learned corrections the trained users use, per anchor.

    Returns:
        anchor, anchor_rms, bound (s times that rms), largest (correction of any user and dimension), used (share of
        the bound, root mean square over users and dimensions).

    Raises:
        InspectionError: if the method's users are not factorised.
    """
    state, rows = _factorised(method), _trained_rows(method)
    known = torch.cat([torch.ones_like(state.known[rows, :2]), state.known[rows]], dim=1)  # (U, 7)
    share = torch.tanh(state.delta[rows])  # (U, 7, H)
    table = []
    for k, anchor in enumerate(ANCHORS[1:]):
        inside, bound = share[known[:, k], k], float(state.bound[k])
        if len(inside):
            rms = {"anchor_rms": bound / method.config.correction_scale, "bound": bound}
            used = {"largest": bound * float(inside.abs().max()), "used": float(inside.square().mean().sqrt())}
            table.append({"anchor": anchor, **rms, **used})
    return pd.DataFrame(table)


@torch.no_grad()
def residual_variants(method: Method) -> pd.DataFrame:
    """What the two definitions of a residual, before any correction, do to the users' residuals of each facet.

    Returns:
        facet, variant ("published": r = anchor; "centred": r = anchor - mean), residual_rms, prototype_rms, and
        between_users: the mean cosine between two users' residuals.

    Raises:
        InspectionError: if the method's users are not factorised.
    """
    state, rows = _factorised(method), _trained_rows(method)
    table = []
    for f, facet in enumerate(FACETS):
        anchors = state.anchors[rows, 3 + f][state.known[rows, f]].float()
        if len(anchors) < 2:
            continue
        mean = anchors.mean(0)
        for variant, residuals in (("published", anchors), ("centred", anchors - mean)):
            unit = normalize(residuals, dim=-1)
            cosines = (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
            table.append(
                {
                    "facet": facet,
                    "variant": variant,
                    "prototype_rms": float(mean.square().mean().sqrt()),
                    "residual_rms": float(residuals.square().mean().sqrt()),
                    "between_users": float(cosines.mean()),
                }
            )
    return pd.DataFrame(table)


# --- routing ------------------------------------------------------------------------------------------------------


def _prefmoe(method: Method) -> PrefMoE:
    if not isinstance(method, PrefMoE) or method.router is None:
        raise InspectionError(f"{method.config.label!r} has no routers (component M)")
    return method


def _prompts(method: Method, examples: Sequence[Example]) -> Batch:
    """The questions without answers. Nothing is remembered: variants of a question share its index."""
    collator = Collator(
        method.backbone,
        method.benchmark,
        prefix_length=method.prefix_length,
        profile=method.profile,
        wording=method.collator.wording,
        cache=False,
    )
    return collator(examples, with_answer=False).to(method.backbone.device)


@torch.no_grad()
def gates(method: Method, examples: Sequence[Example]) -> pd.DataFrame:
    """The gates that each question gets: user, question, router, expert, gate.

    Raises:
        InspectionError: if the method has no routers.
    """
    method, batch = _prefmoe(method), _prompts(method, examples)
    with method.context(batch):
        method.model.base_model(**batch.inputs, use_cache=False)
        found = {name: gate.float().cpu().numpy() for name, gate in method.gates().items()}
    table = []
    for row, example in enumerate(examples):
        for router, experts in EXPERTS.items():
            for expert, gate in zip(experts, found[router][row], strict=True):
                asked = {"user": example.name, "question": asked_text(example), "router": router}
                table.append({**asked, "expert": expert, "gate": float(gate)})
    return pd.DataFrame(table)


def own_expert(gates: pd.DataFrame) -> pd.DataFrame:
    """Whether the preference router favours the expert of the facet that is asked about, which no prompt names.

    Args:
        gates: mean gates per group of questions (`tables.gates_table`).

    Returns:
        facet, own (mean gate of its expert on its questions), elsewhere (the same expert's mean gate on questions
        about other facets), difference.
    """
    chosen = gates[gates["router"] == "preference"].pivot(index="group", columns="expert", values="value")
    asked = [facet for facet in FACETS if f"preference, {facet}" in chosen.index]
    table = []
    for facet in asked:
        column = chosen.loc[[f"preference, {name}" for name in asked], FACETS.index(facet)]
        own, elsewhere = column.pop(f"preference, {facet}"), column.mean()
        table.append({"facet": facet, "own": own, "elsewhere": elsewhere, "difference": own - elsewhere})
    return pd.DataFrame(table)


def gate_ranges(gates: pd.DataFrame) -> pd.DataFrame:
    """How far the mean gates of an expert lie apart between kinds of questions; 0 is a mixture that never changes.

    Args:
        gates: mean gates per group of questions (`tables.gates_table`).

    Returns:
        router, expert (its name), lowest, highest, range.
    """
    table = []
    for (router, expert), values in gates.groupby(["router", "expert"], sort=False)["value"]:
        low, high = values.min(), values.max()
        name = EXPERTS[router][expert]
        table.append({"router": router, "expert": name, "lowest": low, "highest": high, "range": high - low})
    return pd.DataFrame(table)


def gates_by_outcome(answers: pd.DataFrame) -> pd.DataFrame:
    """Mean gates of questions that were answered right and wrong.

    Args:
        answers: per-question answers with gate columns; seeds may be stacked.

    Returns:
        router, expert, question ("preference", "recognition"), right, wrong (NaN where there is none).
    """
    scored = metrics.score(answers)
    outcome = np.where(scored["hit"].astype(bool), "right", "wrong")
    table = []
    for router, experts in EXPERTS.items():
        for k, expert in enumerate(experts):
            means = scored[f"gate_{router}_{k}"].groupby([scored["category"], outcome]).mean().unstack()
            for question, row in means.reindex(columns=["right", "wrong"]).iterrows():
                table.append({"router": router, "expert": expert, "question": question, **row})
    return pd.DataFrame(table)


@torch.no_grad()
def mixture_effect(method: Method, examples: Sequence[Example]) -> float:
    """The largest change of a next-token logit that the experts make; 0 before training, the B being zero.

    Raises:
        InspectionError: if the method has no experts.
    """
    method, batch = _prefmoe(method), _prompts(method, examples)
    with method.context(batch):
        routed = method.model(**batch.inputs, use_cache=False).logits[:, -1]
    with method.prefix.active(method.user_state(batch.user).prefix, batch.prefix_mask):
        plain = method.model(**batch.inputs, use_cache=False).logits[:, -1]
    return float((routed - plain).abs().max())


# --- attention ----------------------------------------------------------------------------------------------------


def asked_text(example: Example) -> str:
    """A question with the user's name in it."""
    return example.question.replace(PLACEHOLDER, example.name)


def same_picture(example: Example, names: Sequence[str]) -> list[Example]:
    """A preference question and its picture, asked about each of several users, with the answer true of each.

    Raises:
        InspectionError: for another kind of question: its answer does not follow from who holds the preference.
    """
    if example.category != "preference" or example.is_multiple_choice or not example.bucket_names:
        raise InspectionError(
            f"question {example.index}: expected a preference yes/no question with its holders, found "
            f"{example.category}, {example.l2_category}"
        )
    yes = [(name in example.bucket_names) != example.semantic_invert for name in names]
    return [
        example.model_copy(update={"name": name, "answer": 4 if true else 5})
        for name, true in zip(names, yes, strict=True)
    ]


def shared_questions(benchmark: Benchmark, pictures: int, users: int, split: str = "test") -> list[list[Example]]:
    """For a few pictures the same question about several trained users, half of whom (if possible) would say yes.

    Plain (not negated) questions whose holders divide the users most evenly come first, at most one per facet until
    every facet had its turn. Where nobody is known to hold a preference, yes/no questions about recognition as they
    are, each about its one user.

    Args:
        pictures: how many questions; where there are fewer they come again. users: about how many users each.

    Raises:
        InspectionError: if the split has no yes/no question of either kind.
    """
    trained = benchmark.trained_users
    usable = [
        example
        for example in benchmark.select(split)
        if example.category == "preference" and not example.is_multiple_choice and not example.semantic_invert
        and set(example.bucket_names) & set(trained)
    ]  # fmt: skip
    if not usable:
        faces = [e for e in benchmark.select(split) if e.category == "recognition" and not e.is_multiple_choice]
        if not faces:
            raise InspectionError(f"split {split!r} has no yes/no question about recognition or a known preference")
        return [[example] for example in islice(cycle(faces), pictures)]
    half = users // 2

    def balance(example: Example) -> int:
        holders = len(set(example.bucket_names) & set(trained))
        return -min(holders, len(trained) - holders, half)

    queues = {facet: sorted((e for e in usable if e.concept == facet), key=balance) for facet in FACETS}
    turn = sorted(
        ((k, balance(example), FACETS.index(facet), example.index, example)
         for facet, queue in queues.items() for k, example in enumerate(_distinct(queue))),
        key=lambda entry: entry[:4],
    )  # fmt: skip
    chosen = []
    for *_, example in islice(cycle(turn), pictures):
        holders = [name for name in trained if name in example.bucket_names][:half]
        others = [name for name in trained if name not in example.bucket_names][: users - len(holders)]
        chosen.append(same_picture(example, [*holders, *others]))
    return chosen


@torch.inference_mode()
def most_probable_answers(method: Method, examples: Sequence[Example]) -> pd.DataFrame:
    """What a method would answer to each question, by the probabilities of the allowed answers' first tokens.

    Returns:
        a row per question: user, question, answer, probability (of it, among those allowed) and right (0/1).
    """
    batch = _prompts(method, examples)
    with method.context(batch):
        logits = method.model(**batch.inputs, use_cache=False).logits[:, -1]
    table = answer_probabilities(logits, examples, first_tokens(method.backbone.tokenizer))
    shares = table[[f"p_{answer.lower()}" for answer in ANSWERS]].to_numpy()
    best = np.nanargmax(shares, axis=1)
    answers = [ANSWERS[k] for k in best]
    return pd.DataFrame(
        {
            "user": [example.name for example in examples],
            "question": [asked_text(example) for example in examples],
            "answer": answers,
            "probability": shares[np.arange(len(best)), best],
            "right": [int(a == e.answer_text) for a, e in zip(answers, examples, strict=True)],
        }
    )


def answers_of_methods(
    edition: Edition, backbone_name: str, seed: int, examples: Sequence[Example], *, results: str | Path = RESULTS
) -> dict[str, pd.DataFrame]:
    """`most_probable_answers` of every method of Table 1, by label; of a non-tuned one, which has no other, the first
    seed's.
    """
    answers = {}
    for name in edition.table1:
        seeds = runs.seeds_of(edition, name)
        own = seed if seed in seeds else seeds[0]
        method = trained_method(edition, backbone_name, name, own, results=results)
        answers[edition.methods[name].label] = most_probable_answers(method, examples)
    return answers


SAME_PICTURE_RULE = (
    "The first plain yes/no test question of each facet about a preference that some users hold and some do not, asked "
    "about the first user who holds it and about the first who does not; no answer was looked at."
)
"""How `shared_questions` chooses with two users and as many pictures as facets."""


def answers_by_picture(
    questions: Sequence[Sequence[Example]], answers: Mapping[str, pd.DataFrame]
) -> list[tuple[Path, list[tuple[str, str, dict[str, tuple[str, bool]]]]]]:
    """What `figures.qualitative_examples` draws.

    Args:
        questions: for each picture, its questions (`shared_questions`).
        answers: method's label -> `most_probable_answers` to all of them, picture after picture.
    """
    rows = {label: iter(table.itertuples()) for label, table in answers.items()}
    pictures = []
    for asked in questions:
        entries = []
        for example in asked:
            given = {label: next(row) for label, row in rows.items()}
            said = {label: (f"{row.answer} ({row.probability:.2f})", bool(row.right)) for label, row in given.items()}
            entries.append((f"{asked_text(example)} ({example.concept})", example.answer_text, said))
        pictures.append((asked[0].image, entries))
    return pictures


def _distinct(examples: Sequence[Example]) -> list[Example]:
    """One example for each set of holders, the first."""
    return list({example.bucket_names: example for example in reversed(examples)}.values())[::-1]


def visible_part(backbone: Backbone, path: Path) -> Image.Image:
    """The part of a picture that the backbone sees: its processor may crop the middle after resizing."""
    (picture,) = load_pictures([path])
    processor = backbone.processor.image_processor
    if not getattr(processor, "do_center_crop", False):
        return picture
    scale = min(picture.size) / processor.size["shortest_edge"] if processor.do_resize else 1.0
    crop = (scale * processor.crop_size["width"], scale * processor.crop_size["height"])
    left, top = ((whole - part) / 2 for whole, part in zip(picture.size, crop, strict=True))
    return picture.crop((round(left), round(top), round(left + crop[0]), round(top + crop[1])))


@dataclass(frozen=True)
class Attention:
    """Where questions look, averaged over heads; B questions, L layers. A layer's attention sums to 1 over all tokens.

    Attributes:
        answer_to_prefix: (B, L, 13) from the position that predicts the answer.
        image_to_prefix: (B, L, 13) from the picture's tokens, averaged.
        answer_to_image: for each question (L, h, w) from the answer's position to the picture's patches.
        even: (B,) what each token would get if a question's attention were spread evenly from its answer's position.
        p_yes: (B,) probability of "yes" among yes and no (NaN for multiple choice).
    """

    answer_to_prefix: NDArray
    image_to_prefix: NDArray
    answer_to_image: list[NDArray]
    even: NDArray
    p_yes: NDArray

    def table(self, examples: Sequence[Example]) -> pd.DataFrame:
        """Long form: index, user, question, origin ("answer", "image"), layer (from 1), token, share."""
        parts = []
        for origin, shares in (("answer", self.answer_to_prefix), ("image", self.image_to_prefix)):
            row, layer, token = (axis.ravel() for axis in np.indices(shares.shape))
            parts.append(
                pd.DataFrame(
                    {
                        "index": [examples[r].index for r in row],
                        "user": [examples[r].name for r in row],
                        "question": [asked_text(examples[r]) for r in row],
                        "origin": origin,
                        "layer": layer + 1,
                        "token": np.array(figures.PREFIX_TOKENS)[token],
                        "share": shares.ravel(),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    def budget(self) -> pd.DataFrame:
        """Per layer, the mean share of the answer's attention on the prefix, on the picture and on everything else."""
        prefix = self.answer_to_prefix.sum(2).mean(0)
        image = np.mean([grid.sum((1, 2)) for grid in self.answer_to_image], axis=0)
        layers = pd.Index(range(1, len(prefix) + 1), name="layer")
        return pd.DataFrame({"prefix": prefix, "image": image, "other tokens": 1 - prefix - image}, index=layers)


@torch.no_grad()
def attention(method: Method, examples: Sequence[Example]) -> Attention:
    """Runs the questions through a method with a prefix and keeps the attention to prefix and picture.

    Raises:
        InspectionError: if the method has no prefix, the backbone was not loaded with attn="eager", or the picture's
            tokens are no grid of patches.
    """
    if not method.prefix_length:
        raise InspectionError(f"{method.config.label!r} has no prefix to attend to")
    backbone = method.backbone
    if backbone.model.config.get_text_config()._attn_implementation != "eager":
        raise InspectionError(f"attention maps need load_backbone({backbone.entry.name!r}, attn='eager')")
    batch = _prompts(method, examples)
    with method.context(batch):
        output = method.model(**batch.inputs, use_cache=False, output_attentions=True)
    maps = torch.stack([layer.float().mean(1) for layer in output.attentions], dim=1)  # (B, L, T, T)
    on_image = batch.inputs["input_ids"] == backbone.image_token_id  # (B, T)
    answer, image, patches = [], [], []
    for row, shares in enumerate(maps):
        prefix = batch.prefix_mask[row]
        answer.append(shares[:, -1, prefix])
        image.append(shares[:, on_image[row]][:, :, prefix].mean(1))
        height, width = _patch_grid(backbone, batch, row, int(on_image[row].sum()))
        patches.append(shares[:, -1, on_image[row]].reshape(-1, height, width).cpu().numpy())
    known = answer_probabilities(output.logits[:, -1], examples, first_tokens(backbone.tokenizer))
    return Attention(
        answer_to_prefix=torch.stack(answer).cpu().numpy(),
        image_to_prefix=torch.stack(image).cpu().numpy(),
        answer_to_image=patches,
        even=1 / batch.inputs["attention_mask"].sum(1).cpu().numpy(),
        p_yes=known["p_yes"].to_numpy(),
    )


def attention_by_group(method: Method, examples: Sequence[Example], batch_size: int = 64) -> pd.DataFrame:
    """Mean attention to each prefix token, over layers and heads, by kind of question.

    Returns:
        origin ("answer", "image"), group (the facet asked about, or "recognition"), token, value, low, high (cluster
        bootstrap over users), n (questions).

    Raises:
        InspectionError: see `attention`.
    """
    shares: dict[str, list[NDArray]] = {"answer": [], "image": []}
    for start in range(0, len(examples), batch_size):
        found = attention(method, examples[start : start + batch_size])
        shares["answer"].append(found.answer_to_prefix.mean(1))
        shares["image"].append(found.image_to_prefix.mean(1))
    users = np.array([example.name for example in examples])
    asked = np.array([example.concept if example.facet_id >= 0 else "recognition" for example in examples])
    table = []
    for origin, parts in shares.items():
        values = np.concatenate(parts)  # (N, 13)
        for group in [name for name in (*FACETS, "recognition") if name in asked]:
            inside = asked == group
            for token, column in zip(figures.PREFIX_TOKENS, values[inside].T, strict=True):
                estimate = statistics.cluster_bootstrap(column, users[inside])
                table.append({"origin": origin, "group": group, "token": token, **estimate})
    return pd.DataFrame(table)


def own_residual(by_group: pd.DataFrame, origin: str = "answer") -> pd.DataFrame:
    """Whether the residual of the facet that is asked about gets more attention than it gets otherwise.

    Args:
        by_group: from `attention_by_group`.

    Returns:
        facet, value, low, high, n (attention to its residual by questions about it), elsewhere (the mean attention to
        the same token by questions about other facets).
    """
    shares = by_group[by_group["origin"] == origin].set_index(["group", "token"])
    facets = [facet for facet in FACETS if (facet, f"r {facet}") in shares.index]
    table = []
    for facet in facets:
        token = f"r {facet}"
        elsewhere = [shares.loc[(other, token), "value"] for other in facets if other != facet]
        own = shares.loc[(facet, token), ["value", "low", "high", "n"]].to_dict()
        own["n"] = int(own["n"])
        table.append({"facet": facet, **own, "elsewhere": float(np.mean(elsewhere)) if elsewhere else math.nan})
    return pd.DataFrame(table)


def _patch_grid(backbone: Backbone, batch: Batch, row: int, tokens: int) -> tuple[int, int]:
    """Rows and columns of the image tokens of a question with one picture."""
    if "image_grid_thw" in batch.inputs:
        merge = backbone.vision_tower.spatial_merge_size
        _, height, width = (batch.inputs["image_grid_thw"][row] // torch.tensor([1, merge, merge])).tolist()
    else:
        height = width = math.isqrt(tokens)
    if height * width != tokens:
        raise InspectionError(f"{backbone.entry.name!r}: {tokens} image tokens are no {height} x {width} patches")
    return height, width
