"""Models of real sizes with random weights: what a size costs can be measured where no hub is at hand.

Their tokenizers are the testbed's, the ones that the project ships.
"""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, RobertaConfig, RobertaModel

from recipe_ray.config import TESTBED, EditorConfig
from recipe_ray.model.editor import Editor
from recipe_ray.model.encoder import TextEncoder
from recipe_ray.model.hub import model_source
from recipe_ray.model.llm import FrozenLLM

LLAMA_2_7B = LlamaConfig(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    max_position_embeddings=4096,
)
ROBERTA_BASE = RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1)
KEY_WIDTH = 4096  # the paper's K
_LLM_NAME, _ENCODER_NAME = "llama-2-7b", "roberta-base"


def random_llm(config: LlamaConfig, device: torch.device, *, seed: int = 0) -> FrozenLLM:
    """An LLM of a configuration in bfloat16, with the testbed's tokenizer."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return FrozenLLM(model, AutoTokenizer.from_pretrained(model_source(TESTBED, "llm")), name=_LLM_NAME)


def random_editor(
    shape: RobertaConfig, device: torch.device, *, config: EditorConfig | None = None, llm_width: int, seed: int = 0
) -> Editor:
    """An editor over an encoder of a configuration, with the testbed's tokenizer.

    Args:
        shape: of the encoder.
        device: where it computes.
        config: of the editor; the paper's K if not given.
        llm_width: D.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    config = config or EditorConfig(llm=_LLM_NAME, encoder=_ENCODER_NAME, key_width=KEY_WIDTH)
    tokenizer = AutoTokenizer.from_pretrained(model_source(TESTBED, "encoder"))
    with torch.device(device):
        encoder = TextEncoder(RobertaModel(shape, add_pooling_layer=False), tokenizer, config.pooling)
        return Editor(config, encoder, llm_width=llm_width).eval()
