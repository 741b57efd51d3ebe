"""What was proved of a model, group by group, and why the rest was not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..architectures.group import Group
from ..reasons import alike, reasons_of


@dataclass(frozen=True)
class GroupProof:
    """What was proved of a group.

    Args:
        group: the group.
        least: how few of its units may stay, at least: 0 or 1.
        cut: why it cannot be cut; `None` if it was proved that it can.
        score: why its units cannot be scored, though they may be cut; `None` if they can.
        refit: why it cannot be refitted after a cut; `None` if it was proved that it can.
        effect: whether its layer returns something else for the sample with all of its units masked. A group without
            effect can go: weights or a layer scale of 0 switch it off, or its row names linears that do not matter.
    """

    group: Group
    least: int = 0
    cut: str | None = None
    score: str | None = None
    refit: str | None = None
    effect: bool = True

    @property
    def proved(self) -> bool:
        """Whether it can be cut, scored and refitted."""
        return self.cut is None and self.score is None and self.refit is None

    def to_dict(self) -> dict:
        """All fields, JSON-able, with the number of units."""
        return {
            "units": self.group.units,
            "least": self.least,
            "cut": self.cut,
            "score": self.score,
            "refit": self.refit,
            "effect": self.effect,
        }


@dataclass(frozen=True)
class ArchitectureProof:
    """What `check_architecture` found; prints as text.

    Args:
        model: the model's class.
        model_type: its `config.model_type`; of a plain module, its class again.
        sample: input -> its shape, of the sample that it was run on.
        groups: its groups, proved or not; none where the model could not be run.
        left_whole: what tracing found and is in no group: name -> reason.
        problem: why nothing could be proved of any group; `None` if that was not so.
        reloaded: whether the model, cut to half, was saved and loaded again as it was; `None` if that was not asked.
        reload_problem: why not.
        repeatable: whether two passes agree to the last bit.
        rounding: the largest difference, as a share, between two ways to compute the same, that was accepted.
        largest: the largest that there was between a masked model and a cut one.
        seconds: what it took.
    """

    model: str
    model_type: str
    sample: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    groups: tuple[GroupProof, ...] = ()
    left_whole: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None
    reloaded: bool | None = None
    reload_problem: str | None = None
    repeatable: bool = False
    rounding: float = 0.0
    largest: float = 0.0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """What to call the model in a message, after "this"."""
        return self.model if self.model_type == self.model else f"{self.model_type!r} model ({self.model})"

    @property
    def proved(self) -> bool:
        """Whether every group can be cut, scored and refitted, and, if that was asked, the model saved and loaded."""
        return self.problem is None and self.reloaded is not False and all(each.proved for each in self.groups)

    def check(self, *, refits: bool = True, floors: Mapping[str, int] | None = None) -> None:
        """Raise if the model cannot be pruned.

        Args:
            refits: whether what is left is to be refitted (`compensation`).
            floors: group key -> how many units it is to keep at least; `None` for one in every group.

        Raises:
            ValueError: names the first group that is in the way, the reason, and what to do.
        """
        name = f"this {self.name}"
        if self.problem:
            raise ValueError(f"{name} cannot be pruned: {self.problem}.")
        uncut = [each for each in self.groups if each.score or each.cut]
        if uncut:
            reason = uncut[0].score or uncut[0].cut
            raise ValueError(f"{uncut[0].group.key} of {name} cannot be pruned: {reason}.{_others(uncut)}")
        bare = [each for each in self.groups if each.least > (floors or {}).get(each.group.key, 1)]
        if bare:
            role = bare[0].group.role
            raise ValueError(
                f"{bare[0].group.key} of {name} cannot lose its last unit: set floors={{{role!r}: 1}}, or name the "
                f"module to be replaced then as core= of its row.{_others(bare)}"
            )
        unfit = [each for each in self.groups if each.refit]
        if refits and unfit:
            raise ValueError(
                f"{unfit[0].group.key} of {name} can be cut, but what is left cannot be refitted: {unfit[0].refit}. "
                f"compensation='none' prunes it without.{_others(unfit)}"
            )

    def usable(self, *, refits: bool) -> set[str]:
        """Keys of the groups that can be pruned and, if so configured, refitted."""
        return set() if self.problem else {each.group.key for each in self.groups} - self.reasons(refits=refits).keys()

    def reasons(self, *, refits: bool) -> dict[str, str]:
        """Key of each other group -> why not."""
        found = {each.group.key: each.score or each.cut or (each.refit if refits else None) for each in self.groups}
        return {key: reason for key, reason in found.items() if reason}

    def to_dict(self) -> dict:
        """All fields, JSON-able; groups by their keys."""
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        groups = {each.group.key: each.to_dict() for each in self.groups}
        shapes = {name: list(shape) for name, shape in self.sample.items()}
        left = dict(self.left_whole)
        return {"proved": self.proved, **fields, "sample": shapes, "groups": groups, "left_whole": left}

    def __str__(self) -> str:
        inputs = ", ".join(f"{name} {tuple(shape)}" for name, shape in self.sample.items())
        of_type = "" if self.model_type == self.model else f" ({self.model_type})"
        heading = f"{self.model}{of_type}, run on {inputs} in {self.seconds:.1f} s"
        if self.problem:
            return f"{heading}\nnothing is proved: {self.problem}."
        proved = sum(each.proved for each in self.groups)
        agree = "to the last bit" if self.repeatable else "up to rounding"
        lines = [
            heading,
            f"{proved} of {len(self.groups)} groups are proved: passes agree {agree}, masked and cut models up to "
            f"{self.largest:.0e} (what is taken for rounding: {self.rounding:.0e})",
        ]
        first: dict[str, str] = {}
        for each in self.groups:
            said, key = _said(each), each.group.key
            same = first.setdefault(alike(said), key)
            lines.append(
                f"{key:<20} {each.group.units:>6} units  {said if same == key or each.proved else f'as {same}'}"
            )
        lines += [f"left whole: {reason}" for reason in reasons_of(self.left_whole)]
        if self.reloaded is not None:
            lines.append(f"reloaded: {self.reload_problem or 'cut to half, saved and loaded, it is the same'}")
        return "\n".join(lines)


def _said(proof: GroupProof) -> str:
    if proof.cut:
        return f"cannot be cut: {proof.cut}"
    if proof.score:
        return f"can be cut, but not scored: {proof.score}"
    if proof.refit:
        return f"can be cut, but not refitted (compensation='none'): {proof.refit}"
    last = "" if proof.least == 0 else ", but for its last unit"
    idle = "" if proof.effect else "; masking all of its units changes nothing for this sample"
    return f"proved{last}{idle}"


def _others(proofs: list[GroupProof]) -> str:
    """Where to see the other groups of which the same is to be said."""
    more = len(proofs) - 1
    return f" print(check_architecture(model)) shows it, and {more} more." if more else ""
