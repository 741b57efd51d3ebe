"""Texts packed into blocks for models that predict the next token: which tokens, how many, and what is refused."""

import pytest
import torch
from datasets import Dataset
from language_models import language_model
from tiny import tiny_model
from torch.utils.data import DataLoader
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.inputs.batching import calibration_batches

MANY = TEXTS * 20
OPTIONS = {"num_samples": 1000, "batch_size": 8}


def blocks_of(data, *, model=None, processor=None, **options):
    processor = processor or word_tokenizer()
    batches = calibration_batches(data, model or language_model(), processor, **{**OPTIONS, **options})
    assert all(batch["attention_mask"].all() for batch in batches), "blocks need no padding"
    return torch.cat([batch["input_ids"] for batch in batches])


def running(texts):
    return word_tokenizer()("\n\n".join(texts), verbose=False)["input_ids"]


@pytest.mark.filterwarnings("ignore")
def test_blocks_are_the_running_text_in_order_each_part_once():
    blocks = blocks_of([" ".join(MANY)], block_size=16)
    tokens = torch.tensor(running([" ".join(MANY)]))
    expected = tokens.unfold(0, 16, 16)
    assert len(blocks) == len(expected) and {*map(tuple, blocks.tolist())} == {*map(tuple, expected.tolist())}


def test_as_many_blocks_are_drawn_as_samples_were_asked_for():
    rows = Dataset.from_dict({"text": MANY, "label": [0, 1] * (len(MANY) // 2)})
    blocks = blocks_of(rows, block_size=16, num_samples=20)
    assert blocks.shape == (20, 16)
    assert torch.equal(blocks, blocks_of(rows, block_size=16, num_samples=20)), "same seed, same blocks"
    assert not torch.equal(blocks, blocks_of(rows, block_size=16, num_samples=20, seed=1))
    stream = (text for text in MANY)
    assert blocks_of(stream, block_size=16, num_samples=5).shape == (5, 16)


def test_rows_stand_side_by_side_from_a_drawn_one_on():
    texts = [f"the {word} cat" for word in ("red", "blue", "big", "small", "fast", "slow")] * 100
    tokens = running(texts + texts)
    for block in blocks_of(texts, block_size=12, num_samples=4).tolist():
        assert any(tokens[start : start + 12] == block for start in range(len(tokens) - 11)) or block[0] == tokens[0]


def test_no_more_text_is_read_than_a_draw_takes():
    class Counted(list):
        read = 0

        def __getitem__(self, row):
            Counted.read += 1
            return super().__getitem__(row)

    blocks_of(Counted(TEXTS * 1000), block_size=16, num_samples=4)
    assert Counted.read < 200


def test_texts_are_packed_where_it_is_worth_it_and_others_stay_apart():
    blocks = blocks_of(MANY, max_length=16, num_samples=30)
    assert blocks.shape == (30, 16)
    few = calibration_batches(TEXTS[:8], language_model(), word_tokenizer(), num_samples=8, max_length=16)
    assert sum(len(batch["input_ids"]) for batch in few) == 8
    tokenised = [{"input_ids": word_tokenizer()(text)["input_ids"]} for text in MANY]
    apart = calibration_batches(tokenised, language_model(), num_samples=30)
    assert sum(len(batch["input_ids"]) for batch in apart) == 30 and apart[0]["input_ids"].shape[1] < 12


def test_one_long_text_is_packed_and_few_short_ones_are_not():
    blocks = blocks_of([" ".join(TEXTS)], max_length=32, num_samples=100, batch_size=2)
    assert 1 < len(blocks) < 16
    few = calibration_batches([*TEXTS[:4], " ".join(TEXTS[:9])], language_model(), word_tokenizer(), max_length=32)
    assert sum(len(batch["input_ids"]) for batch in few) == 5


def test_tokenised_samples_that_are_too_long_are_cut_with_a_note(caplog):
    rows = [{"input_ids": [5] * 70}, {"input_ids": [6] * 10}]
    (batch,) = calibration_batches(rows, language_model())
    assert batch["input_ids"].shape == (2, 64)
    assert "1 of 2 samples are longer than the model takes, and cut to 64 tokens" in caplog.text


def test_tokenised_samples_are_packed_if_asked_for_without_their_padding():
    rows = [{"input_ids": [7, 8, 9, 0], "attention_mask": [1, 1, 1, 0]} for _ in range(24)]
    blocks = blocks_of(rows, block_size=9, num_samples=8)
    assert blocks.shape == (8, 9) and blocks.flatten().tolist() == [7, 8, 9] * 24


def test_a_tokenizer_without_padding_will_do():
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    assert blocks_of(MANY, processor=tokenizer, block_size=16, num_samples=20).shape == (20, 16)
    few = calibration_batches(TEXTS[:8], language_model(), tokenizer, num_samples=8)
    assert sum(int(batch["attention_mask"].sum()) for batch in few) == sum(len(running([text])) for text in TEXTS[:8])


def test_encoders_keep_their_samples():
    batches = calibration_batches(MANY, tiny_model("bert"), word_tokenizer(), num_samples=30)
    assert sum(len(batch["input_ids"]) for batch in batches) == 30
    with pytest.raises(ValueError, match="block_size=16 packs texts.*BertForSequenceClassification does not"):
        calibration_batches(MANY, tiny_model("bert"), word_tokenizer(), block_size=16)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (MANY, {"block_size": 65}, "block_size=65 is more than the 64 tokens that the model takes"),
        (MANY, {"block_size": 16, "max_length": 8}, "block_size=16 and max_length=8 are the same here"),
        (TEXTS[:1], {"block_size": 32}, "fewer than a block of 32"),
        ([], {"block_size": 32}, "calibration data is empty"),
    ],
)
def test_bad_input(data, options, message):
    with pytest.raises(ValueError, match=message):
        blocks_of(data, **options)


def test_batches_that_are_made_already_cannot_be_packed():
    loader = DataLoader([{"input_ids": torch.arange(5)} for _ in range(4)], batch_size=2)
    with pytest.raises(ValueError, match="block_size=16 does not apply: a DataLoader"):
        calibration_batches(loader, language_model(), block_size=16)
    with pytest.raises(ValueError, match="block_size=16 does not apply: it is for texts"):
        calibration_batches([torch.zeros(3, 16, 16)], tiny_model("vit"), block_size=16)


def test_too_little_text_is_said(caplog):
    with caplog.at_level("WARNING"):
        assert len(blocks_of(MANY, block_size=64, num_samples=100)) < 100
    assert "fewer than num_samples=100" in caplog.text


def test_the_configuration_reaches_the_data():
    pruner = OptinPruner(language_model(), word_tokenizer())
    config = OptinConfig(flops=0.7, probes=4, search="ranked", block_size=12, num_samples=16)
    scores = pruner.score(MANY, config)
    assert scores.tokens == 12 and scores.calibration.samples == 16
    with pytest.raises(ValueError, match="block_size=1 must"):
        OptinConfig(block_size=1)
