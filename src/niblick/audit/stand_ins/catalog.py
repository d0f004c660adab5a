"""Which top-level names are packages of others, what installs them, and which need a GPU or a
Mac: what tells a package that is not here from a part of a submission that is missing.
"""

from __future__ import annotations

_ON_A_GPU = """
apex bitsandbytes causal_conv1d causal_conv1d_cuda cuda cudf cuequivariance_torch cupy
cut_cross_entropy cutlass deep_gemm deepspeed fla flash_attn flash_attn_2_cuda flash_attn_3
flash_attn_config flash_attn_interface flashinfer gemlite grouped_gemm helion hopper hqq kernels
liger_kernel mamba_ssm megablocks mlx mlx_lm natten numba nvidia pycuda pynvml quack rmm rwkv
sageattention selective_scan_cuda spas_sage_attn thunderkittens tilelang torch_scatter torch_xla
torchao transformer_engine transformer_engine_torch triton triton_kernels vllm wkv_cuda xformers
"""
_ELSEWHERE = """
absl accelerate annoy anthropic attr attrs beartype bitarray blosc2 boto3 brotli brotlicffi cffi
click cloudpickle colorama constriction cv2 Cython datasets dill dion dotenv einops faiss fire
flax ftfy galois geoopt google gpytorch heavyball hnswlib httpx huggingface_hub hydra hypothesis
IPython jax jaxlib jaxtyping joblib kenlm lightgbm lightning lion_pytorch loguru lz4 marisa_trie
matplotlib ml_dtypes mmh3 modal msgpack muon networkx ninja nltk numpy omegaconf openai optax
optuna orjson packaging pandas peft PIL polars primesieve psutil py7zr pyarrow pybind11 pydantic
pyppmd pytest python_minifier pytorch_lightning pytorch_optimizer pywt pyximport pyzstd ray
reedsolo regex requests rich runpod safetensors schedulefree scipy sentencepiece setuptools
sklearn snappy soap sortedcontainers spacy sympy tabulate tensorboard tensorflow termcolor
tiktoken tokenizers torch_optimizer torchaudio torchdiffeq torchvision tqdm transformers typer
wandb xgboost xxhash yaml zopfli zstandard zstd
"""
_INSTALLED_AS = """
absl=absl-py attr=attrs causal_conv1d_cuda=causal-conv1d cuda=cuda-python cupy=cupy-cuda12x
cutlass=nvidia-cutlass-dsl cv2=opencv-python dotenv=python-dotenv faiss=faiss-cpu
fla=flash-linear-attention flash_attn_2_cuda=flash-attn flash_attn_config=flash-attn-3
flash_attn_interface=flash-attn-3 flashinfer=flashinfer-python google=google-cloud
hopper=flash-attn-3 hydra=hydra-core muon=muon-optimizer nvidia=nvidia-cuda-runtime PIL=pillow
pynvml=nvidia-ml-py pywt=pywavelets pyximport=cython quack=quack-kernels
selective_scan_cuda=mamba-ssm sklearn=scikit-learn snappy=python-snappy
transformer_engine_torch=transformer-engine triton_kernels=triton wkv_cuda=rwkv yaml=pyyaml
"""
GPU_PACKAGES = frozenset(_ON_A_GPU.split())
_PACKAGES = GPU_PACKAGES | frozenset(_ELSEWHERE.split())
_DISTRIBUTIONS = dict(pair.split("=") for pair in _INSTALLED_AS.split())


def installs(name: str) -> str | None:
    """The distribution that provides top-level module `name`, or None where it is not known as a
    package.
    """
    top = name.partition(".")[0]
    if top not in _PACKAGES:
        return None
    return _DISTRIBUTIONS.get(top, top.replace("_", "-").lower())
