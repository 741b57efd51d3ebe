"""One-shot, training-free structured pruning of pre-trained transformers, as a Hugging Face plug-in.

Importing the package lets `AutoModel...from_pretrained` load pruned models.
"""

from . import moved  # noqa: F401  (earlier import paths)
from .architectures.group import Group, Producer
from .architectures.registry import known_architectures, register_architecture
from .architectures.stacks import Stack, heads, neurons
from .config import OptinConfig
from .discovery.find import find_groups
from .editing.masking import masked
from .exporting import Export, export_model
from .files.folders import NotSavedError
from .plain_modules.loading import load_pruned
from .proving import ArchitectureProof, GroupProof, check_architecture
from .pruner import OptinPruner
from .report import PruningPlan, PruningReport
from .scoring import Scores, register_scorer
from .stages.progress import StoppedError
from .storage import composites  # noqa: F401  (importing it guards save_pretrained)
from .storage.record import convert_model
from .version import __version__

__all__ = [
    "ArchitectureProof",
    "Export",
    "Group",
    "GroupProof",
    "NotSavedError",
    "OptinConfig",
    "OptinPruner",
    "Producer",
    "PruningPlan",
    "PruningReport",
    "Scores",
    "Stack",
    "StoppedError",
    "__version__",
    "check_architecture",
    "convert_model",
    "export_model",
    "find_groups",
    "heads",
    "known_architectures",
    "load_pruned",
    "masked",
    "neurons",
    "register_architecture",
    "register_scorer",
]
