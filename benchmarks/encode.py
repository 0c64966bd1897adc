r"""What encoding facts in bulk costs beside the bare passes of the encoder, the heads and the prompt encoder.

    python benchmarks/encode.py --editor EDITOR                                     # a trained editor, on a CPU
    python benchmarks/encode.py --config roberta-base --device cuda                 # of random weights, K 4096, D 4096

`Editor.encode_facts`, which is what an ingest runs, and bare passes over the same batches, tokenised, padded and on the
device already and their results left there, are timed in turn. Needs torch and transformers alone. The last line is one
JSON object; `ratio` is the loop's facts a second over those of the bare passes.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

from recipe_ray.config import EditorConfig
from recipe_ray.model.editor import Editor, load_editor
from recipe_ray.model.encoder import TextEncoder
from recipe_ray.model.hub import model_source, pick_device
from recipe_ray.testbed.million import generate_facts

ROBERTA_BASE = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
KEY_WIDTH, LLM_WIDTH = 4096, 4096


def build(device: torch.device) -> Editor:
    """An editor of the paper's size with random weights; the testbed's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(model_source("testbed", "encoder"))
    config = EditorConfig(llm="llama-2-7b", encoder="roberta-base", key_width=KEY_WIDTH)
    with torch.device(device):
        encoder = TextEncoder(RobertaModel(ROBERTA_BASE, add_pooling_layer=False), tokenizer, config.pooling)
        return Editor(config, encoder, llm_width=LLM_WIDTH).eval()


def bare_passes(editor: Editor, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Encoder, key head and prompt encoder over padded batches, in the precision that `encode_facts` takes."""
    precision = torch.autocast("cuda", dtype=torch.bfloat16, enabled=editor.device.type == "cuda")
    with torch.inference_mode(), precision:
        for ids_BT, mask_BT in batches:
            editor.prompts(editor.keys(editor.encoder(ids_BT, mask_BT)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--editor", type=Path, help="directory of a trained editor")
    which.add_argument("--config", choices=["roberta-base"], help="random weights of the paper's size")
    parser.add_argument(
        "--facts", type=Path, help="JSON Lines with prompt and target, drawn from; invented ones if not given"
    )
    parser.add_argument("--num-facts", type=int, default=16_384)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--on-request",
        action="store_true",
        help="bare passes alone, a round for each line read, its facts a second each",
    )
    args = parser.parse_args()
    device = pick_device(args.device)
    editor = load_editor(args.editor, str(device)) if args.editor else build(device)
    statements = read_statements(args.facts, args.num_facts)
    token_ids = editor.encoder.tokenize(statements)
    batches = [editor.encoder.pad([token_ids[row] for row in batch]) for batch in editor.batches(token_ids)]

    def synchronized() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    if args.on_request:
        bare_passes(editor, batches)
        print("ready", flush=True)
        for _ in sys.stdin:
            begun = synchronized()
            bare_passes(editor, batches)
            print(len(statements) / (synchronized() - begun), flush=True)
        return
    loop_s, bare_s = [], []
    for number in range(args.rounds + 1):
        begun = synchronized()
        editor.encode_facts(statements)
        middle = synchronized()
        bare_passes(editor, batches)
        end = synchronized()
        if number:  # the first warms up
            loop_s.append(middle - begun)
            bare_s.append(end - middle)
    result = {
        "ratio": statistics.median(bare / loop for bare, loop in zip(bare_s, loop_s, strict=True)),
        "facts_per_s": len(statements) / statistics.median(loop_s),
        "bare_facts_per_s": len(statements) / statistics.median(bare_s),
        "num_facts": len(statements),
        "tokens_per_fact": sum(map(len, token_ids)) / len(statements),
        "key_width": editor.config.key_width,
        "llm_width": editor.llm_width,
        "encoder": editor.config.encoder,
        "rounds": args.rounds,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    print(json.dumps(result))


def read_statements(path: Path | None, num_facts: int) -> list[str]:
    """Statements of facts drawn from a file, or of invented ones."""
    if path is None:
        records = list(generate_facts(num_facts, seed=0))
    else:
        lines = path.read_text().splitlines()
        # Not the first ones: of invented facts they are the shortest, for names grow with their number.
        records = [json.loads(line) for line in random.Random(0).sample(lines, min(num_facts, len(lines)))]
    return [f"{record['prompt']} {record['target']}" for record in records]


if __name__ == "__main__":
    main()
