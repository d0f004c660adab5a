"""Every mode and adaptation with sizes that suit the tests' small streams."""

from niblick.evaluation import Adaptation, EvaluationOptions, LeakyTraining

WEIGHTS = {"chunk_tokens": 32, "batch_rows": 2}
ADAPTATIONS = {
    "sgd": Adaptation(method="sgd", lr=0.1, epochs=2, **WEIGHTS),
    "adamw": Adaptation(method="adamw", lr=0.01, **WEIGHTS),
    "rms": Adaptation(method="rms", lr=0.01, **WEIGHTS),
    "sgd in phases": Adaptation(method="sgd", lr=0.1, phases=3, batch_rows=2),
    "lora": Adaptation(method="lora", lr=0.05, chunk_tokens=8, documents=3),
    "lora in phases": Adaptation(
        method="lora", lr=0.05, chunk_tokens=8, documents=3, phases=3, base_lr=0.1
    ),
}
CASES = {
    "chunked": EvaluationOptions(mode="chunked", batch_tokens=48),
    "sliding": EvaluationOptions(mode="sliding", stride=4, batch_tokens=48),
    "streaming": EvaluationOptions(mode="streaming", batch_tokens=16),
    "document": EvaluationOptions(mode="document", batch_tokens=48),
    **{
        name: EvaluationOptions(mode=ttt.mode, ttt=ttt, batch_tokens=48)
        for name, ttt in ADAPTATIONS.items()
    },
    "leaky-ttt": EvaluationOptions(
        mode="leaky-ttt", stride=4, leaky=LeakyTraining(lr=0.01, epochs=2, batch_rows=4)
    ),
}
# what several processes reproduce to the bit; the others sum gradients in another order
EXACT = ("chunked", "sliding", "streaming", "document", "lora")
