r"""lm-evaluation-harness against a running server, unmodified, and against the same LLM in process: they must agree.

    pip install -c constraints.txt -e ".[eval]"
    python benchmarks/lm_eval_http.py --url http://127.0.0.1:8000 --model testbed --tokenizer testbed --limit 100

A multiple-choice task is made from the testbed's world as local JSON (a question, its true answer and the answers of
three other questions of that relation). The harness scores every choice with its client for OpenAI's completions
(`echo` and `logprobs`; such requests hold their own answer, so they run unedited) and with its own loader of Hugging
Face models. The last line is one JSON object: both accuracies, and the largest difference of a log-likelihood.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

from recipe_ray.eval.ability.choices import write_task
from recipe_ray.eval.ability.harness import VERSION, evaluate_other
from recipe_ray.eval.ability.world import world_questions
from recipe_ray.model.hub import model_source

TASK = "testbed_choices"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the server")
    parser.add_argument("--model", required=True, help="its name there")
    parser.add_argument("--tokenizer", default="testbed", help="the LLM, by path or `testbed`: tokenizer and weights")
    parser.add_argument("--limit", type=int, default=100, help="questions")
    parser.add_argument("--num-concurrent", type=int, default=8)
    args = parser.parse_args()
    source = str(model_source(args.tokenizer, "llm"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_task(folder, TASK, world_questions(args.limit, edited=True), "text")
        over_http = evaluate_other(
            "local-completions",
            {
                "model": args.model,
                "base_url": f"{args.url}/v1/completions",
                "tokenizer": source,
                "add_bos_token": True,  # as the harness does for models in process, and does not for others
                "num_concurrent": args.num_concurrent,
                "max_retries": 3,
            },
            TASK,
            folder=folder,
        )
        in_process = evaluate_other(
            "hf", {"pretrained": source, "dtype": "float32", "device": "cpu"}, TASK, folder=folder
        )
    differences = [
        abs(float(one) - float(other))
        for http_doc, doc in zip(over_http["samples"], in_process["samples"], strict=True)
        for one, other in zip(loglikelihoods(http_doc), loglikelihoods(doc), strict=True)
    ]
    print(
        json.dumps(
            {
                "acc_over_http": over_http["acc"],
                "acc_in_process": in_process["acc"],
                "largest_difference": max(differences),
                "num_questions": len(in_process["samples"]),
                "lm_eval": VERSION,
            }
        )
    )


def loglikelihoods(sample: dict[str, Any]) -> list[float]:
    """Of each choice."""
    return [float(response[0]) for response in sample["filtered_resps"]]


if __name__ == "__main__":
    main()
