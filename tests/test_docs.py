"""Code in the docs that needs no network runs; links between pages lead somewhere."""

import re
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_samples

from optimum_optin import OptinConfig, OptinPruner, architectures
from optimum_optin.scoring import registry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_adding_an_architecture_and_a_scorer_works_as_printed(monkeypatch):
    monkeypatch.setattr(architectures, "_ARCHITECTURES", dict(architectures._ARCHITECTURES))
    monkeypatch.setattr(registry, "_SCORERS", dict(registry._SCORERS))
    row, scorer = _blocks("docs/architectures.md")
    exec(row, {})
    exec(scorer, {})
    model = tiny_model("bert")
    model.config.model_type = "my-bert"
    pruner = OptinPruner(model)
    pruner.prune(tiny_samples(), OptinConfig(flops=0.5, scorer="magnitude"))
    assert 0.4 < pruner.report.flops_achieved <= 0.5


def test_readme_code_compiles_and_names_what_exists():
    for block in _blocks("README.md"):
        compile(block, "README.md", "exec")
    called = set(re.findall(r"pruner\.(\w+)\(", "".join(_blocks("README.md"))))
    assert called
    assert all(hasattr(OptinPruner, name) for name in called), called


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target
