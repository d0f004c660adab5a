"""The model card of a Hugging Face folder, from the card of the run; what is quoted is escaped."""

from __future__ import annotations

import json
from typing import Any

from niblick.facade import Model
from niblick.scoring.card import card_markdown

_USE = """
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
ids = tokenizer("The river", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0], skip_special_tokens=True))
```

The code in this folder needs torch and transformers 5. `niblick import FOLDER --out
model.safetensors` reads it back.
"""


def model_card(model: Model, card: dict[str, Any] | None) -> str:
    """Front matter for the hub, the run's card where there is one, and how to use the folder."""
    front = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["niblick"]}
    lines = [f"{key}: {json.dumps(value)}" for key, value in front.items()]
    head = "\n".join(["---", *lines, "---", ""])
    if card is not None:
        return head + card_markdown(card) + _USE
    size = f"{model.plan.parameter_count:,}"
    return head + f"# A niblick model\n\n{size} parameters; it came without a card.\n" + _USE
