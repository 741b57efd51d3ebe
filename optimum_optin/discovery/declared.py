"""A model's layers and groups as its row in the table of architectures says."""

from __future__ import annotations

from torch import nn

from ..architectures.group import Blocks, Consumer, Cut, Group, Groups, Producer, Skip, attribute
from ..architectures.registry import known_architectures, row_of
from ..architectures.stacks import Linears, Stack, Sublayer
from ..models.identity import in_words, type_of


def declared_inputs(model: nn.Module) -> dict[str, str]:
    """The model's stacks in order of execution: name -> the model input that the stack's tokens are made of."""
    return {stack.name: stack.reads or model.main_input_name for stack in stacks_of(model)}


def declared_layers(model: nn.Module) -> dict[str, str]:
    """The model's layers in order of execution: name (`"layers.0"`) -> module path."""
    layers = {}
    for stack in stacks_of(model):
        path = _base_prefix(model) + stack.layers
        before, staged, after = path.partition(".*")
        try:
            stages = range(len(model.get_submodule(before))) if staged else [0]
            lists = [f"{before}.{stage}{after}" if staged else path for stage in stages]
            paths = [[f"{each}.{index}" for index in range(len(model.get_submodule(each)))] for each in lists]
        except AttributeError as error:
            raise ValueError(f"this {model.config.model_type!r} model has no layers at {path}: {error}.") from error
        count = 0
        for stage, found in zip(stages, paths, strict=True):
            layers |= {f"{stack.name}.{count + index}": layer for index, layer in enumerate(found)}
            count += len(found)
            end = stack.between and _base_prefix(model) + stack.between.replace("*", str(stage))
            if end and _holds(model, end):
                layers[f"{stack.name}.between.{stage}"] = end
    return layers


def declared_groups(model: nn.Module) -> Groups:
    """All groups of removable units, in order of execution, with the model's layers.

    A sublayer that was pruned away entirely has no units left and is not listed.

    Raises:
        ValueError: the model type is not registered, or the model is not built as its row says.
    """
    stacks = {stack.name: stack for stack in stacks_of(model)}
    layers = declared_layers(model)
    groups = []
    for layer, path in layers.items():
        stack = stacks.get(layer.rpartition(".")[0])
        for sublayer in stack.sublayers if stack else ():  # the layer that ends a stage has no units
            groups.append(_group(model, layer, path, stack, sublayer))
    return Groups(tuple(group for group in groups if group is not None), layers, declared_inputs(model))


def key_projections(model: nn.Module) -> dict[str, str]:
    """Layer -> path of the linear that makes its keys, gone or not; see `Stack.keys`.

    Raises:
        ValueError: see `key_projection`.
    """
    keys = key_projection(model)
    return {layer: f"{path}.{keys}" for layer, path in declared_layers(model).items()}


def key_projection(model: nn.Module) -> str:
    """Path, from a layer, of the linear that makes its keys, whether it is still there or not; see `Stack.keys`.

    Raises:
        ValueError: tokens of this architecture cannot be merged.
    """
    known = type_of(model) in known_architectures()
    stacks = stacks_of(model) if known else ()
    if len(stacks) != 1 or stacks[0].keys is None:
        rows = {name: row_of(name) for name in known_architectures()}
        able = [name for name, row in rows.items() if all(stack.keys for stack in row)]
        partly = [name for name, row in rows.items() if any(stack.keys for stack in row)]
        able += [f"{name} (its classifiers of images)" for name in partly if name not in able]
        raise ValueError(
            f"tokens of this {in_words(model)} cannot be merged; those of {', '.join(able)} can, and those of models "
            "of images around one of these as a backbone. The others are no models of images alone, attention in them "
            "depends on where a token is (windows, relative or rotary positions), or their layers take no bias or are "
            "given other tokens on the way: set merging='none'."
        )
    return stacks[0].keys


def _group(model: nn.Module, layer: str, path: str, stack: Stack, sublayer: Sublayer) -> Group | None:
    linears = sublayer.linears
    paths = [f"{path}.{each}" for each in (linears.consumer, *(producer.path for producer in linears.producers))]
    if sublayer.otherwise and not all(_holds(model, each) for each in paths):
        return _group(model, layer, path, stack, sublayer.otherwise)
    try:
        consumer = model.get_submodule(paths[0])
        if consumer.in_features == 0:
            return None
        width = sublayer.width if isinstance(sublayer.width, int) else attribute(model, f"{path}.{sublayer.width}")
        for producer, place in zip(linears.producers, paths[1:], strict=True):
            _check_producer(model.get_submodule(place), place, producer.parts, consumer)
        if not isinstance(width, int) or width < 1 or consumer.in_features % width:
            raise AttributeError(f"{consumer.in_features} inputs of {paths[0]} are no multiple of {width!r}")
    except AttributeError as error:
        raise ValueError(
            f"{layer} of this {model.config.model_type!r} model is not built as its architecture row says: {error}."
        ) from error
    cut = _cut(model, path, linears, width)
    units = consumer.in_features // width
    return Group(layer, sublayer.role, units, width, cut, sublayer.residual, sublayer.config_fields)


def _cut(model: nn.Module, path: str, linears: Linears, width: int) -> Cut:
    """What is sliced in the layer at a path."""
    producers = tuple(Producer(f"{path}.{each.path}", each.parts) for each in linears.producers)
    tables = {f"{path}.{name}": dim for name, dim in linears.tables.items()}
    tables = {name: dim for name, dim in tables.items() if _holds(model, name)}
    writes = [
        Blocks(f"{producer.path}.{name}", 0, (width,) * producer.parts)
        for producer in producers
        for name in ("weight", "bias")
        if getattr(model.get_submodule(producer.path), name) is not None
    ]
    core = linears.core and f"{path}.{linears.core}"
    apart = [name.rpartition(".")[0] for name in tables if core and not name.startswith(f"{core}.")]
    consumer = f"{path}.{linears.consumer}"
    reader = consumer if core and consumer.startswith(f"{core}.") else None
    return Cut(
        (Consumer(consumer, width),),
        producers,
        (*writes, *(Blocks(name, dim, (1,)) for name, dim in tables.items())),
        (Blocks(f"{consumer}.weight", 1, (width,)),),
        {f"{path}.{name}": _PER_UNIT[kind](width) for name, kind in linears.counters.items()},
        (Skip(core, returns=2, reader=reader),) if core else (),
        linears.shared_bias and f"{path}.{linears.shared_bias}",
        tuple(apart),
    )


_PER_UNIT = {"units": lambda width: 1, "features": lambda width: width}  # what a counter counts


def _holds(module: nn.Module, path: str) -> bool:
    """Whether there is a module or a parameter at a path."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module is not None


def _check_producer(module: nn.Module, path: str, parts: int, consumer: nn.Module) -> None:
    if module.out_features != parts * consumer.in_features:
        raise AttributeError(
            f"{path} writes {module.out_features} features for a consumer of {parts} x {consumer.in_features}"
        )


def stacks_of(model: nn.Module) -> tuple[Stack, ...]:
    """The stacks of a registered model's row; of a classifier made of one tower of a dual model, that one."""
    stacks = row_of(type_of(model))
    there = [stack for stack in stacks if _holds(model, _base_prefix(model) + stack.layers.partition(".*")[0])]
    return tuple(there) or stacks


def _base_prefix(model: nn.Module) -> str:
    if getattr(model, "base_model", model) is not model:
        return f"{model.base_model_prefix}."
    starts = [stack.layers.partition(".*")[0] for stack in row_of(model.config.model_type)]
    if any(_holds(model, start) for start in starts):
        return ""
    # A class of the user's own may call its base model anything.
    inside = [path for path, module in model.named_modules() if any(_holds(module, start) for start in starts)]
    return f"{inside[0]}." if len(inside) == 1 else ""
