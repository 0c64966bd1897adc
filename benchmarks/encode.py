r"""What encoding facts in bulk costs beside the bare passes of the encoder, the heads and the prompt encoder.

    python benchmarks/encode.py --editor EDITOR                                     # a trained editor, on a CPU
    python benchmarks/encode.py --config roberta-base --device cuda                 # of random weights, K 4096, D 4096

`Editor.encode_facts`, which is what an ingest runs, to float16, and bare passes over the same facts, tokenised, sorted
by length, padded and on the device already and their results left there, are timed in turn, over other facts in every
round. Needs torch and transformers alone. The last line is one JSON object; `ratio` is the loop's facts a second over
those of the bare passes.
"""

import argparse
import json
import random
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

from recipe_ray.eval.efficiency import clock, measured_on
from recipe_ray.model.editor import Editor, load_editor
from recipe_ray.model.hub import pick_device
from recipe_ray.model.shapes import LLAMA_2_7B, ROBERTA_BASE, random_editor
from recipe_ray.testbed.million import generate_facts


def bare_passes(editor: Editor, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Encoder, key head and prompt encoder over padded batches, in the precision that `encode_facts` takes."""
    precision = torch.autocast("cuda", dtype=torch.bfloat16, enabled=editor.device.type == "cuda")
    with torch.inference_mode(), precision:
        for ids_BT, mask_BT in batches:
            editor.prompts(editor.keys(editor.encoder(ids_BT, mask_BT)), None)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--editor", type=Path, help="directory of a trained editor")
    which.add_argument("--config", choices=["roberta-base"], help="random weights of the paper's size")
    parser.add_argument(
        "--facts", type=Path, help="JSON Lines with prompt and target, drawn from; invented ones if not given"
    )
    parser.add_argument("--num-facts", type=int, default=16_384, help="of a round")
    parser.add_argument("--facts-per-call", type=int, help="all of a round if not given; 2048 is an ingest's at K 4096")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--on-request",
        action="store_true",
        help="bare passes alone, a round for each line read, its facts a second each",
    )
    args = parser.parse_args()
    device = pick_device(args.device)
    if args.editor:
        editor = load_editor(args.editor, str(device))
        if editor.config.prompt_source != "key":
            parser.error(f"--editor {args.editor}: makes prompts of statements; give one that makes them of keys")
    else:
        editor = random_editor(ROBERTA_BASE, device, llm_width=LLAMA_2_7B.hidden_size)

    if args.on_request:
        (statements,) = read_statements(args.facts, args.num_facts, num_sets=1)
        batches = laid_out(editor, statements)[0]
        bare_passes(editor, batches)
        print("ready", flush=True)
        for _ in sys.stdin:
            begun = clock(device)
            bare_passes(editor, batches)
            print(len(statements) / (clock(device) - begun), flush=True)
        return
    loop_s, bare_s, tokens = [], [], []
    # Others in every round, as an ingest has others in every unit: what is fast only where shapes come again must not
    # count.
    for number, statements in enumerate(read_statements(args.facts, args.num_facts, num_sets=args.rounds + 1)):
        batches, num_tokens = laid_out(editor, statements)
        per_call = args.facts_per_call or len(statements)
        begun = clock(device)
        for start in range(0, len(statements), per_call):
            editor.encode_facts(statements[start : start + per_call], np.float16)
        middle = clock(device)
        bare_passes(editor, batches)
        end = clock(device)
        if number:  # the first warms up
            loop_s.append(middle - begun)
            bare_s.append(end - middle)
            tokens.append(num_tokens / len(statements))
    result = {
        "ratio": statistics.median(bare / loop for bare, loop in zip(bare_s, loop_s, strict=True)),
        "facts_per_s": len(statements) / statistics.median(loop_s),
        "bare_facts_per_s": len(statements) / statistics.median(bare_s),
        "num_facts": len(statements),
        "facts_per_call": per_call,
        "tokens_per_fact": statistics.mean(tokens),
        "key_width": editor.config.key_width,
        "llm_width": editor.llm_width,
        "encoder": editor.config.encoder,
        "rounds": args.rounds,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        **measured_on(device),
    }
    print(json.dumps(result))


def laid_out(editor: Editor, statements: list[str]) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], int]:
    """Padded batches on the editor's device, and the tokens in them without padding."""
    token_ids = editor.encoder.tokenize(statements)
    batches = [editor.encoder.pad([token_ids[row] for row in batch]) for batch in editor.batches(token_ids)]
    return batches, sum(map(len, token_ids))


def read_statements(path: Path | None, num_facts: int, *, num_sets: int) -> list[list[str]]:
    """Sets of statements of facts drawn from a file, fewer where it has no more, or of invented ones.

    Not the first ones: of invented facts they are the shortest, for names grow with their number.
    """
    if path is None:
        records = list(generate_facts(num_facts * num_sets, seed=0))
    else:
        records = [json.loads(line) for line in path.read_text().splitlines()]
    num_facts = min(num_facts, len(records) // num_sets)
    drawn = random.Random(0).sample(records, num_facts * num_sets)
    statements = [f"{record['prompt']} {record['target']}" for record in drawn]
    return [statements[start : start + num_facts] for start in range(0, len(statements), num_facts)]


if __name__ == "__main__":
    main()
