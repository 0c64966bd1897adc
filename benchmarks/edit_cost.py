r"""What an edit costs by each editor at the size of a real LLM: seconds, memory, state, and whether undo is exact.

    python benchmarks/edit_cost.py --llm llama-2-7b --device cuda       # of random weights, bfloat16
    python benchmarks/edit_cost.py --editors recipe fine_tuning grace   # the testbed's, on a CPU

Single edits one after the other, then a batch, all in force at once; then they are undone. Hyperparameters are the
presets for LLMs of that size. What an edit costs does not depend on the weights but where a search ends early, which
with random ones it may not: then it is the most that it takes. Quality is not measured here, only how many of the
targets' tokens the edited LLM gives (`forced`, teacher-forced, of the single edits); RECIPE's editor is random too and
gives none. Second moments, which ROME, MEMIT and AlphaEdit need once an LLM, are measured on few texts and timed apart.
Needs torch and transformers alone. The last line is one JSON object; `ratio` is the least of the other editors' seconds
a single edit over RECIPE's.
"""

import argparse
import json
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from recipe_ray.config import TESTBED
from recipe_ray.errors import RecipeError
from recipe_ray.eval.cases import EvalCase
from recipe_ray.eval.efficiency import clock, measured_on, peak_memory_bytes, start_peak_memory
from recipe_ray.eval.evaluation import edit_of
from recipe_ray.eval.methods import alphaedit, fine_tuning, grace, memit, rome, t_patcher, ultra_edit, wise
from recipe_ray.eval.methods.base import Method
from recipe_ray.eval.methods.covariance import Moments, second_moments, testbed_texts
from recipe_ray.eval.methods.recipe import Recipe
from recipe_ray.eval.testbed import testbed_cases, testbed_tuning_cases
from recipe_ray.examples import EditRecord
from recipe_ray.model.hub import pick_device
from recipe_ray.model.llm import FrozenLLM, load_llm
from recipe_ray.model.shapes import LLAMA_2_7B, ROBERTA_BASE, random_editor, random_llm

LLMS = (TESTBED, "llama-2-7b")


@dataclass(kw_only=True)
class Bench:
    """What editors are made from here."""

    llm: FrozenLLM
    preset: str
    num_texts: int
    measured: dict[int, Moments] = field(default_factory=dict)
    moments_s: list[float] = field(default_factory=list)

    @cached_property
    def training(self) -> list[EditRecord]:
        """Edits that none of the measured ones is among."""
        cases = testbed_tuning_cases()
        return [EditRecord(prompt=one.prompt, target=one.target, subject=one.subject) for one in cases]

    def moments(self, layers: Sequence[int]) -> Moments:
        """Second moments at some layers, each measured once."""
        missing = [layer for layer in layers if layer not in self.measured]
        if missing:
            begun = clock(self.llm.device)
            found = second_moments(self.llm, testbed_texts(self.num_texts), missing)
            self.moments_s.append((clock(self.llm.device) - begun) / len(missing))
            self.measured |= dict.fromkeys(missing, found)
        by_layer = {place: matrix for one in self.measured.values() for place, matrix in one.by_layer.items()}
        return Moments(by_layer=by_layer, num_tokens=next(iter(self.measured.values())).num_tokens)

    def recipe(self) -> Method:
        """RECIPE with an encoder and an editor of the paper's size."""
        return Recipe(self.llm, random_editor(ROBERTA_BASE, self.llm.device, llm_width=self.llm.width))

    def fine_tuning(self) -> Method:
        """FT."""
        return fine_tuning.FT(self.llm, fine_tuning.PRESETS[self.preset])

    def rome(self) -> Method:
        """ROME."""
        args = rome.PRESETS[self.preset]
        return rome.ROME(self.llm, args, moments=self.moments(args.layers))

    def memit(self) -> Method:
        """MEMIT."""
        args = memit.PRESETS[self.preset]
        return memit.MEMIT(self.llm, args, moments=self.moments(args.layers))

    def grace(self) -> Method:
        """GRACE."""
        return grace.Grace(self.llm, grace.PRESETS[self.preset])

    def t_patcher(self) -> Method:
        """T-Patcher."""
        return t_patcher.TPatcher(self.llm, t_patcher.PRESETS[self.preset], training=self.training)

    def wise(self) -> Method:
        """WISE."""
        return wise.Wise(self.llm, wise.PRESETS[self.preset], training=self.training)

    def alphaedit(self) -> Method:
        """AlphaEdit."""
        args = alphaedit.PRESETS[self.preset]
        return alphaedit.AlphaEdit(self.llm, args, moments=self.moments(args.layers))

    def ultra_edit(self) -> Method:
        """UltraEdit."""
        return ultra_edit.UltraEdit(self.llm, ultra_edit.PRESETS[self.preset])


EDITORS = ("recipe", "fine_tuning", "rome", "memit", "grace", "wise", "t_patcher", "ultra_edit", "alphaedit")


def measure(make: Callable[[], Method], cases: Sequence[EvalCase], num_single: int) -> dict[str, Any]:
    """One editor: single edits, then the rest as a batch, then undo; what each took."""
    begun = time.perf_counter()
    method = make()
    llm = method.reader.llm
    device = llm.device
    prepare_s = clock(device) - begun
    asks = [case.prompt for case in cases[:num_single]]
    before = reading(method, cases[:num_single], asks)
    start_peak_memory(device)
    seconds = []
    try:
        for case in cases[:num_single]:
            begun = clock(device)
            method.apply([edit_of(case)])
            seconds.append(clock(device) - begun)
        forced = reading(method, cases[:num_single], asks)
        batch = [edit_of(case) for case in cases[num_single:]]
        begun = clock(device)
        method.apply(batch)
        batch_s = clock(device) - begun
        state_bytes = method.state_bytes()
    except BaseException:
        method.undo()  # the next editor works on the same LLM
        raise
    begun = clock(device)
    method.undo()
    undo_s = clock(device) - begun
    return {
        "prepare_s": prepare_s,
        "single_s": statistics.median(seconds),
        "first_s": seconds[0],
        "batch_s_per_edit": batch_s / len(batch),
        "state_bytes_per_edit": state_bytes / len(cases),
        "peak_memory_bytes": peak_memory_bytes(device),
        "undo_s": undo_s,
        "undone": torch.equal(before[1], reading(method, cases[:num_single], asks)[1]),
        "forced_before": before[0],
        "forced": forced[0],
    }


def reading(method: Method, cases: Sequence[EvalCase], prompts: Sequence[str]) -> tuple[float, torch.Tensor]:
    """Share of the targets' tokens that are the most likely, and the logits in which they are."""
    reader = method.reader
    asks, answers = method.asks(prompts), reader.answer_ids([case.target for case in cases])
    reader.clear()
    return statistics.mean(reader.token_accuracies(asks, answers)), reader.answer_logits(asks, answers).clone()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", choices=LLMS, default=TESTBED)
    parser.add_argument("--editors", nargs="+", choices=EDITORS, default=EDITORS)
    parser.add_argument("--num-single", type=int, default=5)
    parser.add_argument("--num-batch", type=int, default=20)
    parser.add_argument("--num-texts", type=int, default=500, help="that second moments are measured on")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    llm = load_llm(TESTBED, str(device)) if args.llm == TESTBED else random_llm(LLAMA_2_7B, device)
    bench = Bench(llm=llm, preset="testbed" if args.llm == TESTBED else "7b", num_texts=args.num_texts)
    cases = testbed_cases()[: args.num_single + args.num_batch]
    editors: dict[str, dict[str, Any]] = {}
    for name in args.editors:
        try:
            editors[name] = measure(getattr(bench, name), cases, args.num_single)
        except (RecipeError, RuntimeError) as error:  # such as too little memory: the others are measured
            traceback.print_exc()
            editors[name] = {"error": f"{type(error).__name__}: {error}"}
        print(name, json.dumps(editors[name]), flush=True)
    others = [one["single_s"] for name, one in editors.items() if name != "recipe" and "single_s" in one]
    own = editors.get("recipe", {}).get("single_s")
    result = {
        "ratio": min(others) / own if own and others else None,
        "editors": editors,
        "moments_s_per_layer": bench.moments_s,
        "llm": args.llm,
        "dtype": str(llm.model.dtype).removeprefix("torch."),
        "num_single": args.num_single,
        "num_batch": args.num_batch,
        **measured_on(device),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
