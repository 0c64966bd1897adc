"""What makes continuous prompts: of the key alone, as the paper has it, or of the statement's last tokens too.

Shape letters: F facts, K key width, P virtual tokens, D LLM width, N statement tokens read, W inner width.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipe_ray.text import canonical

# Of a prompt made of a statement the first virtual token and the last copy nothing. An LLM hardly ever says at once
# what it has just read: with the copy last, 40 steps of training ended at a reliability loss of 1.59, so at 1.10.
NUM_FREE_TOKENS = 2
NUM_STATEMENT_TOKENS = 24  # the last ones are read
INNER_WIDTH = 256
NUM_LAYERS = 2
NUM_HEADS = 4
COPY_BIAS = 6.0  # in favour of a virtual token's own place in the statement, before training


class PromptEncoder(nn.Module):
    """p = reshape(W4 (ReLU(W3 k + b3) + k) + b4, P × D), times a constant: the size of the LLM's own embeddings.

    The constant keeps W4 at its usual size whatever the LLM: an optimiser's step is then small beside the weights.
    """

    scale: Tensor

    def __init__(self, key_width: int, num_virtual_tokens: int, llm_width: int) -> None:
        super().__init__()
        self.shape = (num_virtual_tokens, llm_width)
        self.transform = nn.Linear(key_width, key_width)
        self.project = nn.Linear(key_width, num_virtual_tokens * llm_width)
        self.register_buffer("scale", torch.tensor(1.0))

    def features(self, keys_FK: Tensor) -> Tensor:
        """ReLU(W3 k + b3) + k, [F, K]: what the last layer reads."""
        return functional.relu(self.transform(keys_FK)) + keys_FK

    def forward(self, keys_FK: Tensor) -> Tensor:
        """[F, K] to [F, P, D]."""
        prompts = self.project(self.features(keys_FK))
        return cast(Tensor, (self.scale * prompts).unflatten(-1, self.shape))


class StatementPromptEncoder(nn.Module):
    """Continuous prompts of keys and of the statements' last tokens, each as the LLM itself embeds it.

    Not of the paper, whose prompt is a function of the key alone: a key of some hundred numbers does not hold the
    spelling of a name that no training saw. A Transformer reads the statement's embeddings and P slots that begin with
    the key. Of each slot come a pointer, a softmax over the statement's tokens whose embeddings are mixed, and a change
    that is added. Before training the slots but for the first and the last point to the last tokens, one each.
    """

    scale: Tensor

    def __init__(self, key_width: int, num_virtual_tokens: int, llm_width: int) -> None:
        super().__init__()
        self.shape = (num_virtual_tokens, llm_width)
        self.num_copies = num_virtual_tokens - NUM_FREE_TOKENS
        self.read = nn.Linear(llm_width, INNER_WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(NUM_STATEMENT_TOKENS, INNER_WIDTH))
        self.slots = nn.Parameter(0.02 * torch.randn(num_virtual_tokens, INNER_WIDTH))
        self.key = nn.Linear(key_width, INNER_WIDTH)
        layer = nn.TransformerEncoderLayer(
            INNER_WIDTH, NUM_HEADS, 4 * INNER_WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, NUM_LAYERS, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(INNER_WIDTH)
        self.point = nn.Linear(INNER_WIDTH, INNER_WIDTH)
        self.pointed = nn.Linear(INNER_WIDTH, INNER_WIDTH)
        self.change = nn.Linear(INNER_WIDTH, llm_width)
        self.copies = nn.Parameter(torch.zeros(num_virtual_tokens, NUM_STATEMENT_TOKENS))
        self.gates = nn.Parameter(torch.zeros(num_virtual_tokens))
        self.register_buffer("scale", torch.tensor(1.0))
        with torch.no_grad():
            self.change.weight.mul_(0.1)
            self.change.bias.zero_()
            for copy in range(self.num_copies):
                self.copies[-2 - copy, -1 - copy] = COPY_BIAS
                self.gates[-2 - copy] = 1.0

    def forward(self, keys_FK: Tensor, embeds_FND: Tensor, mask_FN: Tensor) -> Tensor:
        """Prompts [F, P, D].

        Args:
            keys_FK: keys with entries of about unit size.
            embeds_FND: the LLM's embeddings of the statements' last N tokens, left-padded; N is at most
                NUM_STATEMENT_TOKENS.
            mask_FN: 1 where a token stands.
        """
        num_tokens = embeds_FND.shape[1]
        embeds_FND = embeds_FND.to(keys_FK.dtype)
        tokens_FNW = self.read(embeds_FND / self.scale) + self.places[-num_tokens:]
        slots_FPW = self.slots + self.key(keys_FK)[:, None]
        absent = functional.pad(mask_FN == 0, (self.shape[0], 0))
        inner = self.norm(self.layers(torch.cat([slots_FPW, tokens_FNW], 1), src_key_padding_mask=absent))
        slots_FPW, tokens_FNW = inner.split([self.shape[0], num_tokens], 1)
        scores_FPN = self.point(slots_FPW) @ self.pointed(tokens_FNW).mT / INNER_WIDTH
        scores_FPN = scores_FPN + self.copies[:, -num_tokens:]
        scores_FPN = scores_FPN.masked_fill(mask_FN[:, None] == 0, -torch.inf)
        copied_FPD = scores_FPN.float().softmax(-1) @ embeds_FND.float()
        return self.gates[:, None] * copied_FPD + self.scale * self.change(slots_FPW)


class StatementReader:
    """Statements' last tokens as an LLM embeds them; holds the LLM's embeddings, which are no part of an editor.

    Args:
        tokenizer: the LLM's.
        embedding: its input embedding module, frozen.
    """

    def __init__(self, tokenizer: Any, embedding: nn.Module) -> None:
        self.tokenizer = tokenizer
        self.embedding = embedding

    def tokenize(self, statements: Sequence[str]) -> list[list[int]]:
        """The last token ids of each statement in its canonical form, at least one, without special tokens."""
        texts = [canonical(statement) for statement in statements]
        if not texts:
            return []
        return [ids[-NUM_STATEMENT_TOKENS:] for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def pad(self, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Left-padded ids and mask, both int64 [F, N]."""
        width = max(1, *map(len, token_ids))
        ids_FN = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in token_ids])
        mask_FN = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in token_ids])
        return ids_FN, mask_FN

    @torch.no_grad()
    def embed(self, ids_FN: Tensor) -> Tensor:
        """[F, N] to [F, N, D]."""
        device = next(self.embedding.parameters()).device
        return cast(Tensor, self.embedding(ids_FN.to(device)).float())
