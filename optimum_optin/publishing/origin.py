"""The origin of a dense model: where it came from, and which files there go along with the pruned one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from ..figures import HubModel
from ..hub_id import hub_commit
from ..models.identity import name_of
from .companions import Companions, copy_companions, find_companions

logger = logging.get_logger(__name__)


class Origin:
    """The folder or repository of a dense model.

    Args:
        model: the dense model.
        place: the folder or repository that it was loaded from; `None` takes what its config names.
        commit: the repository's commit, if it is known.
        processor_given: whether the user gave the processor; then processor files beside the model may not fit it.

    Attributes:
        name: the name that the model was loaded by; empty if it was made in memory.
        commit: see above.
    """

    def __init__(
        self, model: PreTrainedModel, place: str | None = None, commit: str | None = None, *, processor_given: bool
    ):
        self.name = name_of(model)
        self.commit = commit
        self._processor_given = processor_given
        place = self.name if place is None else place
        # A relative path holds until the working directory changes.
        self._place = str(Path(place).resolve()) if place and Path(place).is_dir() else place
        self._companions: Companions | None = None

    def base(self) -> HubModel | None:
        """The dense model on the Hub; `None` if it came from elsewhere."""
        # A model object may be from any commit: the cache only shows that it came from the Hub.
        known = self.name and (self.commit or hub_commit(self.name))
        return HubModel(self.name, self.commit) if known else None

    def companions(self, **options: Any) -> Companions:
        """The dense model's companions, looked for once; `options` go to `find_companions`."""
        if self._companions is None:
            try:
                self._companions = find_companions(self._place, **options) if self._place else Companions({})
            except Exception as error:  # never a reason not to prune
                logger.warning(
                    "what stands beside the dense model's weights, such as modules of sentence-transformers or a "
                    f"licence, is not saved with the pruned one: {error}."
                )
                self._companions = Companions({})
        return self._companions

    def copy_companions(self, draft: Path, target: Path, processor: Any) -> None:
        """Copy the dense model's companions into a draft, and warn of other files that do not go along.

        Args:
            draft: the folder that the model was saved to.
            target: the folder that it will be moved to.
            processor: the processor that is saved with it.
        """
        tokenizer = getattr(processor, "tokenizer", processor)
        own = not self._processor_given or getattr(tokenizer, "name_or_path", None) == self.name
        companions = self.companions()
        copy_companions(companions, draft, target, processor_files=own)
        source = Path(self._place).resolve()
        left = [name for name in companions.left if not (target / name).exists() and source / name != target]
        if left:
            names = ", ".join(left[:20]) + (f" and {len(left) - 20} others" if len(left) > 20 else "")
            logger.warning(f"{names} beside the dense model in {self._place} are not saved along.")
