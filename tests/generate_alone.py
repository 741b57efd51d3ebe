"""Run by a test in a process of its own, in which there is no optimum_optin: load models and let them generate.

    python generate_alone.py results.safetensors inputs.safetensors folder...

Inputs are called `folder name.input`, results `folder name`: the token ids of the prompts and of ten tokens more.
"""

import json
import sys
from pathlib import Path

from load_alone import Blocker


def main(results, inputs, *folders):
    sys.meta_path.insert(0, Blocker())

    import transformers as tr
    from safetensors.torch import load_file, save_file

    given, outputs = load_file(inputs), {}
    for folder in map(Path, folders):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (name,) = config["architectures"]
        auto = tr.AutoModelForSpeechSeq2Seq if "Whisper" in name else tr.AutoModelForSeq2SeqLM
        if not config.get("is_encoder_decoder"):
            auto = tr.AutoModelForCausalLM
        model = auto.from_pretrained(folder)
        start = f"{folder.name}."
        batch = {name.removeprefix(start): value for name, value in given.items() if name.startswith(start)}
        outputs[folder.name] = model.generate(**batch, do_sample=False, max_new_tokens=10, min_new_tokens=10)
    save_file({name: value.contiguous() for name, value in outputs.items()}, results)
    assert "optimum_optin" not in sys.modules


if __name__ == "__main__":
    main(*sys.argv[1:])
