"""Writes the map of the package into CONTRIBUTING.md: floors, rooms, and what each file is about, by its first line.

    python docs/make_map.py

Imports point down: a file imports from lower floors and from its own room, and no two files of a room import each other
in a circle. `tests/test_rooms.py` holds the sources against this and the page.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
PACKAGE = ROOT / "optimum_optin"
BEGIN, END = "<!-- map: written by docs/make_map.py -->", "<!-- end of map -->"

# From the top; a room is a folder, or a file that stands alone.
FLOORS = (
    ("commands",),
    ("command_line",),
    ("pruner",),
    ("smallest", "outcome"),
    ("sweeping",),
    ("pipeline", "readiness", "exporting"),
    ("search", "publishing", "benchmarking"),
    ("scoring", "compensation", "proving", "evaluation", "report"),
    ("plain_modules", "image_tasks", "text_tasks", "audio_tasks"),
    ("annotations",),
    ("passes", "pricing", "storage"),
    ("comparing", "sums", "timing"),
    ("inputs", "merging"),
    ("media",),
    ("discovery",),
    ("counting",),
    ("tracing",),
    ("editing", "reading", "tainting", "config", "stages", "digests", "programs"),
    (
        "annotated",
        "architectures",
        "running",
        "figures",
        "hub_id",
        "moved",
        "quantities",
        "quoting",
        "reasons",
        "version",
    ),
    ("keeping",),
    ("config_values", "files", "models"),
)


def modules() -> dict[str, Path]:
    """Dotted name inside the package -> file, of all but `__init__` files and what Optimum reads at start-up."""
    found = {file.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): file for file in _files()}
    return dict(sorted(found.items()))


def room_of(module: str) -> str:
    """The folder that a module is in, or the module itself."""
    return module.partition(".")[0]


def package_map() -> str:
    """The map as Markdown."""
    lines = []
    for number, rooms in zip(range(len(FLOORS) - 1, -1, -1), FLOORS, strict=True):
        lines.append(f"\n**Floor {number}**\n")
        for room in rooms:
            folder = PACKAGE / room
            if folder.is_dir():
                lines.append(f"- `{room}/`: {_idea(folder / '__init__.py')}")
                inside = [module for module in modules() if room_of(module) == room]
                lines += [f"  - `{module.rpartition('.')[2]}.py`: {_idea(modules()[module])}" for module in inside]
            else:
                lines.append(f"- `{room}.py`: {_idea(PACKAGE / f'{room}.py')}")
    return "\n".join(lines) + "\n"


def page_with(text: str) -> str:
    """CONTRIBUTING.md with this map in the place of the one there is."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def _files() -> list[Path]:
    files = [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/*.py")]
    return [file for file in files if file.name != "__init__.py"]


def _idea(file: Path) -> str:
    """The first line of a file's docstring, which may go on in the next ones."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


if __name__ == "__main__":
    PAGE.write_text(page_with(package_map()), encoding="utf-8")
