"""LOVA3: the model learns to answer, and besides to ask questions and to assess answers."""

import torch
from torch import Tensor

from prefmoe.backbones.batches import Batch
from prefmoe.config import LOVA3Method
from prefmoe.data.benchmark import Example
from prefmoe.data.prompts import PLACEHOLDER, question_text
from prefmoe.models.baselines import LoRA

# Words that the miniature backbones know: they would spell others letter by letter.
ASK = f"Please speak of {PLACEHOLDER} and this picture."
ASSESS = "Is it {answer}?"


class Task(Example):
    """An instruction about a question's picture, with what the model should say.

    Attributes:
        reply: stands in the place of the answer.
    """

    reply: str

    @property
    def answer_text(self) -> str:
        return self.reply


class LOVA3(LoRA, settings=LOVA3Method):
    """LOVA3 (Zhao et al. 2024, arXiv 2405.14974, Section 3): answering, asking and assessment.

    No module is added. The objective is the next-token loss of LLaVA, taken over a mixture of three tasks,

        answering   image, question -> answer
        asking      image -> question and answer                                             (GenQA)
        assessing   image, question, candidate answer -> yes or no, with feedback            (EvalQA)

    Half of the candidates are right. Every question of a batch is answered, as in all other methods; a share of them is
    also asked and a share assessed, drawn anew in every step from its seed. Each task weighs by its number of examples.

    Departures: LoRA in the place of full fine-tuning, as for all parameter-efficient rows; asking and
    assessing are made from the training questions themselves (the original brings further data sets, wrong
    answers by another model and feedback by a third); the instruction to ask names the user, whom a picture
    alone cannot tell; the mean of the loss is taken within each task first, because a question has many more
    tokens than an answer; asking is not weighted above 1 (published 842:665).
    """

    def training_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Mean losses of the tasks, times their share of the examples: "answer", "asking", "assessing"."""
        examples = batch.examples
        tasks = {
            "answer": examples,
            "asking": [asking(e) for e in examples if torch.rand(()) < self.config.asking],
            "assessing": [
                assessing(e, int(torch.randint(candidates(e), ())), right=bool(torch.rand(()) < 0.5))
                for e in examples
                if torch.rand(()) < self.config.assessing
            ],
        }
        return self.mixture_losses(tasks)


def candidates(example: Example) -> int:
    """How many answers a question allows."""
    return len(example.options) or 2


def asking(example: Example) -> Task:
    """GenQA: the picture is shown, the question (with its options) and its answer are to be said."""
    return _task(example, 0, ASK, question_text(example) + example.answer_text)


def assessing(example: Example, draw: int, *, right: bool) -> Task:
    """EvalQA: a candidate is shown with the question; whether it is right, and the answer, are to be said.

    Args:
        draw: which wrong answer, from 0 (taken modulo their number); of no effect when right.
        right: show the true answer.
    """
    first = 0 if example.is_multiple_choice else 4
    wrong = [code for code in range(first, first + candidates(example)) if code != example.answer]
    code = example.answer if right else wrong[draw % len(wrong)]
    shown = example.model_copy(update={"answer": code}).answer_text
    verdict = "yes" if right else "no"
    question = question_text(example) + ASSESS.format(answer=shown)
    return _task(example, 1 + code, question, f"{verdict}, it is {example.answer_text}")


def _task(example: Example, variant: int, instruction: str, reply: str) -> Task:
    """Its index is negative, and the same whenever the same task of the same question comes up again."""
    content = example.model_dump() | {
        "index": -1 - (7 * example.index + variant),
        "l2_category": "awareness",
        "question": instruction,
        "options": (),
        "reply": reply,
    }
    return Task(**content)
