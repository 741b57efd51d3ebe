"""One-shot, training-free structured pruning of pre-trained transformers, as a Hugging Face plug-in.

Importing the package lets `AutoModel...from_pretrained` load pruned models.
"""

from . import composites  # noqa: F401  (importing it guards save_pretrained)
from .architectures import Stack, find_groups, heads, known_architectures, neurons, register_architecture
from .config import OptinConfig
from .groups import Group, Producer
from .masking import masked
from .plugin import convert_model
from .pruner import OptinPruner
from .report import PruningPlan, PruningReport
from .scoring import Scores, register_scorer
from .version import __version__

__all__ = [
    "Group",
    "OptinConfig",
    "OptinPruner",
    "Producer",
    "PruningPlan",
    "PruningReport",
    "Scores",
    "Stack",
    "__version__",
    "convert_model",
    "find_groups",
    "heads",
    "known_architectures",
    "masked",
    "neurons",
    "register_architecture",
    "register_scorer",
]
