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
import random
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import lm_eval
from lm_eval.tasks import TaskManager

from recipe_ray.model.hub import model_source
from recipe_ray.testbed.world import load_world

TASK = """\
task: testbed_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


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
    with tempfile.TemporaryDirectory() as folder:
        write_task(Path(folder), args.limit)
        over_http = evaluated(
            Path(folder),
            "local-completions",
            {
                "model": args.model,
                "base_url": f"{args.url}/v1/completions",
                "tokenizer": source,
                "add_bos_token": True,  # as the harness does for models in process, and does not for others
                "num_concurrent": args.num_concurrent,
                "max_retries": 3,
            },
        )
        in_process = evaluated(Path(folder), "hf", {"pretrained": source, "dtype": "float32", "device": "cpu"})
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
                "lm_eval": lm_eval.__version__,
            }
        )
    )


def write_task(folder: Path, num_questions: int) -> None:
    """The task's YAML and its JSON Lines."""
    rng = random.Random(0)
    by_relation: dict[str, list[Any]] = {}
    for fact in load_world().facts:
        by_relation.setdefault(fact.relation.name, []).append(fact)
    facts = [fact for of_relation in by_relation.values() if len(of_relation) >= 4 for fact in of_relation]
    with (folder / "choices.jsonl").open("w") as lines:
        for fact in rng.sample(facts, min(num_questions, len(facts))):
            others = sorted({other.answer for other in by_relation[fact.relation.name]} - {fact.answer})
            choices = [fact.answer, *rng.sample(others, min(3, len(others)))]
            rng.shuffle(choices)
            row = {"question": fact.prompt(0), "choices": choices, "answer": choices.index(fact.answer)}
            lines.write(json.dumps(row) + "\n")
    (folder / "testbed_choices.yaml").write_text(TASK.format(data=folder / "choices.jsonl"))


def evaluated(folder: Path, model: str, model_args: dict[str, Any]) -> dict[str, Any]:
    """Accuracy and samples of the task by one of the harness's models."""
    found = lm_eval.simple_evaluate(
        model=model,
        model_args=model_args,
        tasks=["testbed_choices"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = sorted(found["samples"]["testbed_choices"], key=lambda sample: sample["doc_id"])
    return {"acc": found["results"]["testbed_choices"]["acc,none"], "samples": samples}


def loglikelihoods(sample: dict[str, Any]) -> list[float]:
    """Of each choice."""
    return [float(response[0]) for response in sample["filtered_resps"]]


if __name__ == "__main__":
    main()
