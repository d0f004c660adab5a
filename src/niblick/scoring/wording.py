"""What codecs and techniques say of themselves, in words and rounded numbers."""

from __future__ import annotations

from typing import Any

_LIMITS = {
    "smallest": "the smallest file that this codec can make",
    "largest": "the largest file that this codec can make; more bytes would not help",
}
# Told by the sentences, or of no use without the codec's source; card.json has them all.
_TOLD = {"aim", "budget", "target", "measured", "attempts", "limit", "predicted_tax_nats"}
_INNER = {"delta", "coder_excess", "escape_bytes", "plain_bytes"}


def packing_text(choice: dict[str, Any]) -> str:
    """How a packer came to its file, such as `985,868 bytes for the weights, filled in 3 tries`."""
    said, attempts = [], choice.get("attempts")
    tries = "" if attempts is None else f" in {attempts} {'try' if attempts == 1 else 'tries'}"
    if choice.get("aim") == "budget":
        filled = "not filled" if choice.get("limit") == "largest" else "filled"
        said.append(f"{number(choice['budget'])} bytes for the weights, {filled}{tries}")
    elif choice.get("aim") == "tax":
        said.append(f"at most {number(choice['target'])} bits per byte lost, met{tries}")
    if "measured" in choice:
        said.append(f"measured loss {number(choice['measured'])} bits per byte")
    if choice.get("limit") in _LIMITS:
        said.append(_LIMITS[choice["limit"]])
    if "predicted_tax_nats" in choice:
        said.append(f"predicted loss {number(choice['predicted_tax_nats'])} nats per token")
    for key, value in choice.items():
        if key not in _TOLD | _INNER:
            name = "bits per weight" if key == "bits_by_role" else key.replace("_", " ")
            colon = ":" if isinstance(value, dict) else ""
            said.append(f"{name}{colon} {_value(value, 3)}")
    return "; ".join(said)


def setting_text(key: str, value: Any) -> str:
    """One setting of a technique: `momentum 0.85/0.95`, `nesterov`, `no warmup`."""
    name = key.replace("_", " ")
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if value == []:
        return f"no {name}"
    return f"{name} {_value(value)}"


def _value(value: Any, digits: int = 6) -> str:
    if isinstance(value, dict):
        each = (f"{key.replace('_', ' ')} {_value(one, digits)}" for key, one in value.items())
        return ", ".join(each)
    if isinstance(value, list):
        return "/".join(_value(one, digits) for one in value)
    return number(value, digits)


def number(value: Any, digits: int = 3) -> str:
    """A number to `digits` digits, or whole with its thousands apart; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.{digits}g}"
