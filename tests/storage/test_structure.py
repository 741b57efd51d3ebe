"""The saved structure: round trips, composition, and damage that must be refused."""

import dataclasses
import json

import pytest
import torch
from tiny import random_masks, tiny_model
from transformers import AutoModelForSequenceClassification

from optimum_optin import OptinConfig, OptinPruner, convert_model, find_groups
from optimum_optin.editing.surgery import rewrite
from optimum_optin.storage.structure import (
    Kept,
    compose,
    masks_of,
    structure_from_json,
    structure_of,
    structure_to_json,
)


def test_json_round_trip():
    structure = {"layers.0.heads": Kept(12, (0, 1, 2, 5, 9, 10)), "layers.0.neurons": Kept(4, ())}
    data = structure_to_json(structure)
    assert data["layers.0.heads"] == {"units": 12, "kept": "0-2,5,9-10"}
    assert structure_from_json(json.loads(json.dumps(data))) == structure


def test_masks_round_trip():
    groups = find_groups(tiny_model())
    masks = random_masks(groups)
    again = masks_of(structure_of(groups, masks), groups)
    assert all(torch.equal(masks[key], again[key]) for key in masks)


def test_masks_hold_numbers_while_models_are_made_without():
    groups = find_groups(tiny_model())
    with torch.device("meta"):
        masks = masks_of({"layers.0.heads": Kept(4, (1, 2))}, groups)
    assert masks["layers.0.heads"].tolist() == [False, True, True, False]
    assert all(mask.all() for key, mask in masks.items() if key != "layers.0.heads")


def test_what_is_kept_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Kept(4, (1,)).units = 5


def test_compose_indexes_the_dense_units():
    first = {"layers.0.heads": Kept(4, (0, 2, 3)), "layers.1.heads": Kept(4, (1,))}
    second = {"layers.0.heads": Kept(3, (1, 2))}
    assert compose(first, second) == {"layers.0.heads": Kept(4, (2, 3)), "layers.1.heads": Kept(4, (1,))}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"units": 4, "kept": "0-9"}, r"'layers\.0\.heads'.*below its 4 units"),
        ({"units": 4, "kept": "2,1"}, r"'layers\.0\.heads'.*ascend"),
        ({"units": 4, "kept": "1,1"}, r"'layers\.0\.heads'.*ascend"),
        ({"units": 4, "kept": "0;1"}, r"'layers\.0\.heads' must look like"),
        ({"units": "4", "kept": "0"}, r"'layers\.0\.heads' must look like"),
        ({"kept": "0"}, r"'layers\.0\.heads' must look like"),
        ([0, 1], r"'layers\.0\.heads' must look like"),
        ({"units": 10**9, "kept": "0-9999998"}, r"'layers\.0\.heads' must look like.*at most 1000000 units"),
        ({"units": 4, "kept": "9" * 5000}, r"'layers\.0\.heads' must look like"),
        ({"units": True, "kept": "0"}, r"'layers\.0\.heads' must look like"),
        ({"units": -1, "kept": ""}, r"'layers\.0\.heads' must look like"),
        ({"units": 4, "kept": "0", "more": 1}, r"'layers\.0\.heads' must look like"),
    ],
    ids=[
        "past the end",
        "unsorted",
        "twice",
        "syntax",
        "text units",
        "no units",
        "a list",
        "absurd",
        "absurd digits",
        "true",
        "negative",
        "more",
    ],
)
def test_a_damaged_folder_is_refused_by_name(tmp_path, entry, message):
    OptinPruner(tiny_model()).prune(
        [{"input_ids": [5, 6, 7]}] * 8, OptinConfig(flops=0.5, probes=2), save_dir=tmp_path / "pruned"
    )
    path = tmp_path / "pruned" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["structure"]["layers.0.heads"] = entry
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned")


def test_an_entry_of_a_model_that_is_not_pruned_is_refused():
    pruner = OptinPruner(tiny_model())
    pruned = pruner.prune([{"input_ids": [5, 6, 7]}] * 8, OptinConfig(flops=0.5, probes=2))
    with pytest.raises(ValueError, match=r"config says that bert\.\S+ has the shape .* pruned model's config is dense"):
        OptinPruner(type(pruned)(pruned.config))


def test_converting_in_two_steps_notes_both(tmp_path):
    model = tiny_model()
    convert_model(model, {"layers.0.neurons": Kept(48, (1, 2, 3))})
    convert_model(model, {"layers.1.heads": Kept(4, (0,))})
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert {group.key: group.units for group in find_groups(loaded) if group.units in (1, 3)} == {
        "layers.0.neurons": 3,
        "layers.1.heads": 1,
    }


@pytest.mark.parametrize("masks", [{}, {"layers.0.heads": torch.ones(2)}], ids=["none", "short"])
def test_rewriting_with_masks_that_do_not_fit_cuts_nothing(masks):
    model = tiny_model()
    with pytest.raises(ValueError, match=r"layers\.0\.heads needs a mask of 4 units, got (none|2)"):
        rewrite(model, find_groups(model), masks)
    assert [group.units for group in find_groups(model)] == [4, 48] * 3


def test_an_entry_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"'layers\.0\.heads' was cut from 5 units, but this model has 4"):
        convert_model(tiny_model(), {"layers.0.heads": Kept(5, (0, 1))})


def test_groups_of_other_names_do_not_compose():
    with pytest.raises(ValueError, match=r"layers\.0\.heads kept 2 units of an earlier .* cut from 4"):
        compose({"layers.0.heads": Kept(4, (0, 2))}, {"layers.0.heads": Kept(4, (0, 1))})


def test_an_entry_without_a_group_is_refused():
    with pytest.raises(ValueError, match=r"'layers\.9\.heads' names no group"):
        masks_of({"layers.9.heads": Kept(4, (0,))}, find_groups(tiny_model()))


def test_a_newer_format_asks_for_an_upgrade(tmp_path):
    OptinPruner(tiny_model()).prune(
        [{"input_ids": [5, 6, 7]}] * 8, OptinConfig(flops=0.5, probes=2), save_dir=tmp_path / "pruned"
    )
    path = tmp_path / "pruned" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["format_version"] = 99
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="format 99.*upgrade"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned")
