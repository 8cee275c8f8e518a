"""Kinds of method register themselves: the package's, and those of files that an edition names."""

import ast
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from small_clone import OWN_METHOD as OWN

from prefmoe.config import (
    CONFIG_FOLDER,
    KINDS,
    ConfigError,
    Edition,
    LoRAMethod,
    MethodSettings,
    is_trained,
    load_edition,
)
from prefmoe.models.base import Method, MethodError, build_method
from prefmoe.models.baselines import LoRA
from prefmoe.system.provenance import PACKAGE, UnknownModuleError, code_digest, module_file


@pytest.fixture
def edition_of(tmp_path, forget_own_methods):
    """edition_of(text): an edition whose one own file says this, and which has a method of the kind "own"."""

    def make(text: str, method: dict | None = None, name: str = "mine", own: tuple[str, ...] = ("own.py",)) -> Edition:
        (tmp_path / "own.py").write_text(text, encoding="utf-8", errors="surrogateescape")
        content = yaml.safe_load((CONFIG_FOLDER / "smoke.yaml").read_text(encoding="utf-8"))
        content |= {"name": name, "own_methods": list(own)}
        content["methods"]["Own"] = {"kind": "own", "label": "Own"} | (method or {})
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return load_edition(tmp_path / f"{name}.yaml")

    return make


def test_the_package_s_kinds_know_the_class_that_does_them():
    wings = {settings.module.rpartition(".")[0] for settings in KINDS.values()}
    assert wings == {"prefmoe.models", "prefmoe.generation"}
    for kind, settings in KINDS.items():
        __import__(settings.module)
        made = settings.implementation
        assert made is None if kind == "probes" else made.__module__ == settings.module, "probes are no class: measured"
    assert LoRAMethod.implementation is LoRA
    without_steps = {name for name, settings in KINDS.items() if settings.table_type == "NT"}
    scorers = {"population_scorer", "neighbours", "personal_scorer", "factors", "low_rank"}
    of_drawing = {"probes", "drawer", "drawings", "wrong_user", "rewarded"}
    assert without_steps == {"nontuned", "zero_shot", "injected", *scorers, *of_drawing}
    assert not is_trained(load_edition("smoke").methods["NT"])


def test_reading_an_edition_needs_no_torch():
    code = "import sys; from prefmoe.config import load_edition; load_edition('mini'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CONFIG_FOLDER.parent)
    assert done.stdout.strip() == "False", done.stderr


def test_a_file_beside_the_edition_is_read_and_its_method_is_like_any_other(edition_of, tmp_path):
    edition = edition_of(OWN, {"size": 3})
    method = edition.methods["Own"]
    assert (method.size, method.table_type, is_trained(method)) == (3, "PEFT", True)
    assert edition.own_methods == (tmp_path / "own.py",)
    assert edition.with_settings({"methods.Own.size": 4}).methods["Own"] == method.model_copy(update={"size": 4})
    assert edition == load_edition(tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match="methods.Own.own.size: .*'big'"):
        edition_of(OWN, {"size": "big"})
    with pytest.raises(ConfigError, match="methods.Own.own.sise: unknown setting, did you mean 'size'"):
        edition_of(OWN, {"sise": 3})


def test_a_file_at_home_is_found(edition_of, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert edition_of(OWN, own=("~/own.py",)).own_methods == (tmp_path / "own.py",)


def test_a_file_that_has_changed_is_read_again(edition_of):
    old = edition_of(OWN).methods["Own"]
    new = edition_of(OWN.replace("size: int = 1", "size: int = 2")).methods["Own"]
    assert (old.size, new.size) == (1, 2) and KINDS["own"] is type(new) is not type(old)
    renamed = OWN.replace('"own"', '"other"')
    assert edition_of(renamed, {"kind": "other"}).methods["Own"].kind == "other" and "own" not in KINDS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OWN.replace("Literal[", "Litteral["), "own.py, line 9: NameError: name 'Litteral' is not defined"),
        (OWN + "1 / 0\n", "own.py, line 15: ZeroDivisionError: division by zero"),
        (OWN + "raise SystemExit(3)\n", "own.py, line 15: SystemExit: 3"),
        (OWN + "def f(:\n", "own.py, line 15: SyntaxError: "),
        (OWN + "import absent_module\n", "own.py, line 15: ModuleNotFoundError: No module named 'absent_module'"),
        ("x = 1\n", "own.py defines no method: expected a subclass of MethodSettings with a kind of its own"),
        (OWN.partition("class Own")[0], "own.py defines Settings and nothing that does it: expected"),
        (OWN.replace('"own"', '"lora"'), "line 7: TypeError: Settings: kind 'lora' is taken by LoRAMethod of "),
        (OWN.replace('    table_type = "PEFT"\n', ""), "TypeError: Settings has no table_type"),
        (OWN + "class More(Settings): pass\n", "own.py, line 15: TypeError: More: kind 'own' is taken by Settings of"),
        (
            OWN + "from prefmoe.config import LOVA3Method\nclass Second(Method, settings=LOVA3Method): pass\n",
            "line 16: TypeError: Second: a class of prefmoe.models.lova3 has settings=LOVA3Method",
        ),
        ("\udcff", "own.py cannot be read: "),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name_and_nothing_of_it_stays(edition_of, text, message):
    kinds = dict(KINDS)
    with pytest.raises(ConfigError, match=f"own_methods: .*{message}"):
        edition_of(text)
    assert kinds == KINDS
    assert edition_of(OWN).methods["Own"].size == 1
    with pytest.raises(ConfigError, match=message):
        edition_of(text)
    assert KINDS["own"].__name__ == "Settings" and [*KINDS] == [*kinds, "own"]


def test_files_that_are_missing_or_named_twice_are_refused(edition_of, tmp_path):
    with pytest.raises(ConfigError, match=rf"own_methods: {tmp_path}/absent.py cannot be read: No such file"):
        edition_of(OWN, own=("absent.py",))
    os.mkfifo(tmp_path / "pipe.py")
    with pytest.raises(ConfigError, match=rf"own_methods: {tmp_path}/pipe.py cannot be read: Not a regular file"):
        edition_of(OWN, own=("pipe.py",))
    with pytest.raises(ConfigError, match="own_methods: given more than once: own.py"):
        edition_of(OWN, own=("own.py", "own.py"))


def test_two_files_cannot_have_one_kind(edition_of, tmp_path):
    (tmp_path / "copy.py").write_text(OWN, encoding="utf-8")
    with pytest.raises(
        ConfigError, match=rf"copy.py, line \d+: TypeError: .*'own' is taken by Settings of {tmp_path}/own.py"
    ):
        edition_of(OWN, own=("own.py", "copy.py"))


def test_an_edition_names_the_files_of_its_methods_itself(edition_of):
    with pytest.raises(
        ConfigError, match="methods.Own: unknown kind of method 'own'; known kinds: .*nontuned, .*own_meth"
    ):
        edition_of(OWN, own=())
    edition_of(OWN)
    with pytest.raises(ConfigError, match="methods.Own: own_methods does not name .*own.py, which defines its kind"):
        edition_of(OWN, name="other", own=())


def test_settings_that_nothing_does_are_refused_when_the_method_is_built():
    class Idle(MethodSettings):
        table_type = "NT"
        kind: str = "idle"

    with pytest.raises(
        MethodError, match="test_own_methods: nothing does what Idle says; expected a class that opens with"
    ):
        build_method(Idle(label="x"), None, None, seed=0)
    assert "idle" not in KINDS
    with pytest.raises(ConfigError, match="Idle is defined in somewhere, which is no file"):
        Idle.module = "somewhere"
        Idle.source()


def test_a_run_s_digest_follows_its_own_method_alone(tmp_path, monkeypatch):
    package = shutil.copytree(PACKAGE, tmp_path / "prefmoe", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    monkeypatch.setattr("prefmoe.system.provenance.PACKAGE", package)

    def digests() -> dict[str, str]:
        code_digest.cache_clear()
        module_file.cache_clear()
        return {kind: code_digest(methods=(settings.source(),)) for kind, settings in KINDS.items()}

    def changed(module: str) -> set[str]:
        before, path = digests(), package / module
        path.write_text(path.read_text(encoding="utf-8") + "\nCHANGED = 1\n", encoding="utf-8")
        return {kind for kind, digest in digests().items() if digest != before[kind]}

    try:
        assert changed("models/yollava.py") == {"yollava"}
        assert changed("models/soft_prompt.py") == {"soft_prompt"}
        assert changed("models/prefmoe.py") == {"prefmoe"}
        assert changed("models/moe_lora.py") == {"prefmoe", "graph_experts"}
        assert changed("models/baselines.py") == {"nontuned", "fft", "lora", "lova3"}
        assert changed("models/added_tokens.py") == {"yollava", "tg_llava", "joint_tokens"}
        assert changed("models/base.py") == changed("running/training.py") == set(KINDS)
        with pytest.raises(UnknownModuleError, match="prefmoe.models.base builds methods, and nobody says which"):
            code_digest()
    finally:
        code_digest.cache_clear()
        module_file.cache_clear()


def test_an_own_file_enters_a_digest_by_its_code_and_what_it_imports_of_the_package(edition_of):
    def digest(text: str) -> str:
        return code_digest(methods=(edition_of(text).methods["Own"].source(),))

    first = digest(OWN)
    assert digest("# why\n" + OWN.replace("    pass", '    """Said."""\n\n    pass')) == first
    assert digest(OWN.replace("    pass", "    more = 1")) != first
    imported = digest(OWN + "from prefmoe.models import yollava\n")
    assert imported not in (first, digest(OWN + "import yaml\n"))
    code_digest.cache_clear()
    with pytest.raises(ConfigError, match=r"own.py, line 15: ImportError: .*absent"):
        digest(OWN + "from prefmoe.models import absent\n")


def test_the_package_imports_by_name_where_provenance_knows_of_it():
    """What else would import by name would escape every digest."""
    by_name = ("import_module", "__import__", "exec", "eval", "spec_from_file_location")
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in by_name:
                if not ast.unparse(node.func).endswith((".eval", ".exec")):  # of a module or a process
                    found.add(path.relative_to(PACKAGE).as_posix())
    assert found == {"models/base.py", "config/own_methods.py"}


def test_a_class_that_was_made_anew_takes_the_place_of_its_settings():
    """As when a notebook's cell runs twice; another class is refused."""

    def define(name: str) -> type[Method]:
        return type(Method)(name, (Method,), {"__module__": __name__, "__qualname__": name}, settings=_Made)

    first, second = define("Made"), define("Made")
    assert _Made.implementation is second is not first
    with pytest.raises(TypeError, match="Other: a class of .*test_own_methods has settings=_Made"):
        define("Other")


class _Made(MethodSettings):
    table_type = "NT"
