// The facts of a namespace: searched, listed, added, deleted.

import { call, factPath, scope, wrote } from "./api.js";
import { $, button, confirmed, counted, element, marginBar, number, reporting, terms, time } from "./view.js";

const PAGE_SIZE = 20;
const OUTCOMES = {
  new: "is new",
  changed: "has replaced the one with this id",
  unchanged: "was there already",
  superseded: "is older than what the table holds, and was left out",
  expired: "is kept, but no longer true",
};

let loading = null; // of the list that is on its way; a later one takes over
let nextCursor = null;
let searchedFor = null; // null: all facts are listed
let adding = false;
let onWrite = () => {};

/** Wires the section; `afterWrite` is called after each write. */
export function setUpFacts(afterWrite) {
  onWrite = afterWrite;
  $("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    searchedFor = $("search-query").value.trim() || null;
    void showFacts();
  });
  $("list-all").addEventListener("click", () => {
    $("search-query").value = "";
    searchedFor = null;
    void showFacts();
  });
  $("more-facts").addEventListener("click", () => void listMore());
  $("add-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!adding) void add();
  });
}

/** Shows what was last asked for, anew: the search, or the beginning of the list. */
export function showFacts() {
  $("list-heading").textContent = searchedFor === null ? "All facts" : `Facts nearest to “${searchedFor}”`;
  $("more-facts").hidden = true;
  nextCursor = null;
  return searchedFor === null ? list({ append: false }) : search(searchedFor);
}

function search(query) {
  return load(async (signal) => {
    const body = {
      model: scope.model,
      query,
      namespace: scope.namespace,
      limit: PAGE_SIZE,
      min_snapshot: scope.minSnapshot,
    };
    const found = await call("POST", "facts/search", { body, signal });
    $("fact-list").replaceChildren(...found.facts.map((fact) => row(fact, found.sentinel_score)));
    const above = found.facts.filter((fact) => fact.score > found.sentinel_score).length;
    const told = `${counted(found.facts.length, "fact")} found, ${above} above the sentinel`;
    $("facts-status").textContent = `${told} (${number(found.sentinel_score)}), in snapshot ${found.snapshot}.`;
  });
}

function list({ append }) {
  return load(async (signal) => {
    const query = {
      model: scope.model,
      namespace: scope.namespace,
      limit: PAGE_SIZE,
      cursor: append ? nextCursor : null,
      min_snapshot: scope.minSnapshot,
    };
    const page = await call("GET", "facts", { query, signal });
    if (!append) $("fact-list").replaceChildren();
    const rows = page.facts.map((fact) => row(fact, null));
    $("fact-list").append(...rows);
    nextCursor = page.next_cursor;
    $("more-facts").hidden = nextCursor === null;
    const shown = $("fact-list").children.length;
    const more = nextCursor === null ? "" : ", and there are more";
    $("facts-status").textContent = shown
      ? `${counted(shown, "fact")} shown${more}, in snapshot ${page.snapshot}.`
      : `This namespace has no facts in snapshot ${page.snapshot}.`;
    return rows;
  });
}

async function listMore() {
  const rows = await list({ append: true });
  rows?.[0]?.focus(); // the button may be gone; go on reading where the new ones begin
}

/** Runs a load that a later one stops. */
function load(action) {
  loading?.abort();
  loading = new AbortController();
  const { signal } = loading;
  $("fact-list").setAttribute("aria-busy", "true");
  return reporting($("facts-error"), () => action(signal)).finally(() => {
    if (!signal.aborted) $("fact-list").removeAttribute("aria-busy");
  });
}

function row(fact, sentinelScore) {
  const item = element("li", { tabindex: "-1" });
  const scored = sentinelScore !== null;
  const ask = () => {
    $("question").value = fact.prompt || fact.statement;
    $("question").focus();
  };
  item.append(
    element("p", { className: "statement", text: fact.statement }),
    terms([
      ["Id", element("code", { text: fact.id })],
      ["Source", fact.source],
      ["Subject", fact.subject],
      ["Since", fact.updated_at && time(fact.updated_at)],
      ["Until", fact.expires_at && time(fact.expires_at)],
      ["Score", scored ? number(fact.score) : null],
    ]),
  );
  if (scored) item.append(marginBar(fact.score, sentinelScore));
  item.append(
    element(
      "div",
      { className: "row" },
      button("Ask about it", `Ask about ${fact.id}`, ask),
      button("Delete", `Delete ${fact.id}`, () => void remove(item, fact), "danger"),
    ),
  );
  return item;
}

function add() {
  adding = true;
  return reporting($("facts-error"), async () => {
    const fact = { prompt: $("add-prompt").value.trim(), target: $("add-target").value.trim() };
    if ($("add-source").value.trim()) fact.source = $("add-source").value.trim();
    if ($("add-id").value.trim()) fact.id = $("add-id").value.trim();
    const body = { model: scope.model, namespace: scope.namespace, facts: [fact] };
    const written = await call("PUT", "facts", { body });
    wrote(written.snapshot);
    $("add-form").reset();
    $("add-prompt").focus(); // ready for the next one
    await showFacts();
    const [{ id, outcome }] = written.facts;
    $("facts-status").textContent = `Fact ${id} ${OUTCOMES[outcome] ?? outcome}, in snapshot ${written.snapshot}.`;
    onWrite();
  }).finally(() => {
    adding = false;
  });
}

async function remove(item, fact) {
  if (!(await confirmed("Delete this fact?", `${fact.statement} (${fact.id})`, "Delete"))) return;
  await reporting($("facts-error"), async () => {
    const written = await send(fact);
    wrote(written.snapshot);
    const next = item.nextElementSibling ?? item.previousElementSibling ?? $("list-heading");
    item.remove();
    next.focus();
    $("facts-status").textContent = `Fact ${fact.id} is deleted, in snapshot ${written.snapshot}.`;
    onWrite();
  });
}

function send({ id, namespace }) {
  const path = factPath(id);
  if (path !== null) return call("DELETE", path, { query: { model: scope.model, namespace } });
  return call("POST", "facts/delete", { body: { model: scope.model, namespace, ids: [id] } });
}
