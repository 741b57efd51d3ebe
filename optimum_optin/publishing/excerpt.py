"""Excerpts of this package's sources: definitions, with all that they need, as a text that stands alone."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.util import resolve_name

Name = tuple[str, str]
"""A module of this package, and a name at its top level."""


def excerpt(names: Iterable[Name]) -> tuple[list[str], list[str]]:
    """The definitions of `names` and of all that they use, across modules.

    Docstrings are cut to their first line, and comments between definitions are left out.

    Args:
        names: the definitions to start from.

    Returns:
        The import statements of other packages, sorted; and the definitions' texts, imported modules before those that
        import them.

    Raises:
        RuntimeError: two modules define the same name, which one text cannot hold.
    """
    files: dict[str, _File] = {}  # a module comes after those it imports
    pending, imports, homes = list(names), set(), {}
    while pending:
        module, name = pending.pop()
        file = _open(module, files)
        if name in file.internal:
            pending.append(file.internal[name])
        elif name in file.external:
            imports.add(file.external[name])
        elif name in file.defined and name not in homes:
            homes[name] = module
            pending += [(module, used) for node in file.defined[name] for used in _names_in(node)]
        elif homes.get(name, module) != module and name in file.defined:
            raise RuntimeError(f"{module} and {homes[name]} both define {name}: rename one.")
    texts = [
        file.text(node)
        for module, file in files.items()
        for name, nodes in file.defined.items()
        if homes.get(name) == module
        for node in nodes
    ]
    return _import_statements(imports), texts


def _import_statements(imports: set[tuple[str | None, str]]) -> list[str]:
    plain = sorted(f"import {name}" for origin, name in imports if origin is None)
    origins = sorted({origin for origin, _ in imports if origin})
    return plain + [
        f"from {origin} import {', '.join(sorted(name for home, name in imports if home == origin))}"
        for origin in origins
    ]


class _File:
    """What the top level of a module binds.

    Attributes:
        defined: name -> its definition, and for a `singledispatch` function the module's own cases of it.
        internal: name -> where in this package it is imported from.
        external: name -> the module outside this package that it is imported from (`None` for `import name`), and the
            import's own words (`name` or `name as other`).
    """

    def __init__(self, module: str):
        source = inspect.getsource(import_module(module))
        self.lines = source.splitlines()
        self.defined: dict[str, list[ast.stmt]] = {}
        self.internal: dict[str, Name] = {}
        self.external: dict[str, tuple[str | None, str]] = {}
        package = module.rpartition(".")[0]
        for node in ast.parse(source).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                home = resolve_name("." * node.level + (node.module or ""), package)
                self.internal |= {alias.name: (home, alias.name) for alias in node.names}
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                origin = getattr(node, "module", None)
                self.external |= {alias.asname or alias.name: (origin, ast.unparse(alias)) for alias in node.names}
            else:
                for name in _binds(node):
                    self.defined.setdefault(name, []).append(node)

    def text(self, node: ast.stmt) -> str:
        """The source of a top-level statement, docstrings cut to their first line."""
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        lines = self.lines[: node.end_lineno]
        for inner in sorted(_docstrings(node), key=lambda each: -each.lineno):
            if inner.end_lineno > inner.lineno:
                lines[inner.lineno - 1 : inner.end_lineno] = [lines[inner.lineno - 1] + '"""']
        return "\n".join(lines[first - 1 :])


def _open(module: str, files: dict[str, _File]) -> _File:
    if module not in files:
        file = _File(module)
        for home, _ in file.internal.values():
            _open(home, files)
        files[module] = file
    return files[module]


def _binds(node: ast.stmt) -> Iterator[str]:
    """The names that a top-level statement binds, or the function that it adds a case to."""
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.FunctionDef) and node.name == "_":
        yield from dict.fromkeys(_names_in(decorator)[0] for decorator in node.decorator_list)
    elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name


def _names_in(node: ast.AST) -> list[str]:
    return [each.id for each in ast.walk(node) if isinstance(each, ast.Name)]


def _docstrings(node: ast.stmt) -> list[ast.Expr]:
    owners = (ast.FunctionDef, ast.ClassDef)
    return [each.body[0] for each in ast.walk(node) if isinstance(each, owners) and ast.get_docstring(each)]
