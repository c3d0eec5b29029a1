"""Names of GPUs as nvidia-smi, torch, clouds and people write them."""

import random

import pytest

from pipelines.errors import RunError
from pipelines.planning.gpus import CARDS, find_card, similar_card

NAMES = {
    # nvidia-smi and torch.cuda.get_device_name
    "Tesla T4": "t4",
    "Tesla P100-PCIE-16GB": "p100",
    "Tesla V100-SXM2-16GB": "v100-16",
    "Tesla V100-SXM2-32GB": "v100-32",
    "NVIDIA L4": "l4",
    "NVIDIA A10G": "a10g",
    "NVIDIA A100-SXM4-40GB": "a100-40",
    "NVIDIA A100-PCIE-40GB": "a100-40",
    "A100-SXM4-80GB": "a100-80",
    "NVIDIA A100 80GB PCIe": "a100-80",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H200": "h200",
    "NVIDIA GH200 480GB": "gh200",
    "NVIDIA B200": "b200",
    "NVIDIA L40S": "l40s",
    "NVIDIA RTX A6000": "a6000",
    "NVIDIA RTX 6000 Ada Generation": "rtx6000-ada",
    "Quadro RTX 8000": "quadro-rtx8000",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx-pro-6000",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": "rtx-pro-6000",
    "NVIDIA TITAN RTX": "titan-rtx",
    "NVIDIA GeForce RTX 3090": "rtx3090",
    "NVIDIA GeForce RTX 4070 Ti SUPER": "rtx4070tisuper",
    # clouds
    "nvidia-tesla-t4": "t4",
    "NVIDIA_TESLA_T4": "t4",
    "nvidia-a100-80gb": "a100-80",
    # people
    "T4": "t4",
    "T4 16GB": "t4",
    "t4-15gb": "t4",
    "Colab": "t4",
    "A100 80G": "a100-80",
    "a100_80": "a100-80",
    "a100 40 GiB": "a100-40",
    "DGX A100 80GB": "a100-80",
    "H100 PCIe": "h100-pcie",
    "H100-80GB": "h100",
    "h100 sxm5": "h100",
    "RTX A6000": "a6000",
    "A6000": "a6000",
    "rtx_4090": "rtx4090",
    "rtx 4090": "rtx4090",
    "GeForce RTX 3090": "rtx3090",
    "4090": "rtx4090",
    "RTX 4090 24GB": "rtx4090",
    "rtx 4060 ti 16gb": "rtx4060ti-16",
    "geforce rtx 3080 12gb": "rtx3080-12",
}


@pytest.mark.parametrize(("name", "key"), NAMES.items())
def test_names(name, key):
    assert find_card(name).key == key


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.key)
def test_every_key_and_full_name_is_accepted_in_any_spelling(card):
    assert find_card(card.key) is card
    rng = random.Random(card.key)
    for _ in range(30):
        name = card.name.removeprefix("NVIDIA ") if rng.random() < 0.5 else card.name
        name = rng.choice([name, name.lower(), name.upper()])
        name = "".join(rng.choice(" -_") if mark == " " else mark for mark in name)
        if name[-2:].lower() != "gb":
            name += rng.choice(["", f"{rng.choice(' -_')}{card.sizes[0]}{rng.choice(['GB', ' GB', 'gib', 'G'])}"])
        assert find_card(name) is card, name


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("NVIDIA A100", "write a100-40 (40 GB) or a100-80 (80 GB)"),
        ("v100", "write v100-16 (16 GB) or v100-32 (32 GB)"),
        ("RTX 4060 Ti", "write rtx4060ti-8 (8 GB) or rtx4060ti-16 (16 GB)"),
        ("RTX 6000", "quadro-rtx6000 (24 GB), a6000 (48 GB), rtx6000-ada (48 GB) or rtx-pro-6000 (96 GB)"),
        ("A100 60GB", "no such variant; known are a100-40 (40 GB), a100-80 (80 GB)"),
        ("T4-24GB", "no such variant; known are t4 (16 GB)"),
        ("H100 NVL 80GB", "no such variant; known are h100-nvl (94 GB)"),
        ("L4 SXM", "no such variant; known are l4 (24 GB)"),
        ("h10", "did you mean h100"),
        ("rtx409", "did you mean rtx4090?"),
        ("quantum", "known are t4, p100"),
        ("", "write a GPU, as in --gpu t4"),
        (" \t", "write a GPU, as in --gpu t4"),
        ("2x H100", "one GPU; write --gpu h100"),
        ("8xT4", "one GPU; write --gpu t4"),
        ("t4 x2", "one GPU; write --gpu t4"),
        ("GeForce RTX 4090 Laptop GPU", "laptops"),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "a part of a GPU"),
        ("MI300X", "only GPUs of NVIDIA"),
        ("cpu", "leave --gpu out"),
    ],
)
def test_errors_name_what_to_write(name, candidates):
    with pytest.raises(RunError) as caught:
        find_card(name)
    assert candidates in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rtx3050", "a1000", "RTX 2060", "T1000", "h800"])
def test_a_card_that_is_not_known_is_not_taken_for_a_misspelled_one(name):
    with pytest.raises(RunError) as caught:
        find_card(name)
    assert "did you mean" not in str(caught.value)


def test_an_installed_gpu_has_the_rates_of_its_card_or_of_one_with_as_much_memory():
    assert similar_card("NVIDIA A100-SXM4-80GB", 79.3).key == "a100-80"
    assert similar_card("NVIDIA GeForce RTX 4060 Ti", 7.7).key == "rtx4060ti-8"
    assert similar_card("NVIDIA A100-SXM4-80GB MIG 3g.40gb", 39.5).memory == pytest.approx(39.5, abs=1)
    assert similar_card("NVIDIA H800", 79.1).memory == 79.1
