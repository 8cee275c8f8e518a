"""Formulas of the book: what docutils makes of them is what TeX, and so JupyterLab, reads."""

import importlib.util
import re

import pytest

from prefmoe.config import ROOT

for needed in ("sphinx", "docutils"):
    pytest.importorskip(needed, reason="python -m pip install -e '.[docs]'")


@pytest.fixture(scope="module")
def conf():
    spec = importlib.util.spec_from_file_location("conf_of_the_book", ROOT / "site/conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(conf, formula: str) -> str:
    return re.sub(r"\s", "", conf.tex2mathml(conf.as_tex_reads(formula)))


@pytest.mark.parametrize(
    ("short", "braced"),
    [
        (r"\frac12 x", r"\frac{1}{2} x"), (r"\tfrac12(a + b)", r"\tfrac{1}{2}(a + b)"),
        (r"\tfrac12 \operatorname{mean} x", r"\tfrac{1}{2} \operatorname{mean} x"), (r"x^12", r"{x^{1}}2"),
        (r"\sqrt23", r"\sqrt{2}3"), (r"\frac1{n} x", r"\frac{1}{n} x"), (r"-\log p", r"-\log\, p"),
        (r"\log\sigma(x)", r"\log\,\sigma(x)"),
    ],
)  # fmt: skip
def test_an_argument_without_braces_is_one_digit_as_in_tex(conf, short, braced):
    assert drawn(conf, short).replace("<mrow>", "").replace("</mrow>", "") == re.sub(
        r"\s|</?mrow>", "", conf.tex2mathml(braced)
    )


@pytest.mark.parametrize("whole", [r"\log_2 x", r"\log(x)", r"\log\left(x\right)", r"x^{12}", r"\frac{a}{b}", "x_1 2"])
def test_what_is_said_in_full_stays(conf, whole):
    assert conf.as_tex_reads(whole) == whole
