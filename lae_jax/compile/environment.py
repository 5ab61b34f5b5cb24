"""The environment of the compilers, which JAX and they read when they are loaded."""

import os

# Several processes may compile for TPUs at once. The compiler of TPUs asks a TPU's host for its name and type, and
# complains where there is none; they do not change what it compiles. Without a GPU no kernel can be tried out, and
# Triton's tiling of products ends the process.
VARIABLES = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
XLA_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


def prepare() -> None:
    """Sets it. Call this before anything imports JAX."""
    os.environ |= VARIABLES
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {XLA_FLAGS}".strip()
