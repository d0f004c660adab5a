"""Which top-level names are packages of others, what installs them, and which need a GPU or a Mac."""

from __future__ import annotations

GPU_PACKAGES = {
    "flash_attn": "flash-attn", "flash_attn_interface": "flash-attn-3", "flash_attn_3": "flash-attn-3",
    "hopper": "flash-attn-3", "flash_attn_2_cuda": "flash-attn", "flash_attn_config": "flash-attn-3",
    "triton": "triton", "triton_kernels": "triton", "kernels": "kernels", "xformers": "xformers",
    "transformer_engine": "transformer-engine", "transformer_engine_torch": "transformer-engine",
    "mamba_ssm": "mamba-ssm", "causal_conv1d": "causal-conv1d", "causal_conv1d_cuda": "causal-conv1d",
    "selective_scan_cuda": "mamba-ssm", "fla": "flash-linear-attention", "apex": "apex",
    "bitsandbytes": "bitsandbytes", "deepspeed": "deepspeed", "cupy": "cupy-cuda12x", "pynvml": "nvidia-ml-py",
    "cutlass": "nvidia-cutlass-dsl", "nvidia": "nvidia-cuda-runtime", "cuda": "cuda-python", "liger_kernel": "liger-kernel",
    "cut_cross_entropy": "cut-cross-entropy", "thunderkittens": "thunderkittens", "quack": "quack-kernels",
    "tilelang": "tilelang", "torchao": "torchao", "natten": "natten", "gemlite": "gemlite", "hqq": "hqq",
    "deep_gemm": "deep-gemm", "flashinfer": "flashinfer-python", "sageattention": "sageattention",
    "vllm": "vllm", "helion": "helion", "numba": "numba", "pycuda": "pycuda", "cudf": "cudf", "rmm": "rmm",
    "torch_xla": "torch-xla", "mlx": "mlx", "mlx_lm": "mlx-lm", "rwkv": "rwkv", "wkv_cuda": "rwkv",
    "grouped_gemm": "grouped-gemm", "megablocks": "megablocks", "torch_scatter": "torch-scatter",
    "spas_sage_attn": "spas-sage-attn", "cuequivariance_torch": "cuequivariance-torch",
}  # fmt: skip

PACKAGES = {
    "sentencepiece": "sentencepiece", "zstandard": "zstandard", "zstd": "zstd", "pyzstd": "pyzstd",
    "brotli": "brotli", "brotlicffi": "brotlicffi", "huggingface_hub": "huggingface-hub", "lz4": "lz4",
    "numpy": "numpy", "scipy": "scipy", "sklearn": "scikit-learn", "pandas": "pandas", "matplotlib": "matplotlib",
    "tqdm": "tqdm", "tiktoken": "tiktoken", "tokenizers": "tokenizers", "transformers": "transformers",
    "datasets": "datasets", "safetensors": "safetensors", "einops": "einops", "wandb": "wandb", "psutil": "psutil",
    "requests": "requests", "httpx": "httpx", "yaml": "pyyaml", "rich": "rich", "typer": "typer", "click": "click",
    "pydantic": "pydantic", "pyarrow": "pyarrow", "polars": "polars", "ml_dtypes": "ml-dtypes", "jax": "jax",
    "jaxlib": "jaxlib", "flax": "flax", "optax": "optax", "tensorflow": "tensorflow", "tensorboard": "tensorboard",
    "torchvision": "torchvision", "torchaudio": "torchaudio", "accelerate": "accelerate", "peft": "peft",
    "lightning": "lightning", "pytorch_lightning": "pytorch-lightning", "hydra": "hydra-core",
    "omegaconf": "omegaconf", "jaxtyping": "jaxtyping", "beartype": "beartype", "constriction": "constriction",
    "xgboost": "xgboost", "lightgbm": "lightgbm", "optuna": "optuna", "ray": "ray", "modal": "modal",
    "runpod": "runpod", "boto3": "boto3", "google": "google-cloud", "openai": "openai", "anthropic": "anthropic",
    "PIL": "pillow", "cv2": "opencv-python", "networkx": "networkx", "sympy": "sympy", "joblib": "joblib",
    "cloudpickle": "cloudpickle", "dill": "dill", "msgpack": "msgpack", "orjson": "orjson", "regex": "regex",
    "cffi": "cffi", "Cython": "cython", "pybind11": "pybind11", "ninja": "ninja", "pyximport": "cython",
    "python_minifier": "python-minifier", "blosc2": "blosc2", "snappy": "python-snappy", "zopfli": "zopfli",
    "pyppmd": "pyppmd", "py7zr": "py7zr", "faiss": "faiss-cpu", "hnswlib": "hnswlib", "annoy": "annoy",
    "kenlm": "kenlm", "nltk": "nltk", "spacy": "spacy", "ftfy": "ftfy", "marisa_trie": "marisa-trie",
    "sortedcontainers": "sortedcontainers", "xxhash": "xxhash", "mmh3": "mmh3", "bitarray": "bitarray",
    "tabulate": "tabulate", "termcolor": "termcolor", "colorama": "colorama", "loguru": "loguru",
    "dotenv": "python-dotenv", "fire": "fire", "absl": "absl-py", "attr": "attrs", "attrs": "attrs",
    "packaging": "packaging", "setuptools": "setuptools", "pytest": "pytest", "IPython": "ipython",
    "pywt": "pywavelets", "galois": "galois", "geoopt": "geoopt", "torchdiffeq": "torchdiffeq",
    "muon": "muon-optimizer", "schedulefree": "schedulefree", "heavyball": "heavyball", "lion_pytorch": "lion-pytorch",
    "torch_optimizer": "torch-optimizer", "dion": "dion", "soap": "soap", "pytorch_optimizer": "pytorch-optimizer",
    "reedsolo": "reedsolo", "primesieve": "primesieve", "hypothesis": "hypothesis", "gpytorch": "gpytorch",
}  # fmt: skip


def installs(name: str) -> str | None:
    """The distribution that provides top-level module `name`, or None where it is not known as a package."""
    top = name.partition(".")[0]
    return GPU_PACKAGES.get(top) or PACKAGES.get(top)
