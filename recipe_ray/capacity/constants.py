"""What the plan rests on: shapes that makers publish, what was measured, and what is assumed.

Measured are figures of 2 CPU cores with the testbed's models, and of one H100 with the shapes of Llama-2-7B and
RoBERTa-base; docs/capacity.md names the command that prints each. Nothing was measured with more than a million facts.
"""

from dataclasses import dataclass

GIB = 2**30
GB = 10**9

BYTES_OF = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "int4": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmShape:
    """What an LLM costs.

    Attributes:
        width: D, of the input embeddings.
        num_layers: of the decoder.
        kv_width: key and value heads times their width: what one layer keeps of a token, once for keys and for values.
        num_parameters: all of them.
    """

    width: int
    num_layers: int
    kv_width: int
    num_parameters: float


LLMS = {  # by the names of recipe_ray/presets.py; from their makers' configurations
    "testbed": LlmShape(width=128, num_layers=4, kv_width=128, num_parameters=1.1e6),
    "smollm2-135m-instruct": LlmShape(width=576, num_layers=30, kv_width=192, num_parameters=0.1345e9),
    "laptop": LlmShape(width=896, num_layers=24, kv_width=128, num_parameters=0.494e9),
    "gpt2-xl": LlmShape(width=1600, num_layers=48, kv_width=1600, num_parameters=1.558e9),
    "gpt-j-6b": LlmShape(width=4096, num_layers=28, kv_width=4096, num_parameters=6.05e9),
    "llama-2-7b": LlmShape(width=4096, num_layers=32, kv_width=4096, num_parameters=6.738e9),
    "llama-3.1-8b": LlmShape(width=4096, num_layers=32, kv_width=1024, num_parameters=8.03e9),
    "mistral-7b": LlmShape(width=4096, num_layers=32, kv_width=1024, num_parameters=7.248e9),
    "qwen2.5-7b": LlmShape(width=3584, num_layers=28, kv_width=512, num_parameters=7.616e9),
    "qwen2.5-7b-multilingual": LlmShape(width=3584, num_layers=28, kv_width=512, num_parameters=7.616e9),
    "gemma-7b": LlmShape(width=3072, num_layers=28, kv_width=4096, num_parameters=8.538e9),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderShape:
    """What an encoder costs: its width, the parameters that each token passes, and all of them."""

    width: int
    layer_parameters: float
    num_parameters: float


ENCODERS = {
    "testbed": EncoderShape(width=192, layer_parameters=1.33e6, num_parameters=1.75e6),
    "minilm-l6": EncoderShape(width=384, layer_parameters=10.6e6, num_parameters=22.7e6),
    "distilroberta": EncoderShape(width=768, layer_parameters=42.5e6, num_parameters=82e6),
    "roberta-base": EncoderShape(width=768, layer_parameters=85.1e6, num_parameters=125e6),
    "xlm-roberta-base": EncoderShape(width=768, layer_parameters=85.1e6, num_parameters=278e6),
}
POOLED_PARTS = 3  # max, min, mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A card by its maker's data sheet: memory, its bandwidth, and dense bfloat16 FLOP/s."""

    memory_gb: float
    bandwidth_gb_s: float
    tflops: float


GPUS = {
    "a10g": Gpu(memory_gb=24, bandwidth_gb_s=600, tflops=70),
    "l4": Gpu(memory_gb=24, bandwidth_gb_s=300, tflops=121),
    "l40s": Gpu(memory_gb=48, bandwidth_gb_s=864, tflops=362),
    "a100-80gb": Gpu(memory_gb=80, bandwidth_gb_s=2039, tflops=312),
    "h100": Gpu(memory_gb=80, bandwidth_gb_s=3350, tflops=989),
    "h200": Gpu(memory_gb=141, bandwidth_gb_s=4800, tflops=989),
}

# Measured: bytes. tests/capacity builds a table and its indexes and compares.
EVENT_BYTES = 36  # of a Parquet row beside vectors and texts: hashes, times
TEXT_COMPRESSED = 0.35  # of the texts' bytes in Parquet, invented facts
ARROW_ROW_BYTES = 45  # of a row of the index's facts beside prompts and texts: offsets, times
GRAPH_LINK_BYTES = 272  # of a fact in a graph of 32 links
EXACT_BELOW = 20_000  # facts of a shard: scanned below, a graph from there on
GRAPH_DIMENSIONS_SHARE = 96 / 512  # of a key that its graph holds, at K 512
LEDGER_BYTES = 100  # of an event in a process that follows the table
NUM_INDEXES_KEPT = 2  # by vacuum

# Measured: seconds of one CPU core.
INGEST_CORE_S = 0.00047  # of a fact, beside its encoding
INGEST_START_S = 9.5  # of an ingest, however small
READ_ROWS_PER_CORE_S = 120_000  # parsed, validated, hashed
CORE_FLOPS = 67e9  # of encoding, float32
QUERY_CORE_S = 0.001  # of a query's encoding beside its FLOPs
GRAPH_SEARCH_CORE_S = 0.00078  # of a query in a graph of a million facts of K 512
GRAPH_BUILD_CORE_S = 0.00042  # of a fact in a graph of a million facts of K 512
MEASURED_FACTS = 1_000_000
MEASURED_KEY_WIDTH = 512
SCAN_BYTES_PER_CORE_S = 16e9
ENGINE_RATIO = 0.96  # tokens a second, edited over unedited, at batch 64

# Measured: one H100, bfloat16, the transformers engine.
GPU_FLOPS_SHARE = 0.4  # while prompts are read
GPU_ENCODE_FLOPS_SHARE = 0.12  # while facts are encoded
LAYER_STEP_S = 0.00065  # of a step of decoding, a layer: the host launches kernels one by one, whatever the batch

# Assumed, on GPUs and networks: unmeasured.
GPU_BANDWIDTH_SHARE = 0.6
GPU_MEMORY_SHARE = 0.85  # for weights, keys and values; the rest is the runtime's
TENSOR_PARALLEL_SHARE = 0.85  # of what more GPUs should bring
MAX_TENSOR_PARALLEL = 8  # GPUs of one machine
NETWORK_SHARE = 0.7
MESSAGE_S = 0.005  # between two deployments of Ray Serve
INGRESS_CORE_S = 0.01  # of a request: HTTP, JSON, streaming
PROCESS_BYTES = 1 * GIB  # of a process with PyTorch, before it holds anything
