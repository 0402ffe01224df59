"""Initial weights from a file: of a whole model, or of a trunk for another head."""

from torch import nn

from normlab.checkpoint import load_tensors
from normlab.config import ConfigError
from normlab.run import weights_path

TRUNK = "backbone."
"""What a segmentation model calls its trunk."""


def head_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that belong to a task, and not to the trunk that tasks share.

    Of a segmentation model, all but the trunk's; of others, those of its last layer that has any.
    """
    names = [name for name, _ in model.named_parameters()]
    if any(name.startswith(TRUNK) for name in names):
        return {name for name in names if not name.startswith(TRUNK)}
    last = names[-1].rpartition(".")[0]
    return {name for name in names if name.rpartition(".")[0] == last}


def load_initial_weights(model: nn.Module, given: str) -> str:
    """Copy into `model`, still built with BatchNorm, what the file of `model.init_from` holds for it.

    A name is looked for as it is, and without the name of the segmentation model's trunk. The head keeps its
    own initial values where the file's has other classes or is missing, and so do running statistics, which a
    norm may not have had. Returns a sentence on what was taken.
    Raises: ConfigError where the file cannot be read, or lacks weights of the trunk, naming the first.
    """
    path = weights_path(given)
    found = load_tensors(path)
    optional = head_parameters(model) | {name for name, _ in model.named_buffers()}
    own, kept = dict(model.state_dict()), []
    for name, tensor in own.items():
        source = found.get(name, found.get(name.removeprefix(TRUNK)))
        if source is not None and source.shape == tensor.shape:
            tensor.copy_(source)
        elif name in optional:
            kept.append(name)
        else:
            there = f"has a {name} {tuple(source.shape)}" if source is not None else f"has no {name}"
            raise ConfigError(
                f"model.init_from={given}: {path.name} {there}, and the model's is {tuple(tensor.shape)}; choose "
                "weights of the same architecture."
            )
    taken = f"{len(own) - len(kept)} of {len(own)} tensors from {path}"
    return taken + (f"; as initialised: {', '.join(kept)}" if kept else "")
