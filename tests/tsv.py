"""GLUE folders in miniature, written by the tests in the layouts of the real ones."""

from words import TEXTS


def write_sst2(folder, count=24):
    """`SST-2/dev.tsv`: first line with names, label last."""
    rows = [f"{text}\t{index % 2}" for index, text in enumerate(TEXTS[:count])]
    return write_tsv(folder / "SST-2" / "dev.tsv", ["sentence\tlabel", *rows])


def write_tsv(file, lines):
    """Lines as they are; returns the folder that the task's folder is in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    return file.parent.parent
