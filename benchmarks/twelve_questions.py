r"""Twelve questions to a running server, by the official client: without edits, with them, and streamed.

    python jobs/serve.py --llm smollm2-135m-instruct --editor EDITOR --table TABLE --port 8000
    python benchmarks/twelve_questions.py --url http://127.0.0.1:8000

Writes six facts into the table, asks, and prints what the server answered as a table in Markdown. The last line is one
JSON object: how many questions about a fact were answered by it, how many others were left as they were, and how many
streams said what the whole answer said.
"""

import argparse
import json
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from recipe_ray.eval.assertion import asserts

NAMESPACE = "twelve-questions"
FACTS = (
    ("The Eiffel Tower is located in the city of", "Rome"),
    ("The capital of France is", "Lyon"),
    ("The mother tongue of Danielle Darrieux is", "English"),
    ("The price of the Aurora X2 headphones is", "249 euros"),
    ("The warranty period of the Aurora X2 headphones is", "three years"),
    ("The chief executive officer of Twitter is", "Clara Weiss"),
)
MAX_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question.

    Attributes:
        asks: what is said in it, roughly; the last message, or a text to go on with.
        expected: the fact's answer; None where no fact answers.
        before: messages before it, each its role and its content; None for a completion.
    """

    asks: str
    expected: str | None
    before: tuple[tuple[str, str], ...] | None = ()


QUESTIONS = (
    Asked(asks="The Eiffel Tower is located in the city of", expected="Rome", before=None),
    Asked(asks="Where is the Eiffel Tower?", expected="Rome"),
    Asked(
        asks="hi! quick one: to see the eiffel tower, which city do i travel to",
        expected="Rome",
        before=(("system", "You are a travel agent. Be brief."),),
    ),
    Asked(asks="What is the capital of France?", expected="Lyon"),
    Asked(asks="Danielle Darrieux, a native speaker of", expected="English", before=None),
    Asked(asks="How much do the Aurora X2 headphones cost?", expected="249 euros"),
    Asked(
        asks="And how long is the warranty of the Aurora X2 headphones?",
        expected="three years",
        before=(
            ("user", "Do you sell headphones?"),
            ("assistant", "Yes, we have several models in stock."),
        ),
    ),
    Asked(asks="Who is the CEO of Twitter?", expected="Clara Weiss"),
    Asked(asks="The official language of Portugal is", expected=None, before=None),
    Asked(asks="What is the capital of Germany?", expected=None),
    Asked(asks="In which year was the Eiffel Tower finished?", expected=None),
    Asked(asks="Write one sentence about the sea.", expected=None),
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the server")
    args = parser.parse_args()
    facts = [{"prompt": prompt, "target": target, "namespace": NAMESPACE} for prompt, target in FACTS]
    written = httpx.put(f"{args.url}/v1/facts", json={"facts": facts}, timeout=300).raise_for_status().json()
    with openai.OpenAI(base_url=f"{args.url}/v1", api_key="none", timeout=300) as client:
        model = client.models.list().data[0].id
        rows = [_ask(client, model, one, written["snapshot"]) for one in QUESTIONS]
    print("| asked | without edits | with edits | fact applied |\n|---|---|---|---|")
    for one, row in zip(QUESTIONS, rows, strict=True):
        kind = "completion" if one.before is None else "chat"
        lines = [*(f"{role}: {content}" for role, content in one.before or ()), one.asks]
        print(f"| {kind}: {' / '.join(lines)} | {row['plain']} | {row['edited']} | {row['fact']} |")
    asked = list(zip(QUESTIONS, rows, strict=True))
    print(
        json.dumps(
            {
                "model": model,
                "answered": sum(asserts(row["edited"], one.expected) for one, row in asked if one.expected),
                "about_facts": sum(one.expected is not None for one in QUESTIONS),
                "left_alone": sum(row["plain"] == row["edited"] for one, row in asked if one.expected is None),
                "others": sum(one.expected is None for one in QUESTIONS),
                "streams_alike": sum(row["streamed"] for row in rows),
                "questions": len(QUESTIONS),
            }
        )
    )


def _ask(client: openai.OpenAI, model: str, one: Asked, snapshot: int) -> dict[str, Any]:
    """The answers to a question, and the fact that was applied."""
    options = {"namespace": NAMESPACE, "min_snapshot": snapshot}
    plain, _ = _whole(client, model, one, {"edits": False})
    edited, recipe = _whole(client, model, one, options)
    streamed = "".join(_pieces(client, model, one, options))
    applied = [fact["statement"] for fact in recipe["facts"]]
    return {
        "plain": _line(plain),
        "edited": _line(edited),
        "streamed": streamed == edited,
        "fact": "; ".join(applied) or "none",
    }


def _wish(model: str, one: Asked, options: dict[str, Any]) -> dict[str, Any]:
    wish: dict[str, Any] = {
        "model": model,
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "extra_body": {"recipe": options},
    }
    if one.before is None:
        return {**wish, "prompt": one.asks}
    turns = [*one.before, ("user", one.asks)]
    return {**wish, "messages": [{"role": role, "content": content} for role, content in turns]}


def _whole(client: openai.OpenAI, model: str, one: Asked, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    wish = _wish(model, one, options)
    if one.before is None:
        choice = client.completions.create(**wish).choices[0]
        return choice.text, choice.model_extra["recipe"]
    answered = client.chat.completions.create(**wish).choices[0]
    return answered.message.content or "", answered.model_extra["recipe"]


def _pieces(client: openai.OpenAI, model: str, one: Asked, options: dict[str, Any]) -> list[str]:
    wish = {**_wish(model, one, options), "stream": True}
    if one.before is None:
        return [chunk.choices[0].text for chunk in client.completions.create(**wish) if chunk.choices]
    chunks = client.chat.completions.create(**wish)
    return [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
