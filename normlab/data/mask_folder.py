"""A user's own pictures and masks: images/ and masks/ under train/ and under val/, test/ or both."""

import os
from functools import partial
from pathlib import Path

import torch

from normlab.config import ConfigError
from normlab.config.data import MaskFolderConfig
from normlab.data.dataset import IGNORED, Source
from normlab.data.listing import Tell, data_root, file_status, files_under, held_out_folders
from normlab.data.mask_files import Pair, read_pairs
from normlab.data.masks import Labels, index_labels, palette

EXPECTED = "train/images/, train/masks/, and the same under val/, test/ or both"
VOID = "void"
"""The name of ignored colours in a colour map."""


def read(cfg: MaskFolderConfig, tell: Tell) -> Source:
    """Train, test and val of cfg.root; if only one of test and val exists, it is used as test.

    Raises: ConfigError naming the folder or file that cannot be used.
    """
    root = data_root(cfg.root, EXPECTED)
    labels, palette_K3 = (_by_colour if cfg.colour_map else _by_index)(cfg)
    return read_pairs(cfg, root, partial(_find, root), labels, palette_K3, tell)


def _find(root: Path) -> dict[str, list[Pair]]:
    held_out = held_out_folders(root)
    if not held_out:
        raise ConfigError(f"data.root={root} has neither test/ nor val/; it must hold {EXPECTED}.")
    splits = {"train": _pairs(root, "train"), "test": _pairs(root, held_out[0])}
    if len(held_out) == 2:
        splits["val"] = _pairs(root, "val")
    return splits


def _pairs(root: Path, split: str) -> list[Pair]:
    """The pictures of a split, in the order of their names, each with its mask."""
    images, masks = (_by_stem(root / split / kind) for kind in ("images", "masks"))
    for have, lack, what in ((images, masks, "mask"), (masks, images, "picture")):
        alone = sorted(have.keys() - lack.keys())
        if alone:
            other = "masks" if what == "mask" else "images"
            raise ConfigError(
                f"{have[alone[0]]} has no {what} {split}/{other}/{alone[0]}.* "
                f"({len(alone)} of this kind in {split}/); a picture and its mask must have one name."
            )
    return [(images[stem], masks[stem]) for stem in sorted(images)]


def _by_stem(folder: Path) -> dict[str, str]:
    """Path below the folder, without suffix -> full path of each image file."""
    if not os.path.isdir(folder):
        raise ConfigError(f"{folder} is not a folder; data.root must hold {EXPECTED}.")
    found: dict[str, str] = {}
    for path, _, _ in files_under(str(folder)):
        stem = str(Path(path).relative_to(folder).with_suffix(""))
        if stem in found:
            raise ConfigError(f"{path} and {found[stem]} have one name; remove one of them.")
        found[stem] = path
    if not found:
        raise ConfigError(f"{folder} holds no image file; data.root must hold {EXPECTED}.")
    return found


def _by_index(cfg: MaskFolderConfig) -> tuple[Labels, torch.Tensor]:
    if cfg.num_classes is None:
        raise ConfigError("data.num_classes is not given; say how many classes the masks have.")
    names = cfg.class_names or [f"class_{index}" for index in range(cfg.num_classes)]
    _check_names(cfg, cfg.num_classes)
    labels = index_labels(names, cfg.ignore_index, f"data.num_classes={cfg.num_classes}")
    return labels, palette(cfg.num_classes)


def _by_colour(cfg: MaskFolderConfig) -> tuple[Labels, torch.Tensor]:
    """The classes of cfg.colour_map in the order of its lines; lines with the same name are one class."""
    assert cfg.colour_map is not None
    colour_map = os.path.expanduser(cfg.colour_map)
    try:
        file_status(colour_map)
        lines = Path(colour_map).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.colour_map={cfg.colour_map} cannot be read ({error}).") from error
    classes: list[str] = []
    colours: list[list[int]] = []
    of_value: dict[int, int] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].replace(",", " ").split(maxsplit=3)
        if not words:
            continue
        if len(words) < 4 or not all(word.isdecimal() and int(word) < 256 for word in words[:3]):
            raise ConfigError(
                f"data.colour_map={cfg.colour_map}, line {number}: {line!r} is not `red green blue name`, each "
                "colour 0 to 255."
            )
        red, green, blue = map(int, words[:3])
        name = words[3].strip()
        if name.lower() == VOID:
            label = IGNORED
        else:
            if name not in classes:
                classes.append(name)
                colours.append([red, green, blue])
            label = classes.index(name)
        if of_value.setdefault(65536 * red + 256 * green + blue, label) != label:
            raise ConfigError(
                f"data.colour_map={cfg.colour_map}, line {number}: {red} {green} {blue} is the colour of another "
                "class already; give each class colours of its own."
            )
    if not 2 <= len(classes) <= IGNORED:
        raise ConfigError(
            f"data.colour_map={cfg.colour_map} names {len(classes)} classes; 2 to {IGNORED} are needed."
        )
    if cfg.num_classes not in (None, len(classes)):
        raise ConfigError(
            f"data.num_classes={cfg.num_classes}, but data.colour_map={cfg.colour_map} names {len(classes)}; "
            "leave data.num_classes out."
        )
    _check_names(cfg, len(classes))
    meaning = f"data.colour_map={cfg.colour_map} has no line for it"
    labels = Labels(cfg.class_names or classes, of_value, meaning, in_colours=True)
    return labels, torch.tensor(colours, dtype=torch.uint8)


def _check_names(cfg: MaskFolderConfig, count: int) -> None:
    if cfg.class_names is not None and (len(cfg.class_names) != count or len(set(cfg.class_names)) != count):
        raise ConfigError(
            f"data.class_names={','.join(cfg.class_names)} must be {count} distinct names, one per class."
        )
