"""Which device a rank computes on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from normlab.config import ConfigError
from normlab.config.config import Device


def choose_device(device: Device, local_world_size: int) -> torch.device:
    """Where ranks that this process starts will compute: for auto, cuda if there is a GPU for each, else cpu.

    Raises: ConfigError for cuda with fewer devices than ranks on this machine.
    """
    count = torch.cuda.device_count()
    if device is Device.cuda and count < local_world_size:
        raise _too_few(count, local_world_size)
    return torch.device("cpu" if device is Device.cpu or count < local_world_size else "cuda")


def _too_few(count: int, local_world_size: int) -> ConfigError:
    return ConfigError(
        f"device=cuda with {local_world_size} ranks on this machine needs as many CUDA devices, "
        f"but {count} are visible; lower world_size to {max(count, 1)}, or set device=cpu."
    )


def visible_gpus() -> list[str]:
    """The UUID of each CUDA device that this process sees, by its index."""
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]


@dataclass(frozen=True)
class OwnGpu:
    """The CUDA device that a rank would compute on; without one, index -1 and no UUID."""

    index: int
    uuid: str
    visible: int
    """The devices that the rank sees."""

    @classmethod
    def find(cls, device: Device, local_rank: int, local_world_size: int) -> "OwnGpu":
        """The only device that this rank sees (srun --gpus-per-task=1), or that of its LOCAL_RANK.

        Raises: ConfigError for cuda if there is none.
        """
        gpus = [] if device is Device.cpu else visible_gpus()
        index = 0 if len(gpus) == 1 else local_rank
        if index < len(gpus):
            return cls(index, gpus[index], len(gpus))
        if device is Device.cuda:
            raise _too_few(len(gpus), local_world_size)
        return cls(-1, "", len(gpus))


def all_have_one(device: Device, gpus: Sequence[OwnGpu]) -> bool:
    """Whether each rank has found a GPU of its own, so that all compute on theirs.

    Raises: ConfigError if two ranks would share one, unless auto may compute on the CPU since they see no other.
    """
    ranks_on: dict[str, list[int]] = {}
    for rank, gpu in enumerate(gpus):
        ranks_on.setdefault(gpu.uuid, []).append(rank)
    if "" in ranks_on:
        return False
    for ranks in ranks_on.values():
        if len(ranks) > 1 and (device is Device.cuda or gpus[ranks[0]].visible > 1):
            raise ConfigError(
                f"device={device.value}: ranks {ranks[0]} and {ranks[1]} would share one GPU; start one rank per "
                "GPU, each with its own LOCAL_RANK on its machine (as torchrun and srun do), or set device=cpu."
            )
    return len(ranks_on) == len(gpus)


def fallback_note(device: Device, chosen: torch.device, local_world_size: int) -> str | None:
    """The note to show if device=auto has `chosen` the CPU although there are GPUs."""
    count = torch.cuda.device_count()
    if device is not Device.auto or chosen.type == "cuda" or count == 0:
        return None
    return (
        f"device=auto computes on the CPU: not each of {local_world_size} ranks can have one of the {count} CUDA "
        f"devices here; lower world_size to {count} to use them"
    )
