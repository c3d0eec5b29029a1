"""NVIDIA's GPUs and their names, as nvidia-smi, torch, sellers and people write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.config.messages import closest_names, shorten
from pipelines.errors import RunError

DType = Literal["bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        key: its name in `--gpu`.
        model: its name without vendor, marks, memory and form factor: `4060ti`.
        sizes: the memory in GB as it is sold.
        memory: what torch reports, in GiB.
        tflops: dense products of 16-bit values that are added up in fp32.
        bandwidth: of the memory, in GB/s.
        forms: its form factors.
    """

    key: str
    name: str
    model: str
    sizes: tuple[int, ...]
    memory: float
    tflops: float
    bandwidth: float
    dtype: DType
    forms: tuple[str, ...] = ("pcie",)


_SXM, _BOTH = ("sxm",), ("sxm", "pcie")
CARDS = (
    # NVIDIA's data sheets and white papers.
    Card("t4", "NVIDIA T4", "t4", (16,), 14.6, 65, 320, "fp16"),
    Card("p100", "NVIDIA P100", "p100", (16,), 15.9, 19, 732, "fp16", _BOTH),
    Card("v100-16", "NVIDIA V100 16 GB", "v100", (16,), 15.8, 112, 900, "fp16", _BOTH),
    Card("v100-32", "NVIDIA V100 32 GB", "v100", (32,), 31.7, 112, 900, "fp16", _BOTH),
    Card("l4", "NVIDIA L4", "l4", (24,), 22.0, 121, 300, "bf16"),
    Card("a2", "NVIDIA A2", "a2", (16,), 14.6, 18, 200, "bf16"),
    Card("a10", "NVIDIA A10", "a10", (24,), 22.0, 125, 600, "bf16"),
    Card("a10g", "NVIDIA A10G", "a10g", (24,), 22.0, 70, 600, "bf16"),
    Card("a30", "NVIDIA A30", "a30", (24,), 23.5, 165, 933, "bf16"),
    Card("a40", "NVIDIA A40", "a40", (48,), 44.4, 150, 696, "bf16"),
    Card("l40", "NVIDIA L40", "l40", (48,), 44.4, 181, 864, "bf16"),
    Card("l40s", "NVIDIA L40S", "l40s", (48,), 44.4, 362, 864, "bf16"),
    Card("a100-40", "NVIDIA A100 40 GB", "a100", (40,), 39.4, 312, 1555, "bf16", _BOTH),
    Card("a100-80", "NVIDIA A100 80 GB", "a100", (80,), 79.1, 312, 2039, "bf16", _BOTH),
    Card("h100", "NVIDIA H100 SXM 80 GB", "h100", (80,), 79.1, 989, 3350, "bf16", _SXM),
    Card("h100-pcie", "NVIDIA H100 PCIe 80 GB", "h100", (80,), 79.1, 756, 2000, "bf16"),
    Card("h100-nvl", "NVIDIA H100 NVL 94 GB", "h100", (94,), 93.1, 835, 3900, "bf16", ("nvl",)),
    Card("gh200", "NVIDIA GH200", "gh200", (96, 480), 94.5, 989, 4000, "bf16", _SXM),  # 480 GB is the CPU's memory
    Card("h200", "NVIDIA H200 SXM", "h200", (141,), 139.8, 989, 4800, "bf16", _SXM),
    Card("h200-nvl", "NVIDIA H200 NVL", "h200", (141,), 139.8, 836, 4800, "bf16", ("nvl", "pcie")),
    Card("b200", "NVIDIA B200", "b200", (180, 192), 178.0, 2250, 8000, "bf16", _SXM),
    Card("quadro-rtx6000", "NVIDIA Quadro RTX 6000", "quadro6000", (24,), 23.6, 130, 672, "fp16"),
    Card("quadro-rtx8000", "NVIDIA Quadro RTX 8000", "quadro8000", (48,), 47.4, 130, 672, "fp16"),
    Card("a4000", "NVIDIA RTX A4000", "a4000", (16,), 15.7, 77, 448, "bf16"),
    Card("a4500", "NVIDIA RTX A4500", "a4500", (20,), 19.6, 95, 640, "bf16"),
    Card("a5000", "NVIDIA RTX A5000", "a5000", (24,), 23.7, 111, 768, "bf16"),
    Card("a6000", "NVIDIA RTX A6000", "a6000", (48,), 47.4, 155, 768, "bf16"),
    Card("rtx5000-ada", "NVIDIA RTX 5000 Ada", "5000ada", (32,), 31.4, 261, 576, "bf16"),
    Card("rtx6000-ada", "NVIDIA RTX 6000 Ada", "6000ada", (48,), 47.4, 364, 960, "bf16"),
    Card("rtx-pro-6000", "NVIDIA RTX PRO 6000", "pro6000", (96,), 94.9, 500, 1792, "bf16"),
    Card("titan-rtx", "NVIDIA TITAN RTX", "titan", (24,), 23.6, 130, 672, "fp16"),
    Card("rtx2080ti", "NVIDIA RTX 2080 Ti", "2080ti", (11,), 10.7, 54, 616, "fp16"),
    Card("rtx3060", "NVIDIA RTX 3060", "3060", (12,), 11.6, 25, 360, "bf16"),
    Card("rtx3060ti", "NVIDIA RTX 3060 Ti", "3060ti", (8,), 7.6, 32, 448, "bf16"),
    Card("rtx3070", "NVIDIA RTX 3070", "3070", (8,), 7.6, 41, 448, "bf16"),
    Card("rtx3080-10", "NVIDIA RTX 3080 10 GB", "3080", (10,), 9.6, 60, 760, "bf16"),
    Card("rtx3080-12", "NVIDIA RTX 3080 12 GB", "3080", (12,), 11.6, 61, 912, "bf16"),
    Card("rtx3080ti", "NVIDIA RTX 3080 Ti", "3080ti", (12,), 11.6, 68, 912, "bf16"),
    Card("rtx3090", "NVIDIA RTX 3090", "3090", (24,), 23.6, 71, 936, "bf16"),
    Card("rtx3090ti", "NVIDIA RTX 3090 Ti", "3090ti", (24,), 23.6, 80, 1008, "bf16"),
    Card("rtx4060", "NVIDIA RTX 4060", "4060", (8,), 7.6, 30, 272, "bf16"),
    Card("rtx4060ti-8", "NVIDIA RTX 4060 Ti 8 GB", "4060ti", (8,), 7.6, 44, 288, "bf16"),
    Card("rtx4060ti-16", "NVIDIA RTX 4060 Ti 16 GB", "4060ti", (16,), 15.6, 44, 288, "bf16"),
    Card("rtx4070", "NVIDIA RTX 4070", "4070", (12,), 11.6, 58, 504, "bf16"),
    Card("rtx4070super", "NVIDIA RTX 4070 SUPER", "4070super", (12,), 11.6, 71, 504, "bf16"),
    Card("rtx4070ti", "NVIDIA RTX 4070 Ti", "4070ti", (12,), 11.6, 80, 504, "bf16"),
    Card("rtx4070tisuper", "NVIDIA RTX 4070 Ti SUPER", "4070tisuper", (16,), 15.7, 88, 672, "bf16"),
    Card("rtx4080", "NVIDIA RTX 4080", "4080", (16,), 15.7, 97, 717, "bf16"),
    Card("rtx4080super", "NVIDIA RTX 4080 SUPER", "4080super", (16,), 15.7, 104, 736, "bf16"),
    Card("rtx4090", "NVIDIA RTX 4090", "4090", (24,), 23.5, 165, 1008, "bf16"),
    Card("rtx5060ti-8", "NVIDIA RTX 5060 Ti 8 GB", "5060ti", (8,), 7.6, 47, 448, "bf16"),
    Card("rtx5060ti-16", "NVIDIA RTX 5060 Ti 16 GB", "5060ti", (16,), 15.5, 47, 448, "bf16"),
    Card("rtx5070", "NVIDIA RTX 5070", "5070", (12,), 11.6, 62, 672, "bf16"),
    Card("rtx5070ti", "NVIDIA RTX 5070 Ti", "5070ti", (16,), 15.5, 88, 896, "bf16"),
    Card("rtx5080", "NVIDIA RTX 5080", "5080", (16,), 15.5, 113, 960, "bf16"),
    Card("rtx5090", "NVIDIA RTX 5090", "5090", (32,), 31.4, 210, 1792, "bf16"),
)
"""The cards; of those that differ in the form factor alone, the usual one first."""
_ALIASES = {
    "colab": "t4",
    "kaggle": "t4",
    "titanrtx": "titan",
    "ada6000": "6000ada",
    "a6000ada": "6000ada",
    "ada5000": "5000ada",
    "6000pro": "pro6000",
    "gb200": "b200",
}
_BRAND = re.compile(r"^(nvidia|geforce|tesla|rtx|gtx)+")
_UNIMPORTANT = frozenset(
    (
        *("gpu", "graphics", "card", "generation", "edition", "workstation", "server", "tensor", "core", "pci"),
        *("ampere", "lovelace", "hopper", "blackwell", "volta", "turing", "pascal", "hbm2", "hbm2e", "hbm3", "hbm3e"),
    )
)
_FORMS = {"sxm": "sxm", "hgx": "sxm", "dgx": "sxm", "pcie": "pcie", "nvl": "nvl"}
_FORM = re.compile(r"sxm\d*|hgx|dgx|pci-?e|nvl")
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+) ?(gib|gb|g)(?![a-z0-9])")
_COUNT = re.compile(r"^\d+ ?[x×*] ?(?=\D)|(?<=\S) ?[x×*] ?\d{1,2}$")
_OTHER_VENDORS = re.compile(r"\b(amd|radeon|instinct|mi\d{2,3}x?|rx|intel|arc|gaudi\d*|tpu|inferentia|trainium)\b")
_NO_GPU = re.compile(r"\b(cpu|mps|apple|m[1-5])\b")
_SIZE_TOLERANCE = 0.07
"""A T4 has 16 GB, 15 of which programs see."""


@dataclass(frozen=True)
class _Name:
    """The parts of a name: model, memory in GB and form factor, if they are in it."""

    model: str
    size: int | None
    form: str | None


def find_card(name: str) -> Card:
    """The card with this name. Raises RunError for a name that is unknown, or that several cards have."""
    if not name.strip():
        raise RunError("--gpu is empty; write a GPU, as in --gpu t4, or leave it out to plan for this machine")
    shown = f"--gpu {shorten(name.strip())}"
    text = name.strip().casefold()
    if reason := _not_one_gpu(text):
        raise RunError(f"{shown}: {reason}")
    parsed = _parse(text)
    cards = [card for card in CARDS if card.model == parsed.model]
    if not cards:
        raise RunError(f"{shown}: {_unknown(parsed.model)}")
    fitting = [card for card in cards if _fits(card, parsed)]
    if not fitting:
        of_form = [card for card in cards if _fits(card, _Name(parsed.model, None, parsed.form))]
        raise RunError(f"{shown}: there is no such variant; known are {_listed(of_form or cards)}")
    usual = [card for card in fitting if card.forms == fitting[0].forms]
    if len(usual) > 1:
        raise RunError(f"{shown}: which one? write {_listed(usual, ' or ')}")
    return usual[0]


def similar_card(name: str, gib: float) -> Card:
    """The card of a GPU that is installed: by its name and the size of its memory, or one of about that memory."""
    parsed = _parse(name.casefold())
    cards = [card for card in CARDS if card.model == parsed.model]
    cards = [card for card in cards if parsed.form in (None, *card.forms)] or cards or list(CARDS)
    return min(cards, key=lambda card: abs(card.memory - gib))


def _parse(text: str) -> _Name:
    text = re.sub(r"[\W_]+", " ", _FORM.sub(lambda form: f" {form[0].replace('-', '')} ", text))
    form = _FORM.search(text)
    size = _SIZE.search(text)
    sizes = [size[1]] if size else []
    words: list[str] = []
    for word in _SIZE.sub(" ", _FORM.sub(" ", text)).split():
        if words and re.fullmatch(r"\d{1,3}", word):
            sizes.append(word)  # a100-40
        elif word not in _UNIMPORTANT:
            words += filter(None, [_BRAND.sub("", word)])
    model = "".join(words)
    if model.startswith("pro6000") or model.startswith("6000pro"):
        model = model.removesuffix("maxq")
    return _Name(
        _ALIASES.get(model, model),
        int(sizes[0]) if sizes else None,
        _FORMS[re.sub(r"\d", "", form[0])] if form else None,
    )


def _fits(card: Card, name: _Name) -> bool:
    has_size = name.size is None or any(abs(name.size - size) <= _SIZE_TOLERANCE * size for size in card.sizes)
    return has_size and name.form in (None, *card.forms)


def _not_one_gpu(text: str) -> str | None:
    """Why a name is not that of one NVIDIA GPU, and what to write instead."""
    if count := _COUNT.search(text):
        return f"the plan is for one GPU; write --gpu {text.replace(count[0], '', 1).strip()}"
    if re.search(r"\bmig\b", text):
        return "a part of a GPU (MIG) is not known; name a GPU that has as much memory"
    if re.search(r"laptop|mobile|notebook", text):
        return "GPUs of laptops have another memory than the cards of their name; name a card that has as much"
    if _OTHER_VENDORS.search(text):
        return "only GPUs of NVIDIA are known; name one that has as much memory"
    if _NO_GPU.search(text):
        return "is not a GPU of NVIDIA; leave --gpu out to plan for this machine"
    return None


def _unknown(model: str) -> str:
    keys = ", ".join(card.key for card in CARDS)
    if model.isdigit() and (numbered := [card for card in CARDS if re.sub(r"\D", "", card.model) == model]):
        return f"which one? write {_listed(numbered, ' or ')}"
    close = [card for card in CARDS if card.model in closest_names(model, [card.model for card in CARDS])]
    # Another number is another card: a 3050 is not a misspelled 3060.
    digits = re.sub(r"\D", "", model)
    close = [card for card in close if digits and re.sub(r"\D", "", card.model).startswith(digits)]
    hint = f"did you mean {' or '.join(card.key for card in close)}? " if close else ""
    return f"unknown; {hint}for another card, name one that has as much memory; known are {keys}"


def _listed(cards: Sequence[Card], last: str = ", ") -> str:
    texts = [f"{card.key} ({card.sizes[0]} GB)" for card in cards]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])}{last}{texts[-1]}"
