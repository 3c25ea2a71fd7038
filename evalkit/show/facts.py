"""What a reader of scores asks first of a record: which revision, of what size, on what, when."""

from typing import Any

Fact = tuple[str, str]


def line(record: dict[str, Any]) -> list[Fact]:
    """(name, value) of what a reader asks first; what is unknown is left out here and stands below
    with its reason."""
    model, environment = record["model"], record.get("environment", {})
    parameters, code = model.get("parameters"), record.get("code", {})
    found = [
        ("revision", _short(model.get("revision"))),
        ("parameters", _count(parameters) if isinstance(parameters, int) else ""),
        ("dtype", _said(record.get("numerics", {}).get("dtype"))),
        ("hardware", _hardware(environment)),
        ("image", _short(_digest(environment.get("image")))),
        ("evalkit", _said(environment.get("versions", {}).get("evalkit"))),
        ("commit", _short(code.get("commit"))),
        ("date", str(record["created"] or "")[:10]),
    ]
    return [(name, value) for name, value in found if value]


def _said(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _short(value: Any) -> str:
    text = _said(value).removeprefix("sha256:")
    is_hex = len(text) >= 40 and all(char in "0123456789abcdef" for char in text)
    return text[:12] if is_hex else text


def _digest(image: Any) -> Any:
    return image.get("digest") if isinstance(image, dict) else image


def _count(value: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return str(value)


def _hardware(environment: dict[str, Any]) -> str:
    gpus = environment.get("gpu")
    if isinstance(gpus, list) and gpus:
        names = [str(gpu.get("name", gpu) if isinstance(gpu, dict) else gpu) for gpu in gpus]
        counts = {name: names.count(name) for name in names}
        return ", ".join(f"{n} {name}" if n > 1 else name for name, n in counts.items())
    return _said(environment.get("cpu"))
