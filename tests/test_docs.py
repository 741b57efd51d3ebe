"""Code in the docs runs; links lead to files; what is generated is up to date; every name exists."""

import importlib
import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from tiny import tiny_model, tiny_samples
from workshop import set_up

import optimum_optin
from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.architectures import registry as architectures
from optimum_optin.scoring import registry

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "docs/source"
MARKDOWN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SITE = sorted(SOURCE.rglob("*.mdx"))
# An optional comment (why a block is not run, or what it needs), and the block.
BLOCK = re.compile(r"(?:<!-- (not run|needs): ([^>]*) -->\n)?```python\n(.*?)```", flags=re.DOTALL)


def _name(page):
    return str(page.relative_to(ROOT))


def _blocks(page):
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workshop")
    set_up(folder)
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("page", [page for page in [MARKDOWN[0], *SITE] if _blocks(page)], ids=_name)
@pytest.mark.usefixtures("hub")  # what the pages push and load from there
def test_code_runs_from_top_to_bottom(page, filled, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(filled, tmp_path / "here"))
    monkeypatch.setattr(architectures, "_ARCHITECTURES", dict(architectures._ARCHITECTURES))
    monkeypatch.setattr(registry, "_SCORERS", dict(registry._SCORERS))
    names = {}
    if page.name in ("faq.mdx", "loading.mdx"):  # whose readers have a pruned model
        pruner, calibration = OptinPruner.from_pretrained("textattack/bert-base-uncased-SST-2"), ["the cat sat"] * 16
        pruner.prune(calibration, OptinConfig(probes=8), save_dir="pruned")
        names = {"pruner": pruner, "calibration": calibration, "OptinConfig": OptinConfig}
    for condition, detail, code in _blocks(page):
        packages = detail.split(", ") if condition == "needs" else []
        if condition != "not run" and all(map(_installed, packages)):
            exec(compile(code, _name(page), "exec"), names)


def _installed(package):
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def test_what_extending_shows_takes_effect(monkeypatch):
    monkeypatch.setattr(architectures, "_ARCHITECTURES", dict(architectures._ARCHITECTURES))
    monkeypatch.setattr(registry, "_SCORERS", dict(registry._SCORERS))
    for _, _, code in _blocks(SOURCE / "concepts/extending.mdx"):
        exec(code, {})
    model = tiny_model("bert")
    model.config.model_type = "my-bert"
    pruner = OptinPruner(model)
    pruner.prune(tiny_samples(), OptinConfig(flops=0.5, scorer="magnitude"))
    assert 0.4 < pruner.report.flops_achieved <= 0.5


@pytest.mark.parametrize("page", [*MARKDOWN, *SITE], ids=_name)
def test_links_lead_to_files(page):
    ending = ".mdx" if page.suffix == ".mdx" else ""  # doc-builder's links have none
    for target in re.findall(r"\]\(([^)#\s]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / (target + ending)).exists(), target


def test_every_page_is_in_the_table_of_contents():
    sections = yaml.safe_load((SOURCE / "_toctree.yml").read_text(encoding="utf-8"))
    listed = [page["local"] for section in sections for page in section["sections"]]
    assert sorted(listed) == [str(page.relative_to(SOURCE).with_suffix("")) for page in SITE]


def test_the_reference_names_everything_that_is_public():
    documented = set()
    for name, members in re.findall(
        r"\[\[autodoc\]\] (\S+)\n((?:    - \w+\n)*)", (SOURCE / "reference.mdx").read_text()
    ):
        module, _, attribute = name.rpartition(".")
        thing = getattr(importlib.import_module(module), attribute)
        documented.add(attribute)
        listed = re.findall(r"- (\w+)", members)
        public = {
            name
            for kind in (getattr(thing, "__mro__", ()))
            if kind.__module__.partition(".")[0] == optimum_optin.__name__ and kind.__name__[0] != "_"
            for name, member in vars(kind).items()
            if name[0] != "_" and _is_method(member)
        }
        assert not isinstance(thing, type) or sorted(listed) == sorted(public), name
    assert set(optimum_optin.__all__) - {"__version__"} <= documented


def _is_method(member):
    return callable(member) or isinstance(member, (classmethod, staticmethod))


def test_functions_of_equations_exist():
    (table,) = re.findall(r"## Equations and functions\n(.*?)\n## ", (SOURCE / "concepts/method.mdx").read_text(), re.S)
    functions = re.findall(
        r"`([\w.]+)`", "".join(line.rpartition("|")[0].rpartition("|")[2] for line in table.split("\n"))
    )
    assert len(functions) > 12
    for function in functions:
        thing = optimum_optin
        for name in function.split("."):
            thing = getattr(thing, name)


def test_the_support_matrix_is_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    matrix = importlib.import_module("make_support_matrix")
    monkeypatch.delitem(sys.modules, "make_support_matrix")
    page = matrix.PAGE.read_text(encoding="utf-8")
    assert page == matrix.page_with(matrix.support_matrix()), "run python docs/make_support_matrix.py"


def test_the_page_of_supported_models_is_made_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    models = importlib.import_module("make_supported_models")
    monkeypatch.delitem(sys.modules, "make_supported_models")
    assert models.PAGE.read_text(encoding="utf-8") == models.page(), "run python docs/make_supported_models.py"
