from types import SimpleNamespace


def LoRARequest(name: str, number: int, path: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, number=number, path=path)
