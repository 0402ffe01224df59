"""The properties of a norm: each is a function that returns in which sense it holds, or raises."""

import copy
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call

from normlab.check.layers import INPUT_GRADIENT, OUTPUT, Subject, apart, new_layer, step, united, worst
from normlab.config import ConfigError
from normlab.config.norm import CustomNormConfig
from normlab.targets import named, said_in

EXACT = 1e-9
"""How far apart two float64 results may be that differ only in the order of their sums."""

BF16 = 2e-2
"""How far a result in bfloat16, with 8 bits, may be from the exact one."""

WORLD_SIZES = (2, 4)


class Broken(Exception):
    """The property does not hold; the message has the number and what to do."""


class NotForThis(Exception):
    """The norm does not claim the property."""


@dataclass(frozen=True)
class Verdict:
    name: str
    holds: bool | None
    """None: the norm does not claim the property."""

    said: str


def verdicts(subject: Subject) -> Iterator[Verdict]:
    """One verdict per property, in order; only the first if that does not hold, since all others need it."""
    for name, look in PROPERTIES.items():
        try:
            verdict = Verdict(name, True, look(subject))
        except NotForThis as reason:
            verdict = Verdict(name, None, str(reason))
        except Broken as broken:
            verdict = Verdict(name, False, str(broken))
        except ConfigError:
            raise
        except Exception as error:
            verdict = Verdict(name, False, _said(error))
        yield verdict
        if look is shape_and_dtype and not verdict.holds:
            return


def _said(error: Exception) -> str:
    """The error in one line; if ranks failed, the last line of the first one's traceback."""
    if isinstance(error, RuntimeError) and str(error).startswith("rank "):
        return str(error).split("\nrank ")[0].strip().splitlines()[-1]
    return said_in(error)


def shape_and_dtype(subject: Subject) -> str:
    for dtype in (torch.float32, torch.float64):
        for training in (True, False):
            x = subject.batch()[0].to(dtype)
            y = subject.layer(training=training).to(dtype)(x)
            if not isinstance(y, Tensor) or (y.shape, y.dtype) != (x.shape, x.dtype):
                raise Broken(f"for {named(x)} the output is {named(y)}; keep the input's shape and dtype")
    return f"{tuple(x.shape)} of float32 and float64 -> the same"


def gradients(subject: Subject) -> str:
    """Compare gradients with finite differences of the output, for the input and every parameter."""
    for training in (True, False):
        layer = subject.layer(training=training)
        parameters = {n: p.detach().requires_grad_() for n, p in layer.named_parameters() if p.requires_grad}
        output = _as_function(layer, list(parameters))
        values = [subject.batch()[0].requires_grad_(), *parameters.values()]
        try:
            torch.autograd.gradcheck(output, values, fast_mode=True)
        except GradcheckError as error:
            found = re.search(r"with respect to input (\d+)", str(error))
            place = int(found[1]) if found else 0
            mode, of = "training" if training else "evaluation", ["the input", *parameters][place]
            raise Broken(
                f"in {mode}, the gradient of {of} is {_off_differences(output, values, place):.1e} off the finite "
                "difference; mend the backward, unless a gradient is stopped on purpose"
            ) from None
    return "those of the input and of all parameters are the finite differences, in training and evaluation"


def _as_function(layer: nn.Module, parameters: Sequence[str]) -> Callable[..., Tensor]:
    """The layer's output as a function of its input and parameters, from the same state each time."""

    def output(x: Tensor, *values: Tensor) -> Tensor:
        y: Tensor = functional_call(copy.deepcopy(layer), dict(zip(parameters, values, strict=True)), (x,))
        return y

    return output


def _off_differences(output: Callable[..., Tensor], values: Sequence[Tensor], place: int) -> float:
    """The relative error of the derivative along a random direction of one of `values`."""
    generator = torch.Generator().manual_seed(0)
    along, dy = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in (values[place].shape, output(*values).shape)
    )
    (gradient,) = torch.autograd.grad((output(*values) * dy).sum(), values[place], allow_unused=True)
    found = 0.0 if gradient is None else float((gradient * along).sum())
    with torch.no_grad():
        plus, minus = (
            float((output(*values[:place], values[place] + h * along, *values[place + 1 :]) * dy).sum())
            for h in (1e-6, -1e-6)
        )
    expected = (plus - minus) / 2e-6
    return abs(found - expected) / max(1.0, abs(expected))


def parameters(subject: Subject) -> str:
    layer = subject.layer()
    step(layer, *subject.batch())
    trained = {name: p.grad for name, p in layer.named_parameters() if p.requires_grad}
    for name, gradient in trained.items():
        if gradient is None:
            raise Broken(
                f"parameter {name} has no gradient after a training step, which DistributedDataParallel refuses; "
                "use it in each forward, or make it a buffer"
            )
    return f"{', '.join(trained) or 'none'}, each with a gradient"


def weight_decay(subject: Subject) -> str:
    layers = [layer for layer in subject.layer().modules() if hasattr(type(layer), "no_weight_decay")]
    if not layers:
        raise NotForThis("no layer has no_weight_decay(): all parameters decay as norm parameters")
    declared: set[str] = set()
    for layer in layers:
        told, known = set(layer.no_weight_decay()), [name for name, _ in layer.named_parameters()]  # type: ignore[operator]
        if told - set(known):
            raise Broken(
                f"no_weight_decay() gives {', '.join(sorted(told - set(known)))}, which is no parameter; "
                f"give some of {', '.join(known)}"
            )
        declared |= told
    return f"not of {', '.join(sorted(declared))}"


def other_samples(subject: Subject) -> str:
    """Whether a training output depends on the other samples."""
    (x, _), (others, _) = subject.batch(0), subject.batch(1)
    others[0] = x[0]
    moved = apart(subject.layer()(others)[0].detach(), subject.layer()(x)[0].detach())
    if subject.norm.needs_batch:
        return f"an output moves by {moved:.1e} with the rest of its batch, as declared"
    if moved > EXACT:
        raise Broken(
            f"needs_batch is False, and an output moves by {moved:.1e} with the rest of its batch; set "
            "needs_batch = True"
        )
    return f"an output moves by {moved:.1e} with the rest of its batch"


def evaluation(subject: Subject) -> str:
    """Whether an evaluated output depends only on the sample and the state, which evaluation leaves unchanged."""
    layer, x = subject.layer(), subject.batch()[0]
    step(layer, *subject.batch(1))
    layer.eval()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with torch.no_grad():
        moved = apart(layer(x)[:1], layer(x[:1]))
    for name, tensor in layer.state_dict().items():
        if not torch.equal(tensor, before[name]):
            raise Broken(f"an evaluation changes {name} by {apart(tensor, before[name]):.1e}; ask self.training")
    if moved > EXACT:
        raise Broken(
            f"an output moves by {moved:.1e} with the rest of its batch; keep running statistics for evaluation"
        )
    return f"an output moves by {moved:.1e} with the rest of its batch, and the state is kept"


def real_ranks(subject: Subject) -> str:
    """Several processes give what one gives on all samples that share their statistics."""
    most = 0.0
    for world_size in WORLD_SIZES:
        seen, alone = subject.on_ranks(world_size), subject.alone(world_size)
        if any(rank.evaluation_collectives for rank in seen):
            raise Broken(
                "an evaluation has a collective, but ranks evaluate different numbers of batches; "
                "ask self.training"
            )
        if not subject.norm.needs_ranks and seen[0].collectives:
            raise Broken(
                f"needs_ranks is False, and a step has {seen[0].collectives} collectives; set needs_ranks = True"
            )
        size = world_size // len(alone)
        for group, (expected, layer) in enumerate(alone):
            ranks = seen[group * size : (group + 1) * size]
            together = united([rank.step for rank in ranks])
            far, what = max(worst(together, expected), worst(ranks[0].state, layer.state_dict()))
            if far > EXACT:
                raise Broken(
                    f"on {world_size} ranks, {what} is {far:.1e} off that of one process with all samples that "
                    "share statistics; let nothing else depend on the rank, and sum over ranks in the backward too"
                )
            most = max(most, far)
    return f"on {' and '.join(map(str, WORLD_SIZES))}, each with samples of its own, {most:.1e} off one process"


def virtual_ranks(subject: Subject) -> str:
    """One process with the samples of two ranks, sample i of rank i % 2, gives what they give."""
    norm, count = subject.norm, 2
    if isinstance(norm, CustomNormConfig) and norm.needs_ranks:
        raise NotForThis("refused for a norm of your own that needs other ranks")
    layer = new_layer(norm, subject.shape, count)
    batches = [subject.batch(rank) for rank in range(count)]
    x, dy = (torch.stack(tensors, 1).flatten(0, 1) for tensors in zip(*batches, strict=True))
    done = step(layer.train(), x, dy)
    seen = subject.on_ranks(count)
    far = 0.0
    for rank, real in enumerate(seen):
        far = max(far, *(apart(done[name][rank::count], real.step[name]) for name in (OUTPUT, INPUT_GRADIENT)))
    with torch.no_grad():  # ranks are evaluated with the first one's buffers
        far = max(far, apart(layer.eval()(batches[0][0]), seen[0].evaluated))
    if far > EXACT:
        raise Broken(f"two virtual ranks are {far:.1e} off two real ones; see whether needs_batch is right")
    return f"two are {far:.1e} off two real ones, in a step and in the evaluation after it"


def state_dict(subject: Subject) -> str:
    trained, loaded = _trained_and_loaded(subject)
    with torch.no_grad():
        far = apart(loaded.eval()(subject.batch()[0]), trained.eval()(subject.batch()[0]))
    if far:
        raise Broken(
            f"a layer that its state dict was loaded into evaluates {far:.1e} off; keep what training changes in "
            "buffers (register_buffer)"
        )
    return "a layer that it was loaded into evaluates the same, bit for bit"


def resume(subject: Subject) -> str:
    trained, loaded = _trained_and_loaded(subject)
    far, what = worst(*(step(layer.train(), *subject.batch(9)) for layer in (loaded, trained)))
    changed, name = worst(loaded.state_dict(), trained.state_dict())
    if far or changed:
        raise Broken(
            f"in the step after its state dict was loaded, {what if far else name} is {far or changed:.1e} off; "
            "keep what training changes in buffers (register_buffer), and draw nothing at random"
        )
    return "the step after it was loaded is the same, bit for bit"


def _trained_and_loaded(subject: Subject) -> tuple[nn.Module, nn.Module]:
    """A layer after two steps, and a new one with its state."""
    trained, loaded, file = subject.layer(), subject.layer(), io.BytesIO()
    for number in (1, 2):
        step(trained, *subject.batch(number))
    torch.save(trained.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    return trained, loaded


def bf16(subject: Subject) -> str:
    exact, layer = subject.layer(), subject.layer().float()
    x = subject.batch()[0].bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (torch.bfloat16, torch.float32):
            y = subject.layer().float()(x.to(dtype))
            if y.dtype != dtype:
                raise Broken(
                    f"under autocast, for {named(x.to(dtype))} the output is {named(y)}; end with y.to(x.dtype)"
                )
        far = apart(layer(x).detach(), exact(x.double()).detach())
    if far > BF16:
        raise Broken(f"under autocast, the output is {far:.1e} off the exact one; compute statistics in float32")
    return f"under autocast, bfloat16 -> bfloat16, {far:.1e} off the exact output"


def channels_last(subject: Subject) -> str:
    x, dy = subject.batch()
    there = step(subject.layer(), *(tensor.to(memory_format=torch.channels_last) for tensor in (x, dy)))
    far, what = worst(there, step(subject.layer(), x, dy))
    if far > EXACT:
        raise Broken(f"{what} is {far:.1e} off that of a contiguous input; let no view depend on strides")
    return f"a step is {far:.1e} off that of a contiguous input"


PROPERTIES: dict[str, Callable[[Subject], str]] = {
    "shape and dtype": shape_and_dtype,
    "gradients": gradients,
    "parameters": parameters,
    "weight decay": weight_decay,
    "other samples": other_samples,
    "evaluation": evaluation,
    "real ranks": real_ranks,
    "virtual ranks": virtual_ranks,
    "state dict": state_dict,
    "resume": resume,
    "bf16": bf16,
    "channels_last": channels_last,
}
