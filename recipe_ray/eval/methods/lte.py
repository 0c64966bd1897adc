"""LTE: an LLM that has learned to answer by facts put before a question, and to pass over those that do not concern it.

It is fine-tuned once; from then on every question gets the facts nearest to it (Jiang et al. 2024, "Learning to Edit:
Aligning LLMs with Knowledge Editing", arXiv 2402.11905).

Shape letters: F facts, B questions, H width of sentence embeddings.
"""

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recipe_ray.errors import EditorError
from recipe_ray.eval.cases import Ask
from recipe_ray.eval.methods.answers import answer_ids
from recipe_ray.eval.methods.base import Edit, Found, latest
from recipe_ray.eval.methods.retrieving import Encode
from recipe_ray.eval.methods.supervised import Row, SupervisedArgs, changed_copy, fine_tune
from recipe_ray.eval.protocol import MAX_NEW_TOKENS, STOP, plain_reader
from recipe_ray.examples import EditRecord, Question
from recipe_ray.model.llm import FrozenLLM

ROWS_PER_LOOKUP = 1024  # of similarities held at once
_FACTS_SHARES = (0.5, 0.25, 0.25)  # of rows with the fact alone, with one more, with two more (section 3.1)
_WEIGHTS, _CARD = "lte.safetensors", "lte.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LTEArgs:
    """How facts are pasted, and how the LLM learns to use them.

    Attributes:
        num_retrieved: facts before every question (3).
        fact: a fact, from `{number}` and `{statement}`.
        fact_separator: text between facts.
        template: what the LLM reads, from `{facts}` and `{question}`.
        own_question_share: of the rows in scope that ask the edit's own question; the others ask one of generality
            (0.3 in the authors' data).
        supervised: how weights are trained.
    """

    num_retrieved: int = 3
    fact: str = "{number}. {statement}"
    fact_separator: str = "\n"
    template: str = "[Updated Information]:\n{facts}\n\n[Query]:\n{question}"
    own_question_share: float = 0.3
    supervised: SupervisedArgs

    def read(self, llm: FrozenLLM, question: str, statements: Sequence[str]) -> str:
        """What the LLM reads: the question behind the statements, of which the last are left out that do not fit."""
        for num in range(len(statements), 0, -1):
            facts = self.fact_separator.join(
                self.fact.format(number=number, statement=statement)
                for number, statement in enumerate(statements[:num], 1)
            )
            text = self.template.format(facts=facts, question=question)
            room = llm.max_length - MAX_NEW_TOKENS
            if len(text.encode()) < room or len(llm.tokenize(text)) <= room:  # a token is at least a byte
                return text
        return question


PRESETS = {
    # The small LMs were pretrained on sentences in a row and on nothing like a form to fill in. One fact: with 300
    # edits of tuning data in force, after a short alignment, three gave 0.75, 0.60 and 0.61 of reliability, generality
    # and locality, one gave 0.87, 0.66 and 0.75: among several statements the small LM takes the wrong one.
    "testbed": LTEArgs(
        num_retrieved=1,
        fact="{statement}.",
        fact_separator=" ",
        template="{facts} {question}",
        supervised=SupervisedArgs(lora_rank=None, learning_rate=5e-4, num_epochs=3, batch_size=64),
    ),
    # The authors' for Llama-2-7B-chat with LoRA (their code; they drop 5% out where we drop nothing). Without LoRA they
    # train at 2e-5 with batches of 128.
    "7b": LTEArgs(supervised=SupervisedArgs(lora_rank=8, learning_rate=3e-4, batch_size=512, tokens_per_pass=8192)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """What the alignment phase gives: made once an LLM, whatever is edited later.

    Attributes:
        llm: name of the LLM.
        args: with which it was trained; its forms of text are what the LLM knows.
        change: of the weights, as `fine_tune` gives it.
    """

    llm: str
    args: LTEArgs
    change: Mapping[str, Tensor]

    def save(self, directory: str | Path) -> None:
        """Write it into a folder, made where there is none."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        save_file({name: one.contiguous() for name, one in self.change.items()}, Path(directory) / _WEIGHTS)
        card = {"llm": self.llm, "args": dataclasses.asdict(self.args)}
        (Path(directory) / _CARD).write_text(json.dumps(card, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> "Alignment":
        """What `save` wrote.

        Raises:
            EditorError: there is nothing of the kind, or it cannot be read.
        """
        path = Path(directory)
        try:
            card = json.loads((path / _CARD).read_text(encoding="utf-8"))
            supervised = SupervisedArgs(**card["args"].pop("supervised"))
            args = LTEArgs(**card["args"], supervised=supervised)
            return cls(llm=card["llm"], args=args, change=load_file(path / _WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise EditorError(f"{path}: no alignment that can be read ({reason}); align the LLM and save it") from error


def align(llm: FrozenLLM, args: LTEArgs, *, training: Sequence[EditRecord], encode: Encode, seed: int = 0) -> Alignment:
    """The alignment phase (section 3.1): fine-tune a copy of the LLM; the LLM itself stays as it is.

    Args:
        llm: the LLM.
        args: how.
        training: edits, each with what follows from it and what it leaves alone; what a record lacks is left out.
        encode: texts to embeddings of unit length [N, H], for facts that lie near.
        seed: of what is drawn.

    Raises:
        EditorError: no records.
    """
    if not training:
        raise EditorError(f"LLM {llm.name}: LTE has no edits to learn from; give training data")
    rows = alignment_rows(llm, args, training=training, encode=encode, seed=seed)
    return Alignment(llm=llm.name, args=args, change=fine_tune(llm, rows, args.supervised, seed=seed))


def alignment_rows(
    llm: FrozenLLM, args: LTEArgs, *, training: Sequence[EditRecord], encode: Encode, seed: int = 0
) -> list[Row]:
    """The parallel data: of every record a question in scope and one out of scope, each with facts and without.

    With facts the answer in scope is the target. All other answers are the unedited LLM's own, to the token, as
    locality is measured; the authors take the data sets' answers and GPT-4's. The facts are the record's own, in a
    quarter of the rows with the nearest other and in a quarter with the two nearest, in the order of their likeness to
    the question, as they will be at inference; the authors put the record's own first and leave out others about its
    subject. Their rows of general instructions, which keep a chat model able to chat, are left out.
    """
    rng = random.Random(seed)
    statements = [record.statement for record in training]
    keys_FH = encode(statements)
    others = _nearest_others(keys_FH, [record.prompt for record in training], num=len(_FACTS_SHARES) - 1)
    asked: list[tuple[str, int]] = []  # questions and their record
    targets: list[str | None] = []
    for number, record in enumerate(training):
        in_scope = [one for kind in record.generality.values() for one in kind]
        own = not in_scope or rng.random() < args.own_question_share
        drawn = Question(prompt=record.prompt, target=record.target) if own else rng.choice(in_scope)
        asked.append((drawn.prompt, number))
        targets.append(drawn.target)
        if out_of_scope := [one for kind in record.locality.values() for one in kind]:
            asked.append((rng.choice(out_of_scope).prompt, number))
            targets.append(None)
    questions = [question for question, _ in asked]
    unedited = plain_reader(llm).generated_ids([Ask(question) for question in questions])
    queries_BH = encode(questions)
    rows = []
    for (question, number), target, query_H, own_answer in zip(asked, targets, queries_BH, unedited, strict=True):
        num_others = rng.choices(range(len(_FACTS_SHARES)), _FACTS_SHARES)[0]
        pasted = [number, *others[number][: min(num_others, args.num_retrieved - 1)]]
        pasted.sort(key=lambda fact: -float(keys_FH[fact] @ query_H))
        text = args.read(llm, question, [statements[fact] for fact in pasted])
        answer = own_answer if target is None else tuple(answer_ids(llm, target, STOP))
        rows.append(Row(prompt=tuple(llm.tokenize(text)), answer=answer))
        rows.append(Row(prompt=tuple(llm.tokenize(question)), answer=own_answer))
    return [row for row in rows if row.answer and len(row.prompt) + len(row.answer) <= llm.max_length]


class LTE:
    """The inference phase (section 3.2): facts are looked up by their likeness to the question and pasted before it.

    No threshold: as long as there is any fact, every question gets the nearest ones, and the aligned LLM is what tells
    whether they matter. Between `undo` and `apply` questions are read by the aligned LLM too, without facts.

    Args:
        llm: the LLM that was aligned; it stays as it is, `reader` holds an aligned copy.
        args: how facts are pasted; the forms of text are best those of the alignment.
        alignment: as `align` gives it.
        encode: texts to embeddings of unit length [N, H].

    Raises:
        EditorError: the alignment is of another LLM.
    """

    name = "LTE"
    changes_llm = False

    def __init__(self, llm: FrozenLLM, args: LTEArgs, *, alignment: Alignment, encode: Encode) -> None:
        self.args = args
        self.reader = plain_reader(changed_copy(llm, alignment.change))
        self._encode = encode
        self._facts: dict[str, tuple[Edit, npt.NDArray[np.float32]]] = {}
        self._keys_FH: npt.NDArray[np.float32] | None = None

    def apply(self, edits: Sequence[Edit]) -> None:
        """Store statements and their embeddings."""
        edits = latest(edits)
        for edit, key_H in zip(edits, self._encode([edit.statement for edit in edits]), strict=True):
            self._facts[edit.fact_id] = (edit, key_H)
        self._keys_FH = None

    def undo(self) -> None:
        """Forget them."""
        self._facts.clear()
        self._keys_FH = None

    def asks(self, prompts: Sequence[str]) -> list[Ask]:
        """Each prompt behind the statements nearest to it, the nearest first."""
        if not self._facts:
            return [Ask(prompt) for prompt in prompts]
        statements = [edit.statement for edit, _ in self._facts.values()]
        facts_of, _ = self._lookup(prompts)
        return [
            Ask(self.args.read(self.reader.llm, prompt, [statements[fact] for fact in facts]))
            for prompt, facts in zip(prompts, facts_of, strict=True)
        ]

    def retrieve(self, prompts: Sequence[str]) -> Found:
        """The nearest fact of each prompt; it is pasted however far it is: the threshold is the least of cosines."""
        threshold_B = np.full(len(prompts), -1.0, np.float32)
        if not self._facts:
            nothing_B = np.full(len(prompts), -np.inf, np.float32)
            return Found(
                fact_ids_B=(None,) * len(prompts),
                applied_B=np.zeros(len(prompts), bool),
                score_B=nothing_B,
                threshold_B=threshold_B,
            )
        fact_ids = list(self._facts)
        facts_of, scores_of = self._lookup(prompts)
        return Found(
            fact_ids_B=tuple(fact_ids[facts[0]] for facts in facts_of),
            applied_B=np.ones(len(prompts), bool),
            score_B=np.array([scores[0] for scores in scores_of], np.float32),
            threshold_B=threshold_B,
        )

    def state_bytes(self) -> int:
        """Statements and embeddings; the aligned weights are the same whatever is edited."""
        return sum(len(edit.statement.encode()) + key_H.nbytes for edit, key_H in self._facts.values())

    def _lookup(self, prompts: Sequence[str]) -> tuple[list[list[int]], list[list[float]]]:
        if self._keys_FH is None:
            self._keys_FH = np.stack([key_H for _, key_H in self._facts.values()])
        return _nearest(self._encode(prompts), self._keys_FH, self.args.num_retrieved)


def _nearest(
    queries_BH: npt.NDArray[np.float32], keys_FH: npt.NDArray[np.float32], num: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Of each query the `num` keys of largest inner product and these, largest first; all where there are fewer."""
    found: list[list[int]] = []
    scores: list[list[float]] = []
    num = min(num, len(keys_FH))
    for start in range(0, len(queries_BH), ROWS_PER_LOOKUP):
        scores_BF = queries_BH[start : start + ROWS_PER_LOOKUP] @ keys_FH.T
        best_BN = np.sort(np.argpartition(-scores_BF, num - 1, axis=1)[:, :num], axis=1)
        order_BN = np.argsort(-np.take_along_axis(scores_BF, best_BN, 1), axis=1, kind="stable")
        found += (nearest_BN := np.take_along_axis(best_BN, order_BN, 1)).tolist()
        scores += np.take_along_axis(scores_BF, nearest_BN, 1).tolist()
    return found, scores


def _nearest_others(keys_FH: npt.NDArray[np.float32], prompts: Sequence[str], *, num: int) -> list[list[int]]:
    """Of each record the nearest ones with another prompt: those of its own prompt would contradict it."""
    nearest, _ = _nearest(keys_FH, keys_FH, 4 * num)
    return [
        list(islice((other for other in found if prompts[other] != prompt), num))
        for prompt, found in zip(prompts, nearest, strict=True)
    ]
