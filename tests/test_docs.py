"""What the pages under docs/ say can be done as they say it."""

import ast
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from logits import PROMPTS, fixed_picture
from pydantic import TypeAdapter

from prefmoe.config import KINDS, ControlKind, Method
from prefmoe.config.registry import Registry
from prefmoe.system.places import REGISTRY

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.S | re.M)


def test_example_entries_are_valid() -> None:
    content = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))
    for block in blocks("backbones.md", "yaml"):
        for part, entries in yaml.safe_load(block).items():
            assert not set(entries) & set(content[part])
            content[part] |= entries
    registry = Registry.model_validate(content)
    assert "llava-next-mistral-7b" in registry.backbones and "SomeVisionLanguageModel" in registry.architectures


def test_the_page_of_baselines_has_every_method() -> None:
    text = (DOCS / "baselines.md").read_text(encoding="utf-8")
    assert [kind for kind, s in KINDS.items() if f"`{s.module.rpartition('.')[2]}.py`" not in text] == []


def test_every_find_has_a_line_in_the_table_of_finds() -> None:
    folder = DOCS.parent / "findings"
    told = re.findall(r"^\| `(\w+\.sh)` \| .+ \|$", (folder / "README.md").read_text(encoding="utf-8"), re.M)
    assert sorted(told) == sorted(script.name for script in folder.glob("*.sh"))


def test_the_rows_on_the_page_of_baselines_are_rows_that_can_be_made() -> None:
    (block,) = blocks("baselines.md", "yaml")
    methods = {name: TypeAdapter(Method).validate_python(content) for name, content in yaml.safe_load(block).items()}
    assert {method.kind for method in methods.values()} == {"lora", "fft", "nontuned", "prefmoe"}
    assert methods["Reading"].losses.none and methods["LoRA-text"].projector
    controls = re.findall(r"^\| `(\w+)` \| .* \| .* \|$", (DOCS / "baselines.md").read_text(encoding="utf-8"), re.M)
    assert set(controls) == set(get_args(ControlKind))


def test_the_script_for_the_published_code_draws_and_writes_what_a_record_needs() -> None:
    (script,) = (block for block in blocks("deepseek_vl2.md", "python") if "json.dump" in block)
    tree = ast.parse(script)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    imports = [
        node
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom) and "deepseek" not in ast.unparse(node)
    ]
    space: dict = {}
    exec(compile(ast.Module([*imports, *functions], []), "docs", "exec"), space)
    for messages, sizes in PROMPTS.values():
        for size in sizes:
            assert space["picture"](*size).tobytes() == fixed_picture(*size).tobytes()
        for message in messages:
            written = space["written"](message)
            assert written["role"] in ("<|User|>", "<|Assistant|>") and written["content"].count("<image>") <= 1
    (update,) = (
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "prompt.update"
    )
    fields = {"input_ids", "pixel_sum", "pixel_squares", "ids", "values", "log_total", "answer"}
    assert {keyword.arg for keyword in update.keywords} == fields


def headings(page: Path) -> set[str]:
    """What a link may name of a page: its headings, as the site and code hosts write them."""
    found = re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_lead_to_one(page) -> None:
    """The site is built after the tests, minutes later."""
    links = re.findall(r"\]\(([^)#\s:]*\.md)?#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    places = {(page.parent / name if name else page, heading) for name, heading in links}
    assert not [(place.name, heading) for place, heading in places if heading not in headings(place)]
