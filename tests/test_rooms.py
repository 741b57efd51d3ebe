"""The house: imports point down, no circles, and the map in CONTRIBUTING.md is that of the sources."""

import ast
import importlib
import sys
import warnings
from pathlib import Path

import pytest
from tiny import tiny_model

ROOT = Path(__file__).parents[1]
# A module of every earlier layout, and a name that it had.
EARLIER = {
    "benchmark": "compare_latency",
    "costs": "cost_tables",
    "data": "calibration_batches",
    "folders": "atomic_folder",
    "glue": "read_glue",
    "glue_metric": "GlueMetric",
    "groups": "Group",
    "images": "image_tokens",
    "masking": "masked",
    "plugin": "convert_model",
    "saved": "push_folder",
    "sources": "read_calibration",
    "structure": "structure_of",
    "surgery": "rewrite",
}


@pytest.fixture
def house(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    module = importlib.import_module("make_map")
    monkeypatch.delitem(sys.modules, "make_map")
    return module


def _imports(house):
    """Module -> modules of the package that it imports, wherever in the file."""
    found = {}
    known = house.modules()
    for module, file in known.items():
        package = module.split(".")[:-1]
        found[module] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = package[: len(package) - node.level + 1] + (node.module or "").split(".") * bool(node.module)
                for alias in node.names:
                    names = (".".join([*base, alias.name]), ".".join(base))
                    found[module].add(next((name for name in names if name in known), names[1]))
    return found


def test_every_file_has_a_place_on_a_floor(house):
    assert sorted({house.room_of(module) for module in house.modules()}) == sorted(sum(house.FLOORS, ()))


def test_imports_point_down(house):
    floors = {room: -number for number, rooms in enumerate(house.FLOORS) for room in rooms}
    for module, imported in _imports(house).items():
        for other in imported:
            room, lower = house.room_of(module), house.room_of(other)
            assert lower == room or floors[lower] < floors[room], f"{module} imports {other}"


def test_no_files_of_a_room_import_each_other_in_a_circle(house):
    imports = _imports(house)

    def above(module, path=()):
        assert module not in path, f"a circle: {' -> '.join([*path, module])}"
        for other in imports.get(module, ()):
            if house.room_of(other) == house.room_of(module):
                above(other, (*path, module))

    for module in imports:
        above(module)


def test_rooms_are_of_a_size_that_one_can_look_over(house):
    sizes = {room: sum(house.room_of(module) == room for module in house.modules()) for room in sum(house.FLOORS, ())}
    assert max(sizes.values()) <= 12, sizes


def test_the_map_is_up_to_date(house):
    page = house.PAGE.read_text(encoding="utf-8")
    assert page == house.page_with(house.package_map()), "run python docs/make_map.py"


@pytest.mark.parametrize("name", EARLIER)
def test_earlier_import_paths_warn_and_lead_on(name):
    sys.modules.pop(f"optimum_optin.{name}", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = importlib.import_module(f"optimum_optin.{name}")
    (warning,) = [each for each in caught if issubclass(each.category, FutureWarning)]
    home = getattr(module, EARLIER[name]).__module__
    assert Path(warning.filename).name == "__init__.py", "import_module, which stands for somebody's import"
    assert f"optimum_optin.{name} has moved: import from" in str(warning.message)
    assert home in str(warning.message)
    assert getattr(module, EARLIER[name]) is getattr(sys.modules[home], EARLIER[name])


# Names that are elsewhere now than most of their module, and what became of those that are gone: imported by examples.
SCATTERED = {
    "data": ["undecoded", "check_batches", "max_tokens", "probe_batch"],
    "images": ["takes_images", "takes_pairs"],
    "pixels": ["IMAGE_SUFFIXES"],
    "plugin": ["REMOTE_FILE"],
    "architectures": ["key_projections"],
    "compensation": ["compensate", "dense_passes"],
}


@pytest.mark.filterwarnings("ignore:optimum_optin.* has moved")
@pytest.mark.parametrize("name", SCATTERED)
def test_names_that_examples_imported_are_still_there(name):
    module = importlib.import_module(f"optimum_optin.{name}")
    assert [each for each in SCATTERED[name] if not hasattr(module, each)] == []


@pytest.mark.filterwarnings("ignore:optimum_optin.* has moved")
def test_what_took_a_model_of_images_for_one_still_does():
    images = importlib.import_module("optimum_optin.images")
    of_images = ["vit", "clip, a classifier of images"]
    models = {name: tiny_model(name) for name in ("bert", "clip", *of_images)}
    assert [name for name, model in models.items() if images.takes_images(model)] == of_images
    assert [name for name, model in models.items() if images.takes_pairs(model)] == ["clip"]
    keys = importlib.import_module("optimum_optin.architectures").key_projections(models["vit"])
    assert keys == {f"layers.{index}": f"vit.layers.{index}.attention.k_proj" for index in range(3)}


def test_a_module_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"optimum_optin\.nothing"):
        importlib.import_module("optimum_optin.nothing")
