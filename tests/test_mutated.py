"""Mutated structures, entries, schedules, reports and scores: each is refused by name, or is what it says.

Hypothesis draws the mutants; `tests/fuzz/strangers.py` draws whole folders by the thousand.
"""

import copy
import json

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from optimum_optin import OptinConfig, PruningReport, Scores
from optimum_optin.merging.schedule import TokenSchedule
from optimum_optin.scoring.stored import METADATA_FILE, TENSORS_FILE, write_scores
from optimum_optin.storage.entry import OptinStructureConfig
from optimum_optin.storage.structure import (
    MOST_UNITS,
    Kept,
    compose,
    ranges_from_json,
    ranges_to_json,
    selected_from_json,
    structure_from_json,
    structure_to_json,
)

# The same draws each time, and no more than a few seconds of them.
settings.register_profile(
    "suite",
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("suite")

NUMBERS = st.sampled_from([-1, 0, 1, 2, 7, MOST_UNITS, MOST_UNITS + 1, 2**63, 10**400, 0.5, -0.0, 1e308])
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.text(max_size=4), st.just("0-2 of 4"))
VALUES = st.recursive(
    SCALARS,
    lambda inside: st.one_of(st.lists(inside, max_size=2), st.dictionaries(st.text(max_size=3), inside, max_size=2)),
    max_leaves=4,
)


def _places(value, owner=None, key=None):
    """Owner and key of every value inside of a JSON value."""
    if owner is not None:
        yield owner, key
    for name, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(each, value, name)


@st.composite
def mutants(draw, data):
    """A JSON value with one thing changed, left out or added."""
    data = copy.deepcopy(data)
    owner, key = draw(st.sampled_from(list(_places(data))))
    way = draw(st.sampled_from(["value", "value", "drop", "rename"]))
    if way == "value":
        owner[key] = draw(VALUES)
    elif way == "drop" or isinstance(owner, list):
        del owner[key]
    else:
        owner[draw(st.text(max_size=6))] = owner.pop(key)
    return data


def _ranges(text):
    """What a text of ranges means, by its description: ascending numbers and pairs of them; `None` if it is none."""
    found = []
    for part in text.split(",") if text else []:
        ends = part.split("-")
        if len(ends) > 2 or not all(end.isascii() and end.isdigit() and len(end) <= 7 for end in ends):
            return None
        first, last = int(ends[0]), int(ends[-1])
        if first > last or last >= MOST_UNITS or (found and first <= found[-1][-1]):
            return None
        found.append(range(first, last + 1))
    return found


RANGES = st.lists(st.sampled_from([*"0123456789", "12", "999999", "-", ",", "-", ",", ", ", "٣"]), max_size=9).map(
    "".join
)


@given(RANGES)
@example("٣")
@example("1,1")
@example("0-2,2-3")
@example("2-1")
@example("3-3,999999")
@example("0-1000000")
def test_ranges_mean_what_they_say(text):
    found, expected = ranges_from_json(text), _ranges(text)
    assert (found is None) == (expected is None)
    if found is not None:
        assert len(found) == sum(map(len, expected))
        assert found.last == (expected[-1][-1] if expected else -1)
        if len(found) < 100:
            indices = [index for part in expected for index in part]
            assert list(found) == indices and found == tuple(indices)
            assert ranges_from_json(ranges_to_json(indices)) == found


@given(st.one_of(RANGES, st.tuples(RANGES, st.sampled_from(["", " ", " of", " of "]), RANGES).map("".join), VALUES))
def test_selected_heads_are_below_their_number(text):
    found = selected_from_json(text)
    ranges, _, count = text.partition(" of ") if isinstance(text, str) else ("-", "", "")
    expected, bound = _ranges(ranges), " of " in text if isinstance(text, str) else False
    if bound and expected is not None:
        whole = count.isascii() and count.isdigit() and len(count) <= 7
        expected = expected if whole and int(count) > (expected[-1][-1] if expected else -1) else None
    assert (found is None) == (expected is None)
    if found is not None:
        assert found[1] == (int(count) if bound else None) and len(found[0]) == sum(map(len, expected))


@given(st.integers(0, 12).flatmap(lambda units: st.tuples(st.just(units), st.sets(st.integers(0, max(units - 1, 0))))))
def test_structures_survive_their_json_form(drawn):
    units, kept = drawn
    kept = tuple(sorted(kept))[:units]
    structure = {"layers.0.heads": Kept(units, kept)}
    data = json.loads(json.dumps(structure_to_json(structure)))
    assert structure_from_json(data) == structure
    assert structure_to_json(structure_from_json(data)) == data
    later = {"layers.0.heads": Kept(len(kept), tuple(range(1, len(kept), 2)))}
    assert compose(structure_from_json(data), later) == {"layers.0.heads": Kept(units, kept[1::2])}


ENTRIES = st.dictionaries(st.sampled_from(["units", "kept", "more"]), st.one_of(VALUES, RANGES, st.integers(0, 9)))


@given(st.one_of(ENTRIES, VALUES))
def test_an_entry_of_a_structure_is_refused_by_its_group_or_read_as_it_stands(entry):
    try:
        (found,) = structure_from_json({"layers.7.heads": entry}).values()
    except ValueError as error:
        assert "'layers.7.heads'" in str(error)
        fits = isinstance(entry, dict) and set(entry) == {"units", "kept"} and isinstance(entry["kept"], str)
        fits = fits and type(entry["units"]) is int and 0 <= entry["units"] <= MOST_UNITS
        expected = _ranges(entry["kept"]) if fits else None
        assert expected is None or (expected and expected[-1][-1] >= entry["units"]), "it was sound"
    else:
        assert set(entry) == {"units", "kept"} and found.units == entry["units"]
        assert len(found.kept) == sum(map(len, _ranges(entry["kept"]))) and found.kept.last < found.units


STAND_IN = {"argument": "x", "position": 0, "returns": 1, "width": 0, "cache": "", "cache_layer": 0, "reader": ""}
ENTRY = {
    "structure": {"layers.0.heads": {"units": 4, "kept": "0-2"}, "layers.0.neurons": {"units": 9, "kept": "1,5-7"}},
    "tokens": {"protected": 1, "merges": {"layers.0": 2}, "differences": True},
    "format_version": 2,
    "transformers": "5.23.0",
    "base": "bert",
    "shapes": {"a.weight": [3, 4]},
    "counters": {"a.heads": 3},
    "selectors": {"a": {"bias": "0-2 of 4"}},
    "stand_ins": {"b": STAND_IN},
    "without": ["c"],
    "merging": [{"layer": "layers.0", "path": "a", "keys": "b", "width": 8}],
}


@given(mutants(ENTRY))
def test_an_entry_is_refused_by_its_field_or_read_as_it_stands(entry):
    try:
        found = OptinStructureConfig(**entry)
    except (ValueError, TypeError) as error:
        changed = [name for name in {*entry, *ENTRY} if entry.get(name) != ENTRY.get(name)]
        words = {"tokens": "token schedule", "format_version": "format "}
        said = str(error)
        assert isinstance(error, ValueError), said
        assert any(name in said or words.get(name, name) in said for name in [*changed, "has no"]), (changed, said)
    else:
        data = found.to_dict()
        expected = {**OptinStructureConfig(entry.get("structure")).to_dict(), **entry}
        assert {name: data[name] for name in ENTRY} == {name: expected[name] or data[name] for name in ENTRY}


SCHEDULE = {"protected": 1, "merges": {"layers.0": 2, "layers.1": 0}, "differences": True}


@given(st.one_of(mutants({"form": SCHEDULE}).map(lambda data: data.get("form")), VALUES))
def test_a_schedule_is_refused_as_one_or_read_as_it_stands(data):
    try:
        schedule = TokenSchedule.from_json(data)
    except ValueError as error:
        assert "token schedule" in str(error)
    else:
        form = schedule.to_json()
        assert form["protected"] == data["protected"] and ("differences" in form) == ("differences" in data)
        assert form["merges"] == {layer: count for layer, count in data["merges"].items() if count}
        assert all(length >= 0 for length in schedule.lengths(["layers.0", "layers.1"], 9).values())


REPORT = PruningReport(
    flops_requested=0.5,
    flops_achieved=0.49,
    tokens=9,
    macs_dense=1000,
    macs_pruned=600,
    params_dense=100,
    params_pruned=70,
    layers={"layers.0": {"heads": {"kept": 3, "units": 4}}},
    merges={"layers.0": 2},
    left_whole={"a": "no group"},
    seconds={"scoring": 1.5},
    config=OptinConfig(flops=0.5).to_dict(),
    output_weight=1.0,
    divergence={"distance": 0.1, "agreement": 0.9, "samples": 8, "held_out": True},
    evaluations=[
        {"task": "glue/sst2", "dataset": "glue", "split": "dev", "samples": 3, "metrics": {"accuracy": {"dense": 0.5}}}
    ],
    calibration={"samples": 8, "dataset": "user/name", "split": "train"},
    base={"repo_id": "user/name", "commit": None},
    refit={"layers.0.heads": "alone"},
    continuations={
        "agreement": 0.5,
        "log_likelihood": -1.0,
        "dense_log_likelihood": -0.5,
        "prompts": 3,
        "tokens": 8,
        "held_out": True,
    },
    drops={"metric": "accuracy", "most": 0.1, "tried": [{"flops": 0.5, "drop": 0.05}]},
).to_dict()


@given(mutants(REPORT))
def test_a_report_is_refused_by_its_file_or_read_as_it_stands(tmp_path, data):
    (tmp_path / "optin_report.json").write_text(json.dumps(data))
    try:
        report = PruningReport.load(tmp_path)
    except ValueError as error:
        assert "optin_report.json is damaged" in str(error) and len(str(error)) < 2000
        return
    assert str(report)
    again = report.to_dict()
    report.save(tmp_path)
    assert json.dumps(PruningReport.load(tmp_path).to_dict()) == json.dumps(again)
    assert all(json.dumps(again[name]) == json.dumps(data[name]) for name in data if name not in RECORDS)


RECORDS = {"config", "divergence", "evaluations", "latency", "calibration", "base", "continuations", "drops"}


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """A folder of scores, and the bytes of its files."""
    folder = tmp_path_factory.mktemp("scores")
    terms = {term: {"layers.0.heads": torch.rand(4).double()} for term in ("output", "trajectory")}
    metadata = {"config": OptinConfig().to_dict(), "fingerprint": "a", "tokens": 9, "seconds": 1.0}
    write_scores(folder, terms, {}, metadata)
    return folder, {name: (folder / name).read_bytes() for name in (TENSORS_FILE, METADATA_FILE)}


@given(st.data())
def test_scores_are_refused_by_their_folder_or_are_what_was_saved(scores, data):
    folder, files = scores
    for name, content in files.items():
        (folder / name).write_bytes(content)
    expected = Scores.from_pretrained(folder)
    name = data.draw(st.sampled_from(list(files)))
    if name == METADATA_FILE and data.draw(st.booleans()):
        changed = json.dumps(data.draw(mutants(json.loads(files[name])))).encode()
    else:
        place = data.draw(st.integers(0, len(files[name]) - 1))
        other = data.draw(st.sampled_from([b"", b"\0", b"0", b"9", b'"', b"}", b" ", b"\xff", b"ab"]))
        changed = files[name][:place] + other + files[name][place + len(other[:1]) :]
    (folder / name).write_bytes(changed)
    try:
        found = Scores.from_pretrained(folder)
    except ValueError as error:
        assert str(folder) in str(error)
        return
    assert (found.tokens, found.config, found.fingerprint) == (expected.tokens, expected.config, expected.fingerprint)
    for term, by_key in expected.terms.items():
        assert all(torch.equal(score, found.terms[term][key]) for key, score in by_key.items())
