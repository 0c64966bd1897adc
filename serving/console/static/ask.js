// A question, and both answers to it: the frozen LLM's own, and the one with the facts.

import { scope, stream } from "./api.js";
import { $, element, marginBar, number, reporting, terms } from "./view.js";

const MAX_TOKENS = 32;
const REASONS = {
  edits_off: "Edits are off for this question.",
  echo: "The question holds its own answer.",
  no_query: "There were no words to look up.",
  empty_table: "There are no facts yet.",
  empty_namespace: "This namespace has no facts.",
  below_sentinel: "No fact is near enough: the best one does not exceed the sentinel.",
  shard_lost: "A part of the index did not answer, so the answer was left unedited.",
};

let asking = null;

/** Wires the form; `onSnapshot` hears which version an answer came from. */
export function setUpAsk(onSnapshot) {
  $("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    void ask($("question").value, onSnapshot);
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("ask-form").requestSubmit();
  });
  $("stop-asking").addEventListener("click", () => {
    asking?.abort();
    $("question").focus();
  });
}

async function ask(question, onSnapshot) {
  asking?.abort();
  const own = new AbortController();
  asking = own;
  $("stop-asking").disabled = false;
  $("answers").hidden = false;
  $("ask-status").textContent = "Asking …";
  $("ask-error").textContent = "";
  $("provenance").replaceChildren();
  const edited = { namespace: scope.namespace || undefined, min_snapshot: scope.minSnapshot ?? undefined };
  const answers = await Promise.all([
    answer($("unedited-answer"), question, { edits: false }, own.signal, () => {}),
    answer($("edited-answer"), question, edited, own.signal, (recipe) => {
      $("provenance").replaceChildren(...provenance(recipe));
      onSnapshot(recipe.snapshot);
    }),
  ]);
  if (asking !== own) return; // a later question has taken over
  asking = null;
  $("stop-asking").disabled = true;
  if (own.signal.aborted) $("ask-status").textContent = "Stopped.";
  else if (answers.includes(undefined)) $("ask-status").textContent = "";
  else $("ask-status").textContent = answers[0] === answers[1] ? "Both answers are the same." : "The answers differ.";
}

/** Shows an answer as it comes; the whole of it, or undefined where it failed or was stopped. */
function answer(place, question, recipe, signal, onRecipe) {
  place.textContent = "";
  place.setAttribute("aria-busy", "true"); // read out once, when it is whole
  const body = {
    model: scope.model,
    prompt: question,
    max_tokens: MAX_TOKENS,
    temperature: 0,
    stream: true,
    recipe,
  };
  const failed = element("p"); // both answers fail alike as a rule: said once
  return reporting(failed, async () => {
    let text = "";
    for await (const chunk of stream("completions", body, signal)) {
      for (const choice of chunk.choices) {
        if (choice.recipe) onRecipe(choice.recipe);
        text += choice.text;
        place.textContent = text.trimStart(); // a completion begins with a space
      }
    }
    if (!text) place.append(element("em", { text: "(nothing)" }));
    return text;
  }).finally(() => {
    place.removeAttribute("aria-busy");
    if (failed.textContent && !signal.aborted) $("ask-error").textContent = failed.textContent;
  });
}

function provenance(recipe) {
  const facts = recipe.facts ?? (recipe.fact ? [recipe.fact] : []);
  const parts = facts.map((fact) =>
    element(
      "div",
      { className: "fact" },
      element("p", { className: "fired", text: "Fact applied" }),
      element("p", { className: "statement", text: fact.statement }),
      terms([
        ["Id", element("code", { text: fact.id })],
        ["Source", fact.source || "not given"],
        ["Score", number(fact.score)],
      ]),
    ),
  );
  if (!facts.length) {
    parts.push(element("p", { text: `No fact applied. ${REASONS[recipe.reason] ?? recipe.reason ?? ""}` }));
  }
  const comparable = typeof recipe.score === "number" && typeof recipe.sentinel_score === "number";
  parts.push(
    terms([
      ["Best score", facts.length || !comparable ? null : number(recipe.score)],
      ["Sentinel", comparable ? number(recipe.sentinel_score) : null],
      ["Margin", comparable ? number(recipe.score - recipe.sentinel_score) : null],
      ["Snapshot", String(recipe.snapshot)],
    ]),
  );
  if (comparable) parts.push(marginBar(recipe.score, recipe.sentinel_score));
  return parts;
}
