"""What is said of mistakes in the file of an edition that somebody writes: every one once, in words of the file."""

import pytest
import yaml

from prefmoe.config import ROOT, ConfigError, load_edition


def _said(tmp_path, change, name: str = "smoke") -> list[str]:
    """The lines about an edition like one of ours, with one change."""
    content = yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text(encoding="utf-8")) | {"name": "mine"}
    change(content)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_edition(tmp_path / "mine.yaml")
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["methods"]["LoRA"].pop("kind"), "methods.LoRA: kind is missing beside "),
        (lambda c: c["data"].pop("kind"), "data: kind is missing beside seed, "),
        (
            lambda c: c["methods"]["FFT"].update(rank=3),
            "methods.FFT.fft.rank: unknown setting; 'rank' is one of other sections or kinds",
        ),
        (lambda c: c.pop("seeds"), "seeds: Field required"),
        (lambda c: c.update(backbones="llava-mini"), "backbones: expected a list, such as [a, b] (got 'llava-mini')"),
        (
            lambda c: c.update(backbones=[]),
            "backbones: Tuple should have at least 1 item",
        ),
        (lambda c: c.update(seeds=[-1]), "seeds.0: Input should be greater than or equal to 0 (got -1)"),
        (
            lambda c: c["methods"]["LoRA"].update(label="a\nb"),
            "methods.LoRA.lora.label: expected one line that can be printed",
        ),
    ],
)
def test_a_mistake_is_said_once_in_words_of_the_file(tmp_path, change, said):
    (line,) = _said(tmp_path, change)
    assert line.startswith(said), line


@pytest.mark.parametrize(
    ("edition", "setting"),
    [("smoke", name) for name in ("users", "unseen_users", "train_per_user", "validation_per_user", "test_per_user")]
    + [("preference-smoke", name) for name in ("users", "unseen_users", "train_prompts", "test_prompts")],
)
def test_a_miniature_of_more_than_memory_holds_is_refused_before_it_is_drawn(tmp_path, edition, setting):
    (line,) = _said(tmp_path, lambda content: content["data"].update({setting: 10**9}), edition)
    assert line.startswith("data.") and ": expected at most 10000000 " in line and "found " in line, line


def test_what_methods_that_are_made_at_first_begin_with_is_not_left_for_later(tmp_path):
    def all_for_later(content):
        content.update(table2=["Image"], later=["All"])  # another user's history is given to its branch

    (line,) = _said(tmp_path, all_for_later, "generation-smoke")
    assert "later names what methods that are made at first need: All" in line
