"""Which activation follows each norm of a model, and how to take it out.

Some norms are also activations. If a model computes `relu(norm(x))`, the conversion has to remove the relu, which
torch.fx finds by tracing the model. An activation that is a module of its own becomes Identity. If it is a call
in a module's forward, or a module that is used in several places (torchvision's ResNet blocks use one ReLU after a
norm and after the sum), it is removed from that forward: the module gets a subclass of its own class, whose
forward is the trace without these calls.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from normlab.config import ConfigError
from normlab.norms.replace import fused_activation, layer_label, replace_layers

_ACTIVATIONS = {
    "relu", "relu6", "leakyrelu", "prelu", "elu", "gelu", "silu", "swish", "mish", "hardswish", "hardmish",
}  # fmt: skip
"""Names of modules, functions and methods, in lower case, without underscores and without timm's suffix `me`."""


@dataclass
class Activations:
    """What follows the norms of one model."""

    of_norm: dict[str, str | None]
    """Name of each norm layer -> its activation, as reports call it; None if none follows."""

    modules: list[nn.Module] = field(default_factory=list)
    """Activations that follow only norms."""

    rewritten: dict[nn.Module, type[nn.Module]] = field(default_factory=dict)
    """Module -> a subclass of its class whose forward omits the calls of activations after norms."""

    def remove(self, model: nn.Module) -> None:
        """Remove the activations that follow norms from `model`."""
        replace_layers(model, {module: nn.Identity() for module in self.modules})
        for module, without in self.rewritten.items():
            module.__class__ = without


def find_activations(model: nn.Module, layers: Mapping[str, nn.Module]) -> Activations:
    """The activation after each of `layers`, found without running the model, which is left unchanged.

    Raises: ConfigError naming the layer if it cannot be determined: the model cannot be traced, a layer is not
    reached, its output also goes elsewhere, or its calls differ.
    """
    found = Activations({name: _label(fused_activation(layer)) for name, layer in layers.items()})
    outside = {name: layer for name, layer in layers.items() if not found.of_norm[name]}
    if model in layers.values() or not outside:
        return found
    calls = _trace(model, set(layers.values()))
    doomed = set()
    for name, layer in outside.items():
        followers = [_follower(call, name, layer) for call in calls if call.module is layer]
        labels = {_label(follower.target) if follower else None for follower in followers}
        if len(labels) != 1:
            problem = "is not reached by the model's forward" if not labels else "is followed by different things"
            raise _cannot(name, layer, problem)
        found.of_norm[name] = labels.pop()
        doomed |= {follower for follower in followers if follower is not None}
    shared = [call for call in calls if call in doomed and not _only(call, calls, doomed)]
    found.modules = list(dict.fromkeys(c.module for c in calls if c in doomed and c not in shared and c.module))
    for owner in dict.fromkeys(call.owner for call in shared):
        found.rewritten[owner] = _without_calls(owner, [c for c in calls if c.owner is owner], set(shared))
    return found


# --- the dataflow ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Call:
    """A call in a model's forward."""

    owner: nn.Module
    """The module whose forward makes the call."""

    target: Any
    """The module, function or method name that is called; None for a node that is not a call."""

    users: list["_Call"] = field(default_factory=list)

    @property
    def module(self) -> nn.Module | None:
        return self.target if isinstance(self.target, nn.Module) else None


class _OneForward(fx.Tracer):
    """Traces one forward. It enters no module but slices of a Sequential, which the model does not own."""

    def stands(self, m: nn.Module) -> bool:
        return m in self.submodule_paths if self.submodule_paths else True

    def path_of_module(self, mod: nn.Module) -> str:
        return super().path_of_module(mod) if self.stands(mod) else ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.stands(m)


class _WholeModel(_OneForward):
    """Enters containers and modules with a norm to be converted; records which module makes each call."""

    def __init__(self, norms: set[nn.Module]) -> None:
        super().__init__()
        self.norms, self.owners, self.owner_of = norms, list[nn.Module](), dict[fx.Node, nn.Module]()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m in self.norms or _label(m):
            return True
        return type(m) is not nn.Sequential and self.norms.isdisjoint(m.modules())

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.is_leaf_module(m, "") or not self.stands(m):
            return super().call_module(m, forward, args, kwargs)
        self.owners.append(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.owners.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.owner_of[node] = self.owners[-1] if self.owners else self.root
        return node


def _traced(tracer: fx.Tracer, module: nn.Module) -> fx.Graph:
    """The forward of `module` as a graph; optional arguments take their defaults.

    Raises: ConfigError if torch.fx cannot trace it.
    """
    parameters = inspect.signature(module.forward).parameters
    defaults = {k: p.default for k, p in parameters.items() if p.default is not p.empty}
    try:
        return tracer.trace(module, concrete_args=defaults)
    except Exception as error:  # a forward may fail in any way when it is given proxies instead of tensors
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"{type(module).__name__} cannot be traced by torch.fx ({reason}), so which activation follows "
            "each norm is not known; choose a norm that replaces no activation, or another model."
        ) from None


def _trace(model: nn.Module, norms: set[nn.Module]) -> list[_Call]:
    """All calls, in order."""
    tracer = _WholeModel(norms)
    graph = _traced(tracer, model)
    calls = {node: _Call(tracer.owner_of[node], _target(node, model)) for node in graph.nodes}
    for node, call in calls.items():
        call.users = [calls[user] for user in node.users]
    return list(calls.values())


def _target(node: fx.Node, root: nn.Module) -> Any:
    if node.op == "call_module":
        return root.get_submodule(str(node.target))
    return node.target if node.op in ("call_function", "call_method") else None


def _label(target: Any) -> str | None:
    """The name of an activation in reports; None for anything else."""
    if isinstance(target, str):
        name = target
    else:
        name = type(target).__name__ if isinstance(target, nn.Module) else getattr(target, "__name__", "")
    plain = name.lower().replace("_", "")
    return name if plain in _ACTIVATIONS or plain.removesuffix("me") in _ACTIVATIONS else None


def _follower(call: _Call, name: str, layer: nn.Module) -> _Call | None:
    """The activation that takes a norm's output; None if there is none.

    Raises: ConfigError if the output also goes elsewhere.
    """
    users = list(_users(call))
    activations = [user for user in users if _label(user.target)]
    if activations and len(users) > 1:
        raise _cannot(name, layer, "gives its output to an activation and to something else as well")
    return activations[0] if activations else None


def _users(call: _Call) -> Iterator[_Call]:
    """The calls that use a call's value, directly or through Identity."""
    for user in call.users:
        if isinstance(user.target, nn.Identity):
            yield from _users(user)
        else:
            yield user


def _only(call: _Call, calls: list[_Call], doomed: set[_Call]) -> bool:
    """Whether the call is to a module all of whose calls are to be removed."""
    return call.module is not None and all(c in doomed for c in calls if c.module is call.module)


def _cannot(name: str, layer: nn.Module, problem: str) -> ConfigError:
    return ConfigError(
        f"layer {layer_label(name, layer)} {problem}, so its activation cannot be replaced; choose a norm that "
        "replaces no activation, or another model."
    )


# --- a forward without some of its calls ----------------------------------------------------------------


def _without_calls(owner: nn.Module, calls: list[_Call], doomed: set[_Call]) -> type[nn.Module]:
    """A subclass of the class of `owner` whose forward makes all `calls` except the `doomed` ones.

    Raises: ConfigError if the forward depends on the training flag, or if it runs several times and the `doomed`
    calls differ between them.
    """
    was_training, graphs = owner.training, []
    try:
        for training in (False, True):
            owner.training = training
            graphs.append(_traced(_OneForward(), owner))
    finally:
        owner.training = was_training
    graph = graphs[-1]
    nodes = [node for node in graph.nodes if _label(_target(node, owner))]
    marks = [call in doomed for call in calls if _label(call.target)]
    each = max(1, len(nodes))  # 0 if only the other mode's forward has activations
    runs = [marks[i : i + each] for i in range(0, len(marks), each)]
    kind = type(owner)
    if str(graphs[0]) != str(graph) or any(run != runs[0] or len(run) != len(nodes) for run in runs):
        raise ConfigError(
            f"the forward of {kind.__name__} uses its activations differently from time to time, so those "
            "after norms cannot be replaced; choose a norm that replaces no activation, or another model."
        )
    for node, remove in zip(nodes, runs[0], strict=True):
        if remove:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    forward = type(fx.GraphModule(owner, graph)).forward
    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
