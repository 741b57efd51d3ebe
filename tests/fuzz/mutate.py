"""Mutation testing: small faults are put into a source file, and its own tests must find them.

    python tests/fuzz/mutate.py masks ridge --sample 40 --seed 0 --out /tmp/mutants.jsonl

Each mutant runs in a fork of a process that has imported whatever does not import its file, torch above all.
cosmic-ray starts an interpreter for each; mutmut leaves decorated functions and constants alone and draws no sample.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import importlib.machinery
import json
import os
import random
import signal
import sys
import threading
import time
import types
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "optimum_optin"
TESTS = ROOT / "tests"

# Of the tests by brute force, which take a minute, those that are fast.
_BEFORE = "search/test_limits.py::test_floors_by_role_alone_give_the_same_masks_as_before"
_LIMITS = [
    f"search/test_limits.py::test_{name}"
    for name in (
        "what_numbers_may_stay",
        "levelled_limits_are_those_of_all_groups_of_a_role",
        "limits_that_contradict_each_other_are_refused",
        "many_roles_ranked_together_keep_to_the_limits",
        "a_result_outside_of_the_limits_is_an_error",
    )
]
_STRUCTURE = [
    f"storage/test_structure.py::test_{name}"
    for name in (
        "json_round_trip",
        "masks_round_trip",
        "masks_hold_numbers_while_models_are_made_without",
        "what_is_kept_does_not_change",
        "compose_indexes_the_dense_units",
        "an_entry_of_another_model_is_refused",
        "groups_of_other_names_do_not_compose",
        "an_entry_without_a_group_is_refused",
    )
]
_WITHIN = [
    "search/test_edges.py::test_where_units_cost_less_than_their_sum_the_budget_is_spent_all_the_same",
    "search/test_edges.py::test_a_sum_that_does_not_pay_for_the_least_is_raised",
    *(
        f"search/test_within.py::test_{name}"
        for name in (
            "a_budget_that_another_one_implies_changes_nothing",
            "what_is_best_under_one_budget_is_taken_where_the_other_holds",
            "budgets_are_mixed_by_their_shares_and_those_that_are_not_spent_weigh_less",
            "all_of_several_budgets_hold_and_little_is_missed",
        )
    ),
]
_SURGEON = [
    f"scoring/test_surgeon.py::test_{name}"
    for name in (
        "groups_that_share_a_consumer_are_scored_together",
        "sums_take_as_many_bytes_as_parts_are_made_by",
        "covariances_are_of_real_tokens_and_metrics_share_one_scale",
        "loops_share_the_time_and_what_they_gather_can_be_restored",
        "starts_are_of_the_first_pass_over_the_data",
        "activations_that_work_in_place_change_no_score",
        "a_language_model_is_ordered_by_its_output_and_all_its_tokens_weigh_the_same",
        "a_unit_that_another_can_replace_costs_little",
        "scores_in_parts_are_those_of_one_pass",
    )
]
_SEARCH = [
    f"search/test_search.py::test_{name}"
    for name in (
        "the_whole_budget_keeps_everything",
        "ties_go_to_the_earlier_unit",
        "models_of_one_kind_of_unit",
        "budget_below_the_minimum_is_refused_with_the_minimum",
        "all_of_any_roles_fits_the_whole_budget",
        "beyond_the_combinations_that_are_tried_the_best_is_missed_by_one_unit_at_most",
        "of_equal_totals_the_one_with_more_heads_is_taken_then_more_of_the_next_role_by_name",
        "a_model_without_units_keeps_none",
        "a_role_without_units_and_a_budget_of_nothing",
        "numbers_that_are_no_scores_are_refused",
        "a_result_below_the_floors_is_an_error",
    )
]
_TRIALS = [
    f"search/test_trials.py::test_{name}"
    for name in ("no_cut_is_tried_twice", "the_least_divergent_schedule_wins", "a_cut_that_overflows_loses")
]
_DIVERGENCE = [
    f"search/test_trials.py::test_{name}"
    for name in (
        "without_a_head_hidden_states_are_compared_padding_excluded",
        "a_classifier_diverges_by_kl_and_agrees_by_class",
        "the_same_model_does_not_diverge",
        "one_number_has_no_variance_to_explain",
        "token_level_logits_count_every_real_token",
    )
]
_OVERLAPS = [
    f"pricing/test_overlaps.py::test_{name}"
    for name in (
        "groups_overlap_where_they_own_two_dimensions_of_one_weight",
        "what_multiplies_nothing_costs_nothing",
        "units_cost_what_goes_with_them_from_the_dense_model",
        "what_is_left_is_what_is_counted",
    )
]
_TIMETABLE = [
    f"pricing/test_timetables.py::test_{name}"
    for name in ("a_cut_model_takes_what_its_price_says", "where_groups_overlap_time_follows_macs")
]
_PRICES = [
    "pricing/test_peaks.py::test_a_budget_of_the_memory_of_a_pass_prices_the_cut_model",
    *_TIMETABLE,
]
_RATIOS = [
    f"timing/test_ratios.py::test_{name}"
    for name in (
        "turns_go_on_while_ratios_vary",
        "turns_go_on_while_the_error_is_above_a_hundredth",
        "a_round_takes_four_tenths_of_a_second_in_6_to_40_turns",
    )
]
_REFIT = [
    f"compensation/test_walks.py::test_{name}"
    for name in (
        "batches_of_other_processes_have_no_walk",
        "groups_that_data_do_not_reach_are_left_and_those_without_a_join_are_named",
        "an_interrupted_refit_leaves_no_hooks_and_no_passes",
    )
]
_SMALLEST = [
    f"test_smallest.py::test_{name}"
    for name in (
        "six_budgets_halve_what_is_left_between_the_least_and_all",
        "where_nothing_loses_so_little_the_least_loss_is_named",
        "a_loss_that_is_no_number_is_refused",
        "a_configuration_without_a_budget_keeps_everything",
        "what_makes_no_sense_is_refused_before_scoring",
    )
]
# Source file -> the tests that are its own, the fast ones first.
FILES = {
    "search/masks": ["search/test_edges.py", *_SEARCH],
    "search/ranking": ["search/test_edges.py", "search/test_within.py", _BEFORE],
    "search/limits": ["search/test_edges.py", *_LIMITS, _BEFORE],
    "search/selection": ["search/test_selection.py", "search/test_limits.py"],
    "search/depth": ["search/test_edges.py"],
    "search/in_time": ["search/test_timed_again.py", "test_frozen.py"],
    "pricing/stairs": ["pricing/test_stairs.py", "test_frozen.py"],
    "timing/ratios": [*_RATIOS, "test_frozen.py"],
    "timing/speedups": ["timing/test_speedups.py", "test_frozen.py"],
    "pricing/overlaps": [*_OVERLAPS, "pricing/test_tensors.py", "test_frozen.py"],
    "search/candidates": ["search/test_candidates.py", "test_frozen.py"],
    "search/trials": ["search/test_choose.py", *_TRIALS],
    "search/divergence": ["search/test_divergence.py", *_DIVERGENCE],
    "pricing/macs": ["pricing/test_unit_costs.py", "pricing/test_overlaps.py"],
    "pricing/tensors": ["pricing/test_tensors.py"],
    "pricing/prices": ["pricing/test_prices.py", *_PRICES, "test_frozen.py"],
    "pricing/timetable": ["pricing/test_timetable.py", *_TIMETABLE, "test_frozen.py"],
    "pricing/timetables": ["pricing/test_kept_timetables.py"],
    "smallest": [*_SMALLEST, "test_frozen.py"],
    "sweeping/budgets": ["sweeping/test_points.py", "test_frozen.py"],
    "sweeping/points": ["sweeping/test_points.py", "test_frozen.py"],
    "sums/moments": ["sums/test_moments.py"],
    "sums/symmetric": ["sums/test_moments.py"],
    "search/within": _WITHIN,
    "pricing/unit_costs": ["pricing/test_unit_costs.py"],
    "compensation/ridge": ["compensation/test_ridge.py"],
    "compensation/refit": ["compensation/test_refit.py", *_REFIT],
    "scoring/removal": ["scoring/test_isotonic.py", "scoring/test_removal.py"],
    "scoring/surgeon": _SURGEON,
    "comparing/losses": ["comparing/test_losses.py", "passes/test_output_kinds.py"],
    "merging/matching": ["merging/test_merging.py"],
    "merging/schedule": ["merging/test_merging.py"],
    "storage/structure": ["test_mutated.py", "test_strangers.py::test_ranges_are_a_sequence", *_STRUCTURE],
    "storage/integrity": ["storage/test_integrity.py"],
}

_COMPARED = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_COMPUTED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "argmax": "argmin", "argmin": "argmax"}


def mutants(source: str) -> list[tuple[int, str, str]]:
    """Line, what was changed, and the mutated source, of every mutant of a source text."""
    tree = ast.parse(source)
    found = []
    for node, owner in _code(tree):
        for change, undo in _changes(node, owner):
            found.append((node.lineno, f"{change}", ast.unparse(tree)))
            undo()
    return found


def _code(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Nodes that do something, with the one above: no annotations, docstrings, `strict=`, texts of errors or logs."""
    for owner in ast.walk(tree):
        for child in ast.iter_child_nodes(owner):
            child.owner = owner
    skipped = set()
    for node in ast.walk(tree):
        owner = getattr(node, "owner", None)
        if owner in skipped or _says_nothing(node, owner):
            skipped.add(node)
        elif hasattr(node, "lineno"):
            yield node, owner


def _says_nothing(node: ast.AST, owner: ast.AST | None) -> bool:
    if isinstance(owner, (ast.arg, ast.AnnAssign)) and node is owner.annotation:
        return True
    if isinstance(owner, (ast.FunctionDef, ast.AsyncFunctionDef)) and node is owner.returns:
        return True
    if isinstance(owner, ast.keyword) and owner.arg == "strict":  # zip(..., strict=True) says that lengths are equal
        return True
    if isinstance(owner, ast.Raise) or isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom)):
        return True
    if isinstance(owner, ast.Assign) and any(
        getattr(each, "id", "") in ("__all__", "logger") for each in owner.targets
    ):
        return True
    logged = isinstance(node, ast.Call) and ast.unparse(node.func).startswith("logger.")
    return logged or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _changes(node: ast.AST, owner: ast.AST) -> Iterator[tuple[str, object]]:  # noqa: PLR0912 (a table of kinds)
    """Change a node in place, one way after the other; each comes with what undoes it."""
    before = ast.unparse(node)[:70]

    def put(target: object, field: str, value: object, after: str | None = None) -> tuple[str, object]:
        old = getattr(target, field)
        setattr(target, field, value)
        return f"{before} -> {after or ast.unparse(node)[:70]}", lambda: setattr(target, field, old)

    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            for other in _COMPARED[type(operator)]:
                yield put(node, "ops", [*node.ops[:place], other(), *node.ops[place + 1 :]])
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in _COMPUTED:
        yield put(node, "op", _COMPUTED[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield put(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
        for place in range(len(node.values)) if len(node.values) > 2 else ():
            yield put(node, "values", node.values[:place] + node.values[place + 1 :])
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
        yield _replaced(node, owner, node.operand, before)
    elif isinstance(node, ast.Constant):
        for other in _other_values(node.value):
            yield put(node, "value", other)
    elif isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield put(node, "value", ast.Constant(None))
    elif isinstance(node, ast.Slice):
        for field in ("lower", "upper"):
            bound = getattr(node, field)
            if bound is not None and not isinstance(bound, ast.Constant):
                yield put(node, field, ast.BinOp(bound, ast.Add(), ast.Constant(1)))
    elif isinstance(node, ast.Break):
        yield _replaced(node, owner, ast.Continue(), before)
    elif isinstance(node, ast.Continue):
        yield _replaced(node, owner, ast.Break(), before)
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield put(node, "test", ast.UnaryOp(ast.Not(), node.test), f"not ({ast.unparse(node.test)[:70]})")
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield put(node, "ifs", [])
    elif isinstance(node, ast.Call):
        yield from _changed_calls(node, put)
    if isinstance(node, (ast.Expr, ast.AugAssign, ast.Raise)):
        yield _replaced(node, owner, ast.Pass(), before)


def _other_values(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [value * 2, value / 10] if value else [1.0]
    return []


def _changed_calls(node: ast.Call, put: object) -> Iterator[tuple[str, object]]:
    for place in range(len(node.keywords)):
        if node.keywords[place].arg not in (None, "strict"):
            yield put(node, "keywords", node.keywords[:place] + node.keywords[place + 1 :])
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    field = "id" if isinstance(node.func, ast.Name) else "attr"
    if name in _NAMES:
        description, undo = put(node.func, field, _NAMES[name], _NAMES[name])
        yield description, undo
    if name == "range" and node.args:
        last = len(node.args) - 1 if len(node.args) < 3 else 1
        more = ast.BinOp(node.args[last], ast.Add(), ast.Constant(1))
        yield put(node, "args", [*node.args[:last], more, *node.args[last + 1 :]])


def _replaced(node: ast.AST, owner: ast.AST, other: ast.AST, before: str) -> tuple[str, object]:
    """Put another node in the place of one."""
    said = f"{before} -> {ast.unparse(other)[:70]}"
    field = next(
        name
        for name, value in ast.iter_fields(owner)
        if value is node or (isinstance(value, list) and any(each is node for each in value))
    )
    value = getattr(owner, field)
    if value is node:
        setattr(owner, field, other)
        return said, lambda: setattr(owner, field, node)
    place = next(index for index, each in enumerate(value) if each is node)
    value[place] = ast.copy_location(other, node)
    return said, lambda: value.__setitem__(place, node)


def _forked(source: Path, text: str, tests: list[str], limit: float, report: int | None = None) -> str:
    """The outcome of the tests in a fork in which a source file has this text: survived, killed, or too slow."""
    child = os.fork()
    if child == 0:
        os.setsid()
        code = 3
        try:
            code = _run(source, text, tests, report)
        finally:
            os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "too slow"


def _run(source: Path, text: str, tests: list[str], report: int | None) -> int:
    if report is None:
        sys.dont_write_bytecode = True
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
    original = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader: importlib.machinery.SourceFileLoader, name: str) -> object:
        if Path(loader.path).resolve() == source:
            return compile(text, loader.path, "exec")
        return original(loader, name)

    importlib.machinery.SourceFileLoader.get_code = get_code
    _tie()
    import pytest

    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--tb=short"]
    code = int(pytest.main([*options, *tests]))
    if report is not None:
        others = [name for name in sys.modules if not _of_tests(name) and name.partition(".")[0] != PACKAGE.name]
        os.write(report, json.dumps(others).encode())
    return code


def _of_tests(name: str) -> bool:
    file = getattr(sys.modules[name], "__file__", None) or ""
    return file.startswith(str(TESTS)) or name in ("__main__", "conftest")


def _preload(source: Path, tests: list[str]) -> float:
    """Import all that the tests import, but tests and what imports the source; return how long they take."""
    mutated = _module_name(source)
    sys.modules[mutated] = None  # importing it fails, and so does importing whatever imports it
    names = [_module_name(path) for path in sorted(PACKAGE.rglob("*.py")) if path.stem not in ("__init__", "__main__")]
    packages = [_module_name(path.parent) for path in sorted(PACKAGE.rglob("__init__.py"))]
    empty = []
    for name in packages:  # one that imports the source is held open for its other modules
        if name == PACKAGE.name or not _import_each([name]):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [str(ROOT / name.replace(".", "/"))]
            empty.append(name)
    _import_each(names)
    for name in [mutated, *empty]:
        del sys.modules[name]
    reader, writer = os.pipe()
    chunks: list[bytes] = []
    start = time.monotonic()
    thread = threading.Thread(target=lambda: chunks.extend(iter(lambda: os.read(reader, 65536), b"")))
    thread.start()
    outcome = _forked(source, ast.unparse(ast.parse(source.read_text(encoding="utf-8"))), tests, 600, writer)
    os.close(writer)
    thread.join()
    if outcome != "survived":
        raise SystemExit(f"{source.name}: its tests fail without a fault: {outcome}")
    _import_each(json.loads(b"".join(chunks)))
    gc.freeze()  # else forks copy whatever a collection looks at
    return time.monotonic() - start


def _import_each(names: Iterable[str]) -> bool:
    """Import what can be imported; return whether all of it could."""
    every = True
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:  # it is imported when it is needed
            every = False
    return every


def _module_name(source: Path) -> str:
    return ".".join(source.resolve().relative_to(ROOT).with_suffix("").parts)


def _tie() -> None:
    """Import the package, and make the modules that were imported without it attributes of their packages."""
    importlib.import_module(PACKAGE.name)
    for name, module in list(sys.modules.items()):
        package, _, last = name.rpartition(".")
        if package.partition(".")[0] == PACKAGE.name and not hasattr(importlib.import_module(package), last):
            setattr(sys.modules[package], last, module)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"parts of the names of source files; all of {', '.join(FILES)}")
    parser.add_argument("--sample", type=int, default=40, help="mutants of a file at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--line", type=int, nargs="*", help="only mutants of these lines")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(TESTS)]
    _import_each(["torch", "transformers", "pytest", "hypothesis"])
    for file in dict.fromkeys(file for name in arguments.names or [""] for file in FILES if name in file):
        child = os.fork()  # what one file needs to be imported anew is not what another one does
        if child == 0:
            _test(file, [str(TESTS / each) for each in FILES[file]], arguments)
            return
        os.waitpid(child, 0)


def _test(file: str, tests: list[str], arguments: argparse.Namespace) -> None:
    source = (PACKAGE / f"{file}.py").resolve()
    needed = _preload(source, tests)
    every = mutants(source.read_text(encoding="utf-8"))
    if arguments.line:
        every = [each for each in every if each[0] in arguments.line]
    drawn = random.Random(arguments.seed).sample(every, min(arguments.sample, len(every)))
    counts = {"killed": 0, "survived": 0, "too slow": 0}
    print(f"{file}: {len(drawn)} of {len(every)} mutants, tests take {needed:.1f} s", flush=True)
    for line, change, text in sorted(drawn):
        start = time.monotonic()
        outcome = _forked(source, text, tests, 3 * needed + 10)
        counts[outcome] += 1
        if outcome != "killed":
            print(f"  {outcome} {file}.py:{line}: {change}", flush=True)
        if arguments.out:
            entry = {
                "file": file,
                "line": line,
                "change": change,
                "outcome": outcome,
                "seconds": time.monotonic() - start,
            }
            with arguments.out.open("a") as stream:
                stream.write(json.dumps(entry) + "\n")
    found = counts["killed"] + counts["too slow"]
    print(f"{file}: {found} of {len(drawn)} found ({counts['too slow']} too slow)", flush=True)


if __name__ == "__main__":
    main()
