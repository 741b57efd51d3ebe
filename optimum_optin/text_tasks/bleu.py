"""BLEU (Papineni et al. 2002) and chrF (Popovic 2015) of a corpus, by sacrebleu, with standard errors over samples."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from ..annotations.jackknife import jackknife

NAMES = ("bleu", "chrf")


def check_installed(tokenize: str | None = None) -> None:
    """Raise if sacrebleu is missing, or does not split words in this way.

    Args:
        tokenize: see `bleu_and_chrf`.

    Raises:
        ImportError: says how to install it.
        ValueError: no such way to split words.
    """
    if importlib.util.find_spec("sacrebleu") is None:
        raise ImportError("BLEU and chrF need sacrebleu: pip install sacrebleu.")
    from sacrebleu.metrics import BLEU

    if tokenize is not None and tokenize not in BLEU.TOKENIZERS:
        raise ValueError(f"tokenize={tokenize!r} must be one of sacrebleu's: {', '.join(BLEU.TOKENIZERS)}.")
    BLEU(tokenize=tokenize)  # which says what some of them need besides


def bleu_and_chrf(
    texts: Sequence[str], references: Sequence[str], tokenize: str | None = None
) -> tuple[dict[str, tuple[float, float | None]], str]:
    """BLEU and chrF2 of all texts together, as shares.

    Standard errors are those of a jackknife over 20 groups of samples (of fewer samples, each by itself).

    Args:
        texts: what was written.
        references: what was to be written for each.
        tokenize: how BLEU splits words, by sacrebleu's name for it (`zh`, `char`, `ja-mecab`, ...); `None` takes `13a`.

    Returns:
        Metric -> value and standard error, `None` with a single sample; and sacrebleu's signature of BLEU.
    """
    check_installed(tokenize)
    from sacrebleu.metrics import BLEU, CHRF

    bleu = BLEU(tokenize=tokenize, force=True)  # it would warn of full stops that stand alone, 21 times
    counted = dict(zip(NAMES, (bleu, CHRF()), strict=True))

    def measured(places: Sequence[int]) -> dict[str, float]:
        said, wanted = ([side[place] for place in places] for side in (texts, references))
        return {name: metric.corpus_score(said, [wanted]).score / 100 for name, metric in counted.items()}

    values, errors = measured(range(len(texts))), jackknife(len(texts), measured)
    return {name: (value, errors.get(name)) for name, value in values.items()}, str(bleu.get_signature())
