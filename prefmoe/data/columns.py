"""The columns of a table of questions: what every table has, and what the absence of another one stands for."""

from prefmoe.data import prompts
from prefmoe.data.benchmark import OPTION_LETTERS
from prefmoe.data.rows import Columns

INJECTION_COLUMNS = tuple(f"injection_image_{k}" for k in range(1, 6))
IMAGE_COLUMNS = ("image_path", *INJECTION_COLUMNS)

COLUMNS = (
    "index", "name", "attribute", "category", "l2-category", "concept", "target", "task_family", "question",
    *OPTION_LETTERS, "answer", "answer_text", *IMAGE_COLUMNS, "preference",
    "description_simple", "description_moderate", "description_detailed", "description_super_detailed",
    "polarity", "preference_semantic_invert", "preference_bucket_kind", "preference_common_items",
    "preference_bucket_names", "preference_candidate_neg_names", "recognition_bucket_type",
)  # fmt: skip
"""MMPB-clean's columns; a benchmark's frame has all of them, in this order, and a table's further ones behind."""

REQUIRED = (
    "index", "name", "category", "l2-category", "question", "answer", "image_path", "injection_image_1",
    "description_moderate",
)  # fmt: skip
"""Without these no question can be asked, or nothing is known of who it is about."""

DEFAULTS = dict.fromkeys((column for column in COLUMNS if column not in REQUIRED), "") | {
    "attribute": "human",
    "preference": prompts.UNKNOWN,
    "preference_semantic_invert": "0",
}
"""What every row of a table without the column says there."""

IMAGE = "image"
"""A column that may stand in the place of image_path, as in VLMEvalKit's tables."""

SPLIT = "split"
"""A column that may say a question's split, where a table becomes a data folder."""

QUESTIONS = Columns(REQUIRED, DEFAULTS, {IMAGE: "image_path"})

CONVERTED = Columns(
    tuple(column for column in REQUIRED if column != "injection_image_1"),
    {"injection_image_1": "", **DEFAULTS},
    QUESTIONS.instead,
    optional=(SPLIT,),
)
"""What `prefmoe convert` takes: MMPB's script keeps the profile pictures beside its table."""
