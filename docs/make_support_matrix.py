"""Write the table of supported architectures into docs/source/concepts/architectures.mdx, from the registry.

python docs/make_support_matrix.py
"""

import re
from pathlib import Path

from transformers.models.auto import modeling_auto

from optimum_optin.architectures.registry import known_architectures, row_of

PAGE = Path(__file__).parent / "source/concepts/architectures.mdx"
TASKS = {
    "sequence classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "question answering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "masked LM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "image classification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
}
TABLE = re.compile(r"(?<=<!-- table -->\n).*(?=<!-- end of table -->)", flags=re.DOTALL)


def support_matrix():
    """The table in Markdown: a row for every registered model type."""
    rows = [["model type", *TASKS, "heads", "neurons", "merging", "remarks"]]
    rows.append(["---"] * len(rows[0]))
    for model_type in known_architectures():
        stacks = row_of(model_type)
        works = ["yes" if model_type in names else "" for names in TASKS.values()]
        consumers = [", ".join(dict.fromkeys(_consumers(stacks, role))) for role in ("heads", "neurons")]
        merging = "classifiers" if any(stack.keys for stack in stacks) else ""  # which have the images' tower alone
        merging = "yes" if all(stack.keys for stack in stacks) else merging
        rows.append([f"`{model_type}`", *works, *consumers, merging, "; ".join(_remarks(stacks))])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page_with(table):
    """The page's text with this table."""
    return TABLE.sub(lambda _: table, PAGE.read_text(encoding="utf-8"))


def _consumers(stacks, role):
    return [
        f"`{sublayer.linears.consumer}`" for stack in stacks for sublayer in stack.sublayers if sublayer.role == role
    ]


def _remarks(stacks):
    if len(stacks) > 1:
        yield f"stacks {', '.join(f'`{stack.name}`' for stack in stacks)}; a model may lack one"
    for stack in stacks:
        for sublayer in stack.sublayers:
            yield from (
                f"`{each.path}` packs {each.parts} projections" for each in sublayer.linears.producers if each.parts > 1
            )
            if sublayer.residual.windowed:
                yield "windows"
            if sublayer.linears.tables:
                names = " and ".join(f"`{name}`" for name in sublayer.linears.tables)
                yield f"{names} {'are' if len(sublayer.linears.tables) > 1 else 'is'} sliced with the heads"
            if sublayer.linears.shared_bias:
                owner, _, argument = sublayer.linears.shared_bias.rpartition(".")
                of = f" of `{owner}`" if owner else ""
                yield f"where layers share a bias, a hook in each picks its heads from `{argument}`{of}"
            if sublayer.otherwise:
                yield f"gated or plain {sublayer.role}"


if __name__ == "__main__":
    PAGE.write_text(page_with(support_matrix()), encoding="utf-8")
