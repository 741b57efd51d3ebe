"""A mixture of experts: how far its outputs diverge if neurons of experts go, for several ways to choose them.

    python examples/benchmarks/experts.py --data path/to/wikitext2                   # trains first, some minutes
    python examples/benchmarks/experts.py --data ... --budgets 0.8 0.6 --methods surgeon random --seeds 0 1 2

The model is a Mixtral of 3 layers, 96 channels and 8 experts of 128 neurons, of which each token takes two. It is
trained on the first nine tenths of the bytes of valid.txt and kept in `--folder`. It is calibrated on 64 blocks of 128
bytes of valid.txt, drawn by the seed, and compared on 64 blocks of test.txt: the KL divergence from the dense model's
outputs, and the cross entropy in nats for each byte. Heads stay. Every method keeps equally many neurons of each expert
of a layer.

- surgeon: our scores.
- by_index: our scores, summed over the experts: neurons of one index go in all experts.
- wanda: sum of |w| times the norm of what neurons are, times the router's weights (Sun et al. 2023, by neuron).
- magnitude: squared norm of a neuron's weights.
- random.
"""

import argparse
import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.utils import logging

from optimum_optin import OptinConfig, OptinPruner, register_scorer
from optimum_optin.passes.hooks import observed
from optimum_optin.running.experts import routed, weight_of_expert
from optimum_optin.running.forward import call_model
from optimum_optin.scoring.surgeon import score_surgeon

BLOCK, BLOCKS, BATCH = 128, 64, 8
METHODS = ("surgeon", "by_index", "wanda", "magnitude", "random")


def experts_of(model, groups):
    """Key and module of each group of experts."""
    return [(each.key, model.get_submodule(each.consumer)) for each in groups if each.role == "expert_neurons"]


def whole(groups):
    """Scores for what is in no expert, which is not cut."""
    return {each.key: torch.ones(each.units, dtype=torch.float64) for each in groups if each.role != "expert_neurons"}


@register_scorer("random")
def score_random(model, groups, calibration, config):
    drawn = torch.Generator().manual_seed(config.seed)
    return {"output": {each.key: torch.rand(each.units, generator=drawn, dtype=torch.float64) for each in groups}}


@register_scorer("magnitude")
def score_magnitude(model, groups, calibration, config):
    found = whole(groups)
    for key, module in experts_of(model, groups):
        written = module.gate_up_proj.square().sum(2).unflatten(1, (2, -1)).sum(1)  # (experts, neurons)
        found[key] = (written + module.down_proj.square().sum(1)).flatten().double()
    return {"output": found}


@register_scorer("wanda")
@torch.no_grad()
def score_wanda(model, groups, calibration, config):
    found, experts = whole(groups), experts_of(model, groups)
    squares = {key: [0] * module.num_experts for key, module in experts}
    paths = {each.key: each.consumer for each in groups}
    for batch in calibration.batches:
        with observed(model, [paths[key] for key, _ in experts]) as seen:
            call_model(model, batch)
        for key, module in experts:
            read = (seen[paths[key]].input, *seen[paths[key]].others)
            for expert in range(module.num_experts):
                squares[key][expert] += routed(module, read, expert).inputs.square().sum(0)
    for key, module in experts:
        columns = [weight_of_expert(module, expert).abs().sum(0) for expert in range(module.num_experts)]
        norms = [torch.as_tensor(each).sqrt() for each in squares[key]]
        found[key] = torch.cat([column * norm for column, norm in zip(columns, norms, strict=True)]).double()
    return {"output": found}


@register_scorer("by_index")
def score_by_index(model, groups, calibration, config):
    scored = score_surgeon(model, groups, calibration, config)
    parts = {each.key: each.parts for each in groups if each.role == "expert_neurons"}
    for by_group in scored.terms.values():
        for key, count in parts.items():
            by_group[key] = by_group[key].view(count, -1).sum(0).repeat(count)
    return scored


def blocks(path, seed):
    """Drawn blocks of a file's bytes, shape (blocks, bytes)."""
    data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).long()
    starts = torch.randint(len(data) - BLOCK, (BLOCKS,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([data[start : start + BLOCK] for start in starts])


def trained(path, folder, steps):
    """The model, from its folder or trained on most of the bytes of a file."""
    if (folder / "config.json").exists():
        return MixtralForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(0)
    shape = {"hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 256}
    config = MixtralConfig(
        **shape,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        output_router_logits=True,
        router_aux_loss_coef=0.01,
    )
    model = MixtralForCausalLM(config).train()
    data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).long()
    last = int(0.9 * len(data)) - BLOCK
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        ids = torch.stack([data[start : start + BLOCK] for start in torch.randint(0, last, (16,))])
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.config.output_router_logits = False
    model.save_pretrained(folder)
    return model.eval()


@torch.no_grad()
def compared(model, ids, dense):
    """KL from the dense model's log-probabilities, cross entropy, and the model's own log-probabilities."""
    found = F.log_softmax(model(input_ids=ids).logits.float(), -1)
    divergence = 0.0 if dense is None else float((dense.exp() * (dense - found)).sum(-1).mean())
    return divergence, float(F.nll_loss(found[:, :-1].flatten(0, 1), ids[:, 1:].flatten())), found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with valid.txt and test.txt")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache/optimum-optin/tiny-mixtral")
    parser.add_argument("--steps", type=int, default=1200, help="of training")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.8, 0.6])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    model, test = trained(arguments.data / "valid.txt", arguments.folder, arguments.steps), arguments.data / "test.txt"
    ids = blocks(test, 99)
    _, entropy, dense = compared(model, ids, None)
    print(f"dense: cross entropy {entropy:.4f}")
    for budget in arguments.budgets:
        for method in arguments.methods:
            for refit in ("none", "ridge"):
                rows = []
                for seed in arguments.seeds:
                    samples = [{"input_ids": each.tolist()} for each in blocks(arguments.data / "valid.txt", seed)]
                    options = {"scorer": method, "compensation": refit, "search": "ranked", "seed": seed}
                    config = OptinConfig(flops=budget, batch_size=BATCH, include=["expert_neurons"], **options)
                    rows.append(compared(OptinPruner(copy.deepcopy(model)).prune(samples, config), ids, dense)[:2])
                (divergence, entropy), spread = torch.tensor(rows).mean(0).tolist(), torch.tensor(rows)[:, 0].std()
                print(
                    f"flops {budget} {method:10} refit {refit:6} KL {divergence:.4f} +- {spread:.4f}, "
                    f"cross entropy {entropy:.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
