"""Train a small T5 that writes numbers, dates and times in digits, to have a real encoder-decoder to prune.

    python examples/train_tiny_t5.py         # on one thread, about ten minutes

It reads sentences such as `anna meets omar in room two hundred and twelve on the third of may nineteen eighty seven at
a quarter past four` and writes them with digits, `... in room 2 1 2 on 1 9 8 7 - 0 5 - 0 3 at 0 4 : 1 5`. Sentences are
made up: those of each split by a seed of its own, and none of the test split is among those of the others. Three layers
of width 128 in each stack. The figures printed last are of the model reloaded from disk, on the validation split, which
chose nothing.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast, T5Config
from transformers import T5ForConditionalGeneration as T5

from optimum_optin.files.folders import atomic_folder, check_folder

CACHE = Path.home() / ".cache" / "optimum-optin" / "tiny_t5"
SEEDS = {"train": 1, "validation": 2, "test": 3}
WARM_UP = 0.05  # of all steps
UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
)
UNITS = (UNITS + "eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
ORDINALS = (ORDINALS + "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth").split()
MONTHS = "january february march april may june july august september october november december".split()
NAMES = (
    "anna omar lena ivan mei paul rosa kofi sara luca nina hugo aisha jonas clara pedro ines felix yuki tomas".split()
)
PLACES = "paris cairo lima oslo quito delhi rome hanoi lagos seoul vienna lisbon dakar tunis bogota athens".split()
THINGS = "apples books chairs tickets bottles letters stones lamps boxes shirts keys coins plates maps".split()
VERBS = "meets calls pays visits asks helps follows thanks finds sees".split()
OTHERS = "room in on at the of and hundred thousand a quarter half past to for buys bus number from takes old is years"
DIGITS = "0 1 2 3 4 5 6 7 8 9 - :"


def load(folder: Path = CACHE):
    """The model in evaluation mode and its tokenizer, from where this script saved them."""
    if not (Path(folder) / "config.json").is_file():
        raise SystemExit(f"no model in {folder}: python examples/train_tiny_t5.py makes it.")
    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def pairs(split: str, count: int) -> list[dict[str, str]]:
    """Sentences in words and in digits, each once: rows with `source` and `target`."""
    drawn, found = random.Random(SEEDS[split]), {}
    kept_apart = set() if split == "test" else {row["source"] for row in pairs("test", 2000)}
    while len(found) < count:
        source, target = sentence(drawn)
        if source not in kept_apart:
            found[source] = target
    return [{"source": source, "target": target} for source, target in found.items()]


def sentence(drawn: random.Random) -> tuple[str, str]:
    """One sentence, in words and in digits."""
    number = drawn.choice((drawn.randrange(100), drawn.randrange(1000), drawn.randrange(10000)))
    year, month, day = drawn.randrange(1100, 2000), drawn.randrange(12), drawn.randrange(1, 31)
    when = drawn.choice((f"of {MONTHS[month]} {year_in_words(year)}", None))
    date = (f"on the {ordinal(day)} {when}", f"on {year}-{month + 1:02}-{day:02}")
    if when is None:
        date = (f"on the {ordinal(day)} of {MONTHS[month]}", f"on {month + 1:02}-{day:02}")
    hour, quarter = drawn.randrange(1, 13), drawn.randrange(4)
    past = ("", "a quarter past ", "half past ", "a quarter to ")[quarter]
    clock = f"{(hour - (quarter == 3) - 1) % 12 + 1:02}:{15 * quarter:02}"
    time_of_day = (f"at {past}{UNITS[hour]}", f"at {clock}")
    name, other, place = drawn.choice(NAMES), drawn.choice(NAMES), drawn.choice(PLACES)
    begins = drawn.choice(
        (
            (f"{name} {drawn.choice(VERBS)} {other} in room {{}}", number),
            (f"{name} buys {{}} {drawn.choice(THINGS)} for {other}", number),
            (f"{name} takes bus number {{}} from {place} to {drawn.choice(PLACES)}", number % 1000),
            (f"{name} is {{}} years old", number % 100),
        )
    )
    parts = [(begins[0].format(in_words(begins[1])), begins[0].format(begins[1]))]
    parts += drawn.choice(([date], [time_of_day], [date, time_of_day], [time_of_day, date]))
    words, digits = (" ".join(texts) for texts in zip(*parts, strict=True))
    return words, " ".join(" ".join(each) if each[0].isdigit() else each for each in digits.split())


def in_words(number: int) -> str:
    """A number below 10,000."""
    if number < 20:
        return UNITS[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f" {UNITS[number % 10]}" if number % 10 else "")
    base, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % base
    if not rest:
        return f"{UNITS[number // base]} {name}"
    return f"{UNITS[number // base]} {name} {'and ' if rest < 100 else ''}{in_words(rest)}"


def year_in_words(year: int) -> str:
    century, rest = divmod(year, 100)
    return f"{in_words(century)} {'hundred' if not rest else in_words(rest)}"


def ordinal(day: int) -> str:
    if day <= 20:
        return ORDINALS[day - 1]
    return "thirtieth" if day == 30 else f"twenty {ORDINALS[day % 10 - 1]}"


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words and single digits."""
    words = [*UNITS, *TENS, *ORDINALS, *MONTHS, *NAMES, *PLACES, *THINGS, *VERBS, *OTHERS.split(), *DIGITS.split()]
    ids = {token: place for place, token in enumerate(dict.fromkeys(("<pad>", "</s>", "<unk>", *words)))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", ids["</s>"])])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)


def new_model(tokenizer: PreTrainedTokenizerFast) -> T5:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=16,
        d_ff=512,
        num_layers=3,
        num_heads=8,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return T5(config)


def learning_rate(done: float) -> float:
    """A warm-up and half a wave of the cosine, as a share of the highest; `done` is the share of the steps."""
    if done < WARM_UP:
        return done / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def train(model: T5, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, str]], arguments) -> None:
    """Train in place."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), arguments.learning_rate, weight_decay=0.01)
    chosen, started, losses = random.Random(arguments.seed), time.perf_counter(), []
    for step in range(arguments.steps):
        batch = chosen.sample(rows, arguments.batch_size)
        inputs = tokenizer([row["source"] for row in batch], padding=True, return_tensors="pt")
        targets = tokenizer([row["target"] for row in batch], padding=True, return_tensors="pt")
        labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * learning_rate(step / arguments.steps)
        loss = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if step % 100 == 99:
            passed = time.perf_counter() - started
            print(f"step {step + 1}: loss {sum(losses[-100:]) / 100:.3f}, {passed:.0f} s", flush=True)
    model.eval()


@torch.inference_mode()
def written_right(model: T5, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, str]]) -> float:
    """The share of sentences that the model writes right to the last digit, taking the likeliest token each time."""
    right = 0
    for start in range(0, len(rows), 100):
        part = rows[start : start + 100]
        inputs = tokenizer([row["source"] for row in part], padding=True, return_tensors="pt")
        written = model.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False, max_new_tokens=48
        )
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        right += sum(text == row["target"] for text, row in zip(texts, part, strict=True))
    return right / len(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save-dir", type=Path, default=CACHE, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="(default: %(default)s)")
    parser.add_argument("--sentences", type=int, default=20_000, help="of the train split (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=48, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="at its highest (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    save_dir = check_folder(arguments.save_dir)
    torch.manual_seed(arguments.seed)
    tokenizer = new_tokenizer()
    model = new_model(tokenizer)
    print(f"{sum(each.numel() for each in model.parameters()) / 1e6:.2f}M parameters", flush=True)
    train(model, tokenizer, pairs("train", arguments.sentences), arguments)
    with atomic_folder(save_dir) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    model, tokenizer = load(save_dir)
    print(json.dumps({"validation": {"written right": written_right(model, tokenizer, pairs("validation", 500))}}))


if __name__ == "__main__":
    main()
