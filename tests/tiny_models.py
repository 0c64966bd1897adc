"""Tiny models with random weights, far enough from uniform that every input changes what they give."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaModel,
)

from recipe_ray.config import EditorConfig
from recipe_ray.model.editor import Editor
from recipe_ray.model.encoder import TextEncoder
from recipe_ray.model.llm import FrozenLLM

PAD, BOS, EOS = 0, 1, 2
LLM_WIDTH = 32
CONTEXT = 128
VOCABULARY = 259

_COMMON = {
    "vocab_size": VOCABULARY,
    "initializer_range": 0.5,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_ROTARY = {
    "hidden_size": LLM_WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": CONTEXT,
}
_GPT = {"n_embd": LLM_WIDTH, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_COMMON, **_ROTARY)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_COMMON, **_GPT)),
    "gptj": lambda: GPTJForCausalLM(GPTJConfig(**_COMMON, **_GPT, rotary_dim=8)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_COMMON, **_ROTARY)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_COMMON, **_ROTARY, sliding_window=None)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**_COMMON, **_ROTARY, head_dim=16)),
}


def byte_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte, with or without BOS in front."""
    pieces = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    assert len(pieces) == VOCABULARY
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(pieces[:3])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def tiny_llm(family: str = "llama", *, seed: int = 0, bos: bool = True) -> FrozenLLM:
    """A causal LM of two layers."""
    torch.manual_seed(seed)
    return FrozenLLM(FAMILIES[family](), byte_tokenizer(bos=bos), name=f"tiny-{family}")


def bert(*, seed: int = 0, dropout: float = 0.0, context: int = 64, pooler: bool = False) -> BertModel:
    """A BERT of two layers."""
    torch.manual_seed(seed)
    return BertModel(_encoder_config(BertConfig, dropout, context, PAD), add_pooling_layer=pooler)


def roberta(*, seed: int = 0, dropout: float = 0.0, context: int = 64, pooler: bool = False) -> RobertaModel:
    """A RoBERTa of two layers, whose positions begin behind the padding id, which is not 0."""
    torch.manual_seed(seed)
    return RobertaModel(_encoder_config(RobertaConfig, dropout, context, EOS), add_pooling_layer=pooler)


def _encoder_config(config_class, dropout, context, pad):
    return config_class(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=context,
        pad_token_id=pad,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.3,
    )


def tiny_editor(model=None, *, seed: int = 0, **changes) -> Editor:
    """An editor for a tiny LLM, in evaluation mode."""
    config = EditorConfig(**{"llm": "tiny-llama", "encoder": "tiny-bert", "key_width": 24, **changes})
    model = model or bert(seed=seed, pooler="pooler" in config.pooling)
    torch.manual_seed(seed)
    return Editor(config, TextEncoder(model, byte_tokenizer(), config.pooling), llm_width=LLM_WIDTH).eval()
