"""Prune an encoder of sentences; correlation with human judgements of similarity before and after.

    python examples/prune_sentence_embeddings.py
    python examples/prune_sentence_embeddings.py my-model --data my-rows.csv --flops 0.5

Rows have `sentence1`, `sentence2` and `score`. Tokens are pooled by their mean, as most of sentence-transformers'
models do.
"""

import torch
from before_and_after import batches, prune_and_measure, read_arguments
from scipy.stats import spearmanr


def sentences(rows, tokenizer):
    """What to calibrate on."""
    return [*rows["sentence1"], *rows["sentence2"]]


def spearman(model, tokenizer, rows):
    """Rank correlation of cosine similarity with the scores."""
    similarity = []
    for batch in batches(rows):
        first, second = (embed(model, tokenizer, batch[name]) for name in ("sentence1", "sentence2"))
        similarity += torch.cosine_similarity(first, second).tolist()
    return spearmanr(similarity, [float(score) for score in rows["score"]]).statistic


def embed(model, tokenizer, texts):
    """Mean of the tokens' last hidden states, shape (texts, channels)."""
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(model.device)
    mask = inputs["attention_mask"][..., None]
    return (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)


if __name__ == "__main__":
    arguments = read_arguments(
        __doc__, model="sentence-transformers/all-MiniLM-L6-v2", data="sentence-transformers/stsb"
    )
    prune_and_measure(arguments, "feature-extraction", sentences, spearman)
